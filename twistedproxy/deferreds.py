"""Waiting for several Deferreds as one, and for one without owning it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults

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
        _cancel(waits)
        first.subFailure.raiseException()
    except CancelledError:
        _cancel(waits)
        raise


def _cancel(waits: Sequence[Deferred[T]]) -> None:
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
