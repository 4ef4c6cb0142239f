"""What starts after an answered request: locks, limits, by hand, the end."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any, Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from tests.frames.support import INSTANCE, JPEG
from tests.prefetch.support import LOOP, SLIDE, PrefetchCase, Worker, content
from twistedproxy.cache.address import NoAddress
from twistedproxy.cache.interface import Reading
from twistedproxy.cache.keys import LOADING, instance_keys
from twistedproxy.cache.lease import LEASE_SECONDS, RENEW_SECONDS
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import Frame
from twistedproxy.frames.entries import frame_name, pack_frames
from twistedproxy.origin.errors import OriginBadAnswer, OriginRefused, OriginTimeout, OriginUnreachable
from twistedproxy.origin.interface import Priority
from twistedproxy.prefetch import runner
from twistedproxy.prefetch.jobs import JobKind, LoadFailed, NotLoadable, NotStarted, Withdrawn
from twistedproxy.prefetch.load_lock import LOCK
from twistedproxy.prefetch.scheduler import STOP_SECONDS
from twistedproxy.system.machine_load import SystemLoad

WHOLE, BLOCK, DISPLAY = JobKind.WHOLE, JobKind.BLOCK, JobKind.DISPLAY


class OccasionTests(PrefetchCase):
    """Which answers lead to a load."""

    def test_from_origin(self) -> None:
        """A frame from the origin starts a whole-instance load with its display load at once; a cached one nothing."""
        self.origin.held = []
        worker = self.worker()
        self.ask(worker, 500)
        self.assertEqual(self.running(worker), [WHOLE, DISPLAY])
        task = worker.whole.tasks[0]
        self.assertEqual((task.instance, task.caller, task.metadata), (INSTANCE, self.caller(), SLIDE))
        self.assertEqual((task.seconds, task.fence), (3600.0, self.fence()))
        other = self.worker()
        self.ask(other, 500)
        self.assertEqual(self.running(other), [])

    def test_shared_counts(self) -> None:
        """A fetch that was shared counts as from the origin for each who waited."""
        held: list[Deferred[None]] = []

        class Slow(type(self.origin)):  # type: ignore[misc]
            async def frames(inner, *arguments: object, **more: object) -> object:
                if Priority.CALLER in arguments:  # others prove a right
                    held.append(Deferred())
                    await held[-1]
                return await super().frames(*arguments, **more)

        self.origin = Slow()
        worker = self.worker()
        first = Deferred.fromCoroutine(worker.reader.read(self.wanted(7)))
        worker.scheduler.usefulness.asked(INSTANCE, 100, [])
        second = Deferred.fromCoroutine(worker.reader.read(self.wanted(7, caller="bob")))
        held.pop(0).callback(None)
        answers = [self.successResultOf(first), self.successResultOf(second)]
        self.assertEqual(sorted((answer.fetched, answer.shared) for answer in answers), [(0, 1), (1, 0)])
        self.clock.advance(0)
        self.assertEqual(self.count(worker, "prefetch_plans", "whole", "whole-instance"), 2)
        self.now(worker.scheduler.stop())

    def test_small_cache(self) -> None:
        """An instance that would take more than a quarter of the cache is not loaded whole; by the size of the frames that came."""
        size = len(self.now(self.worker().reader.read(self.wanted(500))).frames[0].data)
        for capacity, whole in ((4 * SLIDE.frames * size - 1, 0), (4 * SLIDE.frames * size, 1), (None, 1)):
            self.setUp()
            self.cache.capacity = capacity
            worker = self.worker()
            self.ask(worker, 500)
            self.assertEqual(self.running(worker).count(WHOLE), whole)
            self.assertEqual(self.count(worker, "prefetch_plans", "block", "large-for-the-cache"), 1 - whole)

    def test_trigger(self) -> None:
        """Below the trigger's share from the origin nothing is loaded, and the plan says why."""
        worker = self.worker(prefetch=False)
        self.ask(worker, 1, 2, 3)
        worker = self.worker()
        self.ask(worker, 1, 2, 3, 4)
        self.assertEqual(self.running(worker), [])
        self.assertEqual(self.count(worker, "prefetch_plans", "nothing", "below-trigger"), 1)
        self.ask(worker, 1, 5)
        self.assertIn(WHOLE, self.running(worker))

    def test_plan_in_the_log(self) -> None:
        """What was planned is logged with its reason, and with those against what was thought of."""
        events = self.events()
        worker = self.worker()
        self.reading = SystemLoad(95.0, 0.0)
        self.ask(worker, 1)
        said = [event for event in events if event.get("event") == "planned"]
        told = [(event["instance"], event["kind"], event["reason"], event["not_whole"]) for event in said]
        self.assertEqual(told, [(INSTANCE.path, "block", "cpu-above-limit", "cpu-above-limit")])

    def test_no_prefetch_wanted(self) -> None:
        """A request that no viewer made, and one that the cache heard nothing of, start nothing."""
        worker = self.worker()
        self.now(worker.reader.read(attrs.evolve(self.wanted(1), prefetch=False)))
        answer = self.ask(self.worker(prefetch=False), 2)
        worker.scheduler.answered(self.wanted(2), attrs.evolve(answer, fence=None, fetched=1))
        self.clock.advance(0)
        self.assertEqual(worker.jobs.running, [])
        self.assertEqual(worker.metrics.snapshot().get("prefetch_plans", []), [])

    def test_no_cache(self) -> None:
        """Without a cache nothing is planned but the reason."""
        worker = self.worker(cache=NoAddress())
        self.ask(worker, 1)
        self.assertEqual(worker.jobs.running, [])
        self.assertEqual(self.count(worker, "prefetch_plans", "nothing", "no-cache"), 1)

    def test_unsupported_syntax_is_said_once(self) -> None:
        """A syntax that is not supported is answered, logged once per instance, and not prefetched."""
        video = "1.2.840.10008.1.2.4.100"
        self.origin.metadata_value = attrs.evolve(LOOP, transfer_syntax=video)
        worker = self.worker()
        events = self.events()
        for number in (1, 2, 3):
            self.assertEqual(len(self.ask(worker, number).frames), 1)
        said = [event for event in events if event.get("event") == "syntax_not_supported"]
        self.assertEqual([(event["instance"], event["transfer_syntax"]) for event in said], [(INSTANCE.path, video)])
        self.assertEqual(worker.jobs.running, [])

    def test_syntax_of_the_frames(self) -> None:
        """Where the metadata don't say a transfer syntax, it is that of the frames that came."""
        self.origin.held = []
        answer = self.ask(self.worker(prefetch=False), 1)
        silent = attrs.evolve(answer, metadata=attrs.evolve(SLIDE, transfer_syntax=None))
        worker = self.worker()
        worker.scheduler.answered(self.wanted(1), silent)
        self.clock.advance(0)
        self.assertEqual(self.running(worker), [WHOLE, DISPLAY])
        self.assertEqual(worker.whole.tasks[0].metadata.transfer_syntax, JPEG)
        video = Frame(b"a frame", "1.2.840.10008.1.2.4.100")
        worker.scheduler.answered(self.wanted(1), attrs.evolve(silent, frames=[video]))
        self.clock.advance(0)
        self.assertEqual(self.count(worker, "prefetch_plans", "nothing", "syntax-not-supported"), 1)

    def test_a_reading_that_fails(self) -> None:
        """A load reading that fails changes nothing; one that raises what it should not costs only the prefetch."""
        worker = self.worker()

        def broken() -> SystemLoad:
            raise OSError("no /proc")

        worker.scheduler.load = broken
        self.ask(worker, 1)
        self.assertIn(WHOLE, self.running(worker))

        def worse() -> SystemLoad:
            raise RuntimeError("ours")

        other = self.worker()
        other.scheduler.load = worse
        self.assertEqual(len(self.ask(other, 9000).frames), 1)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_small(self) -> None:
        """A small instance is loaded whole in this process."""
        self.origin.metadata_value = LOOP
        worker = self.worker()
        self.ask(worker, 3)
        self.assertEqual((len(worker.small.tasks), len(worker.whole.tasks)), (1, 0))

    def test_small_display_first(self) -> None:
        """In a small in-process load the display load goes first."""
        self.origin.metadata_value = attrs.evolve(SLIDE, total_rows=7680, total_columns=7680, frames=900)
        self.origin.held = []
        worker = self.worker(display_min_frames=10)
        self.ask(worker, 1)
        self.assertEqual((self.running(worker), worker.small.tasks), ([WHOLE, DISPLAY], []))
        self.origin.release()
        self.origin.release()
        self.assertEqual((self.running(worker), len(worker.small.tasks)), ([WHOLE], 1))

    def test_block_when_busy(self) -> None:
        """A busy machine gets a block load: its display load before the rest of the block."""
        self.reading = SystemLoad(95.0, 0.0)
        worker = self.worker()
        self.ask(worker, 1)
        self.assertEqual(self.count(worker, "prefetch_plans", "block", "cpu-above-limit"), 1)
        priorities = [priority for priority, _ in self.origin.asked[1:]]
        self.assertEqual(priorities, sorted(priorities))
        self.assertEqual({*priorities}, {Priority.DISPLAY, Priority.BLOCK})
        expected = {row * 200 + column + 1 for row in range(32) for column in range(32)}
        self.assertEqual(self.cached(), expected)

    def test_tiny_frames(self) -> None:
        """Of a region of millions of frames a bounded part is loaded, that which is seen first; it takes no time."""
        self.origin.metadata_value = attrs.evolve(
            SLIDE, frames=10**10, rows=1, columns=1, total_rows=10**5, total_columns=10**5
        )
        self.origin.held = []
        self.patch(runner, "MAX_REGION_FRAMES", 100)
        worker = self.worker()
        self.ask(worker, 1)
        self.assertEqual([(job.kind, job.total) for job in worker.jobs.running][1:], [(DISPLAY, 99)])
        while self.origin.held:
            self.origin.release()
        self.assertEqual(self.origin.numbers(Priority.DISPLAY), list(range(2, 101)))
        self.assertEqual([(job["kind"], job["total"]) for job in self.ended(worker)], [("display", 99), ("block", 100)])

    def test_hot_answers_prolong_nothing(self) -> None:
        """A hit does not prolong a frame's time."""
        worker = self.worker(prefetch=False)
        self.ask(worker, 1)
        self.clock.advance(3599)
        self.assertEqual(self.ask(worker, 1).cached, 1)
        self.clock.advance(2)
        self.assertEqual(self.ask(worker, 1).cached, 0)

    def test_usefulness(self) -> None:
        """Frames that were loaded before anybody asked are counted once when somebody does."""
        worker = self.worker(whole_instance=False)
        self.ask(worker, 1)
        self.assertEqual(self.count(worker, "prefetch_frames_used"), 0)
        for _ in range(2):
            self.assertEqual(self.ask(worker, 1, 2, 3).prefetched, [2, 3])
        self.assertEqual(self.count(worker, "prefetch_frames_used"), 2)
        frames = self.count(worker, "prefetch_frames", "block") + self.count(worker, "prefetch_frames", "display")
        self.assertEqual(frames, 32 * 32 - 1)


class RefusedTests(PrefetchCase):
    """Requests for frames that an origin doesn't want to answer."""

    def setUp(self) -> None:
        super().setUp()
        refusing = OriginRefused(500, (), b"")
        self.refusing = refusing

        class Refusing(type(self.origin)):  # type: ignore[misc]
            async def frames(inner, *_arguments: object, **_more: object) -> object:
                raise refusing

        self.origin = Refusing(attrs.evolve(SLIDE, transfer_syntax=None))

    def refused(self, worker: Worker, number: int) -> None:
        asking = Deferred.fromCoroutine(worker.reader.read(self.wanted(number)))
        self.assertIs(self.failureResultOf(asking, OriginRefused).value, self.refusing)

    def test_whole_instance(self) -> None:
        """Where nobody knows how frames are stored, the whole instance may come all the same: its file says it."""
        worker = self.worker()
        self.refused(worker, 1)
        self.assertEqual(self.running(worker), [WHOLE])
        self.assertIsNone(worker.whole.tasks[0].metadata.transfer_syntax)

    def test_once(self) -> None:
        """It is tried once in ``recache-after``, also if it failed: a store in trouble must not get whole instances to
        send for each frame that it refuses."""
        worker = self.worker(recache_after=100.0)
        self.refused(worker, 1)
        worker.whole.fail(LoadFailed("the origin answered 500"))
        for number in range(2, 20):
            self.refused(worker, number)
        self.assertEqual(len(worker.whole.tasks), 1)
        self.clock.advance(101)
        self.refused(worker, 1)
        self.assertEqual(len(worker.whole.tasks), 2)

    def test_once_for_each_caller(self) -> None:
        """What one caller was not given says nothing of what another one may have."""
        worker = self.worker()
        self.refused(worker, 1)
        worker.whole.fail(LoadFailed("the origin answered 500"))
        worker.scheduler.refused(self.wanted(1, caller="bob"), self.origin.metadata_value, self.fence())
        self.assertEqual(len(worker.whole.tasks), 2)

    def test_known_syntax(self) -> None:
        """The same where the syntax is known, and where there are few frames."""
        for facts, kinds in ((SLIDE, [WHOLE]), (attrs.evolve(LOOP, frames=1), [WHOLE])):
            self.origin.metadata_value = facts
            worker = self.worker()
            worker.scheduler.refused(self.wanted(1), facts, self.fence())
            self.assertEqual(self.running(worker), kinds)
            worker.jobs.running[0].running.cancel()  # type: ignore[union-attr]

    def test_no_blocks(self) -> None:
        """Blocks of frames that are refused are not loaded."""
        self.origin.metadata_value = SLIDE
        worker = self.worker(whole_instance=False)
        self.refused(worker, 1)
        self.assertEqual(worker.jobs.running, [])

    def test_denied(self) -> None:
        """Nothing is loaded for who may not read frames, or asks for some that there are not."""
        worker = self.worker()
        for status in (401, 403, 404):
            self.refusing.status = status
            self.refused(worker, status)
        self.assertEqual((worker.jobs.running, worker.metrics.snapshot().get("prefetch_plans", [])), ([], []))

    def test_stopped(self) -> None:
        """Nothing is loaded any more once all is to end, or while the cache can't be reached."""
        worker = self.worker()
        worker.scheduler.refused(self.wanted(1), self.origin.metadata_value, None)
        self.now(worker.scheduler.stop())
        self.refused(worker, 1)
        self.assertEqual((worker.whole.tasks, worker.metrics.snapshot().get("prefetch_plans", [])), ([], []))

    def test_no_viewer(self) -> None:
        """A request that no viewer made loads nothing."""
        worker = self.worker()
        asking = worker.reader.read(attrs.evolve(self.wanted(1), prefetch=False))
        self.failureResultOf(Deferred.fromCoroutine(asking), OriginRefused)
        self.assertEqual(worker.jobs.running, [])


class NotLoadableTests(PrefetchCase):
    """Whole-instance loads that would fail again and again."""

    def load(self, worker: Worker, number: int, error: Optional[Exception], instance: Instance = INSTANCE) -> JobKind:
        """Ask for a frame; the kind of the load that this starts, which ends with *error*."""
        wanted = attrs.evolve(self.wanted(number), instance=instance)
        self.successResultOf(Deferred.fromCoroutine(worker.reader.read(wanted)))
        self.clock.advance(0)
        (kind,) = self.running(worker)
        if kind is not WHOLE:
            worker.jobs.running[0].running.cancel()  # type: ignore[union-attr]
        elif error is None:
            worker.whole.finish(-1)
        else:
            worker.whole.fail(error, -1)
        return kind

    def worker(self, **settings: Any) -> Worker:
        self.origin.held = []
        return super().worker(**{"display_min_frames": 1 << 20, "recache_after": 300.0, **settings})

    def test_lasting(self) -> None:
        """What will not pass soon is remembered for ``recache-after``: blocks are loaded meanwhile."""
        lasting = [OriginRefused(status, (), b"") for status in (400, 403, 404, 405, 406, 410, 415, 501)]
        for error in (*lasting, OriginBadAnswer("a page"), NotLoadable("another file")):
            worker = self.worker()
            self.assertEqual(self.load(worker, 1, error), WHOLE)
            self.assertEqual([self.load(worker, number, None) for number in (500, 900)], [BLOCK, BLOCK])
            picture = worker.scheduler.for_picture(self.wanted(1), SLIDE, self.fence())
            self.assertIsNone(self.successResultOf(Deferred.fromCoroutine(picture)), error)
            self.clock.advance(301)
            self.assertEqual(self.load(worker, 1500, error), WHOLE)
            self.setUp()

    def test_passing(self) -> None:
        """What may pass is tried again with the next request."""
        for error in (
            OriginRefused(500, (), b""),
            OriginTimeout("late"),
            LoadFailed("broke off"),
            Withdrawn("stopped"),
        ):
            worker = self.worker()
            self.assertEqual([self.load(worker, number, error) for number in (1, 500)], [WHOLE, WHOLE])
            self.setUp()

    def test_of_the_store(self) -> None:
        """Two instances that are not given speak for all of their store, unless another one is; one does not."""
        others = [attrs.evolve(INSTANCE, sop=f"1.2.{number}") for number in range(9)]
        gone = OriginRefused(404, (), b"")
        worker = self.worker()
        self.assertEqual(self.load(worker, 1, gone, others[0]), WHOLE)
        self.assertEqual(self.load(worker, 1, gone, others[1]), WHOLE)
        self.assertEqual(self.load(worker, 1, gone, others[2]), BLOCK)
        self.assertEqual(self.load(worker, 1, gone, attrs.evolve(others[3], root="/other")), WHOLE)
        worker = self.worker()
        self.assertEqual(self.load(worker, 1, gone, others[4]), WHOLE)
        self.assertEqual(self.load(worker, 1, None, others[5]), WHOLE)
        self.assertEqual(self.load(worker, 1, gone, others[6]), WHOLE)
        self.assertEqual(self.load(worker, 1, None, others[7]), WHOLE)


class LockTests(PrefetchCase):
    """Never twice."""

    def setUp(self) -> None:
        super().setUp()
        self.origin.held = []

    def test_two_workers(self) -> None:
        """Of two workers that want an instance, one loads it; the other starts its display load only."""
        one, two = self.worker(), self.worker()
        self.ask(one, 1)
        self.ask(two, 150)
        self.assertEqual((self.running(one), self.running(two)), ([WHOLE, DISPLAY], [DISPLAY]))
        self.assertEqual((len(one.whole.tasks), len(two.whole.tasks)), (1, 0))
        self.assertEqual(self.count(two, "prefetch_locks_lost"), 1)

    def test_kept_after_success(self) -> None:
        """A loaded instance is not loaded again before ``recache-after``, and then is."""
        worker = self.worker(recache_after=300.0, display_min_frames=1 << 20)
        self.ask(worker, 1)
        worker.whole.finish()
        self.assertEqual(worker.jobs.running, [])
        self.clock.advance(299)
        self.ask(worker, 2)
        self.assertEqual(len(worker.whole.tasks), 1)
        self.clock.advance(2)
        self.ask(worker, 3)
        self.assertEqual(len(worker.whole.tasks), 2)

    def test_given_back_after_failure(self) -> None:
        """A whole-instance load that failed gives its lock back: the next request tries again."""
        worker = self.worker(display_min_frames=1 << 20)
        self.ask(worker, 1)
        self.assertTrue(self.locked())
        worker.whole.fail(LoadFailed("too few frames"))
        self.assertFalse(self.locked())
        self.assertEqual([(job["result"], job["reason"]) for job in self.ended(worker)], [("failed", "too few frames")])
        self.ask(worker, 2)
        self.assertEqual(len(worker.whole.tasks), 2)

    def test_an_error_of_ours(self) -> None:
        """A load that fails for a reason of our own is logged and gives its lock back too."""
        worker = self.worker(display_min_frames=1 << 20)
        self.ask(worker, 1)
        worker.whole.fail(ZeroDivisionError("ours"))
        self.assertFalse(self.locked())
        self.assertEqual(self.ended(worker)[0]["reason"], "ZeroDivisionError")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_withdrawn(self) -> None:
        """A load that failed after frames of it were there makes the instance be forgotten, by hot responses too."""
        worker = self.worker(display_min_frames=1 << 20)
        heard: list[object] = []
        worker.reader.invalidation.also.append(heard.append)
        worker.reader.invalidation.audit = lambda *event: heard.append(event)
        self.ask(worker, 1)
        before = self.fence()
        worker.whole.fail(Withdrawn("the loader ended"))
        self.assertNotEqual(self.fence(), before)
        self.assertEqual(heard, [INSTANCE.scope, (INSTANCE.scope, None, True, "load")])
        self.assertEqual(self.cached(), set())
        self.assertFalse(self.locked(before))
        self.ask(worker, 1)
        self.assertEqual(len(worker.whole.tasks), 2)

    def test_a_start_that_fails(self) -> None:
        """A failure while starting gives the lock back and is logged."""
        worker = self.worker()

        def broken(*_arguments: object) -> None:
            raise RuntimeError("cannot start")

        self.patch(worker.jobs, "start", broken)
        self.ask(worker, 1)
        self.assertFalse(self.locked())
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_block_lock(self) -> None:
        """The lock of a block is given back as soon as its job is started."""
        worker = self.worker(whole_instance=False)
        self.ask(worker, 1)
        self.assertEqual(self.running(worker), [BLOCK, DISPLAY])
        self.assertFalse(self.locked())

    def test_block_lock_of_the_dead(self) -> None:
        """The lock of a worker that is gone before its block began is free after the time of a lease."""
        worker = self.worker(whole_instance=False)

        async def gone(*_arguments: object) -> None: ...

        self.patch(self.cache, "unclaim", gone)
        self.ask(worker, 1)
        self.clock.advance(LEASE_SECONDS - 0.1)
        self.assertTrue(self.locked())
        self.clock.advance(0.2)
        self.assertFalse(self.locked())

    def test_renewed(self) -> None:
        """A load that takes longer than a lease, or than ``recache-after``, keeps its lock to its end, and no longer."""
        for end in ("finish", "fail"):
            self.setUp()
            settings = {"recache_after": 20.0, "display_min_frames": 1 << 20}
            one, two = self.worker(**settings), self.worker(**settings)
            self.ask(one, 1)
            for _ in range(60):
                self.clock.advance(1)
                self.assertTrue(self.locked())
            self.ask(two, 150)
            self.assertEqual(two.whole.tasks, [])
            one.whole.finish() if end == "finish" else one.whole.fail(LoadFailed("no"))
            self.assertFalse(self.locked())
            self.assertEqual([call for call in self.clock.getDelayedCalls() if "LoopingCall" in str(call)], [])
            self.ask(two, 151)
            self.assertEqual(len(two.whole.tasks), 0 if end == "finish" else 1)

    def test_taken_over(self) -> None:
        """What a worker that died had begun is loaded by the next that wants it: all anew, and nothing of it is given any more."""
        one, two = self.worker(display_min_frames=1 << 20), self.worker(display_min_frames=1 << 20)
        self.ask(one, 1)
        before = self.fence()
        self.now(self.cache.put_many(INSTANCE, before, {LOADING: b"", frame_name(7): b"half"}, 60.0))
        self.die(one)
        why: list[str] = []
        two.reader.invalidation.audit = lambda *event: why.append(event[-1])
        self.clock.advance(LEASE_SECONDS - 0.1)
        self.ask(two, 150)
        self.assertEqual((len(two.whole.tasks), self.fence()), (0, before))
        self.clock.advance(0.2)
        self.ask(two, 151)
        self.assertEqual([task.fence for task in two.whole.tasks], [self.fence()])
        self.assertNotEqual(self.fence(), before)
        self.assertNotIn(7, self.cached())
        self.assertEqual(why, ["load"])
        two.whole.finish()
        self.ask(one, 3)
        self.assertEqual(len(one.whole.tasks), 1)

    def test_looked_after(self) -> None:
        """Who was refused looks after it: a load that ended is no concern of its, however it ended; one whose worker died is begun
        anew, without another request, within 15 s."""
        for end, seconds in (("finish", 60), ("fail", 60), *(("die", 60 + more) for more in range(8))):
            self.setUp()
            one, two = self.worker(display_min_frames=1 << 20), self.worker(display_min_frames=1 << 20)
            self.ask(one, 1)
            self.ask(two, 150)
            half = self.fence()
            self.pass_seconds(30)  # it waits for its turn, and has written nothing
            self.now(self.cache.put_many(INSTANCE, half, {LOADING: b""}, 600.0))
            self.pass_seconds(seconds)
            self.assertEqual(two.whole.tasks, [])
            if end == "die":
                self.die(one)
            else:
                self.now(self.cache.remove(INSTANCE, [LOADING]))
                one.whole.finish() if end == "finish" else one.whole.fail(LoadFailed("no"))
            self.pass_seconds(15 if end == "die" else 100)
            self.assertEqual(len(two.whole.tasks), int(end == "die"), end)
            self.assertEqual(self.fence() != half, end == "die")

    def test_looked_after_through_an_outage(self) -> None:
        """So is one whose worker died together with the cache, as on one host with a node of it, once that can be asked again."""
        one, two = self.worker(display_min_frames=1 << 20), self.worker(display_min_frames=1 << 20)
        self.ask(one, 1)
        self.ask(two, 150)
        half = self.fence()
        self.now(self.cache.put_many(INSTANCE, half, {LOADING: b""}, 600.0))
        self.die(one)
        self.pass_seconds(2)
        real = self.cache.claim_left, self.cache.get_many

        async def nothing(*_: object) -> None:
            return None

        async def without(instance: Any, names: Any) -> Reading:
            return Reading(half, {})  # as with generations that are kept

        self.patch(self.cache, "claim_left", nothing)
        self.patch(self.cache, "get_many", without)
        self.pass_seconds(25)
        self.assertEqual(two.whole.tasks, [])
        self.patch(self.cache, "claim_left", real[0])
        self.patch(self.cache, "get_many", real[1])
        self.pass_seconds(15)
        self.assertEqual((len(two.whole.tasks), self.fence() != half), (1, True))

    def pass_seconds(self, seconds: int) -> None:
        for _ in range(4 * seconds):
            self.clock.advance(0.25)

    def test_a_cache_that_loses_the_lock(self) -> None:
        """A lock that the cache has lost is taken again by its holder; where another was faster both go on."""
        one, two = self.worker(), self.worker()
        self.ask(one, 1)
        lock = [LOCK + self.fence()]
        self.lose_locks()
        self.assertFalse(self.locked())
        self.clock.advance(RENEW_SECONDS)
        self.assertTrue(self.locked())
        self.lose_locks()
        self.ask(two, 150)
        self.clock.advance(RENEW_SECONDS)
        self.assertEqual((len(one.whole.tasks), len(two.whole.tasks)), (1, 1))
        one.whole.finish()
        self.assertTrue(self.locked())
        two.whole.finish()
        self.assertEqual(self.now(self.cache.claim(INSTANCE, lock, b"test", 1.0)), set(lock))

    def test_given_back_while_it_is_renewed(self) -> None:
        """A renewal that is answered after the end of the load takes nothing again."""
        worker = self.worker()
        self.ask(worker, 1)
        real, gate = self.cache.renew_claims, Deferred[None]()

        async def held(*arguments: Any) -> bool:
            await gate
            return await real(*arguments)

        self.patch(self.cache, "renew_claims", held)
        self.clock.advance(RENEW_SECONDS)
        worker.whole.finish()
        gate.callback(None)
        self.assertFalse(self.locked())

    def die(self, worker: Worker) -> None:
        """End *worker* as SIGKILL does: it gives nothing back, and renews nothing."""
        for call in self.clock.getDelayedCalls():
            if isinstance(call.func, LoopingCall):
                call.func.stop()
        worker.scheduler.background.stopped = True

    def lose_locks(self) -> None:
        for key in instance_keys(INSTANCE).claims([LOCK + self.fence()]):
            self.cache._store.delete(key)

    def test_own_load_and_a_block(self) -> None:
        """A block is not loaded beside a load of the whole instance either: the display load alone is."""
        worker = self.worker(max_jobs=5)
        self.ask(worker, 1)
        self.reading = SystemLoad(99.0, 0.0)
        self.ask(worker, 15_000)
        self.assertEqual(self.running(worker), [WHOLE, DISPLAY, DISPLAY])

    def test_forgotten_meanwhile(self) -> None:
        """An instance that was forgotten while it was loaded is loaded anew: what runs writes for nobody."""
        worker = self.worker(max_jobs=5, display_min_frames=1 << 20)
        self.ask(worker, 1)
        self.now(self.cache.invalidate(INSTANCE.scope))
        self.ask(worker, 1)
        self.assertEqual(self.running(worker), [WHOLE, WHOLE])
        worker.whole.finish()
        self.assertEqual([task.fence == self.fence() for task in worker.whole.tasks], [False, True])

    def test_max_jobs(self) -> None:
        """With ``max-jobs`` running the lock is given back, and only the display load starts; it isn't counted."""
        worker = self.worker(max_jobs=1, recache_after=10.0)
        events = self.events()
        self.ask(worker, 1)
        self.now(self.cache.invalidate(INSTANCE.scope))
        self.ask(worker, 15_000)
        self.assertEqual(self.running(worker), [WHOLE, DISPLAY, DISPLAY])
        self.assertEqual(self.count(worker, "prefetch_jobs_busy"), 1)
        said = [(event["instance"], event["jobs"]) for event in events if event.get("event") == "jobs_busy"]
        self.assertEqual(said, [(INSTANCE.path, 1)])
        self.assertFalse(self.locked())
        worker.whole.finish()
        self.ask(worker, 15_001)
        self.assertEqual(len(worker.whole.tasks), 2)

    def test_one_slot_an_origin(self) -> None:
        """Whole-instance loads of one origin come one after the other, whatever ``max-jobs`` says."""
        worker = self.worker(max_jobs=5, display_min_frames=1 << 20)
        self.ask(worker, 1)
        self.now(self.cache.invalidate(INSTANCE.scope))
        self.ask(worker, 2)
        self.now(self.cache.invalidate(INSTANCE.scope))
        self.assertEqual((self.running(worker), len(worker.whole.tasks)), ([WHOLE, WHOLE], 1))
        worker.whole.fail(LoadFailed("no"))
        self.assertEqual(len(worker.whole.tasks), 2)


class ByHandTests(PrefetchCase):
    """``POST …/prefetch``."""

    def setUp(self) -> None:
        super().setUp()
        self.origin.held = []

    def hand(self, worker: Worker, again: bool = False, **metadata: object) -> Deferred[object]:
        changed = attrs.evolve(SLIDE, **metadata)
        return Deferred.fromCoroutine(worker.scheduler.by_hand(self.wanted(1), changed, self.fence(), again))

    def test_passes_the_gates(self) -> None:
        """The gates of CPU, memory and size stand open for it; no display load goes along."""
        self.reading = SystemLoad(100.0, 100.0)
        worker = self.worker(whole_instance_max_frames=10)
        job = self.successResultOf(self.hand(worker))
        self.assertEqual((self.running(worker), worker.jobs.running[0]), ([WHOLE], job))
        self.assertEqual(job.reason, "asked-by-hand")
        self.assertTrue(self.locked())

    def test_lock(self) -> None:
        """The lock of another worker holds for it, and what was loaded lately is not loaded again; with ``again`` it is."""
        other, worker = self.worker(), self.worker()
        self.successResultOf(self.hand(other))
        for again in (False, True):
            refused = self.failureResultOf(self.hand(worker, again), NotStarted).value
            self.assertEqual((refused.status, refused.reason, refused.retry_after), (409, "running", LEASE_SECONDS))
            self.assertIn("10 s", str(refused))
        self.assertTrue(self.locked(), "the other's lock is the other's")
        other.whole.finish()
        self.clock.advance(100)
        refused = self.failureResultOf(self.hand(worker), NotStarted).value
        self.assertEqual((refused.status, refused.reason, refused.retry_after), (409, "loaded-lately", 200.0))
        self.assertIn("200 s", str(refused))
        self.assertFalse(self.locked())
        self.successResultOf(self.hand(worker, again=True))
        self.assertEqual(len(worker.whole.tasks), 1)

    def test_ended_meanwhile(self) -> None:
        """A load that came to its end while its lock was asked for is not repeated."""
        other, worker = self.worker(), self.worker()
        self.successResultOf(self.hand(other))
        with self.held_lock(before=True) as asked:
            asking = self.hand(worker)
        other.whole.finish()
        asked.callback(None)
        self.assertEqual(self.failureResultOf(asking, NotStarted).value.reason, "loaded-lately")
        self.assertFalse(self.locked())

    def test_max_jobs(self) -> None:
        """``max-jobs`` holds for it, and then the lock is given back."""
        worker = self.worker(max_jobs=1)
        self.successResultOf(self.hand(worker))
        self.now(self.cache.invalidate(INSTANCE.scope))
        refused = self.failureResultOf(self.hand(worker, again=True), NotStarted).value
        self.assertEqual((refused.status, refused.reason), (503, "jobs-busy"))
        self.assertFalse(self.locked())

    def test_running_already(self) -> None:
        """The load that runs is the answer, also to who says again."""
        worker = self.worker()
        job = self.successResultOf(self.hand(worker))
        for again in (False, True):
            self.assertIs(self.successResultOf(self.hand(worker, again)), job)
        self.assertEqual(len(worker.whole.tasks), 1)

    def test_running_by_now(self) -> None:
        """A load that began while the cache was asked for the lock is the answer."""
        worker = self.worker()
        with self.held_lock(before=True) as asked:
            asking = self.hand(worker)
        job = self.successResultOf(self.hand(worker))
        asked.callback(None)
        self.assertIs(self.successResultOf(asking), job)
        self.assertTrue(self.locked())
        worker.whole.fail(LoadFailed("no"))
        self.assertFalse(self.locked())

    def test_stopped(self) -> None:
        """Nothing is started by hand once all is to end, and no lock stays."""
        worker = self.worker()
        self.now(worker.scheduler.stop())
        refused = self.failureResultOf(self.hand(worker), NotStarted).value
        self.assertEqual((refused.status, refused.reason), (503, "stopping"))
        self.assertFalse(self.locked())

    def test_a_start_that_fails(self) -> None:
        """A failure while starting gives the lock back."""
        worker = self.worker()

        def broken(*_arguments: object) -> None:
            raise RuntimeError("cannot start")

        self.patch(worker.jobs, "start", broken)
        self.failureResultOf(self.hand(worker), RuntimeError)
        self.assertFalse(self.locked())

    def test_nothing_to_load(self) -> None:
        """What can't be prefetched is refused with its reason; without a cache, too."""
        worker = self.worker()
        refused = self.failureResultOf(self.hand(worker, transfer_syntax="1.2.840.10008.1.2.4.100"), NotStarted).value
        self.assertEqual((refused.status, str(refused)), (409, "the instance is not loaded: syntax-not-supported"))
        self.assertEqual((refused.reason, refused.retry_after), ("syntax-not-supported", None))
        without = worker.scheduler.by_hand(self.wanted(1), SLIDE, None, False)
        self.assertEqual(self.failureResultOf(Deferred.fromCoroutine(without), NotStarted).value.status, 503)

    def test_who_leaves_while_the_lock_is_taken(self) -> None:
        """Who leaves while the lock is being taken leaves no lock behind."""
        worker = self.worker()
        with self.held_lock(before=False):
            asking = self.hand(worker)
            asking.cancel()
            self.failureResultOf(asking)
        self.assertEqual((self.locked(), worker.jobs.running), (False, []))


class PictureTests(PrefetchCase):
    """Whole-instance loads that a picture waits for."""

    def load(self, worker: Worker, caller: str = "alice") -> Any:
        asking = worker.scheduler.for_picture(self.wanted(1, caller=caller), SLIDE, self.fence())
        return self.successResultOf(Deferred.fromCoroutine(asking))

    def test_one_for_all(self) -> None:
        """However busy the machine is, one load is started for all who need it."""
        self.reading = SystemLoad(100.0, 100.0)
        worker = self.worker()
        jobs = {self.load(worker, caller) for caller in ("alice", "bob", "carol")}
        self.assertEqual((jobs, self.running(worker)), (set(worker.jobs.running), [WHOLE]))
        self.assertEqual((worker.jobs.running[0].reason, len(worker.whole.tasks)), ("needed-by-a-picture", 1))

    def test_waits(self) -> None:
        """Who waits for frames goes on when so many are there, or when the load has ended, well or not."""
        worker = self.worker()

        def reached(frames: int) -> Deferred[None]:
            return Deferred.fromCoroutine(job.reached(frames))

        for index, end in enumerate((worker.whole.finish, lambda index: worker.whole.fail(LoadFailed("no"), index))):
            job = self.load(worker)
            first, gone, last = map(reached, (100, 100, SLIDE.frames))
            gone.cancel()
            self.failureResultOf(gone)
            worker.whole.progress[index](99, 1)
            self.assertNoResult(first)
            worker.whole.progress[index](100, 1)
            self.successResultOf(first)
            self.successResultOf(reached(50))
            self.assertNoResult(last)
            end(index)
            self.successResultOf(last)
            self.successResultOf(reached(SLIDE.frames))
            self.clock.advance(1000.0)

    def test_joined(self) -> None:
        """A load that runs already is joined."""
        worker = self.worker()
        self.ask(worker, 500)
        self.assertIs(self.load(worker), worker.jobs.find(INSTANCE, WHOLE, self.fence()))
        self.assertEqual(len(worker.whole.tasks), 1)

    def test_none(self) -> None:
        """Where there can be no such load now there is none to wait for: another host's lock, a cache that cannot be told, a
        proxy that is stopping."""
        other, worker = self.worker(), self.worker()
        self.load(other)
        self.assertIsNone(self.load(worker))
        self.assertIsNone(self.load(self.worker(whole_instance=False)))
        alone = self.worker()
        asking = alone.scheduler.for_picture(self.wanted(1), SLIDE, None)
        self.assertIsNone(self.successResultOf(Deferred.fromCoroutine(asking)))
        self.now(alone.scheduler.stop())
        self.assertIsNone(self.load(alone))
        self.assertEqual(alone.whole.tasks, [])

    def test_beside_others(self) -> None:
        """It is started however many jobs run, and does not wait for loads that nobody waits for; of several that callers wait
        for, one after the other runs at each origin."""
        worker = self.worker(max_jobs=1)
        jobs = []
        for number, ask in ((1, None), (2, self.caller()), (3, self.caller())):
            wanted = attrs.evolve(self.wanted(1), instance=attrs.evolve(INSTANCE, sop=f"1.{number}"))
            if ask is None:
                self.now(worker.reader.read(wanted))
                self.clock.advance(0)
            else:
                asking = worker.scheduler.for_picture(wanted, SLIDE, self.fence())
                jobs.append(self.successResultOf(Deferred.fromCoroutine(asking)))
        self.assertEqual([task.instance.sop for task in worker.whole.tasks], ["1.1", "1.2"])
        self.assertEqual([job.kind for job in jobs], [WHOLE, WHOLE])
        worker.whole.finish(1)
        self.assertEqual([task.instance.sop for task in worker.whole.tasks], ["1.1", "1.2", "1.3"])


class EndTests(PrefetchCase):
    """``drain()`` and stopping."""

    def test_drain(self) -> None:
        """``drain`` waits for running jobs, those of display loads among them, and for nothing when none runs."""
        self.origin.held = []
        worker = self.worker()
        self.now(worker.scheduler.drain())
        self.ask(worker, 1)
        draining = Deferred.fromCoroutine(worker.scheduler.drain())
        worker.whole.finish()
        self.assertNoResult(draining)
        self.origin.release()
        self.origin.release()
        self.successResultOf(draining)
        self.assertEqual(worker.jobs.running, [])

    def test_drain_and_what_is_about_to_start(self) -> None:
        """``drain`` waits for a load that is only asking for its lock, too."""
        worker = self.worker(display_min_frames=1 << 20)
        with self.held_lock(before=True) as taking:
            self.ask(worker, 1)
        self.assertEqual(worker.jobs.running, [])
        draining = Deferred.fromCoroutine(worker.scheduler.drain())
        self.assertNoResult(draining)
        taking.callback(None)
        self.assertNoResult(draining)
        worker.whole.finish()
        self.successResultOf(draining)

    def test_stop(self) -> None:
        """Stopping ends all jobs, gives locks and claims back, and starts nothing more."""
        self.origin.held = []
        worker = self.worker()
        self.ask(worker, 1)
        self.now(worker.scheduler.stop())
        self.assertEqual((worker.whole.cancelled, self.origin.cancelled > 0), (1, True))
        self.assertEqual({(job["result"], job["reason"]) for job in self.ended(worker)}, {("stopped", "stopped")})
        self.assertFalse(self.locked())
        other = self.worker(whole_instance=False)
        self.ask(other, 2)
        self.assertEqual(self.count(other, "prefetch_claims_lost"), 0)
        self.ask(worker, 15_000)
        self.assertEqual(worker.jobs.running, [])

    def test_stop_during_start(self) -> None:
        """Stopping while a lock is being taken gives it back, and no job starts."""
        worker = self.worker()
        with self.held_lock(before=False):
            self.ask(worker, 1)
            self.now(worker.scheduler.stop())
        self.assertFalse(self.locked())
        self.assertEqual((worker.jobs.running, self.ended(worker)), ([], []))

    def test_stop_has_a_deadline(self) -> None:
        """A job that does not end is given up at the deadline."""
        worker = self.worker(display_min_frames=1 << 20)
        stuck: Deferred[None] = Deferred(lambda _: None)

        class Never:
            async def load(self, *_arguments: object) -> object:
                try:
                    await stuck
                finally:
                    await Deferred[None]()

        worker.scheduler.loads.whole = Never()  # type: ignore[assignment]
        self.ask(worker, 1)
        stopping = Deferred.fromCoroutine(worker.scheduler.stop())
        self.assertNoResult(stopping)
        self.clock.advance(STOP_SECONDS)
        self.successResultOf(stopping)

    def test_headers_are_not_kept(self) -> None:
        """A caller's headers are gone with the last job that needed them, also while ended jobs are remembered."""
        self.origin.held = []
        worker = self.worker()

        def occasion() -> weakref.ref[object]:
            wanted = self.wanted(1)
            self.now(worker.reader.read(wanted))
            self.clock.advance(0)
            return weakref.ref(wanted.caller)

        caller = occasion()
        worker.whole.tasks.clear()
        gc.collect()
        self.assertIsNotNone(caller(), "a running job needs them")
        worker.whole.ends[0].errback(LoadFailed("no"))
        self.origin.release()
        self.origin.release()
        self.assertEqual((worker.jobs.running, len(self.ended(worker))), ([], 2))
        gc.collect()
        self.assertIsNone(caller())


class RegionJobTests(PrefetchCase):
    """Block and display loads as jobs."""

    def test_nothing_left(self) -> None:
        """A load with fewer than two frames left is done with none, and keeps its reason."""
        first = self.worker(whole_instance=False)
        self.ask(first, 1)
        self.ask(self.worker(prefetch=False), 15_000)
        before = len(self.origin.asked)
        worker = self.worker(whole_instance=False, prefetch_trigger=0.0)
        self.ask(worker, 2)
        self.assertEqual(len(self.origin.asked), before)
        jobs = {job["kind"]: job for job in self.ended(worker)}
        self.assertEqual([(job["result"], job["frames"], job["total"], job["reason"]) for job in jobs.values()],
                         [("done", 0, 0, "whole-instance-off")] * 2)  # fmt: skip

    def test_failure(self) -> None:
        """An origin that fails ends the job with its reason; claims are given back."""
        self.origin.failure = OriginUnreachable("no connection to the origin")
        worker = self.worker(whole_instance=False)
        self.ask(worker, 1)
        self.assertEqual({(job["result"], job["reason"]) for job in self.ended(worker)},
                         {("failed", "no connection to the origin")})  # fmt: skip
        self.origin.failure = None
        self.ask(worker, 201)
        self.assertEqual(self.count(worker, "prefetch_claims_lost"), 0)
        self.assertEqual(len(self.cached()), 32 * 32)

    def test_whole_load_beside_a_display_load(self) -> None:
        """What the whole-instance load brought meanwhile is not asked for again, and the display load ends early."""
        self.origin.per_request, self.origin.held = 1, []
        worker = self.worker()
        self.ask(worker, 1)
        asked = len(self.origin.asked)
        self.assertEqual(asked, 2, "dear frames are asked for one by one: the whole instance must not wait for them")
        task = worker.whole.tasks[0]
        entries = pack_frames([content(number) for number in range(1, 20_001)], JPEG, math.inf, prefetched=True)
        names = [frame_name(number) for number in range(1, 20_001)]
        self.now(self.cache.put_many(INSTANCE, task.fence, dict(zip(names, entries)), 3600.0))
        self.origin.release()
        self.assertEqual(len(self.origin.asked), asked)
        self.assertEqual(self.running(worker), [WHOLE])
        display = self.ended(worker)[0]
        self.assertEqual((display["kind"], display["result"], display["frames"]), ("display", "done", 1))
        self.assertEqual(display["total"], 1)
