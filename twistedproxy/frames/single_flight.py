"""One fetch for many who want the same thing at the same time.

- Every waiter has a Deferred of its own; cancelling it ends that wait only.
- When nobody waits any more, the fetch itself is cancelled, and nobody new can join it.
- A fetch that has its result stays joinable until its result is where the next reader will find it.

One piece of work for all who want its result at the same time.

Work is done in the name of its owner, who began it. What fails may fail for the owner alone: the others then share one more
attempt. If that fails, too, each credential tries in its own name: nobody waits for a third one's failure.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Optional, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.origin.errors import OriginBadAnswer, OriginBrokeOff, OriginRefused
from twistedproxy.origin.interface import Caller

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Keep = Callable[[Mapping[K, V]], Awaitable[object]]


class Fetch(Generic[K, V]):
    """A running fetch of several keys, and all who wait for it. *owner*: in whose name it fetches."""

    def __init__(self, keys: Sequence[K], dropped: Callable[[Fetch[K, V]], None], owner: object = None) -> None:
        self.keys = keys
        self.owner = owner
        self._dropped = dropped
        self._waiters: set[Deferred[Mapping[K, V]]] = set()
        self._outcome: Optional[Mapping[K, V] | Failure] = None
        self._running: Optional[Deferred[Mapping[K, V]]] = None

    def wait(self) -> Deferred[Mapping[K, V]]:
        """A Deferred of the caller's own, with the values of all keys."""
        waiter: Deferred[Mapping[K, V]] = Deferred(self._abandon)
        if self._outcome is None:
            self._waiters.add(waiter)
        else:
            self._tell(waiter)
        return waiter

    def run(self, work: Coroutine[Any, Any, Mapping[K, V]]) -> Deferred[Optional[Mapping[K, V]]]:
        """Do *work*, then tell all waiters. The Deferred has the result, or None where there is none."""
        self._running = Deferred.fromCoroutine(work)
        return self._running.addCallbacks(self._succeed, self._fail)

    def _succeed(self, values: Mapping[K, V]) -> Mapping[K, V]:
        self._settle(values)
        return values

    def _fail(self, failure: Failure) -> None:
        self._dropped(self)  # first: a waiter that asks again at once must not find this one
        self._settle(failure)

    def _settle(self, outcome: Mapping[K, V] | Failure) -> None:
        self._outcome = outcome
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.called:  # cancelled by what an earlier one set off
                self._tell(waiter)

    def _tell(self, waiter: Deferred[Mapping[K, V]]) -> None:
        if isinstance(self._outcome, Failure):
            waiter.errback(self._outcome)
        elif self._outcome is not None:
            waiter.callback(self._outcome)

    def _abandon(self, waiter: Deferred[Mapping[K, V]]) -> None:
        self._waiters.discard(waiter)
        if not self._waiters and self._outcome is None and self._running is not None:
            self._dropped(self)
            self._running.cancel()


class InFlight(Generic[K, V]):
    """All fetches under way, by what they fetch."""

    _log = Logger()

    def __init__(self) -> None:
        self._fetches: dict[K, Fetch[K, V]] = {}

    def __len__(self) -> int:
        return len(self._fetches)

    def __iter__(self) -> Iterator[K]:
        """What is being fetched."""
        return iter(self._fetches)

    def running(self, keys: Iterable[K]) -> dict[K, Fetch[K, V]]:
        """The fetches that some of *keys* can be had from."""
        return {key: self._fetches[key] for key in keys if key in self._fetches}

    def start(
        self,
        keys: Sequence[K],
        work: Coroutine[Any, Any, Mapping[K, V]],
        keep: Optional[Keep[K, V]] = None,
        owner: object = None,
    ) -> Deferred[Mapping[K, V]]:
        """Start to fetch *keys* by *work*, and wait for it. *keep* puts the result where later readers look."""
        fetch: Fetch[K, V] = Fetch(keys, self._drop, owner)
        for key in keys:
            self._fetches[key] = fetch
        waiter = fetch.wait()
        ended = fetch.run(work)
        ended.addCallback(lambda values: self._keep(keep, values))
        ended.addErrback(lambda failure: self._log.failure("keeping a fetched result failed", failure))
        ended.addCallback(lambda _: self._drop(fetch))
        return waiter

    @staticmethod
    def _keep(keep: Optional[Keep[K, V]], values: Optional[Mapping[K, V]]) -> Optional[Deferred[object]]:
        if keep is None or values is None:
            return None

        async def kept() -> object:
            return await keep(values)

        return Deferred.fromCoroutine(kept())

    def _drop(self, fetch: Fetch[K, V]) -> None:
        for key in fetch.keys:
            if self._fetches.get(key) is fetch:
                del self._fetches[key]


MAYBE_FOR_THE_OWNER = (OriginRefused, OriginBadAnswer, OriginBrokeOff)
"""How work fails that may go well for another caller: a refusal of any kind, a page to sign in, an answer cut short. An
origin that cannot be reached, or is too slow, is so for all."""


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
