"""Finds workers that hang: whose reactor no longer turns, so that what they accepted is never answered.

- Each is asked for a sign of life again and again; one that owes it for too many of the parent's own rounds is killed.
  It is rounds that count, not seconds: where the machine sleeps or the parent stands still, no round goes by.
- Who has never answered has hardly begun, and may take longer: it imports.
- One question at a time: the pipe of one that hangs does not fill.
- Before it is killed it gets a moment to print where it hangs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from twistedproxy.workers.broadcast import Member
from twistedproxy.workers.worker import STACKS_SIGNAL

PING_SECONDS = 5.0
"""From one round to the next."""

MAX_OWED = 6
"""Rounds; the sixth after a question (30 s) is the last. What holds up a worker's reactor takes milliseconds."""

MAX_FIRST_OWED = 24
"""Rounds until the first sign of life (two minutes)."""

STACKS_SECONDS = 0.5
"""What one that hangs gets to print where."""

_log = Logger()


@attrs.define(eq=False)
class _Watched:
    """*owed*: rounds since a question that is open; None: none is. *allowed*: rounds that it may take."""

    member: Member
    owed: Optional[int] = None
    allowed: int = MAX_FIRST_OWED

    def ask(self) -> None:
        self.owed = 0
        self.member.process.conversation.call("ping").addBoth(self._answered)

    def _answered(self, _result: object) -> None:
        # that it cannot be done is a sign of life, too
        self.owed = None
        self.allowed = MAX_OWED


class Watch:
    """*members*: who is to be watched."""

    def __init__(self, reactor: Any, members: Callable[[], Iterable[Member]]) -> None:
        self._reactor = reactor
        self._members = members
        self._watched: dict[Member, _Watched] = {}
        self._rounds = LoopingCall(self._round)
        self._rounds.clock = reactor

    def start(self) -> None:
        """Begin."""
        self._rounds.start(PING_SECONDS, now=False).addErrback(self._failed)

    def stop(self) -> None:
        """Kill nobody from now on."""
        if self._rounds.running:
            self._rounds.stop()

    def _round(self) -> None:
        living = [member for member in self._members() if member.process.alive]
        self._watched = {member: self._watched.get(member) or _Watched(member) for member in living}
        for watched in self._watched.values():
            if watched.owed is None:
                watched.ask()
                continue
            watched.owed += 1
            if watched.owed == watched.allowed:
                Deferred.fromCoroutine(self._end(watched.member, watched.owed)).addErrback(self._failed)

    async def _end(self, member: Member, owed: int) -> None:
        _log.error(
            "worker {pid} has not answered for {seconds:g} s and is killed",
            pid=member.process.pid,
            seconds=owed * PING_SECONDS,
            event="worker_hangs",
        )
        try:
            if member.process.transport is not None:
                member.process.transport.signalProcess(STACKS_SIGNAL)
        except ProcessExitedAlready:
            return
        await deferLater(self._reactor, STACKS_SECONDS)
        await member.killed(self._reactor)

    def _failed(self, failure: Any) -> None:
        _log.failure("workers are not watched as they should be", failure)
