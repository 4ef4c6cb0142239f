"""Waiting in tests without sleeping: for what happens, with a deadline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import LoopingCall

DEADLINE = (
    60.0  # seconds; far above what is measured: beside busy processes, children that load ahead or render get little
)
INTERVAL = 0.005  # seconds between looks

T = TypeVar("T")


class NeverHappened(AssertionError):
    """What a test waited for did not come in time."""


async def wait_until(
    predicate: Callable[[], object], what: str = "", seconds: float = DEADLINE, reactor: Any = None
) -> None:
    """Return once *predicate* is true, looking every few milliseconds. Raises `NeverHappened`, naming *what*."""
    clock = reactor or _reactor()
    end = clock.seconds() + seconds
    loop = LoopingCall(lambda: _look(loop, predicate, what, clock, end))
    loop.clock = clock
    await loop.start(INTERVAL)


def _look(loop: LoopingCall, predicate: Callable[[], object], what: str, clock: Any, end: float) -> None:
    if predicate():
        loop.stop()
    elif clock.seconds() > end:
        raise NeverHappened(what or getattr(predicate, "__name__", "it"))


async def within(awaitable: Awaitable[T], seconds: float = DEADLINE, reactor: Any = None) -> T:
    """The result of *awaitable*, which is cancelled after *seconds*: twisted.internet.defer.TimeoutError."""
    deferred: Deferred[T]
    if isinstance(awaitable, Deferred):
        deferred = awaitable
    else:
        assert isinstance(awaitable, Coroutine)
        deferred = ensureDeferred(awaitable)
    return await deferred.addTimeout(seconds, reactor or _reactor())


def _reactor() -> Any:
    from twisted.internet import reactor

    return reactor
