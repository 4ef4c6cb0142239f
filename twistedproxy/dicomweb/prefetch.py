"""``{instance}/prefetch``, ``{series}/prefetch``, ``{study}/prefetch``: start a load of it on request, and report on it.

- A caller needs a grant of its own, to start a load as well as to read of one; of a series or study for one of the first instances.
- A job belongs to the proxy, not to the request: it goes on when the client disconnects.
- At an orderly stop a followed job has a part of the deadline to end; then it is cancelled, and its answer ends with that.
- A job is followed in one answer that ends with it: another request could reach another worker, which does not know it.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from typing import Optional

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from twistedproxy.dicom.negotiation import asks_for
from twistedproxy.frames.read_through import FrameRequest
from twistedproxy.prefetch.jobs import Job, JobBook, JobKind
from twistedproxy.prefetch.on_request.instances import LoadsByHand
from twistedproxy.prefetch.on_request.series import SeriesLoads
from twistedproxy.prefetch.scheduler import Scheduler
from twistedproxy.server.problems import Problem, shown
from twistedproxy.server.response_body import LINES, send_lines, send_page

LINE_SECONDS = 0.25
"""Interval of the lines about a followed job: a smooth progress bar, and no idle connection that a proxy would cut."""

SHARE_OF_STOP = 0.5
"""Of the deadline of an orderly stop, what a followed job has left. What it wrote is removed in the rest."""

_FLAGS = {b"1": True, b"true": True, b"0": False, b"false": False, b"": False}


@attrs.frozen
class PrefetchParameters:
    """What the query and the Accept header of a request ask for. *again*: even if it was loaded lately."""

    again: bool = False
    follow: bool = False

    @classmethod
    def of(cls, query: bytes, accept: Optional[bytes]) -> PrefetchParameters:
        """Read them. Raises `Problem` 400 for what is not known: a misspelt ``again`` must not be ignored."""
        given = {"follow": asks_for(accept, LINES)}
        for field in filter(None, query.split(b"&")):
            name, _, value = field.partition(b"=")
            if name not in (b"again", b"follow") or value not in _FLAGS:
                raise Problem(400, f"unknown query parameter {shown(field)}; expected again=1 or follow=1")
            given[name.decode("ascii")] = _FLAGS[value]
        return cls(**given)


@attrs.define(eq=False)
class PrefetchEndpoint:
    """Starts loads on request and reports on them."""

    by_hand: LoadsByHand
    series: SeriesLoads
    jobs: JobBook
    clock: IReactorTime
    _give_up_at: float = attrs.field(init=False, default=math.inf)

    @classmethod
    def of(cls, scheduler: Scheduler) -> PrefetchEndpoint:
        """That of a worker, whose *scheduler* starts its loads."""
        by_hand, answers = LoadsByHand(scheduler), scheduler.reader.access.series
        assert answers is not None
        return cls(by_hand, SeriesLoads(by_hand, answers), scheduler.jobs, scheduler.clock)

    def opened(self, wanted: FrameRequest) -> None:
        """A caller was given what describes an instance of a slide, most likely before its first tile."""
        scheduler = self.by_hand.scheduler
        if scheduler.ahead is not None and not scheduler.background.stopped:
            scheduler.background.run(scheduler.ahead.opened(wanted))

    def stop_within(self, seconds: float) -> None:
        """Have all answers that follow a job ended in *seconds*."""
        self._give_up_at = self.clock.seconds() + seconds * SHARE_OF_STOP

    async def start(
        self, request: Request, wanted: FrameRequest, kind: JobKind, asked: PrefetchParameters, url: str
    ) -> None:
        """Start a load of what *wanted*'s instance is or (*kind*) stands for, and answer with its job. *url*: where the job can be
        asked for.

        Raises `NotStarted`, and the errors of `twistedproxy.origin.errors`.
        """
        if kind is JobKind.WHOLE:
            job = await self.by_hand.start(wanted, asked.again)
        else:
            job = await self.series.start(wanted, kind, asked.again)
        request.setResponseCode(202)
        request.responseHeaders.setRawHeaders(b"Location", [url.encode("ascii")])
        await self._send(request, job, asked.follow)

    async def report(self, request: Request, wanted: FrameRequest, kind: JobKind, asked: PrefetchParameters) -> None:
        """Answer with the running job of the same, or the last that this worker remembers; of a series or study the caller's own.

        Raises `Problem` 404 where there is none, and the errors of `twistedproxy.origin.errors`.
        """
        if kind is JobKind.WHOLE:
            await self.by_hand.reader.granted(wanted.origin, wanted.instance, wanted.caller, [])
            job = self.jobs.last(wanted.instance)
        else:
            await self.series.admitted(wanted, kind)
            job = self.series.report(wanted)
        if job is None:
            raise Problem(404, "this worker knows of no load of it; POST starts one")
        await self._send(request, job, asked.follow and job.result is None)

    async def _send(self, request: Request, job: Job, follow: bool) -> None:
        """Answer with what is known of *job*, or (*follow*) with a line every moment until it ends."""
        if follow:
            await send_lines(request, self.lines(job))
        else:
            send_page(request, b"application/json", _json(job.fields(self.clock.seconds())))

    async def lines(self, job: Job) -> AsyncIterator[bytes]:
        """*job* as JSON lines, from now on to its end; the last one has the result. Once it is too late the job is given up."""
        last = False
        while not last:
            too_late = job.result is None and self.clock.seconds() >= self._give_up_at
            if too_late and job.running is not None:
                job.running.cancel()
            last = job.result is not None or (too_late and job.running is None)  # a part of another job ends with that
            yield _json(job.fields(self.clock.seconds()))
            if not last and job.result is None:
                await job.over.wait().addTimeout(LINE_SECONDS, self.clock, lambda *_: None)


def _json(fields: dict[str, object]) -> bytes:
    return json.dumps(fields).encode("ascii") + b"\n"
