"""What callers ask of pictures, as pieces of work with limits, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from typing import Optional

import attrs

from twistedproxy.cache.interface import Fence, Reading
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.imaging.errors import PictureTooLarge, TooManyFrames
from twistedproxy.imaging.geometry import Cut, Tile
from twistedproxy.imaging.parameters import Rendering
from twistedproxy.imaging.tile_index import MAX_FRAMES, Placement
from twistedproxy.origin.interface import Caller, Origin


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
        if cut.pixels > self.pixels:
            raise PictureTooLarge(
                f"the picture would have {cut.columns} x {cut.rows} pixels; the limit is {self.pixels}: "
                "request a smaller one with viewport= or downsample="
            )
        if cut.frame_rows * cut.frame_columns > self.pixels:
            raise PictureTooLarge(f"a stored frame has more than {self.pixels} pixels, the limit for decoding")

    def check_count(self, tasks: Collection[Task]) -> None:
        """Raises `TooManyFrames` where pictures of frames need too many stored ones together."""
        limit = max(self.frames, len(tasks))
        needed = sum(task.count(limit) for task in tasks)
        if needed > limit:
            raise TooManyFrames(
                f"the request needs {needed} stored frames; the limit is {self.frames}: "
                "request fewer frames, or use a smaller level with a smaller factor"
            )

    def check_whole(self, task: Task) -> None:
        """Raises `TooManyFrames` where a picture of a whole instance needs too many."""
        if task.count(self.whole_frames) > self.whole_frames:
            raise TooManyFrames(
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
