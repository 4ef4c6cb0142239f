"""``{series}/coverage``, ``{instance}/coverage``: which frames are cached, being loaded or claimed; once, or as a stream of changes.

Rules:
- An instance is named to a caller who has a grant for it, which is looked at before each object; the store is never asked. One whose
  grant ends is ``null`` in the next object of a stream.
- A stream is written at its client's pace: what changed meanwhile is one object, the newest.
- A stream ends with its client, or when the proxy stops. There is a bound on their number; where it is reached, the oldest one that
  has nothing to show makes room: anybody may open such ones.
- All streams together cost some 5 % of a core: each rests the longer, the more there are and the more it has to look at.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, Optional

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from twistedproxy.cache.interface import Fence
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.negotiation import asks_for
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.read_through import FrameReader, FrameRequest
from twistedproxy.frames.series_answers import SeriesAnswer
from twistedproxy.page.survey import TICK, Survey
from twistedproxy.page.surveyor import REST, Lane, Surveyor
from twistedproxy.prefetch.jobs import Job, JobKind
from twistedproxy.prefetch.scheduler import Scheduler
from twistedproxy.server.problems import unavailable
from twistedproxy.server.response_body import LINES, send_lines, send_page

LOOK_SECONDS = 0.5
"""How often grants and jobs are looked at while nothing moves."""

ALIVE_SECONDS = 10.0
"""How often something is written while there is nothing to tell: proxies on the way cut what is silent for a minute."""

WHOLE_SECONDS = 30.0
"""How long one object is put together at most."""

MAX_WATCHES = 200
"""Streams, and single answers under way, of one worker."""

RETRY_AFTER = 10
"""Seconds after which another one may be possible."""

MAX_JOBS = 20
"""Jobs of one object."""

ENDED_SECONDS = 10.0
"""How long an ended job is told of."""

_OF_INSTANCE = frozenset((JobKind.WHOLE, JobKind.BLOCK, JobKind.DISPLAY, JobKind.AHEAD))

Granted = tuple[Instance, int, Optional[Fence]]
"""An instance, its number of frames, and the fence that its grant was obtained under (None: it was looked at just now)."""


@attrs.define(eq=False)
class _Watch:
    """What one client sees: of *wanted*'s instance, or (*whole*) of the series that it stands for. *sent*: the versions that it has."""

    wanted: FrameRequest
    whole: bool
    surveys: dict[str, Survey] = attrs.Factory(dict)
    sent: dict[str, int] = attrs.Factory(dict)
    jobs: Optional[list[dict[str, object]]] = None
    ended: bool = False
    work: float = 0.0
    """Seconds that the look under way has worked, waits apart."""
    _answer: Optional[SeriesAnswer] = None
    _members: Mapping[str, Granted] = attrs.Factory(dict)

    @property
    def series(self) -> Instance:
        """What stands for the series."""
        return self.wanted.instance.of_series

    def members(self, answer: Optional[SeriesAnswer]) -> Mapping[str, Granted]:
        """The instances with pixels that *answer* names. Found once for each."""
        if answer is None:
            return {}
        if answer is not self._answer:
            known = ((sop, member.metadata) for sop, member in answer.members.items())
            self._members = {
                sop: (attrs.evolve(self.series, sop=sop), facts.frames, None)
                for sop, facts in known
                if _has_pixels(facts)
            }
            self._answer = answer
        return self._members


@attrs.define(eq=False)
class CoverageAnswers:
    """Answers requests for coverage, for one worker."""

    reader: FrameReader
    surveyor: Surveyor
    clock: IReactorTime
    max_watches: int = MAX_WATCHES
    _open: dict[_Watch, None] = attrs.field(init=False, factory=dict)
    _stopped: bool = attrs.field(init=False, default=False)

    @classmethod
    def of(cls, scheduler: Scheduler, clock: Any) -> CoverageAnswers:
        """Those of a worker, whose *scheduler* loads."""
        queues = None if scheduler.ahead is None else scheduler.ahead.queues
        lane = Lane(clock)
        surveyor = Surveyor(scheduler.cache, scheduler.reader, queues, scheduler.jobs, clock, lane)
        return cls(scheduler.reader, surveyor, clock)

    @property
    def watches(self) -> int:
        """How many watch."""
        return len(self._open)

    def stop(self) -> None:
        """End all streams."""
        self._stopped = True
        self.surveyor.moved.fire()
        self.surveyor.stop()

    async def answer(self, request: Request, wanted: FrameRequest, whole: bool, accept: Optional[bytes]) -> None:
        """Answer with the coverage of *wanted*'s instance, or (*whole*) of the series that it stands for. Raises `Problem` 503."""
        watch = _Watch(wanted, whole)
        with self._counted(watch):
            if asks_for(accept, LINES):
                await send_lines(request, self.lines(watch))
            else:
                send_page(request, b"application/json", await self._once(watch))

    @contextmanager
    def _counted(self, watch: _Watch) -> Iterator[None]:
        """While a client watches; what it watched is let go of at the end."""
        if self.watches >= self.max_watches:
            self._make_room()
        if self._stopped or self.watches >= self.max_watches:
            why = "the proxy is stopping" if self._stopped else f"{self.watches} clients watch coverage, as many as may"
            raise unavailable(why, RETRY_AFTER)
        self._open[watch] = None
        try:
            yield
        finally:
            self._open.pop(watch, None)
            self._follow(watch, {})

    def _make_room(self) -> None:
        """Have the oldest stream end that has nothing to show."""
        idle = next((watch for watch in self._open if not watch.surveys), None)
        if idle is not None:
            idle.ended = True
            del self._open[idle]

    async def _once(self, watch: _Watch) -> bytes:
        """One object of all that is granted."""
        until = self.clock.seconds() + WHOLE_SECONDS
        while True:
            granted = await self._granted(watch)
            self._follow(watch, granted)
            if all(survey.version for survey in watch.surveys.values()):
                return self._object(watch, granted) or b""
            if self._stopped or self.clock.seconds() >= until:
                raise unavailable("the cache is too busy to be looked through", RETRY_AFTER)
            await self._moved(LOOK_SECONDS)

    async def lines(self, watch: _Watch) -> AsyncIterator[bytes]:
        """Objects, one a line, whenever something has changed; an empty line now and then."""
        written = self.clock.seconds()
        while not (self._stopped or watch.ended):
            watch.work = 0.0
            granted = await self._granted(watch)
            began, working = self.clock.seconds(), self.surveyor.lane.seconds()
            self._follow(watch, granted)
            line = self._object(watch, granted)
            watch.work += self.surveyor.lane.seconds() - working
            if line is not None or began >= written + ALIVE_SECONDS:
                written = began
                yield line or b"\n"
            await self._moved(max(TICK, min(REST * watch.work * self.watches, ALIVE_SECONDS)), rest=True)
            if self._is_new(watch):
                continue
            await self._moved(LOOK_SECONDS)

    def _is_new(self, watch: _Watch) -> bool:
        return any(survey.version > watch.sent.get(sop, 0) for sop, survey in watch.surveys.items())

    async def _moved(self, seconds: float, rest: bool = False) -> None:
        """Wait until anything is new, or (*rest*) whatever is new until all is to stop, at most so long."""
        until = self.clock.seconds() + seconds
        while not self._stopped and (left := until - self.clock.seconds()) > 0:
            await self.surveyor.moved.wait().addTimeout(left, self.clock, lambda *_: None)
            if not rest:
                return

    async def _granted(self, watch: _Watch) -> Mapping[str, Granted]:
        """What the caller may read now, by SOP Instance UIDs, as far as that is known without asking the store."""
        wanted, access = watch.wanted, self.reader.access
        found: dict[str, Granted] = {}
        if not watch.whole:
            grant, reading = await self.reader.at_hand(wanted.instance, wanted.caller)
            if grant is not None and reading.fence is not None and grant.fence == reading.fence:
                found[wanted.instance.sop] = (wanted.instance, grant.metadata.frames, reading.fence)
            return found
        answer = None
        if access.series is not None and not access.by_pixels:
            answer = await access.series.find(wanted.origin, watch.series, wanted.caller, ask=False)
        working = self.surveyor.lane.seconds()
        found.update(watch.members(answer))
        for instance in list(access.grants.of_series(wanted.caller, watch.series)):
            grant = access.known(wanted.caller, instance)
            if grant is not None and grant.fence is not None and _has_pixels(grant.metadata):
                found.setdefault(instance.sop, (instance, grant.metadata.frames, grant.fence))
        if self.reader.invalidation.pending:
            pending = self.reader.invalidation.is_pending
            found = {sop: granted for sop, granted in found.items() if not pending(granted[0])}
        watch.work = self.surveyor.lane.seconds() - working
        return found

    def _follow(self, watch: _Watch, granted: Mapping[str, Granted]) -> None:
        """Have the surveyor look at what is *granted*, and at nothing else."""
        surveys = watch.surveys
        for sop in [sop for sop, survey in surveys.items() if sop not in granted or survey.frames != granted[sop][1]]:
            self.surveyor.unwatch(surveys.pop(sop))
        for sop in granted.keys() - surveys.keys():
            instance, frames, _ = granted[sop]
            survey = self.surveyor.watch(instance, frames)
            if survey is not None:
                surveys[sop] = survey

    def _object(self, watch: _Watch, granted: Mapping[str, Granted]) -> Optional[bytes]:
        """What has changed for the client of *watch*; None: nothing. The first one is never None."""
        shown = {
            sop: survey
            for sop, survey in watch.surveys.items()
            if survey.version and granted[sop][2] in (None, survey.fence)
        }
        parts = [b'"%b":null' % sop.encode("ascii") for sop in watch.sent.keys() - shown.keys()]
        for sop, survey in shown.items():
            if survey.version > watch.sent.get(sop, 0):
                parts.append(b'"%b":%b' % (sop.encode("ascii"), survey.text))
        watch.sent = {sop: survey.version for sop, survey in shown.items()}
        jobs = self._jobs(watch, granted)
        known = [{**job, "bytes_per_second": 0} for job in jobs]
        if not parts and known == watch.jobs:
            return None
        watch.jobs = known
        text = json.dumps(jobs, separators=(",", ":")).encode("ascii")
        return b'{"instances":{%b},"jobs":%b}\n' % (b",".join(parts), text)

    def _jobs(self, watch: _Watch, granted: Mapping[str, Granted]) -> list[dict[str, object]]:
        """The jobs that load what is *granted*, and those that have ended a moment ago."""
        now, jobs = self.clock.seconds(), self.surveyor.jobs
        told = [*jobs.running, *(job for job in jobs.ended if now - (job.ended or 0.0) <= ENDED_SECONDS)]
        concerned = (job for job in told if self._concerns(job, watch, granted))
        return [_fields(job, now) for job in islice(concerned, MAX_JOBS)]

    @staticmethod
    def _concerns(job: Job, watch: _Watch, granted: Mapping[str, Granted]) -> bool:
        if not granted or (job.credential and job.credential != watch.wanted.caller.credential):
            return False
        if job.kind in _OF_INSTANCE:
            return job.instance.sop in granted and granted[job.instance.sop][0] == job.instance
        return job.instance == (watch.series.of_study if job.kind is JobKind.STUDY else watch.series)


def _has_pixels(facts: InstanceMetadata) -> bool:
    return bool(facts.rows and facts.columns)


def _fields(job: Job, now: float) -> dict[str, object]:
    """What is told of *job*: its rate is that since it began."""
    seconds = (now if job.ended is None else job.ended) - job.started
    running = "waiting" if job.waits else "running"
    return {
        "kind": job.kind.value,
        "reason": job.reason,
        "state": running if job.result is None else job.result.value,
        "frames": job.frames,
        "total": job.total,
        "bytes": job.bytes,
        "bytes_per_second": round(job.bytes / seconds) if seconds > 0 else 0,
        "instance": job.instance.sop if job.kind in _OF_INSTANCE else None,
    }
