"""Pictures for callers: from a request to bytes, found, shared, or made.

- No caller gets a picture without a grant for its instance.
- A picture is in the cache under its instance, its frame and its normalised parameters; a request for one that is being
  made waits for that one, which is given up when the last waiting client has gone.
- Limits are looked at before any frame is fetched.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import attrs
from twisted.internet.defer import Deferred

from twistedproxy.cache.interface import Cache, Fence, Reading
from twistedproxy.deferreds import all_or_none
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.entries import PICTURE_HEAD, BadEntry, cached_bytes, expiry, pack_picture, unpack_picture
from twistedproxy.frames.read_through import FrameReader, FrameRequest
from twistedproxy.frames.single_flight import SingleFlight
from twistedproxy.imaging.errors import PictureTooLarge, PoolError
from twistedproxy.imaging.object_header import HeldBack
from twistedproxy.imaging.parameters import Rendering
from twistedproxy.origin.interface import Caller, Origin
from twistedproxy.rendering.descriptions import Descriptions
from twistedproxy.rendering.own_profiles import BadProfiles, checked_profiles
from twistedproxy.rendering.planner import Limits, Pictures, Planner, Request, Task, is_as_stored, is_gray
from twistedproxy.rendering.pool import RenderPool
from twistedproxy.rendering.runner import Made, Maker, check_not_empty
from twistedproxy.settings import Settings

MADE_AT_ONCE = 4
"""Pictures of one request that are made side by side: one list must not take all places in the queue."""


_Key = tuple[Instance, Optional[Fence], bytes]


@attrs.define(eq=False)
class PictureService:
    """Makes pictures. *seconds*: how long they stay in the cache (None: no expiry). *folder*: of ICC profiles."""

    reader: FrameReader
    cache: Cache
    pool: RenderPool
    limits: Limits
    seconds: Optional[float]
    folder: Optional[str] = None
    planner: Planner = attrs.field(init=False)
    maker: Maker = attrs.field(init=False)
    _descriptions: Descriptions = attrs.field(init=False)
    _in_flight: SingleFlight[_Key, Made] = attrs.field(init=False, factory=SingleFlight)

    def __attrs_post_init__(self) -> None:
        self._descriptions = descriptions = Descriptions(self.cache, self.pool)
        self.maker = Maker(self.reader, self.pool, descriptions, self.limits.pixels)
        self.planner = Planner(descriptions, self.limits)

    async def start(self) -> None:
        """Have a child ready, and read the folder of profiles. Raises `BadProfiles`."""
        self.pool.start()
        if self.folder is not None:
            try:
                self.planner.profiles = await checked_profiles(self.pool, self.folder)
            except (BadProfiles, PoolError) as error:
                raise BadProfiles(f"--icc-profiles: {error}") from None

    async def metadata(self, request: Request) -> InstanceMetadata:
        """The instance's metadata, for a caller that may read it. Raises the errors of `twistedproxy.origin.errors`."""
        grant, _ = await self.reader.granted(request.origin, request.instance, request.caller, [])
        return grant.metadata

    async def held_back(self, origin: Origin, instance: Instance, caller: Caller) -> HeldBack:
        """What the origin may leave out of the instance's metadata, for a caller that may read it. Raises `PoolError`, and the
        errors of `twistedproxy.origin.errors`."""
        _, reading = await self.reader.granted(origin, instance, caller, [])
        return await self._descriptions.held_back(Request(origin, instance, caller, Rendering()), reading.fence)

    async def frames(self, request: Request, numbers: Sequence[int]) -> Pictures:
        """Pictures of frames *numbers* (from 1; of the downsampled instance, if so asked), repeats included.

        Raises `NoSuchFrame`, `CannotRender`, `PictureTooLarge`, `PoolError`, and what reading frames
        raises. A `CallFailed` of kind "NotDecodable" means that nothing here decodes the instance.
        """
        names = {
            number: self.planner.name(b"frame %d" % number, request.rendering) for number in dict.fromkeys(numbers)
        }
        await self._check_cached(request, [names[number] for number in numbers])
        metadata, reading = await self._granted(request, list(names.values()))
        rendering = request.rendering
        if rendering.changes_nothing and is_as_stored(metadata, rendering.media_type) and not is_gray(metadata):
            return await self._as_stored(request, numbers)
        tasks = await self.planner.frames(request, metadata, reading, names)
        return await self._pictures(tasks, numbers)

    async def _check_cached(self, request: Request, names: Sequence[bytes]) -> None:
        """Refuse pictures that are cached and too large together before they are read."""
        grant = self.reader.access.known(request.caller, request.instance)
        many = len(names) > 1 and not request.fresh
        if grant is None or not many or len(names) * grant.most <= self.limits.answer:
            return
        if await cached_bytes(self.cache, request.instance, names, PICTURE_HEAD) > self.limits.answer:
            raise PictureTooLarge(self._too_large())

    def _too_large(self) -> str:
        return f"the requested pictures exceed {self.limits.answer} bytes; request fewer at once"

    async def _as_stored(self, request: Request, numbers: Sequence[int]) -> Pictures:
        wanted = FrameRequest(request.origin, request.instance, tuple(numbers), request.caller, fresh=request.fresh)
        answer = await self.reader.read(wanted)
        check_not_empty(answer.frames)
        data = [frame.data for frame in answer.frames]
        forwarded = answer.fetched + answer.shared
        return Pictures(
            data,
            answer.metadata,
            answer.cached,
            answer.fetched,
            answer.shared,
            forwarded,
            answer.fence,
            answer.prefetched,
            expires=answer.expires,
        )

    async def whole(self, request: Request) -> Pictures:
        """One picture of a whole instance: of the first plane of its matrix, or of its first frame. Raises as `frames`."""
        name = self.planner.name(b"whole", request.rendering)
        metadata, reading = await self._granted(request, [name])
        task = await self.planner.whole(request, metadata, reading, name)
        return await self._pictures({1: task}, [1])

    async def _granted(self, request: Request, names: Sequence[bytes]) -> tuple[InstanceMetadata, Reading]:
        wanted = [] if request.fresh else names
        grant, reading = await self.reader.granted(request.origin, request.instance, request.caller, wanted)
        request.check(grant.metadata)
        return grant.metadata, reading

    async def _pictures(self, tasks: Mapping[int, Task], numbers: Sequence[int]) -> Pictures:
        """All pictures of one request, a few at a time."""
        pictures: dict[int, Made] = {}
        sources: Counter[str] = Counter()
        left, times, size = iter(tasks.items()), Counter(numbers), 0

        async def some() -> None:
            nonlocal size
            for number, task in left:
                pictures[number], source = await self._picture(task)
                sources[source] += 1
                size += len(pictures[number].data) * times[number]
                if size > self.limits.answer and len(numbers) > 1:
                    raise PictureTooLarge(self._too_large())

        await all_or_none([Deferred.fromCoroutine(some()) for _ in range(min(MADE_AT_ONCE, len(tasks)))])
        one = next(iter(tasks.values()))
        return Pictures(
            [pictures[number].data for number in numbers],
            one.metadata,
            sources["cached"],
            sources["made"],
            sources["shared"],
            sum(picture.forwarded for picture in pictures.values()),
            one.reading.fence,
            digests=[pictures[number].digest for number in numbers],
            # a writer's clock may have been wrong
            expires=min(self._expiry(), *(picture.expires for picture in pictures.values())),
        )

    def _expiry(self) -> float:
        return expiry(self.reader.access.wall_clock(), self.seconds)

    async def _picture(self, task: Task) -> tuple[Made, str]:
        if (entry := task.reading.entries.get(task.name)) is not None:
            with contextlib.suppress(BadEntry):
                return Made(*unpack_picture(entry)), "cached"

        async def make() -> Made:
            # before it is written: the cache keeps it a little longer
            return attrs.evolve(await self.maker.make(task), expires=self._expiry())

        if task.request.fresh:
            return await make(), "made"
        instance, fence, name = key = (task.request.instance, task.reading.fence, task.name)

        async def keep(made: Made) -> None:
            await self.cache.put_many(
                instance, fence, {name: pack_picture(made.data, made.digest, made.expires)}, self.seconds
            )

        owner = task.request.caller.credential
        made, joined = await self._in_flight.one(key, owner, make, keep)
        return made, "shared" if joined else "made"


def open_imaging(reactor: Any, settings: Settings, reader: FrameReader, cache: Cache) -> Optional[PictureService]:
    """The service that makes pictures; None where there are no workers for it. Its `start` reads profiles."""
    if settings.render_workers == 0:
        return None
    pool = RenderPool(reactor, settings.render_workers, settings.render_queue, settings.render_timeout)
    limits = Limits(
        settings.render_max_pixels, settings.render_max_frames, settings.render_max_whole_frames, settings.max_answer
    )
    return PictureService(reader, cache, pool, limits, settings.frame_ttl, settings.icc_profiles)
