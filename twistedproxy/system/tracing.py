"""What names a request in the proxy's logs, at the store and to the client: a request id, and W3C Trace Context.

Rules:
- An X-Request-Id of 1 to 128 letters, digits and ``._:/+=-`` is taken from the request; one that is missing, comes more than once
  or has anything else in it is replaced by an id of the proxy's own.
- traceparent goes on to the store, with its tracestate, where it is one valid field (https://www.w3.org/TR/trace-context/).
- The trace belongs to the context (`contextvars`) of the coroutine that handles the request. Coroutines that are begun there inherit
  it: what is requested of the store and logged by them has the id; of a fetch that several requests share, the id of the first.
- No header here tells callers apart, or changes an answer.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Optional

import attrs
from twisted.web.http_headers import Headers

REQUEST_ID = b"X-Request-Id"

MAX_ID = 128
"""Characters of a request id that is taken over: those of an AWS or Google trace have up to 100."""

MAX_STATE = 512
"""Bytes of a tracestate that goes on, as vendors should at least let pass (section 3.3.1.5)."""

_CONTEXT = (_PARENT_NAME, _STATE_NAME) = (b"traceparent", b"tracestate")
_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,%d}" % MAX_ID)
_PARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_STATE = re.compile(rb"[ -~\t]{1,%d}" % MAX_STATE)

_prefix = secrets.token_hex(8)
_next = itertools.count(1).__next__

RawHeaders = Callable[[bytes], Optional[Sequence[bytes]]]


def new_request_id() -> str:
    """An id that no other process, and no other request of this one, has: 64 random bits of the process, and a number."""
    return f"{_prefix}-{_next():08x}"


def valid_request_id(value: bytes) -> Optional[str]:
    """*value* of an X-Request-Id, where it may be taken over."""
    return value.decode("ascii") if _ID.fullmatch(value) else None


@attrs.frozen
class Trace:
    """*request_id*; *context*: the fields of Trace Context that go on to the store."""

    request_id: str
    context: tuple[tuple[bytes, bytes], ...] = ()

    @classmethod
    def of(cls, raw_headers: RawHeaders) -> Trace:
        """The trace of the request whose header lines *raw_headers* gives, as Twisted's ``getRawHeaders`` does."""
        given = raw_headers(REQUEST_ID) or ()
        request_id = valid_request_id(given[0].strip()) if len(given) == 1 else None
        context: tuple[tuple[bytes, bytes], ...] = ()
        parents = raw_headers(_PARENT_NAME) or ()
        if len(parents) == 1 and _PARENT.fullmatch(parents[0]):
            context = ((_PARENT_NAME, parents[0]),)
            state = b",".join(raw_headers(_STATE_NAME) or ())
            if _STATE.fullmatch(state):
                context += ((_STATE_NAME, state),)
        return cls(request_id or new_request_id(), context)

    def name(self, fields: Headers) -> None:
        """Put the trace into the *fields* of a request to the store, in the place of what the client sent."""
        for name in _CONTEXT:
            fields.removeHeader(name)
        for name, value in (REQUEST_ID, self.request_id.encode("ascii")), *self.context:
            fields.setRawHeaders(name, [value])


current_trace: ContextVar[Optional[Trace]] = ContextVar("current_trace", default=None)
"""The trace of the request that is being handled, if one is."""
