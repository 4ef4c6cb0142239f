"""The way of a request for one frame: the modules that it enters between its head and the last byte of its answer."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

from twisted.internet.defer import Deferred
from twisted.web.http import Request

import twistedproxy
from tests.cache.support import RunningServer, any_server
from tests.clients import Client
from tests.dicomweb.support import ALICE, ProxyCase
from tests.slides import slide
from tests.stores.dialects import STANDARD
from twistedproxy.cache.address import UnixAddress

PACKAGE = f"{Path(twistedproxy.__file__).parent}/"

ANSWERED = Request.finish.__code__
"""Entered when the last byte was written; what prefetch and the cache do then is not on the way of the request."""

CACHED = 30
"""Modules that a request for a frame may enter that is in the cache server."""

MISSED = 48
"""Modules that a request for a frame may enter that is fetched from the store."""


class ModuleTests(ProxyCase):
    """Each module on the way is one more to open for who follows a request."""

    async def _start(self) -> Client:
        server = RunningServer(any_server())
        await server.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(server.stop()))
        store = self.store(STANDARD, slide(self.mktemp(), 2, 8, 64))
        client = (await self.proxy(store, cache=UnixAddress(server.socket), hot_memory=1 << 20)).client(ALICE)
        await client.frames(self.slide.resource, [1])  # connects, and gets a grant
        return client

    async def _entered(self, client: Client, number: int, outcome: str) -> set[str]:
        entered = set()

        def note(frame: FrameType, event: str, _argument: object) -> None:
            code = frame.f_code
            if event == "call" and code.co_filename.startswith(PACKAGE):
                entered.add(code.co_filename.removeprefix(PACKAGE))
            elif event == "call" and code is ANSWERED:
                sys.setprofile(None)

        sys.setprofile(note)
        try:
            answer = await client.frames(self.slide.resource, [number])
        finally:
            sys.setprofile(None)
        self.assertEqual(answer.frames(), [self.stored[number - 1]])
        self.assertEqual(answer.headers["cache-status"], outcome)
        return entered

    async def test_missed(self) -> None:
        """A frame that is fetched from the store."""
        client = await self._start()
        answers = [await self._entered(client, number, "twistedproxy; fwd=uri-miss; stored") for number in (2, 3, 4)]
        entered = set.intersection(*answers)  # timers come at one time or another
        self.assertLessEqual(len(entered), MISSED, "\n".join(sorted(entered)))

    async def test_cached(self) -> None:
        """A frame that is in the cache server, and not in this process."""
        client = await self._start()
        for number in (2, 3, 4):
            await client.frames(self.slide.resource, [number, number])  # another answer: it is not hot
        answers = [await self._entered(client, number, "twistedproxy; hit") for number in (2, 3, 4)]
        entered = set.intersection(*answers)
        self.assertLessEqual(len(entered), CACHED, "\n".join(sorted(entered)))
