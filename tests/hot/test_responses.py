"""What hot responses keep, for how long, and to whom they give it."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence
from typing import Optional

import attrs
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.frames.support import ALICE, INSTANCE, MALLORY, METADATA
from twistedproxy.cache.memory import MemoryCache
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.frames.access import Access
from twistedproxy.frames.grants import Grant
from twistedproxy.hot.responses import (
    CHECK_SECONDS,
    MAX_ANSWER,
    OVERHEAD,
    SHARE,
    TAKEN_BACK_SECONDS,
    HotAnswer,
    HotResponses,
    Key,
)
from twistedproxy.origin.interface import Caller

FENCE = b"fence one"
OTHER = Instance(INSTANCE.origin, "", "1.2", "1.2.3", "1.2.3.5")
TTL = 600.0
BEGAN = 1024.0  # the wall clock is that far before the other one
LONG = 3600.0  # seconds; longer than all else here


def key(number: int = 1) -> Key:
    """The key of one answer."""
    return b"/frames/%06d" % number, b"*/*", b""


@attrs.frozen
class Made:
    """What an answer was made of."""

    fence: bytes
    prefetched: Sequence[int]
    expires: float


class HotCase(SynchronousTestCase):
    """Hot responses of a worker that knows the fence of `INSTANCE`, and a grant of Alice's for it."""

    max_bytes = 1 << 20

    def setUp(self) -> None:
        self.clock = Clock()
        self.access = Access(MemoryCache(Clock(), 0), self.wall, TTL)
        self.hot = HotResponses(self.max_bytes, self.access, self.clock.seconds)
        self.grant()
        self.check()

    def wall(self) -> float:
        """Seconds since the epoch."""
        return BEGAN + self.clock.seconds()

    def grant(
        self, caller: Caller = ALICE, instance: Instance = INSTANCE, seconds: float = TTL, fence: bytes = FENCE
    ) -> None:
        """Give *caller* a grant that an answer was given by."""
        self.access.grants.add(caller, instance, Grant(METADATA, self.wall() + seconds, fence))
        self.access.grants.use(caller, instance)

    def check(self, fence: Optional[bytes] = FENCE, instance: Instance = INSTANCE) -> None:
        """The cache is asked and answers at once."""
        self.hot.checked(instance, fence, self.hot.ticket())

    def keep(
        self,
        number: int = 1,
        body: bytes = b"body",
        fence: bytes = FENCE,
        instance: Instance = INSTANCE,
        seconds: float = LONG,
        prefetched: Sequence[int] = (),
    ) -> None:
        """An answer of the ordinary way comes by, whose source ends in *seconds* by the wall clock."""
        source = Made(fence, prefetched, self.wall() + seconds)
        self.hot.keep(key(number), instance, source, "frames", b'"tag"', b"Fields: 1\r\n\r\n", body)

    def find(self, number: int = 1, caller: Caller = ALICE) -> Optional[HotAnswer]:
        """The answer as a request would get it."""
        return self.hot.find(key(number), caller)

    def found(self, number: int = 1, caller: Caller = ALICE) -> bool:
        """Whether there is one."""
        return self.find(number, caller) is not None


class GrantTests(HotCase):
    """Nobody gets bytes without a grant for them."""

    def setUp(self) -> None:
        super().setUp()
        self.keep()

    def test_given(self) -> None:
        """Who has a grant gets what was kept; another resource, form or page's origin is another answer."""
        answer = self.find()
        assert answer is not None
        self.assertEqual((b"body", b"Fields: 1\r\n\r\n", "frames"), (answer.body, answer.head, answer.route))
        for other in [(b"/", *key()[1:]), (key()[0], b"", b""), (key()[0], b"*/*", b"https://a.test")]:
            self.assertIsNone(self.hot.find(other, ALICE))

    def test_no_grant(self) -> None:
        """Who has none, or one for another instance, gets nothing."""
        self.assertFalse(self.found(caller=MALLORY))
        self.grant(MALLORY, OTHER)
        self.assertFalse(self.found(caller=MALLORY))

    def test_not_used(self) -> None:
        """The first answer by a grant is not given here: it is an event of the audit trail."""
        self.access.grants.add(MALLORY, INSTANCE, Grant(METADATA, self.wall() + TTL, FENCE))
        self.assertFalse(self.found(caller=MALLORY))
        self.access.grants.use(MALLORY, INSTANCE)
        self.assertTrue(self.found(caller=MALLORY))

    def test_ended(self) -> None:
        """The very first request after a grant's end gets nothing."""
        self.access.ttl = 1.0  # so that it is not mostly spent before
        self.grant(seconds=2.0)
        self.clock.advance(1.7)
        self.assertTrue(self.found())
        self.clock.advance(0.3)
        self.assertFalse(self.found())

    def test_spent(self) -> None:
        """A grant that ought to be renewed takes its caller the ordinary way, where that is done."""
        self.grant(seconds=TTL * 0.26)
        self.assertTrue(self.found())
        self.grant(seconds=TTL * 0.24)
        self.assertFalse(self.found())

    def test_other_fence(self) -> None:
        """A grant that was won before the instance was forgotten is worth nothing."""
        self.grant(fence=b"fence two")
        self.assertFalse(self.found())

    def test_revoked(self) -> None:
        """Whom the origin denies gets nothing more."""
        self.access.grants.revoke(ALICE, INSTANCE)
        self.assertFalse(self.found())


class ForgettingTests(HotCase):
    """An answer goes with its instance."""

    def setUp(self) -> None:
        super().setUp()
        self.grant(instance=OTHER)
        self.check(instance=OTHER)
        self.keep()
        self.keep(2, instance=OTHER)

    def test_scopes(self) -> None:
        """Invalidating an instance, its series, study or root drops its answers, and no others."""
        origin, root, study, series, sop = INSTANCE.origin, INSTANCE.root, INSTANCE.study, INSTANCE.series, INSTANCE.sop
        for scope, others in [
            (Scope(origin, root, study, series, sop), True),
            (Scope(origin, root, study, series), False),
            (Scope(origin, root, study), False),
            (Scope(origin, root), False),
            (Scope(origin, root, "9"), True),
        ]:
            self.check()
            self.check(instance=OTHER)
            self.keep()
            self.keep(2, instance=OTHER)
            self.hot.invalidate(scope)
            self.assertEqual((scope.study == "9", others), (self.found(), self.found(2)))

    def test_memory_comes_back(self) -> None:
        """What forgotten answers took is free at once, even if no other ever comes."""
        self.hot.invalidate(INSTANCE.scope)
        self.assertEqual(1, len(self.hot))
        self.hot.invalidate(OTHER.scope)
        self.assertEqual((0, 0), (len(self.hot), self.hot.used))

    def test_forgotten_elsewhere(self) -> None:
        """Another fence in the cache ends all answers of the instance: somebody else has forgotten it."""
        self.check(b"fence two")
        self.grant(fence=b"fence two")
        self.assertFalse(self.found())
        self.check()
        self.grant()
        self.assertFalse(self.found())
        self.assertTrue(self.found(2))

    def test_felt_in_time(self) -> None:
        """What another host forgets is felt within five seconds: then the cache must have been asked again."""
        self.assertLessEqual(CHECK_SECONDS, 5.0)
        self.clock.advance(CHECK_SECONDS)
        self.assertTrue(self.found())
        self.clock.advance(0.01)
        self.assertFalse(self.found())
        self.check()
        self.assertTrue(self.found())

    def test_as_old_as_the_question(self) -> None:
        """A slow answer of the cache tells how things were when it was asked."""
        ticket = self.hot.ticket()
        self.clock.advance(1.5)
        self.hot.checked(INSTANCE, FENCE, ticket)
        self.clock.advance(0.75)
        self.assertFalse(self.found())

    def test_late_question_counts(self) -> None:
        """An answer that overtook a younger one takes nothing from what is known."""
        ticket = self.hot.ticket()
        self.clock.advance(1.5)
        self.check()
        self.hot.checked(INSTANCE, FENCE, ticket)
        self.clock.advance(1.5)
        self.assertTrue(self.found())

    def test_no_answer(self) -> None:
        """A cache that does not answer prolongs nothing."""
        self.clock.advance(1.5)
        self.check(None)
        self.clock.advance(1.5)
        self.assertFalse(self.found())

    def test_late_reader(self) -> None:
        """Who asked the cache before the instance was forgotten brings nothing back."""
        ticket = self.hot.ticket()
        self.hot.invalidate(INSTANCE.scope)
        self.hot.checked(INSTANCE, FENCE, ticket)
        self.keep()
        self.assertFalse(self.found())

    def test_late_keeper(self) -> None:
        """An answer that was read under an ended fence is not kept."""
        self.check(b"fence two")
        self.grant(fence=b"fence two")
        self.keep()
        self.assertFalse(self.found())
        self.keep(fence=b"fence two")
        self.assertTrue(self.found())


class ExpiryTests(HotCase):
    """An answer ends when it was told to."""

    def test_end(self) -> None:
        """It is given up to its end, and no hit prolongs it."""
        self.keep(seconds=3.0)
        self.clock.advance(1.5)
        self.assertTrue(self.found())
        self.check()
        self.clock.advance(1.4)
        self.assertTrue(self.found())
        self.clock.advance(0.1)
        self.assertFalse(self.found())
        self.assertEqual((0, 0), (len(self.hot), self.hot.used))

    def test_ended_already(self) -> None:
        """What has come to its end, by the clock of who wrote it, is not kept."""
        for seconds in (0.0, -5.0):
            self.keep(seconds=seconds)
            self.assertEqual((0, 0), (len(self.hot), self.hot.used))

    def test_without_end(self) -> None:
        """What never ends in the cache stays."""
        self.keep(seconds=math.inf)
        self.clock.advance(1e9)
        self.grant()
        self.check()
        self.assertTrue(self.found())

    def test_may_be_taken_back(self) -> None:
        """Frames that a load may yet take back are asked for again in time, or before, where they end before."""
        self.keep(1, prefetched=[1])
        self.keep(2, seconds=3.0, prefetched=[1])
        self.clock.advance(2.75)
        self.check()
        self.assertTrue(self.found(2))
        self.clock.advance(0.25)
        self.assertFalse(self.found(2))
        self.clock.advance(TAKEN_BACK_SECONDS - 3.25)
        self.check()
        self.assertTrue(self.found(1))
        self.clock.advance(0.25)
        self.assertFalse(self.found(1))

    def test_clock_set_back(self) -> None:
        """Where the clock is set back, nothing lasts longer for it: not an answer, and not what is known of a fence."""
        self.clock.rightNow = 100.0
        self.check()
        self.keep(1)
        self.clock.rightNow = 50.0
        self.keep(2)
        self.assertEqual((False, False), (self.found(1), self.found(2)))
        self.check()
        self.assertEqual((False, True), (self.found(1), self.found(2)))
        self.assertEqual(1, len(self.hot))

    def test_kept_again(self) -> None:
        """Read anew, it lasts anew."""
        self.keep(seconds=2.0)
        self.clock.advance(1.0)
        self.keep(seconds=2.0)
        self.check()
        self.clock.advance(1.5)
        self.assertTrue(self.found())


class BoundTests(HotCase):
    """The bytes that are kept are bounded."""

    max_bytes = 160_000

    def test_least_recently_used(self) -> None:
        """When there is no more room, what was not used for longest goes."""
        body = b"x" * 4000
        self.keep(1, body)
        self.keep(2, body)
        number = 2
        while len(self.hot) == number:
            self.assertTrue(self.found(1))
            number += 1
            self.keep(number, body)
        self.assertFalse(self.found(2))
        self.assertTrue(self.found(1))
        self.assertTrue(self.found(number))

    def test_bytes(self) -> None:
        """Bodies, heads, keys and bookkeeping together stay below the bound, whatever their sizes."""
        sizes = [0, 1, 100, 5000, 9000]
        for number in range(2000):
            self.keep(number, bytes(sizes[number % len(sizes)]))
            self.assertLessEqual(self.hot.used, self.max_bytes)
        held = [self.hot._answers[one] for one in self.hot._answers]
        counted = sum(len(one.body) + len(one.head) + len(one.etag) + sum(map(len, key())) + OVERHEAD for one in held)
        self.assertEqual(counted, self.hot.used)

    def test_small_ones(self) -> None:
        """Answers without a body are not free."""
        for number in range(2000):
            self.keep(number, b"")
        self.assertLess(len(self.hot), self.max_bytes // OVERHEAD)

    def test_kept_twice(self) -> None:
        """The same answer again takes the place of the first, and is counted once."""
        self.keep(1, b"x" * 100)
        used = self.hot.used
        for _again in range(1000):
            self.keep(1, b"y" * 100)
        answer = self.find()
        assert answer is not None
        self.assertEqual((used, b"y" * 100), (self.hot.used, answer.body))
        self.keep(1, b"z")
        self.assertEqual(used - 99, self.hot.used)

    def test_too_large(self) -> None:
        """An answer that would push out many is not kept, and pushes out none."""
        self.keep(1)
        self.keep(2, bytes(self.max_bytes // SHARE))
        self.assertEqual((True, False), (self.found(1), self.found(2)))

    def test_larger_than_a_piece(self) -> None:
        """What is written in pieces is not kept, however much room there is."""
        self.hot = HotResponses(1 << 30, self.access, self.clock.seconds)
        self.check()
        self.keep(1, bytes(MAX_ANSWER))
        self.keep(2, bytes(MAX_ANSWER // 2))
        self.assertEqual((False, True), (self.found(1), self.found(2)))

    def test_no_room(self) -> None:
        """Nothing is kept where nothing may be."""
        self.hot = HotResponses(0, self.access, self.clock.seconds)
        self.check()
        self.keep()
        self.assertEqual((False, 0, 0), (self.found(), self.hot.used, len(self.hot._known)))

    def test_instances(self) -> None:
        """The instances that are known are bounded; the one that was read longest ago goes, with its answers."""
        self.keep()
        first = [Instance("o", "", "1", "2", f"3.{number}") for number in range(100)]
        for instance in first:
            self.check(instance=instance)
            self.check()
        self.assertTrue(self.found())
        self.assertLess(len(self.hot._known), len(first))
        for instance in first:
            self.check(instance=instance)
        self.assertEqual((False, 0, 0), (self.found(), len(self.hot), self.hot.used))

    def test_bookkeeping_is_counted(self) -> None:
        """What many small answers really take is no more than what is counted, and not much less."""
        hot = HotResponses(64 << 20, self.access, self.clock.seconds)
        hot.checked(INSTANCE, FENCE, hot.ticket())
        source = Made(FENCE, (), self.wall() + LONG)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before, _ = tracemalloc.get_traced_memory()
        for number in range(20_000):
            whole = (b"/frames/%d" % number, b"multipart/related; n=%d" % number, b"")
            tag, head = b'"%d"' % number, b"Field: %d\r\n\r\n" % number
            hot.keep(whole, INSTANCE, source, "frames", tag, head, b"%d" % number)
        taken = tracemalloc.get_traced_memory()[0] - before
        self.assertEqual(20_000, len(hot))
        self.assertLess(taken, hot.used)
        self.assertGreater(taken, hot.used * 0.6)
