"""How much of this machine's memory is the cache's."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.cache.monitoring import INTERVAL, CacheUse
from twistedproxy.system.metrics import Metrics


class Told:
    """A cache that says what a test wants of itself."""

    def __init__(self, **status: object) -> None:
        self.said = status

    async def status(self) -> dict[str, object]:
        return self.said


class CacheUseTests(SynchronousTestCase):
    """Looking at the cache now and then."""

    def look(self, cache: Any) -> CacheUse:
        self.clock = Clock()
        use = CacheUse(cache, Metrics(), self.clock)
        use.start()
        self.addCleanup(use.stop)
        return use

    def test_of_our_own(self) -> None:
        """What a cache in this process holds is memory of this machine; it is looked at again as it fills."""
        cache = Told(provider="memory", used_bytes=5000)
        use = self.look(cache)
        self.assertEqual(use.on_this_machine(), 5000)
        cache.said["used_bytes"] = 7000
        self.clock.advance(INTERVAL)
        self.assertEqual(use.on_this_machine(), 7000)

    def test_elsewhere(self) -> None:
        """A server may be on another host, and files are memory that the kernel gives back."""
        for provider in ("redis", "local"):
            self.assertEqual(self.look(Told(provider=provider, used_bytes=5000)).on_this_machine(), 0, provider)
