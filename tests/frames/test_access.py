"""Grants: won, shared, kept, renewed, revoked."""

from __future__ import annotations

from typing import Optional

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.frames.support import ALICE, INSTANCE, JPEG, MALLORY, METADATA, MemoryOrigin, ReadingParts
from twistedproxy.cache.interface import Reading
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.frames.access import CLOCK_SLACK, RENEWAL_PAUSE, Access
from twistedproxy.frames.entries import grant_name, pack_grant
from twistedproxy.frames.grants import Grant, Grants
from twistedproxy.frames.proofs import BY_METADATA
from twistedproxy.origin.errors import AnsweredByCache, OriginBadAnswer, OriginBusy, OriginRefused
from twistedproxy.origin.interface import Caller, Priority
from twistedproxy.streams import BytesStream

TTL = 600.0


@attrs.define(eq=False)
class SlowOrigin(MemoryOrigin):
    """Metadata wait for *answer*. *object*: the stored instance."""

    answer: Optional[Deferred[None]] = None
    object: Optional[BytesStream] = None

    async def stored_instance(self, instance: object, caller: Caller) -> BytesStream:
        if self.object is None:
            raise OriginRefused(404, (), b"no object")
        return self.object

    async def metadata(self, instance: object, caller: Caller) -> InstanceMetadata:
        if self.answer is not None:
            self.asked.append(("metadata", caller.credential))
            await self.answer
            self.asked.pop()
        return await super().metadata(instance, caller)  # type: ignore[arg-type]


class AccessCase(SynchronousTestCase):
    """Access over a cache in memory."""

    def setUp(self) -> None:
        self.origin = SlowOrigin()
        self.parts = ReadingParts(origin=self.origin, ttl=TTL)
        self.clock = self.parts.clock
        self.access = self.worker()

    def worker(self) -> Access:
        """A worker's access: what is in memory is its own, the cache is shared."""
        return Access(self.parts.cache, self.clock.seconds, TTL)

    def reading(self, caller: Caller = ALICE) -> Reading:
        """What the cache holds now."""
        names = Access.entry_names(caller)
        return self.successResultOf(Deferred.fromCoroutine(self.parts.cache.get_many(INSTANCE, names)))

    def ask(self, caller: Caller = ALICE) -> Deferred[Grant]:
        """Ask the origin."""
        return Deferred.fromCoroutine(
            self.access.ask(self.origin, INSTANCE, caller, self.reading(caller))  # type: ignore[arg-type]
        )

    def renew(self, grant: Grant) -> None:
        """Use *grant*."""
        self.access.renew_if_spent(self.origin, INSTANCE, ALICE, grant)  # type: ignore[arg-type]


class PixelTests(AccessCase):
    """Winning a grant where metadata are no proof of a right to pixels."""

    def worker(self) -> Access:
        access = super().worker()
        access.by_pixels = True
        return access

    def test_frame(self) -> None:
        """Metadata say the facts, and a frame proves the right; the next caller's right is proved by a frame alone."""
        self.successResultOf(self.ask())
        self.assertEqual(self.origin.asked, [("metadata", b"alice"), ("frames", (1,))])
        assert self.origin.caller is not None
        self.assertIn((b"Cache-Control", b"no-cache"), self.origin.caller.headers)
        self.origin.asked.clear()
        self.origin.readers.add(MALLORY.credential)
        self.assertEqual(self.successResultOf(self.ask(MALLORY)).metadata, METADATA)
        self.assertEqual(self.origin.asked, [("frames", (1,))])

    def test_metadata_alone(self) -> None:
        """Who is shown metadata and no pixels has no grant, and the refusal of the frame comes back."""
        for status in (401, 403, 404, 500):
            self.origin.failure = OriginRefused(status, (), b"no pixels")
            self.assertEqual(self.failureResultOf(self.ask(), OriginRefused).value.body, b"no pixels")
        self.assertEqual(len(self.access.grants), 0)

    def test_object(self) -> None:
        """The object is as good as a frame, where the store gives none; it is not read. After a frame that is forbidden it is not asked
        for."""
        opened = BytesStream(b"DICM")
        closed: list[bool] = []
        self.patch(opened, "close", lambda: closed.append(True))
        self.origin.object = opened
        self.origin.failure = OriginRefused(406, (), b"no frames here")
        self.successResultOf(self.ask())
        self.assertEqual((closed, len(self.access.grants)), ([True], 1))
        self.origin.failure = OriginRefused(403, (), b"not for you")
        self.failureResultOf(self.ask(), OriginRefused)
        self.assertEqual((closed, len(self.access.grants)), ([True], 0))

    def test_renewed(self) -> None:
        """A grant is renewed by a frame, and ends where that is denied, whatever becomes of the metadata."""
        grant = self.successResultOf(self.ask())
        self.origin.asked.clear()
        self.clock.advance(0.8 * TTL)
        self.renew(grant)
        self.assertEqual(self.origin.asked, [("frames", (1,))])
        renewed = self.access.known(ALICE, INSTANCE)
        assert renewed is not None
        self.assertEqual(renewed.expires, 1.8 * TTL)
        self.clock.advance(0.8 * TTL)
        self.origin.failure = OriginRefused(403, (), b"not for you")
        self.renew(renewed)
        self.assertIsNone(self.access.known(ALICE, INSTANCE))

    def test_what_has_ended(self) -> None:
        """What has ended goes on only if the origin says the same facts again."""
        self.successResultOf(self.ask())
        self.origin.asked.clear()
        reading = attrs.evolve(self.reading(), ended=True)
        asking = self.access.ask(self.origin, INSTANCE, ALICE, reading)  # type: ignore[arg-type]
        self.successResultOf(Deferred.fromCoroutine(asking))
        self.assertEqual(self.origin.asked, [("metadata", b"alice"), ("frames", (1,))])


class AskTests(AccessCase):
    """Winning a grant."""

    def test_a_clock_set_back(self) -> None:
        """A clock that is set back by more than a little ends the grants of a worker; else they would last that longer."""
        now = 1_000_000.0
        self.access.wall_clock = lambda: now
        self.successResultOf(self.ask())
        now -= CLOCK_SLACK
        self.assertIsNotNone(self.access.known(ALICE, INSTANCE))
        now -= TTL
        self.assertIsNone(self.access.known(ALICE, INSTANCE))

    def test_by_a_frame(self) -> None:
        """Where the facts are known and metadata may be large, a frame proves the next caller's right, and nothing else is asked for;
        a store that gives no frames is asked for metadata. One that denies the frame denies."""
        self.origin.metadata_value = attrs.evolve(METADATA, frames=BY_METADATA + 1)
        self.successResultOf(self.ask())
        self.origin.readers.add(MALLORY.credential)
        self.origin.asked.clear()
        grant = self.successResultOf(self.ask(MALLORY))
        self.assertEqual(self.origin.asked, [("frames", (1,))])
        self.assertEqual((grant.metadata.frames, grant.expires), (BY_METADATA + 1, TTL))
        third = Caller(b"third", ((b"Authorization", b"Bearer third"),))
        self.origin.asked.clear()
        self.failureResultOf(self.ask(third), OriginRefused)
        self.assertEqual(self.origin.asked, [("frames", (1,))])
        self.origin.readers.add(third.credential)
        self.origin.failure = OriginRefused(406, (), b"")
        self.assertEqual(self.successResultOf(self.ask(third)).metadata.frames, BY_METADATA + 1)
        self.assertEqual(self.origin.asked_for("metadata"), [third.credential])

    def test_one_request_for_one_credential(self) -> None:
        """Callers of one credential share a request, each with a Deferred of its own; others have theirs."""
        self.origin.answer = Deferred()
        first, second, other = self.ask(), self.ask(), self.ask(MALLORY)
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual(len(self.origin.asked), 2)
        self.origin.answer.callback(None)
        self.assertEqual(self.successResultOf(second).metadata, METADATA)
        self.failureResultOf(other, OriginRefused)

    def test_a_cache_on_the_way(self) -> None:
        """Metadata from a cache on the way are facts, and no proof: that is a frame, for which the origin itself is asked."""
        self.origin.refusal = AnsweredByCache(METADATA)
        self.assertEqual(self.successResultOf(self.ask()).metadata, METADATA)
        self.assertEqual(self.origin.asked, [("metadata", b"alice"), ("frames", (1,))])
        assert self.origin.caller is not None
        self.assertEqual(self.origin.caller.headers, (*ALICE.headers, (b"Cache-Control", b"no-cache")))
        self.assertIsNotNone(self.access.known(ALICE, INSTANCE))

    def test_a_cache_on_the_way_to_who_may_not(self) -> None:
        """Who is given metadata by a cache, and no frame by the origin, has no grant, nor the one from before any longer."""
        grant = self.successResultOf(self.ask())
        self.origin.refusal = AnsweredByCache(METADATA)
        for status in (500, 403):
            self.origin.failure = OriginRefused(status, (), b"no")
            self.failureResultOf(self.ask(), OriginRefused)
            self.assertIs(self.access.known(ALICE, INSTANCE), grant if status == 500 else None)
        self.origin.failure = OriginBadAnswer("no frames here")
        self.failureResultOf(self.ask(), OriginBadAnswer)
        self.assertEqual(len(self.access.grants), 0)

    def test_after_invalidation(self) -> None:
        """Who asks after the instance was forgotten does not share an answer from before."""
        self.origin.answer = Deferred()
        self.ask().addErrback(lambda _: None)
        self.successResultOf(Deferred.fromCoroutine(self.parts.cache.invalidate(INSTANCE.scope)))
        self.ask().addErrback(lambda _: None)
        self.assertEqual(len(self.origin.asked), 2)

    def test_found_by_other_workers(self) -> None:
        """Another worker finds the grant in the cache, with its expiry, until that; nobody else's."""
        self.successResultOf(self.ask())
        self.clock.advance(100)
        grant = self.worker().from_reading(ALICE, INSTANCE, self.reading())
        assert grant is not None
        self.assertEqual((grant.expires, grant.metadata), (TTL, METADATA))
        self.assertIsNone(self.worker().from_reading(MALLORY, INSTANCE, self.reading(MALLORY)))
        self.clock.advance(500)
        self.assertIsNone(self.worker().from_reading(ALICE, INSTANCE, self.reading()))

    def test_ended(self) -> None:
        """A grant that a server keeps beyond its end is none."""
        fence = self.successResultOf(self.ask()).fence
        entries = {grant_name(ALICE): pack_grant(self.clock.seconds())}
        self.successResultOf(Deferred.fromCoroutine(self.parts.cache.put_many(INSTANCE, fence, entries, None)))
        self.assertIsNone(self.worker().from_reading(ALICE, INSTANCE, self.reading()))

    def test_longer_than_allowed(self) -> None:
        """A grant that says that it lasts longer than this worker gives lasts no longer."""
        generous = Access(self.parts.cache, self.clock.seconds, 10 * TTL)
        self.successResultOf(generous.ask(self.origin, INSTANCE, ALICE, self.reading()))  # type: ignore[arg-type]
        grant = self.access.from_reading(ALICE, INSTANCE, self.reading())
        assert grant is not None
        self.assertEqual(grant.expires, TTL)

    def test_denied(self) -> None:
        """A denial ends the grant here and in the cache."""
        self.successResultOf(self.ask())
        self.origin.readers.clear()
        self.failureResultOf(self.ask(), OriginRefused)
        self.assertIsNone(self.access.known(ALICE, INSTANCE))
        self.assertIsNone(self.worker().from_reading(ALICE, INSTANCE, self.reading()))

    def test_transfer_syntax_stays_known(self) -> None:
        """What a frame told is not lost to metadata that don't say it, of whichever caller and worker."""
        self.origin.metadata_value = attrs.evolve(METADATA, transfer_syntax=None)
        grant = self.successResultOf(self.ask())
        self.successResultOf(Deferred.fromCoroutine(self.access.learn_transfer_syntax(INSTANCE, grant, JPEG)))
        self.origin.readers.add(MALLORY.credential)
        self.access = self.worker()
        self.assertEqual(self.successResultOf(self.ask(MALLORY)).metadata.transfer_syntax, JPEG)
        self.assertEqual(self.successResultOf(self.ask()).metadata.transfer_syntax, JPEG)


class RenewalTests(AccessCase):
    """Renewing in the background."""

    def setUp(self) -> None:
        super().setUp()
        self.grant = self.successResultOf(self.ask())
        self.clock.advance(0.8 * TTL)

    def test_renewed(self) -> None:
        """A spent grant is replaced by one that lasts as long again, for other workers too."""
        self.renew(self.grant)
        known = self.access.known(ALICE, INSTANCE)
        assert known is not None
        self.assertEqual(known.expires, 1.8 * TTL)
        found = self.worker().from_reading(ALICE, INSTANCE, self.reading())
        self.assertEqual(found.expires if found else None, 1.8 * TTL)

    def test_by_the_thing_itself(self) -> None:
        """Only an answer that gives the instance renews: its metadata, or a frame where these may be large."""
        self.renew(self.grant)
        self.assertEqual(self.origin.asked[1:], [("metadata", ALICE.credential)])
        self.origin.metadata_value = attrs.evolve(METADATA, frames=BY_METADATA + 1)
        grant = self.successResultOf(self.ask())
        self.origin.asked.clear()
        self.clock.advance(0.8 * TTL)
        self.renew(grant)
        self.assertEqual(self.origin.asked, [("frames", (1,))])
        self.assertEqual(self.origin.priority, Priority.UNKNOWN)  # the whole file is not read for the sake of it
        self.assertGreater(self.grant_end(), grant.expires)

    def test_frame_refused_for_another_reason(self) -> None:
        """A store that gives no single frames may give metadata."""
        self.origin.metadata_value = attrs.evolve(METADATA, frames=BY_METADATA + 1)
        grant = self.successResultOf(self.ask())
        self.clock.advance(0.8 * TTL)
        for failure in (OriginRefused(406, (), b""), OriginRefused(404, (), b""), OriginBadAnswer("a page")):
            self.origin.failure = failure
            self.origin.asked.clear()
            self.renew(grant)
            self.assertEqual(self.origin.asked_for("metadata"), [ALICE.credential])
            grant = self.access.known(ALICE, INSTANCE) or grant
            self.clock.advance(0.8 * TTL)

    def test_denied(self) -> None:
        """A denial ends the grant at once, here and in the cache, by metadata and by a frame."""
        for frames in (1, BY_METADATA + 1):
            self.origin.readers.add(ALICE.credential)
            self.origin.metadata_value = attrs.evolve(METADATA, frames=frames)
            grant = self.successResultOf(self.ask())
            self.clock.advance(0.8 * TTL)
            self.origin.readers.clear()
            self.renew(grant)
            self.assertIsNone(self.access.known(ALICE, INSTANCE))
            self.assertIsNone(self.worker().from_reading(ALICE, INSTANCE, self.reading()))

    def test_denied_meanwhile(self) -> None:
        """What was asked for before a denial, and comes after it, is no grant: not a renewal, not metadata that were asked for or
        passed by."""
        reading = self.reading()
        self.origin.answer = Deferred()
        self.renew(self.grant)
        asked = self.clock.seconds()
        asking = Deferred.fromCoroutine(self.access.ask(self.origin, INSTANCE, ALICE, reading))  # type: ignore[arg-type]
        self.clock.advance(1)
        self.successResultOf(Deferred.fromCoroutine(self.access.revoke(ALICE, INSTANCE)))
        self.clock.advance(1)
        answer, self.origin.answer = self.origin.answer, Deferred()
        later = self.ask()
        answer.callback(None)
        self.successResultOf(asking)
        self.assertNoResult(later)
        later.cancel()
        self.failureResultOf(later, CancelledError)
        self.origin.answer = None
        passing = self.access.record_passing(INSTANCE, ALICE, METADATA, reading, asked + TTL)
        self.successResultOf(Deferred.fromCoroutine(passing))
        self.assertIsNone(self.access.known(ALICE, INSTANCE))
        self.assertIsNone(self.worker().from_reading(ALICE, INSTANCE, self.reading()))
        self.successResultOf(self.ask())
        self.assertIsNotNone(self.access.known(ALICE, INSTANCE), "what is asked for after it is")

    def test_failed(self) -> None:
        """After a failure it is tried again, but not with every request."""
        self.origin.refusal = OriginBusy("later")
        for _ in range(5):
            self.renew(self.grant)
        self.assertEqual(len(self.origin.asked_for("metadata")), 2)  # one won the grant
        self.origin.refusal = None
        self.clock.advance(RENEWAL_PAUSE)
        self.renew(self.grant)
        self.assertEqual(len(self.origin.asked_for("metadata")), 3)

    def grant_end(self) -> float:
        """When the grant that is known ends."""
        known = self.access.known(ALICE, INSTANCE)
        assert known is not None
        return known.expires


class GrantsTests(SynchronousTestCase):
    """What one worker remembers."""

    def test_bounded(self) -> None:
        """The longest unused grant goes first."""
        grants = Grants(2)
        callers = [Caller(name) for name in (b"a", b"b", b"c")]
        for caller in callers[:2]:
            grants.add(caller, INSTANCE, Grant(METADATA, 10.0, None))
        grants.find(callers[0], INSTANCE, 1.0)
        grants.add(callers[2], INSTANCE, Grant(METADATA, 10.0, None))
        left = [caller.credential for caller in callers if grants.find(caller, INSTANCE, 1.0)]
        self.assertEqual((left, len(grants)), ([b"a", b"c"], 2))
        self.assertIsNone(grants.find(callers[0], INSTANCE, 10.0))
        self.assertEqual(len(grants), 1)
