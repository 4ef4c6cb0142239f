"""Following the changes of a store: what is purged, by whom, and what happens when something is lost."""

from __future__ import annotations

import itertools
from typing import Any, Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.cache.interface import CacheUnavailable
from twistedproxy.cache.lease import LEASE_SECONDS
from twistedproxy.cache.memory import MemoryCache
from twistedproxy.dicom.resource import Scope
from twistedproxy.frames.changes import MANY, REFRESH_SECONDS, SECONDS, ChangeFollower
from twistedproxy.frames.grants import Grants
from twistedproxy.frames.invalidation import Invalidation
from twistedproxy.origin.errors import OriginError, OriginUnreachable
from twistedproxy.origin.interface import Changes

STORE = "http://store.test/dicom-web"
ALL = Scope(STORE, "")


def uids(number: int) -> tuple[str, str, str]:
    """Those of an instance."""
    return "1.1", f"1.2.{number}", f"1.3.{number}"


@attrs.define
class Source:
    """A store in memory. *changes*: the UIDs that each is about, None of one that is no instance's; *first*: the number of the first,
    less 1."""

    changes: list[Optional[tuple[str, str, str]]] = attrs.field(factory=list)
    first: int = 0
    page: int = 100
    error: Optional[Exception] = None
    asked: list[Optional[int]] = attrs.field(factory=list)
    gate: Optional[Deferred[None]] = None
    stopped: bool = False

    async def last(self) -> int:
        await self._ask(None)
        return self.first + len(self.changes)

    async def since(self, position: int) -> Changes:
        await self._ask(position)
        page = self.changes[max(0, position - self.first) :][: self.page]
        last = position + len(page) if page else await self._number()
        return Changes([one for one in page if one is not None], last, last == await self._number())

    async def _number(self) -> int:
        return self.first + len(self.changes)

    async def _ask(self, position: Optional[int]) -> None:
        self.asked.append(position)
        if self.gate is not None:
            await self.gate
        if self.error is not None:
            raise self.error

    async def stop(self) -> None:
        self.stopped = True


class Noting(Invalidation):
    """Notes what is purged."""

    purged: list[Scope]

    async def purge(self, scope: Scope, why: str) -> bool:
        assert why == "changes"
        self.purged.append(scope)
        return await super().purge(scope, why)


class FollowerTests(SynchronousTestCase):
    """`ChangeFollower`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.cache = MemoryCache(self.clock, 1 << 20)
        self.source = Source([None] * 7)
        self.purged: list[Scope] = []
        self.events: list[LogEvent] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def follower(self) -> ChangeFollower:
        """One of a worker, not yet started."""
        self.invalidation = Noting(self.cache, Grants(), self.clock)
        self.invalidation.purged = self.purged
        follower = ChangeFollower(self.source, "http://store.test", STORE, self.cache, self.invalidation, self.clock)
        self.addCleanup(self.stop, follower)
        return follower

    def started(self) -> ChangeFollower:
        """One that has begun at the last change, on an empty cache."""
        follower = self.follower()
        follower.start()
        self.turn()
        self.purged.clear()
        self.source.asked.clear()
        return follower

    def stop(self, follower: ChangeFollower) -> None:
        self.successResultOf(Deferred.fromCoroutine(follower.stop()))

    def die(self, follower: ChangeFollower) -> None:
        """End it as SIGKILL does: nothing is given back."""
        follower._looping.stop()
        follower._lease._renewing.stop()

    def turn(self, seconds: float = SECONDS) -> None:
        """Let time pass."""
        for _ in range(round(seconds / SECONDS)):
            self.clock.advance(SECONDS)
            while any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()):
                self.clock.advance(0)

    def scopes(self, *numbers: int) -> list[Scope]:
        return [Scope(STORE, "", *uids(number)) for number in numbers]

    def logged(self, event: str) -> list[LogEvent]:
        return [one for one in self.events if one.get("event") == event]

    def test_begin(self) -> None:
        """It begins at the last change; what a cache may have had from before is out of date as far as is known."""
        self.follower().start()
        self.turn(3)
        self.assertEqual(self.purged, [ALL])
        self.assertEqual(self.source.asked[:3], [None, 7, 7])

    def test_changes(self) -> None:
        """Each instance that is new or was replaced is purged once, at the next look."""
        self.started()
        self.source.changes += [uids(1), None, uids(2)]
        self.turn()
        self.assertEqual(self.purged, self.scopes(1, 2))
        self.source.changes += [uids(1), ("1.1", "1.2", "no-uid"), uids(3)]
        self.turn()
        self.turn(5)
        self.assertEqual(self.purged, self.scopes(1, 2, 1, 3))
        self.assertEqual([one["count"] for one in self.logged("changes_followed")], [2, 3])

    def test_long_list(self) -> None:
        """A long list is read page by page without a pause, and the reactor turns after each instance."""
        self.started()
        self.source.changes += [uids(number) for number in range(1000)]
        before, turns, seen = self.clock.seconds(), iter(range(10_000)), []
        now = [0]

        def tick() -> None:
            now[0] = next(turns)
            if len(self.purged) < 1000:
                self.clock.callLater(0, tick)

        self.clock.callLater(SECONDS, tick)
        self.invalidation.also.append(lambda _: seen.append(now[0]))
        self.clock.advance(SECONDS)
        self.assertGreaterEqual(len(set(seen)), 999, "a turn of the reactor after each")
        self.assertEqual(self.purged, self.scopes(*range(1000)))
        self.assertEqual(self.source.asked, [7 + 100 * page for page in range(10)])
        self.assertEqual(self.clock.seconds(), before + SECONDS)

    def test_many_of_a_series(self) -> None:
        """A series that arrives is purged once for each page, whatever number of instances it has there."""
        self.started()
        arriving = [("1.1", "1.2", f"1.3.{number}") for number in range(150)]
        self.source.changes += [*arriving, uids(1), *arriving[:MANY]]
        self.turn()
        series = Scope(STORE, "", "1.1", "1.2")
        few = [Scope(STORE, "", *each) for each in arriving[:MANY]]
        self.assertEqual(self.purged, [series, series, *self.scopes(1)])
        self.source.changes += arriving[:MANY]
        self.turn()
        self.assertEqual(self.purged[3:], few)

    def test_one_among_workers(self) -> None:
        """Of two workers one asks. If it ends, or dies, the other goes on where it was."""
        for end in (self.stop, self.die):
            self.setUp()
            first, second = self.started(), self.follower()
            second.start()
            self.turn()
            self.assertEqual(len(self.source.asked), 1)
            self.source.changes.append(uids(1))
            self.turn()
            end(first)
            self.source.changes.append(uids(2))
            self.turn(LEASE_SECONDS + 1)
            self.assertEqual(self.purged, self.scopes(1, 2))

    def test_lost_lease(self) -> None:
        """Where the cache lost the lease, as in a failover, and another worker was faster, that one goes on, and it alone: each change
        is purged once. The first follows again when the other has ended."""
        first, second = self.started(), self.follower()
        second.start()
        self.turn()
        lease = first._lease
        self.successResultOf(Deferred.fromCoroutine(self.cache.unclaim(lease.instance, [lease.name], lease.token)))
        second._turn()
        self.turn(5 * SECONDS)
        self.assertEqual((first._leading, second._leading), (False, True))
        self.source.asked.clear()
        self.source.changes += [uids(1), uids(2)]
        self.turn(2 * SECONDS)
        self.assertEqual(self.purged, self.scopes(1, 2))
        self.assertEqual(len(self.source.asked), 2)
        self.stop(second)
        self.source.changes.append(uids(3))
        self.turn()
        self.assertEqual(self.purged, self.scopes(1, 2, 3))

    def test_started_again(self) -> None:
        """With a cache that was kept, it goes on where it ended: what changed meanwhile is purged, and nothing else."""
        follower = self.started()
        self.source.changes.append(uids(1))
        self.turn()
        self.stop(follower)
        self.assertTrue(self.source.stopped)
        self.source.changes += [uids(2), uids(3)]
        self.purged.clear()
        self.follower().start()
        self.turn()
        self.assertEqual(self.purged, self.scopes(2, 3))

    def test_position_kept(self) -> None:
        """Where the cache lost the position, it is there again before long; where it was lost with all else, all is purged."""
        follower = self.started()
        self.successResultOf(Deferred.fromCoroutine(self.cache.invalidate(ALL)))
        self.turn(REFRESH_SECONDS)
        self.stop(follower)
        self.follower().start()
        self.turn()
        self.assertEqual(self.purged, [])
        self.stop(follower)

    def test_reset(self) -> None:
        """Where the store's list is shorter than it was, all of the mount is purged; from there on it is followed as ever."""
        self.started()
        self.source.changes = [uids(1), None]
        self.turn()
        self.assertEqual(self.purged, [ALL])
        self.source.changes.append(uids(2))
        self.turn()
        self.assertEqual(self.purged, [ALL, *self.scopes(2)])
        self.assertEqual(len(self.logged("changes_begin")), 2)

    def test_back_and_forth(self) -> None:
        """A list that says it goes on, and begins anew each time, is read once in a turn."""
        self.started()
        lasts = itertools.cycle((3, 9))

        async def since(position: int) -> Changes:
            await self.source._ask(position)
            assert len(self.source.asked) < 50, "without a pause"
            return Changes([], next(lasts), False)

        self.patch(Source, "since", lambda _source, position: since(position))
        self.turn(2 * SECONDS)
        self.assertEqual(self.source.asked, [7, 3, 9])
        self.assertEqual(self.purged, [ALL, ALL])

    def test_out_of_reach(self) -> None:
        """A store that does not answer is complained of once; once it does, nothing was missed."""
        self.started()
        for error in (OriginUnreachable("connection refused"), OriginError("/changes answered 401")):
            self.source.error = error
            self.turn(20)
        self.source.changes.append(uids(1))
        self.turn()
        self.assertEqual(
            [(one["what"], one["reason"]) for one in self.logged("unavailable")],
            [("the list of changes of http://store.test", "connection refused")],
        )
        self.assertEqual((self.purged, len(self.logged("available"))), ([], 0))
        self.source.error = None
        self.turn()
        self.assertEqual((self.purged, len(self.logged("available"))), (self.scopes(1), 1))

    def test_an_error_of_ours(self) -> None:
        """What should not happen is logged, and ends nothing."""
        self.started()
        self.source.error = ZeroDivisionError("ours")
        self.turn()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.source.error = None
        self.source.changes.append(uids(1))
        self.turn()
        self.assertEqual(self.purged, self.scopes(1))

    def test_not_confirmed(self) -> None:
        """What the cache did not confirm is purged again by whoever goes on, unless it did later."""
        for confirmed_later in (False, True):
            self.setUp()
            follower, invalidation, real = self.started(), self.invalidation, self.cache.invalidate

            async def down(scope: Scope) -> None:
                raise CacheUnavailable("down")

            self.patch(self.cache, "invalidate", down)
            self.source.changes.append(uids(1))
            self.turn()
            self.source.changes.append(None)
            self.turn(3)
            self.assertEqual(self.purged, self.scopes(1))
            self.patch(self.cache, "invalidate", real)
            if confirmed_later:
                self.turn(2)
            self.stop(follower)
            invalidation.stop()
            self.follower().start()
            self.turn()
            self.assertEqual(self.purged, self.scopes(1) if confirmed_later else self.scopes(1, 1))

    def test_stopped(self) -> None:
        """One that is stopped while it waits for the store ends at once."""
        follower = self.started()
        self.source.gate = Deferred()
        self.turn()
        self.stop(follower)
        self.assertEqual(self.clock.getDelayedCalls(), [])
