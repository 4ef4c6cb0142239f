"""One piece of work for many requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.frames.single_flight import SingleFlight
from twistedproxy.origin.errors import OriginRefused, OriginUnreachable
from twistedproxy.streams import StreamTooLong


class SingleFlightTests(SynchronousTestCase):
    """Waiters are independent of each other."""

    def setUp(self) -> None:
        self.flights: SingleFlight[str, int] = SingleFlight()
        self.cancelled: list[object] = []
        self.works: list[tuple[str, tuple[str, ...], Deferred[None]]] = []
        self.kept: Optional[Deferred[None]] = None
        self.keeping: Optional[Exception] = None

    def get(self, *keys: str, owner: str = "alice") -> Deferred[Any]:
        """Ask for the values of *keys*; the work waits for the test."""

        async def work(missing: Sequence[str]) -> Mapping[str, int]:
            source: Deferred[None] = Deferred(self.cancelled.append)
            self.works.append((owner, tuple(missing), source))
            await source
            return {key: ord(key) for key in missing}

        async def keep(_values: Mapping[str, int]) -> None:
            if self.kept is not None:
                await self.kept
            if self.keeping is not None:
                raise self.keeping

        return Deferred.fromCoroutine(self.flights.many(keys, owner, work, keep))

    def end(self, index: int = 0, error: Optional[Exception] = None) -> None:
        """End a piece of work."""
        source = self.works[index][2]
        if error is None:
            source.callback(None)
        else:
            source.errback(error)

    def begun(self) -> list[tuple[str, tuple[str, ...]]]:
        """In whose name work was begun, and on what."""
        return [(owner, keys) for owner, keys, _ in self.works]

    def test_all_get_the_result(self) -> None:
        """All requests get the values, and know whether they joined."""
        first, second = self.get("a"), self.get("a")
        self.end()
        self.assertEqual(self.successResultOf(first), ({"a": 97}, 0))
        self.assertEqual(self.successResultOf(second), ({"a": 97}, 1))
        self.assertEqual(self.flights.under_way(), set())

    def test_some_joined(self) -> None:
        """Of several keys, those are worked on that are not worked on already."""
        self.get("a", "b")
        second = self.get("b", "c")
        self.assertEqual(self.begun(), [("alice", ("a", "b")), ("alice", ("c",))])
        self.end(), self.end(1)
        values, joined = self.successResultOf(second)
        self.assertEqual((values["b"], values["c"], joined), (98, 99, 1))

    def test_one_leaves(self) -> None:
        """A request that is cancelled ends only its own wait, that of the owner too."""
        first, second = self.get("a"), self.get("a")
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.end()
        self.assertEqual(self.successResultOf(second), ({"a": 97}, 1))

    def test_all_leave(self) -> None:
        """The work is cancelled once no request waits, and what is being cancelled cannot be joined."""
        first, second = self.get("a"), self.get("a")
        first.cancel()
        self.assertEqual(self.flights.under_way(), {"a"})
        second.cancel()
        self.failureResultOf(first, CancelledError)
        self.failureResultOf(second, CancelledError)
        self.assertEqual(self.cancelled, [self.works[0][2]])
        self.assertEqual(self.flights.under_way(), set())

    def test_failure(self) -> None:
        """A failure reaches all requests, and is not kept."""
        first, second = self.get("a"), self.get("a", owner="bob")
        self.end(error=OriginUnreachable("down"))
        self.failureResultOf(first, OriginUnreachable)
        self.failureResultOf(second, OriginUnreachable)
        self.assertEqual(self.flights.under_way(), set())

    def test_failure_of_the_owner(self) -> None:
        """What fails for one caller is tried once more for all others together, then by each credential."""
        asked = [self.get("a", owner=owner) for owner in ("alice", "alice", "bob", "carol", "dave", "dave")]
        self.end(error=OriginRefused(403, (), b"no"))
        for one in asked[:2]:
            self.failureResultOf(one, OriginRefused)
        self.assertEqual(len(self.works), 2)
        owner = self.works[1][0]
        self.end(1, OriginRefused(403, (), b"no"))
        others = [self.works[index][0] for index in range(2, len(self.works))]
        self.assertEqual(sorted([owner, *others]), ["bob", "carol", "dave"])
        for index in range(2, len(self.works)):
            self.end(index)
        failed = [one for one in asked[2:] if isinstance(one.result, tuple) is False]
        for one in failed:
            self.failureResultOf(one, OriginRefused)
        self.assertEqual(len(failed), 2 if owner == "dave" else 1)

    def test_too_long(self) -> None:
        """A list that is too long says nothing of a shorter one that joined it."""
        long, same, short = self.get("a", "b"), self.get("a", "b"), self.get("b")
        self.end(error=StreamTooLong("more"))
        self.failureResultOf(long, StreamTooLong)
        self.failureResultOf(same, StreamTooLong)
        self.end(1)
        self.assertEqual(self.successResultOf(short)[0], {"b": 98})

    def test_joinable_until_kept(self) -> None:
        """A result can be joined until it is kept where the next reader looks."""
        self.kept = Deferred()
        self.get("a")
        self.end()
        self.assertEqual(self.successResultOf(self.get("a")), ({"a": 97}, 1))
        self.kept.callback(None)
        self.assertEqual(self.flights.under_way(), set())

    def test_keeping_fails(self) -> None:
        """A failure to keep the result is logged, and does not concern the requests."""
        self.keeping = OSError("full")
        first = self.get("a")
        self.end()
        self.assertEqual(self.successResultOf(first), ({"a": 97}, 0))
        self.assertEqual(self.flights.under_way(), set())
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
