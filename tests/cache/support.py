"""Waiting and servers for the tests of the cache."""

from __future__ import annotations

import inspect
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol, Protocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest

from tests.running import tied
from tests.waiting import DEADLINE
from twistedproxy.cache.address import Login
from twistedproxy.cache.redis import pipeline
from twistedproxy.cache.redis.connection import Link
from twistedproxy.cache.redis.endpoint import HELLO, PING, Greeting
from twistedproxy.cache.redis.pipeline import Patience
from twistedproxy.dicom.resource import Instance
from twistedproxy.system.outages import Outage

A = Instance("http://store/dicom-web", "", "1.2.3", "1.2.3.4", "1.2.3.4.5")
SERVERS = ("redis-server", "valkey-server")
ANSWER_SECONDS = 1.0  # for one look whether a server answers
POLL = 0.01


def installed_reactor() -> Any:
    """The reactor that trial runs."""
    from twisted.internet import reactor

    return reactor


async def until(condition: Callable[[], Any], what: str = "it", seconds: float = DEADLINE, pause: float = POLL) -> None:
    """Let the reactor run until *condition* (which may be async), looked at after each *pause*, is true; fail after *seconds*."""
    reactor = installed_reactor()
    end = reactor.seconds() + seconds
    while True:
        now = condition()
        if inspect.isawaitable(now):
            now = await now
        if now:
            return
        if reactor.seconds() > end:
            raise AssertionError(f"{what} did not happen within {seconds:g} s")
        await deferLater(reactor, pause)


async def ask(path: str, *arguments: bytes, password: Optional[bytes] = None) -> Any:
    """What the server on the unix socket at *path* answers to one command."""
    reactor = installed_reactor()
    endpoint = UNIXClientEndpoint(reactor, path)
    hello = HELLO if password is None else Greeting((PING,), Login(None, password.decode()))
    connection = Link(reactor, endpoint, hello, path, Patience(5.0, 5.0), Outage(path, reactor.seconds))
    connection.start()
    try:
        await connection.wait_up(5.0)
        return (await connection.send(pipeline.command(*arguments), 1))[0]
    finally:
        await connection.stop()


class _Ping(Protocol):
    """Asks once."""

    def __init__(self) -> None:
        self.answered: Deferred[bool] = Deferred()

    def connectionMade(self) -> None:
        if self.transport is not None:
            self.transport.write(b"PING\r\n")

    def dataReceived(self, data: bytes) -> None:
        self._settle(data.startswith(b"+PONG"))

    def connectionLost(self, reason: object = None) -> None:
        self._settle(False)

    def _settle(self, answered: bool) -> None:
        if not self.answered.called:
            self.answered.callback(answered)


async def answers(reactor: Any, path: str) -> bool:
    """Whether a server answers PING on the unix socket at *path*."""
    ping = _Ping()
    try:
        await connectProtocol(UNIXClientEndpoint(reactor, path, timeout=ANSWER_SECONDS), ping)
    except Exception:  # Twisted's connection errors have no common base but this
        return False
    try:
        return await ping.answered.addTimeout(ANSWER_SECONDS, reactor, lambda result, seconds: False)
    finally:
        if ping.transport is not None:
            ping.transport.loseConnection()


def find_server() -> Optional[str]:
    """The path of a server that speaks the Redis protocol; None where there is none on PATH."""
    return next(filter(None, map(shutil.which, SERVERS)), None)


def any_server() -> str:
    """The binary of a server that speaks the Redis protocol; skips the test where there is none."""
    binary = find_server()
    if binary is None:
        raise SkipTest("no Redis or Valkey server")
    return binary


def alive(pid: int) -> bool:
    """Whether process *pid* runs: a zombie doesn't."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


class RunningServer(ProcessProtocol):
    """A server with settings of the test's own, on a unix socket in a folder of its own."""

    def __init__(self, binary: str, *arguments: str, configuration: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cache-test-"))
        self.socket = str(self.folder / "socket")
        self.output = b""
        self._over: Deferred[None] = Deferred()
        own = ["--unixsocket", self.socket, "--dir", str(self.folder), "--save", "", "--appendonly", "no"]
        if "--port" not in arguments and "port" not in configuration:
            own += ["--port", "0"]  # else it would listen at its well-known port, on all addresses
        self._command = [binary, *own, *arguments]
        if configuration:
            file = self.folder / "server.conf"
            file.write_text(configuration)
            self._command[1:1] = [str(file)]

    async def start(self) -> RunningServer:
        """Start it and wait until it answers."""
        reactor = installed_reactor()
        command = tied(self._command)
        self._over = Deferred()
        reactor.spawnProcess(self, command[0], command, env=os.environ)
        try:
            await until(lambda: answers(reactor, self.socket), f"the start of {self._command}")
        except BaseException:
            await self.stop()
            raise AssertionError(self.output.decode()) from None
        return self

    async def stop(self) -> None:
        """Kill it and remove its folder."""
        await self.kill()
        shutil.rmtree(self.folder)

    async def kill(self) -> None:
        """Kill it; it can be started again, in the same folder."""
        self.signal(signal.SIGKILL)
        await self._over

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        try:
            self.transport.signalProcess(number)  # type: ignore[union-attr]
        except ProcessExitedAlready:
            pass

    def outReceived(self, data: bytes) -> None:
        self.output += data

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        self._over.callback(None)
