"""One piece of work for all who want its result at the same time.

Work is done in the name of its owner, who began it. What fails may fail for the owner alone: the others then share one more
attempt. If that fails, too, each credential tries in its own name: nobody waits for a third one's failure.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping
from typing import Any, Optional, TypeVar

from twistedproxy.frames.inflight import InFlight
from twistedproxy.origin.errors import OriginBadAnswer, OriginBrokeOff, OriginRefused
from twistedproxy.origin.interface import Caller

MAYBE_FOR_THE_OWNER = (OriginRefused, OriginBadAnswer, OriginBrokeOff)
"""How work fails that may go well for another caller: a refusal of any kind, a page to sign in, an answer cut short. An
origin that cannot be reached, or is too slow, is so for all."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Shared = tuple[K, Optional[bytes]]
"""What is worked on, and who may join: None for everybody, else see `after_failure`."""


def after_failure(whose: Optional[bytes], caller: Caller) -> bytes:
    """Whose work *caller* may join where it joined *whose* and that failed: that of all who did (empty), then its own."""
    return b"" if whose is None else caller.credential


async def shared(
    in_flight: InFlight[Shared[K], V],
    key: K,
    caller: Caller,
    work: Callable[[], Coroutine[Any, Any, V]],
    keep: Callable[[V], Awaitable[object]],
) -> tuple[V, bool]:
    """The result of *work*, and whether another had begun it. *keep* puts the result where later readers look."""
    among: Shared[K] = key, None
    while (fetch := in_flight.running([among]).get(among)) is not None:
        try:
            return (await fetch.wait())[among], True
        except MAYBE_FOR_THE_OWNER:
            if fetch.owner == caller.credential:
                raise
            among = key, after_failure(among[1], caller)

    async def all_work() -> Mapping[Shared[K], V]:
        return {among: await work()}

    async def keep_all(values: Mapping[Shared[K], V]) -> None:
        await keep(values[among])

    return (await in_flight.start([among], all_work(), keep_all, caller.credential))[among], False
