"""Frames of an instance on their way into the cache, which may yet turn out wrong.

- They are served as soon as they are written; when the load fails, every one of them is taken back.
- Each says when its time in the cache ends.
- The cache sets the pace: at most `OUTSTANDING_BYTES` wait for it, whatever an instance or a frame measures.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Optional

import attrs
from twisted.internet.defer import Deferred

from twistedproxy.cache.interface import Cache, Fence, Value
from twistedproxy.dicom.address import Instance
from twistedproxy.frames.entries import expiry, frame_name, pack_frames
from twistedproxy.prefetch.errors import LoadFailed
from twistedproxy.prefetch.jobs import Progress

OUTSTANDING_BYTES = 2 * 2**20
"""Bytes of frames on their way to the cache: the origin's next bytes come meanwhile."""

REMOVED_AT_ONCE = 5000
"""Frames that are taken back in one go."""


@attrs.define(eq=False)
class ProvisionalFrames:
    """Writes frames 1, 2, 3... of *instance* under *fence* for *seconds* (None: no expiry).

    *written*, *size*: how many frames were sent, and their bytes. *progress* hears of those that are in the cache.
    *wall_clock* gives seconds since the epoch.
    """

    cache: Cache
    instance: Instance
    fence: Fence
    seconds: Optional[float]
    progress: Progress
    written: int = 0
    size: int = 0
    wall_clock: Callable[[], float] = time.time
    _outstanding: int = 0
    _taken: int = 0
    _taken_size: int = 0
    _refused: bool = False
    _batches: deque[Deferred[None]] = attrs.field(factory=deque)

    async def write(self, frames: list[bytes], size: int, transfer_syntax: str) -> None:
        """Send the next *frames*, *size* bytes together; waits while too many are on their way. Raises `LoadFailed`."""
        first = self.written + 1
        names = map(frame_name, range(first, first + len(frames)))
        expires = expiry(self.wall_clock(), self.seconds)
        entries = dict(zip(names, pack_frames(frames, transfer_syntax, expires, prefetched=True)))
        self.written += len(frames)
        self.size += size
        self._outstanding += size
        self._batches.append(Deferred.fromCoroutine(self._put(entries, size)))
        while self._batches and (self._outstanding > OUTSTANDING_BYTES or self._batches[0].called):
            await self._batches.popleft()
        self._check()

    async def finish(self) -> None:
        """Wait until all are in the cache. Raises `LoadFailed`."""
        while self._batches:
            await self._batches.popleft()
        self._check()

    async def _put(self, entries: dict[bytes, Value], size: int) -> None:
        taken = await self.cache.put_many(self.instance, self.fence, entries, self.seconds)
        self._outstanding -= size
        if taken:
            self._taken += len(entries)
            self._taken_size += size
            self.progress(self._taken, self._taken_size)
        else:
            self._refused = True

    def _check(self) -> None:
        if self._refused:
            raise LoadFailed("the cache did not take the frames")

    async def take_back(self) -> bool:
        """Remove all that was written, once the writes have come to their end; whether that is certain."""
        while self._batches:
            batch = self._batches.popleft()
            batch.addErrback(lambda _: None)
            await batch
        return await remove_frames(self.cache, self.instance, self.written)


async def remove_frames(cache: Cache, instance: Instance, last: int) -> bool:
    """Remove frames 1 to *last*; whether the cache did."""
    removed = True
    for first in range(1, last + 1, REMOVED_AT_ONCE):
        numbers = range(first, min(first + REMOVED_AT_ONCE, last + 1))
        removed = await cache.remove(instance, [frame_name(number) for number in numbers]) and removed
    return removed
