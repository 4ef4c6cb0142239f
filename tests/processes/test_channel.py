"""Calls between a process and its child: answers, faults, ends, in memory."""

from __future__ import annotations

import struct
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.properties import given, st
from twistedproxy.processes import messages
from twistedproxy.processes.channel import CallError, Channel
from twistedproxy.processes.messages import Message


def framed(head: bytes) -> bytes:
    """One message as it goes over the pipe."""
    return struct.pack("!I", len(head)) + head


class Echo:
    """Handlers of one end."""

    def __init__(self) -> None:
        self.held: list[Deferred[Any]] = []
        self.blobs: tuple[bytes, ...] = ()

    async def say(self, *blobs: bytes, **words: Any) -> Any:
        self.blobs = blobs
        return words

    async def hold(self) -> Any:
        self.held.append(Deferred())
        return await self.held[-1]

    async def refuse(self) -> None:
        raise CallError("not today", "Closed")

    async def crash(self) -> None:
        raise ZeroDivisionError("by zero")

    async def unsayable(self) -> Any:
        return object()

    def handlers(self) -> dict[str, Any]:
        names = ("say", "hold", "refuse", "crash", "unsayable")
        return {name: getattr(self, name) for name in names}


class ChannelCase(SynchronousTestCase):
    """Two ends, and the bytes between them."""

    def setUp(self) -> None:
        self.ends = [Echo(), Echo()]
        self.lost: list[int] = []
        self.pipes = [StringTransport(), StringTransport()]
        self.channels = [Channel(end.handlers(), partial(self.lost.append, i)) for i, end in enumerate(self.ends)]
        for one, pipe in zip(self.channels, self.pipes):
            one.makeConnection(pipe)

    def flush(self, size: int = 1 << 30) -> None:
        """Move all bytes, *size* at a time, until nobody says any more."""
        while any(pipe.value() for pipe in self.pipes):
            for here, there in ((0, 1), (1, 0)):
                data = self.pipes[here].value()
                self.pipes[here].clear()
                for start in range(0, len(data), size):
                    self.channels[there].dataReceived(data[start : start + size])


class CallTests(ChannelCase):
    """Calls and answers."""

    def test_both_directions(self) -> None:
        """Both ends call, at the same time, and each gets its own answer, however the bytes are cut."""
        for size in (1, 3, 1 << 20):
            calls = [one.call("say", number=i, text="ü\n\0") for i, one in enumerate(self.channels)]
            self.flush(size)
            for i, call in enumerate(calls):
                self.assertEqual(self.successResultOf(call), {"number": i, "text": "ü\n\0"})

    def test_out_of_order(self) -> None:
        """A call that takes long holds up no other; answers find their calls in any order."""
        slow = [self.channels[0].call("hold") for _ in range(3)]
        quick = self.channels[0].call("say", a=1)
        self.flush()
        self.assertEqual(self.successResultOf(quick), {"a": 1})
        for i in (2, 0, 1):
            self.ends[1].held[i].callback(i)
            self.flush()
            self.assertEqual(self.successResultOf(slow[i]), i)

    def test_refused(self) -> None:
        """What a handler refuses reaches the caller as it was said, with its kind, and is no error here."""
        call = self.channels[0].call("refuse")
        self.flush()
        error = self.failureResultOf(call, CallError).value
        self.assertEqual((str(error), error.kind), ("not today", "Closed"))
        self.assertEqual([], self.flushLoggedErrors())

    def test_crash(self) -> None:
        """A handler that breaks is logged where it broke, and its caller hears of it."""
        call = self.channels[0].call("crash")
        self.flush()
        self.assertEqual(str(self.failureResultOf(call, CallError).value), "ZeroDivisionError: by zero")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_no_such_call(self) -> None:
        """An unknown call, wrong arguments and a value that JSON does not know are answered with an error each."""
        for call, said in (
            (self.channels[0].call("nonsense"), "there is no call nonsense"),
            (self.channels[0].call("refuse", why=1), "TypeError"),
            (self.channels[0].call("unsayable"), "cannot be sent as JSON"),
        ):
            self.flush()
            self.assertIn(said, str(self.failureResultOf(call, CallError).value))
        self.flushLoggedErrors(TypeError)

    def test_blobs(self) -> None:
        """Blobs go with calls and answers, as they are."""
        call = self.channels[0].request("say", {"a": 1}, [b"\xff\0", b""])
        self.flush(1)
        self.assertEqual(self.ends[1].blobs, (b"\xff\0", b""))
        self.assertEqual(self.successResultOf(call), Message({"a": 1}, []))
        call = self.channels[0].request("hold", {})
        self.channels[0].dataReceived(b"".join(Message({"answer": 2, "value": 3}, [b"x"]).packed()))
        self.assertEqual(self.successResultOf(call), Message(3, [b"x"]))

    def test_without_answer(self) -> None:
        """What wants no answer gets none, also where it fails."""
        for name in ("say", "refuse", "nonsense", "crash"):
            self.channels[0].notify(name)
            data = self.pipes[0].value()
            self.pipes[0].clear()
            self.channels[1].dataReceived(data)
            self.assertEqual(self.pipes[1].value(), b"")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_given_up(self) -> None:
        """Who no longer waits does not hear the late answer, and later calls are not confused by it."""
        call = self.channels[0].call("hold")
        self.flush()
        call.cancel()
        self.failureResultOf(call, CancelledError)
        self.ends[1].held[0].callback("late")
        again = self.channels[0].call("say", a=2)
        self.flush()
        self.assertEqual(self.successResultOf(again), {"a": 2})


class SizeTests(ChannelCase):
    """Big messages."""

    def test_big(self) -> None:
        """Megabytes go through."""
        text = "x" * (5 << 20)
        call = self.channels[0].call("say", text=text)
        self.flush(65536)
        self.assertEqual(self.successResultOf(call), {"text": text})

    def test_too_big(self) -> None:
        """A call or an answer that is too big fails by itself, and the conversation goes on."""
        self.patch(messages, "MAX_HEAD", 1000)
        call = self.channels[0].call("say", text="x" * 1000)
        self.assertIn("too many", str(self.failureResultOf(call, CallError).value))
        call = self.channels[0].call("hold")
        self.flush()
        self.ends[1].held[0].callback("x" * 1000)
        self.flush()
        self.assertIn("too many", str(self.failureResultOf(call, CallError).value))
        call = self.channels[0].call("say", a=3)
        self.flush()
        self.assertEqual(self.successResultOf(call), {"a": 3})


NONSENSE = (
    b"",
    b"{",
    b"[]",
    b"1",
    b'"call"',
    b"{}",
    b'{"call":"say"}',
    b'{"call":"say","id":1,"with":3}',
    b'{"call":{},"id":1,"with":{}}',
    b'{"call":"say","id":{},"with":{}}',
    b'{"answer":[],"value":1}',
    b'{"answer":1}',
    b'{"answer":1,"error":{},"kind":"x"}',
)


class EndTests(ChannelCase):
    """Lost connections, and others who talk nonsense."""

    def test_lost(self) -> None:
        """When the other end goes, all calls that wait fail, later ones fail at once, and the loss is told once."""
        calls = [self.channels[0].call("hold") for _ in range(2)]
        calls[0].addErrback(lambda _: calls[1].cancel())
        self.flush()
        self.channels[0].connectionLost(Failure(ConnectionLost()))
        self.channels[0].connectionLost(Failure(ConnectionLost()))
        self.successResultOf(calls[0])
        self.failureResultOf(calls[1], CancelledError)
        self.failureResultOf(self.channels[0].call("say"), ConnectionLost)
        self.assertEqual(self.lost, [0])

    def test_lost_while_serving(self) -> None:
        """Who is asked something and then left alone has nobody to answer, and minds not."""
        self.channels[0].call("hold").addErrback(lambda _: None)
        self.flush()
        self.channels[1].connectionLost(Failure(ConnectionLost()))
        self.ends[1].held[0].callback("for nobody")
        self.assertEqual(self.pipes[1].value(), b"")

    def test_nonsense(self) -> None:
        """Who sends what is no message is not spoken with any more."""
        for head in NONSENSE:
            self.setUp()
            self.channels[0].dataReceived(
                framed(head.replace(b"}", b',"blobs":[]}', 1) if head[-2:] != b"{}" else head)
            )
            self.assertTrue(self.pipes[0].disconnecting, head)
            self.channels[0].dataReceived(b"more")

    def test_endless(self) -> None:
        """A message that is announced too long ends the conversation before it is kept."""
        self.channels[0].dataReceived(struct.pack("!I", 0xFFFFFFFF))
        self.assertTrue(self.pipes[0].disconnecting)

    def test_stranger(self) -> None:
        """An answer that nobody waits for changes nothing."""
        self.channels[0].dataReceived(b"".join(Message({"answer": 99, "value": 1}).packed()))
        self.assertFalse(self.pipes[0].disconnecting)


class NoiseTests(SynchronousTestCase):
    """Any bytes at all."""

    @given(st.lists(st.binary(max_size=40), max_size=5))
    def test_noise(self, pieces: list[bytes]) -> None:
        """Noise raises nothing; what is understood is answered, and what is not ends the conversation."""
        one, pipe = Channel(Echo().handlers()), StringTransport()
        one.makeConnection(pipe)
        for piece in pieces:
            one.dataReceived(framed(piece))
        self.assertTrue(pipe.disconnecting or not pieces)
