"""Block and display loads: frames around a request, from the origin into the cache, on the reactor.

- Each frame is claimed first, and only frames that are neither cached nor claimed are taken.
- Claims are renewed while the load lives, and given back at its end.
- What a whole-instance load beside this one has brought meanwhile is not asked for again.
- The cache is asked about a slice of the frames at a time: callers of this worker have their turns between.
- The rows that are seen come first; requests have the size that the origin serves best.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.deferreds import all_or_none
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.frames.entries import expiry, frame_name, pack_frames
from twistedproxy.frames.read_through import FrameRequest
from twistedproxy.origin.interface import Priority
from twistedproxy.prefetch.jobs import LoadFailed, Progress
from twistedproxy.prefetch.loaders import turns

CLAIM_SECONDS = 5.0
RENEW_SECONDS = 2.0
"""Claims are renewed in good time before they end."""

SLICE = 64
"""Frames that the cache is asked about at once: about 0.1 ms of CPU, also when the answer comes."""

SLICE_OF_CLAIMS = 256
"""Claims that are renewed or given back at once: as much work, for there is one answer to all."""

FEWEST = 2
"""Frames that are worth a load."""

SIDE_BY_SIDE = 4
"""Origin requests of one load at once: a load leaves most of the origin's places to callers."""


@attrs.define(eq=False)
class RegionLoad:
    """Loads some frames of the instance that *wanted* asked for, written under *fence* for *seconds*.

    *side_by_side*: origin requests at once. *claims_lost*: frames that others were loading. *spared*: claimed ones that
    others brought before we asked for them. *asked*: those that the origin is asked for now. *wall_clock* gives seconds since the epoch.
    """

    cache: Cache
    clock: IReactorTime
    wanted: FrameRequest
    metadata: InstanceMetadata
    fence: Fence
    seconds: Optional[float]
    priority: Priority
    progress: Progress
    side_by_side: int = SIDE_BY_SIDE
    claims_lost: int = 0
    spared: int = 0
    wall_clock: Callable[[], float] = time.time
    asked: set[int] = attrs.Factory(set)
    _token: bytes = attrs.Factory(lambda: os.urandom(12))
    _frames: int = 0
    _bytes: int = 0
    _breathe: Callable[[], Optional[Awaitable[None]]] = attrs.field(
        init=False, default=attrs.Factory(lambda self: turns(self.clock), takes_self=True)
    )

    async def claim(self, numbers: Sequence[int], stop_at_claimed: bool) -> list[int]:
        """Claim what of *numbers* (in the order to load) is not cached; return what was won, in that order.

        Nothing where fewer than two are left, or, with *stop_at_claimed*, where the first of them is another's.
        """
        missing = await self._missing(numbers)
        if len(missing) < FEWEST:
            return []
        mine: list[int] = []
        tried, kept = 0, False
        due = self.clock.seconds() + RENEW_SECONDS
        try:
            for part in _slices(missing):
                tried += len(part)
                mine += await self._claim(part)
                # Now, not after the rest: who stops here must not have taken frames from the other who loads them.
                if stop_at_claimed and mine[:1] != missing[:1]:
                    return []
                if self.clock.seconds() >= due:
                    await self._renew(mine)
                    due = self.clock.seconds() + RENEW_SECONDS
                await self._turn()
            kept = len(mine) >= FEWEST
            return mine if kept else []
        finally:
            if not kept:
                await self._unclaim(missing[:tried])

    async def run(self, numbers: Sequence[int]) -> None:
        """Load *numbers*, which were claimed. Raises `LoadFailed` and the errors of `twistedproxy.origin.errors`."""
        left = set(numbers)
        renewing = LoopingCall(self._renew, left)
        renewing.clock = self.clock
        renewing.start(RENEW_SECONDS, now=False).addErrback(lambda _: None)
        size = max(1, self.wanted.origin.frames_per_request(self.wanted.instance))
        requests = _slices(numbers, size)
        try:
            lanes = [Deferred.fromCoroutine(self._lane(requests, left)) for _ in range(self.side_by_side)]
            await all_or_none(lanes)
        finally:
            renewing.stop()
            await self._unclaim(left)

    async def _lane(self, requests: Iterable[Sequence[int]], left: set[int]) -> None:
        for numbers in requests:
            missing = await self._missing(numbers)
            self.spared += len(numbers) - len(missing)
            if missing:
                self.asked.update(missing)
                try:
                    await self._load(missing)
                finally:
                    self.asked.difference_update(missing)
            left.difference_update(numbers)
            self.progress(self._frames, self._bytes)
            await self._unclaim(numbers)

    async def _load(self, numbers: Sequence[int]) -> None:
        frames = await self.wanted.origin.frames(
            self.wanted.instance, numbers, self.wanted.caller, self.metadata, self.priority
        )
        syntax = next(iter(frames.values())).transfer_syntax
        expires = expiry(self.wall_clock(), self.seconds)
        packed = pack_frames([frame.data for frame in frames.values()], syntax, expires, prefetched=True)
        entries = {frame_name(number): value for number, value in zip(frames, packed)}
        if not await self.cache.put_many(self.wanted.instance, self.fence, entries, self.seconds):
            raise LoadFailed("the cache did not take the frames")
        self._frames += len(frames)
        self._bytes += sum(len(frame.data) for frame in frames.values())

    async def _claim(self, numbers: Sequence[int]) -> list[int]:
        names = [frame_name(number) for number in numbers]
        won = await self.cache.claim(self.wanted.instance, names, self._token, CLAIM_SECONDS)
        self.claims_lost += len(names) - len(won)
        return [number for number, name in zip(numbers, names) if name in won]

    async def _missing(self, numbers: Sequence[int]) -> list[int]:
        missing: list[int] = []
        for part in _slices(numbers):
            names = [frame_name(number) for number in part]
            cached = await self.cache.present(self.wanted.instance, names)
            missing += [number for number, name in zip(part, names) if name not in cached]
            await self._turn()
        return missing

    async def _renew(self, numbers: Iterable[int]) -> None:
        for part in _slices(list(numbers), SLICE_OF_CLAIMS):
            names = [frame_name(number) for number in part]
            await self.cache.renew_claims(self.wanted.instance, names, self._token, CLAIM_SECONDS)
            await self._turn()

    async def _unclaim(self, numbers: Iterable[int]) -> None:
        for part in _slices(list(numbers), SLICE_OF_CLAIMS):
            names = [frame_name(number) for number in part]
            # No turn of the reactor here: this is also the way out of a load that nobody holds any more.
            await self.cache.unclaim(self.wanted.instance, names, self._token)

    async def _turn(self) -> None:
        """After a slice. A cache in this process lets nobody else run while it is asked: the reactor turns here then."""
        turn = self._breathe()
        if turn is not None:
            await turn


def _slices(numbers: Sequence[int], size: int = SLICE) -> Iterator[Sequence[int]]:
    return (numbers[start : start + size] for start in range(0, len(numbers), size))
