"""One piece of work for all who want its result at the same time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping
from typing import Any, TypeVar

from twistedproxy.frames.access import DENIALS
from twistedproxy.frames.inflight import InFlight
from twistedproxy.origin.errors import OriginRefused
from twistedproxy.origin.interface import Caller

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


async def shared(
    in_flight: InFlight[K, V],
    key: K,
    caller: Caller,
    work: Callable[[], Coroutine[Any, Any, V]],
    keep: Callable[[V], Awaitable[object]],
) -> tuple[V, bool]:
    """The result of *work*, and whether another had begun it. *keep* puts the result where later readers look.

    Who had begun it may have been denied by the origin what this *caller* is granted: then it is begun again.
    """
    while (fetch := in_flight.running([key]).get(key)) is not None:
        try:
            return (await fetch.wait())[key], True
        except OriginRefused as refused:
            if refused.status not in DENIALS or fetch.owner == caller.credential:
                raise

    async def all_work() -> Mapping[K, V]:
        return {key: await work()}

    async def keep_all(values: Mapping[K, V]) -> None:
        await keep(values[key])

    return (await in_flight.start([key], all_work(), keep_all, caller.credential))[key], False
