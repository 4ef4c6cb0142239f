"""Frames that are loaded before they are asked for, in queues."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

import attrs
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.frames.support import INSTANCE
from tests.prefetch.support import MIB, HeldOrigin, PrefetchCase
from twistedproxy.frames.entries import frame_name, was_prefetched
from twistedproxy.frames.read_through import FrameRequest
from twistedproxy.origin.errors import OriginError, OriginRefused
from twistedproxy.origin.interface import Caller, Priority
from twistedproxy.prefetch.ahead import frame_queues
from twistedproxy.prefetch.ahead.frame_queues import FrameQueue, FrameQueues
from twistedproxy.prefetch.jobs import Result
from twistedproxy.streams import StreamTooLong


@attrs.define(eq=False)
class ReadyOrigin(HeldOrigin):
    """Four frames a request. *readied*: who asked whether there is a slot."""

    per_request: int = 4
    readied: list[bytes] = attrs.Factory(list)

    async def ready(self, caller: Caller) -> None:
        self.readied.append(caller.credential)


class QueueTests(SynchronousTestCase):
    """One queue."""

    def queue(self) -> FrameQueue:
        return FrameQueue((b"alice", INSTANCE), b"fence")

    def test_new_ones_first(self) -> None:
        """What is newly wanted comes first, in its order, and nothing twice."""
        queue = self.queue()
        self.assertEqual((queue.put([1, 2, 3]), queue.put([8, 2, 9])), (3, 2))
        self.assertEqual((queue.take(3), queue.take(9), len(queue)), ([8, 9, 1], [2, 3], 0))
        self.assertEqual(queue.put([1, 9]), 0)

    def test_bounded(self) -> None:
        """Of too many, those that were wanted first go, and may be wanted again."""
        self.patch(frame_queues, "MAX_WAITING", 3)
        queue = self.queue()
        queue.put([1, 2, 3])
        queue.put([4, 5])
        self.assertEqual(queue.put([2, 3]), 2)
        self.assertEqual(queue.take(9), [2, 3, 4])

    def test_missed(self) -> None:
        """Who asks the origin for what was thought to be cached shows that it was lost; what waits still waits."""
        queue = self.queue()
        queue.put([1, 2, 3])
        queue.take(2)
        queue.loading.discard(1)
        queue.missed([2, 3], 0.0)  # one is being loaded, one waits: that says nothing
        self.assertEqual(queue.known, {1, 2, 3})
        queue.missed([7, 1], 0.0)
        self.assertEqual(queue.known, {1, 2, 3, 7})
        queue.loading.clear()
        queue.missed([2], frame_queues.LOST_SECONDS - 1)
        self.assertEqual(queue.known, {1, 2, 3, 7}, "so soon again")
        queue.missed([2], frame_queues.LOST_SECONDS)
        self.assertEqual(queue.known, {2, 3})


class QueuesTests(PrefetchCase):
    """All of them."""

    def setUp(self) -> None:
        super().setUp()
        self.origin = self.ready_origin = ReadyOrigin()
        self.made = self.worker(prefetch=False)
        parts = (self.cache, self.made.reader, self.made.jobs, self.made.metrics, self.clock)
        self.queues = FrameQueues(*parts)
        for name in ("alice", "bob", "carol"):
            self.ask(self.made, 9_999, caller=name)
        self.origin.asked.clear()

    def add(
        self, numbers: Sequence[int], caller: str = "alice", size: int = 100, looked_at: bool = True
    ) -> FrameQueue:  # fmt: skip
        wanted = self.wanted(1, caller=caller)
        queue = self.queues.of(wanted, self.fence(), size)
        self.queues.add(queue, wanted, numbers, looked_at)
        return queue

    def loaded(self) -> set[int]:
        """The frames in the cache, but the one that gave the grants."""
        return self.cached() - {9_999}

    def hold(self) -> None:
        """Have the origin wait from now on."""
        self.origin.held = []

    def release(self) -> None:
        """Answer all that waits, and all that follows."""
        while self.origin.held:
            self.origin.release()
            self.clock.advance(0)

    def test_loaded(self) -> None:
        """All are loaded, some in a request, as display loads are, in the caller's name, and count as loaded ahead."""
        self.add(range(5, 15))
        self.assertEqual(self.loaded(), set(range(5, 15)))
        self.assertEqual([numbers for _, numbers in self.origin.asked], [(5, 6, 7, 8), (9, 10, 11, 12), (13, 14)])
        self.assertEqual({priority for priority, _ in self.origin.asked}, {Priority.DISPLAY})
        self.assertEqual(self.ready_origin.readied, [b"alice"] * 3)
        entry = self.now(self.cache.get_many(INSTANCE, [frame_name(5)])).entries[frame_name(5)]
        self.assertTrue(was_prefetched(entry))
        (job,) = self.ended(self.made)
        self.assertEqual((job["kind"], job["result"], job["frames"], job["total"]), ("ahead", "done", 10, 10))

    def test_not_again(self) -> None:
        """What is cached is not asked for; what this worker loaded is not looked for in the cache again."""
        self.ask(self.made, 5, 6)
        self.origin.asked.clear()
        self.add(range(5, 9))
        self.assertEqual(self.origin.asked, [(Priority.DISPLAY, (7, 8))])

        async def never(*_arguments: object) -> set[bytes]:
            raise AssertionError("the cache was asked")

        self.patch(self.cache, "present", never)
        self.add(range(5, 9))
        self.assertEqual(len(self.origin.asked), 1)

    def test_claimed(self) -> None:
        """What another worker has claimed is left to it; own claims are given back."""
        names = [frame_name(number) for number in (2, 3)]
        self.now(self.cache.claim(INSTANCE, names, b"other", 5.0))
        self.add(range(1, 5))
        self.assertEqual(self.origin.numbers(Priority.DISPLAY), [1, 4])
        self.assertEqual(self.count(self.made, "prefetch_claims_lost"), 2)
        mine = [frame_name(number) for number in (1, 4)]
        self.assertEqual(self.now(self.cache.claim(INSTANCE, mine, b"third", 5.0)), {*mine})

    def test_side_by_side(self) -> None:
        """So many requests at once, and more as they end; what is newly wanted goes before what waits."""
        self.patch(frame_queues, "SIDE_BY_SIDE", 2)
        self.hold()
        self.add(range(1, 17))
        self.add([101, 102])
        self.assertEqual([numbers[0] for _, numbers in self.origin.asked], [1, 5])
        self.origin.release(1)
        self.assertEqual([numbers for _, numbers in self.origin.asked][2:], [(101, 102, 9, 10)])
        self.release()
        self.assertEqual(self.loaded(), {*range(1, 17), 101, 102})
        (job,) = self.ended(self.made)
        self.assertEqual((job["frames"], job["total"]), (18, 18))

    def test_not_looked_at(self) -> None:
        """Of an instance that the caller does not look at yet, fewer at once; as many as of others once they do, and fewer again."""
        self.patch(frame_queues, "SIDE_BY_SIDE", 3)
        self.patch(frame_queues, "IN_THE_BACKGROUND", 1)
        self.hold()
        self.add(range(1, 41), looked_at=False)
        self.assertEqual(len(self.origin.asked), 1)
        self.add([101])
        self.assertEqual(len(self.origin.asked), 3)
        self.add([102], looked_at=False)
        self.origin.release(2)
        self.assertEqual(len(self.origin.asked), 3)
        self.release()
        self.assertEqual(self.loaded(), {*range(1, 41), 101, 102})

    def test_fair(self) -> None:
        """Callers have turns, and what all have under way is bounded in bytes."""
        self.patch(frame_queues, "BYTES_UNDER_WAY", 4 * MIB)
        self.hold()
        self.add(range(1, 41), size=MIB)
        self.add(range(101, 109), "bob", MIB)
        self.add(range(201, 209), "carol", MIB)
        self.assertEqual(self.origin.numbers(Priority.DISPLAY), [1, 2, 3, 4])
        for _ in range(4):
            self.origin.release(1)
        self.assertEqual(self.origin.numbers(Priority.DISPLAY)[::4], [1, 5, 101, 201, 9])
        self.release()
        self.assertEqual(len(self.loaded()), 56)
        self.assertEqual(len(self.ended(self.made)), 3)

    def test_another_store(self) -> None:
        """A store that does not answer keeps nothing from being loaded from another."""
        self.patch(frame_queues, "BYTES_UNDER_WAY", 4 * MIB)
        self.hold()
        self.add(range(1, 41), size=MIB)
        other = ReadyOrigin(url="http://other.test")
        instance = attrs.evolve(INSTANCE, origin=other.url)
        wanted = FrameRequest(other, instance, (1,), self.caller())  # type: ignore[arg-type]
        fence = self.now(self.cache.get_many(instance, [])).fence
        self.queues.add(self.queues.of(wanted, fence, MIB), wanted, range(1, 9))
        self.assertEqual(other.numbers(Priority.DISPLAY), [*range(1, 9)])
        self.assertEqual(self.origin.numbers(Priority.DISPLAY), [1, 2, 3, 4])
        self.release()
        self.assertEqual(len(self.loaded()), 40)

    def test_joined(self) -> None:
        """A caller who asks for what is being loaded waits for that; the origin is asked once."""
        self.hold()
        self.add(range(1, 5))
        reading = Deferred.fromCoroutine(self.made.reader.read(self.wanted(3, caller="bob")))
        self.assertNoResult(reading)
        self.release()
        self.assertEqual(self.successResultOf(reading).shared, 1)
        self.assertEqual(self.origin.numbers(Priority.DISPLAY, Priority.CALLER), [1, 2, 3, 4])

    def test_refused(self) -> None:
        """What the origin refuses ends the queue, and the instance is left alone for a while; other callers' are not."""
        self.origin.failure = OriginRefused(403, (), b"no")
        queue = self.add(range(1, 100))
        (job,) = self.ended(self.made)
        self.assertEqual((job["result"], len(queue)), ("failed", 0))
        self.origin.failure = None
        asked = len(self.origin.asked)
        self.add(range(1, 5))
        self.assertEqual(len(self.origin.asked), asked)
        self.add(range(11, 15), "bob")
        self.clock.advance(frame_queues.REFUSED_SECONDS)
        self.add(range(1, 5))
        self.clock.advance(0)
        self.assertEqual(self.loaded(), {1, 2, 3, 4, 11, 12, 13, 14})

    def test_fails_under_way(self) -> None:
        """One that fails ends those beside it; claims are given back."""
        self.patch(frame_queues, "SIDE_BY_SIDE", 2)
        self.hold()
        self.add(range(1, 17))
        assert self.origin.held is not None
        self.origin.held[1].errback(OriginError("it is gone"))
        self.assertEqual((len(self.origin.asked), self.origin.cancelled), (2, 2))
        names = [frame_name(number) for number in range(1, 17)]
        self.assertEqual(self.now(self.cache.claim(INSTANCE, names, b"other", 5.0)), {*names})
        self.assertEqual([job["result"] for job in self.ended(self.made)], [Result.FAILED.value])

    def test_stopped(self) -> None:
        """A queue that is given up ends its requests, says nothing, and can begin anew."""
        self.hold()
        self.add(range(1, 9))
        (job,) = self.made.jobs.running
        assert job.running is not None
        job.running.cancel()
        self.assertEqual((self.origin.cancelled, job.result, self.flushLoggedErrors()), (2, Result.STOPPED, []))
        self.origin.held = None
        self.add(range(1, 9))
        self.assertEqual(self.loaded(), set(range(1, 9)))

    def test_headers_are_not_kept(self) -> None:
        """A caller's headers are gone once all is loaded, or nothing more is, while it is remembered what is known."""
        for refused in (False, True):
            self.setUp()
            self.hold()
            wanted = self.wanted(1)
            caller = weakref.ref(wanted.caller)
            queue = self.queues.of(wanted, self.fence(), 100)
            self.queues.add(queue, wanted, range(1, 9))
            del wanted
            gc.collect()
            self.assertIsNotNone(caller(), "a queue that loads needs them")
            self.origin.failure = OriginRefused(403, (), b"no") if refused else None
            self.release()
            self.assertEqual((self.made.jobs.running, 5 in queue.known), ([], not refused))
            self.queues.add(queue, self.wanted(1), range(1, 9))
            self.origin.failure = None  # its traceback has them
            gc.collect()
            self.assertIsNone(caller())

    def test_invalidated(self) -> None:
        """After a STOW nothing that was known counts."""
        self.add(range(1, 5))
        self.now(self.made.reader.invalidation.invalidate(INSTANCE.scope))
        self.add(range(1, 5))
        self.assertEqual(self.loaded(), {1, 2, 3, 4})

    def test_invalidated_meanwhile(self) -> None:
        """What was wanted of an instance before a STOW is not loaded after it, whether its reader goes on or not."""
        self.hold()
        self.add(range(1, 101))
        self.now(self.made.reader.invalidation.invalidate(INSTANCE.scope))
        asked = len(self.origin.asked)
        for add in ([], [501]):
            self.add(add)
            self.release()
            self.assertEqual(self.loaded(), {*add})
        self.assertEqual(self.origin.numbers(Priority.DISPLAY)[4 * asked :], [501])

        self.hold()
        self.add(range(1, 101))
        self.now(self.made.reader.invalidation.invalidate(INSTANCE.scope))
        self.release()
        self.assertLess(len(self.loaded()), 4 * frame_queues.SIDE_BY_SIDE)
        self.assertEqual((self.made.jobs.running, self.flushLoggedErrors()), ([], []))

    def test_huge_frames(self) -> None:
        """Of frames that are large one request asks for no more than all may have under way."""
        self.patch(frame_queues, "BYTES_UNDER_WAY", 4 * MIB)
        self.hold()
        self.add(range(1, 9), size=100 * MIB)
        self.assertEqual([numbers for _, numbers in self.origin.asked], [(1,)])
        self.release()
        self.assertEqual({len(numbers) for _, numbers in self.origin.asked}, {1})
        self.add(range(11, 30), size=MIB + 1)
        self.assertEqual([numbers for _, numbers in self.origin.asked][8:][0], (11, 12, 13))

    def test_larger_than_thought(self) -> None:
        """Frames of which several are no answer, and numbers that there are not, end the queue as any failure does."""
        for failure, numbers in ((StreamTooLong("large"), [1, 2]), (None, [1, 10**6])):
            self.setUp()
            self.origin.failure = failure
            self.add(numbers)
            self.assertEqual([job["result"] for job in self.ended(self.made)], [Result.FAILED.value])
            self.assertEqual(self.flushLoggedErrors(), [])
            asked = len(self.origin.asked)
            self.add([3])
            self.assertEqual(len(self.origin.asked), asked)

    def test_deep(self) -> None:
        """Answers that come at once do not pile up on the stack."""
        self.origin.per_request = 1
        self.add(range(1, 2001))
        self.assertEqual(len(self.loaded()), 2000)

    def test_turns(self) -> None:
        """With a cache in this process others have their turn."""
        ticks = iter(range(10_000))
        self.patch(self.clock, "seconds", lambda: next(ticks) * 0.003)
        self.add(range(1, 41))
        self.assertLess(len(self.loaded()), 40)
        for _ in range(20):
            self.clock.advance(0)
        self.assertEqual(len(self.loaded()), 40)
