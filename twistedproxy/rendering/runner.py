"""One picture: the stored frames that it needs, and what children make of them, with no more work than it takes.

- What is stored as it is asked for is sent as it is stored; JPEG and JPEG XL become each other without loss.
- Frames come through the reader of frames, which finds them in the cache, fetches what is missing, and lets prefetch
  know which stored frames a picture needed.
- Of an instance whose frames most are needed and missing, the whole is loaded; the picture is made as its frames come.
- A picture of many frames is held by one child, while the next batch of frames is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Any, Optional, Protocol

import attrs
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.logger import Logger

from twistedproxy.cache.interface import Fence
from twistedproxy.cache.lru import LruStore
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.transfer_syntaxes import OCTET_STREAM, media_type_of
from twistedproxy.frames.entries import digests_of, frame_name
from twistedproxy.frames.read_through import FrameReader, FrameRequest
from twistedproxy.imaging.errors import CallFailed
from twistedproxy.imaging.geometry import Tile, decoder_scale
from twistedproxy.imaging.pixel_description import PixelFacts
from twistedproxy.imaging.tile_index import needs_positions
from twistedproxy.processes.messages import Message
from twistedproxy.rendering.descriptions import Descriptions
from twistedproxy.rendering.planner import (
    Task,
    is_as_stored,
    is_gray,
    is_same_picture,
    is_shown_as_stored,
    needs_range,
)
from twistedproxy.rendering.pool import RenderPool

BATCH = 64
"""Stored frames that a child gets at once: as many as fetch well, few enough to hold (64 of 15 kB: a megabyte)."""

_SHRINKING = frozenset(("image/jpeg", "image/jp2", "image/jpx", "image/jphc"))
"""Frames whose decoders can leave out detail: by averages of JPEG's, by resolutions of JPEG 2000's wavelet."""

MAX_HELD = 8
"""Pictures of many frames that are made at once: children hold them meanwhile."""

RANGES = 1 << 20
"""Bytes of ranges of values that are remembered: about 1,700."""

SAMPLE = 9
"""Tiles whose values give the range."""

_log = Logger()


@attrs.frozen
class Made:
    """A picture, and its `content_digest`. *expires*: when it ends in the cache. *forwarded*: whether the origin was asked
    for a frame of it just now."""

    data: bytes
    digest: bytes
    expires: float = math.inf
    forwarded: bool = False

    @classmethod
    def of(cls, answer: Message) -> Made:
        """The picture in a child's answer."""
        return cls(answer.blobs[0], bytes.fromhex(answer.head["digest"]))


@attrs.define
class _Asked:
    """Whether the origin was asked, so far. *load*: one that brings what is read."""

    origin: bool = False
    load: Optional[WholeLoad] = None


class WholeLoad(Protocol):
    """A whole-instance load that runs."""

    async def reached(self, frames: int) -> None:
        """Return once so many frames are cached, or it has ended, however."""


LoadWhole = Callable[[FrameRequest, InstanceMetadata, Optional[Fence]], Awaitable[Optional[WholeLoad]]]
"""Has an instance loaded whole for a caller who needs most of its frames; None where it is not to be."""


@attrs.define(eq=False)
class Maker:
    """Makes pictures one by one. *max_pixels*: of one stored frame."""

    reader: FrameReader
    pool: RenderPool
    descriptions: Descriptions
    max_pixels: int
    load_whole: Optional[LoadWhole] = None
    _turns: DeferredSemaphore = attrs.field(init=False)
    _ranges: LruStore = attrs.field(init=False, factory=lambda: LruStore(RANGES))

    def __attrs_post_init__(self) -> None:
        self._turns = DeferredSemaphore(min(MAX_HELD, max(1, self.pool.workers)))

    async def make(self, task: Task) -> Made:
        """Make a picture. Raises `PoolError`, and what reading frames raises."""
        asked = _Asked()
        return attrs.evolve(await self._picture(task, asked), forwarded=asked.origin)

    async def _picture(self, task: Task, asked: _Asked) -> Made:
        request, cut = task.request, task.cut
        rendering = request.rendering
        tiles = list(task.tiles())
        if rendering.changes_nothing and cut.is_whole_frame and tiles:
            unchanged = await self._unchanged(task, tiles[0], asked)
            if unchanged is not None:
                return unchanged
        await self._have_loaded(task, tiles, asked)
        if len(tiles) <= BATCH:
            return await self._drawn(task, tiles, asked)
        return await self._turns.run(lambda: Deferred.fromCoroutine(self._drawn(task, tiles, asked)))

    async def _have_loaded(self, task: Task, tiles: Sequence[Tile], asked: _Asked) -> None:
        """Where a picture needs most frames of an instance, and the cache lacks many of them: have it loaded whole."""
        request, fence = task.request, task.reading.fence
        if self.load_whole is None or fence is None or len(tiles) < 2 or len(tiles) * 2 < task.metadata.frames:
            return
        numbers = tuple(tile.number for tile in tiles)
        cached = await self.reader.cache.present(request.instance, [frame_name(number) for number in numbers])
        if len(cached) * 2 < len(numbers):
            wanted = FrameRequest(request.origin, request.instance, numbers, request.caller)
            asked.load = await self.load_whole(wanted, task.metadata, fence)
            asked.origin = asked.origin or asked.load is not None

    async def _unchanged(self, task: Task, tile: Tile, asked: _Asked) -> Optional[Made]:
        """The picture where it is the stored frame, or the same in another wrapping."""
        media_type = task.request.rendering.media_type
        if media_type == OCTET_STREAM:
            (frame,) = await self._read(task, [tile], asked)
            facts = await self._facts(task, tile.number)
            head = {"op": "native", "transfer_syntax": frame.transfer_syntax, "max_pixels": self.max_pixels}
            return Made.of(await self.pool.call(head, [facts, frame.data]))
        if task.metadata.transfer_syntax is not None and not is_same_picture(task.metadata, media_type):
            return None
        (frame,) = await self._read(task, [tile], asked, task.request.fresh)
        metadata = attrs.evolve(task.metadata, transfer_syntax=frame.transfer_syntax)
        if not is_same_picture(metadata, media_type):
            return None
        may_be_windowed = is_gray(metadata) and not task.request.rendering.stored_values
        if may_be_windowed and not is_shown_as_stored(PixelFacts.from_bytes(await self._facts(task, tile.number))):
            return None
        if is_as_stored(metadata, media_type):
            check_not_empty([frame])
            return Made(frame.data, (await digests_of([frame.data]))[0])
        return Made.of(await self.pool.call({"op": "transcode", "media_type": media_type}, [frame.data]))

    async def _read(
        self, task: Task, tiles: Sequence[Tile], asked: _Asked, fresh: bool = False
    ) -> Sequence[Any]:  # fmt: skip
        """The stored frames of *tiles*; *fresh*: past the cache."""
        if not tiles:
            return []
        request = task.request
        numbers = tuple(tile.number for tile in tiles)
        if asked.load is not None:
            await asked.load.reached(max(numbers))
        wanted = FrameRequest(request.origin, request.instance, numbers, request.caller, fresh=fresh)
        answer = await self.reader.read(wanted)
        asked.origin = asked.origin or answer.fetched + answer.shared > 0
        return answer.frames

    async def _facts(self, task: Task, number: int) -> bytes:
        """The facts of frame *number*, packed."""
        return (await self.descriptions.facts(task.request, task.reading.fence, task.metadata)).of(number)

    async def _head(
        self, task: Task, transfer_syntax: str, tiles: Sequence[Tile], asked: _Asked
    ) -> tuple[dict[str, Any], bytes]:
        """What a child must know of a picture, and the facts of its instance."""
        rendering, cut, number = task.request.rendering, task.cut, tiles[0].number if tiles else 1
        packed = await self._facts(task, number)
        scale = _scale(task, transfer_syntax)
        if is_gray(task.metadata) and rendering.window is None and not rendering.stored_values:
            known = PixelFacts.from_bytes(packed)
            if needs_range(known) and (known.tiled or scale > 1):  # else by the values that it takes anyway
                numbers = range_sample(task.metadata, number) if known.tiled else [number]
                value_range = await self._range(task, numbers, packed, asked)
                packed = attrs.evolve(known, value_range=value_range).to_bytes()
        head = {
            "rendering": attrs.asdict(attrs.evolve(rendering, viewport=None)),
            "cut": None if cut.is_whole_frame else attrs.asdict(cut),
            "scale": scale,
            "in_grid": task.in_grid,
            "background": task.placement.background if task.placement is not None else None,
            "max_pixels": self.max_pixels,
        }
        return head, packed

    async def _range(
        self, task: Task, numbers: Sequence[int], packed: bytes, asked: _Asked
    ) -> Optional[list[float]]:  # fmt: skip
        """The smallest and the largest stored value of frames *numbers*; None where all are the same."""
        request, fence = task.request, task.reading.fence
        name = b"%s %s/%s %d" % (
            fence or b"", request.instance.place.encode(), request.instance.path.encode(), numbers[0],
        )  # fmt: skip
        found = self._ranges.get(name, 0.0) if fence is not None else None
        if found is None:
            frames = await self._read(task, [Tile(one, 0, 0) for one in numbers], asked)
            syntaxes = [frame.transfer_syntax for frame in frames]
            head = {"op": "range", "transfer_syntaxes": syntaxes, "max_pixels": self.max_pixels}
            found = (await self.pool.call(head, [packed, *(frame.data for frame in frames)])).blobs[0]
            if fence is not None:
                self._ranges.put(name, found, 0.0, None)
        value_range: Optional[list[float]] = json.loads(found)
        return value_range

    async def _drawn(self, task: Task, tiles: Sequence[Tile], asked: _Asked) -> Made:
        """A picture of frames that come batch by batch, row by row: a child holds it meanwhile."""
        held = self.pool.held()
        left = iter(tiles)
        batch = list(islice(left, BATCH))
        coming = Deferred.fromCoroutine(self._read(task, batch, asked))
        head: dict[str, Any] = {}
        try:
            while True:
                frames, read = await coming, batch
                batch = list(islice(left, BATCH))
                if batch:  # the next come while these are drawn
                    coming = Deferred.fromCoroutine(self._read(task, batch, asked))
                blobs = [frame.data for frame in frames]
                places = [(frame.transfer_syntax, tile.top, tile.left) for tile, frame in zip(read, frames)]
                first = not head
                if first:
                    head, facts = await self._head(task, frames[0].transfer_syntax if frames else "", read, asked)
                    blobs[:0] = facts, task.own_profile
                call = {"op": "picture", "tiles": places, "last": not batch}
                answer = await held.call(call | head if first else call, blobs)
                if not batch:
                    break
        except BaseException:
            coming.addErrback(lambda _failure: None)
            coming.cancel()
            held.release()
            raise
        if reason := answer.head.get("left_empty"):
            _log.warn(
                "a frame that cannot be decoded is left blank in a picture: {reason}",
                event="frames_left_empty", reason=reason, instance=task.request.instance.path,
            )  # fmt: skip
        return Made.of(answer)


def range_sample(metadata: InstanceMetadata, number: int) -> list[int]:
    """Tiles of the plane that frame *number* belongs to, spread evenly, the same for each of them. Where positions decide,
    all frames are one plane."""
    rows, columns = metadata.grid
    plane = metadata.frames if needs_positions(metadata) else rows * columns
    first = (number - 1) // plane * plane
    count = max(1, min(plane, metadata.frames - first))
    taken = min(SAMPLE, count)
    return [first + 1 + (2 * index + 1) * count // (2 * taken) for index in range(taken)]


def _scale(task: Task, transfer_syntax: str) -> int:
    """By how much decoders may shrink the frames: not where values are indices of colors. Those of deep JPEG cannot."""
    rendering, media_type = task.request.rendering, media_type_of(transfer_syntax)
    palette = task.metadata.photometric_interpretation == "PALETTE COLOR"
    deep = media_type == "image/jpeg" and task.metadata.bits_stored > 8
    if rendering.interpolation != "area" or palette or deep or media_type not in _SHRINKING or not task.in_grid:
        return 1
    return decoder_scale(task.cut, rendering.viewport is not None, averages=media_type == "image/jpeg")


def check_not_empty(frames: Sequence[Any]) -> None:
    """Raises `CallFailed` where a stored frame that is to be a picture has no bytes, as a child would."""
    if not all(frame.data for frame in frames):
        raise CallFailed("BadImage", "the stored frame is empty")
