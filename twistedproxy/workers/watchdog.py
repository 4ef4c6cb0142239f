"""Finds workers that hang: whose reactor no longer turns, so that what they accepted is never answered.

- Each is pinged again and again; one that owes the answer for too many of the parent's own rounds is killed. It is rounds
  that count, not seconds: where the machine sleeps or the parent stands still, no round goes by.
- A worker that has never answered has hardly begun, and may take longer: it imports.
- One ping at a time: the pipe of one that hangs does not fill.
- Before it is killed it gets a moment to print where it hangs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from twistedproxy.workers.broadcast import WorkerProcess
from twistedproxy.workers.worker import STACKS_SIGNAL

PING_SECONDS = 5.0
"""From one round to the next."""

MAX_OWED = 6
"""Rounds; the sixth after a ping (30 s) is the last. What holds up a worker's reactor takes milliseconds."""

MAX_FIRST_OWED = 24
"""Rounds until the first answer (two minutes)."""

STACKS_SECONDS = 0.5
"""How long a worker that hangs may take to print where."""

_log = Logger()


@attrs.define(eq=False)
class _Watched:
    """*owed*: rounds since a ping that was not answered; None: there is none. *allowed*: rounds that it may take."""

    worker: WorkerProcess
    owed: Optional[int] = None
    allowed: int = MAX_FIRST_OWED

    def ping(self) -> None:
        self.owed = 0
        self.worker.channel.call("ping").addBoth(self._answered)

    def _answered(self, _result: object) -> None:
        # an error is a sign of life, too
        self.owed = None
        self.allowed = MAX_OWED


class Watchdog:
    """*workers*: those to be watched."""

    def __init__(self, reactor: Any, workers: Callable[[], Iterable[WorkerProcess]]) -> None:
        self._reactor = reactor
        self._workers = workers
        self._watched: dict[WorkerProcess, _Watched] = {}
        self._rounds = LoopingCall(self._round)
        self._rounds.clock = reactor

    def start(self) -> None:
        """Begin."""
        self._rounds.start(PING_SECONDS, now=False).addErrback(self._failed)

    def stop(self) -> None:
        """Kill none from now on."""
        if self._rounds.running:
            self._rounds.stop()

    def _round(self) -> None:
        living = [worker for worker in self._workers() if worker.alive]
        self._watched = {worker: self._watched.get(worker) or _Watched(worker) for worker in living}
        for watched in self._watched.values():
            if watched.owed is None:
                watched.ping()
                continue
            watched.owed += 1
            if watched.owed == watched.allowed:
                Deferred.fromCoroutine(self._end(watched.worker, watched.owed)).addErrback(self._failed)

    async def _end(self, worker: WorkerProcess, owed: int) -> None:
        _log.error(
            "killing worker {pid}: it has not answered for {seconds:g} s",
            pid=worker.pid,
            seconds=owed * PING_SECONDS,
            event="worker_hangs",
        )
        worker.signal(STACKS_SIGNAL)
        await deferLater(self._reactor, STACKS_SECONDS)
        await worker.killed()

    def _failed(self, failure: Any) -> None:
        _log.failure("the watchdog failed", failure)
