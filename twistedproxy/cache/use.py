"""How much the cache holds, looked at now and then: for metrics, and for those who must not count it as used memory."""

from __future__ import annotations

from typing import Optional

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from twistedproxy.cache.interface import Cache
from twistedproxy.metrics import Metrics

INTERVAL = 5.0  # seconds between two looks: a cache fills at some 100 MB/s at most


class CacheUse:
    """Looks at *cache*, and tells *metrics*."""

    _log = Logger()

    def __init__(self, cache: Cache, metrics: Metrics, clock: IReactorTime) -> None:
        self._cache = cache
        self._metrics = metrics
        self._used = 0
        self._local = False
        self._looking = LoopingCall(self._look)
        self._looking.clock = clock

    def on_this_machine(self) -> int:
        """Bytes that a cache of this proxy's own held when last looked at; 0 where it may be on another host."""
        return self._used if self._local else 0

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
            self._log.failure("looking at the cache failed")
            return
        self._local = status.get("provider") in ("embedded", "memory")
        self._used = _number(status.get("used_bytes"))
        self._metrics.cache_server(
            bool(status.get("connected")), self._used, _number(status.get("max_bytes")), _number(status.get("evicted"))
        )


def _number(value: Optional[object]) -> int:
    return value if isinstance(value, int) else 0
