"""Calls between a process and its child, and their answers.

A call is the message ``{"call": name, "id": n, "with": {...}}``, ``id`` null where no answer is wanted; an answer is
``{"answer": n, "value": ...}`` or ``{"answer": n, "error": text, "kind": name}``. Calls and values may come with blobs.

Rules:
- both ends call and answer, in any order; every call gets one answer, whatever its handler does, and fails if the other
  process ends first;
- secrets (headers, passwords) travel here and nowhere else: not on a command line, in the environment or in a log;
- an end that sends what is no message is disconnected, before memory is taken for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Optional

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.processes.messages import CONTROL_IN, CONTROL_OUT, BadMessage, Message, MessageReader

Handler = Callable[..., Awaitable[Any]]
"""Called with the blobs of a call and its arguments by name; returns what JSON can hold."""


GONE = "the other process has exited"


class CallError(Exception):
    """The other process did not do what it was called for. *kind*: the name of the error there.

    A handler may raise it: then nothing is logged there.
    """

    def __init__(self, text: str, kind: str = "CallError") -> None:
        super().__init__(text)
        self.kind = kind


class Channel(Protocol):
    """One end of the pipes. *handlers*: what the other end may call, by name. *lost* is called once when the pipes end."""

    transport: Any
    _log = Logger()

    def __init__(self, handlers: Mapping[str, Handler], lost: Optional[Callable[[], None]] = None) -> None:
        self._handlers = handlers
        self._lost = lost
        self._calls: dict[int, Deferred[Message]] = {}
        self._last = 0
        self._reader: Optional[MessageReader] = MessageReader()
        self._gone = False

    def call(self, name: str, *blobs: bytes, **arguments: Any) -> Deferred[Any]:
        """What the other end's handler returns. Fails with `CallError` or `ConnectionLost`; cancelling ends the wait only."""
        return self.request(name, arguments, blobs).addCallback(lambda answer: answer.head)

    def request(self, name: str, arguments: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> Deferred[Message]:
        """Like `call`; the answer comes with its blobs."""
        if self._gone:
            return defer.fail(ConnectionLost(GONE))
        self._last += 1
        number = self._last
        try:
            self._send(Message({"call": name, "id": number, "with": arguments}, blobs))
        except BadMessage as error:
            return defer.fail(CallError(str(error)))
        self._calls[number] = answer = Deferred[Message]()
        return answer

    def notify(self, name: str, **arguments: Any) -> None:
        """Call without an answer."""
        self._send(Message({"call": name, "id": None, "with": arguments}))

    def dataReceived(self, data: bytes) -> None:
        if self._reader is None:
            return
        try:
            for message in self._reader.feed(data):
                self._received(message)
        except BadMessage as error:
            self._log.error("disconnecting a process that sent no valid message: {reason}", reason=str(error))
            self._reader = None
            self.transport.loseConnection()

    def _received(self, message: Message) -> None:
        match message.head:
            case {"call": str(name), "id": (int() | None) as number, "with": dict(arguments)}:
                Deferred.fromCoroutine(self._serve(name, number, arguments, message.blobs))
            case {"answer": int(number), "error": str(text), "kind": str(kind)}:
                self._settle(number, Failure(CallError(text, kind)))
            case {"answer": int(number), "value": value}:
                self._settle(number, Message(value, message.blobs))
            case _:
                raise BadMessage("neither a call nor an answer")

    def _settle(self, number: int, outcome: Any) -> None:
        answer = self._calls.pop(number, None)
        if answer is not None:
            answer.callback(outcome)  # a Failure goes to its errbacks; where the caller has cancelled, it is dropped

    async def _serve(self, name: str, number: Optional[int], arguments: dict[str, Any], blobs: Sequence[bytes]) -> None:
        handler = self._handlers.get(name)
        try:
            if handler is None:
                raise CallError(f"there is no call {name}")
            head = {"answer": number, "value": await handler(*blobs, **arguments)}
            if number is not None:
                self._send(Message(head))
        except (CallError, BadMessage) as error:
            self._refuse(number, error, str(error))
        except Exception as error:
            self._log.failure("a call from another process failed: {name}", name=name)
            self._refuse(number, error, f"{type(error).__name__}: {error}")

    def _refuse(self, number: Optional[int], error: Exception, text: str) -> None:
        if number is not None:
            kind = error.kind if isinstance(error, CallError) else type(error).__name__
            self._send(Message({"answer": number, "error": text, "kind": kind}))

    def _send(self, message: Message) -> None:
        """Raises `BadMessage`."""
        pieces = message.packed()
        if not self._gone:
            for piece in pieces:
                self.transport.write(bytes(piece))  # which copies parts of large entries only, as transports take bytes

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._gone:
            return
        self._gone = True
        calls, self._calls = self._calls, {}
        for answer in calls.values():
            if not answer.called:  # it may have been cancelled
                answer.errback(ConnectionLost(GONE))
        if self._lost is not None:
            self._lost()


def connect_to_parent(channel: Channel) -> None:
    """In a child with a reactor: let *channel* be the other end of its parent's."""
    from twisted.internet.stdio import StandardIO

    StandardIO(channel, stdin=CONTROL_IN, stdout=CONTROL_OUT)  # type: ignore[call-arg]
