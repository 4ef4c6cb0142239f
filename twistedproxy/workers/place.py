"""One of the places for workers, which is kept filled.

A worker that ends unasked is started again: at once the first time, then later each time while they don't stay up.
Only one thing changes who is in a place at a time, so that nobody is started twice or left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Optional

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.workers.broadcast import Member

FIRST_DELAY = 0.1
MAX_DELAY = 10.0
STEADY_SECONDS = 30.0
"""After a worker that lived as long the next one is started at once."""

_log = Logger()


class StartFailed(Exception):
    """A worker could not be started. The text says why."""


Start = Callable[[], Coroutine[Deferred[Any], Any, Member]]
"""Starts a worker and returns it once it listens, or raises `StartFailed`."""


class Place:
    """*start*: how to start a worker; *restart*: how to start one that takes the place of one that ended."""

    def __init__(self, reactor: Any, start: Start, restart: Start) -> None:
        self.member: Optional[Member] = None
        self._reactor = reactor
        self._start = start
        self._restart = restart
        self._began = 0.0
        self._delay = 0.0
        self._stopped = False
        self._changing = DeferredLock()
        self._refilling: Optional[Deferred[None]] = None

    async def fill(self) -> None:
        """Start the first worker. Raises `StartFailed`."""
        self._take(await self._start())

    async def replace(self) -> Optional[Member]:
        """Start a worker in the place of another, which is returned and goes on. Raises `StartFailed`: all is as before."""
        await self._changing.acquire()
        try:
            old = self.member
            self._take(await self._start())
            return old
        finally:
            self._changing.release()

    def stop(self) -> None:
        """Fill it no more."""
        self._stopped = True
        if self._refilling is not None:
            self._refilling.cancel()

    def _take(self, member: Member) -> None:
        self.member = member
        self._began = self._reactor.seconds()
        member.process.ended().addCallback(self._ended, member)

    def _ended(self, _result: object, member: Member) -> None:
        if not self._stopped and self.member is member:
            self._refilling = Deferred.fromCoroutine(self._refill(member))
            self._refilling.addErrback(self._refill_failed)

    async def _refill(self, gone: Member) -> None:
        await self._changing.acquire()
        try:
            if self.member is not gone:
                return  # it was replaced meanwhile
            lived = self._reactor.seconds() - self._began
            self._delay = 0.0 if lived > STEADY_SECONDS else self._delay
            _log.warn(
                "a worker ended after {lived:.1f} s ({reason}); another is started in {delay:g} s",
                lived=lived,
                reason=gone.process.reason,
                delay=self._delay,
                event="worker_ended",
            )
            while not await self._refilled():
                pass
        finally:
            self._changing.release()

    async def _refilled(self) -> bool:
        delay, self._delay = self._delay, min(max(FIRST_DELAY, self._delay * 2), MAX_DELAY)
        await deferLater(self._reactor, delay)
        try:
            member = await self._restart()
        except StartFailed as error:
            if self._stopped:
                return True
            _log.error(
                "a worker could not be started: {reason}; the next try is in {delay:g} s",
                reason=str(error),
                delay=self._delay,
                event="worker_failed",
            )
            return False
        self._take(member)
        return True

    def _refill_failed(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            _log.failure("a place for a worker stays empty", failure)
