"""Child processes of the proxy that run this package's modules and are spoken to over pipes.

- What a child must know goes through its pipe: never through the command line or the environment, which others read.
- A child's pipe ends with the proxy, whatever way that ends; the child then ends too.
- A child whose conversation is closed is killed: without it the child is of no use.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import resource
import sys
import time
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

LARGE = 32 << 20
"""Bytes of one object that has pages of its own, which the system gets back when it is freed: the most that glibc takes."""

KEPT_FREE = 2 * LARGE
"""Bytes of freed memory that are kept for what is needed next."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

OPEN_FILES = 65536
"""Connections and files of one process: far above 1024, the usual limit at first, for programs that use select(2)."""


def allow_open_files() -> None:
    """Raise the limit of open files to `OPEN_FILES`, or as far as the system lets. Children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def use_monotonic_clock(reactor: Any) -> None:
    """Have *reactor* count seconds by a clock that is never set. To be called before anything is scheduled.

    Twisted's own is the wall clock: while that is set back, by NTP or after a suspend, every deadline stands still.
    """
    reactor.seconds = time.monotonic


def leave_loaded_alone() -> None:
    """Take what has been loaded by now (modules, above all) out of what the garbage collector looks through.

    Looking through it all takes about 50 ms, in which nobody is answered; it came every few thousand requests.
    """
    gc.collect()  # what is garbage now would stay for good
    gc.freeze()


def keep_freed_memory() -> None:
    """Have the C library keep up to `KEPT_FREE` bytes that were freed, where it is glibc (mallopt(3)).

    It comes to these very limits by itself, once it was given back an object of 32 MB. Until then it gives much to the
    system after each large answer, and for the next one the system has to find and to zero each page again: 0.4 ms for a
    MB, in which nobody is answered. Twenty viewers beside rendering waited 1.1 ms at the 99th percentile, and 0.7 so.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT_FREE)
        library.mallopt(_M_MMAP_THRESHOLD, LARGE)


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
