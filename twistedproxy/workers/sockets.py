"""Listening sockets that several processes share: the parent binds them, workers accept on them.

Any endpoint description works, TLS and systemd's sockets too: Twisted builds what is above the socket in each
worker from the same description, and only the binding is taken away from it.
"""

from __future__ import annotations

import socket
from typing import Any, Optional

from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory


async def bind(reactor: Any, description: str) -> IListeningPort:
    """Bind, and accept nothing: the port of a parent. Raises what keeps it from being bound."""
    port: Any = await serverFromString(reactor, description).listen(Factory())
    port.stopReading()
    return port  # type: ignore[no-any-return]


async def listen_on(reactor: Any, description: str, descriptor: int, factory: IProtocolFactory) -> IListeningPort:
    """Listen as *description* says, but on the socket that is open as *descriptor*."""
    return await serverFromString(_Adopting(reactor, descriptor), description).listen(factory)


class _Adopting:
    """A reactor that, asked to bind, adopts a socket that is bound already."""

    def __init__(self, reactor: Any, descriptor: int) -> None:
        self._reactor = reactor
        self._descriptor = descriptor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> IListeningPort:
        return self._adopt(factory)

    def listenUNIX(self, address: str, factory: Any, *_more: Any, **_named: Any) -> IListeningPort:
        return self._adopt(factory)

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, *_more: Any, **_named: Any) -> IListeningPort:
        secured = TLSMemoryBIOFactory(contextFactory, False, factory)
        return self._adopt(secured)

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: Any, factory: Any) -> IListeningPort:
        return self._adopt(factory)

    def _adopt(self, factory: Any) -> IListeningPort:
        family = _family(self._descriptor)
        return self._reactor.adoptStreamPort(self._descriptor, family, factory)  # type: ignore[no-any-return]


def _family(descriptor: int) -> Optional[int]:
    with socket.socket(fileno=_duplicate(descriptor)) as one:
        return one.family


def _duplicate(descriptor: int) -> int:
    import os

    return os.dup(descriptor)
