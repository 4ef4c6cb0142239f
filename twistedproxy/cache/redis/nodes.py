"""The masters of a Redis or Valkey cluster, which slots they have, and the connections to them.

Rules kept here:
- The map is asked for again when it was wrong, and while a master can't be used, of each node in turn: one that is cut off from the
  others knows less.
- What came back with old content is emptied before it is used (`twistedproxy.cache.redis.history`).
- What was ended lately is ended once more at each new connection, and where its slot has moved to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Optional

import attrs
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from twistedproxy.cache.address import ClusterAddress
from twistedproxy.cache.interface import CacheUnavailable
from twistedproxy.cache.redis import history, pipeline, topology
from twistedproxy.cache.redis.connection import Link
from twistedproxy.cache.redis.deletions import Deletions, repeat
from twistedproxy.cache.redis.endpoint import greeting, open_endpoint
from twistedproxy.cache.redis.keys import SLOTS, slot_of
from twistedproxy.cache.redis.pipeline import BatchProtocol, Run
from twistedproxy.cache.redis.server import ServerLinks
from twistedproxy.cache.redis.topology import Place, Ranges, Topology, in_ranges
from twistedproxy.deferreds import Waiters
from twistedproxy.system.outages import Outage

LOOK_SECONDS = 0.5
"""Between two looks whether the map has to be asked for."""

SEED_SECONDS = 2.0
"""For one of the nodes that the address names to tell of the others."""

MARK_EVERY_SECONDS = 30.0


@attrs.define(eq=False)
class Node:
    """A master, and the slots that it has."""

    place: Place
    links: ServerLinks
    ranges: Ranges
    deleted: Deletions
    _looked_at: bytes = attrs.field(init=False, default=b"")
    _looking: DeferredLock = attrs.field(init=False, factory=DeferredLock)

    async def admit(self, connection: BatchProtocol, run: Run) -> None:
        """Look at its history; end once more what was ended lately."""
        await self._looking.acquire()
        try:
            if self._looked_at != run.name:
                await history.look(connection, run, self.ranges, self.links.where)
                self._looked_at = run.name
        finally:
            self._looking.release()
        await repeat(connection, self.own(self.deleted.recent()))

    def own(self, keys: Iterable[bytes]) -> list[bytes]:
        """Those of *keys* that it has."""
        return [key for key in keys if in_ranges(key, self.ranges)]


class Nodes:
    """The masters of the cluster at *address*. *deleted*: what was ended lately."""

    log = Logger()

    def __init__(self, reactor: Any, address: ClusterAddress, deleted: Deletions, trust_root: Any) -> None:
        self._reactor = reactor
        self._address = address
        self._trust_root = trust_root
        self._deleted = deleted
        self._nodes: dict[Place, Node] = {}
        self.slots: list[Optional[Node]] = [None] * SLOTS
        """The master of each slot."""
        self.wanted = True
        """Whether the map is to be asked for at the next look."""
        self._outage = Outage(f"the cluster at {address.where}", reactor.seconds)
        self._turn = 0
        self._marked = 0.0
        self._trouble = "not connected yet"
        self._refreshing: Optional[Waiters[None]] = None
        self._known: Waiters[None] = Waiters()
        self._stopped = False
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor

    @property
    def up(self) -> bool:
        """Whether all slots have a master that can be used."""
        return not self.missing() and all(node.links.up for node in self.masters())

    @property
    def trouble(self) -> str:
        """Why not."""
        down = next((node for node in self.masters() if not node.links.up), None)
        if down is not None:
            return f"{down.links.where}: {down.links.trouble}"
        return f"{self.missing()} of {SLOTS} slots have no master" if self._nodes else self._trouble

    def start(self) -> None:
        """Begin to connect."""
        self._looking.start(LOOK_SECONDS)

    async def wait_up(self, seconds: float) -> bool:
        """See `Servers`."""
        end = self._reactor.seconds() + seconds
        if not self._nodes:
            await self._known.wait().addTimeout(seconds, self._reactor, lambda *_: None)
        if "cluster support disabled" in self._trouble:
            raise ValueError(
                f"--cache: {self._address.where} is no cluster: {self._trouble}; use redis:// or rediss://"
            )
        for node in list(self._nodes.values()):
            await node.links.wait_up(max(0.0, end - self._reactor.seconds()))
        return self.up

    async def stop(self) -> None:
        """Hang up."""
        self._stopped = True
        if self._looking.running:
            self._looking.stop()
        nodes, self._nodes = list(self._nodes.values()), {}
        self.slots = [None] * SLOTS
        for stopping in [Deferred.fromCoroutine(node.links.stop()) for node in nodes]:
            await stopping
        if self._refreshing is not None:
            await self._refreshing.wait()

    def at(self, place: Place) -> Optional[Node]:
        """The node at *place*, if it is known."""
        return self._nodes.get(place)

    def masters(self) -> Iterator[Node]:
        """Those that have slots."""
        return iter([node for node in self._nodes.values() if node.ranges])

    def missing(self) -> int:
        """How many slots have no master."""
        return topology.uncovered(node.ranges for node in self._nodes.values())

    async def _look(self) -> None:
        """Ask for the map where that is needed; mark the nodes."""
        try:
            if self.wanted or not self.up:
                await self.refresh()
            now = self._reactor.seconds()
            if now - self._marked >= MARK_EVERY_SECONDS:
                self._marked = now
                self._mark()
        except Exception:
            self.log.failure("looking after the cluster failed")

    async def refresh(self) -> None:
        """Ask for the map; once for all who want it at the same time."""
        if self._refreshing is not None:
            await self._refreshing.wait()
            return
        self._refreshing = Waiters()
        self.wanted = False
        try:
            found = await self._found()
            if found and not self._stopped:
                self._adopt(found)
                self._known.fire()
        finally:
            refreshing, self._refreshing = self._refreshing, None
            refreshing.fire()

    async def _found(self) -> Optional[Topology]:
        """The map, of the first that tells."""
        nodes = [node for node in self._nodes.values() if node.links.writes.up]
        self._turn += 1
        for place in range(len(nodes)):
            node = nodes[(self._turn + place) % len(nodes)]
            found = await self._told(node.place[0], node.links.writes)
            if found:
                return found
        for host, port in self._address.hosts:
            if self._stopped:
                break
            seed = self._links((host, port))
            if seed is None:
                continue
            seed.writes.start()
            try:
                if await seed.writes.wait_up(SEED_SECONDS):
                    found = await self._told(host, seed.writes)
                    if found:
                        return found
                else:
                    self._failed(f"{seed.where}: {seed.writes.trouble}")
            finally:
                await seed.stop()
        return None

    async def _told(self, host: str, link: Link) -> Optional[Topology]:
        try:
            (reply,) = await link.send(topology.SHARDS, 1)
            if isinstance(reply, Exception) and "disabled" not in str(reply):
                (reply,) = await link.send(topology.SLOTS_COMMAND, 1)
                return topology.parse_slots(reply, host)
            return topology.parse_shards(reply, host, self._address.tls)
        except (CacheUnavailable, topology.NoTopology) as error:
            self._failed(str(error))
            return None

    def _failed(self, reason: str) -> None:
        self._trouble = reason
        self._outage.failed("map", reason)
        if "disabled" in reason:
            self._known.fire()

    def _links(self, place: Place) -> Optional[ServerLinks]:
        """None where no certificate can have the name of *place*."""
        address = self._address.node(*place)
        try:
            endpoint = open_endpoint(self._reactor, address, self._trust_root)
        except UnicodeError as error:  # as of all errors of IDNA
            self._trouble = f"{place[0]}: {error}"
            self._outage.failed("name", self._trouble)
            return None
        return ServerLinks(self._reactor, endpoint, address.where.rpartition("/")[0], greeting(address))

    def _adopt(self, found: Topology) -> None:
        """Use a new map: connect to what is new, hang up on what is no longer there, repeat what was ended in slots that moved."""
        self._outage.worked("map")
        before, self.slots = self.slots, [None] * SLOTS
        for place in self._nodes.keys() - found.keys():
            Deferred.fromCoroutine(self._nodes.pop(place).links.stop())
        new: list[Node] = []
        for place, ranges in found.items():
            node = self._nodes.get(place)
            if node is None:
                links = self._links(place)
                if links is None:
                    continue
                node = self._nodes[place] = Node(place, links, ranges, self._deleted)
                new.append(node)
            node.ranges = ranges
            for first, last in ranges:
                self.slots[first : last + 1] = [node] * (last + 1 - first)
        for node in new:
            node.links.use(node.admit)
            node.links.start()
        recent = self._deleted.recent()
        for node in self._nodes.values():
            moved = [key for key in node.own(recent) if before[slot_of(key)] not in (None, node)]
            connection = node.links.writes.connection
            if moved and connection is not None:
                Deferred.fromCoroutine(repeat(connection, moved)).addErrback(lambda _: None)
        self._mark()

    def _mark(self) -> None:
        for node in self.masters():
            connection, marks = node.links.writes.connection, history.marks_of(node.ranges)
            if connection is not None and node.links.writes.run.name:
                commands = history.written(marks, node.links.writes.run)
                connection.send(pipeline.wire_of(commands), len(marks)).addErrback(lambda _: None)
