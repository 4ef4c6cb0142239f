"""The read-through: a list of frames out of the cache, and what it lacks out of the origin.

Rules:
- One cache round trip for a list of frames, and for the caller's grant where this worker does not know it.
- No frame leaves this module without a grant of that caller for that instance.
- A request for a frame that is on its way joins that fetch; nothing is fetched twice.
- A failing cache costs speed only.
- An answer has the time at which the first of its frames ends in the cache; that it was read prolongs nothing.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Optional

import attrs

from twistedproxy.cache.interface import Cache, Fence, Reading
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import Frame, is_native
from twistedproxy.frames.access import Access
from twistedproxy.frames.entries import (
    HUGE,
    MAX_FRAME,
    BadEntry,
    cached_bytes,
    expires_of,
    expiry,
    frame_head,
    frame_name,
    pack_frame,
    unpack_frame,
    was_prefetched,
)
from twistedproxy.frames.grants import Grant
from twistedproxy.frames.invalidation import FenceWatch, Invalidation
from twistedproxy.frames.single_flight import SingleFlight
from twistedproxy.origin.errors import DENIALS, NOT_ALLOWED, OriginRefused
from twistedproxy.origin.interface import Caller, Origin, Priority
from twistedproxy.streams import StreamTooLong


class NoSuchFrame(LookupError):
    """A frame number is past the instance's NumberOfFrames."""


class AnswerTooLarge(ValueError):
    """The frames of one answer are more bytes together than the setting allows."""


@attrs.frozen
class FrameRequest:
    """A request for frames: *numbers* from 1, as requested (order and repeats included)."""

    origin: Origin
    instance: Instance
    numbers: tuple[int, ...]
    caller: Caller
    check: Callable[[InstanceMetadata], None] = lambda _metadata: None
    """Raises where the metadata show that the frames would be of no use to the caller."""
    prefetch: bool = True
    """Whether it came from a viewer, which will want more."""
    takes: Callable[[str], bool] = lambda _transfer_syntax: False
    """Whether the caller gets frames in a transfer syntax just as they are, whatever the metadata show."""
    fresh: bool = False
    """Whether frames neither come from the cache nor go there; nothing is prefetched after them."""
    priority: Priority = Priority.CALLER
    """At the origin. What is asked for with another one than `Priority.CALLER` is loaded ahead of any request."""

    @property
    def reported(self) -> bool:
        """Whether prefetch is to know of it."""
        return self.prefetch and not self.fresh


@attrs.frozen
class FrameAnswer:
    """The frames in the order requested, and where they came from, counted by number:
    *cached* from the cache, *fetched* from the origin for this request, *shared* from a fetch under way.
    *fence*: that of the cache when it was read, None where it could not be. *prefetched*: those of the cached that
    were loaded ahead of any request. *expires*: when the first of them ends in the cache, in seconds since the epoch;
    infinity: never. *fresh*: nothing was to come from the cache, or to go there. *checked*: against the facts of the instance."""

    frames: Sequence[Frame]
    metadata: InstanceMetadata
    cached: int
    fetched: int
    shared: int
    fence: Optional[Fence] = None
    prefetched: Sequence[int] = ()
    expires: float = math.inf
    fresh: bool = False
    checked: bool = True

    @property
    def size(self) -> int:
        """Bytes of the frames together."""
        return sum([len(frame.data) for frame in self.frames])

    @property
    def from_origin(self) -> int:
        """How many frames came from the origin."""
        return self.fetched + self.shared

    @property
    def stored(self) -> bool:
        """Whether what was fetched goes to the cache."""
        return self.fence is not None and not self.fresh


size_of = operator.attrgetter("size")

Answered = Callable[[FrameRequest, FrameAnswer], None]
"""Called after each answered request (used by the prefetch scheduler)."""

Concerned = Callable[[FrameRequest, InstanceMetadata, Optional[Fence]], None]
"""Called with a request of a caller who may read the instance."""

_Key = tuple[Instance, Optional[Fence], int]
_Fetched = tuple[Frame, float]  # and when it ends in the cache, see `expiry`
_Frames = Mapping[_Key, _Fetched]


@attrs.define(eq=False)
class FrameReader:
    """Reads frames for callers. *frame_seconds*: how long frames stay in the cache (None: no expiry); *max_answer*: bytes. *missed*:
    called where the origin is asked; *reports_hits*: whether `answered` is called also for what came all from the cache."""

    cache: Cache
    access: Access
    invalidation: Invalidation
    frame_seconds: Optional[float]
    max_answer: int
    answered: Optional[Answered] = None
    missed: Optional[Concerned] = None
    refused: Optional[Concerned] = None
    watch: Optional[FenceWatch] = None
    reports_hits: bool = True
    huge: int = HUGE
    _flights: SingleFlight[_Key, _Fetched] = attrs.field(init=False, factory=SingleFlight)

    async def read(self, request: FrameRequest) -> FrameAnswer:
        """Answer *request*. Raises `NoSuchFrame`, `AnswerTooLarge`, and the errors of `twistedproxy.origin.errors`."""
        numbers = tuple(dict.fromkeys(request.numbers))
        names = [] if request.fresh else [frame_name(number) for number in numbers]
        if len(names) > 1:
            await self._check_cached(request)
        grant, reading = await self.granted(request.origin, request.instance, request.caller, names)
        self.check(request, grant.metadata)
        try:
            answer = await self._answer(request, grant, reading, numbers, names)
        except OriginRefused as refused:
            if self.refused is not None and request.reported and refused.status not in DENIALS:
                self.refused(request, grant.metadata, reading.fence)
            raise
        self.report(request, answer)
        return answer

    def report(self, request: FrameRequest, answer: FrameAnswer, early: bool = False) -> None:
        """Let prefetch know of an answered request. *early*: it was answered before anything was known of the instance."""
        if not request.reported:
            return
        if early and self.missed is not None:
            self.missed(request, answer.metadata, answer.fence)
        if self.answered is not None and (self.reports_hits or answer.from_origin or answer.prefetched):
            self.answered(request, answer)

    async def _answer(
        self, request: FrameRequest, grant: Grant, reading: Reading, numbers: Sequence[int], names: Sequence[bytes]
    ) -> FrameAnswer:
        frames: dict[int, Frame] = {}
        prefetched, expires = [], math.inf
        for number, name in zip(numbers, names):
            if (entry := reading.entries.get(name)) is None:
                continue
            try:
                frames[number] = unpack_frame(entry)
            except BadEntry:
                continue
            expires = min(expires, expires_of(entry))
            if was_prefetched(entry):
                prefetched.append(number)
        cached, shared = len(frames), 0
        if cached < len(numbers):
            if self.missed is not None and request.reported:
                self.missed(request, grant.metadata, reading.fence)
            missing = [number for number in numbers if number not in frames]
            fetched, shared = await self._from_origin(request, grant, reading.fence, missing)
            for number, (frame, ends) in fetched.items():
                frames[number] = frame
                expires = min(expires, ends)
        ordered = [frames[number] for number in request.numbers]
        own, fence = len(numbers) - cached - shared, reading.fence
        expires = min(expires, self.expiry())  # a writer's clock was wrong: no longer than if it were written now
        answer = FrameAnswer(ordered, grant.metadata, cached, own, shared, fence, prefetched, expires, request.fresh)
        if len(request.numbers) > 1 and answer.size > self.max_answer:
            raise self.too_large()
        return answer

    def expiry(self) -> float:
        """When a frame ends in the cache that is written now, or later."""
        return expiry(self.access.wall_clock(), self.frame_seconds)

    def in_flight(self) -> set[tuple[Instance, Optional[Fence], int]]:
        """The frames that are being fetched for callers of this worker: instance, fence, number."""
        return self._flights.under_way()

    async def at_hand(
        self, instance: Instance, caller: Caller, names: Sequence[bytes] = ()
    ) -> tuple[Optional[Grant], Reading]:
        """The caller's grant where one is known, and what the cache holds of *names*, in one round trip."""
        grant = self.access.known(caller, instance)
        ticket = self.watch.ticket() if self.watch is not None else None
        if self.invalidation.pending and self.invalidation.is_pending(instance):
            reading = Reading(None, {})
        elif grant is None:
            reading = await self.cache.get_many(instance, [*names, *self.access.entry_names(caller)])
            grant = self.access.from_reading(caller, instance, reading)
        else:
            reading = await self.cache.get_many(instance, names)
        if self.watch is not None and ticket is not None:
            self.watch.checked(instance, reading.fence, ticket)
        return grant, reading

    async def granted(
        self, origin: Origin, instance: Instance, caller: Caller, names: Sequence[bytes] = ()
    ) -> tuple[Grant, Reading]:
        """The same, with a grant that the origin is asked for where it is needed.

        Raises the errors of `twistedproxy.origin.errors` for a caller that the origin refuses.
        """
        grant, reading = await self.at_hand(instance, caller, names)
        if grant is None or reading.ended or (reading.fence is not None and grant.fence != reading.fence):
            grant = await self.access.ask(origin, instance, caller, reading)
            if reading.ended:  # what had ended goes on, or the instance is another
                reading = await self.cache.get_many(instance, names)
                if grant.fence != reading.fence:
                    reading = Reading(None, {})  # nothing comes from the cache this time, or goes there
        else:
            self.access.renew_if_spent(origin, instance, caller, grant)
        return grant, reading

    def check(self, request: FrameRequest, metadata: InstanceMetadata) -> None:
        """Raise what keeps *request* from being answered, as far as the metadata show."""
        request.check(metadata)
        last = max(request.numbers)
        if last > metadata.frames:
            raise NoSuchFrame(f"frame {last} does not exist; the instance has frames 1 to {metadata.frames}")
        count = len(request.numbers)
        if count > 1 and is_native(metadata.transfer_syntax) and count * (metadata.frame_length or 0) > self.max_answer:
            raise self.too_large()

    async def _check_cached(self, request: FrameRequest) -> None:
        """Refuse what is cached and too large before it is read; the cache is asked only where that may be so."""
        grant = self.access.known(request.caller, request.instance)
        if grant is not None and len(request.numbers) * grant.most > self.max_answer:
            names = [frame_name(number) for number in request.numbers]
            head = frame_head(grant.metadata.transfer_syntax)
            if await cached_bytes(self.cache, request.instance, names, head) > self.max_answer:
                raise self.too_large()

    def too_large(self) -> AnswerTooLarge:
        """The refusal of an answer."""
        return AnswerTooLarge(f"the requested frames exceed {self.max_answer} bytes; request fewer at once")

    async def _from_origin(
        self, request: FrameRequest, grant: Grant, fence: Optional[Fence], missing: Sequence[int]
    ) -> tuple[Mapping[int, _Fetched], int]:
        """The missing frames, and how many of them came from fetches that were under way already."""
        instance = request.instance

        async def fetch(keys: Sequence[_Key]) -> _Frames:
            frames = await self._fetch(request, grant, [key[2] for key in keys])
            fetched = {(instance, fence, number): one for number, one in frames.items()}  # maybe more than requested
            if is_huge(fetched):
                await write(fetched)
            return fetched

        def is_huge(fetched: _Frames) -> bool:
            # These go to the cache before callers get them, while they count as memory of an answer: an answer that is done
            # must not let the next one in while its frames are held for the cache.
            return sum([len(frame.data) for frame, _ in fetched.values()]) > self.huge

        async def keep(fetched: _Frames) -> None:
            if not is_huge(fetched):
                await write(fetched)

        async def write(fetched: _Frames) -> None:
            ahead = request.priority is not Priority.CALLER
            entries = {frame_name(key[2]): pack_frame(frame, ends, ahead) for key, (frame, ends) in fetched.items()}
            await self.cache.put_many(instance, fence, entries, self.frame_seconds)
            any_frame, _ = next(iter(fetched.values()))
            await self.access.learn_transfer_syntax(instance, grant, any_frame.transfer_syntax)

        try:
            if request.fresh:
                return await self._fetch(request, grant, missing), 0
            keys = [(instance, fence, number) for number in missing]
            fetched, shared = await self._flights.many(keys, request.caller.credential, fetch, keep)
        except StreamTooLong:
            raise self.too_large() from None
        return {key[2]: fetched[key] for key in keys}, shared

    async def _fetch(self, request: FrameRequest, grant: Grant, numbers: Sequence[int]) -> dict[int, _Fetched]:
        """Frames from the origin."""
        limit = self.max_answer if len(numbers) > 1 else MAX_FRAME
        try:
            frames = await request.origin.frames(
                request.instance, numbers, request.caller, grant.metadata, request.priority, limit
            )
        except OriginRefused as refused:
            if refused.status in NOT_ALLOWED:
                await self.access.revoke(request.caller, request.instance)
            raise
        expires = self.expiry()  # before it is written: the cache keeps it a little longer
        return {number: (frame, expires) for number, frame in frames.items()}
