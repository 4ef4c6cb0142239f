"""Child processes of the proxy that run this package's modules and are spoken to over pipes.

- What a child must know goes through its pipe: never through the command line or the environment, which others read.
- A child's pipe ends with the proxy, whatever way that ends; the child then ends too.
- A child whose conversation is closed is killed: without it the child is of no use.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Optional

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IProtocol, ITransport
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

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
"""What a pipe to or from a child holds, where the system lets. Linux gives 64 kB, and all pipes of a user who is not root
64 MB together, after which each has 8 kB: this is enough for more than a hundred children."""

READ_BYTES = 256 << 10
"""What is read from a child at once. Twisted reads 8 kB from a pipe: 2.2 ms of work for a picture of 1.4 MB, not 1.5."""


def child_command(module: str) -> list[str]:
    """What runs *module*."""
    # -P: no module comes from the folder that the proxy happens to run in
    return [sys.executable, "-P", "-m", module]


def child_environment() -> dict[str, str]:
    """What a child may see of the environment, and where it finds this package."""
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    # the proxy may have been started from a source tree that is not installed
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]
    passed["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    passed["PYTHONIOENCODING"] = "utf-8:backslashreplace"
    return passed


@implementer(ITransport)
class _Pipe:
    """A child's descriptor that we write to, as the transport of a protocol."""

    disconnecting = False

    def __init__(self, child: ChildProcess, descriptor: int) -> None:
        self._child = child
        self._descriptor = descriptor

    def write(self, data: bytes) -> None:
        process: Any = self._child.transport
        if self._descriptor in process.pipes:  # else it has ended, and will soon be heard to
            process.writeToChild(self._descriptor, data)

    def writeSequence(self, iovec: Any) -> None:
        self.write(b"".join(iovec))

    def loseConnection(self) -> None:
        self.disconnecting = True
        self._child.kill()

    def getPeer(self) -> Any:
        return None

    def getHost(self) -> Any:
        return None


class ChildProcess(ProcessProtocol):
    """One child. *conversation* speaks with it: we write to its descriptor *hears* and read from its *speaks*;
    what it writes elsewhere (its standard output and error) goes to *said*, with the descriptor, in pieces.
    """

    def __init__(
        self, conversation: IProtocol, hears: int, speaks: int, said: Callable[[int, bytes], None] = lambda *_: None
    ) -> None:
        self.conversation: Any = conversation
        self.alive = True
        self.reason = ""
        """How it ended."""
        self._hears = hears
        self._speaks = speaks
        self._said = said
        self._waiting: list[Deferred[None]] = []

    def spawn(
        self,
        reactor: Any,
        module: str,
        descriptors: Mapping[int, Any],
        environment: Optional[Mapping[str, str]] = None,
    ) -> None:
        """Start ``python -m module``; *descriptors* as in Twisted's ``childFDs``. Raises OSError."""
        passed = {**child_environment(), **(environment or {})}
        reactor.spawnProcess(self, sys.executable, child_command(module), passed, childFDs=dict(descriptors))

    @property
    def pid(self) -> Optional[int]:
        """Its number, as long as it lives."""
        return self.transport.pid if self.alive and self.transport is not None else None

    def ended(self) -> Deferred[None]:
        """Fires when it is gone; a Deferred of the caller's own."""
        waiter: Deferred[None] = Deferred()
        if self.alive:
            self._waiting.append(waiter)
        else:
            waiter.callback(None)
        return waiter

    def kill(self) -> None:
        """End it now."""
        try:
            if self.transport is not None and self.alive:
                self.transport.signalProcess("KILL")
        except ProcessExitedAlready:
            pass

    def connectionMade(self) -> None:
        pipes: Any = self.transport.pipes  # type: ignore[union-attr]
        for descriptor in (self._hears, self._speaks):
            _enlarge(pipes[descriptor].fileno())
        _read_much(pipes[self._speaks])
        self.conversation.makeConnection(_Pipe(self, self._hears))

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD == self._speaks:
            self.conversation.dataReceived(data)
        else:
            self._said(childFD, data)

    def processEnded(self, reason: Failure) -> None:
        self.alive = False
        self.reason = reason.getErrorMessage()
        self.conversation.connectionLost(reason)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.called:
                waiter.callback(None)


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
