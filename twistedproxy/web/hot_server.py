"""Gives hot responses on connections, and takes them from the ordinary way's answers.

What goes out is, dates aside, byte for byte what the ordinary way would send for a cached frame; the same is counted
and logged, and the connection is left as if the ordinary way had been gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Optional

import attrs
from twisted.web import http, server

from twistedproxy.cache.interface import Fence
from twistedproxy.dicom.address import Instance
from twistedproxy.logs import AccessLog
from twistedproxy.metrics import Metrics
from twistedproxy.web.hot import HotResponses

KEEP_SECONDS = 60.0
"""How long an answer is kept at most. A hit does not prolong a frame's time in the cache, which is not told here: so
the cache is asked again every minute."""

_NOT_KEPT = frozenset({b"server", b"date"})


@attrs.define(eq=False)
class HotServer:
    """Hot responses of one worker. *seconds*: for measuring."""

    hot: HotResponses
    metrics: Metrics
    access_log: AccessLog
    seconds: Callable[[], float]
    _second: int = attrs.field(init=False, default=0)
    _start: bytes = attrs.field(init=False, default=b"")

    def answer(self, channel: Any, data: bytes) -> bool:
        """Answer *data* on *channel*, whose reader waits for the first byte of a request; whether that was possible."""
        began = self.seconds()
        found = self.hot.find(data)
        if found is None:
            return False
        answer, method, target = found
        body = answer.body if method == b"GET" else b""
        channel.transport.write(self._first_lines() + answer.head + body)
        seconds = self.seconds() - began
        self.metrics.request_finished(answer.route, method.decode("ascii"), 200, "hot", seconds, len(body))
        self.access_log.request(method, target, 200, len(body), seconds, "hot", channel.client)
        return True

    def _first_lines(self) -> bytes:
        """The status line and the fields that twisted.web writes first, made once a second."""
        now = int(time.time())
        if now != self._second:
            self._second = now
            self._start = b"HTTP/1.1 200 OK\r\nServer: %s\r\nDate: %s\r\n" % (server.version, http.datetimeToString())
        return self._start

    def keep(self, request: Any, instance: Instance, fence: Optional[Fence], route: str, body: Sequence[bytes]) -> None:
        """Keep the answer that was just written to *request*: all of *body*, with status 200, counted under *route*."""
        headers = request.responseHeaders
        if fence is None or request.method != b"GET" or request.code != 200 or headers.hasHeader(b"Connection"):
            return
        lines = []
        for name, values in headers.getAllRawHeaders():
            if name.lower() in _NOT_KEPT:
                continue
            if name == b"Cache-Status":
                values = [b"twistedproxy; hit"]  # noqa: PLW2901 - the next one is one
            lines += [b"%s: %s\r\n" % (name, value) for value in values]
        asked = request.requestHeaders.getRawHeaders
        key = (request.uri, b", ".join(asked(b"Accept") or ()), b", ".join(asked(b"Origin") or ()))
        self.hot.keep(key, instance, fence, route, b"".join((*lines, b"\r\n")), b"".join(body), KEEP_SECONDS)
