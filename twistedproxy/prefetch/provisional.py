"""Frames of an instance on their way into the cache, which may yet turn out wrong.

- They are served as soon as they are written; when the load fails, every one of them is taken back.
- The cache sets the pace: at most `OUTSTANDING_BYTES` wait for it, whatever an instance or a frame measures.
"""

from __future__ import annotations

from collections import deque
from typing import Optional

import attrs
from twisted.internet.defer import Deferred

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.dicom.address import Instance
from twistedproxy.frames.entries import frame_name, pack_frames
from twistedproxy.prefetch.errors import LoadFailed
from twistedproxy.prefetch.jobs import Progress

OUTSTANDING_BYTES = 2 * 2**20
"""Bytes of frames on their way to the cache: the origin's next bytes come meanwhile."""

REMOVED_AT_ONCE = 5000
"""Frames that are taken back in one go."""


@attrs.define(eq=False)
class _Batch:
    size: int
    done: Deferred[bool]


@attrs.define(eq=False)
class ProvisionalFrames:
    """Writes frames 1, 2, 3... of *instance* under *fence* for *seconds* (None: no expiry).

    *written*, *size*: how many frames, and their bytes.
    """

    cache: Cache
    instance: Instance
    fence: Fence
    seconds: Optional[float]
    progress: Progress
    written: int = 0
    size: int = 0
    _outstanding: int = 0
    _batches: deque[_Batch] = attrs.field(factory=deque)

    async def write(self, frames: list[bytes], size: int, transfer_syntax: str) -> None:
        """Send the next *frames*, *size* bytes together; waits while too many are on their way. Raises `LoadFailed`."""
        first = self.written + 1
        names = map(frame_name, range(first, first + len(frames)))
        entries = dict(zip(names, pack_frames(frames, transfer_syntax, prefetched=True)))
        self.written += len(frames)
        self.size += size
        self._outstanding += size
        putting = self.cache.put_many(self.instance, self.fence, entries, self.seconds)
        self._batches.append(_Batch(size, Deferred.fromCoroutine(putting)))  # type: ignore[arg-type]
        while self._batches and (self._outstanding > OUTSTANDING_BYTES or self._batches[0].done.called):
            await self._settle()

    async def finish(self) -> None:
        """Wait until all are in the cache. Raises `LoadFailed`."""
        while self._batches:
            await self._settle()

    async def _settle(self) -> None:
        """Wait for the oldest batch."""
        batch = self._batches[0]
        taken = await batch.done
        self._batches.popleft()
        self._outstanding -= batch.size
        if not taken:
            raise LoadFailed("the cache did not take the frames")
        self.progress(self.written, self.size)

    async def take_back(self) -> bool:
        """Remove all that was written, once the writes have come to their end; whether that is certain."""
        while self._batches:
            done = self._batches.popleft().done
            done.addErrback(lambda _: False)
            await done
        return await remove_frames(self.cache, self.instance, self.written)


async def remove_frames(cache: Cache, instance: Instance, last: int) -> bool:
    """Remove frames 1 to *last*; whether the cache did."""
    removed = True
    for first in range(1, last + 1, REMOVED_AT_ONCE):
        numbers = range(first, min(first + REMOVED_AT_ONCE, last + 1))
        removed = await cache.remove(instance, [frame_name(number) for number in numbers]) and removed
    return removed
