"""The cache on a server that speaks the Redis protocol (Redis 6 or newer, Valkey).

Rules kept here:
- `get_many` is one round trip, together with all others of the same reactor turn; only where a generation is missing
  a second one begins it.
- Reads have a connection of their own, so that they never queue behind megabytes of writes.
- Whatever fails is a miss or a False, counted, and logged now and then.
- A server that was started anew counts as empty: the fence holds the name of its run. What it read from an old snapshot, or
  has as a replica that was promoted, may lack the last invalidations, and with them every grant and frame would be back.
- A large entry has its bytes below a key of their own (`twistedproxy.cache.redis.large`), and goes both ways in slices:
  neither the server nor the reactor stops for it. Its entry says where they are, and is written last.

The server should evict with ``allkeys-lru``: entries of ended generations are never deleted, they go with their time.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Optional

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger

from twistedproxy.cache.address import ServerAddress, SharedAddress
from twistedproxy.cache.interface import CacheUnavailable, EndsForGood, Fence, Head, Heads, Reading, Value
from twistedproxy.cache.keys import (
    FENCE_LENGTH,
    InstanceKeys,
    fence_of,
    instance_keys,
    new_generation,
    read_outcome,
    scope_keys,
    unstamp,
)
from twistedproxy.cache.monitoring import CacheObserver, Complaints, NullObserver
from twistedproxy.cache.redis import large, pipeline
from twistedproxy.cache.redis.connection import Link
from twistedproxy.cache.redis.endpoint import HELLO, PING, Greeting, MasterEndpoint, greeting, open_endpoint
from twistedproxy.cache.redis.gathered import ReadGatherer
from twistedproxy.cache.redis.pipeline import Patience
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.system.outages import Outage

READ_PATIENCE = Patience(silence=1.0, total=5.0)  # a caller waits: soon slower than asking the origin
WRITE_PATIENCE = Patience(silence=3.0, total=15.0)  # no caller waits, and a slice is a megabyte
START_SECONDS = 5.0  # for the first connection; then we go on without
STOP_SECONDS = 5.0
# Generations of instances that are no longer read must not stay for ever on a server that evicts nothing. One that ends costs
# what is cached below it: once in a month.
GENERATION_SECONDS = 30 * 24 * 3600.0


def redis_cache(
    reactor: Any,
    address: ServerAddress,
    observer: Optional[CacheObserver] = None,
    trust_root: Any = None,
) -> RedisCache:
    """The cache on the server at *address*. *trust_root* (default: the platform's) signs ``rediss://`` certificates."""
    endpoint = open_endpoint(reactor, address, trust_root)
    cache = RedisCache(reactor, endpoint, address.where, greeting(address), observer)
    cache.address = address
    return cache


class RedisCache(EndsForGood):
    """A `Cache` on the server behind *endpoint*, greeted with *hello*; *where* is for people. *reactor*: the installed one, which
    txredisapi uses.
    """

    shared = True
    reads_now = False
    address: Optional[SharedAddress] = None
    log = Logger()

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        where: str,
        hello: Greeting = HELLO,
        observer: Optional[CacheObserver] = None,
    ) -> None:
        self._reactor = reactor
        self._where = where
        self._observer = observer or NullObserver()
        self._complaints = Complaints(self.log, reactor.seconds)
        self._endpoint = endpoint
        outage = Outage(f"the cache at {where}", reactor.seconds)
        self._reads = Link(reactor, endpoint, hello, "reads", READ_PATIENCE, outage)
        self._writes = Link(reactor, endpoint, hello, "writes", WRITE_PATIENCE, outage)
        self._gatherer = ReadGatherer(reactor, self._reads.send)
        self._large = large.LargeEntries(self._reads, functools.partial(self._ask, "put_many"))

    async def start(self) -> None:
        """Connect. A server that is not there is waited for a little, then left to come when it comes."""
        self._reads.start()
        self._writes.start()
        if await self.wait_up(START_SECONDS):
            self.log.info("cache connected: {where}", where=self._where)

    async def wait_up(self, seconds: float) -> bool:
        """Wait for both connections, at most *seconds*; whether they are up."""
        end = self._reactor.seconds() + seconds
        return await self._reads.wait_up(seconds) and await self._writes.wait_up(
            max(0.0, end - self._reactor.seconds())
        )

    async def stop(self) -> None:
        """Hang up."""
        ending = [Deferred.fromCoroutine(link.stop()) for link in (self._reads, self._writes)]
        if isinstance(self._endpoint, MasterEndpoint):
            ending.append(self._endpoint.disconnect())  # type: ignore[arg-type]
        try:
            await gatherResults(ending, consumeErrors=True).addTimeout(STOP_SECONDS, self._reactor)
        except Exception as error:  # whatever it is, we are leaving
            self.log.warn("cache: closing the connection failed: {error}", error=error)

    async def get_many(self, instance: Instance, names: Sequence[bytes]) -> Reading:
        """See `Cache`."""
        began = self._reactor.seconds()
        keys = instance_keys(instance)
        entry = keys.entry
        try:
            values = await self._gatherer.read([*keys.generations, *[entry + name for name in names]])
            fence = self._fence(self._reads, values[: len(keys.generations)])
            if fence is None:
                fence = await self._begin_generations(keys)
                values = []
        except CacheUnavailable as error:
            self._failed(self._reads, "get_many", error, began)
            return Reading(None, {})
        found: dict[bytes, bytes] = {}
        for name, stored in zip(names, values[len(keys.generations) :]):
            value = None if stored is None or fence is None else unstamp(fence, stored)
            if value is not None and value.startswith(large.MARK) and large.is_packed(value):
                value = await self._large.read(entry + name, value)
            if value is not None:
                found[name] = value
        self._observer.cache_operation("get_many", read_outcome(names, found), self._reactor.seconds() - began)
        return Reading(fence, found)

    def read_now(self, instance: Instance, names: Sequence[bytes]) -> None:
        """See `Cache`: a server has to be waited for."""

    async def present(self, instance: Instance, names: Sequence[bytes]) -> set[bytes]:
        """See `Cache`. Only the stamps are read."""
        keys = instance_keys(instance)
        commands = [pipeline.command(b"MGET", *keys.generations)]
        commands += pipeline.for_each(b"GETRANGE", keys.entries(names), b"0", b"%d" % (FENCE_LENGTH - 1))
        replies = await self._timed("present", commands)
        if not replies or (fence := self._fence(self._writes, replies[0])) is None:
            return set()
        return {name for name, stamp in zip(names, replies[1:]) if stamp == fence}

    async def heads(self, instance: Instance, names: Sequence[bytes], length: int) -> Heads:
        """See `Cache`. On the connection for reads: a caller waits."""
        began = self._reactor.seconds()
        keys = instance_keys(instance)
        last = b"%d" % (FENCE_LENGTH + large.PREFIX + length - 1)
        commands = [pipeline.command(b"MGET", *keys.generations)]
        entries = keys.entries(names)
        commands += pipeline.for_each(b"GETRANGE", entries, b"0", last)
        commands += pipeline.for_each(b"STRLEN", entries)
        try:
            generations, *replies = await self._reads.send(b"".join(commands), len(commands))
        except CacheUnavailable as error:
            self._failed(self._reads, "heads", error, began)
            return Heads(None, {})
        fence = self._fence(self._reads, generations)
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
        prefix = instance_keys(instance).entry
        began = self._reactor.seconds()
        taken = True
        for part in pipeline.slices(entries):
            keyed = [(prefix + name, await self._large.placed(prefix + name, value, seconds)) for name, value in part]
            placed = [(key, value) for key, value in keyed if value is not None]
            wire = b"".join(pipeline.set_entries(fence, placed, seconds))
            replies = await self._ask("put_many", wire, len(placed)) if placed else []
            taken = replies is not None and [b"OK"] * len(part) == replies
            if not taken:
                break
        self._observer.cache_operation("put_many", "ok" if taken else "failed", self._reactor.seconds() - began)
        return taken

    async def remove(self, instance: Instance, names: Collection[bytes]) -> bool:
        """See `Cache`."""
        parts = pipeline.in_parts(instance_keys(instance).entries(list(names)))
        return await self._timed("remove", [pipeline.command(b"UNLINK", *part) for part in parts]) is not None

    async def claim(self, instance: Instance, names: Sequence[bytes], token: bytes, seconds: float) -> set[bytes]:
        """See `Cache`. None is won where the server can't be asked."""
        keys = instance_keys(instance).claims(names)
        replies = await self._timed("claim", pipeline.set_if_absent(keys, token, seconds))
        return {name for name, reply in zip(names, replies or ()) if reply == b"OK"}

    async def renew_claims(self, instance: Instance, names: Collection[bytes], token: bytes, seconds: float) -> None:
        """See `Cache`."""
        keys = instance_keys(instance).claims(list(names))
        await self._timed(
            "renew_claims", [pipeline.prolong_if_ours(part, token, seconds) for part in pipeline.in_parts(keys)]
        )

    async def unclaim(self, instance: Instance, names: Collection[bytes], token: bytes) -> None:
        """See `Cache`."""
        keys = instance_keys(instance).claims(list(names))
        await self._timed("unclaim", [pipeline.delete_if_ours(part, token) for part in pipeline.in_parts(keys)])

    async def claimed(self, instance: Instance, names: Sequence[bytes]) -> set[bytes]:
        """See `Cache`."""
        keys = instance_keys(instance).claims(names)
        replies = await self._timed("claimed", pipeline.for_each(b"EXISTS", keys))
        return {name for name, reply in zip(names, replies or ()) if reply}

    async def claim_left(self, instance: Instance, name: bytes) -> Optional[float]:
        """See `Cache`."""
        replies = await self._timed("claim_left", [pipeline.command(b"PTTL", instance_keys(instance).claim + name)])
        left = replies[0] if replies else None
        return left / 1000 if isinstance(left, int) and left >= 0 else None

    async def invalidate(self, scope: Scope) -> None:
        """See `Cache`. Raises `CacheUnavailable`. Deletes: that works on a full server too, and the next reader begins anew."""
        keys = scope_keys(scope)
        if await self._timed("invalidate", [pipeline.command(b"DEL", *keys)]) is None:
            raise CacheUnavailable(f"the cache did not confirm an invalidation: {self._writes.trouble}")

    async def ping(self) -> None:
        """See `Cache`. Raises `CacheUnavailable`."""
        for link in (self._reads, self._writes):
            (reply,) = await link.send(PING, 1)
            if isinstance(reply, Exception):
                raise CacheUnavailable(str(reply))

    async def status(self) -> dict[str, object]:
        """Facts for ``/status.json``."""
        status: dict[str, object] = {"provider": "redis", "where": self._where, "connected": False}
        sections = [pipeline.command(b"INFO", section) for section in (b"server", b"memory", b"stats")]
        try:
            replies = await self._writes.send(b"".join(sections), len(sections))
        except CacheUnavailable as error:
            return {**status, "reason": str(error)}
        return {**status, "connected": self._reads.up and self._writes.up, **pipeline.server_facts(replies)}

    async def _begin_generations(self, keys: InstanceKeys) -> Optional[Fence]:
        """Begin the generations that are missing. Set only if absent: all who race for it get the same fence.
        None where a full server takes none."""
        commands: list[bytes] = []
        for key in keys.generations:
            lasts = None if key is keys.generations[0] else GENERATION_SECONDS
            commands += pipeline.set_if_absent([key], new_generation(), lasts)
        commands.append(pipeline.command(b"MGET", *keys.generations))
        replies = await self._reads.send(b"".join(commands), len(commands))
        self._look_for_errors("get_many", replies)
        return self._fence(self._reads, replies[-1])

    def _fence(self, link: Link, generations: object) -> Optional[Fence]:
        """The fence of *generations*, which *link* has just read."""
        return fence_of([link.server, *generations]) if isinstance(generations, list) else None

    async def _timed(self, operation: str, commands: list[bytes]) -> Optional[list[object]]:
        """Send commands on the write connection, observed. None where that failed, or an error is among the replies."""
        if not commands:
            return []
        began = self._reactor.seconds()
        replies = await self._ask(operation, b"".join(commands), len(commands))
        outcome = "failed" if replies is None else "lost" if None in replies else "ok"
        self._observer.cache_operation(operation, outcome, self._reactor.seconds() - began)
        return replies

    async def _ask(self, operation: str, wire: bytes, count: int) -> Optional[list[object]]:
        try:
            replies = await self._writes.send(wire, count)
        except CacheUnavailable as error:
            self._failed(self._writes, operation, error)
            return None
        return None if self._look_for_errors(operation, replies) else replies

    def _failed(self, link: Link, operation: str, error: CacheUnavailable, began: Optional[float] = None) -> None:
        if link.up:  # else the log says already that the server is down
            self._complaints.complain(operation, str(error))
        if began is not None:
            self._observer.cache_operation(operation, "failed", self._reactor.seconds() - began)

    def _look_for_errors(self, operation: str, replies: list[object]) -> bool:
        """Whether an error is among the replies: a full server (OOM), another type of value, a replica (READONLY)."""
        error = next((reply for reply in replies if isinstance(reply, Exception)), None)
        if error is None:
            return False
        self._complaints.complain(operation, f"the server answered: {error}")
        if str(error).startswith("READONLY") and isinstance(self._endpoint, MasterEndpoint):
            for link in (self._reads, self._writes):  # the master changed: ask the sentinels again
                link.hang_up("the server is no longer the master")
        return True
