"""Keeping house: jobs that run, ended ones, what is said of them."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from tests.frames.support import INSTANCE
from twistedproxy.dicom.metadata import MAX_INTEGER
from twistedproxy.prefetch.jobs import MAX_ENDED, JobBook, JobKind, Result
from twistedproxy.prefetch.usefulness import MAX_FRAMES, MAX_INSTANCES, Usefulness
from twistedproxy.system.metrics import Metrics

FIELDS = {"instance", "kind", "frames", "total", "bytes", "seconds", "result", "reason"}


class JobBookTests(SynchronousTestCase):
    """The jobs of one worker."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.jobs = JobBook(self.clock, self.metrics, 60.0)
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one.get("event") == event]

    def test_logged(self) -> None:
        """A job is logged at its start and at its end, with the same named fields; a failure as a warning."""
        job = self.jobs.start(INSTANCE, JobKind.WHOLE, "whole-instance", 100)
        job.frames, job.bytes = 40, 4000
        self.clock.advance(2)
        self.jobs.end(job, Result.FAILED, "the origin's response was cut off")
        (start,), (end,) = self.logged("job_started"), self.logged("job_ended")
        self.assertTrue(start.keys() >= FIELDS and end.keys() >= FIELDS)
        self.assertEqual((start["instance"], start["kind"], start["total"]), (INSTANCE.path, "whole", 100))
        self.assertEqual((end["frames"], end["bytes"], end["seconds"], end["result"], end["reason"]),
                         (40, 4000, 2.0, "failed", "the origin's response was cut off"))  # fmt: skip
        self.assertEqual((start["log_level"], end["log_level"]), (LogLevel.info, LogLevel.warn))

    def test_status(self) -> None:
        """Running jobs tell their progress; ended ones their result and reason."""
        job = self.jobs.start(INSTANCE, JobKind.BLOCK, "cpu-above-limit", 100)
        other = self.jobs.start(INSTANCE, JobKind.DISPLAY, "cpu-above-limit", 10)
        job.frames = 7
        self.jobs.end(other, Result.DONE)
        status = self.jobs.status()
        self.assertEqual([(one["kind"], one["frames"], one["result"]) for one in status["running"]],
                         [("block", 7, None)])  # fmt: skip
        self.assertEqual([(one["kind"], one["result"], one["reason"]) for one in status["ended"]],
                         [("display", "done", "cpu-above-limit")])  # fmt: skip
        self.assertEqual(self.jobs.count(), 1)

    def test_counted(self) -> None:
        """Ended jobs and their frames are counted by kind."""
        job = self.jobs.start(INSTANCE, JobKind.BLOCK, "x", 100)
        job.frames = 100
        self.jobs.end(job, Result.DONE)
        rendered = self.metrics.render().decode()
        self.assertIn('prefetch_jobs_total{kind="block",result="done"} 1.0', rendered)
        self.assertIn('prefetch_frames_total{kind="block"} 100.0', rendered)

    def test_taken_back(self) -> None:
        """Frames that a failed or stopped whole-instance load took back are not counted; those of a block stay, and are."""
        for kind, result in (
            (JobKind.WHOLE, Result.FAILED),
            (JobKind.WHOLE, Result.STOPPED),
            (JobKind.BLOCK, Result.FAILED),
        ):
            job = self.jobs.start(INSTANCE, kind, "x", 100)
            job.frames = 40
            self.jobs.end(job, result)
        rendered = self.metrics.render().decode()
        self.assertIn('prefetch_frames_total{kind="whole"} 0.0', rendered)
        self.assertIn('prefetch_frames_total{kind="block"} 40.0', rendered)

    def test_reaped(self) -> None:
        """Ended jobs are dropped after an interval, running ones never."""
        self.jobs.start_reaping()
        self.jobs.start(INSTANCE, JobKind.WHOLE, "x", 1)
        self.jobs.end(self.jobs.start(INSTANCE, JobKind.BLOCK, "x", 1), Result.DONE)
        self.clock.advance(30)
        self.jobs.end(self.jobs.start(INSTANCE, JobKind.DISPLAY, "x", 1), Result.DONE)
        self.clock.advance(30)
        self.assertEqual([one["kind"] for one in self.jobs.status()["ended"]], ["display"])
        self.clock.advance(60)
        status = self.jobs.status()
        self.assertEqual((len(status["running"]), status["ended"]), (1, []))
        self.jobs.stop_reaping()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_reaped_and_told(self) -> None:
        """Of each job that is dropped the log says how it ended."""
        self.jobs.start_reaping()
        job = self.jobs.start(INSTANCE, JobKind.WHOLE, "x", 100)
        job.frames, job.bytes = 100, 5000
        self.clock.advance(3)
        self.jobs.end(job, Result.DONE)
        self.clock.advance(117)
        (dropped,) = self.logged("job_dropped")
        told = [dropped[name] for name in ("instance", "kind", "frames", "bytes", "seconds", "result")]
        self.assertEqual(told, [INSTANCE.path, "whole", 100, 5000, 3.0, "done"])
        self.jobs.stop_reaping()

    def test_the_reaper_lives_on(self) -> None:
        """What goes wrong in the loop's body is logged and does not end it."""

        def broken(_before: float) -> None:
            raise RuntimeError("ours")

        self.patch(self.jobs, "drop_ended", broken)
        self.jobs.start_reaping()
        self.clock.advance(60)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.clock.advance(60)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.jobs.stop_reaping()

    def test_bounded(self) -> None:
        """However many jobs end within an interval, a bounded number is remembered."""
        for _ in range(MAX_ENDED + 10):
            self.jobs.end(self.jobs.start(INSTANCE, JobKind.DISPLAY, "x", 1), Result.DONE)
        self.assertEqual(len(self.jobs.status()["ended"]), MAX_ENDED)

    def test_last(self) -> None:
        """Of an instance the running load, of several that of the whole; then the one that ended last; then none."""
        other = attrs.evolve(INSTANCE, sop="1.9")
        self.jobs.start(other, JobKind.WHOLE, "x", 1000)
        kinds = ((JobKind.BLOCK, 880), (JobKind.WHOLE, 100), (JobKind.DISPLAY, 144))
        block, whole, display = (self.jobs.start(INSTANCE, kind, "x", total) for kind, total in kinds)
        for job in (whole, block, display):
            self.assertIs(self.jobs.last(INSTANCE), job)
            self.jobs.end(job, Result.DONE)
        self.assertIs(self.jobs.last(INSTANCE), display)
        self.jobs.drop_ended(self.clock.seconds())
        self.assertIsNone(self.jobs.last(INSTANCE))

    def test_drain(self) -> None:
        """Each who waits for the last job's end has a Deferred of their own."""
        self.successResultOf(Deferred.fromCoroutine(self.jobs.drain()))
        jobs = [self.jobs.start(INSTANCE, kind, "x", 1) for kind in (JobKind.WHOLE, JobKind.DISPLAY)]
        waiting = [Deferred.fromCoroutine(self.jobs.drain()) for _ in range(2)]
        waiting[0].cancel()
        self.failureResultOf(waiting[0])
        self.jobs.end(jobs[0], Result.DONE)
        self.assertNoResult(waiting[1])
        self.jobs.end(jobs[1], Result.STOPPED)
        self.successResultOf(waiting[1])


class UsefulnessTests(SynchronousTestCase):
    """How many prefetched frames are then asked for."""

    def used(self, metrics: Metrics) -> float:
        return sum(row[1][0] for row in metrics.snapshot().get("prefetch_frames_used", []))

    def test_once_each(self) -> None:
        """A frame counts once, also an instance's last."""
        metrics = Metrics()
        usefulness = Usefulness(metrics)
        usefulness.asked(INSTANCE, 9, [1, 8, 9])
        usefulness.asked(INSTANCE, 9, [9, 2, 2])
        self.assertEqual(self.used(metrics), 4)

    def test_any_number(self) -> None:
        """Metadata may say any number of frames; of an instance of more than there are nothing is kept."""
        metrics = Metrics()
        for frames in (MAX_FRAMES + 1, MAX_INTEGER):
            self.assertEqual(Usefulness(metrics).asked(INSTANCE, frames, [1, frames]), [])
        self.assertEqual(Usefulness(metrics).asked(INSTANCE, MAX_FRAMES, [1, MAX_FRAMES]), [1, MAX_FRAMES])

    def test_bounded(self) -> None:
        """Only so many instances are remembered; those asked for last stay."""
        metrics = Metrics()
        usefulness = Usefulness(metrics)
        for number in range(MAX_INSTANCES):
            usefulness.asked(attrs.evolve(INSTANCE, sop=f"1.{number}"), 9, [1])
        usefulness.asked(attrs.evolve(INSTANCE, sop="1.0"), 9, [1])
        usefulness.asked(attrs.evolve(INSTANCE, sop="2"), 9, [1])
        self.assertEqual(self.used(metrics), MAX_INSTANCES + 1)
        usefulness.asked(attrs.evolve(INSTANCE, sop="1.0"), 9, [1])
        self.assertEqual(self.used(metrics), MAX_INSTANCES + 1)
        usefulness.asked(attrs.evolve(INSTANCE, sop="1.1"), 9, [1])
        self.assertEqual(self.used(metrics), MAX_INSTANCES + 2)
