"""Reads from a cluster: those of one reactor turn, gathered by node; and the generations of roots, which are not read each time.

Rules kept here:
- What one reactor turn asks of a node goes there in one write, and to all nodes side by side.
- A reader waits for the nodes that have its keys, and for no other: one that does not answer costs its share.
- A root's generation belongs to every read. It is kept for `FRESH_SECONDS`, so that the node that has it gets no more reads than others;
  what another host ends is noticed then, and what this one ends at once. Where the node can't be asked, it counts for
  `LAST_SECONDS`: long enough for a replica to take over.
- The generations of an instance may be read before or after its entries. Entries go by the fence that they were written under:
  where it is one of the wait, so were they.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from twistedproxy.cache.interface import CacheUnavailable
from twistedproxy.cache.redis.connection import Link
from twistedproxy.cache.redis.gathered import MAX_KEYS_PER_MGET, MAX_WAITING_READS, Values
from twistedproxy.cache.redis.keys import slot_of
from twistedproxy.cache.redis.pipeline import Replies, command
from twistedproxy.deferreds import Waiters

FRESH_SECONDS = 2.0
LAST_SECONDS = 4.0

Redirect = Callable[[bytes, bytes, object], Awaitable[object]]


@attrs.define(eq=False, slots=True)
class _Reader:
    values: Values
    left: int
    done: Deferred[Values] = attrs.field(factory=Deferred)


class ClusterReads:
    """Collects reads. *node_of*: the connection for reads to the node that has a slot, if there is one. *redirect*: a key, the MGET
    of it alone, and the error that it was answered with, to the answer."""

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

    def _flush(self) -> None:
        self._call = None
        wanted, self._wanted = self._wanted, {}
        by_node: dict[Optional[Link], dict[int, list[bytes]]] = {}
        for key in wanted:
            slot = slot_of(key)
            by_node.setdefault(self._node_of(slot), {}).setdefault(slot, []).append(key)
        for link, by_slot in by_node.items():
            groups = [
                keys[start : start + MAX_KEYS_PER_MGET]
                for keys in by_slot.values()
                for start in range(0, len(keys), MAX_KEYS_PER_MGET)
            ]
            try:
                if link is None:
                    raise CacheUnavailable("no node of the cluster has the slot")
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
        reply = await self._redirect(key, command(b"MGET", key), error)
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
class RootGenerations:
    """The generations of roots, as *read* last found them."""

    clock: IReactorTime
    read: Callable[[Sequence[bytes]], Deferred[Values]]
    _kept: dict[bytes, tuple[bytes, float]] = attrs.field(init=False, factory=dict)
    _waiting: dict[bytes, Waiters[Any]] = attrs.field(init=False, factory=dict)

    async def get(self, key: bytes) -> Optional[bytes]:
        """The generation. Raises `CacheUnavailable`."""
        value, when = self._kept.get(key, (b"", 0.0))
        age = self.clock.seconds() - when
        if value and age < FRESH_SECONDS:
            return value
        found: Deferred[Any] = self._found(key)
        if value and age < LAST_SECONDS:
            found.addErrback(lambda _: None)
            return value
        return await found  # type: ignore[no-any-return]

    def forget(self, keys: Iterable[bytes]) -> None:
        """These have ended: what is kept of them, or on its way here, is not used any more."""
        for key in keys:
            self._kept.pop(key, None)
            waiters = self._waiting.pop(key, None)
            if waiters is not None:
                waiters.fire(Failure(CacheUnavailable("it was invalidated meanwhile")))

    def _found(self, key: bytes) -> Deferred[Any]:
        """What one reading for all who ask meanwhile finds."""
        waiters = self._waiting.get(key)
        if waiters is not None:
            return waiters.wait()
        waiters = self._waiting[key] = Waiters()
        waiter = waiters.wait()
        try:
            self.read([key]).addBoth(self._arrived, key, waiters, self.clock.seconds())
        except CacheUnavailable:
            self._arrived(Failure(), key, waiters, 0.0)
        return waiter

    def _arrived(self, values: Any, key: bytes, waiters: Waiters[Any], asked: float) -> None:
        value = values.value if isinstance(values, Failure) else values[0]
        if self._waiting.get(key) is waiters:
            del self._waiting[key]
            if isinstance(value, bytes):
                self._kept[key] = value, asked
        waiters.fire(Failure(value) if isinstance(value, Exception) else value)
