"""How one process works on a local cache: its threads, and how operations are counted and failures logged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional, TypeVar

import lmdb
from twisted.internet.defer import maybeDeferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from twistedproxy.cache.monitoring import CacheObserver, Complaints, NullObserver

ERRORS = (OSError, lmdb.Error)
"""What files and tables raise where they can't be read or written."""

READING_THREADS = 8
"""Threads that read what is not in memory."""

_T = TypeVar("_T")


class Operations:
    """One thread that writes frames, one that writes all else, and some that read what is on the disk. Operations are counted by
    *observer*, failures logged.

    Not *in_threads*: frames are written in the thread of the reactor, of a process that has nothing else to do. Two threads that
    do not leave each other the interpreter write 10,000 frames in 0.5 s, one in 0.35 s.
    """

    log = Logger()

    def __init__(self, reactor: Any, observer: Optional[CacheObserver], in_threads: bool = True) -> None:
        self._in_threads = in_threads
        self._reactor = reactor
        self._observer = observer or NullObserver()
        self._complaints = Complaints(self.log, reactor.seconds)
        self._frames = ThreadPool(0, 1, "cache frames")
        self._few = ThreadPool(0, 1, "cache facts")
        self._cold = ThreadPool(0, READING_THREADS, "cache reads")
        self._pools = (self._frames, self._few, self._cold)

    def start(self) -> None:
        """Take orders."""
        for pool in self._pools:
            pool.start()

    def stop(self) -> None:
        """Wait until all is done that was ordered."""
        for pool in self._pools:
            pool.stop()

    def now(self) -> float:
        """When an operation begins."""
        return float(self._reactor.seconds())

    def in_frames(self, do: Callable[..., _T], *arguments: Any) -> Any:
        """Have *do* done in the thread for frames; a Deferred of its result."""
        if not self._in_threads:
            return maybeDeferred(do, *arguments)
        return deferToThreadPool(self._reactor, self._frames, do, *arguments)

    def in_few(self, do: Callable[..., _T], *arguments: Any) -> Any:
        """Have *do* done in the thread for all else; a Deferred of its result."""
        return deferToThreadPool(self._reactor, self._few, do, *arguments)

    def in_cold(self, do: Callable[..., _T], *arguments: Any) -> Any:
        """Have *do* done in one of the threads that wait for the disk; a Deferred of its result."""
        return deferToThreadPool(self._reactor, self._cold, do, *arguments)

    def ended(self, operation: str, outcome: str, began: float) -> None:
        """Count an operation."""
        self._observer.cache_operation(operation, outcome, self._reactor.seconds() - began)

    def failed(self, operation: str, error: Exception, began: Optional[float] = None) -> None:
        """Log an operation that failed, and count it where it *began*."""
        self._complaints.complain(operation, str(error))
        if began is not None:
            self.ended(operation, "failed", began)
