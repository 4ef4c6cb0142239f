"""What a parent and a child process say to each other: calls and their answers, over pipes.

A message is four bytes of length and a JSON object: ``{"call": name, "id": n, "with": {...}}``, answered by
``{"answer": n, "value": ...}`` or ``{"answer": n, "error": text}``. Both ends call and answer.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Optional

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.logger import Logger
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure

MAX_MESSAGE = 64 << 20
"""Bytes; metrics of a worker are some 100 kB."""

Handler = Callable[..., Awaitable[Any]]


class CallFailed(Exception):
    """The other end raised. The text says what."""


class Peer(Int32StringReceiver):
    """One end. *handlers*: what the other end may call, by name. *lost* is told when the pipe ends."""

    MAX_LENGTH = MAX_MESSAGE
    _log = Logger()

    def __init__(self, handlers: Mapping[str, Handler], lost: Optional[Callable[[], None]] = None) -> None:
        self._handlers = handlers
        self._lost = lost
        self._calls: dict[int, Deferred[Any]] = {}
        self._last = 0
        self._gone = False

    def call(self, name: str, **arguments: Any) -> Deferred[Any]:
        """Call the other end. Fails with `CallFailed`, or `ConnectionLost`."""
        answer: Deferred[Any] = Deferred()
        if self._gone:
            answer.errback(ConnectionLost("the other process has gone"))
            return answer
        self._last += 1
        self._calls[self._last] = answer
        self._send({"call": name, "id": self._last, "with": arguments})
        return answer

    def stringReceived(self, string: bytes) -> None:
        message = json.loads(string)
        if "call" in message:
            Deferred.fromCoroutine(self._serve(message))
            return
        answer = self._calls.pop(message["answer"], None)
        if answer is None or answer.called:
            return
        if "error" in message:
            answer.errback(CallFailed(message["error"]))
        else:
            answer.callback(message["value"])

    async def _serve(self, message: dict[str, Any]) -> None:
        try:
            value = await self._handlers[message["call"]](**message["with"])
        except Exception as error:
            self._log.failure("a call from another process failed: {name}", name=message["call"])
            self._send({"answer": message["id"], "error": f"{type(error).__name__}: {error}"})
        else:
            self._send({"answer": message["id"], "value": value})

    def _send(self, message: dict[str, Any]) -> None:
        if not self._gone:
            self.sendString(json.dumps(message, separators=(",", ":")).encode())

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._gone = True
        calls, self._calls = self._calls, {}
        for answer in calls.values():
            if not answer.called:
                answer.errback(Failure(ConnectionLost("the other process has gone")))
        if self._lost is not None:
            self._lost()
