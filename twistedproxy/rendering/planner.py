"""From a request for pictures to the pieces of work that make them, one for each picture.

All limits are looked at here, before any frame is fetched; of the origin no more is asked than where the frames of a
sparse instance lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Optional

import attrs

from twistedproxy.cache.interface import Reading
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.transfer_syntaxes import OCTET_STREAM
from twistedproxy.frames.entries import rendered_name
from twistedproxy.frames.read_through import NoSuchFrame
from twistedproxy.imaging.downsampled import Downsampled
from twistedproxy.imaging.errors import CannotRender, NoSuchVirtualFrame
from twistedproxy.imaging.geometry import Cut
from twistedproxy.imaging.icc_profiles import OwnProfiles
from twistedproxy.imaging.parameters import Rendering
from twistedproxy.imaging.tile_index import Placement, needs_positions
from twistedproxy.rendering.descriptions import Descriptions
from twistedproxy.rendering.jobs import Limits, Request, Task

VERSION = b"6"
"""Part of every picture's name: to be raised when pictures come out otherwise, or their entries are laid out otherwise."""


@attrs.define(eq=False)
class Planner:
    """Plans pictures. *profiles*: the operator's own."""

    descriptions: Descriptions
    limits: Limits
    profiles: OwnProfiles = attrs.Factory(OwnProfiles)

    def frame_name(self, number: int, rendering: Rendering) -> bytes:
        """The name in the cache of a picture of a frame."""
        return self._name(b"frame %d" % number, rendering)

    def whole_name(self, rendering: Rendering) -> bytes:
        """The name in the cache of a picture of a whole instance."""
        return self._name(b"whole", rendering)

    def _name(self, what: bytes, rendering: Rendering) -> bytes:
        own = self.profiles.digest(rendering.profile)
        return rendered_name(b"\0".join((b"ours", VERSION, what, rendering.key(), own)))

    async def frames(
        self, request: Request, metadata: InstanceMetadata, reading: Reading, names: Mapping[int, bytes]
    ) -> dict[int, Task]:
        """A task for each frame that has a name among *names*.

        Raises `NoSuchFrame`, `CannotRender`, `TooManyFrames`, `PictureTooLarge`, and what reading metadata raises.
        """
        virtual, placement = await self._virtual(request, metadata, reading)
        cuts = self._cuts(request, virtual, list(names))
        own = self.profiles.get(request.rendering.profile)
        tasks = {
            number: Task(request, metadata, reading, cuts[number], name, placement, own)
            for number, name in names.items()
        }
        self.limits.check_count(tasks.values())
        return tasks

    async def whole(self, request: Request, metadata: InstanceMetadata, reading: Reading, name: bytes) -> Task:
        """The task of one picture of a whole instance. Raises as `frames`."""
        virtual, placement = await self._virtual(request, metadata, reading, whole=True)
        cut = virtual.whole().shown(request.rendering.viewport)
        self.limits.check_pixels(cut)
        own = self.profiles.get(request.rendering.profile)
        task = Task(request, metadata, reading, cut, name, placement, own)
        self.limits.check_whole(task)
        return task

    async def _virtual(
        self, request: Request, metadata: InstanceMetadata, reading: Reading, whole: bool = False
    ) -> tuple[Downsampled, Optional[Placement]]:
        """The instance as it is asked for, and where its frames lie if that must be known."""
        factor = request.rendering.downsample
        if needs_positions(metadata) and (factor > 1.0 or whole):
            try:
                placement = await self.descriptions.placement(request, reading.fence, metadata)
                return Downsampled.of(placement.as_full(metadata), factor), placement
            except CannotRender:
                if factor > 1.0 or (metadata.frames > 1 and metadata.grid != (1, 1)):
                    raise  # else the first frame is all that there is to see, of a plane at least
        return Downsampled.of(metadata, factor), None

    def _cuts(self, request: Request, virtual: Downsampled, numbers: Sequence[int]) -> dict[int, Cut]:
        """Where each picture comes from."""
        if request.rendering.viewport is not None and request.rendering.media_type == OCTET_STREAM:
            raise CannotRender("a viewport is for pictures, not for pixel data")
        try:
            cuts = {number: virtual.frame(number).shown(request.rendering.viewport) for number in numbers}
        except NoSuchVirtualFrame as error:
            raise NoSuchFrame(str(error)) from None
        for cut in cuts.values():
            self.limits.check_pixels(cut)
        return cuts
