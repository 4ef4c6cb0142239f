"""What a parent and a child process say to each other: calls and their answers, over pipes.

A message is four bytes of length and a JSON object: ``{"call": name, "id": n, "with": {...}}``, answered by
``{"answer": n, "value": ...}`` or ``{"answer": n, "error": text}``. Both ends call and answer, in any order.

- Every call gets one answer, whatever its handler does; if the other end goes first, it fails.
- Who is not understood is not spoken with any more: the pipe is closed.
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
    """The other end could not do it. The text says why. A handler may raise it: then nothing is logged there."""


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
        """Call the other end. Fails with `CallFailed`, or `ConnectionLost`; who cancels it no longer waits."""
        self._last += 1
        number = self._last

        def forget(_: object) -> None:
            self._calls.pop(number, None)

        answer: Deferred[Any] = Deferred(forget)
        if self._gone:
            answer.errback(_gone())
            return answer
        self._calls[number] = answer
        try:
            self._send({"call": name, "id": number, "with": arguments})
        except CallFailed:
            del self._calls[number]
            answer.errback()
        return answer

    def stringReceived(self, string: bytes) -> None:
        try:
            message = json.loads(string)
            if "call" in message:
                name, number, arguments = message["call"], message["id"], dict(message["with"])
            else:
                number, value, error = message["answer"], message.get("value"), message.get("error")
                name = None
            if not isinstance(number, int) or not isinstance(name, (str, type(None))):
                raise TypeError("calls have names and numbers")
        except (ValueError, TypeError, KeyError, RecursionError) as wrong:
            self._log.error("another process said what is no message: {reason!r}", reason=wrong)
            self._close()
            return
        if name is not None:
            Deferred.fromCoroutine(self._serve(name, number, arguments))
        elif (answer := self._calls.pop(number, None)) is not None:  # else nobody waits for it any more
            if error is not None:
                answer.errback(CallFailed(error))
            else:
                answer.callback(value)

    def lengthLimitExceeded(self, length: int) -> None:
        self._log.error("another process announced a message of {length} bytes", length=length)
        self._close()

    async def _serve(self, name: str, number: int, arguments: dict[str, Any]) -> None:
        handler = self._handlers.get(name)
        try:
            if handler is None:
                raise CallFailed(f"there is no call {name}")
            self._send({"answer": number, "value": await handler(**arguments)})
        except CallFailed as error:
            self._send({"answer": number, "error": str(error)})
        except Exception as error:
            self._log.failure("a call from another process failed: {name}", name=name)
            self._send({"answer": number, "error": f"{type(error).__name__}: {error}"})

    def _send(self, message: dict[str, Any]) -> None:
        """Raises `CallFailed` where it cannot be said."""
        try:
            packed = json.dumps(message, separators=(",", ":")).encode()
        except (TypeError, ValueError) as error:
            raise CallFailed(f"that cannot be said in JSON: {error}") from None
        if len(packed) > MAX_MESSAGE:
            raise CallFailed(f"{len(packed)} bytes are too many for one message")
        if not self._gone:
            self.sendString(packed)

    def _close(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        if self._gone:
            return
        self._gone = True
        calls, self._calls = self._calls, {}
        for answer in calls.values():
            if not answer.called:  # who heard of the first may have given up the rest
                answer.errback(_gone())
        if self._lost is not None:
            self._lost()


def _gone() -> Failure:
    return Failure(ConnectionLost("the other process has gone"))
