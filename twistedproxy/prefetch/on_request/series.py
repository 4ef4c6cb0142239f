"""Loads of series and studies that a caller asks for by name: all of their instances, one series after another.

- The caller must have been given something of it: where the store denies the first instances, its refusal goes back as it came.
- Which instances there are is what the store names in the series' metadata, or else finds in a search, for that very caller.
- Slices are loaded side by side, multi-frames whole and one after another. What is in the cache already is left alone.
- An instance that the store refuses is counted and named, and ends nothing. Failures of the store itself end the job after some
  in a row.
- A caller has one job for a series or study at a time, of which other callers hear nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Optional

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from twistedproxy.deferreds import all_or_none
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.entries import expected
from twistedproxy.frames.read_through import AnswerTooLarge, FrameReader, FrameRequest, NoSuchFrame
from twistedproxy.frames.searches import search_uids
from twistedproxy.frames.series_answers import SeriesAnswers
from twistedproxy.origin.errors import DENIALS, FramesRefused, OriginError, OriginRefused, refused
from twistedproxy.prefetch.ahead.slices import OF_THIS_ONE, SIDE_BY_SIDE, NotRead, SliceLoader, lanes
from twistedproxy.prefetch.jobs import Job, JobKind, LoadFailed, NotStarted, Refusal, Result
from twistedproxy.prefetch.on_request.instances import LoadsByHand
from twistedproxy.prefetch.on_request.job import SeriesJob
from twistedproxy.prefetch.rules import Reason, switched_off
from twistedproxy.series.members import Member

TRIED = 3
"""Instances of a series, and series of a study, of which one must be granted."""

BATCH = 240
"""Instances that are looked at before the first of them are loaded, where the series' metadata do not tell of them."""

SKIPPED = frozenset(
    one.value for one in (Reason.SYNTAX_NOT_SUPPORTED, Reason.FRAME_SIZE_UNKNOWN, Reason.PACKED_FRAMES, Reason.SPARSE)
)
"""Reasons against a load that lie in the instance: to leave it out is no failure."""

ELSEWHERE_SECONDS = 3.0
"""Pause before an instance is looked at again that another worker or host is loading."""

NO_PICTURE = "no-pixels"
_SERIES, _SOP = "0020000E", "00080018"
_FAILURES = (OriginError, NoSuchFrame, AnswerTooLarge)


@attrs.frozen
class _Asked:
    """What a job is for. *request*: of the caller; its instance stands for the series or study."""

    job: SeriesJob
    request: FrameRequest
    again: bool


@attrs.frozen
class _Listed:
    """The instances of a series, in the order in which they are loaded, and the facts of those whose series says them."""

    instances: Sequence[Instance]
    facts: Mapping[str, Member]


@attrs.define(eq=False)
class SeriesLoads:
    """Loads series and studies, for one worker."""

    by_hand: LoadsByHand
    answers: SeriesAnswers
    _slices: SliceLoader = attrs.field(
        init=False, default=attrs.Factory(lambda self: SliceLoader(self.by_hand.reader), takes_self=True)
    )

    @property
    def _reader(self) -> FrameReader:
        return self.by_hand.reader

    async def start(self, wanted: FrameRequest, kind: JobKind, again: bool) -> Job:
        """Start a load of the series or study that *wanted*'s instance stands for; *again*: also of multi-frames that were loaded
        lately. The caller's job that runs already, where one does.

        Raises `NotStarted`, and the errors of `twistedproxy.origin.errors`.
        """
        series = await self.admitted(wanted, kind)
        scheduler, jobs = self.by_hand.scheduler, self.by_hand.scheduler.jobs
        if (off := switched_off(scheduler.settings)) is not None:
            raise NotStarted(409, off.value, f"nothing is loaded: {off.value}")
        running = self.report(wanted)
        if running is not None and running.result is None:
            return running
        scheduler.check_room(wanted.instance, sum(isinstance(job, SeriesJob) for job in jobs.running))
        now, who = scheduler.clock.seconds(), wanted.caller.credential
        job = SeriesJob(wanted.instance, kind, Reason.ASKED_BY_HAND.value, 0, now, credential=who)
        jobs.add(job)
        work = self._work(_Asked(job, attrs.evolve(wanted, prefetch=False), again), series)
        job.running = Deferred.fromCoroutine(jobs.carry_out(job, work))
        job.running.addErrback(lambda failure: failure.trap(CancelledError) and None)
        return job

    def report(self, wanted: FrameRequest) -> Optional[Job]:
        """The caller's running job, or the last that is remembered."""
        return self.by_hand.scheduler.jobs.last(wanted.instance, wanted.caller.credential)

    async def admitted(self, wanted: FrameRequest, kind: JobKind) -> Sequence[Instance]:
        """The series that there are, each by what stands for it, where the store lets the caller read something of it. Raises the
        errors of `twistedproxy.origin.errors`: its refusal where it does not."""
        if kind is JobKind.SERIES:
            await self._one_is_granted(wanted, wanted.instance)
            return [wanted.instance]
        study = wanted.instance
        path = f"{study.root}/studies/{study.study}/series"
        found = await search_uids(wanted.origin, path, _SERIES, wanted.caller)
        series = [attrs.evolve(study, series=uid, sop=uid) for uid in found]
        denied = refused(404, "the study has no series")
        for one in series[:TRIED]:
            try:
                await self._one_is_granted(wanted, one)
                return series
            except OriginRefused as error:
                if error.status not in DENIALS:
                    raise
                denied = error
        raise denied

    async def _one_is_granted(self, wanted: FrameRequest, series: Instance) -> None:
        """Return where the caller has a grant for one of the first pictures, or where the series has none but is shown to the caller."""
        listed = await self._listed(wanted, series)
        denied: Optional[OriginRefused] = None
        pictures = (one for one in listed.instances if _may_be_picture(listed.facts.get(one.sop)))
        for one in islice(pictures, TRIED):
            try:
                await self._reader.granted(wanted.origin, one, wanted.caller, [])
                return
            except OriginRefused as error:
                if error.status not in DENIALS:
                    raise
                denied = error
        if denied is not None:
            raise denied

    async def _listed(self, wanted: FrameRequest, series: Instance) -> _Listed:
        """The instances of *series*: of a stack in the order of its slices. Raises the errors of `twistedproxy.origin.errors`."""
        answer = await self.answers.find(wanted.origin, series, wanted.caller, ask=True)
        members = {} if answer is None else answer.members
        sops = list(members)
        if answer is not None and answer.stack is not None:
            sops = [*answer.stack.order, *(sop for sop in sops if sop not in answer.stack.index)]
        if not sops:
            path = f"{series.root}/studies/{series.study}/series/{series.series}/instances"
            sops = await search_uids(wanted.origin, path, _SOP, wanted.caller)
        if not sops:
            raise refused(404, "the series has no instances")
        return _Listed([attrs.evolve(series, sop=sop) for sop in sops], members)

    async def _work(self, asked: _Asked, series: Sequence[Instance]) -> None:
        job = asked.job
        for one in series:
            try:
                listed = await self._listed(asked.request, one)
            except OriginError as error:
                job.instances += 1
                job.failed("/".join(one.path.split("/")[:4]), error)
                continue
            job.instances += len(listed.instances)
            for start in range(0, len(listed.instances), BATCH):
                await self._batch(asked, listed.instances[start : start + BATCH], listed.facts)
        if job.counts["failed"] and not job.counts["loaded"] + job.counts["present"]:
            first = next(one["reason"] for one in job.not_loaded if one["result"] == "failed")
            raise LoadFailed(f"nothing could be loaded; the first reason: {first}")

    async def _batch(self, asked: _Asked, batch: Sequence[Instance], known: Mapping[str, Member]) -> None:
        facts = {one: known[one.sop].metadata for one in batch if one.sop in known}
        unknown = iter([one for one in batch if one.sop not in known])
        await _side_by_side(SIDE_BY_SIDE, lambda: self._look(asked, unknown, facts))
        job = asked.job
        job.total += sum(one.frames for one in facts.values() if one.rows and one.columns)
        pictures = {one: facts[one] for one in batch if one in facts and facts[one].rows and facts[one].columns}
        for one in facts.keys() - pictures.keys():
            job.left(one.path, "skipped", NO_PICTURE)
        single = {one: found for one, found in pictures.items() if found.frames == 1}
        whole = [one for one in pictures if one not in single]
        if single:
            await self._load_slices(asked, single, whole)
        for one in whole:
            await self._load_whole(asked, one, facts[one].frames)

    async def _look(
        self, asked: _Asked, unknown: Iterator[Instance], facts: dict[Instance, InstanceMetadata]
    ) -> None:  # fmt: skip
        """Find out the *facts* of instances of which nothing is known."""
        request = asked.request
        for one in unknown:
            try:
                await request.origin.ready(request.caller)
                grant, _ = await self._reader.granted(request.origin, one, request.caller, [])
            except OriginError as error:
                asked.job.failed(one.path, error)
            else:
                facts[one] = grant.metadata

    async def _load_slices(
        self, asked: _Asked, single: Mapping[Instance, InstanceMetadata], whole: list[Instance]
    ) -> None:  # fmt: skip
        """Load instances of one frame; those whose frame the store does not give for itself come to *whole*."""
        left, of_others = iter(single), list[Instance]()
        count = lanes(max(single.values(), key=expected))
        await _side_by_side(count, lambda: self._lane(asked, left, of_others, whole))
        others = iter(of_others)
        await _side_by_side(count, lambda: self._lane(asked, others, None, whole))

    async def _lane(
        self, asked: _Asked, left: Iterator[Instance], of_others: Optional[list[Instance]], whole: list[Instance]
    ) -> None:  # fmt: skip
        """Load what is *left*. Those that another worker is at come to *of_others*; None: they are read all the same."""
        job, request = asked.job, asked.request
        load = self._slices.load if of_others is not None else self._slices.read
        for one in left:
            try:
                answer = await load(request.origin, one, request.caller)
            except _FAILURES as error:
                if isinstance(error, FramesRefused) or _is_refused_so(error, OF_THIS_ONE - DENIALS):
                    whole.append(one)
                else:
                    job.failed(one.path, error)
            else:
                if answer is NotRead.CLAIMED and of_others is not None:
                    of_others.append(one)
                elif isinstance(answer, NotRead) or answer.cached:
                    job.total -= 1
                    job.done("present")
                elif not answer.stored:
                    job.left(one.path, "failed", Refusal.CACHE_UNREACHABLE.value, of_the_store=True)
                else:
                    job.progressed(job.frames + 1, job.bytes + answer.size)
                    job.done("loaded")

    async def _load_whole(self, asked: _Asked, instance: Instance, frames: int) -> None:
        """Load *instance* with so many *frames* as if it had been asked for by itself, once there is room for it."""
        job = asked.job
        try:
            part = await self._begun(attrs.evolve(asked.request, instance=instance), asked.again)
        except NotStarted as not_started:
            if not_started.reason == Refusal.LOADED_LATELY.value:
                job.total -= frames
                job.done("present")
            else:
                how = "skipped" if not_started.reason in SKIPPED else "failed"
                job.left(instance.path, how, not_started.reason, not_started.status == 503)
            return
        except _FAILURES as error:
            job.failed(instance.path, error)
            return
        before, size = job.frames, job.bytes
        while part.ended is None:
            await part.moved.wait()
            job.progressed(before + part.frames, size + part.bytes)
        if part.result is Result.DONE:
            job.progressed(before + part.frames, size + part.bytes)
            job.by_others += part.frames
            job.done("loaded")
        else:
            job.progressed(before, size)
            job.left(instance.path, "failed", part.reason, of_the_store=True)

    async def _begun(self, wanted: FrameRequest, again: bool) -> Job:
        while True:
            try:
                return await self.by_hand.start(wanted, again)
            except NotStarted as busy:
                if busy.elsewhere:
                    await deferLater(self.by_hand.scheduler.clock, ELSEWHERE_SECONDS)
                    continue
                if busy.reason != Refusal.JOBS_BUSY.value:
                    raise
            await self.by_hand.scheduler.jobs.fewer()


async def _side_by_side(count: int, lane: Callable[[], Coroutine[Deferred[Any], Any, None]]) -> None:
    await all_or_none([Deferred.fromCoroutine(lane()) for _ in range(count)])


def _is_refused_so(error: Exception, statuses: Collection[int]) -> bool:
    return isinstance(error, OriginRefused) and error.status in statuses


def _may_be_picture(member: Optional[Member]) -> bool:
    return member is None or bool(member.metadata.rows and member.metadata.columns)
