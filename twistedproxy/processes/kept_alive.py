"""A child that is kept alive: started, replaced, and started again when it ends.

- A child that ends unasked is started again: after a delay that grows while children do not stay up.
- One thing at a time changes the child, so that none is started twice or left behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Generic, Optional, TypeVar

from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.processes.child import ChildProcess, StartFailed

MIN_DELAY = 0.1
"""Seconds; the second delay where the first is none. Each further one is twice as long as the one before."""

STEADY_SECONDS = 30.0
"""After a child that lived as long the delay is the first again."""

C = TypeVar("C", bound=ChildProcess)

_log = Logger()


class KeptAlive(Generic[C]):
    """*name*: what the log calls it. *start* starts a child and returns it once it is ready, or raises `StartFailed`;
    *restart* (default: the same) starts one that takes the place of one that ended. Delays in seconds.
    """

    def __init__(
        self,
        reactor: Any,
        name: str,
        start: Callable[[], Coroutine[Deferred[Any], Any, C]],
        restart: Optional[Callable[[], Coroutine[Deferred[Any], Any, C]]] = None,
        first_delay: float = 0.0,
        max_delay: float = 10.0,
    ) -> None:
        self.child: Optional[C] = None
        """The child, once it is ready and until it ends."""
        self._reactor = reactor
        self._name = name
        self._start = start
        self._restart = restart or start
        self._first_delay = self._delay = first_delay
        self._max_delay = max_delay
        self._began = 0.0
        self._stopped = False
        self._changing = DeferredLock()
        self._filling: Optional[Deferred[None]] = None

    async def replace(self) -> Optional[C]:
        """Start a child in the place of the present one, if any, which is returned and goes on. Raises `StartFailed`: all is as
        before."""
        async with self._changing:
            old = self.child
            self._set(await self._start())
            return old

    def take(self) -> Optional[C]:
        """The child, which is no longer kept."""
        child, self.child = self.child, None
        return child

    def keep(self) -> None:
        """Have a child from now on: start one in the background, at once, where there is none."""
        if self.child is None and not self._stopped:
            if self._filling is not None:
                self._filling.cancel()
            self._fill(None)

    async def ready(self, seconds: float) -> C:
        """The child, if need be once it is started. Raises `StartFailed` where that takes longer than *seconds*."""
        if self.child is None:
            with contextlib.suppress(defer.TimeoutError):
                await self._changing.acquire().addTimeout(seconds, self._reactor)
                self._changing.release()
        if self.child is None:
            raise StartFailed(f"the {self._name} process could not be started")
        return self.child

    async def stop(self) -> None:
        """Start none any more; one that is being started is killed. The child lives on."""
        self._stopped = True
        if self._filling is not None:
            self._filling.cancel()
            await self._filling

    def _set(self, child: C) -> None:
        self.child = child
        self._began = self._reactor.seconds()
        child.ended().addCallback(self._ended, child)

    def _ended(self, _result: object, child: C) -> None:
        if self.child is child:
            self.child = None
            if not self._stopped:
                self._fill(child)

    def _fill(self, gone: Optional[C]) -> None:
        self._filling = Deferred.fromCoroutine(self._filled(gone)).addErrback(self._not_filled)

    async def _filled(self, gone: Optional[C]) -> None:
        """Start a child; *gone*: the one that ended."""
        async with self._changing:
            if self.child is not None:
                return  # it was replaced meanwhile
            if gone is not None:
                self._log_end(gone)
                await self._pause()
            while not await self._restarted():
                await self._pause()

    def _log_end(self, gone: C) -> None:
        lived = self._reactor.seconds() - self._began
        if lived > STEADY_SECONDS:
            self._delay = self._first_delay
        _log.warn(
            "the {name} process exited after {lived:.1f} s ({reason}); restarting in {delay:g} s",
            name=self._name,
            lived=lived,
            reason=gone.reason,
            delay=self._delay,
            event=f"{self._name}_ended",
        )

    async def _pause(self) -> None:
        delay, self._delay = self._delay, min(max(MIN_DELAY, self._delay * 2), self._max_delay)
        await deferLater(self._reactor, delay)

    async def _restarted(self) -> bool:
        try:
            child = await self._restart()
        except StartFailed as error:
            _log.error(
                "the {name} process could not be started: {reason}; retrying in {delay:g} s",
                name=self._name,
                reason=str(error),
                delay=self._delay,
                event=f"{self._name}_failed",
            )
            return False
        self._set(child)
        return True

    def _not_filled(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            _log.failure("unexpected error: no {name} process will be started again", failure, name=self._name)
