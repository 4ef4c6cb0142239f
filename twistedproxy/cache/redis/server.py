"""One server of the Redis protocol, over two connections: the only one, or a node of a cluster.

Rules kept here:
- Reads have a connection of their own, so that they never queue behind megabytes of writes.
- Reads of one reactor turn are one round trip. Measured with 32 connections: single GETs over txredisapi reach 0.65x of a bare Klein
  route, gathered ones 0.82x.
- A reader's keys are read in their order, so its generations are read no later than its entries: what it finds is what
  was so at one moment of its wait.
- Each reader has a Deferred of its own; one that leaves ends only its own wait.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Optional, Protocol, Union

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger

from twistedproxy.cache.interface import CacheUnavailable, Fence
from twistedproxy.cache.keys import fence_of
from twistedproxy.cache.redis import pipeline
from twistedproxy.cache.redis.connection import Admit, Link, WrongKind, any_server
from twistedproxy.cache.redis.deletions import Deletions, delete_at, repeat
from twistedproxy.cache.redis.endpoint import Greeting, MasterEndpoint
from twistedproxy.cache.redis.keys import own_key
from twistedproxy.cache.redis.pipeline import BatchProtocol, Command, Patience, Replies, Run, command
from twistedproxy.system.outages import Outage

READ_PATIENCE = Patience(silence=1.0, total=5.0)  # a caller waits: soon slower than asking the origin
WRITE_PATIENCE = Patience(silence=3.0, total=15.0)  # no caller waits, and a slice is a megabyte
STOP_SECONDS = 5.0
PROBE_SECONDS = 60.0

# The server answers no other client while it gathers one MGET: 128 frames of 64 kB are 8 MB, some milliseconds.
MAX_KEYS_PER_MGET = 128
MAX_WAITING_READS = 20_000  # readers in one turn, far above what a worker's connections can ask

Values = list[Union[bytes, CacheUnavailable, None]]
_Reader = tuple[Sequence[bytes], Deferred[Values]]

_log = Logger()


class Servers(Protocol):
    """Where keys are: on one server, or on the nodes of a cluster."""

    @property
    def up(self) -> bool:
        """Whether all of it can be used."""

    @property
    def trouble(self) -> str:
        """Why it cannot."""

    def start(self) -> None:
        """Begin to connect."""

    async def wait_up(self, seconds: float) -> bool:
        """Wait until it is up, at most *seconds*; whether it is. Raises ValueError where it never will be."""

    async def stop(self) -> None:
        """Hang up."""

    async def known(self, generations: Sequence[bytes]) -> Sequence[Optional[bytes]]:
        """The values of these generation keys, or nothing where they are to be read with the rest. Raises `CacheUnavailable`."""

    async def read(self, generations: Sequence[bytes], entries: Sequence[bytes]) -> Values:
        """The values of all these keys, None for those that are missing, a `CacheUnavailable` for those that can't be read; or all
        of it raises that."""

    async def send(self, keys: Sequence[bytes], commands: Sequence[Command], urgent: bool = False) -> Replies:
        """Send commands, each to where its key is; the replies in their order. *urgent*: a caller waits for it. What could not
        be sent has a `CacheUnavailable` in its place, or all of it raises that."""

    async def delete(self, keys: Sequence[bytes], confirmed: bool) -> None:
        """Delete *keys*, now and after failovers. *confirmed*: wait until replicas have it, too. Raises `CacheUnavailable`."""

    def forget(self, keys: Iterable[bytes]) -> None:
        """Another process of this host has deleted *keys*."""

    def fence(self, generations: Sequence[object], urgent: bool) -> Optional[Fence]:
        """The fence of generations that were just read (*urgent*: like that); None where one is missing."""

    def refused(self, error: Exception) -> None:
        """A server answered that."""

    async def probe(self) -> None:
        """Write and read a key on every server. Raises `CacheUnavailable`."""

    async def facts(self) -> dict[str, object]:
        """The figures for ``/status.json``. Raises `CacheUnavailable`."""


@attrs.define(eq=False)
class ServerLinks:
    """The two connections to the server behind *endpoint*; *where* is for people."""

    reactor: Any
    endpoint: IStreamClientEndpoint
    where: str
    hello: Greeting
    admit: Admit = any_server
    reads: Link = attrs.field(init=False)
    writes: Link = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        outage = Outage(f"the cache at {self.where}", self.reactor.seconds)
        made = (self.reactor, self.endpoint, self.hello)
        self.reads = Link(*made, "reads", READ_PATIENCE, outage, self.admit)
        self.writes = Link(*made, "writes", WRITE_PATIENCE, outage, self.admit)

    @property
    def up(self) -> bool:
        """Whether both are."""
        return self.reads.up and self.writes.up

    @property
    def trouble(self) -> str:
        """Why not."""
        return (self.writes if self.reads.up else self.reads).trouble

    def use(self, admit: Admit) -> None:
        """From now on, use it only where *admit* does not refuse it."""
        for link in (self.reads, self.writes):
            link.admit = admit

    def start(self) -> None:
        """Begin to connect."""
        self.reads.start()
        self.writes.start()

    async def wait_up(self, seconds: float) -> bool:
        """Wait for both, at most *seconds*; whether they are up."""
        end = self.reactor.seconds() + seconds
        return await self.reads.wait_up(seconds) and await self.writes.wait_up(max(0.0, end - self.reactor.seconds()))

    async def stop(self) -> None:
        """Hang up."""
        ending = [Deferred.fromCoroutine(link.stop()) for link in (self.reads, self.writes)]
        if isinstance(self.endpoint, MasterEndpoint):
            ending.append(self.endpoint.disconnect())  # type: ignore[arg-type]
        try:
            await gatherResults(ending, consumeErrors=True).addTimeout(STOP_SECONDS, self.reactor)
        except Exception as error:  # whatever it is, we are leaving
            _log.warn("cache: closing the connection failed: {error}", error=error)

    async def probe(self, key: bytes) -> None:
        """Write *key*, and read it. Raises `CacheUnavailable`."""
        value = secrets.token_bytes(8)
        written = pipeline.command(b"SET", key, value, b"PX", pipeline.milliseconds(PROBE_SECONDS))
        read = pipeline.command(b"GET", key)
        for link, wire in ((self.writes, written), (self.reads, read)):
            (reply,) = await link.send(wire, 1)
            if isinstance(reply, Exception):
                raise CacheUnavailable(f"{self.where} answered a probe: {reply}")
            if reply is None:
                raise CacheUnavailable(f"{self.where} did not keep a probe")

    async def facts(self) -> dict[str, object]:
        """Its figures; none where it does not answer INFO. Raises `CacheUnavailable`."""
        if not self.writes.informs:
            return {}
        sections = [pipeline.command(b"INFO", section) for section in (b"server", b"memory", b"stats")]
        replies = await self.writes.send(b"".join(sections), len(sections))
        return pipeline.server_facts(replies) if any(isinstance(reply, bytes) for reply in replies) else {}


class ReadGatherer:
    """Collects reads, and sends them by *send* (a link's) at the end of the reactor turn."""

    def __init__(self, reactor: IReactorTime, send: Callable[[bytes, int], Deferred[Replies]]) -> None:
        self._reactor = reactor
        self._send = send
        self._readers: list[_Reader] = []
        self._call: Optional[IDelayedCall] = None

    def read(self, keys: Sequence[bytes]) -> Deferred[Values]:
        """The values of *keys*, None for those that are missing. Fails with `CacheUnavailable`."""
        if len(self._readers) >= MAX_WAITING_READS:
            raise CacheUnavailable("too many reads are waiting")
        # Without a canceller a Deferred that is cancelled ignores the result that comes later.
        done: Deferred[Values] = Deferred()
        self._readers.append((keys, done))
        if self._call is None:
            self._call = self._reactor.callLater(0, self._flush)
        return done

    def _flush(self) -> None:
        self._call = None
        readers = [reader for reader in self._readers if not reader[1].called]
        self._readers = []
        if not readers:
            return
        places: dict[bytes, int] = {}
        for keys, _ in readers:
            for key in keys:
                if key not in places:
                    places[key] = len(places)
        wanted = list(places)
        slices = pipeline.in_parts([wanted], MAX_KEYS_PER_MGET)
        try:
            sent = self._send(b"".join([command(b"MGET", *keys) for keys in slices]), len(slices))
        except CacheUnavailable as error:
            _fail(readers, error)
            return
        sent.addCallbacks(
            lambda replies: _answer(readers, places, replies), lambda failure: _fail(readers, failure.value)
        )


def _answer(readers: list[_Reader], places: dict[bytes, int], replies: Replies) -> None:
    values: Values = []
    for reply in replies:
        if not isinstance(reply, list):
            _fail(readers, CacheUnavailable(f"the server answered: {reply}"))
            return
        values += reply
    for keys, done in readers:
        done.callback([values[places[key]] for key in keys])


def _fail(readers: list[_Reader], error: Exception) -> None:
    for _, done in readers:
        done.errback(error)


PROBE = own_key(b"p", 0)


class Server(ServerLinks):
    """The one server that has all keys. See `Servers`.

    What it had before it was started anew, or as a replica, may lack the last invalidations: it counts as empty, for the name of its
    run is in every fence.
    """

    def __init__(self, reactor: Any, endpoint: IStreamClientEndpoint, where: str, hello: Greeting) -> None:
        self._deleted = Deletions(reactor)
        super().__init__(reactor, endpoint, where, hello, self._look)
        self._gatherer = ReadGatherer(reactor, self.reads.send)

    async def wait_up(self, seconds: float) -> bool:
        """See `Servers`."""
        up = await super().wait_up(seconds)
        if self.reads.wrong is not None:
            raise ValueError(f"--cache: {self.where}: {self.reads.wrong}")
        return up

    async def known(self, generations: Sequence[bytes]) -> Sequence[Optional[bytes]]:
        """See `Servers`."""
        return ()

    async def read(self, generations: Sequence[bytes], entries: Sequence[bytes]) -> Values:
        """See `Servers`. Raises `CacheUnavailable`."""
        return await self._gatherer.read([*generations, *entries])

    async def send(self, keys: Sequence[bytes], commands: Sequence[Command], urgent: bool = False) -> Replies:
        """See `Servers`."""
        return await (self.reads if urgent else self.writes).send(pipeline.wire_of(commands), len(commands))

    async def delete(self, keys: Sequence[bytes], confirmed: bool) -> None:
        """See `Servers`."""
        self._deleted.add(keys)
        replies = await delete_at(self.writes, keys, confirmed)
        for reply in replies:
            if isinstance(reply, Exception):
                self.refused(reply)
                raise CacheUnavailable(f"the server answered: {reply}")

    def forget(self, keys: Iterable[bytes]) -> None:
        """See `Servers`: nothing is remembered here."""

    def fence(self, generations: Sequence[object], urgent: bool) -> Optional[Fence]:
        """See `Servers`."""
        return fence_of([(self.reads if urgent else self.writes).run.name, *generations])  # type: ignore[list-item]

    def refused(self, error: Exception) -> None:
        """See `Servers`. A server that is no longer the master: ask the sentinels again."""
        if str(error).startswith("READONLY") and isinstance(self.endpoint, MasterEndpoint):
            for link in (self.reads, self.writes):
                link.hang_up("the server is no longer the master")

    async def probe(self, key: bytes = PROBE) -> None:
        """See `Servers`."""
        await super().probe(key)

    async def _look(self, connection: BatchProtocol, run: Run) -> None:
        if run.in_cluster:
            raise WrongKind(NODE)
        await repeat(connection, self._deleted.recent())


NODE = (
    "the server is a node of a cluster (cluster_enabled:1); use redis-cluster://HOST:PORT or rediss-cluster://HOST:PORT"
)
