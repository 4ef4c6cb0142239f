"""Blocking calls in threads of the folder's own (a slow disk must not starve name resolution, which uses the reactor's), and
bodies that are generated in them.

- At most `THREADS` calls run, at most `MAX_WAITING` wait: more are refused as busy.
- Each call has a deadline. A thread cannot be ended; what it still finds out is dropped.
- A body's generator holds no file between two chunks: an abandoned body leaves nothing open.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Optional, TypeVar

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from twistedproxy.deferreds import Waiters
from twistedproxy.origin.errors import OriginBusy, OriginTimeout
from twistedproxy.streams import BytesStream, ByteStream, ChainedStream

THREADS = 4  # reads of a page cache never wait; of a disk, four at once keep it busy
MAX_WAITING = 1000
DEADLINE = 60.0  # seconds; a network drive that takes longer is as good as gone
CHUNK = 512 * 1024  # bytes of a body that one call generates

T = TypeVar("T")


class Threads:
    """A bounded pool. *reactor* must run threads' answers (`callFromThread`) and time."""

    def __init__(self, reactor: Any) -> None:
        self._reactor: Any = reactor
        self._pool = ThreadPool(0, THREADS, "twistedproxy-folder")
        self._pool.start()
        self._waiting = 0

    async def stop(self) -> None:
        """Wait for running calls: the pool joins its threads, so that is done in another thread."""
        await deferToThreadPool(self._reactor, self._reactor.getThreadPool(), self._pool.stop)

    async def run(self, call: Callable[[], T]) -> T:
        """What *call* returns or raises; `OriginBusy`, `OriginTimeout`."""
        if self._waiting >= MAX_WAITING:
            raise OriginBusy("too many reads are waiting for the folder")
        self._waiting += 1
        try:
            return await deferToThreadPool(self._reactor, self._pool, call).addTimeout(DEADLINE, self._reactor)
        except DeferredTimeout:
            raise OriginTimeout(f"the folder's disk did not answer within {DEADLINE:g} s") from None
        finally:
            self._waiting -= 1

    async def run_long(self, call: Callable[[], T]) -> T:
        """Like `run`, for what may take its time: reading a whole folder for the first time."""
        return await deferToThreadPool(self._reactor, self._pool, call)


class SharedRun(Waiters[T]):
    """One run of something for all that want it at the same time; it goes on where one is cancelled."""

    def __init__(self, run: Callable[[], Awaitable[T]]) -> None:
        super().__init__()
        self._run = run
        self.running = False

    def join(self) -> Deferred[T]:
        """Wait for the run that is under way, or start one."""
        waiter = self.wait()
        if not self.running:
            self.running = True
            ensureDeferred(self._awaited()).addBoth(self.fire)
        return waiter

    async def _awaited(self) -> T:
        try:
            return await self._run()
        finally:
            self.running = False


class GeneratedStream:
    """A `ByteStream` out of a generator of bytes; see `generated`."""

    def __init__(self, threads: Threads, chunks: Iterator[bytes], translate: Callable[[Exception], Exception]) -> None:
        self._threads = threads
        self._chunks = chunks
        self._translate = translate
        self._lock = threading.Lock()  # a cancelled read may still be running in its thread
        self._broken: Optional[Exception] = None

    async def read(self) -> bytes:
        try:
            if self._broken is None:
                return await self._threads.run(self._pull)
        except Exception as error:
            self._broken = self._translate(error)
        raise self._broken from None

    def close(self) -> None:
        self._chunks = iter(())

    def _pull(self) -> bytes:
        gathered = io.BytesIO()
        with self._lock:
            for chunk in self._chunks:
                if gathered.write(chunk) and gathered.tell() >= CHUNK:
                    break
        return gathered.getvalue()


async def generated(
    threads: Threads, chunks: Iterator[bytes], translate: Callable[[Exception], Exception]
) -> ByteStream:
    """The bytes of *chunks* as a stream, the first of them generated already: what fails at once fails before an answer
    begins. *translate* turns what the generator raises into an origin error."""
    stream = GeneratedStream(threads, chunks, translate)
    return ChainedStream(BytesStream(await stream.read()), stream)
