"""Gives hot responses on connections, and takes them from the ordinary way's answers; gives frames from a cache that is at hand.

What goes out is, dates aside, byte for byte what the ordinary way would send for a cached frame, If-None-Match
included; the same is counted and logged, and the connection is left as if the ordinary way had been gone. A Range takes
the ordinary way: no viewer asks for parts of frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Optional, Union

import attrs
from twisted.web import http, server

from twistedproxy.dicom.negotiation import FrameForm
from twistedproxy.dicom.resource import Instance
from twistedproxy.hot.cached import CachedAnswer, CachedAnswers
from twistedproxy.hot.request_heads import GET, RequestHeads
from twistedproxy.hot.responses import HotAnswer, HotResponses, Source
from twistedproxy.server.conditional import matches_none
from twistedproxy.system.fast_write import write_at_once
from twistedproxy.system.logs import AccessLog
from twistedproxy.system.memory_budget import SMALL, UNTAKEN, AnswerMemory
from twistedproxy.system.metrics import Metrics
from twistedproxy.system.tracing import REQUEST_ID, new_request_id

OUTCOME = "hot"
CACHED = "hit"

_NOT_KEPT = frozenset({b"Server", b"Date", REQUEST_ID})
_NOT_OF_304 = (b"Content-", b"Accept-Ranges:")


@attrs.define(eq=False)
class HotDispatcher:
    """Hot responses of one worker. *cached*: None where frames in the cache have to be waited for. *seconds*: for measuring.
    *memory*: what is larger than a socket takes goes the ordinary way, and waits, where this has no room."""

    hot: HotResponses
    cached: Optional[CachedAnswers]
    heads: RequestHeads
    metrics: Metrics
    access_log: AccessLog
    seconds: Callable[[], float]
    memory: AnswerMemory
    small: int = SMALL
    _second: int = attrs.field(init=False, default=0)
    _start: tuple[bytes, bytes] = attrs.field(init=False, default=(b"", b""))

    def answer(self, channel: Any, data: bytes) -> bool:
        """Answer *data* on *channel*, whose reader waits for the first byte of a request; whether that was possible."""
        began = self.seconds()
        request = self.heads.read(data, channel.client)
        if request is None:
            return False
        method, target, head = request
        key, outcome = (target, head.accept, head.origin), OUTCOME
        answer: Union[HotAnswer, CachedAnswer, None] = self.hot.find(key, head.caller)
        if answer is None and self.cached is not None:
            answer, outcome = self.cached.find(key, head.caller), CACHED
        if answer is None:
            return False
        whole, unchanged = self._start_lines()
        request_id = head.request_id or new_request_id()
        named = request_id.encode("ascii")
        if matches_none(head.if_none_match, answer.etag):
            status, size = 304, 0
            write_at_once(channel.transport, unchanged % named, _head_of_304(answer))
        elif method is GET:
            status, size = 200, answer.length
            if size > self.small and not self.memory.has_room(UNTAKEN):
                return False
            write_at_once(channel.transport, whole % named, answer.head, *answer.pieces)
        else:
            status, size = 200, 0
            write_at_once(channel.transport, whole % named, answer.head)
        seconds = self.seconds() - began
        self.metrics.request_finished(answer.route, method.decode("ascii"), status, outcome, seconds, size)
        client = head.client or channel.client
        self.access_log.request(method, target, status, size, seconds, outcome, client, request_id)
        return True

    def _start_lines(self) -> tuple[bytes, bytes]:
        """What twisted.web writes first, of 200 and of 304: the status line, Server, Date; and the request's id, to be filled in.
        Made once a second."""
        now = int(time.time())
        if now != self._second:
            self._second = now
            fields = b"Server: %s\r\nDate: %s\r\n" % (server.version.replace(b"%", b"%%"), http.datetimeToString())
            fields += REQUEST_ID + b": %b\r\n"
            self._start = b"HTTP/1.1 200 OK\r\n" + fields, b"HTTP/1.1 304 Not Modified\r\n" + fields
        return self._start

    def keep(
        self,
        request: Any,
        instance: Instance,
        source: Source,
        route: str,
        body: Sequence[bytes],
        form: Optional[tuple[FrameForm, str]] = None,
    ) -> None:
        """Keep the answer that was just written to *request*: all of *body*, with status 200, counted under *route*.
        *form*: that of frames as they are stored, and their transfer syntax: others are answered alike."""
        if source.fence is None or request.method != b"GET" or request.code != 200:
            return
        cached = None if form is None else self.cached
        if cached is None and sum(map(len, body)) > self.hot.max_answer:
            return
        # No key may hold a token, and the head of a request does not tell such a caller.
        if request.target.token:
            return
        accept = request.requestHeaders.getRawHeaders(b"Accept") or [b""]
        origin = request.requestHeaders.getRawHeaders(b"Origin") or [b""]
        headers = request.responseHeaders
        if len(accept) > 1 or len(origin) > 1 or headers.hasHeader(b"Connection"):
            return
        headers.setRawHeaders(b"Cache-Status", [b"twistedproxy; hit"])  # it is written; the next one is a hit
        lines = [
            b"%s: %s\r\n" % (name, value)
            for name, values in headers.getAllRawHeaders()
            if name not in _NOT_KEPT
            for value in values
        ]
        (etag,) = headers.getRawHeaders(b"ETag")
        key = (request.uri, accept[0], origin[0])
        head = b"".join((*lines, b"\r\n"))
        if form is not None and cached is not None:
            cached.learn(key, request.target.mount.origin, instance, *form, head)
        else:
            self.hot.keep(key, instance, source, route, etag, head, b"".join(body))


def _head_of_304(answer: Union[HotAnswer, CachedAnswer]) -> bytes:
    """The fields of *answer* that its 304 has: those that do not tell of a body."""
    return b"".join(line for line in answer.head.splitlines(keepends=True) if not line.startswith(_NOT_OF_304))
