"""Writing at once what the kernel takes at once.

A transport writes when the reactor comes round again, for which it must be put on the reactor's list and taken off it:
two system calls and a turn, a quarter of all that a hot response costs. Most answers, and commands to the cache, fit
into the socket's buffer.

This leans on private attributes of Twisted's transports; Twisted is pinned below its next major version for that.
"""

from __future__ import annotations

from typing import Any

from twisted.internet import tcp

MOST = 64 * 1024
"""Bytes that are joined and tried at once; of more, the socket would not take all anyway."""


def write_at_once(transport: Any, *pieces: bytes) -> None:
    """Write *pieces* to *transport*, in order with all that was written before."""
    if not _is_idle(transport) or sum(map(len, pieces)) > MOST:
        for piece in pieces:
            transport.write(bytes(piece))  # a view, whose bytes may change, is copied
        return
    data = b"".join(pieces)
    sent = transport.writeSomeData(data)
    if sent != len(data):
        # A connection that is lost is told of by the transport, once it finds that out by the write below.
        transport.write(data[sent:] if isinstance(sent, int) else data)


def _is_idle(transport: Any) -> bool:
    """Whether *transport* is a plain socket that is open, and nothing waits to be written to it."""
    return (
        isinstance(transport, tcp.Connection)
        and bool(transport.connected)
        and not (
            transport.dataBuffer
            or transport._tempDataBuffer
            or transport.TLS
            or transport._writeDisconnected
            or transport._writeDisconnecting
        )
    )
