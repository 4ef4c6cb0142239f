"""Blocking calls in threads of the folder's own (a slow disk must not starve name resolution, which uses the reactor's), and
bodies that are generated in them.

- At most `THREADS` calls run, at most `MAX_WAITING` wait: more are refused as busy.
- Each call has a deadline. A thread cannot be ended; what it still finds out is dropped.
- A body's generator holds no file between two chunks: an abandoned body leaves nothing open.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from twistedproxy.deferreds import Waiters
from twistedproxy.dicom.part10.pixels import BadPixelLength
from twistedproxy.origin.errors import OriginBadAnswer, OriginBusy, OriginTimeout
from twistedproxy.origin.folder.instance_file import FileChanged, UnreadableFile
from twistedproxy.streams import BytesStream, ByteStream, ChainedStream, YieldedStream

THREADS = 4  # reads of a page cache never wait; of a disk, four at once keep it busy
MAX_WAITING = 1000
DEADLINE = 60.0  # seconds; a network drive that takes longer is as good as gone
CHUNK = 512 * 1024  # bytes of a body that one call generates

T = TypeVar("T")


class InstanceChanged(OriginBadAnswer):
    """A file is not what it was when it was indexed, or has gone."""


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
        """What *call* returns or raises; `OriginBusy`, `OriginTimeout`. Errors of reading become `OriginBadAnswer`, which callers may
        see: they never hold a path."""
        if self._waiting >= MAX_WAITING:
            raise OriginBusy("too many reads are waiting for the folder")
        self._waiting += 1
        try:
            return await deferToThreadPool(self._reactor, self._pool, call).addTimeout(DEADLINE, self._reactor)
        except DeferredTimeout:
            raise OriginTimeout(f"the folder's disk did not answer within {DEADLINE:g} s") from None
        except (FileChanged, FileNotFoundError):
            raise InstanceChanged("the instance's file changed or was removed while it was read; retry") from None
        except (UnreadableFile, BadPixelLength) as error:
            raise OriginBadAnswer(f"the instance's file is broken: {error}") from None
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise OriginBadAnswer(f"the instance's file cannot be read: {reason}") from None
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


async def generated(threads: Threads, chunks: Iterator[bytes]) -> ByteStream:
    """The bytes of *chunks* as a stream, the first of them generated already: what fails at once fails before an answer
    begins."""

    async def pieces() -> AsyncIterator[bytes]:
        while piece := await threads.run(lambda: _gathered(chunks)):
            yield piece

    stream = YieldedStream(pieces(), BytesStream())
    return ChainedStream(BytesStream(await stream.read()), stream)


def _gathered(chunks: Iterator[bytes]) -> bytes:
    gathered = io.BytesIO()
    for chunk in chunks:
        if gathered.write(chunk) and gathered.tell() >= CHUNK:
            break
    return gathered.getvalue()
