"""Finding the series of a short path."""

from __future__ import annotations

import json
from typing import Optional

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.frames.support import ALICE, INSTANCE, MALLORY
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.frames import searches, series_lookup
from twistedproxy.frames.series_lookup import SeriesLookup
from twistedproxy.origin.errors import OriginBadAnswer, OriginRefused
from twistedproxy.origin.interface import Caller, OriginRequest, OriginResponse
from twistedproxy.streams import BytesStream


def found(sop: str = INSTANCE.sop, in_series: str = INSTANCE.series) -> bytes:
    """What a search answers."""
    return json.dumps([{"00080018": {"Value": [sop]}, "0020000E": {"Value": [in_series]}}]).encode()


@attrs.define(eq=False)
class SearchedOrigin:
    """Answers every request alike."""

    status: int = 200
    body: bytes = found()
    kind: bytes = b"application/dicom+json"
    gate: Optional[Deferred[None]] = None
    requests: list[OriginRequest] = attrs.Factory(list)
    url: str = INSTANCE.origin

    async def forward(self, request: OriginRequest) -> OriginResponse:
        self.requests.append(request)
        if self.gate is not None:
            await self.gate
        return OriginResponse(self.status, ((b"Content-Type", self.kind),), BytesStream(self.body))


class SeriesTests(SynchronousTestCase):
    """One search, remembered for the caller."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.origin = SearchedOrigin()
        self.lookup = SeriesLookup(self.clock.seconds, 60.0)

    def find(self, caller: Caller = ALICE, root: str = "") -> Deferred[Instance]:
        """Look the instance up."""
        return Deferred.fromCoroutine(
            self.lookup.instance(self.origin, root, INSTANCE.study, INSTANCE.sop, caller)  # type: ignore[arg-type]
        )

    def test_found(self) -> None:
        """The search is for that instance, in the caller's name, and its answer is remembered for a while."""
        for _ in range(2):
            self.assertEqual(self.successResultOf(self.find()), INSTANCE)
        (request,) = self.origin.requests
        self.assertEqual((request.path, request.query[:22]), (b"/studies/1.2/instances", b"SOPInstanceUID=1.2.3.4"))
        self.assertIn(ALICE.headers[0], request.headers)
        self.clock.advance(60)
        self.successResultOf(self.find())
        self.assertEqual(len(self.origin.requests), 2)

    def test_malformed_elsewhere(self) -> None:
        """A byte order mark, Latin-1 and NaN in other elements do not hide what was found."""
        other = b'[{"00100010":{"vr":"PN","Value":[{"Alphabetic":"M\xfcller\x00"},NaN]},'
        self.origin.body = b"\xef\xbb\xbf" + found().replace(b"[{", other, 1)
        self.assertEqual(self.successResultOf(self.find()), INSTANCE)

    def test_not_for_others(self) -> None:
        """What one caller found tells another nothing, and another root is another place."""
        self.successResultOf(self.find())
        self.origin.status, self.origin.body = 403, b"no"
        self.assertEqual(self.failureResultOf(self.find(MALLORY), OriginRefused).value.status, 403)
        self.assertEqual(self.failureResultOf(self.find(root="/other"), OriginRefused).value.status, 403)

    def test_forgotten(self) -> None:
        """What a STOW or DELETE may have changed is searched for again, at whichever level it was; the rest is not."""
        whole = Scope(INSTANCE.origin, INSTANCE.root)
        study = attrs.evolve(whole, study=INSTANCE.study)
        series_ = attrs.evolve(study, series=INSTANCE.series)
        other_mount = Scope("http://store.test", "/dicom-web", INSTANCE.study)
        moved = attrs.evolve(INSTANCE.scope, series="9")
        for scope in (whole, study, series_, INSTANCE.scope, other_mount, moved):
            self.successResultOf(self.find())
            self.origin.requests.clear()
            self.lookup.invalidate(scope)
            self.successResultOf(self.find())
            self.assertEqual(len(self.origin.requests), 1, scope)
        elsewhere = (
            Scope("http://other.test", ""),
            attrs.evolve(study, study="9"),
            attrs.evolve(series_, series="9"),
            attrs.evolve(INSTANCE.scope, sop="9"),
        )
        for scope in elsewhere:
            self.lookup.invalidate(scope)
        self.successResultOf(self.find())
        self.assertEqual(len(self.origin.requests), 1)

    def test_forgotten_meanwhile(self) -> None:
        """A search under way when something is forgotten is neither joined by who comes later nor remembered."""
        self.origin.gate = old = Deferred()
        before = self.find()
        self.lookup.invalidate(INSTANCE.scope)
        self.origin.gate, self.origin.body = None, found(in_series="1.9")
        self.assertEqual(self.successResultOf(self.find()).series, "1.9")
        self.lookup.invalidate(INSTANCE.scope)
        old.callback(None)
        self.successResultOf(before)
        self.origin.body = found(in_series="1.10")
        self.assertEqual(self.successResultOf(self.find()).series, "1.10")

    def test_shared(self) -> None:
        """Who asks meanwhile waits for the same search; who leaves ends only its own wait."""
        self.origin.gate = Deferred()
        first, second = self.find(), self.find()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.origin.gate.callback(None)
        self.assertEqual(self.successResultOf(second), INSTANCE)
        self.assertEqual(len(self.origin.requests), 1)

    def test_nothing_there(self) -> None:
        """Nothing found, and something else found, are a 404."""
        for status, body in ((204, b""), (200, b"[]"), (200, found(sop="9.9"))):
            self.origin.status, self.origin.body = status, body
            self.assertEqual(self.failureResultOf(self.find(), OriginRefused).value.status, 404)

    def test_not_what_was_asked_for(self) -> None:
        """A page, an object and an instance of another study name no series; nothing of them is remembered."""
        of_another = json.loads(found())
        of_another[0]["0020000D"] = {"Value": ["1.9"]}
        self.origin.body = json.dumps(of_another).encode()
        self.assertEqual(self.failureResultOf(self.find(), OriginRefused).value.status, 404)
        self.origin.body = b'{"error":"access denied"}'
        self.failureResultOf(self.find(), OriginBadAnswer)
        self.origin.body, self.origin.kind = found(), b"text/html"
        self.failureResultOf(self.find(), OriginBadAnswer)
        self.origin.kind = b"application/json"
        self.assertEqual(self.successResultOf(self.find()), INSTANCE)

    def test_no_answer(self) -> None:
        """A page, a redirect, too much, or what is no UID is the origin's fault, and is not remembered."""
        self.patch(searches, "MAX_ANSWER", 1_000_000)
        for status, body in (
            (200, b"<html>"),
            (302, b""),
            (200, b" " * 1_000_001),
            (200, found(in_series="../x")),
            (200, b'{"a": 1}'),
            (200, b"[" * 900_000),
            (200, b'[{"00080018": {"vr": "UI"}}]'),
        ):
            self.origin.status, self.origin.body = status, body
            self.failureResultOf(self.find(), OriginBadAnswer)
        self.origin.status, self.origin.body = 200, found()
        self.assertEqual(self.successResultOf(self.find()), INSTANCE)

    def test_bounded(self) -> None:
        """What is remembered is bounded; the oldest goes first."""
        self.patch(series_lookup, "MAX_REMEMBERED", 2)
        for root in ("/a", "/b", "/c", "/c", "/b", "/a"):
            self.successResultOf(self.find(root=root))
        self.assertEqual([request.path[:2] for request in self.origin.requests], [b"/a", b"/b", b"/c", b"/a"])
