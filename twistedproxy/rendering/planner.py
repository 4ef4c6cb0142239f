"""Requests for pictures, the pieces of work that make them, one for each picture, and what comes of them.

All limits are looked at here, before any frame is fetched; of the origin no more is asked than where the frames of a
sparse instance lie. Here is also which forms pictures have, and which stored frames are such pictures already.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Optional

import attrs

from twistedproxy.cache.interface import Fence, Reading
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.multipart_writer import content_digest
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    JPEG_BASELINE,
    JPEG_PROGRESSIVE,
    JPEG_XL_RECOMPRESSION,
    OCTET_STREAM,
    lookup,
)
from twistedproxy.frames.entries import rendered_name
from twistedproxy.frames.read_through import NoSuchFrame
from twistedproxy.imaging.downsampled_instance import Downsampled
from twistedproxy.imaging.errors import CannotRender, NoSuchVirtualFrame, PictureTooLarge
from twistedproxy.imaging.geometry import Cut, Tile
from twistedproxy.imaging.parameters import PROFILES, Rendering
from twistedproxy.imaging.pixel_description import MONOCHROME, PixelFacts
from twistedproxy.imaging.tile_index import MAX_FRAMES, Placement, needs_positions
from twistedproxy.origin.interface import Caller, Origin

if TYPE_CHECKING:
    from twistedproxy.rendering.descriptions import Descriptions


@attrs.frozen
class Request:
    """A caller's request for pictures. *fresh*: results neither come from the cache nor go there; stored frames that they
    are made of do."""

    origin: Origin
    instance: Instance
    caller: Caller
    rendering: Rendering
    fresh: bool = False
    check: Callable[[InstanceMetadata], None] = lambda _metadata: None
    """Raises where the metadata show that the pictures would be of no use to the caller."""


@attrs.frozen
class Task:
    """One picture to be made."""

    request: Request
    metadata: InstanceMetadata
    reading: Reading
    cut: Cut
    name: bytes
    placement: Optional[Placement] = None
    """Where the frames of a sparse instance lie."""
    own_profile: bytes = b""
    """The operator's profile to convert to, in place of the built-in one of that name."""

    def tiles(self) -> Iterator[Tile]:
        """The stored frames that are needed, row by row."""
        interpolation = self.request.rendering.interpolation
        if self.placement is not None:
            return self.placement.tiles(self.cut, interpolation)
        return self.cut.tiles(interpolation)

    @property
    def in_grid(self) -> bool:
        """Whether frames begin at multiples of their size."""
        return self.placement is None or self.placement.in_grid

    def count(self, limit: int) -> int:
        """How many they are, counted up to one more than *limit*."""
        if self.placement is None:
            return self.cut.source_count(self.request.rendering.interpolation)
        return sum(1 for _ in islice(self.tiles(), limit + 1))


@attrs.frozen
class Limits:
    """*pixels*: of one picture, and of one stored frame. *frames*: stored frames of one request for frames.
    *whole_frames*: of a picture of a whole instance. *answer*: bytes of several pictures together."""

    pixels: int
    frames: int
    whole_frames: int
    answer: int

    def check_pixels(self, cut: Cut) -> None:
        """Raises `PictureTooLarge`."""
        if cut.rows * cut.columns > self.pixels:
            raise PictureTooLarge(
                f"the picture would have {cut.columns} x {cut.rows} pixels; the limit is {self.pixels}: "
                "request a smaller one with viewport= or downsample="
            )
        if cut.frame_rows * cut.frame_columns > self.pixels:
            raise PictureTooLarge(f"a stored frame has more than {self.pixels} pixels, the limit for decoding")

    def check_count(self, tasks: Collection[Task]) -> None:
        """Raises `PictureTooLarge` where pictures of frames need too many stored ones together."""
        limit = max(self.frames, len(tasks))
        needed = sum(task.count(limit) for task in tasks)
        if needed > limit:
            raise PictureTooLarge(
                f"the request needs {needed} stored frames; the limit is {self.frames}: "
                "request fewer frames, or use a smaller level with a smaller factor"
            )

    def check_whole(self, task: Task) -> None:
        """Raises `PictureTooLarge` where a picture of a whole instance needs too many."""
        if task.count(self.whole_frames) > self.whole_frames:
            raise PictureTooLarge(
                f"the picture needs {task.count(MAX_FRAMES)} stored frames; the limit is {self.whole_frames} for one "
                "of a whole instance: request a smaller level, or a region with viewport="
            )


@attrs.frozen
class Pictures:
    """Bytes of pictures in the order asked for, and where they came from, counted by number: *cached* from the cache, *made*
    for this request, *shared* with another that asked for the same. *forwarded*: those of the made and the shared for which
    the origin was asked for frames. *digests*: the `content_digest` of each; none where they are stored frames."""

    data: Sequence[bytes]
    metadata: InstanceMetadata
    cached: int
    made: int
    shared: int
    forwarded: int
    fence: Optional[Fence] = None
    """That of the cache when it was read, None where it could not be."""
    prefetched: Sequence[int] = ()
    """Of pictures that are stored frames: the numbers of those that were prefetched."""
    digests: Sequence[bytes] = ()
    expires: float = math.inf
    """When the first of them ends in the cache, in seconds since the epoch; infinity: never."""


JPEG, JPEG_XL = "image/jpeg", "image/jxl"
PICTURE_TYPES = (JPEG, "image/png", "image/webp", "image/gif", JPEG_XL, "image/jp2")
"""What pictures can be made as, the preferred first (DICOM PS3.18 table 8.7.4-1, and what browsers show)."""


def is_same_picture(metadata: InstanceMetadata, media_type: str) -> bool:
    """Whether a stored frame, as it is or losslessly wrapped, is its pixels in *media_type*: what a browser makes of its
    bytes is what DICOM defines. (A JPEG of RGB components or a palette would come out otherwise.) Of gray the rendered picture
    is that only if no window or table makes other values of them, which the metadata here do not hold."""
    jpeg = metadata.transfer_syntax in (JPEG_BASELINE, JPEG_PROGRESSIVE)
    recompressed = metadata.transfer_syntax == JPEG_XL_RECOMPRESSION
    if not (jpeg or recompressed) or media_type not in (JPEG, JPEG_XL):
        return False
    return metadata.photometric_interpretation.startswith("YBR_FULL") or (
        is_gray(metadata) and metadata.bits_stored == 8
    )


def is_gray(metadata: InstanceMetadata) -> bool:
    """Whether windows and tables may apply to the values (PS3.3 section C.11)."""
    return metadata.photometric_interpretation.startswith("MONOCHROME")


def is_as_stored(metadata: InstanceMetadata, media_type: str) -> bool:
    """Whether a stored frame's bytes are its pixels in *media_type*; of gray see `is_same_picture`."""
    jpeg = metadata.transfer_syntax in (JPEG_BASELINE, JPEG_PROGRESSIVE)
    return (media_type == JPEG) == jpeg and is_same_picture(metadata, media_type)


def is_shown_as_stored(facts: PixelFacts) -> bool:
    """Whether every gray value of 8 bits is shown as itself, unless a window is asked for. False of tables, too: they seldom
    change nothing."""
    plain = facts.bits_allocated == facts.bits_stored == 8 and facts.photometric_interpretation == "MONOCHROME2"
    if not plain or facts.inverse or facts.signed or facts.modality_lut is not None or facts.voi_lut is not None:
        return False
    slope = facts.rescale_slope or 1.0
    if not facts.window_widths or facts.window_widths[0] <= 0:  # from the smallest to the largest value
        return slope > 0
    center, width = facts.window_centers[0], facts.window_widths[0]
    if facts.voi_lut_function == "LINEAR" and width >= 1:  # PS3.3 section C.11.2.1.2.1
        center, width = center - 0.5, width - 1
    if facts.voi_lut_function == "SIGMOID" or width <= 0:
        return False

    def shown(value: int) -> float:
        share = (value * slope + facts.rescale_intercept - center) / width + 0.5
        return 255 * min(max(share, 0), 1)

    return all(abs(shown(value) - value) < 0.5 for value in (0, 1, 254, 255))  # a line from 1 to 254


def needs_range(facts: PixelFacts) -> bool:
    """Whether it takes pixels to know which values are shown black and white, unless a window is asked for."""
    deep = facts.bits_stored > 8 and facts.photometric_interpretation in MONOCHROME
    windowed = facts.window_widths or facts.voi_lut is not None or facts.modality_lut is not None
    return deep and not windowed and facts.value_range is None


def can_decode(transfer_syntax: Optional[str]) -> bool:
    """Whether pictures can be made of frames in that transfer syntax: not of video. An unknown one: to be tried."""
    syntax = lookup(transfer_syntax)
    return transfer_syntax is None or (syntax is not None and syntax.frames_separable)


def can_render(metadata: InstanceMetadata) -> bool:
    """Whether pictures can be made of that instance: not of documents, reports and waveforms, nor of video."""
    return metadata.has_pictures and can_decode(metadata.transfer_syntax)


def producible(metadata: InstanceMetadata, stored: str) -> tuple[str, ...]:
    """The transfer syntaxes that frames *stored* in one can be given in without loss, the preferred first."""
    syntax = lookup(stored)
    if syntax is None or not can_decode(stored):
        return ()
    if metadata.transfer_syntax != stored:
        metadata = attrs.evolve(metadata, transfer_syntax=stored)
    native = (EXPLICIT_VR_LITTLE_ENDIAN,) if metadata.bits_allocated >= 8 else ()
    if is_same_picture(metadata, "image/jxl") and stored == JPEG_BASELINE:
        return (JPEG_XL_RECOMPRESSION, *native)
    if is_same_picture(metadata, "image/jpeg") and stored == JPEG_XL_RECOMPRESSION:
        return (JPEG_BASELINE, *native)
    return native if syntax.encapsulated or syntax.big_endian else ()


VERSION = b"6"
"""Part of every picture's name: to be raised when pictures come out otherwise, or their entries are laid out otherwise."""


@functools.cache  # each frame's name in the cache has one
def _digest(profile: bytes) -> bytes:
    return content_digest([profile])


@attrs.define(eq=False)
class Planner:
    """Plans pictures. *profiles*: the operator's own, by their names."""

    descriptions: Descriptions
    limits: Limits
    profiles: Mapping[str, bytes] = attrs.Factory(dict)

    @property
    def profile_names(self) -> Sequence[str]:
        """All that ``iccprofile`` may be, built-in ones first."""
        return tuple(dict.fromkeys((*PROFILES, *sorted(self.profiles))))

    def name(self, what: bytes, rendering: Rendering) -> bytes:
        """The name in the cache of a picture: *what* says of which frame, or that it is of the whole instance."""
        own = self.profiles.get(rendering.profile)
        digest = b"" if own is None else _digest(own)
        return rendered_name(b"\0".join((b"ours", VERSION, what, rendering.key(), digest)))

    async def frames(
        self, request: Request, metadata: InstanceMetadata, reading: Reading, names: Mapping[int, bytes]
    ) -> dict[int, Task]:
        """A task for each frame that has a name among *names*.

        Raises `NoSuchFrame`, `CannotRender`, `PictureTooLarge`, and what reading metadata raises.
        """
        virtual, placement = await self._virtual(request, metadata, reading)
        viewport = request.rendering.viewport
        if viewport is not None and request.rendering.media_type == OCTET_STREAM:
            raise CannotRender("a viewport is for pictures, not for pixel data")
        try:
            cuts = {number: virtual.frame(number).shown(viewport) for number in names}
        except NoSuchVirtualFrame as error:
            raise NoSuchFrame(str(error)) from None
        for cut in cuts.values():
            self.limits.check_pixels(cut)
        own = self.profiles.get(request.rendering.profile, b"")
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
        own = self.profiles.get(request.rendering.profile, b"")
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
