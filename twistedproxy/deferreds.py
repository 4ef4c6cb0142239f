"""Waiting for several Deferreds as one, for one without owning it, by many for one result, at a consumer's pace, and not at all."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

import attrs
from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

T = TypeVar("T")


async def all_or_none(waits: Sequence[Deferred[T]]) -> list[T]:
    """The results of all *waits*, in their order.

    The first failure is raised as itself, and whoever is still waited for is cancelled: also when
    the waiter itself is cancelled.
    """
    if len(waits) == 1:
        return [await waits[0]]
    try:
        return await gatherResults(waits, consumeErrors=True)
    except FirstError as first:
        abandon(waits)
        first.subFailure.raiseException()
    except CancelledError:
        abandon(waits)
        raise


def abandon(waits: Sequence[Deferred[T]]) -> None:
    """Cancel what is not over yet of *waits*; what becomes of them is of no interest."""
    for wait in waits:
        wait.addErrback(lambda _: None)
        wait.cancel()


def follow(work: Deferred[T]) -> Deferred[T]:
    """A Deferred with the result of *work*; cancelling it leaves *work* alone, which then keeps its result for the next."""
    waiter: Deferred[T] = Deferred()

    def settle(result: Any) -> Any:
        if waiter.called:
            return result
        waiter.callback(result)  # a Failure goes to its errbacks
        return None

    work.addBoth(settle)
    return waiter


class Waiters(Generic[T]):
    """Many that wait for one result: each has a Deferred of its own, and cancelling it ends that wait alone. *abandoned* is
    called when all of them have been cancelled."""

    def __init__(self, abandoned: Callable[[], object] = lambda: None) -> None:
        self._abandoned = abandoned
        self._waiting: list[Deferred[T]] = []

    def wait(self) -> Deferred[T]:
        """The next result."""
        waiter: Deferred[T] = Deferred(self._leave)
        self._waiting.append(waiter)
        return waiter

    def fire(self, result: Any = None) -> None:
        """Give *result* to all that wait now; a Failure goes to their errbacks."""
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.called:  # cancelled by what an earlier one set off
                waiter.callback(result)

    def _leave(self, waiter: Deferred[T]) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)
            if not self._waiting:
                self._abandoned()


class Pausable:
    """What a producer of bytes has of its consumer's pace. (`IPushProducer`, but for ``stopProducing``)"""

    paused = False

    def __init__(self) -> None:
        self._resumed: Waiters[None] = Waiters()

    def resumed(self) -> Deferred[None]:
        """Fires once the consumer takes more."""
        return self._resumed.wait()

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False
        self._resumed.fire()


SLICE = 64 << 10
"""Bytes that are parsed between two turns of the reactor: 1.3 to 1.7 ms of JSON."""


async def in_slices(feed: Callable[[bytes], object], data: bytes, clock: Any) -> None:
    """*feed* all of *data*, with a turn of the reactor between two slices."""
    for start in range(0, len(data), SLICE):
        if start:
            await deferLater(clock, 0)
        feed(data[start : start + SLICE])


@attrs.define(eq=False)
class Background:
    """Work that is begun once an answer was written, and that nobody waits for. What fails is logged with *complaint*."""

    clock: IReactorTime
    complaint: str
    stopped: bool = False
    _running: set[Deferred[None]] = attrs.field(init=False, factory=set)
    _unwritten: int = attrs.field(init=False, default=0)
    _log = Logger()

    def once_written(self, do: Callable[[], object]) -> None:
        """*do* it once the answer was written, for its client does not wait for that; not any more if all is stopped by then."""

        def now() -> None:
            self._unwritten -= 1
            if not self.stopped:
                do()

        self._unwritten += 1
        self.clock.callLater(0, now)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Do *work*."""
        running = Deferred.fromCoroutine(work)
        self._running.add(running)
        running.addErrback(self._failed)
        running.addCallback(lambda _: self._running.discard(running))

    def _failed(self, failure: Any) -> None:
        if failure.check(CancelledError) is None:
            self._log.failure(self.complaint, failure)

    @property
    def idle(self) -> bool:
        """Whether there is none."""
        return not self._unwritten and not self._running

    async def drain(self) -> None:
        """Wait for what has been begun."""
        if self._unwritten:
            await deferLater(self.clock, 0)
        for running in list(self._running):
            await follow(running)

    def stop(self) -> None:
        """Begin nothing more, and give up what was begun."""
        self.stopped = True
        for running in list(self._running):
            running.cancel()
