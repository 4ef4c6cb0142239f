"""A stored instance, cut into frames as it arrives, and into the cache with them.

- Every frame is served from the cache long before the last byte has come; memory stays flat whatever the size.
- Frames are provisional until the stream has ended as it must: when it doesn't, all that were written are removed. An entry of
  the instance says so meanwhile: a cache that outlives all of us removes them.
- A file whose frames do not begin as its transfer syntax wants it is not loaded.
- Each frame says when its time in the cache ends.
- The cache sets the pace: at most `OUTSTANDING_BYTES` wait for it, whatever an instance or a frame measures.
- A loader child loads as fast as an instance comes, or with rests while callers want much. Measured on two CPUs, beside
  loads without a pause and with the store on the same machine, callers of cached frames at the 99th percentile: without
  rests 2.0 to 4.8 times what they wait otherwise, with them 1.1 to 1.7 times. 87 MB then take 1 to 3.4 s instead of
  0.25 s.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Optional

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from twistedproxy.cache.interface import Cache, Fence, Value
from twistedproxy.cache.keys import LOADING
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.part10.stream import NotAsDescribed, NotByFrame, Part10Stream
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.entries import expiry, frame_name, pack_frames
from twistedproxy.origin.errors import OriginError
from twistedproxy.prefetch.jobs import LoadFailed, NotLoadable, Progress, Withdrawn
from twistedproxy.streams import ByteStream, YieldedStream
from twistedproxy.system.caller_demand import Demand, DemandLevel

REST_SECONDS = {DemandLevel.LITTLE: 0.0, DemandLevel.SOME: 0.001, DemandLevel.MUCH: 0.002}
"""The rest after each chunk: 64 kB at most from a store, 512 kB from a file."""

ENOUGH_CPUS = 4.0
"""One each for the proxy, the cache server and the loader, and one for the kernel's work: then none waits for another."""

BATCH_BYTES = 512 * 1024
"""Frames that go to the cache together."""

SMALL_BATCH_BYTES = 64 * 1024
"""The same where callers' reads must get in between."""


def rest_seconds(demand: Demand) -> float:
    """The rest that loads take now."""
    return 0.0 if demand.cpus >= ENOUGH_CPUS else REST_SECONDS[demand.level]


@attrs.define(eq=False)
class Pace:
    """The pace of all loads of a loader child. *rest*: seconds after each chunk."""

    clock: IReactorTime
    rest: float = 0.0

    def breathe(self) -> Optional[Awaitable[None]]:
        """What to wait for after a chunk."""
        return deferLater(self.clock, self.rest) if self.rest else None

    def batch_bytes(self) -> int:
        """How many bytes of frames go to the cache together."""
        return SMALL_BATCH_BYTES if self.rest else BATCH_BYTES


OUTSTANDING_BYTES = 2 * 2**20
"""Bytes of frames on their way to the cache: the origin's next bytes come meanwhile."""

NOT_TAKEN = "the cache did not take the frames"

REMOVED_AT_ONCE = 5000
"""Frames that are taken back in one go."""


@attrs.define(eq=False)
class ProvisionalFrames:
    """Writes frames 1, 2, 3... of *instance*, which may yet turn out wrong, under *fence* for *seconds* (None: no expiry).

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
    _batches: deque[Deferred[None]] = attrs.field(factory=deque)

    async def write(self, frames: list[bytes], size: int, transfer_syntax: str) -> None:
        """Send the next *frames*, *size* bytes together; waits while too many are on their way. Raises `LoadFailed`."""
        first = self.written + 1
        if first == 1 and not await self.cache.put_many(self.instance, self.fence, {LOADING: b""}, self.seconds):
            raise LoadFailed(NOT_TAKEN)
        names = map(frame_name, range(first, first + len(frames)))
        expires = expiry(self.wall_clock(), self.seconds)
        entries = dict(zip(names, pack_frames(frames, transfer_syntax, expires, prefetched=True)))
        self.written += len(frames)
        self.size += size
        self._outstanding += size
        self._batches.append(Deferred.fromCoroutine(self._put(entries, size)))
        while self._batches and (self._outstanding > OUTSTANDING_BYTES or self._batches[0].called):
            await self._batches.popleft()

    async def finish(self) -> None:
        """Wait until all are in the cache. Raises `LoadFailed`."""
        while self._batches:
            await self._batches.popleft()
        await self.cache.remove(self.instance, [LOADING])

    async def _put(self, entries: dict[bytes, Value], size: int) -> None:
        taken = await self.cache.put_many(self.instance, self.fence, entries, self.seconds)
        self._outstanding -= size
        if not taken:
            raise LoadFailed(NOT_TAKEN)
        self._taken += len(entries)
        self._taken_size += size
        self.progress(self._taken, self._taken_size)

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
    return removed and (not last or await cache.remove(instance, [LOADING]))


READ_BYTES = 512 * 1024
"""How much is read at once."""


def local_file(path: str) -> ByteStream:
    """The bytes of the file at *path*. For a process that has nothing else to do: reading blocks."""
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed with the stream
    except OSError as error:
        raise OriginError(f"the stored file can't be read: {error.strerror}") from None

    async def chunks() -> AsyncIterator[bytes]:
        while chunk := file.read(READ_BYTES):
            yield chunk

    return YieldedStream(chunks(), file)


BATCH_SECONDS = 0.1
"""How long frames of a slow origin wait for others to go with."""


@attrs.frozen
class Loaded:
    """What a load brought. *transfer_syntax* is the stored file's own."""

    frames: int
    bytes: int
    transfer_syntax: str


@attrs.define(eq=False)
class InstanceLoad:
    """One load into *frames*, which are new. *expected*: what the metadata said of the instance.

    *breathe* is called after each chunk; what it returns is awaited, so that others get their turn. *batch_bytes*: of
    frames that go to the cache together.
    """

    frames: ProvisionalFrames
    expected: InstanceMetadata
    clock: IReactorTime
    breathe: Callable[[], Optional[Awaitable[None]]] = lambda: None
    batch_bytes: Callable[[], int] = lambda: BATCH_BYTES

    async def run(self, stream: ByteStream) -> Loaded:
        """Load all of *stream*, and close it.

        Raises `LoadFailed`, and what broke the stream; `Withdrawn` once anything was written.
        """
        parser = Part10Stream(expected=(self.frames.instance.uids, self.expected))
        try:
            await self._load(stream, parser)
            parser.finish()
        except CancelledError:
            stream.close()
            if not await self.frames.take_back():
                raise Withdrawn("stopped, and the cache did not confirm it") from None
            raise
        except Exception as error:
            stream.close()
            await self.frames.take_back()
            if self.frames.written:
                raise Withdrawn(str(error) or type(error).__name__) from error
            if isinstance(error, (NotByFrame, NotAsDescribed)):
                raise NotLoadable(str(error)) from error
            if isinstance(error, ValueError):  # the file is not what it should be
                raise LoadFailed(str(error)) from error
            raise
        stream.close()
        return Loaded(self.frames.written, self.frames.size, parser.transfer_syntax)

    async def _load(self, stream: ByteStream, parser: Part10Stream) -> None:
        pending: list[bytes] = []
        size, due = 0, 0.0
        while chunk := await stream.read():
            for frames in parser.batches(chunk):
                if not frames:
                    continue
                if not pending:
                    due = self.clock.seconds() + BATCH_SECONDS
                pending += frames
                size += sum(map(len, frames))
                if size >= self.batch_bytes() or self.clock.seconds() >= due:
                    await self.frames.write(pending, size, parser.frame_syntax)
                    pending, size = [], 0
            breath = self.breathe()
            if breath is not None:
                await breath
        if pending:
            await self.frames.write(pending, size, parser.frame_syntax)
        await self.frames.finish()
