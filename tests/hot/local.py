"""A proxy on a local cache, of which it is known which answers were given before a request was parsed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Optional

import attrs
from twisted.trial.unittest import SkipTest

from tests.clients import RawConnection
from tests.dicomweb.support import ALICE, MALLORY, STORED, ProxyCase, token
from tests.hot.support import OF_ONE_ANSWER
from tests.prefetch.real import absolute
from tests.slides import slide
from tests.stores.dialects import STANDARD
from tests.waiting import wait_until
from twistedproxy import proxy
from twistedproxy.cache.address import LocalAddress
from twistedproxy.cache.local.cache import LocalCache
from twistedproxy.dicom.resource import Instance

SIZE = 64 << 20
TTL = 600.0
TERM = 3600.0
VIEWER = "https://viewer.example"
_LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n")
_TAG = re.compile(rb'\r\nETag: ("[^"]+")')


@attrs.frozen
class Reply:
    """One answer, without its date."""

    head: bytes
    body: bytes = attrs.field(repr=False)

    @property
    def status(self) -> int:
        """As a number."""
        return int(self.head.split(b" ")[1])

    @property
    def tag(self) -> str:
        """Its ETag."""
        (found,) = _TAG.findall(self.head)
        return str(found, "ascii")


def cut(received: bytes, has_body: bool = True) -> Optional[tuple[Reply, bytes]]:
    """The first answer in *received*, and what comes after it; None where it is not all there."""
    head, ended, rest = received.partition(b"\r\n\r\n")
    if not ended:
        return None
    length = _LENGTH.search(head + b"\r\n")
    size = int(length[1]) if length is not None and has_body and b" 304 " not in head[:20] else 0
    return None if len(rest) < size else (Reply(OF_ONE_ANSWER.sub(b"", head), rest[:size]), rest[size:])


class LocalCase(ProxyCase):
    """A proxy on a local cache in front of a store that ALICE may read. *found*: answers that were given early so far."""

    encoding = "jpeg"
    tile = 64

    async def setUp(self) -> None:
        self.folder = Path(absolute(self.mktemp()))
        self.origin = self.store(STANDARD, slide(self.mktemp(), 2, 3, self.tile, self.encoding))
        self.origin.allow(token(ALICE))
        self.origin.allow(token(MALLORY), "1.2.3")
        self.instance = Instance(self.origin.url, "", self.slide.study, self.slide.series, self.slide.sop)
        self.patch(proxy, "open_cache", self.open_cache)
        address, lives = LocalAddress(str(self.folder), SIZE), {"grant_ttl": TTL, "frame_ttl": TERM}
        self.running = await self.proxy(self.origin, cache=address, cors_origin=(VIEWER,), **lives)
        self.components: Any = self.running.components
        self.cache = self.components.cache
        self.found = 0
        cached = self.components._hot.cached
        self.components._hot.cached = self
        self.cached, self.learn = cached, cached.learn

    def open_cache(self, reactor: Any, address: LocalAddress, _memory: int, observer: Any, _near: None) -> LocalCache:
        """A cache that goes by the clock that the proxy's grants go by."""
        return LocalCache(reactor, address, observer, lambda: self.running.wall())

    def find(self, *arguments: Any) -> Any:
        """As `CachedAnswers`, counted."""
        answer = self.cached.find(*arguments)
        self.found += answer is not None
        return answer

    def asking(self, frames: str, method: str = "GET", who: Optional[dict[str, str]] = None, **fields: str) -> bytes:
        """A request for frames of the slide. *fields*: with underscores in the place of hyphens."""
        given = {"Host": "a", "Accept": STORED, **(ALICE if who is None else who)}
        given.update({name.replace("_", "-"): value for name, value in fields.items()})
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        return f"{method} /dicomweb/{self.slide.resource}/frames/{frames} HTTP/1.1\r\n{lines}\r\n".encode()

    async def connected(self) -> RawConnection:
        """A connection that ends with the test."""
        connection = await RawConnection.open(self.running.port)
        self.addCleanup(connection.close)
        return connection

    async def reply(self, data: bytes, early: Optional[bool] = None) -> Reply:
        """The answer to *data*, once what was fetched for it is written. *early*: whether it must be given early or must not."""
        if early and self.cache.store.reader._flags < 0:
            raise SkipTest("this file system can't tell what it has in memory")
        connection, before = await self.connected(), self.found
        connection.send(data)
        has_body = not data.startswith(b"HEAD")
        await wait_until(lambda: cut(bytes(connection.received), has_body), "an answer")
        answer = cut(bytes(connection.received), has_body)
        assert answer is not None
        self.assertEqual(answer[1], b"")
        if early is not None:
            self.assertEqual(self.found - before, int(early), data)
        await self.running.settled()
        await wait_until(lambda: not self.cache.readings.writing, "the end of writing")
        return answer[0]

    async def get(self, frames: str, early: Optional[bool] = None, **more: Any) -> Reply:
        """Ask for frames."""
        return await self.reply(self.asking(frames, **more), early)

    async def warm(self, *lists: str) -> None:
        """Have lists of frames answered early from now on."""
        for frames in lists:
            for _ in range(3):  # fetched; read from a segment that is not open yet; at hand
                await self.get(frames)
            await self.get(frames, early=True)

    def fetched(self) -> int:
        """How often the store was asked for frames."""
        return len(self.origin.seen("/frames/"))
