"""What passes between workers goes through the parent.

- An invalidation by one worker is confirmed by every other before the first goes on. A worker that does not confirm in
  time is killed: it would serve what is out of date.
- A worker takes part from just before it listens until it has ended: the new and the old side by side in a reload.
- Counters never go backwards: what a worker last counted stays counted when it has gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Optional

import attrs
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.logger import Logger

from twistedproxy.deferreds import all_or_none
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.frames.invalidation import Siblings
from twistedproxy.processes.channel import CallError, Channel, Handler
from twistedproxy.processes.child import ChildProcess
from twistedproxy.system.logs import LogOutput
from twistedproxy.system.metrics import FAMILIES, Snapshot, merge

CONFIRM_SECONDS = 3.0
"""How long a worker may take to answer another's call; one that hangs must not hold up the others."""

PARENT_SECONDS = 15.0
"""How long the parent may take: it waits for a worker that hangs, and kills it."""

_log = Logger()


class WorkerProcess(ChildProcess):
    """A worker as its parent sees it. *workers*: those that it is one of."""

    def __init__(self, reactor: Any, workers: Workers, output: Optional[LogOutput] = None) -> None:
        super().__init__(reactor, "worker", workers.handlers(self), output)
        self.joined = False
        """Whether it may hold what others invalidate."""
        self.counted: Snapshot = {}
        """Its metrics as they were last known."""


class Workers:
    """All living workers, and the calls of each to the others."""

    def __init__(self) -> None:
        self.all: list[WorkerProcess] = []
        self._of_the_ended: Snapshot = {}

    def add(self, worker: WorkerProcess) -> None:
        """Have a process take part until it ends."""
        self.all.append(worker)
        worker.ended().addCallback(self._ended, worker)

    def restarted(self) -> None:
        """A worker is started in the place of one that ended unasked."""
        self._of_the_ended = merge([self._of_the_ended, {"worker_restarts": [[[], [1.0]]]}])

    def _ended(self, _result: object, worker: WorkerProcess) -> None:
        self.all.remove(worker)
        self._of_the_ended = merge([self._of_the_ended, _lasting(worker.counted)])

    def handlers(self, worker: WorkerProcess) -> dict[str, Handler]:
        """What *worker* may call."""

        async def join() -> None:
            worker.joined = True

        async def counted(snapshot: Snapshot) -> None:
            worker.counted = snapshot

        async def snapshots() -> list[Snapshot]:
            return await self._snapshots(worker)

        async def statuses() -> list[Any]:
            answers = await all_or_none([_answer(other, "status") for other in self._others(worker)])
            return [answer for answer in answers if answer is not None]

        def to_others(name: str) -> Callable[..., Awaitable[None]]:
            async def call(**arguments: Any) -> None:
                await all_or_none([_confirmed(other, name, arguments) for other in self._others(worker)])

            return call

        return {
            "join": join,
            "counted": counted,
            "snapshots": snapshots,
            "statuses": statuses,
            **{name: to_others(name) for name in ("invalidate", "revoke")},
        }

    def _others(self, calling: WorkerProcess) -> list[WorkerProcess]:
        return [one for one in self.all if one.joined and one.alive and one is not calling]

    async def _snapshots(self, calling: WorkerProcess) -> list[Snapshot]:
        asked = self._others(calling)
        answers = await all_or_none([_answer(one, "snapshot") for one in asked])
        for worker, answer in zip(asked, answers, strict=True):
            worker.counted = answer or worker.counted
        # a worker that ended meanwhile is among those of the past by now
        return [self._of_the_ended, *(worker.counted for worker in asked if worker in self.all)]


def _call(worker: WorkerProcess, name: str, arguments: dict[str, Any]) -> Deferred[Any]:
    return worker.channel.call(name, **arguments).addTimeout(CONFIRM_SECONDS, worker.reactor)


def _confirmed(worker: WorkerProcess, name: str, arguments: dict[str, Any]) -> Deferred[None]:
    """Fires once *worker* has done as it was called for, or has gone."""

    async def confirmed() -> None:
        try:
            await _call(worker, name, arguments)
        except (CallError, defer.TimeoutError) as error:
            reason = str(error) or "timed out"
            _log.error(
                "killing worker {pid}: it did not confirm an invalidation ({reason})",
                pid=worker.pid,
                reason=reason,
                event="invalidation_unconfirmed",
            )
            await worker.killed()
        except ConnectionLost:
            return  # it is going

    return Deferred.fromCoroutine(confirmed())


def _answer(worker: WorkerProcess, name: str) -> Deferred[Any]:
    """What *worker* answers; None where it doesn't."""

    def not_answered(failure: Any) -> None:
        failure.trap(ConnectionLost, CallError, defer.TimeoutError)
        reason = failure.getErrorMessage() or "timed out"
        _log.warn("worker {pid} did not answer: {reason}", pid=worker.pid, reason=reason)

    return _call(worker, name, {}).addErrback(not_answered)


def _lasting(snapshot: Snapshot) -> Snapshot:
    """Of what a worker counted that which outlives it: no gauges."""
    return {name: rows for name, rows in snapshot.items() if FAMILIES[name].kind in ("counter", "histogram")}


@attrs.frozen
class SiblingsByParent(Siblings):
    """`Siblings` of several processes. *own*: what this one counted.

    Fails with `CallError`, `ConnectionLost` and `TimeoutError`: without its parent a worker is about to end.
    """

    parent: Channel
    reactor: Any
    own: Callable[[], Snapshot]

    async def invalidate(self, scope: Scope, cache_invalidated: bool) -> None:
        await self._call("invalidate", scope=attrs.astuple(scope), cache_invalidated=cache_invalidated)

    async def revoke(self, credential: bytes, instance: Instance) -> None:
        address = (instance.origin, instance.root, instance.study, instance.series, instance.sop)
        await self._call("revoke", credential=credential.hex(), instance=address)

    async def snapshots(self) -> list[Snapshot]:
        others: list[Snapshot] = await self._call("snapshots")
        # This worker's own numbers are shown right after this: the parent must know them, should this end the next moment.
        self.parent.notify("counted", snapshot=self.own())
        return others

    async def statuses(self) -> list[dict[str, Any]]:
        statuses: list[dict[str, Any]] = await self._call("statuses")
        return statuses

    def _call(self, name: str, **arguments: Any) -> Deferred[Any]:
        return self.parent.call(name, **arguments).addTimeout(PARENT_SECONDS, self.reactor)
