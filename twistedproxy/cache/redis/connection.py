"""One connection to a Redis-protocol server that is kept up.

txredisapi connects, reconnects and reads replies (with hiredis). Commands go out as ready-made bytes
(`twistedproxy.cache.redis.pipeline`), many at once: its own Deferred per command costs more than the server's answer.

Rules kept here:
- The connection is *up* only once the server has answered our greeting. While it isn't, `Link.send` fails at
  once: nobody waits for a server that is down.
- A server that was hung up on because it did not answer in time is down until it answers again.
- Pauses between attempts grow until the server has answered our greeting, also where it accepts connections and then
  refuses us. The log says once why the server is down, and once that it is back.
- Bytes that wait for an answer are bounded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Optional

import txredisapi  # type: ignore[import-untyped]
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from twistedproxy.cache.interface import CacheUnavailable
from twistedproxy.cache.redis.endpoint import Greeting
from twistedproxy.cache.redis.pipeline import WHICH_RUN, BatchProtocol, Patience, Replies, Run
from twistedproxy.deferreds import Waiters
from twistedproxy.system.outages import Outage, reason_of

FIRST_RETRY_SECONDS = 0.1  # a local server is back within a second
MAX_RETRY_SECONDS = 2.0
MAX_REFUSED_RETRY_SECONDS = 10.0  # a password or a certificate is not put right within seconds
MAX_OUTSTANDING_BYTES = 64 * 2**20  # of commands not yet answered
HUNG_UP_ON = 2
"""So many times a server has to end the connection at `WHICH_RUN` until it is no longer asked: a sharding proxy does that with
each command that it does not know."""


class WrongKind(CacheUnavailable):
    """A server of another kind than the address says."""


Admit = Callable[[BatchProtocol, Run], Awaitable[None]]
"""Looks at a server, over a connection that was just made, before it is used. Raises `CacheUnavailable` where it must not be."""


async def any_server(connection: BatchProtocol, run: Run) -> None:
    """Refuses none."""


class _Factory(txredisapi.RedisFactory):  # type: ignore[misc]
    """Keeps one connection and tells the link when it is there."""

    initialDelay = FIRST_RETRY_SECONDS
    maxDelay = MAX_RETRY_SECONDS
    refused = 0
    """Connections in a row that were made, and ended before the server had answered our greeting."""

    def __init__(self, clock: Any, patience: Patience, connected: Callable[[BatchProtocol], None]) -> None:
        # No conversions: frames of digits are no numbers. Greeting and login are ours, for txredisapi gives up for good
        # when a login fails once.
        super().__init__(uuid=None, dbid=None, poolsize=1, isLazy=True, charset=None, convertNumbers=False)
        self._clock = clock
        self._patience = patience
        self._connected = connected

    def retryDelay(self, attempt: int) -> float:
        self.maxDelay = MAX_REFUSED_RETRY_SECONDS if self.refused else MAX_RETRY_SECONDS
        delay: float = super().retryDelay(max(attempt, self.refused))
        return delay

    def buildProtocol(self, addr: object) -> BatchProtocol:
        protocol = BatchProtocol(charset=None, convertNumbers=False, clock=self._clock, patience=self._patience)
        protocol.factory = self
        protocol.whenConnected().addCallback(self._connectionReady)
        return protocol

    def addConnection(self, conn: BatchProtocol) -> None:
        super().addConnection(conn)
        if conn in self.pool:
            self._connected(conn)


class Link:
    """A connection to the server behind *endpoint*, greeted with *hello* and used where *admit* does not refuse it.

    *outage* hears whether the server works, of the links to one server under the names that they go by.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        hello: Greeting,
        name: str,
        patience: Patience,
        outage: Outage,
        admit: Admit = any_server,
    ) -> None:
        self._reactor = reactor
        self._hello = hello
        self.admit = admit
        self._name = name
        self._outage = outage
        self._endpoint = _Heard(endpoint, self._failed)
        self._factory = _Factory(reactor, patience, self._connected)
        self._up: Optional[BatchProtocol] = None
        self._any: Optional[BatchProtocol] = None
        self._waiting: Waiters[None] = Waiters()
        self._stopping = False
        self.trouble = "not connected yet"
        self.run = Run()
        """The run of the server that the connection leads to: another one after each restart."""
        self._hung_up_on = 0
        self.wrong: Optional[WrongKind] = None
        """That it will never be up."""

    @property
    def up(self) -> bool:
        """Whether commands can be sent."""
        return self._up is not None

    @property
    def connection(self) -> Optional[BatchProtocol]:
        """The present connection: for commands that must follow others on the same one."""
        return self._up

    @property
    def informs(self) -> bool:
        """Whether the server can be asked about itself."""
        return self._hung_up_on < HUNG_UP_ON

    def start(self) -> None:
        """Begin to connect, and go on whenever the connection is lost."""
        self._factory.startConnecting(self._endpoint)

    def send(self, wire: bytes, count: int) -> Deferred[Replies]:
        """Send *count* commands. Raises `CacheUnavailable` at once where the server is down or too much is outstanding."""
        up = self._up
        if up is None:
            raise CacheUnavailable(self.trouble)
        if up.outstanding and up.outstanding + len(wire) > MAX_OUTSTANDING_BYTES:
            raise CacheUnavailable("the server reads too slowly")
        return up.send(wire, count)

    async def wait_up(self, seconds: float) -> bool:
        """Wait until the link is up, for at most *seconds*; whether it is."""
        if self._up is None:
            await self._waiting.wait().addTimeout(seconds, self._reactor, lambda *_: None)
        return self.up

    def hang_up(self, reason: str) -> None:
        """End the present connection; another one is made."""
        connection = self._any
        self.trouble = reason
        self._up = self._any = None
        if connection is not None:
            connection.lost = None
            connection.transport.abortConnection()

    async def stop(self) -> None:
        """Hang up for good."""
        self._stopping = True
        self.hang_up("stopped")
        await self._factory.disconnect()

    def _connected(self, connection: BatchProtocol) -> None:
        self._any = connection
        connection.lost = self._lost
        ensureDeferred(self._greet(connection))

    async def _greet(self, connection: BatchProtocol) -> None:
        why: Optional[str]
        try:
            hello = await self._hello.now()
            if connection is not self._any:
                return
            why = hello.refusal(await connection.send(b"".join(hello.commands), len(hello.commands)))
            if why is None:
                self.run = await self._run(connection) if self.informs else Run()
                await self.admit(connection, self.run)
        except CacheUnavailable as error:
            why = str(error)
            self.wrong = error if isinstance(error, WrongKind) else None
        if self._stopping or connection is not self._any:
            return
        if why is not None:
            self._factory.refused += 1
            self._failed_because(f"the server refused the connection: {why}")
            self.hang_up(self.trouble)
            if self.wrong is not None:
                self._waiting.fire()
            return
        self._up = connection
        self._factory.refused = 0
        self._outage.worked(self._name)
        self._waiting.fire()

    async def _run(self, connection: BatchProtocol) -> Run:
        # Not together with the greeting: what hangs up at this may do so before that is answered.
        try:
            replies = await connection.send(WHICH_RUN, 1)
        except CacheUnavailable:
            self._hung_up_on += 1
            raise CacheUnavailable("it ended the connection when asked which run it is of (INFO)") from None
        self._hung_up_on = 0
        return Run.of(replies[0])

    def _lost(self, reason: str) -> None:
        if self._up is None:
            self._factory.refused += 1
        self._up = self._any = None
        self._failed_because(f"the connection was lost: {reason}")

    def _failed(self, reason: Failure) -> None:
        if not self._stopping:
            self._failed_because(f"cannot connect: {reason_of(reason.value)}")

    def _failed_because(self, trouble: str) -> None:
        self.trouble = trouble
        self._outage.failed(self._name, trouble)


@implementer(IStreamClientEndpoint)
class _Heard:
    """Tells why an attempt to connect failed: ClientService keeps that to itself."""

    def __init__(self, endpoint: IStreamClientEndpoint, failed: Callable[[Failure], None]) -> None:
        self._endpoint = endpoint
        self._failed = failed

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        def failed(failure: Failure) -> Failure:
            self._failed(failure)
            return failure

        return self._endpoint.connect(protocolFactory).addErrback(failed)
