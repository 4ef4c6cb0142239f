"""Pictures for callers: from a request to bytes, with no more work than it takes.

- Nobody gets a picture without a grant for its instance; frames come through the reader of frames, which finds them in the
  cache, fetches what is missing, and tells prefetch which stored frames a picture needed.
- A picture is in the cache under its instance, its frame and its normalised parameters; who asks for one that is being
  made waits for that one, and it is given up when the last who waits has gone.
- What is stored as it is asked for is sent as it is stored; JPEG and JPEG XL become each other without loss.
- Limits are looked at before any frame is fetched.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Optional

import attrs
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.threads import deferToThread

from twistedproxy.cache.interface import Cache, Fence, Reading
from twistedproxy.dicom.address import Instance
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.transfer_syntaxes import (
    JPEG_BASELINE,
    JPEG_PROGRESSIVE,
    JPEG_XL_RECOMPRESSION,
    OCTET_STREAM,
    lookup,
)
from twistedproxy.frames.entries import BadEntry, expiry, pack_picture, rendered_name, unpack_picture
from twistedproxy.frames.inflight import InFlight
from twistedproxy.frames.reader import FrameReader, NoSuchFrame, Wanted
from twistedproxy.frames.sizes import most
from twistedproxy.imaging.cut import Cut, Tile, decoder_scale
from twistedproxy.imaging.downsampled import Downsampled
from twistedproxy.imaging.errors import CallFailed, CannotRender, NoSuchVirtualFrame, PoolError
from twistedproxy.imaging.instance_facts import FACTS, FactsReader
from twistedproxy.imaging.parameters import Rendering
from twistedproxy.imaging.pool import Held, RenderPool
from twistedproxy.imaging.profiles import BadProfiles, OwnProfiles, read_profiles
from twistedproxy.imaging.sharing import shared
from twistedproxy.imaging.sparse import MAX_FRAMES, Placement, is_sparse
from twistedproxy.imaging.sparse_places import PlacementReader
from twistedproxy.origin.interface import Caller, Origin
from twistedproxy.waits import all_or_none

VERSION = b"3"
"""Part of every picture's name: to be raised when pictures come out otherwise, or their entries are laid out otherwise."""

BATCH = 64
"""Stored frames that a child gets at once: as many as fetch well, few enough to hold (64 of 15 kB: a megabyte)."""

MADE_AT_ONCE = 4
"""Pictures of one request that are made side by side: one list must not take all places in the queue."""

MAX_HELD = 8
"""Pictures of many frames that are made at once: children hold them meanwhile."""

PACKED = 8
"""Bytes that a cached picture has besides its own."""

JPEG, JPEG_XL = "image/jpeg", "image/jxl"
PICTURE_TYPES = (JPEG, "image/png", "image/webp", "image/gif", JPEG_XL, "image/jp2")
"""What pictures can be made as, the preferred first (DICOM PS3.18 table 8.7.4-1, and what browsers show)."""


class TooManyFrames(ValueError):
    """A picture, or a list of them, needs more stored frames than a setting allows."""


class PictureTooLarge(ValueError):
    """A picture has more pixels, or several together have more bytes, than a setting allows."""


@attrs.frozen
class Request:
    """Who asks for pictures of what. *fresh*: results neither come from the cache nor go there."""

    origin: Origin
    instance: Instance
    caller: Caller
    rendering: Rendering
    fresh: bool = False
    check: Callable[[InstanceMetadata], None] = lambda _metadata: None
    """Raises where the metadata show that the pictures would be of no use to the caller."""


@attrs.frozen
class Pictures:
    """Bytes of pictures in the order asked for, and where they came from, counted by number: *cached* from the cache,
    *made* for this request, *shared* with another that asked for the same."""

    data: Sequence[bytes]
    metadata: InstanceMetadata
    cached: int
    made: int
    shared: int
    fence: Optional[Fence] = None
    """That of the cache when it was read, None where it could not be."""
    prefetched: Sequence[int] = ()
    """Of pictures that are stored frames: the numbers of those that were loaded before anybody asked."""
    expires: float = math.inf
    """When the first of them ends in the cache, in seconds since the epoch; infinity: never."""


@attrs.frozen
class Limits:
    """*pixels*: of one picture, and of one stored frame. *frames*: stored frames of one request for frames.
    *whole_frames*: of a picture of a whole instance. *answer*: bytes of several pictures together."""

    pixels: int
    frames: int
    whole_frames: int
    answer: int


_Key = tuple[Instance, Optional[Fence], bytes]
_Made = tuple[bytes, float]  # a picture, and when it ends in the cache


@attrs.frozen
class _Task:
    """One picture to be made."""

    request: Request
    metadata: InstanceMetadata
    reading: Reading
    cut: Cut
    name: bytes
    placement: Optional[Placement] = None
    """Where the frames of a sparse instance lie."""

    def tiles(self) -> Iterator[Tile]:
        """The stored frames that are needed, row by row."""
        interpolation = self.request.rendering.interpolation
        if self.placement is not None:
            return self.placement.tiles(self.cut, interpolation)
        return self.cut.tiles(interpolation)

    def count(self, limit: int) -> int:
        """How many they are, counted up to one more than *limit*."""
        if self.placement is None:
            return self.cut.source_count(self.request.rendering.interpolation)
        return sum(1 for _ in islice(self.tiles(), limit + 1))


@attrs.define(eq=False)
class PictureService:
    """Makes pictures. *seconds*: how long they stay in the cache (None: no expiry). *folder*: of ICC profiles."""

    reader: FrameReader
    cache: Cache
    pool: RenderPool
    limits: Limits
    seconds: Optional[float]
    folder: Optional[str] = None
    profiles: OwnProfiles = attrs.field(init=False, factory=OwnProfiles)
    _facts: FactsReader = attrs.field(init=False)
    _sparse: PlacementReader = attrs.field(init=False)
    _in_flight: InFlight[_Key, _Made] = attrs.field(init=False, factory=InFlight)
    _places: DeferredSemaphore = attrs.field(init=False)
    _numbers: int = attrs.field(init=False, default=1 << 32)  # those of descriptions are below

    def __attrs_post_init__(self) -> None:
        self._facts = FactsReader(self.cache, self.pool)
        self._sparse = PlacementReader(self.cache, self.pool)
        self._places = DeferredSemaphore(min(MAX_HELD, max(1, self.pool.workers)))

    async def start(self) -> None:
        """Have a child ready, and read the folder of profiles. Raises `BadProfiles`."""
        self.pool.start()
        if self.folder is not None:
            try:
                self.profiles = await self._checked_profiles(self.folder)
            except (BadProfiles, PoolError) as error:
                raise BadProfiles(f"--icc-profiles: {error}") from None

    async def _checked_profiles(self, folder: str) -> OwnProfiles:
        profiles = await deferToThread(read_profiles, folder)
        for name, profile in profiles.by_name.items():
            try:
                await self.pool.call({"op": "profile"}, [profile])
            except CallFailed as failed:
                raise BadProfiles(f"{folder}: {name} is no profile to convert to: {failed}") from None
        return profiles

    async def metadata(self, request: Request) -> InstanceMetadata:
        """The instance's metadata, for a caller who may read it. Raises the errors of `twistedproxy.origin.errors`."""
        grant, _ = await self.reader.granted(request.origin, request.instance, request.caller, [])
        return grant.metadata

    async def frames(self, request: Request, numbers: Sequence[int]) -> Pictures:
        """Pictures of frames *numbers* (from 1; of the downsampled instance, if so asked), repeats included.

        Raises `NoSuchFrame`, `CannotRender`, `TooManyFrames`, `PictureTooLarge`, `PoolError`, and what reading frames
        raises. A `CallFailed` of kind "NotDecodable" says that nothing here decodes the instance.
        """
        names = {number: self._name(b"frame %d" % number, request.rendering) for number in dict.fromkeys(numbers)}
        await self._check_cached(request, [names[number] for number in numbers])
        metadata, reading = await self._granted(request, list(names.values()))
        if request.rendering.changes_nothing and _is_as_stored(metadata, request.rendering.media_type):
            return await self._as_stored(request, numbers)
        virtual, placement = await self._virtual(request, metadata, reading)
        cuts = self._cuts(request, virtual, list(names))
        tasks = {
            number: _Task(request, metadata, reading, cuts[number], names[number], placement)
            for number in names
        }  # fmt: skip
        self._check_count(tasks.values())
        return await self._pictures(tasks, numbers)

    def _name(self, what: bytes, rendering: Rendering) -> bytes:
        """The name of a picture in the cache."""
        own = self.profiles.digest(rendering.profile)
        return rendered_name(b"\0".join((b"ours", VERSION, what, rendering.key(), own)))

    async def _check_cached(self, request: Request, names: Sequence[bytes]) -> None:
        """Refuse pictures that are cached and too large together before they are read."""
        grant = self.reader.access.known(request.caller, request.instance)
        many = len(names) > 1 and not request.fresh
        if grant is None or not many or len(names) * most(grant.metadata) <= self.limits.answer:
            return
        heads = (await self.cache.heads(request.instance, list(dict.fromkeys(names)), 0)).entries
        if sum([heads[name].size for name in names if name in heads]) > self.limits.answer + PACKED * len(names):
            raise PictureTooLarge(self._too_large())

    def _too_large(self) -> str:
        return f"the pictures asked for are more than {self.limits.answer} bytes together: ask for fewer at once"

    async def _as_stored(self, request: Request, numbers: Sequence[int]) -> Pictures:
        answer = await self.reader.read(Wanted(request.origin, request.instance, tuple(numbers), request.caller))
        data = [frame.data for frame in answer.frames]
        return Pictures(
            data,
            answer.metadata,
            answer.cached,
            answer.fetched,
            answer.shared,
            answer.fence,
            answer.prefetched,
            answer.expires,
        )

    async def whole(self, request: Request) -> Pictures:
        """One picture of a whole instance: of the first plane of its matrix, or of its first frame. Raises as `frames`."""
        name = self._name(b"whole", request.rendering)
        metadata, reading = await self._granted(request, [name])
        virtual, placement = await self._virtual(request, metadata, reading, whole=True)
        cut = virtual.whole().shown(request.rendering.viewport)
        self._check_pixels(cut)
        task = _Task(request, metadata, reading, cut, name, placement)
        if task.count(self.limits.whole_frames) > self.limits.whole_frames:
            raise TooManyFrames(
                f"the picture needs {task.count(MAX_FRAMES)} stored frames; at most {self.limits.whole_frames} are read for one of a whole "
                "instance: ask for a smaller level, or for a region with viewport="
            )
        return await self._pictures({1: task}, [1])

    async def _virtual(
        self, request: Request, metadata: InstanceMetadata, reading: Reading, whole: bool = False
    ) -> tuple[Downsampled, Optional[Placement]]:
        """The instance as it is asked for, and where its frames lie if that must be known."""
        factor = request.rendering.downsample
        if is_sparse(metadata) and (factor > 1.0 or whole):
            try:
                placement = await self._sparse.read(
                    request.origin, request.instance, request.caller, reading.fence, metadata
                )
                return Downsampled.of(placement.as_full(metadata), factor), placement
            except CannotRender:
                if factor > 1.0:
                    raise  # else one frame stands for the instance, as for what is not tiled
        return Downsampled.of(metadata, factor), None

    async def _granted(self, request: Request, names: Sequence[bytes]) -> tuple[InstanceMetadata, Reading]:
        wanted = [FACTS, *names] if not request.fresh else [FACTS]
        grant, reading = await self.reader.granted(request.origin, request.instance, request.caller, wanted)
        request.check(grant.metadata)
        return grant.metadata, reading

    def _cuts(self, request: Request, virtual: Downsampled, numbers: Sequence[int]) -> dict[int, Cut]:
        """Where each picture comes from, all limits looked at."""
        if request.rendering.viewport is not None and request.rendering.media_type == OCTET_STREAM:
            raise CannotRender("a viewport is for pictures, not for pixel data")
        try:
            cuts = {number: virtual.frame(number).shown(request.rendering.viewport) for number in numbers}
        except NoSuchVirtualFrame as error:
            raise NoSuchFrame(str(error)) from None
        for cut in cuts.values():
            self._check_pixels(cut)
        return cuts

    def _check_count(self, tasks: Collection[_Task]) -> None:
        most = max(self.limits.frames, len(tasks))
        needed = sum(task.count(most) for task in tasks)
        if needed > most:
            raise TooManyFrames(
                f"what was asked for is made of {needed} stored frames; at most {self.limits.frames} are read for one "
                "request: ask for fewer frames, or at a smaller factor of a smaller level"
            )

    def _check_pixels(self, cut: Cut) -> None:
        if cut.pixels > self.limits.pixels:
            raise PictureTooLarge(
                f"the picture would have {cut.columns} x {cut.rows} pixels; at most {self.limits.pixels} are made: "
                "ask for a smaller one with viewport= or downsample="
            )
        if cut.frame_rows * cut.frame_columns > self.limits.pixels:
            raise PictureTooLarge(f"a stored frame has more than the {self.limits.pixels} pixels that are decoded")

    async def _pictures(self, tasks: Mapping[int, _Task], numbers: Sequence[int]) -> Pictures:
        """All pictures of one request, a few at a time."""
        data: dict[int, bytes] = {}
        counts = {"cached": 0, "made": 0, "shared": 0}
        left = iter(tasks.items())
        times = Counter(numbers)
        size = 0
        expires = math.inf

        async def some() -> None:
            nonlocal size, expires
            for number, task in left:
                (data[number], ends), how = await self._picture(task)
                expires = min(expires, ends)
                counts[how] += 1
                size += len(data[number]) * times[number]
                if size > self.limits.answer and len(numbers) > 1:
                    raise PictureTooLarge(self._too_large())

        await all_or_none([Deferred.fromCoroutine(some()) for _ in range(min(MADE_AT_ONCE, len(tasks)))])
        one = next(iter(tasks.values()))
        return Pictures(
            [data[number] for number in numbers],
            one.metadata,
            counts["cached"],
            counts["made"],
            counts["shared"],
            one.reading.fence,
            expires=min(expires, self._expiry()),  # a writer's clock may have been wrong
        )

    def _expiry(self) -> float:
        return expiry(self.reader.access.wall_clock(), self.seconds)

    async def _picture(self, task: _Task) -> tuple[_Made, str]:
        cached = _cached(task)
        if cached is not None:
            return cached, "cached"

        async def make() -> _Made:
            picture = await self._make(task)
            return picture, self._expiry()  # before it is written: the cache keeps it a little longer

        if task.request.fresh:
            return await make(), "made"
        instance, fence, name = key = (task.request.instance, task.reading.fence, task.name)

        async def keep(made: _Made) -> None:
            await self.cache.put_many(instance, fence, {name: pack_picture(*made)}, self.seconds)

        caller = task.request.caller
        made, joined = await shared(self._in_flight, key, caller, make, keep)
        return made, "shared" if joined else "made"

    async def _make(self, task: _Task) -> bytes:
        request, cut = task.request, task.cut
        rendering = request.rendering
        tiles = list(task.tiles())
        if rendering.changes_nothing and cut.is_whole_frame and tiles:
            unchanged = await self._unchanged(task, tiles[0])
            if unchanged is not None:
                return unchanged
        if len(tiles) > BATCH:
            return await self._in_batches(task, tiles)
        frames = await self._read(task, tiles)
        head, facts = await self._head(task, frames[0].transfer_syntax if frames else "", tiles)
        head |= {"op": "picture", "tiles": _places(tiles, frames)}
        own = self.profiles.get(rendering.profile)
        return (await self.pool.call(head, [facts, own, *(frame.data for frame in frames)])).blobs[0]

    async def _unchanged(self, task: _Task, tile: Tile) -> Optional[bytes]:
        """The picture where it is the stored frame, or the same in another wrapping."""
        media_type = task.request.rendering.media_type
        if media_type == OCTET_STREAM:
            (frame,) = await self._read(task, [tile])
            _, facts = await self._head(task, frame.transfer_syntax, [tile])
            head = {"op": "native", "transfer_syntax": frame.transfer_syntax, "max_pixels": self.limits.pixels}
            return (await self.pool.call(head, [facts, frame.data])).blobs[0]
        if task.metadata.transfer_syntax is not None and not is_same_picture(task.metadata, media_type):
            return None
        (frame,) = await self._read(task, [tile])
        metadata = attrs.evolve(task.metadata, transfer_syntax=frame.transfer_syntax)
        if not is_same_picture(metadata, media_type):
            return None
        if _is_as_stored(metadata, media_type):
            return bytes(frame.data)
        return (await self.pool.call({"op": "transcode", "media_type": media_type}, [frame.data])).blobs[0]

    async def _read(self, task: _Task, tiles: Sequence[Tile]) -> Sequence[Any]:
        """The stored frames of *tiles*."""
        if not tiles:
            return []
        request = task.request
        numbers = tuple(tile.number for tile in tiles)
        return (await self.reader.read(Wanted(request.origin, request.instance, numbers, request.caller))).frames

    async def _head(self, task: _Task, transfer_syntax: str, tiles: Sequence[Tile]) -> tuple[dict[str, Any], bytes]:
        """What a child must know of a picture, and the facts of its instance."""
        request, cut = task.request, task.cut
        colour = request.rendering.profile != "no"
        facts = await self._facts.read(
            request.origin, request.instance, request.caller, task.reading, colour, task.metadata
        )  # fmt: skip
        scale = 1
        if transfer_syntax == JPEG_BASELINE and request.rendering.interpolation == "area":
            scale = decoder_scale(cut, request.rendering.viewport is not None)
        head = {
            "rendering": attrs.asdict(attrs.evolve(request.rendering, viewport=None)),
            "cut": None if cut.is_whole_frame else attrs.asdict(cut),
            "scale": scale,
            "background": task.placement.background if task.placement is not None else None,
            "max_pixels": self.limits.pixels,
        }
        return head, facts.of(tiles[0].number if tiles else 1)

    async def _in_batches(self, task: _Task, tiles: Sequence[Tile]) -> bytes:
        """A picture of many frames: a child holds it while they come, row by row."""
        await self._places.acquire()
        held: Optional[Held] = None
        self._numbers += 1
        number = self._numbers
        try:
            left = iter(tiles)
            batch = list(islice(left, BATCH))
            coming = Deferred.fromCoroutine(self._read(task, batch))
            while batch:
                frames, read = await coming, batch
                batch = list(islice(left, BATCH))
                if batch:  # the next come while these are drawn
                    coming = Deferred.fromCoroutine(self._read(task, batch))
                if held is None:
                    head, facts = await self._head(task, frames[0].transfer_syntax, read)
                    own = self.profiles.get(task.request.rendering.profile)
                    held = await self.pool.hold({**head, "op": "begin", "number": number}, [facts, own])
                head = {"op": "add", "number": number, "tiles": _places(read, frames)}
                await held.call(head, [frame.data for frame in frames])
            assert held is not None, "there are more tiles than none"
            return (await held.call({"op": "finish", "number": number})).blobs[0]
        except BaseException:
            coming.addErrback(lambda _failure: None)
            coming.cancel()
            if held is not None:
                held.forget({"op": "drop", "number": number})
            raise
        finally:
            self._places.release()


def _cached(task: _Task) -> Optional[_Made]:
    """The picture among what was read from the cache."""
    entry = task.reading.entries.get(task.name)
    try:
        return unpack_picture(entry) if entry is not None else None
    except BadEntry:
        return None


def _places(tiles: Sequence[Tile], frames: Sequence[Any]) -> list[tuple[str, int, int]]:
    return [(frame.transfer_syntax, tile.top, tile.left) for tile, frame in zip(tiles, frames)]


def is_same_picture(metadata: InstanceMetadata, media_type: str) -> bool:
    """Whether a stored frame is the picture of it in *media_type*, as it is or losslessly wrapped: what a browser makes of
    its bytes is what DICOM says. (A JPEG of RGB components, a palette or a window would come out otherwise.)"""
    jpeg = metadata.transfer_syntax in (JPEG_BASELINE, JPEG_PROGRESSIVE)
    recompressed = metadata.transfer_syntax == JPEG_XL_RECOMPRESSION
    if not (jpeg or recompressed) or media_type not in (JPEG, JPEG_XL):
        return False
    return metadata.photometric_interpretation.startswith("YBR_FULL") or (
        metadata.photometric_interpretation == "MONOCHROME2" and metadata.bits_stored == 8
    )


def _is_as_stored(metadata: InstanceMetadata, media_type: str) -> bool:
    """Whether a stored frame's bytes are the picture of it."""
    jpeg = metadata.transfer_syntax in (JPEG_BASELINE, JPEG_PROGRESSIVE)
    return (media_type == JPEG) == jpeg and is_same_picture(metadata, media_type)


def can_decode(transfer_syntax: Optional[str]) -> bool:
    """Whether pictures can be made of frames in that transfer syntax: not of video. An unknown one: to be tried."""
    syntax = lookup(transfer_syntax) if transfer_syntax is not None else None
    return transfer_syntax is None or (syntax is not None and syntax.frames_separable)
