"""Waiting for several Deferreds as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

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
