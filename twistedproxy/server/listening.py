"""Listening sockets: of one process, or shared by several. Then the parent binds them, and workers accept on them.

Any endpoint description works, TLS and systemd's sockets too: in each worker Twisted builds the protocols from the same
description, on a socket that is bound already. The socket's backlog, and its file, stay as the parent made them.

Where twistd goes on as another user (``--uid``, ``--gid``):

- TCP ports are bound before, for only root may bind those below 1024. Unix sockets are made after, so that the new user
  owns and removes them.
- A port that cannot be bound ends the start later, with its reason, as without another user.
- Certificates are read after, by the new user, as they will be again in a reload.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pwd
import re
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Optional

from twisted.internet import tcp, unix
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from twistedproxy.settings import Settings

EARLY = ("tcp:", "tcp6:", "ssl:")
"""Beginnings of the endpoint descriptions that are bound as root."""


def changes_user(twistd_options: Optional[Mapping[str, Any]]) -> bool:
    """Whether twistd will go on as another user."""
    options = twistd_options or {}
    return options.get("uid") is not None or options.get("gid") is not None


def move_home() -> None:
    """HOME is still the former user's, where nothing can be kept: make it that of the user we are now."""
    with contextlib.suppress(KeyError):  # a number without a name has none
        os.environ["HOME"] = pwd.getpwuid(os.geteuid()).pw_dir


class Ports:
    """Listens and binds as `listen` and `bind` do, on what was bound early where there is such."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._early: dict[str, Deferred[IListeningPort]] = {}

    def bind_early(self, descriptions: Sequence[str]) -> None:
        """Bind what has to be, before the reactor runs."""
        for description in dict.fromkeys(descriptions):
            if description.startswith(EARLY):
                self._early[description] = Deferred.fromCoroutine(bind(self._reactor, description))

    async def bind(self, description: str) -> IListeningPort:
        """See the function `bind`."""
        early = self._early.pop(description, None)
        return await (bind(self._reactor, description) if early is None else early)

    async def listen(self, description: str, factory: IProtocolFactory) -> IListeningPort:
        """See the function `listen`."""
        early = self._early.pop(description, None)
        if early is None:
            return await listen(self._reactor, description, factory)
        bound: Any = await early
        try:
            return await listen_on(self._reactor, description, os.dup(bound.fileno()), factory)
        finally:
            await maybeDeferred(bound.stopListening)  # the other has a descriptor of its own

    async def close(self) -> None:
        """Close the ports that were not used."""
        while self._early:
            _, early = self._early.popitem()
            with contextlib.suppress(Exception):  # not bound: logged already, or of no interest at the stop
                await maybeDeferred((await early).stopListening)


BACKLOG = 1024
"""Connections that may wait to be accepted, where the description has no backlog. With Twisted's 50, 5,000 clients that
come at once took 72 s instead of 0.4: each one too many tries again after a second."""

Listening = Callable[[str, IProtocolFactory], Awaitable[IListeningPort]]
"""Listens as a description specifies. Raises the error that prevents it."""

_SYSTEMD = re.compile(r"((?:haproxy:)*)systemd:.*", re.DOTALL)


def descriptions(settings: Settings) -> list[str]:
    """Of all listeners, an admin's last: the order in which sockets are handed on."""
    admin = settings.admin_listen
    return [*settings.listen, *([admin] if admin is not None else [])]


async def listen(reactor: Any, description: str, factory: IProtocolFactory) -> IListeningPort:
    """Listen as *description* specifies, in one process. Raises the error that prevents it."""
    try:
        port = await serverFromString(reactor, description).listen(factory)
    except OSError as error:  # its own text names the lock file that Twisted makes beside a socket
        raise OSError(f"cannot listen on {description}: {_why(error)}") from error
    _deepen(port, description)
    return port


def _why(error: OSError) -> str:
    folder = os.path.dirname(os.fsdecode(error.filename2 or error.filename or ""))
    missing = folder and not os.path.isdir(folder)
    return f"no such folder: {folder}" if missing else error.strerror or str(error)


def _deepen(port: Any, description: str) -> None:
    """Give a socket that we made our own backlog, if its description does not give it another."""
    if "backlog=" not in description and not _SYSTEMD.match(description) and hasattr(port, "socket"):
        port.socket.listen(BACKLOG)  # once more: the last number counts


async def bind(reactor: Any, description: str) -> IListeningPort:
    """Bind without accepting: the port of a parent. Raises the error that prevents it."""
    factory = Factory()
    factory.noisy = False
    port: Any = await listen(reactor, description, factory)
    port.stopReading()
    port._shouldShutdown = False  # closing it must not end what workers still accept
    return port  # type: ignore[no-any-return]


async def listen_on(reactor: Any, description: str, descriptor: int, factory: IProtocolFactory) -> IListeningPort:
    """Listen as *description* specifies, on the socket that is open as *descriptor*, which is closed then."""
    # Systemd's descriptors are the parent's. The address does not matter: nothing is bound.
    described = _SYSTEMD.sub(r"\1tcp:0", description)
    port = await serverFromString(_Adopting(reactor, descriptor), described).listen(factory)
    _deepen(port, description)
    os.close(descriptor)  # the port has a duplicate
    return port


def listening_anew(reactor: Any) -> Listening:
    """For one process, which binds what it listens on."""
    return functools.partial(listen, reactor)


def listening_on(reactor: Any, first: int) -> Listening:
    """On sockets that are open already, from the descriptor *first* on, each call on the next."""
    descriptors = itertools.count(first)
    return lambda description, factory: listen_on(reactor, description, next(descriptors), factory)


class _Adopting:
    """A reactor that, asked to bind, adopts a socket that is bound already."""

    def __init__(self, reactor: Any, descriptor: int) -> None:
        self._reactor = reactor
        self._descriptor = descriptor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: Any, *_more: Any, **_named: Any) -> IListeningPort:
        return self._adopt(factory)

    def listenUNIX(self, address: str, factory: Any, backlog: int = 50, *_more: Any, **_named: Any) -> IListeningPort:
        return self._adopt(factory, backlog)

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, *_more: Any, **_named: Any) -> IListeningPort:
        return self._adopt(TLSMemoryBIOFactory(contextFactory, False, factory))

    def _adopt(self, factory: Any, backlog: int = BACKLOG) -> IListeningPort:
        family = _family(self._descriptor)
        if family != socket.AF_UNIX:
            return self._reactor.adoptStreamPort(self._descriptor, family, factory)  # type: ignore[no-any-return]
        port = _UNIXPort._fromListeningDescriptor(self._reactor, self._descriptor, factory)
        port.keep(backlog)
        port.startListening()
        return port  # type: ignore[no-any-return]


class _UNIXPort(unix.Port):
    """A port whose socket other processes have too: its file stays as it is, and where it is."""

    _shouldShutdown = False  # that would end the socket for all

    def keep(self, backlog: int) -> None:
        """Have what Twisted sets when it begins to listen be what it was."""
        self.backlog = backlog
        try:
            self.mode = stat.S_IMODE(os.stat(self._bindPath).st_mode)
        except OSError:  # an abstract socket has no file
            pass

    def connectionLost(self, reason: Failure) -> None:
        tcp.Port.connectionLost(self, reason)


def _family(descriptor: int) -> socket.AddressFamily:
    with socket.socket(fileno=os.dup(descriptor)) as one:
        return one.family
