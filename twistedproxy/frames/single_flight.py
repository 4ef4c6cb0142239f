"""Single flight: one piece of work for all requests that want its result at the same time.

Rules:
- Every waiter has a Deferred of its own; cancelling it ends that wait only.
- When no waiter is left the work itself is cancelled, and cannot be joined any more.
- Work that has its result can be joined until the result is where the next reader will find it.
- Work is done in the name of its owner, the caller that began it, and what fails may fail for the owner alone: the other
  callers then share one more attempt. If that fails too, each credential tries in its own name: no caller waits for the
  failure of a third one.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from typing import Any, Generic, Optional, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.deferreds import Waiters, all_or_none
from twistedproxy.origin.errors import OriginBadAnswer, OriginBrokeOff, OriginRefused
from twistedproxy.streams import StreamTooLong

_log = Logger()

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MAYBE_FOR_THE_OWNER = (OriginRefused, OriginBadAnswer, OriginBrokeOff)
"""How work fails that may go well for another caller: a refusal of any kind, a page to sign in, an answer cut short. An
origin that cannot be reached, or is too slow, is so for all."""

_SECOND = b""
"""Among whom the second attempt is shared: all that had joined the first."""


@attrs.frozen
class _Task(Generic[K, V]):
    """What to do for keys, in whose name, and how to keep the result."""

    owner: Hashable
    work: Callable[[Sequence[K]], Coroutine[Any, Any, Mapping[K, V]]]
    keep: Optional[Callable[[Mapping[K, V]], Coroutine[Any, Any, object]]]


@attrs.define(eq=False)
class _Flight(Generic[K, V]):
    """Work that is under way, and all that wait for it. *flights*: where it is found, by *names*."""

    names: Sequence[tuple[K, Hashable]]
    owner: Hashable
    flights: dict[tuple[K, Hashable], _Flight[K, V]]
    running: Optional[Deferred[None]] = None
    _waiters: Waiters[Mapping[K, V]] = attrs.field(
        init=False, default=attrs.Factory(lambda self: Waiters(self._give_up), takes_self=True)
    )
    _outcome: Optional[Mapping[K, V] | Failure] = attrs.field(init=False, default=None)

    def wait(self) -> Deferred[Mapping[K, V]]:
        """A Deferred of the waiter's own, with the values of all keys."""
        waiter = self._waiters.wait()
        if self._outcome is not None:
            self._waiters.fire(self._outcome)
        return waiter

    async def run(self, task: _Task[K, V], keys: Sequence[K]) -> None:
        """Do the work, and give all waiters its result."""
        try:
            values = await task.work(keys)
        except Exception:
            self._leave()  # first: a waiter that asks again at once must not find this one
            self._settle(Failure())
            return
        if task.keep is None:
            self._leave()  # likewise; else it is found until readers find what it brought
        self._settle(values)
        try:
            if task.keep is not None:
                await task.keep(values)
        except Exception:
            _log.failure("keeping a fetched result failed")
        finally:
            self._leave()

    def _settle(self, outcome: Mapping[K, V] | Failure) -> None:
        self._outcome = outcome
        self._waiters.fire(outcome)

    def fail(self, reason: Failure) -> None:
        """End the work, and give all waiters *reason*."""
        self._leave()
        self._settle(reason)
        if self.running is not None:
            self.running.cancel()

    def _give_up(self) -> None:
        if self.running is not None:
            self._leave()
            self.running.cancel()

    def _leave(self) -> None:
        for name in self.names:
            if self.flights.get(name) is self:
                del self.flights[name]


class SingleFlight(Generic[K, V]):
    """All work of one kind that is under way, by its keys."""

    def __init__(self) -> None:
        self._flights: dict[tuple[K, Hashable], _Flight[K, V]] = {}

    def under_way(self) -> set[K]:
        """What is worked on."""
        return {key for key, _ in self._flights}

    def fail(self, key: K, reason: Exception) -> None:
        """End the first attempt at the work for *key*, if it is under way: its waiters get *reason*."""
        flight = self._flights.get((key, None))
        if flight is not None:
            flight.fail(Failure(reason))

    async def one(
        self,
        key: K,
        owner: Hashable,
        work: Callable[[], Coroutine[Any, Any, V]],
        keep: Optional[Callable[[V], Coroutine[Any, Any, object]]] = None,
    ) -> tuple[V, bool]:
        """The result of *work*, and whether another request had begun it. See `many`."""

        async def work_on(_keys: Sequence[K]) -> Mapping[K, V]:
            return {key: await work()}

        async def keep_all(values: Mapping[K, V]) -> None:
            if keep is not None:
                await keep(values[key])

        values, joined = await self.many([key], owner, work_on, None if keep is None else keep_all)
        return values[key], bool(joined)

    async def many(
        self,
        keys: Sequence[K],
        owner: Hashable,
        work: Callable[[Sequence[K]], Coroutine[Any, Any, Mapping[K, V]]],
        keep: Optional[Callable[[Mapping[K, V]], Coroutine[Any, Any, object]]],
    ) -> tuple[Mapping[K, V], int]:
        """The values of all *keys*, and for how many of them the work of another request was joined.

        *work* makes the values of the other keys, in the name of *owner*, and *keep* puts those where later readers look.
        """
        return await self._values(keys, _Task(owner, work, keep), None)

    async def _values(self, keys: Sequence[K], task: _Task[K, V], among: Hashable) -> tuple[Mapping[K, V], int]:
        """*among*: who may join, None for everybody."""
        running = {key: self._flights[key, among] for key in keys if (key, among) in self._flights}
        if not running:
            return await self._start(keys, task, among), 0
        waits = []
        alone = [key for key in keys if key not in running]
        if alone:
            waits.append(self._start(alone, task, among))
        for one in set(running.values()):
            joined = [key for key, flight in running.items() if flight is one]
            waits.append(Deferred.fromCoroutine(self._join(one, joined, task, among)))
        values: dict[K, V] = {}
        for found in await all_or_none(waits):
            values.update(found)
        return values, len(running)

    def _start(self, keys: Sequence[K], task: _Task[K, V], among: Hashable) -> Deferred[Mapping[K, V]]:
        flight = _Flight([(key, among) for key in keys], task.owner, self._flights)
        self._flights.update(dict.fromkeys(flight.names, flight))
        waiter = flight.wait()
        flight.running = Deferred.fromCoroutine(flight.run(task, keys))
        return waiter

    async def _join(
        self, flight: _Flight[K, V], keys: Sequence[K], task: _Task[K, V], among: Hashable
    ) -> Mapping[K, V]:  # fmt: skip
        try:
            return await flight.wait()
        except StreamTooLong:
            if len(flight.names) <= len(keys):
                raise
            return await self._start(keys, task, among)  # of fewer keys, which may not be too long
        except MAYBE_FOR_THE_OWNER:
            if flight.owner == task.owner:
                raise
        values, _ = await self._values(keys, task, _SECOND if among is None else task.owner)
        return values
