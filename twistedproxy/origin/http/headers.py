"""Which header fields stay on their hop, and reading those that this room needs.

Field names are compared in lower case (RFC 9110 section 5.1). Fields that concern one connection only, and those that
a ``Connection`` field names, are never handed on (RFC 9110 section 7.6.1).
"""

from __future__ import annotations

from collections.abc import Iterable

from twistedproxy.origin.interface import Headers

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Set from the length of the body and from the origin's URL; an Expect was answered by whoever read the request.
MADE_ANEW = frozenset({b"content-length", b"host", b"expect"})


def end_to_end(headers: Headers, connection: Iterable[bytes] = (), also: frozenset[bytes] = frozenset()) -> Headers:
    """*headers* without those of the hop, those that the *connection* values or a Connection field name, and *also*."""
    named = {token.strip().lower() for value in connection for token in value.split(b",")}
    named.update(
        token.strip().lower() for key, value in headers if key.lower() == b"connection" for token in value.split(b",")
    )
    dropped = HOP_BY_HOP | named | also
    return tuple((key, value) for key, value in headers if key.lower() not in dropped)


def without(headers: Headers, names: frozenset[bytes]) -> Headers:
    """*headers* without the fields *names* (lower case)."""
    return tuple((key, value) for key, value in headers if key.lower() not in names)
