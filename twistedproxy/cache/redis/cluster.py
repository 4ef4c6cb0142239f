"""A Redis or Valkey cluster, as one place for keys.

Rules kept here:
- Each command goes to the master of its key's slot, all of one call for one node in one write, and to all nodes side by side.
- ``MOVED`` corrects the map of slots, ``ASK`` does not; both are followed (Redis Cluster specification, "Redirection and resharding").
- A node that can't be used costs what is on it, and only that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Optional

from twisted.internet.defer import Deferred

from twistedproxy.cache.address import ClusterAddress
from twistedproxy.cache.interface import CacheUnavailable, Fence
from twistedproxy.cache.keys import fence_of
from twistedproxy.cache.redis import pipeline, topology
from twistedproxy.cache.redis.cluster_reads import NO_NODE, ClusterReads, KeptGenerations
from twistedproxy.cache.redis.connection import Link
from twistedproxy.cache.redis.deletions import Deletions, delete_at
from twistedproxy.cache.redis.keys import slot_of
from twistedproxy.cache.redis.nodes import Node, Nodes
from twistedproxy.cache.redis.pipeline import Command, Replies
from twistedproxy.cache.redis.server import Values
from twistedproxy.cache.redis.topology import Redirection
from twistedproxy.deferreds import all_or_none

MOST_HOPS = 4
"""Redirections of one command that are followed."""

_ASKING: Command = (pipeline.command(b"ASKING"),)


class Cluster:
    """See `twistedproxy.cache.redis.server.Servers`."""

    def __init__(self, reactor: Any, address: ClusterAddress, trust_root: Any = None) -> None:
        self._deleted = Deletions(reactor)
        self._nodes = Nodes(reactor, address, self._deleted, trust_root)
        self._reads = ClusterReads(reactor, self._reading_at, self._redirected_read)
        self._generations = KeptGenerations(reactor, self._reads.read)

    @property
    def up(self) -> bool:
        """Whether all slots have a master that can be used."""
        return self._nodes.up

    @property
    def trouble(self) -> str:
        """Why not."""
        return self._nodes.trouble

    def start(self) -> None:
        """See `Servers`."""
        self._nodes.start()

    async def wait_up(self, seconds: float) -> bool:
        """See `Servers`."""
        return await self._nodes.wait_up(seconds)

    async def stop(self) -> None:
        """See `Servers`."""
        self._reads.stop()
        await self._nodes.stop()

    async def known(self, generations: Sequence[bytes]) -> Sequence[Optional[bytes]]:
        """See `Servers`."""
        return await self._generations.get(generations)

    async def read(self, generations: Sequence[bytes], entries: Sequence[bytes]) -> Values:
        """See `Servers`. Where generations have to be read, they are side by side with the entries."""
        kept = self._generations.now(generations)
        found = self._reads.read(entries)
        return [*(await self._generations.get(generations) if kept is None else kept), *await found]

    def _reading_at(self, slot: int) -> Optional[Link]:
        node = self._nodes.slots[slot]
        return None if node is None else node.links.reads

    async def send(self, keys: Sequence[bytes], commands: Sequence[Command], urgent: bool = False) -> Replies:
        """See `Servers`."""
        replies: Replies = [None] * len(keys)
        sent = []
        for node, places in self._by_node(keys).items():
            sent.append((places, self._sent(node, [commands[place] for place in places], urgent)))
        for places, answered in sent:
            for place, reply in zip(places, await answered):
                replies[place] = reply
        for place, reply in enumerate(replies):
            if isinstance(reply, Exception):
                replies[place] = await self._redirected(keys[place], commands[place], reply, urgent)
        return replies

    async def delete(self, keys: Sequence[bytes], confirmed: bool) -> None:
        """See `Servers`."""
        self._deleted.add(keys)
        self._generations.forget(keys)
        failed = await self._delete(keys, confirmed)
        if any(str(error).startswith("MOVED") for error in failed.values()):
            await self._nodes.refresh()
            failed = await self._delete(list(failed), confirmed)
        for key, error in failed.items():
            (command,) = pipeline.for_each(b"DEL", [key])
            reply = await self._redirected(key, command, error, urgent=False)
            if isinstance(reply, Exception):
                raise CacheUnavailable(str(reply))
        self._generations.forget(keys)

    async def _delete(self, keys: Sequence[bytes], confirmed: bool) -> dict[bytes, Exception]:
        """Delete *keys*; why some were not."""
        deleting = []
        for node, places in self._by_node(keys).items():
            own = [keys[place] for place in places]
            deleting.append((own, Deferred.fromCoroutine(self._deleted_at(node, own, confirmed))))
        replies = [one for own, replied in deleting for one in zip(own, await replied)]
        return {key: reply for key, reply in replies if isinstance(reply, Exception)}

    async def _deleted_at(self, node: Optional[Node], keys: Sequence[bytes], confirmed: bool) -> Replies:
        try:
            if node is None:
                raise CacheUnavailable(NO_NODE)
            return await delete_at(node.links.writes, keys, confirmed)
        except CacheUnavailable as error:
            return [error] * len(keys)

    def forget(self, keys: Iterable[bytes]) -> None:
        """See `Servers`."""
        self._generations.forget(keys)

    def fence(self, generations: Sequence[object], urgent: bool) -> Optional[Fence]:
        """See `Servers`. A node that came back is empty: its run need not be part of it."""
        return fence_of(generations)  # type: ignore[arg-type]

    def refused(self, error: Exception) -> None:
        """See `Servers`."""
        self._nodes.wanted = True

    async def probe(self) -> None:
        """See `Servers`."""
        if self._nodes.missing():
            raise CacheUnavailable(self.trouble)
        probing = []
        for node in self._nodes.masters():
            keys = topology.own_keys(b"p", node.ranges, 1)
            probing.append(Deferred.fromCoroutine(node.links.probe(keys[0])))
        await all_or_none(probing)

    async def facts(self) -> dict[str, object]:
        """See `Servers`: what is used, allowed and evicted on all nodes together, the rest of one of them; and the nodes."""
        facts: dict[str, object] = {}
        sums = dict.fromkeys(("used_bytes", "max_bytes", "evicted"), 0)
        nodes: list[dict[str, object]] = []
        for node in list(self._nodes.masters()):
            own: dict[str, object] = {"where": node.links.where, "connected": node.links.up}
            try:
                told = await node.links.facts()
            except CacheUnavailable as error:
                own["reason"] = str(error)
                told = {}
            for name in sums.keys() & told.keys():
                sums[name] += own.setdefault(name, told[name])  # type: ignore[operator]
            facts.update(told)
            nodes.append(own)
        return {**facts, **sums, "nodes": nodes}

    def _by_node(self, keys: Sequence[bytes]) -> dict[Optional[Node], list[int]]:
        places: dict[Optional[Node], list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault(self._nodes.slots[slot_of(key)], []).append(place)
        return places

    def _sent(self, node: Optional[Node], commands: Sequence[Command], urgent: bool) -> Deferred[Replies]:
        """The replies of one node; where it can't be asked, as many `CacheUnavailable`."""
        done: Deferred[Replies]
        try:
            if node is None:
                raise CacheUnavailable(NO_NODE)
            link = node.links.reads if urgent else node.links.writes
            done = link.send(pipeline.wire_of(commands), len(commands))
        except CacheUnavailable as error:
            done = Deferred()
            done.callback([error] * len(commands))
        return done.addErrback(lambda failure: [failure.value] * len(commands))

    async def _redirected_read(self, key: bytes, wire: bytes, error: object) -> object:
        return await self._redirected(key, (wire,), error, urgent=True)

    async def _redirected(self, key: bytes, command: Command, reply: object, urgent: bool) -> object:
        """What comes of *command*, which was answered with *reply*, where that says to ask elsewhere; else *reply*."""
        node = self._nodes.slots[slot_of(key)]
        for _ in range(MOST_HOPS):
            if isinstance(reply, Exception) and str(reply).startswith("TRYAGAIN"):
                # Of several keys in a slot that is moving, some are there and some here: one alone is found.
                reply = (await self._sent(node, [command], urgent))[0]
            to = Redirection.of(reply, "" if node is None else node.place[0])
            if to is None:
                break
            self._nodes.wanted = self._nodes.wanted or not to.asking
            if self._nodes.at(to.place) is None:
                await self._nodes.refresh()
            node = self._nodes.at(to.place)
            if node is None:
                break
            if not to.asking:
                self._nodes.slots[to.slot] = node
            reply = (await self._sent(node, [_ASKING, command] if to.asking else [command], urgent))[-1]
        if isinstance(reply, Exception) and str(reply).startswith("CLUSTERDOWN"):
            self._nodes.wanted = True
        return reply
