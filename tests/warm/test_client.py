"""The client of proxies, against a store: deadlines, and what treq must not do."""

from __future__ import annotations

import gzip
import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent

from tests.slides import loop
from tests.stores.dialects import STANDARD
from tests.stores.faults import Answer, Close, Fault, Reset, Stall
from tests.stores.simulated import SimulatedStore
from tests.waiting import wait_until
from twistedproxy.warm.client import MAX_LINE, MAX_RESPONSE, RESPONSE_SECONDS, SILENCE_SECONDS, Trouble, Warmer
from twistedproxy.warm.options import Found, WarmTarget

DICOM_JSON = ("Content-Type", "application/dicom+json")
PAGE = json.dumps([{tag: {"vr": "UI", "Value": ["1.3"]} for tag in ("0020000E", "00080018")}]).encode()


class ClientTests(TestCase):
    """Searches and loads."""

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.clock: Any = Clock()
        made = loop(self.mktemp(), 1, study="1.2", series="1.3", sop="1.4")
        self.store = SimulatedStore(reactor, STANDARD, [made.path]).start()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.store.stop()))
        self.warmer = Warmer(Agent(reactor), self.clock, [("X-Key", "a"), ("X-Key", "b"), ("Cookie", "mine=1")])

    def search(self, *answers: Fault) -> Deferred[list[Found]]:
        """Begin a search, answered so."""
        for answer in answers:
            self.store.fail(answer)
        target = WarmTarget.of(f"{self.store.url}/studies/1.2")
        return Deferred.fromCoroutine(self.warmer.loads(target))

    async def trouble(self, *answers: Fault) -> str:
        """What a search that is answered so fails with; it leaves no timer and no connection."""
        error = await self.assertFailure(self.search(*answers), Trouble)
        await self.nothing_is_left()
        return str(error)

    async def nothing_is_left(self) -> None:
        await wait_until(lambda: not self.store.factory.connections and not self._due(), "the connection is closed")

    async def test_deadlines(self) -> None:
        """A response that does not begin, or stops in the middle, fails the request and closes the connection."""
        for fault, seconds in ((Stall(), RESPONSE_SECONDS), (Stall(1), SILENCE_SECONDS)):
            self.store.requests.clear()
            searching = self.search(fault)
            await self.store.requested()
            await wait_until(lambda due=self.clock.seconds() + seconds: due in self._due(), "the deadline is set")
            self.clock.advance(seconds)
            self.assertIn("in time", str(await self.assertFailure(searching, Trouble)))
            await self.nothing_is_left()

    def _due(self) -> list[float]:
        return [call.getTime() for call in self.clock.getDelayedCalls()]

    async def test_broken_off(self) -> None:
        """A connection that is closed before the response's end is an error."""
        for fault in (Close(), Reset(), Close(1), Reset(1)):
            self.assertIn("closed too early", await self.trouble(fault))

    async def test_too_large(self) -> None:
        """A response that is far too large is not read to its end."""
        self.assertIn(str(MAX_RESPONSE), await self.trouble(Answer(200, (DICOM_JSON,), b" " * (MAX_RESPONSE + 1))))

    async def test_redirect(self) -> None:
        """Redirects are errors: headers with tokens are for the host of the URL alone."""
        self.assertIn("302 ", await self.trouble(Answer(302, (("Location", "http://elsewhere.invalid/"),))))

    async def test_cookies(self) -> None:
        """Cookies of a response are not sent back: with another cookie this would be another caller."""
        page = Answer(200, (DICOM_JSON, ("Set-Cookie", "sid=1; Path=/")), PAGE)
        self.assertEqual([found.uid for found in await self.search(page, page)], ["1.3"])
        self.assertEqual([seen.header("Cookie") for seen in self.store.requests], ["mine=1", "mine=1"])
        self.assertEqual({seen.header("X-Key") for seen in self.store.requests}, {"a, b"})

    async def test_compressed(self) -> None:
        """A compressed response, which treq asks for, is read as any."""
        page = Answer(200, (DICOM_JSON, ("Content-Encoding", "gzip")), gzip.compress(PAGE))
        self.assertEqual([found.uid for found in await self.search(page, Answer(204))], ["1.3"])

    async def test_impossible_url(self) -> None:
        """A URL whose host cannot be one is an error like any."""
        await self.assertFailure(
            Deferred.fromCoroutine(self.warmer.loads(WarmTarget.of("http://[/studies/1.2"))), Trouble
        )

    async def test_no_lines(self) -> None:
        """A load's response that is not made of lines of JSON objects is an error."""
        for body in (
            b"x" * 100_000,
            b"page\n",
            b"[1]\n",
            b"3\n",
            b"",
            b'{"total": 1}\n',
        ):
            self.store.fail(Answer(202, (), body))
            instance = Found(f"{self.store.url}/studies/1.2/series/1.3/instances/1.4", "1.4")
            loading = self.warmer.load(instance, False, lambda job: None)
            await self.assertFailure(Deferred.fromCoroutine(loading), Trouble)
            await self.nothing_is_left()

    async def test_long_line(self) -> None:
        """A line that does not end is given up; lines may be any number, for a load may take hours."""
        wanted = Found(f"{self.store.url}/studies/1.2/series/1.3", "1.3")
        self.store.fail(Answer(202, (), b"x" * (MAX_LINE + 1)))
        loading = Deferred.fromCoroutine(self.warmer.load(wanted, False, lambda job: None))
        self.assertIn("not as expected", str(await self.assertFailure(loading, Trouble)))
        line = b'{"result": "done", "reason": "%s"}\n' % (b"y" * 1_000_000)
        self.store.fail(Answer(202, (), line * (2 + MAX_RESPONSE // len(line))))
        job = await self.warmer.load(wanted, False, lambda job: None)
        self.assertEqual(job["result"], "done")
