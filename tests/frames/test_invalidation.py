"""Invalidating scopes, also while the cache cannot be told."""

from __future__ import annotations

from typing import Optional

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.frames.support import ALICE, INSTANCE, METADATA
from twistedproxy.cache.interface import CacheUnavailable
from twistedproxy.cache.memory import MemoryCache
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.frames.grants import Grant, Grants
from twistedproxy.frames.invalidation import MAX_PENDING, RETRY_SECONDS, Invalidation, Siblings, covers

ROOT = Scope(INSTANCE.origin, INSTANCE.root)
STUDY = attrs.evolve(ROOT, study=INSTANCE.study)
SERIES = attrs.evolve(STUDY, series=INSTANCE.series)
OTHER = Instance(INSTANCE.origin, "", "9.2", "9.2.3", "9.2.3.4")


class Told(MemoryCache):
    """A cache that notes what it is asked to invalidate, where it is `up`. *gate*: what telling it waits for."""

    def __init__(self) -> None:
        super().__init__(Clock(), 0)
        self.up = True
        self.told: list[Scope] = []
        self.gate: Optional[Deferred[None]] = None

    async def invalidate(self, scope: Scope) -> None:
        if self.gate is not None:
            await self.gate
        if not self.up:
            raise CacheUnavailable("down")
        self.told.append(scope)


class CoversTests(SynchronousTestCase):
    """`covers`."""

    def test_levels(self) -> None:
        """A scope covers what lies in it, at each level, and nothing else."""
        for scope in (ROOT, STUDY, SERIES, INSTANCE.scope):
            self.assertTrue(covers(scope, INSTANCE))
        for origin, root in (
            ("http://store.test", "/dicom-web"),
            ("http://store.test", ""),
            (INSTANCE.origin, "/stowrs"),
        ):
            self.assertTrue(covers(Scope(origin, root, INSTANCE.study), INSTANCE), "another path of the same store")
        for scope in (
            Scope("http://other", ""),
            Scope("http://store.test:8042/dicom-web", ""),
            Scope("file:/store.test/dicom-web", ""),
            attrs.evolve(STUDY, study="1.3"),
            attrs.evolve(SERIES, series="1.3"),
            attrs.evolve(INSTANCE.scope, sop="1.3"),
        ):
            self.assertFalse(covers(scope, INSTANCE))


class ForgettingTests(SynchronousTestCase):
    """`Invalidation`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.cache = Told()
        self.grants = Grants()
        self.invalidation = Invalidation(self.cache, self.grants, self.clock)

    def invalidate(self, scope: Scope) -> Deferred[None]:
        return Deferred.fromCoroutine(self.invalidation.invalidate(scope))

    def test_told(self) -> None:
        """The cache is told, and the grants below the scope are gone, no others."""
        for instance in (INSTANCE, OTHER):
            self.grants.add(ALICE, instance, Grant(METADATA, 1e9, None))
        self.successResultOf(self.invalidate(STUDY))
        self.assertEqual([STUDY], self.cache.told)
        self.assertEqual(1, len(self.grants))
        self.assertFalse(self.invalidation.is_pending(INSTANCE))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_waits_for_the_cache(self) -> None:
        """It is not done before the cache was told."""
        self.cache.gate = Deferred()
        invalidation = self.invalidate(STUDY)
        self.assertNoResult(invalidation)
        self.cache.gate.callback(None)
        self.successResultOf(invalidation)

    def test_cache_down(self) -> None:
        """While the cache cannot be told the scope is pending, and it is told as soon as it can be."""
        self.cache.up = False
        self.successResultOf(self.invalidate(STUDY))
        self.clock.pump([RETRY_SECONDS] * 5)
        self.assertTrue(self.invalidation.is_pending(INSTANCE))
        self.assertFalse(self.invalidation.is_pending(OTHER))
        self.cache.up = True
        self.clock.advance(RETRY_SECONDS)
        self.assertEqual([STUDY], self.cache.told)
        self.assertFalse(self.invalidation.is_pending(INSTANCE))
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_again(self) -> None:
        """After it recovered it can fail and recover again."""
        for _ in range(2):
            self.cache.up = False
            self.successResultOf(self.invalidate(STUDY))
            self.cache.up = True
            self.clock.advance(RETRY_SECONDS)
            self.assertFalse(self.invalidation.is_pending(INSTANCE))

    def test_caller_gives_up(self) -> None:
        """A caller that leaves while the cache is being told does not keep it, and other workers, from being told."""
        heard: list[tuple[Scope, bool]] = []

        class Heard(Siblings):
            async def invalidate(self, scope: Scope, cache_invalidated: bool) -> None:
                heard.append((scope, cache_invalidated))

        self.invalidation = Invalidation(self.cache, self.grants, self.clock, Heard())
        self.cache.gate = Deferred()
        invalidation = self.invalidate(STUDY)
        invalidation.cancel()
        self.failureResultOf(invalidation, CancelledError)
        self.assertTrue(self.invalidation.is_pending(INSTANCE))
        self.assertEqual([(STUDY, False)], heard)
        self.cache.gate = None
        self.clock.advance(RETRY_SECONDS)
        self.assertEqual([STUDY], self.cache.told)

    def test_what_lies_around(self) -> None:
        """What is kept of a series and a study as a whole is pending with anything in it, and with nothing else."""
        self.cache.up = False
        around = (INSTANCE.of_series, INSTANCE.of_study)
        for scope in (INSTANCE.scope, SERIES, STUDY, ROOT):
            self.invalidation.pending = {scope: None}
            for place in around:
                self.assertTrue(self.invalidation.is_pending(place), (scope, place))
        for scope in (attrs.evolve(STUDY, study="1.3"), Scope("http://other", "", *INSTANCE.uids)):
            self.invalidation.pending = {scope: None}
            for place in around:
                self.assertFalse(self.invalidation.is_pending(place), (scope, place))
        self.invalidation.pending = {attrs.evolve(SERIES, series="1.3"): None}
        self.assertEqual([self.invalidation.is_pending(place) for place in around], [False, True])

    def test_bounded(self) -> None:
        """Of very many pending scopes all below their root is pending instead."""
        self.cache.up = False
        for number in range(MAX_PENDING + 1):
            self.successResultOf(self.invalidate(attrs.evolve(ROOT, study=f"1.{number + 3}")))
        self.assertTrue(self.invalidation.is_pending(INSTANCE))
        self.cache.up = True
        self.clock.advance(RETRY_SECONDS)
        self.assertEqual([ROOT], self.cache.told)

    def test_stopped(self) -> None:
        """Once stopped it tells no more, whatever it waited for, and leaves no timer."""
        self.cache.up = False
        for gate in (None, Deferred[None]()):
            self.successResultOf(self.invalidate(STUDY))
            self.cache.gate = gate
            if gate is not None:
                self.clock.advance(RETRY_SECONDS)
            self.invalidation.stop()
            self.assertEqual([], self.clock.getDelayedCalls())
