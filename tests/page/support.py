"""Clients that follow coverage, and what the cache itself says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Optional

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers

from tests.clients import HeaderMap
from tests.dicomweb.support import RunningProxy
from tests.slides import Made
from tests.waiting import within
from twistedproxy.cache.interface import Cache
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.entries import frame_name

LINES = {"Accept": "application/x-ndjson"}


def numbers(runs: Iterable[tuple[int, int]]) -> set[int]:
    """The numbers in *runs*, which are ascending and have gaps between them."""
    found: list[int] = []
    for first, last in runs:
        assert first <= last and (not found or first > found[-1] + 1), runs
        found += range(first, last + 1)
    return set(found)


async def cached(cache: Cache, instance: Instance, frames: int) -> set[int]:
    """The frames that a reader would find in *cache*."""
    names = {frame_name(number): number for number in range(1, frames + 1)}
    return {names[name] for name in await cache.present(instance, list(names))}


class Followed(Protocol):
    """A stream that is followed: *objects*, and all of them put together, *seen*; *blank*: empty lines. *ended*: how it ended."""

    transport: Any

    def __init__(self) -> None:
        self.objects: list[dict[str, Any]] = []
        self.seen: dict[str, Any] = {}
        self.blank = 0
        self.ended: Optional[Failure] = None
        self.status = 0
        self.headers = Headers()
        self._rest = b""
        self._waiting: list[tuple[Callable[[], Any], Deferred[None]]] = []

    @classmethod
    async def open(cls, test: Any, url: str, headers: HeaderMap = ()) -> Followed:
        """Follow *url* until the test ends."""
        from twisted.internet import reactor

        pool = HTTPConnectionPool(reactor, persistent=False)
        sent = Headers({name: [value] for name, value in {**dict(headers), **LINES}.items()})
        response = await within(Agent(reactor, pool=pool).request(b"GET", url.encode(), sent))
        followed = cls()
        followed.status, followed.headers = response.code, response.headers
        response.deliverBody(followed)
        test.addCleanup(followed.close)
        return followed

    async def close(self) -> None:
        """Leave."""
        if self.ended is None:
            self.transport._producer.abortConnection()
            await self.until(lambda: self.ended)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Return once *condition* is true."""
        if not condition():
            waiting: Deferred[None] = Deferred()
            self._waiting.append((condition, waiting))
            await within(waiting)

    def runs(self, sop: str, kind: str = "cached") -> set[int]:
        """The frames of an instance that are *kind*, as far as was told."""
        known = self.seen.get(sop)
        return numbers(known[kind]) if known else set()

    def dataReceived(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not line:
                self.blank += 1
                continue
            told = json.loads(line)
            self.objects.append(told)
            self.seen.update(told["instances"])
        self._look()

    def connectionLost(self, reason: Any = None) -> None:
        self.ended = reason
        self._look()

    def _look(self) -> None:
        ready = [one for one in self._waiting if one[0]()]
        self._waiting = [one for one in self._waiting if one not in ready]
        for _, waiting in ready:
            waiting.callback(None)


def series_of(made: Made) -> str:
    """The path of the series of *made*, with a leading slash."""
    return "/" + "/".join(made.resource.split("/")[:4])


def instance_of(proxy: RunningProxy, made: Made) -> Instance:
    """*made* in the first store of *proxy*."""
    return Instance(proxy.components.mounts.all[0].origin.url, "", *made.resource.split("/")[1::2])
