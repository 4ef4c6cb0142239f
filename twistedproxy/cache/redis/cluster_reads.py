"""Reads from a cluster: those of one reactor turn, gathered by node; and generations, which are not read each time.

Rules kept here:
- What one reactor turn asks of a node goes there in one write, and to all nodes side by side.
- A reader waits for the nodes that have its keys, and for no other: one that does not answer costs its share.
- Generations are kept for `FRESH_SECONDS`: that of a root belongs to every read, and the node that has it would get more than
  others; those of a study would make two nodes of one for each frame, which costs a fifth more of the proxy's time. What
  another host ends is noticed then, and what this one ends at once. Until `LAST_SECONDS` nobody waits for the next reading.
- The generations of an instance may be read before or after its entries. Entries go by the fence that they were written under:
  where it is one of the wait, so were they.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Optional

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.cache.interface import CacheUnavailable
from twistedproxy.cache.redis.connection import Link
from twistedproxy.cache.redis.keys import slot_of
from twistedproxy.cache.redis.pipeline import Replies, command, in_parts
from twistedproxy.cache.redis.server import MAX_KEYS_PER_MGET, MAX_WAITING_READS, Values
from twistedproxy.deferreds import Waiters, all_or_none

FRESH_SECONDS = 2.0
LAST_SECONDS = 2.25
"""With what `near.FENCE_SECONDS` and `hot.responses.CHECK_SECONDS` add, what another host ends is noticed within 5 s."""
NO_NODE = "no node of the cluster has the slot"

MOST_KEPT = 20_000
"""Generations: of those that are looked at within seconds there are some hundreds."""

Redirect = Callable[[bytes, bytes, object], Awaitable[object]]


@attrs.define(eq=False, slots=True)
class _Reader:
    values: Values
    left: int
    done: Deferred[Values] = attrs.field(factory=Deferred)


class ClusterReads:
    """Collects reads. *node_of*: the connection for reads to the node that has a slot, if there is one. *redirect*: a key, the MGET
    of it alone, and the error that it was answered with, to the answer."""

    _log = Logger()

    def __init__(self, reactor: IReactorTime, node_of: Callable[[int], Optional[Link]], redirect: Redirect) -> None:
        self._reactor = reactor
        self._node_of = node_of
        self._redirect = redirect
        self._wanted: dict[bytes, list[tuple[_Reader, int]]] = {}
        self._call: Optional[IDelayedCall] = None
        self._stopped = False

    def read(self, keys: Sequence[bytes]) -> Deferred[Values]:
        """The values of *keys*, None for those that are missing, a `CacheUnavailable` for those that can't be read."""
        if self._stopped or len(self._wanted) >= MAX_WAITING_READS:
            raise CacheUnavailable("stopped" if self._stopped else "too many reads are waiting")
        reader = _Reader([None] * len(keys), len(keys))
        wanted = self._wanted
        for position, key in enumerate(keys):
            readers = wanted.get(key)
            if readers is None:
                wanted[key] = [(reader, position)]
            else:
                readers.append((reader, position))
        if not keys:
            reader.done.callback([])
        elif self._call is None:
            self._call = self._reactor.callLater(0, self._flush)
        return reader.done

    def stop(self) -> None:
        """Send no more."""
        self._stopped = True
        if self._call is not None:
            self._call.cancel()
            self._call = None
        wanted, self._wanted = self._wanted, {}
        self._lost(Failure(CacheUnavailable("stopped")), [list(wanted)], wanted)

    def _flush(self) -> None:
        self._call = None
        wanted, self._wanted = self._wanted, {}
        by_node: dict[Optional[Link], dict[int, list[bytes]]] = {}
        for key in wanted:
            slot = slot_of(key)
            by_node.setdefault(self._node_of(slot), {}).setdefault(slot, []).append(key)
        for link, by_slot in by_node.items():
            groups = in_parts(by_slot.values(), MAX_KEYS_PER_MGET)
            try:
                if link is None:
                    raise CacheUnavailable(NO_NODE)
                sent = link.send(b"".join([command(b"MGET", *keys) for keys in groups]), len(groups))
            except CacheUnavailable as error:
                self._lost(Failure(error), groups, wanted)
                continue
            sent.addCallbacks(self._arrived, self._lost, callbackArgs=(groups, wanted), errbackArgs=(groups, wanted))

    def _arrived(self, replies: Replies, groups: list[list[bytes]], wanted: dict[bytes, Any]) -> None:
        for keys, reply in zip(groups, replies):
            if isinstance(reply, list):
                for key, value in zip(keys, reply):
                    _deliver(wanted[key], value)
            else:
                for key in keys:
                    Deferred.fromCoroutine(self._elsewhere(key, reply, wanted[key]))

    async def _elsewhere(self, key: bytes, error: object, readers: list[tuple[_Reader, int]]) -> None:
        reply: object
        try:
            reply = await self._redirect(key, command(b"MGET", key), error)
        except Exception as failed:  # a reader must not wait for ever
            self._log.failure("a redirection could not be followed")
            reply = failed
        _deliver(readers, reply[0] if isinstance(reply, list) else CacheUnavailable(str(reply)))

    def _lost(self, failure: Failure, groups: list[list[bytes]], wanted: dict[bytes, Any]) -> None:
        for keys in groups:
            for key in keys:
                _deliver(wanted[key], failure.value)


def _deliver(readers: Iterable[tuple[_Reader, int]], value: Any) -> None:
    for reader, position in readers:
        reader.values[position] = value
        reader.left -= 1
        if not reader.left and not reader.done.called:  # else who waited has left
            reader.done.callback(reader.values)


@attrs.define(eq=False)
class KeptGenerations:
    """Generations, as *read* last found them."""

    clock: IReactorTime
    read: Callable[[Sequence[bytes]], Deferred[Values]]
    _kept: dict[bytes, tuple[bytes, float]] = attrs.field(init=False, factory=dict)
    _waiting: dict[bytes, Waiters[Any]] = attrs.field(init=False, factory=dict)

    def now(self, keys: Sequence[bytes]) -> Optional[list[Any]]:
        """The values of *keys*, where none of them has to be waited for."""
        values, oldest = [], math.inf
        for key in keys:
            kept = self._kept.get(key)
            if kept is None:
                return None
            values.append(kept[0])
            oldest = min(oldest, kept[1])
        age = self.clock.seconds() - oldest
        if age >= FRESH_SECONDS:
            for one in self._asked(keys):
                one.addErrback(lambda _: None)
        return values if age < LAST_SECONDS else None

    async def get(self, keys: Sequence[bytes]) -> list[Any]:
        """The values of *keys*, None for those that are missing. Raises `CacheUnavailable`."""
        values = self.now(keys)
        return await all_or_none(self._asked(keys)) if values is None else values

    def forget(self, keys: Iterable[bytes]) -> None:
        """These have ended: what is kept of them, or on its way here, is not used any more."""
        for key in keys:
            self._kept.pop(key, None)
            waiters = self._waiting.pop(key, None)
            if waiters is not None:
                waiters.fire(Failure(CacheUnavailable("it was invalidated meanwhile")))

    def _asked(self, keys: Sequence[bytes]) -> list[Deferred[Any]]:
        """What one reading for all who ask meanwhile finds; only what is no longer fresh is read."""
        now = self.clock.seconds()
        results: list[Deferred[Any]] = []
        begun: dict[bytes, Waiters[Any]] = {}
        for key in keys:
            value, when = self._kept.get(key, (b"", -math.inf))
            if now - when < FRESH_SECONDS:
                results.append(succeed(value))
                continue
            waiters = self._waiting.get(key)
            if waiters is None:
                waiters = self._waiting[key] = begun[key] = Waiters()
            results.append(waiters.wait())
        if begun:
            try:
                self.read(list(begun)).addBoth(self._arrived, begun, now)
            except CacheUnavailable:
                self._arrived(Failure(), begun, now)
        return results

    def _arrived(self, values: Any, asked: dict[bytes, Waiters[Any]], when: float) -> None:
        if isinstance(values, Failure):
            values = [values.value] * len(asked)
        if len(self._kept) > MOST_KEPT:
            self._kept.clear()
        for (key, waiters), value in zip(asked.items(), values):
            if self._waiting.get(key) is waiters:
                del self._waiting[key]
                if isinstance(value, bytes):
                    self._kept[key] = value, when
            waiters.fire(Failure(value) if isinstance(value, Exception) else value)
