"""What a proxy and its loader children say to each other: AMP over the child's standard input and output.

Secrets (the caller's headers, the cache's login) travel here and nowhere else: not on a command line, not in the
environment, not in a log.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

import attrs
from twisted.protocols import amp

from twistedproxy.cache.address import (
    Login,
    RedisAddress,
    SentinelAddress,
    ServerAddress,
    UnixAddress,
)
from twistedproxy.prefetch.jobs import LoadFailed, NotLoadable, Withdrawn


class Configure(amp.Command):
    """To the child, first of all: where the cache is, and the settings of origins, as JSON."""

    arguments: ClassVar[list[Any]] = [(b"cache", amp.Unicode()), (b"settings", amp.Unicode())]
    response: ClassVar[list[Any]] = []


class Load(amp.Command):
    """To the child: load an instance. The answer comes when the load has ended.

    *source*: the origin's URL, or ``file:`` and the path of the one file. *headers*: names and values in turns;
    *query*: the caller's part of one.
    *seconds*: below 0 for no expiry. *number* names the load in `Progress` and `Stop`.
    """

    arguments: ClassVar[list[Any]] = [
        (b"number", amp.Integer()),
        (b"source", amp.Unicode()),
        (b"instance", amp.ListOf(amp.Unicode())),
        (b"credential", amp.String()),
        (b"headers", amp.ListOf(amp.String())),
        (b"query", amp.String()),
        (b"metadata", amp.String()),
        (b"fence", amp.String()),
        (b"seconds", amp.Float()),
    ]
    response: ClassVar[list[Any]] = [
        (b"frames", amp.Integer()),
        (b"bytes", amp.Integer()),
        (b"transfer_syntax", amp.Unicode()),
    ]
    # the first that fits is sent
    errors: ClassVar[dict[type[Exception], bytes]] = {
        Withdrawn: b"WITHDRAWN",
        NotLoadable: b"NOT_LOADABLE",
        LoadFailed: b"LOAD_FAILED",
    }


class Progress(amp.Command):
    """From the child: what a load has brought so far."""

    arguments: ClassVar[list[Any]] = [(b"number", amp.Integer()), (b"frames", amp.Integer()), (b"bytes", amp.Integer())]
    response: ClassVar[list[Any]] = []
    requiresAnswer = False


class Rest(amp.Command):
    """To the child: how many seconds loads rest after each chunk from now on."""

    arguments: ClassVar[list[Any]] = [(b"seconds", amp.Float())]
    response: ClassVar[list[Any]] = []
    requiresAnswer = False


class Stop(amp.Command):
    """To the child: give a load up. Its `Load` is answered with an error once what it wrote is removed."""

    arguments: ClassVar[list[Any]] = [(b"number", amp.Integer())]
    response: ClassVar[list[Any]] = []


MAX_REASON = 1000
"""Characters of an error's text; AMP takes 65,535 bytes."""

_ADDRESSES = {kind.__name__: kind for kind in (RedisAddress, UnixAddress, SentinelAddress)}


def pack_address(address: ServerAddress) -> str:
    """A cache's address as JSON, its login included: for the pipe only."""
    return json.dumps([type(address).__name__, attrs.asdict(address)])


def unpack_address(text: str) -> ServerAddress:
    """The address that `pack_address` packed."""
    kind, values = json.loads(text)
    if values.get("login") is not None:
        values["login"] = Login(**values["login"])
    if "hosts" in values:
        values["hosts"] = tuple((host, port) for host, port in values["hosts"])
    return _ADDRESSES[kind](**values)  # type: ignore[no-any-return]
