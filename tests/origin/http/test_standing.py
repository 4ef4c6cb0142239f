"""What an origin's answers show of callers: who goes first, and who is held back."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.origin.errors import OriginBusy
from twistedproxy.origin.http.limiter import (
    FORGIVEN_SECONDS,
    FREE_REFUSALS,
    KNOWN_SECONDS,
    LONGEST_HOLD,
    MANY_REFUSALS,
    PACE,
    Standings,
)
from twistedproxy.origin.interface import Caller, Headers, Priority

ALICE = Caller(b"alice", ((b"Authorization", b"a"),), "192.0.2.1")
MALLORY = Caller(b"mallory", ((b"Authorization", b"m"),), "192.0.2.1")
NAMELESS = Caller(b"nobody", (), address="192.0.2.1")
NAMELESS_ELSEWHERE = Caller(b"nobody", (), address="192.0.2.2")
INSTANCE = b"/studies/1/series/2/instances/3"


class StandingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.standings = Standings(self.clock)

    def assertKnown(self, known: bool, caller: Caller = ALICE) -> None:
        """Whether *caller* goes first."""
        self.assertEqual(self.standings.priority(caller), Priority.CALLER if known else Priority.UNKNOWN)

    def held(self, caller: Caller = MALLORY) -> Deferred[None]:
        return Deferred.fromCoroutine(self.standings.hold(caller))

    def pass_answer(self, path: bytes, status: int, content_type: bytes) -> None:
        headers: Headers = ((b"Content-Type", content_type),)
        self.standings.passed(ALICE, path, status, headers)

    def test_proven(self) -> None:
        """Who was given something is known, for a while."""
        self.assertKnown(False)
        self.standings.proven(ALICE)
        self.assertKnown(True)
        self.assertKnown(False, MALLORY)
        self.clock.advance(KNOWN_SECONDS)
        self.assertKnown(False)

    def test_passed(self) -> None:
        """A passed answer shows something where it gives of an instance; a search, a refusal and a page to sign in do not."""
        self.pass_answer(b"/studies", 200, b"application/dicom+json")
        self.pass_answer(INSTANCE, 200, b"text/html")
        self.pass_answer(INSTANCE, 403, b"application/dicom+json")
        self.assertKnown(False)
        self.pass_answer(INSTANCE + b"/metadata", 200, b"application/dicom+json")
        self.assertKnown(True)

    def test_refusals(self) -> None:
        """401 says that a credential has expired; of 403 it takes many in a row."""
        self.standings.proven(ALICE)
        for _ in range(MANY_REFUSALS - 1):
            self.standings.answered(ALICE, 403)
        self.assertKnown(True)
        self.standings.answered(ALICE, 403)
        self.assertKnown(False)
        self.standings.proven(ALICE)
        self.standings.answered(ALICE, 401)
        self.assertKnown(False)

    def test_pace(self) -> None:
        """A refused caller's requests are held to a pace after the first few, and nobody else's."""
        self.standings.answered(MALLORY, 401)
        for _ in range(FREE_REFUSALS + 1):
            self.successResultOf(self.held())
        second, third = self.held(), self.held()
        self.successResultOf(self.held(ALICE))
        self.clock.advance(PACE)
        self.successResultOf(second)
        self.assertNoResult(third)
        self.clock.advance(PACE)
        self.successResultOf(third)

    def test_pace_is_bounded(self) -> None:
        """Who would have to wait too long is sent away, after a while."""
        self.standings.answered(MALLORY, 401)
        waiting = [self.held() for _ in range(int(LONGEST_HOLD / PACE) + FREE_REFUSALS + 1)]
        late = self.held()
        self.assertNoResult(late)
        self.clock.advance(LONGEST_HOLD)
        self.failureResultOf(late, OriginBusy)
        for one in waiting:
            self.successResultOf(one)

    def test_forgiven(self) -> None:
        """A refusal is forgiven after a while, and at once by an answer that gives something."""
        for forgive in (lambda: self.clock.advance(FORGIVEN_SECONDS), lambda: self.standings.proven(MALLORY)):
            self.standings.answered(MALLORY, 401)
            self.assertFalse(self.standings.is_new(MALLORY))
            forgive()
            self.assertTrue(self.standings.is_new(MALLORY))

    def test_nameless(self) -> None:
        """Callers without a credential are told apart by their addresses."""
        self.standings.answered(NAMELESS, 401)
        self.assertFalse(self.standings.is_new(NAMELESS))
        self.assertTrue(self.standings.is_new(NAMELESS_ELSEWHERE))

    def test_invented_credentials(self) -> None:
        """Invented credentials push out no known caller."""
        self.standings = Standings(self.clock, most=3)
        self.standings.proven(ALICE)
        for number in range(10):
            self.standings.answered(Caller(b"%d" % number, ((b"Authorization", b"x"),)), 401)
        self.assertKnown(True)
        self.assertTrue(self.standings.is_new(Caller(b"0", ((b"Authorization", b"x"),))))
