"""Blocking calls in threads of the folder's own: a slow disk must not starve name resolution, which uses the reactor's.

- At most `THREADS` calls run, at most `MAX_WAITING` wait: more are refused as busy.
- Each call has a deadline. A thread cannot be ended; what it still finds out is dropped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from twistedproxy.origin.errors import OriginBusy, OriginTimeout

THREADS = 4  # reads of a page cache never wait; of a disk, four at once keep it busy
MAX_WAITING = 1000
DEADLINE = 60.0  # seconds; a network drive that takes longer is as good as gone

T = TypeVar("T")


class Threads:
    """A bounded pool. *reactor* must run threads' answers (`callFromThread`) and time."""

    def __init__(self, reactor: Any, deadline: float = DEADLINE) -> None:
        self._reactor: Any = reactor
        self._deadline = deadline
        self._pool = ThreadPool(0, THREADS, "twistedproxy-folder")
        self._waiting = 0

    def start(self) -> None:
        self._pool.start()

    async def stop(self) -> None:
        """Wait for running calls: the pool joins its threads, so that is done in another thread."""
        done: Deferred[None] = Deferred()
        self._reactor.callInThread(self._join, done)
        await done

    def _join(self, done: Deferred[None]) -> None:
        self._pool.stop()
        self._reactor.callFromThread(done.callback, None)

    async def run(self, call: Callable[[], T]) -> T:
        """What *call* returns or raises; `OriginBusy`, `OriginTimeout`."""
        if self._waiting >= MAX_WAITING:
            raise OriginBusy("too many reads are waiting for the folder")
        self._waiting += 1
        try:
            wait: Deferred[T] = deferToThreadPool(self._reactor, self._pool, call)
            wait.addTimeout(self._deadline, self._reactor, _timed_out)
            return await wait
        finally:
            self._waiting -= 1

    async def run_long(self, call: Callable[[], T]) -> T:
        """Like `run`, for what may take its time: reading a whole folder for the first time."""
        return await deferToThreadPool(self._reactor, self._pool, call)


def _timed_out(result: object, seconds: float) -> object:
    if isinstance(result, Failure) and result.check(CancelledError):
        raise OriginTimeout(f"the folder's disk gave no answer within {seconds:g} s")
    return result


class Shared(Generic[T]):
    """One run of something for all who want it at the same time.

    Each waiter has a Deferred of its own; cancelling one ends that wait alone.
    """

    def __init__(self, run: Callable[[], Awaitable[T]]) -> None:
        self._run = run
        self._waiters: list[Deferred[T]] = []
        self.running = False

    def join(self) -> Deferred[T]:
        """Wait for the run that is under way, or start one."""
        waiter: Deferred[T] = Deferred(self._waiters.remove)
        self._waiters.append(waiter)
        if not self.running:
            self.running = True
            ensureDeferred(self._awaited()).addBoth(self._finish)
        return waiter

    async def _awaited(self) -> T:
        return await self._run()

    def _finish(self, result: Any) -> None:
        self.running = False
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.callback(result)  # a Failure makes it an errback
