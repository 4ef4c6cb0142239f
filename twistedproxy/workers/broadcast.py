"""What workers have to do with each other goes through the parent, which keeps this.

- What one worker forgets, every other has forgotten before the first goes on. One that does not answer in time is
  killed: it would serve what is no more.
- A worker takes part from just before it listens until it has ended: the new and the old side by side in a reload.
- Counters never go backwards: what a worker last said it had counted stays counted when it has gone.

A worker's siblings, reached through the parent.
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
from twistedproxy.processes.child import ChildProcess
from twistedproxy.system.metrics import FAMILIES, Snapshot, merge
from twistedproxy.workers.peer import CallFailed, Handler, Peer

ANSWER_SECONDS = 3.0
"""What a worker may take to answer another's question; one that hangs must not hold up the others."""

END_SECONDS = 5.0
"""What a killed process may take to be gone: longer only where the machine hangs."""

_log = Logger()


@attrs.define(eq=False)
class Member:
    """A worker's process, as the parent sees it. *joined*: from now on it may know what others make it forget.

    *counted*: what it last said.
    """

    process: ChildProcess
    joined: bool = False
    counted: Snapshot = attrs.Factory(dict)

    async def killed(self, reactor: Any) -> None:
        """Kill it, and return when it is gone."""
        self.process.kill()
        try:
            await self.process.ended().addTimeout(END_SECONDS, reactor)
        except defer.TimeoutError:
            _log.error("process {pid} was killed and is still there", pid=self.process.pid)


class Exchange:
    """All living workers."""

    def __init__(self, reactor: Any) -> None:
        self.members: list[Member] = []
        self._reactor = reactor
        self._of_the_ended: Snapshot = {}

    def add(self, member: Member) -> None:
        """Have a process take part until it ends."""
        self.members.append(member)
        member.process.ended().addCallback(self._ended, member)

    def _ended(self, _result: object, member: Member) -> None:
        self.members.remove(member)
        self._of_the_ended = merge([self._of_the_ended, _lasting(member.counted)])

    def handlers(self, member: Member) -> dict[str, Handler]:
        """What *member* may call."""

        async def join() -> None:
            member.joined = True

        async def counted(snapshot: Snapshot) -> None:
            member.counted = snapshot

        async def snapshots() -> list[Snapshot]:
            return await self._snapshots(member)

        async def statuses() -> list[Any]:
            return await self._answers(member, "status")

        return {
            "join": join,
            "counted": counted,
            "forget": self._telling(member, "forget"),
            "revoke": self._telling(member, "revoke"),
            "snapshots": snapshots,
            "statuses": statuses,
        }

    def _others(self, asking: Member) -> list[Member]:
        return [one for one in self.members if one.joined and one.process.alive and one is not asking]

    def _telling(self, asking: Member, name: str) -> Callable[..., Awaitable[None]]:
        async def tell(**arguments: Any) -> None:
            await all_or_none(
                [Deferred.fromCoroutine(self._tell(one, name, arguments)) for one in self._others(asking)]
            )

        return tell

    async def _tell(self, member: Member, name: str, arguments: dict[str, Any]) -> None:
        try:
            await self._ask(member, name, arguments)
        except (CallFailed, defer.TimeoutError) as error:
            reason = str(error) or "too late"
            _log.error("worker {pid} does not forget ({reason}) and is killed", pid=member.process.pid, reason=reason)
            await member.killed(self._reactor)
        except ConnectionLost:
            return  # it is going

    async def _answers(self, asking: Member, name: str) -> list[Any]:
        asked = [Deferred.fromCoroutine(self._answer(one, name)) for one in self._others(asking)]
        return [answer for answer in await all_or_none(asked) if answer is not None]

    async def _answer(self, member: Member, name: str) -> Optional[Any]:
        try:
            return await self._ask(member, name, {})
        except (ConnectionLost, CallFailed, defer.TimeoutError) as error:
            reason = str(error) or "too late"
            _log.warn("worker {pid} did not answer: {reason}", pid=member.process.pid, reason=reason)
            return None

    async def _snapshots(self, asking: Member) -> list[Snapshot]:
        asked = self._others(asking)
        answers = await all_or_none([Deferred.fromCoroutine(self._answer(one, "snapshot")) for one in asked])
        for member, answer in zip(asked, answers, strict=True):
            member.counted = answer or member.counted
        # who ended while we waited is among those of the past by now
        living = [member.counted for member in asked if member in self.members]
        return [self._of_the_ended, *living]

    def _ask(self, member: Member, name: str, arguments: dict[str, Any]) -> Deferred[Any]:
        return member.process.conversation.call(name, **arguments).addTimeout(  # type: ignore[no-any-return]
            ANSWER_SECONDS, self._reactor
        )


def _lasting(snapshot: Snapshot) -> Snapshot:
    """Of what a worker counted that which outlives it: no gauges."""
    return {name: rows for name, rows in snapshot.items() if FAMILIES[name].kind in ("counter", "histogram")}


PARENT_SECONDS = 15.0
"""How long the parent may take: it waits for a worker that hangs, and kills it."""


@attrs.frozen
class SiblingsByParent:
    """`Siblings` of several processes. *own*: what this one counted.

    Fails with `CallFailed`, `ConnectionLost` and `TimeoutError`: without a parent all is over.
    """

    parent: Peer
    reactor: Any
    own: Callable[[], Snapshot]

    async def forget(self, scope: Scope, told: bool) -> None:
        await self._call("forget", scope=list(attrs.astuple(scope)), told=told)

    async def revoke(self, credential: bytes, instance: Instance) -> None:
        address = [instance.origin, instance.root, instance.study, instance.series, instance.sop]
        await self._call("revoke", credential=credential.hex(), instance=address)

    async def snapshots(self) -> list[Snapshot]:
        others: list[Snapshot] = await self._call("snapshots")
        # Our own numbers are shown right after this: the parent must know them, should we end the next moment.
        self.parent.call("counted", snapshot=self.own()).addErrback(lambda _: None)
        return others

    async def statuses(self) -> list[dict[str, Any]]:
        statuses: list[dict[str, Any]] = await self._call("statuses")
        return statuses

    def _call(self, name: str, **arguments: Any) -> Deferred[Any]:
        return self.parent.call(name, **arguments).addTimeout(PARENT_SECONDS, self.reactor)
