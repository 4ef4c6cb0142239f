"""How to get to a server: the endpoint of an address, and the first commands on a connection.

Rules kept here: over TLS the certificate and the name in it are verified; a password is in nothing but the greeting. Where it
is in a file, it is read again for each connection.
"""

from __future__ import annotations

import os
from typing import Any, Optional, Union

import attrs
import txredisapi  # type: ignore[import-untyped]
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.ssl import optionsForClientTLS, platformTrust
from twisted.internet.threads import deferToThread
from zope.interface import implementer

from twistedproxy.cache.address import AnyLogin, Login, LoginFiles, RedisAddress, SentinelAddress, UnixAddress
from twistedproxy.cache.interface import CacheUnavailable
from twistedproxy.cache.redis.pipeline import command
from twistedproxy.system.outages import Verified

CONNECT_SECONDS = 3.0  # for TCP, or a unix socket, to be accepted
DISCOVERY_SECONDS = 3  # for a sentinel to name the master


OneAddress = Union[RedisAddress, UnixAddress, SentinelAddress]
"""Where one server is."""


def open_endpoint(reactor: Any, address: OneAddress, trust_root: Any = None) -> IStreamClientEndpoint:
    """The endpoint of *address*. *trust_root* (default: the platform's) signs the certificates of ``rediss://``."""
    if isinstance(address, UnixAddress):
        return UNIXClientEndpoint(reactor, address.path, timeout=CONNECT_SECONDS)
    if isinstance(address, SentinelAddress):
        return MasterEndpoint(reactor, address)
    endpoint = HostnameEndpoint(reactor, address.host, address.port, timeout=CONNECT_SECONDS)
    if not address.tls:
        return endpoint
    trust = platformTrust() if trust_root is None else trust_root
    return wrapClientTLS(Verified(optionsForClientTLS(address.host, trustRoot=trust), address.host), endpoint)


@attrs.frozen
class Greeting:
    """The commands that make a connection usable: a login, and then *rest*."""

    rest: tuple[bytes, ...]
    _login: Optional[AnyLogin] = attrs.field(default=None, repr=False)

    async def now(self) -> Words:
        """What to send. Raises `CacheUnavailable` where a file can't be read."""
        login = self._login
        if isinstance(login, LoginFiles):
            login = await deferToThread(_read_login, login)
        return Words(self.rest) if login is None else Words((_auth(login), *self.rest), login.password)


@attrs.frozen
class Words:
    """The commands of a `Greeting`, and the password among them."""

    commands: tuple[bytes, ...] = attrs.field(repr=False)
    _password: str = attrs.field(default="", repr=False)

    def refusal(self, replies: list[object]) -> Optional[str]:
        """Why *replies* don't make the connection usable, or None. Without the password: errors may quote commands."""
        for reply in replies:
            if isinstance(reply, Exception):
                return str(reply).replace(self._password, "...") if self._password else str(reply)
            if isinstance(reply, list) and reply[:1] != [b"master"]:
                return "the server that the sentinels named is not a master"
        return None


PING = command(b"PING")
HELLO = Greeting((PING,))


def greeting(address: OneAddress) -> Greeting:
    """What to say first to the server at *address*."""
    commands: list[bytes] = []
    if isinstance(address, RedisAddress) and address.database:
        commands.append(command(b"SELECT", b"%d" % address.database))
    if isinstance(address, SentinelAddress):
        commands.append(command(b"ROLE"))
    return Greeting((*commands, PING), None if isinstance(address, UnixAddress) else address.login)


def _auth(login: Login) -> bytes:
    who = [] if login.username is None else [login.username.encode()]
    return command(b"AUTH", *who, login.password.encode())


MAX_LOGIN_BYTES = 16 << 10
"""Of a file: a token of a cloud's identity service has 1 to 2 kB."""


def _read_login(files: LoginFiles) -> Login:
    """What *files* hold now, each without the end of its line. Blocks. Raises `CacheUnavailable`."""
    return Login(None if files.username is None else _line(files.username), _line(files.password))


def _line(path: str) -> str:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            text = os.read(file, MAX_LOGIN_BYTES).decode()
        finally:
            os.close(file)
    except OSError as error:
        raise CacheUnavailable(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CacheUnavailable(f"{path} is no text") from None
    text = text.rstrip("\r\n")
    if not text:
        raise CacheUnavailable(f"{path} is empty")
    return text


@implementer(IStreamClientEndpoint)
class MasterEndpoint:
    """Asks the sentinels for the master before every attempt to connect."""

    def __init__(self, reactor: Any, address: SentinelAddress) -> None:
        self._reactor = reactor
        self._name = address.name
        self._sentinel = txredisapi.Sentinel(list(address.hosts))
        self._sentinel.discovery_timeout = DISCOVERY_SECONDS

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Find the master and connect to it."""
        found: Deferred[tuple[str, int]] = self._sentinel.discover_master(self._name)

        def connect(place: tuple[str, int]) -> Deferred[IProtocol]:
            return HostnameEndpoint(self._reactor, *place, timeout=CONNECT_SECONDS).connect(protocolFactory)

        return found.addCallback(connect)

    def disconnect(self) -> Deferred[object]:
        """Hang up on the sentinels."""
        closed: Deferred[object] = self._sentinel.disconnect()
        return closed
