"""Child processes of the proxy that run this package's modules.

- A child is called over two pipes of its own (`twistedproxy.processes.channel`); what it prints becomes whole
  lines of the log: pieces of two children never meet in one line. Lines on a worker's standard output are ready-made, for it
  logs in its parent's format; all else becomes an event.
- A child's pipes end with the proxy, whatever way that ends; the child then ends too.
- A child whose channel is closed is killed: without it the child is of no use.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost, ProcessExitedAlready
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.deferreds import Waiters
from twistedproxy.processes.channel import CallError, Channel, Handler
from twistedproxy.processes.messages import CONTROL_IN, CONTROL_OUT, FIRST_SOCKET
from twistedproxy.system.logs import LogOutput

PASSED_ON = (
    "PATH",
    "LD_LIBRARY_PATH",
    "LANG",
    "HOME",
    "TZ",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)
"""Of the environment. The proxy's own options in it may hold secrets."""

PIPE_BYTES = 256 << 10
"""What a pipe to or from a child holds, where the system allows it. Linux gives 64 kB, and all pipes of a user who is not
root 64 MB together, after which each has 8 kB: this is enough for more than a hundred children."""

READ_BYTES = 256 << 10
"""What is read from a child at once. Twisted reads 8 kB from a pipe: 2.2 ms of work for a picture of 1.4 MB, not 1.5."""

END_SECONDS = 5.0
"""How long a killed process may take to be gone: longer only where the machine hangs."""


class StartFailed(Exception):
    """A child could not be started. The text says why."""


def child_command(module: str) -> list[str]:
    """The command that runs *module*."""
    # -P: no module comes from the folder that the proxy happens to run in
    return [sys.executable, "-P", "-m", module]


def child_environment() -> dict[str, str]:
    """What a child may see of the environment, and where it finds this package."""
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    # the proxy may have been started from a source tree that is not installed
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
    passed["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    passed["PYTHONIOENCODING"] = "utf-8:backslashreplace"
    return passed


STDOUT = 1

MAX_LINE = 256 * 1024
"""Bytes; a line that is longer is cut up."""

_NOT_JSON = re.compile(rb"^[^{]", re.MULTILINE)


class ChildOutput:
    """The lines of one child. *name*: what the log calls it. *output*: where lines of its standard output go ready-made;
    None: each becomes an event."""

    _log = Logger()

    def __init__(self, name: str, output: Optional[LogOutput] = None) -> None:
        self.pid: Optional[int] = None
        self.last_error = ""
        """The last line of its standard error."""
        self._name = name
        self._output = output
        self._begun: dict[int, bytes] = {}

    def received(self, descriptor: int, data: bytes) -> None:
        """A piece of what it printed."""
        whole, newline, begun = (self._begun.pop(descriptor, b"") + data).rpartition(b"\n")
        if whole or newline:
            self._write(descriptor, whole + newline)
        if len(begun) > MAX_LINE:
            self._write(descriptor, begun + b"\n")
        elif begun:
            self._begun[descriptor] = begun

    def ended(self) -> None:
        """It prints no more."""
        begun, self._begun = self._begun, {}
        for descriptor, data in begun.items():
            self._write(descriptor, data + b"\n")

    def _write(self, descriptor: int, lines: bytes) -> None:
        output = self._output
        if descriptor != STDOUT or output is None or (output.json and _NOT_JSON.search(lines)):
            for line in lines.splitlines():
                self._write_line(descriptor, line.decode("utf-8", "replace").rstrip())
        else:
            output.write(lines.decode("utf-8", "replace"))

    def _write_line(self, descriptor: int, line: str) -> None:
        if descriptor != STDOUT:
            self.last_error = line or self.last_error
        elif self._output is None:
            self._log.info("{line}", line=line)
            return
        elif line.startswith("{"):
            self._output.write(line + "\n")
            return
        if line:
            self._log.warn("{name} {pid} printed: {line}", name=self._name, pid=self.pid, line=line)


class ChildProcess(ProcessProtocol):
    """A child, once `spawn` was called. *name*: what the log calls it. *handlers*: what it may call.
    *output*: see `ChildOutput`.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        name: str,
        handlers: Optional[Mapping[str, Handler]] = None,
        output: Optional[LogOutput] = None,
    ) -> None:
        self.reactor = reactor
        self.channel = Channel(handlers or {})
        self.output = ChildOutput(name, output)
        self.alive = True
        self.reason = ""
        """How it ended."""
        self._waiting: Waiters[None] = Waiters()

    def spawn(self, module: str, environment: Optional[Mapping[str, str]] = None, sockets: Sequence[int] = ()) -> None:
        """Start ``python -m module``; it inherits *sockets* as `FIRST_SOCKET` and following. Raises `StartFailed`."""
        passed = {**child_environment(), **(environment or {})}
        descriptors = {
            0: "w",
            1: "r",
            2: "r",
            CONTROL_IN: "w",
            CONTROL_OUT: "r",
            **dict(enumerate(sockets, FIRST_SOCKET)),
        }
        try:
            self.reactor.spawnProcess(self, sys.executable, child_command(module), passed, childFDs=descriptors)
        except OSError as error:  # no more processes, no memory
            raise StartFailed(str(error)) from None
        self.output.pid = self.pid

    async def begin(self, name: str, *blobs: bytes, seconds: float) -> Any:
        """The child's answer to its first call, *name*. Raises `StartFailed` where there is none within *seconds*: the child
        is killed then."""
        try:
            return await self.channel.call(name, *blobs).addTimeout(seconds, self.reactor)
        except CallError as error:
            reason = str(error)
        except ConnectionLost:
            words = self.output.last_error
            reason = f"it exited ({self.reason})" + (f": {words}" if words else "")
        except defer.TimeoutError:
            reason = f"it is not ready after {seconds:g} s"
        except BaseException:
            await self.killed()
            raise
        await self.killed()
        raise StartFailed(reason)

    @property
    def pid(self) -> Optional[int]:
        """Its number, as long as it lives."""
        return self.transport.pid if self.alive and self.transport is not None else None

    def ended(self) -> Deferred[None]:
        """Fires when it is gone; a Deferred of the caller's own."""
        return self._waiting.wait() if self.alive else defer.succeed(None)

    def kill(self) -> None:
        """End it now."""
        self.signal("KILL")

    def signal(self, number: Any) -> None:
        """Send it a signal, if it lives."""
        with contextlib.suppress(ProcessExitedAlready):
            if self.transport is not None and self.alive:
                self.transport.signalProcess(number)

    async def killed(self) -> None:
        """Kill it, and return when it is gone."""
        self.kill()
        try:
            await self.ended().addTimeout(END_SECONDS, self.reactor)
        except defer.TimeoutError:
            self._log.error("process {pid} was killed but has not exited", pid=self.pid)

    # The channel's transport.

    def write(self, data: bytes) -> None:
        """Send *data* to the child."""
        process: Any = self.transport
        if CONTROL_IN in process.pipes:  # else it has ended, which will be noticed soon
            process.writeToChild(CONTROL_IN, data)

    loseConnection = kill

    # What Twisted calls.

    def connectionMade(self) -> None:
        pipes: Any = self.transport.pipes  # type: ignore[union-attr]
        for descriptor in (CONTROL_IN, CONTROL_OUT):
            _enlarge(pipes[descriptor].fileno())
        _read_much(pipes[CONTROL_OUT])
        self.channel.makeConnection(self)  # type: ignore[arg-type]

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD == CONTROL_OUT:
            self.channel.dataReceived(data)
        else:
            self.output.received(childFD, data)

    def processEnded(self, reason: Failure) -> None:
        self.alive = False
        self.reason = reason.getErrorMessage()
        self.output.ended()
        self.channel.connectionLost(reason)
        self._waiting.fire()


def _enlarge(descriptor: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # not Linux, or as much as this user may have is in use
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _read_much(reader: Any) -> None:
    """Have *reader*, Twisted's for a child's descriptor, read `READ_BYTES` at once."""

    def read() -> Any:
        try:
            data = os.read(reader.fd, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return CONNECTION_LOST
        if not data:
            return CONNECTION_DONE
        reader.dataReceived(data)
        return None

    reader.doRead = read
