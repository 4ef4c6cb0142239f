"""Requests that are understood without being parsed in full: the few forms that viewers send all day.

- Understood is one complete GET or HEAD of HTTP/1.1 that names its Host, has no body, and has no header field but
  those that change nothing about a frame's answer (`HARMLESS`) and those that are handled exactly here, each at most
  once. All else is None, and takes the ordinary way.
- What the fields of a client say is remembered, because a client repeats its own: below a digest, for they hold what
  no memory should. What is kept of a credential is what `Credentials` makes of it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Optional

import attrs

from twistedproxy.frames.grants import Credentials
from twistedproxy.origin.interface import Caller
from twistedproxy.server.forwarded import Network, outside
from twistedproxy.server.problems import Problem
from twistedproxy.system.tracing import valid_request_id

MAX_HEAD = 8192
"""Bytes of a request that is looked at here. The ordinary way takes 16 KiB."""

MAX_VALUE = 1024
"""Bytes of an Accept or an Origin that is remembered."""

HEAD_BYTES = 2 * MAX_VALUE + 600
"""Bytes that one remembered head takes at most, the table's among them."""

HARMLESS = frozenset(
    (
        *(b"user-agent", b"accept-encoding", b"accept-language", b"accept-charset", b"referer", b"dnt"),
        *(b"sec-fetch-mode", b"sec-fetch-site", b"sec-fetch-dest", b"sec-fetch-user", b"sec-gpc", b"priority"),
        *(b"sec-ch-ua", b"sec-ch-ua-mobile", b"sec-ch-ua-platform", b"cache-control", b"pragma"),
        *(b"x-requested-with", b"traceparent", b"tracestate", b"x-request-id"),
    )
)
"""Fields that change nothing about a frame's answer."""

FORWARDED = frozenset(
    (b"forwarded", b"via", b"x-real-ip", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto")
    + (b"x-forwarded-port", b"x-forwarded-prefix")
)
"""Fields that say, if anything, what client the log names."""

_FLEETING = frozenset((b"if-none-match", b"traceparent", b"tracestate", b"x-request-id"))
"""Fields that differ from request to request: heads with them are not worth remembering."""

_HANDLED = (b"host", b"accept", b"origin", b"cookie", b"connection", b"if-none-match")
_VERSION = b" HTTP/1.1"
_END = b"\r\n\r\n"

GET = b"GET"
HEAD = b"HEAD"


@attrs.frozen
class RequestHead:
    """What a request's header fields say. *accept*, *origin*: as they came, empty where they did not.

    *client*: the client's address, where a trusted proxy says so. *request_id*: the client's, where it is valid."""

    accept: bytes
    origin: bytes
    caller: Caller
    if_none_match: Optional[bytes] = None
    client: Optional[str] = None
    request_id: Optional[str] = None


class RequestHeads:
    """Understands requests. *max_bytes*: of what is remembered. *trusted*: whose word counts on who the client is."""

    def __init__(self, credentials: Credentials, max_bytes: int, trusted: Sequence[Network] = ()) -> None:
        self._credentials = credentials
        self._trusted = tuple(trusted)
        self._limit = max_bytes // HEAD_BYTES
        self._known = HARMLESS.union(FORWARDED, _HANDLED, credentials.header_names)
        self._heads: OrderedDict[bytes, Optional[RequestHead]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._heads)

    def read(self, data: bytes, peer: str) -> Optional[tuple[bytes, bytes, RequestHead]]:
        """Method, target and head of the one complete request that *data* is; None for the ordinary way.

        *peer*: the address that it came from.
        """
        if len(data) > MAX_HEAD or data.find(_END) != len(data) - len(_END):
            return None
        if data.startswith(b"GET "):
            method = GET
        elif data.startswith(b"HEAD "):
            method = HEAD
        else:
            return None
        line = data.index(b"\r\n")
        if not data.startswith(_VERSION, line - len(_VERSION)):
            return None
        head = self._head(data[line:], peer)
        return None if head is None else (method, data[len(method) + 1 : line - len(_VERSION)], head)

    def _head(self, rest: bytes, peer: str) -> Optional[RequestHead]:
        # An unkeyed digest of 128 bits: who could find two heads with one digest would deceive only himself, for
        # he would have to know the other's credential.
        told = rest + peer.encode("utf-8") if self._trusted else rest
        digest = hashlib.blake2b(told, digest_size=16).digest()
        if digest in self._heads:
            return self._heads[digest]
        fields = self._fields(rest)
        head = self._understood(fields, peer) if fields is not None else None
        if fields is None or _FLEETING.isdisjoint(fields):
            self._heads[digest] = head
            if len(self._heads) > self._limit:
                self._heads.popitem(last=False)
        return head

    def _fields(self, rest: bytes) -> Optional[Mapping[bytes, bytes]]:
        """The fields by name in lower case, if each is known, comes once, and stands on a line of its own."""
        lines = rest.count(b"\r\n")
        if rest.count(b"\n") != lines or rest.count(b"\r") != lines or b"\0" in rest:
            return None
        fields: dict[bytes, bytes] = {}
        for line in rest[2:-4].split(b"\r\n"):
            name, colon, value = line.partition(b":")
            name = name.lower()
            if not colon or name not in self._known or name in fields:
                return None
            fields[name] = value.strip(b" \t")
        return fields

    def _understood(self, fields: Mapping[bytes, bytes], peer: str) -> Optional[RequestHead]:
        accept, origin = fields.get(b"accept"), fields.get(b"origin")
        # An empty Accept or Origin may mean something else than none.
        if (
            b"host" not in fields
            or accept == b""
            or origin == b""
            or len(accept or b"") + len(origin or b"") > MAX_VALUE
        ):
            return None
        if fields.get(b"connection", b"keep-alive").lower() != b"keep-alive":
            return None

        def values(name: bytes) -> Optional[Sequence[bytes]]:
            value = fields.get(name.lower())
            return None if value is None else [value]

        client = None
        if self._trusted:
            try:
                client = outside(peer if peer != "-" else None, False, values, self._trusted).client or None
            except Problem:
                return None
        caller = Caller(self._credentials.caller(values).credential)
        request_id = valid_request_id(fields.get(b"x-request-id", b""))
        return RequestHead(accept or b"", origin or b"", caller, fields.get(b"if-none-match"), client, request_id)
