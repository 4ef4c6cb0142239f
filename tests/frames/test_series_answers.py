"""Grants that the metadata of a series prove."""

from __future__ import annotations

import json
from typing import Any, Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.frames.series import SeriesOrigin, slice_of
from tests.frames.support import ALICE, INSTANCE, MALLORY, ReadingParts
from tests.series.support import slice_json
from twistedproxy.cache.interface import Reading
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.frames import series_answers
from twistedproxy.frames.access import Access
from twistedproxy.frames.grants import Grant
from twistedproxy.frames.series_answers import AVOIDED_SECONDS, MAX_ANSWER, SECONDS, SeriesAnswers
from twistedproxy.origin.errors import OriginRefused
from twistedproxy.origin.interface import Caller
from twistedproxy.series.members import StudyParser

TTL = 600.0


class SeriesCase(SynchronousTestCase):
    """A store that shows Alice slices 1 to 9, and Mallory 1 and 2."""

    def setUp(self) -> None:
        self.origin = SeriesOrigin(shown={ALICE.credential: range(1, 10), MALLORY.credential: (1, 2)})
        self.parts = ReadingParts(origin=self.origin, ttl=TTL)
        self.clock = self.parts.clock
        self.access = self.worker()

    def worker(self) -> Access:
        """A worker's access: what is in memory is its own, the cache is shared."""
        access = Access(self.parts.cache, self.clock.seconds, TTL)
        access.series = SeriesAnswers(self.parts.cache, self.clock, self.clock.seconds, TTL)
        return access

    def asking(self, number: int, caller: Caller = ALICE) -> Deferred[Grant]:
        """Ask for a grant for a slice."""

        async def ask() -> Grant:
            instance = slice_of(number)
            reading = await self.parts.cache.get_many(instance, Access.entry_names(caller))
            known = self.access.known(caller, instance) or self.access.from_reading(caller, instance, reading)
            if known is not None and known.fence == reading.fence:
                return known
            return await self.access.ask(self.origin, instance, caller, reading)  # type: ignore[arg-type]

        asking = Deferred.fromCoroutine(ask())
        for _ in range(5):
            self.clock.advance(0)
        return asking

    def ask(self, *numbers: int, caller: Caller = ALICE) -> list[Grant]:
        """The grants for slices, asked for one after the other."""
        return [self.successResultOf(self.asking(number, caller)) for number in numbers]

    def counts(self) -> tuple[int, int]:
        """How often metadata of an instance were asked for, and of the series."""
        counts = len(self.origin.asked_for("metadata")), len(self.origin.asked_for("series"))
        self.origin.asked.clear()
        return counts


class ProofTests(SeriesCase):
    """What the series' answer proves."""

    def test_stack(self) -> None:
        """A stack takes two requests: the first slice's metadata, then the series'."""
        self.ask(1, 1)
        self.assertEqual(self.counts(), (1, 0))
        grants = self.ask(*range(2, 10))
        self.assertEqual(self.counts(), (0, 1))
        self.assertEqual({grant.metadata.rows for grant in grants}, {512})

    def test_facts_alone(self) -> None:
        """Where only pixels prove a right to pixels, it says the facts, and each slice's frame proves the right."""
        self.access.by_pixels = True
        self.ask(1, 2, 3)
        self.assertEqual(self.origin.loaded, [slice_of(number).sop for number in (1, 2, 3)])
        self.assertEqual(self.counts(), (1, 1))
        self.ask(1, 2, caller=MALLORY)
        self.assertEqual(self.counts(), (0, 0), "the facts are known")
        self.origin.forbidden = {slice_of(4).sop}
        self.failureResultOf(self.asking(4), OriginRefused)
        self.counts()
        (grant,) = self.ask(3)
        self.clock.advance(0.8 * TTL)
        self.access.renew_if_spent(self.origin, slice_of(3), ALICE, grant)  # type: ignore[arg-type]
        self.clock.advance(0)
        self.assertEqual((self.counts(), self.origin.loaded[-1]), ((0, 0), slice_of(3).sop))

    def test_only_what_is_named(self) -> None:
        """What the store does not name to a caller it is asked for, and others' answers prove nothing."""
        self.ask(*range(1, 10))
        self.counts()
        self.ask(1, 2, caller=MALLORY)
        self.assertEqual(self.counts(), (1, 1))
        self.origin.forbidden = {slice_of(3).sop}
        self.failureResultOf(self.asking(3, MALLORY), OriginRefused)
        self.assertEqual(self.counts(), (1, 0))

    def test_other_series(self) -> None:
        """An answer that names instances of another series, or some of them twice, proves nothing of these."""
        other = slice_json("1.2.3.3", _0020000E=["1.2.4"])
        self.origin.answer = str([slice_json("1.2.3.2"), slice_json("1.2.3.2"), other]).replace("'", '"').encode()
        self.ask(1, 2, 3)
        self.assertEqual(self.counts(), (3, 1))

    def test_side_by_side(self) -> None:
        """Requests that come together share one answer of the series."""
        self.ask(1)
        self.origin.waiting = Deferred()
        asking = [self.asking(number) for number in range(2, 7)]
        self.origin.waiting.callback(None)
        for _ in range(5):
            self.clock.advance(0)
        for one in asking:
            self.successResultOf(one)
        self.assertEqual(self.counts(), (1, 1))

    def test_ends(self) -> None:
        """It proves for as long as any answer, counted from when the store gave it."""
        self.ask(1, 2)
        self.clock.advance(TTL - 10)
        (late,) = self.ask(3)
        self.assertLessEqual(late.expires, TTL)
        self.counts()
        self.clock.advance(11)
        self.ask(4, 5)
        self.assertEqual(self.counts(), (0, 1))

    def test_other_worker(self) -> None:
        """Another worker finds it in the cache, for the same caller only, and for no longer."""
        self.ask(1, 2)
        self.counts()
        self.clock.advance(100)
        self.access = self.worker()
        grants = self.ask(3, 4)
        self.assertEqual(self.counts(), (0, 0))
        self.assertLessEqual(grants[0].expires, TTL)
        self.ask(3, caller=MALLORY)
        self.assertEqual(self.counts(), (1, 0))

    def test_changed(self) -> None:
        """A change of any instance ends it, and of the study; one of another series does not."""
        self.ask(1, 2)
        for number, scope, asked in (
            (3, Scope(INSTANCE.origin, "", "1.2", "1.2.9"), 0),
            (5, slice_of(9).scope, 1),
            (7, Scope(INSTANCE.origin, "", "1.2"), 1),
        ):
            self.counts()
            self.successResultOf(Deferred.fromCoroutine(self.parts.cache.invalidate(scope)))
            self.ask(number, number + 1)
            self.assertEqual(self.counts()[1], asked, scope)

    def test_changed_meanwhile(self) -> None:
        """An answer that was on its way when the series changed proves nothing to who comes after that."""
        self.ask(1)
        self.origin.waiting = Deferred()
        early = self.asking(2)
        self.successResultOf(Deferred.fromCoroutine(self.parts.cache.invalidate(slice_of(2).scope)))
        late = self.asking(3)
        self.assertEqual(self.counts(), (1, 2))
        self.origin.waiting.callback(None)
        for _ in range(5):
            self.clock.advance(0)
        self.successResultOf(early)
        self.assertEqual(self.successResultOf(late).fence, self.ask(3)[0].fence)

    def test_denied(self) -> None:
        """When the store denies one slice, what it said of the series is no proof any more, for this caller, for any worker."""
        other = self.access
        self.access = self.worker()
        self.ask(1, 2)
        revoking = self.access.revoke(ALICE, slice_of(2))
        self.successResultOf(Deferred.fromCoroutine(revoking))
        other.forget(ALICE, slice_of(2))
        self.counts()
        self.access, denied = self.worker(), self.access
        self.ask(5)  # one that was not there then
        self.assertEqual(self.counts(), (1, 0))
        self.access = denied
        for worker in (self.access, other):
            self.access = worker
            self.ask(7, 8)
            self.assertEqual(self.counts()[1], 0)
            for number in (7, 8):
                self.successResultOf(Deferred.fromCoroutine(worker.revoke(ALICE, slice_of(number))))

    def test_denied_meanwhile(self) -> None:
        """An answer that was under way when something of the series was denied is no proof, here or in the cache."""
        self.ask(1)
        self.origin.waiting = Deferred()
        asking = self.asking(2)
        self.clock.advance(1)
        self.successResultOf(Deferred.fromCoroutine(self.access.revoke(ALICE, slice_of(3))))
        self.origin.waiting.callback(None)
        for _ in range(5):
            self.clock.advance(0)
        self.successResultOf(asking)
        self.assertEqual(self.counts(), (2, 1))
        self.access = self.worker()
        self.ask(4)
        self.assertEqual(self.counts(), (1, 0))

    def test_whole_denied(self) -> None:
        """A series or study that is denied, by a renewal or an answer that passes, takes all proof of it with it."""
        for denied in ("renewal", slice_of(1).of_series, slice_of(1).of_study):
            self.setUp()
            grants = self.ask(1, 2)
            self.clock.advance(TTL * 0.8)
            if isinstance(denied, str):
                self.origin.status = 403
                self.access.renew_if_spent(self.origin, slice_of(2), ALICE, grants[1])  # type: ignore[arg-type]
                for _ in range(5):
                    self.clock.advance(0)
            else:
                self.successResultOf(Deferred.fromCoroutine(self.access.revoke_whole(ALICE, denied)))
            self.clock.advance(1)
            self.counts()
            self.ask(5)
            self.assertEqual(self.counts(), (1, 0) if denied != slice_of(1).of_study else (0, 1), denied)

    def test_time_ended(self) -> None:
        """What has ended in the cache goes on only if the store says the same of it now: an older answer is no help."""
        self.ask(1, 2)
        self.counts()
        reading = self.successResultOf(Deferred.fromCoroutine(self.parts.cache.get_many(slice_of(3), [])))
        asking = self.access.ask(self.origin, slice_of(3), ALICE, Reading(reading.fence, {}, True))  # type: ignore[arg-type]
        self.successResultOf(Deferred.fromCoroutine(asking))
        self.assertEqual(self.counts(), (1, 0))

    def test_renewed(self) -> None:
        """Grants in use are renewed by one answer for all."""
        grants = self.ask(1, 2, 3, 4)
        self.counts()
        self.clock.advance(TTL * 0.8)
        for number, grant in enumerate(grants[1:], 2):
            self.access.renew_if_spent(self.origin, slice_of(number), ALICE, grant)  # type: ignore[arg-type]
        for _ in range(5):
            self.clock.advance(0)
        self.assertEqual(self.counts(), (0, 1))
        renewed = self.access.known(ALICE, slice_of(3))
        assert renewed is not None
        self.assertGreater(renewed.expires, TTL)


class StudyTests(SeriesCase):
    """The metadata of a study that have passed to a caller."""

    def fence(self, instance: Instance) -> bytes:
        reading = self.successResultOf(Deferred.fromCoroutine(self.parts.cache.get_many(instance, [])))
        assert reading.fence is not None
        return reading.fence

    def passing(
        self, caller: Caller = ALICE, change: Optional[Scope] = None, denied: Optional[Instance] = None
    ) -> None:
        """The origin has told *caller* of slices 1 to 3 and of a series 1.2.9; there was a change meanwhile, or something *denied*."""
        study = INSTANCE.of_study
        fence, asked = self.fence(study), self.clock.seconds()
        self.clock.advance(1)
        if change is not None:
            self.successResultOf(Deferred.fromCoroutine(self.parts.cache.invalidate(change)))
        if denied is not None:
            self.successResultOf(Deferred.fromCoroutine(self.access.revoke_whole(caller, denied)))
        parser = StudyParser("1.2")
        slices = [slice_json(slice_of(number).sop, number, number) for number in (1, 2, 3)]
        parser.feed(json.dumps([*slices, slice_json("9.1", _0020000E=["1.2.9"])]).encode())
        assert self.access.series is not None
        recording = self.access.series.record_study(study, caller, parser.close(), fence, asked)
        self.successResultOf(Deferred.fromCoroutine(recording))
        self.counts()

    def other(self) -> Instance:
        """The instance of the other series."""
        return attrs.evolve(INSTANCE, series="1.2.9", sop="9.1")

    def ask_other(self) -> None:
        reading = self.successResultOf(Deferred.fromCoroutine(self.parts.cache.get_many(self.other(), [])))
        asking = self.access.ask(self.origin, self.other(), ALICE, reading)  # type: ignore[arg-type]
        self.successResultOf(Deferred.fromCoroutine(asking))

    def test_proof(self) -> None:
        """They prove the right to all instances that they name, the first one too, for any worker; to no other, and for no one else."""
        self.passing()
        self.ask(1, 2, 3)
        self.ask_other()
        self.assertEqual(self.counts(), (0, 0))
        self.access = self.worker()
        self.ask(3)
        self.assertEqual(self.counts(), (0, 0))
        self.ask(4)
        self.ask(2, caller=MALLORY)
        self.assertEqual(self.counts(), (2, 0))

    def test_ends(self) -> None:
        """They prove it for as long as any answer, from when the store was asked."""
        self.passing()
        self.clock.advance(TTL - 2)
        (grant,) = self.ask(1)
        self.assertEqual((grant.expires, self.counts()), (TTL, (0, 0)))
        self.clock.advance(2)
        self.ask(2)
        self.assertNotEqual(self.counts(), (0, 0))

    def test_changed_meanwhile(self) -> None:
        """A change below the study while the answer was on its way leaves nothing of it."""
        for scope in (
            slice_of(2).scope,
            self.other().scope,
            Scope(INSTANCE.origin, "", "1.2", "1.2.9"),
            Scope(INSTANCE.origin, "", "1.2"),
        ):
            self.setUp()
            self.passing(change=scope)
            self.ask(1)
            self.assertEqual(self.counts(), (1, 0), scope)

    def test_changed(self) -> None:
        """A change afterwards ends it for the series that it touches; one of the whole study for all."""
        self.passing()
        self.successResultOf(Deferred.fromCoroutine(self.parts.cache.invalidate(slice_of(2).scope)))
        self.ask_other()
        self.assertEqual(self.counts(), (0, 0))
        self.ask(1)
        self.assertEqual(self.counts(), (1, 0))
        self.setUp()
        self.passing()
        self.successResultOf(Deferred.fromCoroutine(self.parts.cache.invalidate(Scope(INSTANCE.origin, "", "1.2"))))
        self.ask_other()
        self.ask(1)
        self.assertEqual(self.counts(), (2, 0))

    def test_denied(self) -> None:
        """When the store denies the study, nothing of it is left, here or in the cache; a denied series takes itself alone."""
        for denied, asked in ((INSTANCE.of_study, 1), (self.other().of_series, 0)):
            self.setUp()
            self.passing()
            self.clock.advance(1)
            self.successResultOf(Deferred.fromCoroutine(self.access.revoke_whole(ALICE, denied)))
            here = self.access
            for worker in (here, self.worker()):
                self.access = worker
                self.ask_other()
                self.assertEqual(self.counts()[0], 1, denied)
                self.ask(1 if worker is here else 2)
                self.assertEqual(self.counts(), (asked, 0), denied)

    def test_denied_meanwhile(self) -> None:
        """A study that was denied since it was asked for proves nothing."""
        self.passing(denied=INSTANCE.of_study)
        self.ask(1)
        self.assertEqual(self.counts(), (1, 0))

    def test_many_series(self) -> None:
        """A study of very many series is left alone."""
        self.patch(series_answers, "MAX_SERIES", 1)
        self.passing()
        self.ask(1)
        self.assertEqual(self.counts(), (1, 0))


class NoHelpTests(SeriesCase):
    """Series that are not asked for as a whole."""

    def no_help(self) -> None:
        """The slices are asked for one by one, and the series is asked for once, until its time is over."""
        self.ask(1)
        self.ask(2, 3, 4)
        self.assertEqual(self.counts(), (4, 1))
        self.clock.advance(AVOIDED_SECONDS + 1)
        self.ask(5)
        self.assertEqual(self.counts()[1], 1)

    def test_refused(self) -> None:
        """A store that does not serve it."""
        self.origin.status = 404
        self.no_help()

    def test_no_json(self) -> None:
        """One that answers with something else."""
        self.origin.headers = ((b"Content-Type", b"text/html"),)
        self.no_help()

    def test_cut_off(self) -> None:
        """An answer that is not all there."""
        self.origin.answer = self.origin.metadata_of(ALICE)[:-1]
        self.no_help()

    def test_not_framed(self) -> None:
        """One of which it cannot be known whether it is all there."""
        self.origin.framed = False
        self.no_help()

    def test_old(self) -> None:
        """An answer of a cache on the way, which may have asked for another caller."""
        self.origin.headers = (*self.origin.headers, (b"Age", b"3"))
        self.no_help()

    def test_large(self) -> None:
        """One that says that it is large, or is."""
        self.origin.length = MAX_ANSWER + 1
        self.no_help()
        self.setUp()
        self.patch(series_answers, "MAX_ANSWER", 1000)
        self.no_help()

    def test_large_for_all(self) -> None:
        """A series that is large is so for others too; one that was refused may be shown to them."""
        for length, asked in ((MAX_ANSWER + 1, 0), (None, 1)):
            self.setUp()
            self.origin.length = length
            self.origin.status = 200 if length else 403
            self.ask(1, 2)
            self.counts()
            self.ask(1, 2, caller=MALLORY)
            self.assertEqual(self.counts()[1], asked)

    def test_slow(self) -> None:
        """Who waits too long for it asks for the slice alone."""
        self.ask(1)
        self.origin.waiting = Deferred(lambda _: None)
        asking = self.asking(2)
        self.assertNoResult(asking)
        self.clock.advance(SECONDS)
        self.successResultOf(asking)
        self.assertEqual(self.counts(), (2, 1))
        self.ask(3)
        self.assertEqual(self.counts(), (1, 0))
        self.origin.waiting = None
        self.ask(1, 2, caller=MALLORY)  # who may have waited less
        self.assertEqual(self.counts(), (1, 1))

    def test_cache_gone(self) -> None:
        """Without a cache that tells of changes no answer is used twice."""
        self.ask(1, 2)

        reading = Reading(None, {})  # or a change of the slice waits for the cache
        asking = self.access.ask(self.origin, slice_of(9), ALICE, reading)  # type: ignore[arg-type]
        self.successResultOf(Deferred.fromCoroutine(asking))
        self.assertEqual(self.counts(), (2, 1))

        async def unreachable(*_arguments: Any) -> Reading:
            return Reading(None, {})

        self.patch(self.parts.cache, "get_many", unreachable)
        self.counts()
        self.ask(3, 4)
        self.assertEqual(self.counts(), (2, 0))

    def test_bounded(self) -> None:
        """Of many answers the ones that were used last are held."""
        self.patch(series_answers, "MAX_HELD", 10)
        self.ask(1, 2)
        self.ask(1, 2, caller=MALLORY)
        assert self.access.series is not None
        self.assertEqual([key[0] for key in self.access.series._held], [MALLORY.credential])
