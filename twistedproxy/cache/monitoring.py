"""What is seen of the cache from outside: how much it holds, how its operations end, and warnings.

- How much it holds is looked at now and then: for metrics, and for those who must not count it as used memory.
- Operations go to an observer (the metrics).
- Warnings are rate-limited.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from twistedproxy.cache.interface import Cache
from twistedproxy.system.metrics import Metrics

INTERVAL = 5.0  # seconds between two looks: a cache fills at some 100 MB/s at most
LOG_INTERVAL = 60.0  # seconds between two lines about the same trouble: a server can be down for hours


class CacheUse:
    """Reads the status of *cache* at intervals, for *metrics*."""

    _log = Logger()

    def __init__(self, cache: Cache, metrics: Metrics, clock: IReactorTime) -> None:
        self._cache = cache
        self._metrics = metrics
        self._used = 0
        self._looking = LoopingCall(self._look)
        self._looking.clock = clock

    def on_this_machine(self) -> int:
        """Bytes that a cache of this proxy's own held when last looked at; 0 where it may be on another host."""
        return self._used

    def start(self) -> None:
        """Look from now on."""
        self._looking.start(INTERVAL)

    def stop(self) -> None:
        """Look no more."""
        if self._looking.running:
            self._looking.stop()

    async def _look(self) -> None:
        try:
            status = await self._cache.status()
        except Exception:
            self._log.failure("checking the cache failed")
            return
        used = status.get("used_bytes")
        self._used = used if isinstance(used, int) and status.get("provider") == "memory" else 0
        self._metrics.cache_status(status)


class CacheObserver(Protocol):
    """Called at the end of every operation."""

    def cache_operation(self, name: str, outcome: str, seconds: float) -> None:
        """*name* is the method of `Cache`; *outcome* is ``hit``, ``partial``, ``miss`` (of `get_many`),
        ``ok``, ``lost`` (a claim or a lock that others hold) or ``failed``."""


class NullObserver:
    """Counts nothing."""

    def cache_operation(self, name: str, outcome: str, seconds: float) -> None:
        """Do nothing."""


class Complaints:
    """Logs each kind of trouble at most once per `LOG_INTERVAL`, with the number of those left out."""

    def __init__(self, log: Logger, seconds: Callable[[], float]) -> None:
        self._log = log
        self._seconds = seconds
        self._last: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def complain(self, kind: str, reason: str) -> None:
        """Log trouble of *kind* (one of a few fixed words) with its *reason* (no secrets), or count it."""
        now = self._seconds()
        last = self._last.get(kind)
        if last is not None and now - last < LOG_INTERVAL:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return
        self._last[kind] = now
        self._log.warn(
            "cache {kind}: {reason} ({left_out} similar messages suppressed)",
            kind=kind,
            reason=reason,
            left_out=self._left_out.pop(kind, 0),
        )
