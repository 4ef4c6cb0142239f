"""Who hears of cache operations (the metrics), and a log that is not flooded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from twisted.logger import Logger

LOG_INTERVAL = 60.0  # seconds between two lines about the same trouble: a server can be down for hours


class CacheObserver(Protocol):
    """Hears of every operation's end."""

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
            "cache {kind}: {reason} ({left_out} like it were not logged)",
            kind=kind,
            reason=reason,
            left_out=self._left_out.pop(kind, 0),
        )
