"""How one process works on a local cache: its threads, and how operations are counted and failures logged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional, TypeVar

import lmdb
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from twistedproxy.cache.monitoring import CacheObserver, Complaints, NullObserver

ERRORS = (OSError, lmdb.Error)
"""What files and tables raise where they can't be read or written."""

_T = TypeVar("_T")


class Operations:
    """One thread that writes frames and one that writes all else; operations are counted by *observer*, failures logged."""

    log = Logger()

    def __init__(self, reactor: Any, observer: Optional[CacheObserver]) -> None:
        self._reactor = reactor
        self._observer = observer or NullObserver()
        self._complaints = Complaints(self.log, reactor.seconds)
        self._frames = ThreadPool(0, 1, "cache frames")
        self._few = ThreadPool(0, 1, "cache facts")

    def start(self) -> None:
        """Take orders."""
        self._frames.start()
        self._few.start()

    def stop(self) -> None:
        """Wait until all is done that was ordered."""
        self._frames.stop()
        self._few.stop()

    def now(self) -> float:
        """When an operation begins."""
        return float(self._reactor.seconds())

    def in_frames(self, do: Callable[..., _T], *arguments: Any) -> Any:
        """Have *do* done in the thread for frames; a Deferred of its result."""
        return deferToThreadPool(self._reactor, self._frames, do, *arguments)

    def in_few(self, do: Callable[..., _T], *arguments: Any) -> Any:
        """Have *do* done in the thread for all else; a Deferred of its result."""
        return deferToThreadPool(self._reactor, self._few, do, *arguments)

    def ended(self, operation: str, outcome: str, began: float) -> None:
        """Count an operation."""
        self._observer.cache_operation(operation, outcome, self._reactor.seconds() - began)

    def failed(self, operation: str, error: Exception, began: Optional[float] = None) -> None:
        """Log an operation that failed, and count it where it *began*."""
        self._complaints.complain(operation, str(error))
        if began is not None:
            self.ended(operation, "failed", began)
