"""The read-through: a list of frames out of the cache, and what it lacks out of the origin.

- One cache round trip for a list of frames, and for the caller's grant where this worker does not know it.
- No frame leaves this module without a grant of that caller for that instance.
- Who waits for a frame that is on its way joins that fetch; nobody fetches it twice.
- A failing cache costs speed only.
- An answer says when the first of its frames ends in the cache; that it was read prolongs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Optional, Protocol

import attrs
from twisted.internet.defer import Deferred

from twistedproxy.cache.interface import Cache, Fence, Reading
from twistedproxy.deferreds import all_or_none
from twistedproxy.dicom.frame import Frame
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import is_native
from twistedproxy.frames.access import Access
from twistedproxy.frames.entries import (
    BadEntry,
    cached_sizes,
    expires_of,
    expiry,
    frame_name,
    most,
    pack_frame,
    unpack_frame,
    was_prefetched,
)
from twistedproxy.frames.grants import Grant
from twistedproxy.frames.invalidation import Forgetting
from twistedproxy.frames.single_flight import MAYBE_FOR_THE_OWNER, Fetch, InFlight, after_failure
from twistedproxy.origin.errors import DENIALS, NOT_ALLOWED, OriginRefused
from twistedproxy.origin.interface import Caller, Origin
from twistedproxy.streams import StreamTooLong

HUGE = 64 << 20
"""Bytes of frames of which a few would be all memory."""

MAX_FRAME = 512 << 20
"""Bytes of one frame asked for alone: what the Redis protocol takes as one value."""


class NoSuchFrame(LookupError):
    """A frame number is past the instance's NumberOfFrames."""


class AnswerTooLarge(ValueError):
    """The frames of one answer are more bytes together than the setting allows."""


@attrs.frozen
class Wanted:
    """What one request wants: *numbers* from 1, as asked for (order and repeats included)."""

    origin: Origin
    instance: Instance
    numbers: tuple[int, ...]
    caller: Caller
    check: Callable[[InstanceMetadata], None] = lambda _metadata: None
    """Raises where the metadata show that the frames would be of no use to the caller."""
    prefetch: bool = True
    """Whether a viewer asked, who will want more."""
    fresh: bool = False
    """Whether frames neither come from the cache nor go there; nothing is prefetched after them."""


@attrs.frozen
class FrameAnswer:
    """The frames in the order asked for, and where they came from, counted by number:
    *cached* from the cache, *fetched* from the origin for this request, *shared* from a fetch under way.
    *fence*: that of the cache when it was read, None where it could not be. *prefetched*: those of the cached that
    were loaded before anybody asked. *expires*: when the first of them ends in the cache, in seconds since the epoch;
    infinity: never. *fresh*: nothing was to come from the cache, or to go there."""

    frames: Sequence[Frame]
    metadata: InstanceMetadata
    cached: int
    fetched: int
    shared: int
    fence: Optional[Fence] = None
    prefetched: Sequence[int] = ()
    expires: float = math.inf
    fresh: bool = False

    @property
    def stored(self) -> bool:
        """Whether the cache can be told what was fetched."""
        return self.fence is not None and not self.fresh


Answered = Callable[[Wanted, FrameAnswer], None]
"""Hears of each answered request: the prefetch scheduler's ear."""


Refused = Callable[[Wanted, InstanceMetadata, Optional[Fence]], None]
"""Hears of each request for frames that an origin did not want to answer, though the caller may read the instance."""


Ticket = tuple[int, float]
"""Tells a `FenceWatch` when the cache was asked."""


class FenceWatch(Protocol):
    """Hears of fences, each time that the cache was read."""

    def ticket(self) -> Ticket:
        """To be taken before the cache is asked."""

    def checked(self, instance: Instance, fence: Optional[Fence], ticket: Ticket) -> None:
        """The cache, asked when *ticket* was taken, had this *fence* for *instance*; None: it did not answer."""


class NoWatch:
    """Nobody who would care."""

    def ticket(self) -> Ticket:
        """Nothing to remember."""
        return 0, 0.0

    def checked(self, instance: Instance, fence: Optional[Fence], ticket: Ticket) -> None:
        """Nothing to do."""


_Key = tuple[Instance, Optional[Fence], int, Optional[bytes]]  # the number, and who may join, see `Shared`
_Fetched = tuple[Frame, float]  # and when it ends in the cache, see `expiry`
_Frames = Mapping[_Key, _Fetched]


@attrs.define(eq=False)
class FrameReader:
    """Reads frames for callers. *frame_seconds*: how long frames stay in the cache (None: no expiry);
    *max_answer*: bytes."""

    cache: Cache
    access: Access
    forgetting: Forgetting
    frame_seconds: Optional[float]
    max_answer: int
    answered: Optional[Answered] = None
    refused: Optional[Refused] = None
    watch: FenceWatch = attrs.Factory(NoWatch)
    _in_flight: InFlight[_Key, _Fetched] = attrs.field(init=False, factory=InFlight)

    async def read(self, wanted: Wanted) -> FrameAnswer:
        """Answer *wanted*.

        Raises `NoSuchFrame`, `AnswerTooLarge`, and the errors of `twistedproxy.origin.errors`.
        """
        numbers = tuple(dict.fromkeys(wanted.numbers))
        names = _names(wanted, numbers)
        if len(numbers) > 1 and not wanted.fresh:
            await self._check_sizes(wanted, numbers)
        grant, reading = await self.granted(wanted.origin, wanted.instance, wanted.caller, names)
        self.check(wanted, grant.metadata)
        try:
            answer = await self._answer(wanted, grant, reading, numbers, names)
        except OriginRefused as refused:
            if self.refused is not None and wanted.prefetch and not wanted.fresh and refused.status not in DENIALS:
                self.refused(wanted, grant.metadata, reading.fence)
            raise
        self.tell(wanted, answer)
        return answer

    async def more(self, wanted: Wanted, grant: Grant, fence: Optional[Fence]) -> FrameAnswer:
        """A part of an answer to a caller with *grant* that began under *fence*; what its fence is now, the part says.

        Raises what `read` does. Nobody hears of it.
        """
        numbers = tuple(dict.fromkeys(wanted.numbers))
        names = _names(wanted, numbers)
        reading = Reading(None, {})
        if fence is not None:
            if self.forgetting.is_pending(wanted.instance):
                return FrameAnswer((), grant.metadata, 0, 0, 0)
            reading = await self.cache.get_many(wanted.instance, names)
            if reading.fence is not None and reading.fence != fence:
                return FrameAnswer((), grant.metadata, 0, 0, 0, reading.fence)
        return await self._answer(wanted, grant, attrs.evolve(reading, fence=fence), numbers, names)

    def tell(self, wanted: Wanted, answer: FrameAnswer) -> None:
        """Tell who hears of answered requests."""
        if self.answered is not None and wanted.prefetch and not wanted.fresh:
            self.answered(wanted, answer)

    async def _answer(
        self, wanted: Wanted, grant: Grant, reading: Reading, numbers: Sequence[int], names: Sequence[bytes]
    ) -> FrameAnswer:
        frames, expires = self._cached(numbers, names, reading)
        cached = len(frames)
        missing = [number for number in numbers if number not in frames]
        shared = 0
        if missing:
            try:
                fetched, shared = await self._from_origin(wanted, grant, reading.fence, missing)
            except StreamTooLong:
                raise AnswerTooLarge(self.too_large()) from None
            frames.update({number: frame for number, (frame, _) in fetched.items()})
            expires = min(expires, *[ends for _, ends in fetched.values()])
        ordered = [frames[number] for number in wanted.numbers]
        if len(ordered) > 1 and sum(len(frame.data) for frame in ordered) > self.max_answer:
            raise AnswerTooLarge(self.too_large())
        prefetched = [number for number, name in zip(numbers, names) if was_prefetched(reading.entries.get(name, b""))]
        return FrameAnswer(
            ordered,
            grant.metadata,
            cached,
            len(missing) - shared,
            shared,
            reading.fence,
            prefetched,
            min(expires, self._expiry()),  # a writer whose clock was wrong: no longer than if it were written now
            wanted.fresh,
        )

    def _expiry(self) -> float:
        return expiry(self.access.wall_clock(), self.frame_seconds)

    def numbers_in_flight(self, instance: Instance) -> set[int]:
        """The frames of *instance* that are being fetched for callers of this worker."""
        return {number for one, _, number, _ in self._in_flight if one == instance}

    async def granted(
        self, origin: Origin, instance: Instance, caller: Caller, names: Sequence[bytes]
    ) -> tuple[Grant, Reading]:
        """The caller's grant, and what the cache holds of *names*, in one round trip where the grant is known.

        Raises the errors of `twistedproxy.origin.errors` for a caller whom the origin refuses.
        """
        grant = self.access.known(caller, instance)
        ticket = self.watch.ticket()
        if self.forgetting.is_pending(instance):
            reading = Reading(None, {})
        elif grant is None:
            reading = await self.cache.get_many(instance, [*names, *self.access.entry_names(caller)])
            grant = self.access.from_reading(caller, instance, reading)
        else:
            reading = await self.cache.get_many(instance, names)
        self.watch.checked(instance, reading.fence, ticket)
        if grant is None or (reading.fence is not None and grant.fence != reading.fence):
            grant = await self.access.ask(origin, instance, caller, reading)
        else:
            self.access.renew_if_spent(origin, instance, caller, grant)
        return grant, reading

    def check(self, wanted: Wanted, metadata: InstanceMetadata) -> None:
        """Raise what keeps *wanted* from being answered, as far as the metadata tell."""
        wanted.check(metadata)
        last = max(wanted.numbers)
        if last > metadata.frames:
            raise NoSuchFrame(f"frame {last} was asked for; the instance has frames 1 to {metadata.frames}")
        length = _native_frame_length(metadata)
        if length is not None and len(wanted.numbers) > 1 and len(wanted.numbers) * length > self.max_answer:
            raise AnswerTooLarge(self.too_large())

    async def _check_sizes(self, wanted: Wanted, numbers: Sequence[int]) -> None:
        """Refuse what is cached and too large before it is read; the cache is asked only where that may be so."""
        grant = self.access.known(wanted.caller, wanted.instance)
        if grant is None or len(wanted.numbers) * most(grant.metadata) <= self.max_answer:
            return
        sizes = await cached_sizes(self.cache, wanted.instance, numbers)
        if sum([sizes.of.get(number, 0) for number in wanted.numbers]) > self.max_answer:
            raise AnswerTooLarge(self.too_large())

    def too_large(self) -> str:
        """What `AnswerTooLarge` says."""
        return f"the frames asked for are more than {self.max_answer} bytes together: ask for fewer at once"

    @staticmethod
    def _cached(numbers: Sequence[int], names: Sequence[bytes], reading: Reading) -> tuple[dict[int, Frame], float]:
        """The frames that were found, and when the first of them ends."""
        frames = {}
        expires = math.inf
        for number, name in zip(numbers, names):
            packed = reading.entries.get(name)
            if packed is not None:
                try:
                    frames[number] = unpack_frame(packed)
                except BadEntry:
                    continue
                expires = min(expires, expires_of(packed))
        return frames, expires

    async def _from_origin(
        self,
        wanted: Wanted,
        grant: Grant,
        fence: Optional[Fence],
        missing: Sequence[int],
        whose: Optional[bytes] = None,
    ) -> tuple[dict[int, _Fetched], int]:
        """The missing frames, and how many of them came from fetches that were under way already: those of *whose*,
        see `Shared`."""
        if wanted.fresh:
            return await self._fetch(wanted, grant, missing), 0
        running = self._in_flight.running((wanted.instance, fence, number, whose) for number in missing)
        alone = [number for number in missing if (wanted.instance, fence, number, whose) not in running]
        waits: list[Deferred[_Frames]] = []
        if alone:
            waits.append(self._start(wanted, grant, fence, alone, whose))
        for fetch in {id(fetch): fetch for fetch in running.values()}.values():
            numbers = [key[2] for key, one in running.items() if one is fetch]
            waits.append(Deferred.fromCoroutine(self._join(fetch, wanted, grant, fence, numbers, whose)))
        results = await all_or_none(waits)
        found = {key[2]: frame for result in results for key, frame in result.items()}
        return {number: found[number] for number in missing}, len(missing) - len(alone)

    async def _join(
        self,
        fetch: Fetch[_Key, _Fetched],
        wanted: Wanted,
        grant: Grant,
        fence: Optional[Fence],
        numbers: Sequence[int],
        whose: Optional[bytes],
    ) -> _Frames:
        try:
            return await fetch.wait()
        except StreamTooLong:  # that list was too long; this one may not be
            return await self._start(wanted, grant, fence, numbers, whose)
        except MAYBE_FOR_THE_OWNER:
            # This caller has a grant of its own, and asks or joins who does: one of each credential, not all who wait.
            if fetch.owner == wanted.caller.credential:
                raise
        whose = after_failure(whose, wanted.caller)
        frames, _ = await self._from_origin(wanted, grant, fence, numbers, whose)
        return {(wanted.instance, fence, number, whose): fetched for number, fetched in frames.items()}

    def _start(
        self,
        wanted: Wanted,
        grant: Grant,
        fence: Optional[Fence],
        numbers: Sequence[int],
        whose: Optional[bytes],
    ) -> Deferred[_Frames]:
        instance = wanted.instance

        async def keep(frames: _Frames) -> None:
            if not _is_huge(frames):
                await write(frames)

        async def write(frames: _Frames) -> None:
            entries = {frame_name(key[2]): pack_frame(frame, expires) for key, (frame, expires) in frames.items()}
            await self.cache.put_many(instance, fence, entries, self.frame_seconds)
            any_frame, _ = next(iter(frames.values()))
            await self.access.learn_transfer_syntax(instance, grant, any_frame.transfer_syntax)

        keys = [(instance, fence, number, whose) for number in numbers]

        async def fetch() -> _Frames:
            frames = await self._fetch(wanted, grant, numbers)
            fetched = {(instance, fence, number, whose): frame for number, frame in frames.items()}
            if _is_huge(fetched):
                await write(fetched)
            return fetched

        return self._in_flight.start(keys, fetch(), keep, wanted.caller.credential)

    async def _fetch(self, wanted: Wanted, grant: Grant, numbers: Sequence[int]) -> dict[int, _Fetched]:
        """Frames from the origin."""
        instance = wanted.instance
        limit = self.max_answer if len(numbers) > 1 else MAX_FRAME
        try:
            frames = await wanted.origin.frames(instance, numbers, wanted.caller, grant.metadata, limit=limit)
        except OriginRefused as refused:
            if refused.status in NOT_ALLOWED:
                await self.access.revoke(wanted.caller, instance)
            raise
        expires = self._expiry()  # before it is written: the cache keeps it a little longer
        return {number: (frame, expires) for number, frame in frames.items()}


def _names(wanted: Wanted, numbers: Sequence[int]) -> list[bytes]:
    """What the cache is asked for."""
    return [] if wanted.fresh else [frame_name(number) for number in numbers]


def _is_huge(frames: _Frames) -> bool:
    """Whether they go to the cache before callers get them, while they are counted as memory of an answer: who is done with
    his answer must not let the next one in while it is held for the cache."""
    return sum([len(frame.data) for frame, _ in frames.values()]) > HUGE


def _native_frame_length(metadata: InstanceMetadata) -> Optional[int]:
    return metadata.frame_length if is_native(metadata.transfer_syntax) else None
