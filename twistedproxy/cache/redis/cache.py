"""The cache on a server that speaks the Redis protocol (Redis 6 or newer, Valkey), or on a cluster of them.

Rules kept here:
- `get_many` is one round trip, together with all others of the same reactor turn; only where a generation is missing
  a second one begins it.
- Whatever fails is a miss or a False, counted, and logged now and then.
- A server that was started anew counts as empty (`twistedproxy.cache.redis.server`, `twistedproxy.cache.redis.history`). What it read
  from an old snapshot, or has as a replica that was promoted, may lack the last invalidations, and with them every grant and
  frame would be back.
- A large entry has its bytes below a key of their own (`twistedproxy.cache.redis.large`), and goes both ways in slices:
  neither the server nor the reactor stops for it. Its entry says where they are, and is written last.

The server should evict with ``allkeys-lru``: entries of ended generations are never deleted, they go with their time.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Optional

from twisted.logger import Logger

from twistedproxy.cache.address import ServerAddress, SharedAddress
from twistedproxy.cache.interface import CacheUnavailable, Fence, Head, Heads, PlainCache, Reading, Value
from twistedproxy.cache.keys import FENCE_LENGTH, new_generation, read_outcome, unstamp
from twistedproxy.cache.monitoring import CacheObserver, Complaints, NullObserver
from twistedproxy.cache.redis import large, pipeline
from twistedproxy.cache.redis.keys import RedisKeys, by_tag, ended_keys, redis_keys
from twistedproxy.cache.redis.pipeline import Command, Replies
from twistedproxy.cache.redis.server import Servers
from twistedproxy.dicom.resource import Instance, Scope

START_SECONDS = 5.0  # for the first connection; then we go on without
GENERATIONS = 4  # of an instance: of its root, study, series, and its own
# Generations of instances that are no longer read must not stay for ever on a server that evicts nothing. One that ends costs
# what is cached below it: once in a month.
GENERATION_SECONDS = 30 * 24 * 3600.0


class RedisCache(PlainCache):
    """A `Cache` on *servers*, which are at *address*. *reactor*: the installed one, which txredisapi uses."""

    shared = True
    reads_now = False
    address: Optional[SharedAddress]
    log = Logger()

    def __init__(
        self, reactor: Any, servers: Servers, address: ServerAddress, observer: Optional[CacheObserver] = None
    ) -> None:
        self._reactor = reactor
        self.address = address
        self._where = address.where
        self._observer = observer or NullObserver()
        self._complaints = Complaints(self.log, reactor.seconds)
        self._servers = servers
        read = functools.partial(servers.send, urgent=True)
        self._large = large.LargeEntries(read, functools.partial(self._ask, "put_many"))

    async def start(self) -> None:
        """Connect. A server that is not there is waited for a little, then left to come when it comes. Raises ValueError where
        the address is of another kind of server."""
        self._servers.start()
        if await self.wait_up(START_SECONDS):
            self.log.info("cache connected: {where}", where=self._where)

    async def wait_up(self, seconds: float) -> bool:
        """Wait for all connections, at most *seconds*; whether they are up."""
        return await self._servers.wait_up(seconds)

    async def stop(self) -> None:
        """Hang up."""
        await self._servers.stop()

    async def get_many(self, instance: Instance, names: Sequence[bytes]) -> Reading:
        """See `Cache`."""
        began = self._reactor.seconds()
        keys = redis_keys(instance)
        failed = False
        try:
            values = await self._servers.read(keys.generations, keys.entries(names))
            fence = self._fence(values[:GENERATIONS], urgent=True)
            if fence is None:
                fence = await self._begin_generations(keys)
                values = []
        except CacheUnavailable as error:
            self._failed("get_many", error, began)
            return Reading(None, {})
        found: dict[bytes, bytes] = {}
        for name, stored in zip(names, values[GENERATIONS:]):
            if not isinstance(stored, bytes) or fence is None:
                failed = failed or stored is not None
                continue
            value = unstamp(fence, stored)
            if value is not None and value.startswith(large.MARK) and large.is_packed(value):
                value = await self._large.read(keys.entry(name), value)
            if value is not None:
                found[name] = value
        outcome = "failed" if failed else read_outcome(names, found)
        self._observer.cache_operation("get_many", outcome, self._reactor.seconds() - began)
        return Reading(fence, found)

    def read_now(self, instance: Instance, names: Sequence[bytes]) -> None:
        """See `Cache`: a server has to be waited for."""

    async def present(self, instance: Instance, names: Sequence[bytes]) -> set[bytes]:
        """See `Cache`. Only the stamps are read."""
        keys = redis_keys(instance)
        entries = keys.entries(names)
        try:
            known = await self._servers.known(keys.generations)
            unknown = keys.generations[len(known) :]
            commands = pipeline.for_each(b"GET", unknown)
            commands += pipeline.for_each(b"GETRANGE", entries, b"0", b"%d" % (FENCE_LENGTH - 1))
            replies = await self._timed("present", [*unknown, *entries], commands, partly=True) or []
            fence = self._fence([*known, *replies[: len(unknown)]], urgent=False) if replies else None
        except CacheUnavailable as error:
            self._failed("present", error)
            return set()
        return {name for name, stamp in zip(names, replies[len(unknown) :]) if stamp == fence is not None}

    async def heads(self, instance: Instance, names: Sequence[bytes], length: int) -> Heads:
        """See `Cache`. On the connection for reads: a caller waits."""
        began = self._reactor.seconds()
        keys = redis_keys(instance)
        last = b"%d" % (FENCE_LENGTH + large.PREFIX + length - 1)
        entries = keys.entries(names)
        try:
            known = await self._servers.known(keys.generations)
            unknown = keys.generations[len(known) :]
            commands = pipeline.for_each(b"GET", unknown)
            commands += pipeline.for_each(b"GETRANGE", entries, b"0", last)
            commands += pipeline.for_each(b"STRLEN", entries)
            replies = await self._servers.send([*unknown, *entries, *entries], commands, urgent=True)
            fence = self._fence([*known, *replies[: len(unknown)]], urgent=True)
        except CacheUnavailable as error:
            self._failed("heads", error, began)
            return Heads(None, {})
        replies = replies[len(unknown) :]
        heads: dict[bytes, Head] = {}
        for name, start, size in zip(names, replies, replies[len(names) :]):
            if fence is not None and isinstance(start, bytes) and isinstance(size, int) and start.startswith(fence):
                stored = start[FENCE_LENGTH:]
                packed = large.is_packed(stored)
                begin, total = (stored[large.PREFIX :], large.size(stored)) if packed else (stored, size - FENCE_LENGTH)
                heads[name] = Head(begin[:length], total)
        self._observer.cache_operation("heads", read_outcome(names, heads), self._reactor.seconds() - began)
        return Heads(fence, heads)

    async def put_many(
        self, instance: Instance, fence: Optional[Fence], entries: Mapping[bytes, Value], seconds: Optional[float]
    ) -> bool:
        """See `Cache`."""
        if fence is None:
            self._observer.cache_operation("put_many", "failed", 0.0)
            return False
        keys = redis_keys(instance)
        began = self._reactor.seconds()
        taken = True
        for part in pipeline.slices(entries):
            placed: list[bytes] = []
            values: list[bytes] = []
            for key, (_, value) in zip(keys.entries([name for name, _ in part]), part):
                packed = large.small(value)
                if packed is None:
                    packed = await self._large.placed(key, value, seconds)
                if packed is not None:
                    placed.append(key)
                    values.append(packed)
            commands = pipeline.set_entries(fence, zip(placed, values), seconds)
            replies = await self._ask("put_many", placed, commands) if placed else []
            taken = replies is not None and [b"OK"] * len(part) == replies
            if not taken:
                break
        self._observer.cache_operation("put_many", "ok" if taken else "failed", self._reactor.seconds() - began)
        return taken

    async def remove(self, instance: Instance, names: Collection[bytes]) -> bool:
        """See `Cache`."""
        return not names or await self._deleted("remove", redis_keys(instance).entries(names), confirmed=False) is None

    async def claim(self, instance: Instance, names: Sequence[bytes], token: bytes, seconds: float) -> set[bytes]:
        """See `Cache`. None is won where the server can't be asked."""
        keys = redis_keys(instance).claims(names)
        replies = await self._timed("claim", keys, pipeline.set_if_absent(keys, token, seconds), partly=True)
        return {name for name, reply in zip(names, replies or ()) if reply == b"OK"}

    async def renew_claims(self, instance: Instance, names: Collection[bytes], token: bytes, seconds: float) -> bool:
        """See `Cache`."""
        parts = pipeline.in_parts(by_tag(redis_keys(instance).claims(names)))
        commands = [pipeline.prolong_if_ours(part, token, seconds) for part in parts]
        replies = await self._timed("renew_claims", [part[0] for part in parts], commands)
        return replies is not None and sum(reply for reply in replies if isinstance(reply, int)) == len(set(names))

    async def unclaim(self, instance: Instance, names: Collection[bytes], token: bytes) -> None:
        """See `Cache`."""
        parts = pipeline.in_parts(by_tag(redis_keys(instance).claims(names)))
        commands = [pipeline.delete_if_ours(part, token) for part in parts]
        await self._timed("unclaim", [part[0] for part in parts], commands)

    async def claimed(self, instance: Instance, names: Sequence[bytes]) -> set[bytes]:
        """See `Cache`."""
        keys = redis_keys(instance).claims(names)
        replies = await self._timed("claimed", keys, pipeline.for_each(b"EXISTS", keys))
        return {name for name, reply in zip(names, replies or ()) if reply}

    async def claim_left(self, instance: Instance, name: bytes) -> Optional[float]:
        """See `Cache`."""
        keys = redis_keys(instance).claims([name])
        replies = await self._timed("claim_left", keys, pipeline.for_each(b"PTTL", keys))
        left = replies[0] if replies else None
        return left / 1000 if isinstance(left, int) and left >= 0 else None

    async def invalidate(self, scope: Scope) -> None:
        """See `Cache`. Raises `CacheUnavailable`. Deletes: that works on a full server too, and the next reader begins anew."""
        error = await self._deleted("invalidate", ended_keys(scope), confirmed=True)
        if error is not None:
            raise CacheUnavailable(f"the cache did not confirm an invalidation: {error}")

    def invalidated(self, scope: Scope) -> None:
        """See `Cache`."""
        self._servers.forget(ended_keys(scope))

    async def ping(self) -> None:
        """See `Cache`. Raises `CacheUnavailable`."""
        await self._servers.probe()

    async def status(self) -> dict[str, object]:
        """Facts for ``/status.json``."""
        status: dict[str, object] = {"provider": "redis", "where": self._where, "connected": False, "works": False}
        try:
            status.update(await self._servers.facts())
            status["connected"] = self._servers.up
            await self._servers.probe()
        except CacheUnavailable as error:
            return {**status, "reason": str(error)}
        return {**status, "works": True}

    async def _begin_generations(self, keys: RedisKeys) -> Optional[Fence]:
        """Begin the generations that are missing. Set only if absent: all who race for it get the same fence.
        None where a full server takes none."""
        commands: list[Command] = []
        for key in keys.generations:
            lasts = None if key is keys.generations[0] else GENERATION_SECONDS
            commands += pipeline.set_if_absent([key], new_generation(), lasts)
        commands += pipeline.for_each(b"GET", keys.generations)
        replies = await self._servers.send([*keys.generations, *keys.generations], commands, urgent=True)
        self._look_for_errors("get_many", replies)
        return self._fence(replies[-GENERATIONS:], urgent=True)

    def _fence(self, generations: Sequence[object], urgent: bool) -> Optional[Fence]:
        """The fence of *generations*. Raises `CacheUnavailable`."""
        for generation in generations:
            if isinstance(generation, Exception):
                raise CacheUnavailable(str(generation))
        return self._servers.fence(generations, urgent)

    async def _deleted(self, operation: str, keys: Sequence[bytes], confirmed: bool) -> Optional[CacheUnavailable]:
        """Delete *keys*, observed; why that failed."""
        began, failed = self._reactor.seconds(), None
        try:
            await self._servers.delete(keys, confirmed)
        except CacheUnavailable as error:
            failed = error
            self._failed(operation, error)
        outcome = "ok" if failed is None else "failed"
        self._observer.cache_operation(operation, outcome, self._reactor.seconds() - began)
        return failed

    async def _timed(
        self, operation: str, keys: Sequence[bytes], commands: Sequence[Command], partly: bool = False
    ) -> Optional[Replies]:
        """Send commands, observed. None where that failed, or (unless *partly* will do) an error is among the replies."""
        if not commands:
            return []
        began = self._reactor.seconds()
        replies = await self._ask(operation, keys, commands, partly)
        outcome = "failed" if replies is None else "lost" if None in replies else "ok"
        self._observer.cache_operation(operation, outcome, self._reactor.seconds() - began)
        return replies

    async def _ask(
        self, operation: str, keys: Sequence[bytes], commands: Sequence[Command], partly: bool = False
    ) -> Optional[Replies]:
        try:
            replies = await self._servers.send(keys, commands)
        except CacheUnavailable as error:
            self._failed(operation, error)
            return None
        return None if self._look_for_errors(operation, replies) and not partly else replies

    def _failed(self, operation: str, error: CacheUnavailable, began: Optional[float] = None) -> None:
        if self._servers.up:  # else the log says already that the server is down
            self._complaints.complain(operation, str(error))
        if began is not None:
            self._observer.cache_operation(operation, "failed", self._reactor.seconds() - began)

    def _look_for_errors(self, operation: str, replies: Replies) -> bool:
        """Whether an error is among the replies: a full server (OOM), another type of value, a replica (READONLY)."""
        error = next((reply for reply in replies if isinstance(reply, Exception)), None)
        if error is None:
            return False
        if isinstance(error, CacheUnavailable):
            self._failed(operation, error)
        else:
            self._complaints.complain(operation, f"the server answered: {error}")
            self._servers.refused(error)
        return True
