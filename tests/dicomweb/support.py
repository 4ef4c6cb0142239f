"""A whole proxy in this process: its real components on the real reactor, loopback sockets, and the simulated store behind it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional, cast

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.trial.unittest import TestCase

from tests.clients import Client, HeaderMap, client
from tests.slides import Made, slide
from tests.stores.dialects import STANDARD, Dialect
from tests.stores.simulated import SimulatedStore
from tests.waiting import wait_until
from twistedproxy.cache.address import CacheAddress, MemoryAddress
from twistedproxy.proxy import Proxy
from twistedproxy.settings import MIB, Mount, Settings
from twistedproxy.system.logs import AccessLog

STORED = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
ALICE = {"Authorization": "Bearer alice-4f1c9e27aa"}
MALLORY = {"Authorization": "Bearer mallory-90b2d1c3ee"}


def token(headers: HeaderMap) -> str:
    """The bearer token that *headers* carry."""
    return dict(headers)["Authorization"].partition(" ")[2]


@contextmanager
def logged() -> Iterator[list[LogEvent]]:
    """All events that are logged meanwhile."""
    events: list[LogEvent] = []
    observer = cast(ILogObserver, events.append)
    globalLogPublisher.addObserver(observer)
    try:
        yield events
    finally:
        globalLogPublisher.removeObserver(observer)


class WallClock:
    """Seconds since the epoch that a test can move."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class RunningProxy:
    """One proxy. *wall*: the clock that its grants go by."""

    def __init__(self, test: TestCase, components: Proxy, wall: WallClock) -> None:
        self._test = test
        self.components = components
        self.wall = wall

    @property
    def port(self) -> int:
        """The port of its first listener."""
        return self.port_of(0)

    def port_of(self, index: int) -> int:
        """The port of a listener, in the order of the settings, the administrators' last."""
        host: Any = self.components._ports[index].getHost()
        return int(host.port)

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    async def settled(self) -> None:
        """Return once no metadata are under way that a frame did not wait for: what callers may read is known."""
        await wait_until(lambda: not self.components.lists.side_by_side.under_way, "metadata")

    def client(self, headers: HeaderMap = (), prefix: str = "/dicomweb", settled: bool = True, **more: Any) -> Client:
        """A client below the mount *prefix*. *settled*: it waits, after each answer, for the metadata that it came without."""
        return client(self._test, self.url + prefix, headers, after=self.settled if settled else None, **more)


class ProxyCase(TestCase):
    """Stores and proxies that end with the test. *slide*: a slide of six JPEG frames in the first store."""

    timeout = 60
    _cache_home: Optional[str] = None

    def store(self, dialect: Dialect = STANDARD, *more: Made, **options: Any) -> SimulatedStore:
        """A simulated store that holds a slide, or those given."""
        from twisted.internet import reactor

        made = more or (slide(self.mktemp(), 2, 3, 64),)
        self.slide = made[0]
        self.stored = self.slide.stored_frames()
        store = SimulatedStore(reactor, dialect, [one.path for one in made], **options).start()
        self.addCleanup(lambda: ensureDeferred(store.stop()))
        return store

    def _keep_indexes_apart(self) -> None:
        """Have the indexes of folders kept in a place of the test's own."""
        if self._cache_home is None:
            self._cache_home = os.path.abspath(self.mktemp())
            self.patch(os, "environ", {**os.environ, "XDG_CACHE_HOME": self._cache_home})

    async def proxy(
        self, *stores: SimulatedStore, cache: Optional[CacheAddress] = None, **settings: Any
    ) -> RunningProxy:
        """A proxy in front of *stores*: the first at ``/dicomweb``, the others at ``/dicomweb2`` and so on."""
        from twisted.internet import reactor

        given: dict[str, Any] = {
            "origin": tuple(
                Mount(f"/dicomweb{number if number > 1 else ''}", store.url)
                for number, store in enumerate(stores, start=1)
            ),
            "listen": ("tcp:0:interface=127.0.0.1",),
            "cache": cache or MemoryAddress(),
            "cache_memory": 64 * MIB,
            "hot_memory": 0,  # what they keep is asked for in tests of their own
            "prefetch": False,
            "origin_timeout": 5.0,
            "origin_stall_timeout": 2.0,
            "stop_deadline": 2.0,
            **settings,
        }
        if any(mount.url.startswith("file:") for mount in given["origin"]):
            self._keep_indexes_apart()
        wall = WallClock()
        components = Proxy(reactor, Settings(**given), AccessLog(), wall_clock=wall)
        self.addCleanup(self._stop, components)
        await components.start()
        return RunningProxy(self, components, wall)

    async def warm_proxy(self, store: SimulatedStore, **settings: Any) -> RunningProxy:
        """A proxy that loads by hand only: no request triggers a load by itself."""
        proxy = await self.proxy(store, **{"prefetch": True, "prefetch_min_frames": 1000, **settings})
        self.addCleanup(lambda: Deferred.fromCoroutine(proxy.components.scheduler.stop()))
        return proxy

    @staticmethod
    def _stop(components: Proxy) -> Deferred[None]:
        return Deferred.fromCoroutine(components.stop())
