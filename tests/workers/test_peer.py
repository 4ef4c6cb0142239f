"""What parent and child say to each other: framing, answers, faults, in memory."""

from __future__ import annotations

import json
import struct
from functools import partial
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.workers import peer
from twistedproxy.workers.peer import CallFailed, Peer


def framed(data: bytes) -> bytes:
    """One message as it goes over the pipe."""
    return struct.pack("!I", len(data)) + data


class Echo:
    """Handlers of one end."""

    def __init__(self) -> None:
        self.held: list[Deferred[Any]] = []

    async def say(self, **words: Any) -> Any:
        return words

    async def hold(self) -> Any:
        self.held.append(Deferred())
        return await self.held[-1]

    async def refuse(self) -> None:
        raise CallFailed("not today")

    async def crash(self) -> None:
        raise ZeroDivisionError("by zero")

    async def unsayable(self) -> Any:
        return object()

    def handlers(self) -> dict[str, Any]:
        names = ("say", "hold", "refuse", "crash", "unsayable")
        return {name: getattr(self, name) for name in names}


class PeerCase(SynchronousTestCase):
    """Two ends, and the bytes between them."""

    def setUp(self) -> None:
        self.ends = [Echo(), Echo()]
        self.lost: list[int] = []
        self.pipes = [StringTransport(), StringTransport()]
        self.peers = [Peer(end.handlers(), partial(self.lost.append, i)) for i, end in enumerate(self.ends)]
        for one, pipe in zip(self.peers, self.pipes):
            one.makeConnection(pipe)

    def flush(self, size: int = 1 << 30) -> None:
        """Move all bytes, *size* at a time, until nobody says any more."""
        while any(pipe.value() for pipe in self.pipes):
            for here, there in ((0, 1), (1, 0)):
                data = self.pipes[here].value()
                self.pipes[here].clear()
                for start in range(0, len(data), size):
                    self.peers[there].dataReceived(data[start : start + size])


class CallTests(PeerCase):
    """Calls and answers."""

    def test_both_directions(self) -> None:
        """Both ends call, at the same time, and each gets its own answer, however the bytes are cut."""
        for size in (1, 3, 1 << 20):
            calls = [one.call("say", number=i, text="ü\n\0") for i, one in enumerate(self.peers)]
            self.flush(size)
            for i, call in enumerate(calls):
                self.assertEqual(self.successResultOf(call), {"number": i, "text": "ü\n\0"})

    def test_out_of_order(self) -> None:
        """A call that takes long holds up no other; answers find their calls in any order."""
        slow = [self.peers[0].call("hold") for _ in range(3)]
        quick = self.peers[0].call("say", a=1)
        self.flush()
        self.assertEqual(self.successResultOf(quick), {"a": 1})
        for i in (2, 0, 1):
            self.ends[1].held[i].callback(i)
            self.flush()
            self.assertEqual(self.successResultOf(slow[i]), i)

    def test_refused(self) -> None:
        """What a handler refuses reaches the caller as it was said, and is nobody's fault."""
        call = self.peers[0].call("refuse")
        self.flush()
        self.assertEqual(str(self.failureResultOf(call, CallFailed).value), "not today")
        self.assertEqual([], self.flushLoggedErrors())

    def test_crash(self) -> None:
        """A handler that breaks is logged where it broke, and its caller hears of it."""
        call = self.peers[0].call("crash")
        self.flush()
        self.assertEqual(str(self.failureResultOf(call, CallFailed).value), "ZeroDivisionError: by zero")
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_no_such_call(self) -> None:
        """An unknown call, wrong arguments and a value that JSON does not know are answered with an error each."""
        for call, said in (
            (self.peers[0].call("nonsense"), "there is no call nonsense"),
            (self.peers[0].call("refuse", why=1), "TypeError"),
            (self.peers[0].call("unsayable"), "cannot be said in JSON"),
        ):
            self.flush()
            self.assertIn(said, str(self.failureResultOf(call, CallFailed).value))
        self.flushLoggedErrors(TypeError)

    def test_given_up(self) -> None:
        """Who no longer waits does not hear the late answer, and later calls are not confused by it."""
        call = self.peers[0].call("hold")
        self.flush()
        call.cancel()
        self.failureResultOf(call, CancelledError)
        self.ends[1].held[0].callback("late")
        again = self.peers[0].call("say", a=2)
        self.flush()
        self.assertEqual(self.successResultOf(again), {"a": 2})


class SizeTests(PeerCase):
    """Big messages."""

    def test_big(self) -> None:
        """Megabytes go through."""
        text = "x" * (5 << 20)
        call = self.peers[0].call("say", text=text)
        self.flush(65536)
        self.assertEqual(self.successResultOf(call), {"text": text})

    def test_too_big(self) -> None:
        """A call or an answer that is too big fails by itself, and the conversation goes on."""
        self.patch(peer, "MAX_MESSAGE", 1000)
        call = self.peers[0].call("say", text="x" * 1000)
        self.assertIn("too many", str(self.failureResultOf(call, CallFailed).value))
        call = self.peers[0].call("hold")
        self.flush()
        self.ends[1].held[0].callback("x" * 1000)
        self.flush()
        self.assertIn("too many", str(self.failureResultOf(call, CallFailed).value))
        call = self.peers[0].call("say", a=3)
        self.flush()
        self.assertEqual(self.successResultOf(call), {"a": 3})


KEYS = (b'{"answer":[]}', b'{"call":{},"id":1,"with":{}}', b'{"call":"say","id":{},"with":{}}')


class EndTests(PeerCase):
    """Lost connections, and others who talk nonsense."""

    def test_lost(self) -> None:
        """When the other end goes, all calls that wait fail, later ones fail at once, and the loss is told once."""
        calls = [self.peers[0].call("hold") for _ in range(2)]
        calls[0].addErrback(lambda _: calls[1].cancel())
        self.flush()
        self.peers[0].connectionLost(Failure(ConnectionLost()))
        self.peers[0].connectionLost(Failure(ConnectionLost()))
        self.successResultOf(calls[0])
        self.failureResultOf(calls[1], CancelledError)
        self.failureResultOf(self.peers[0].call("say"), ConnectionLost)
        self.assertEqual(self.lost, [0])

    def test_lost_while_serving(self) -> None:
        """Who is asked something and then left alone has nobody to answer, and minds not."""
        self.peers[0].call("hold").addErrback(lambda _: None)
        self.flush()
        self.peers[1].connectionLost(Failure(ConnectionLost()))
        self.ends[1].held[0].callback("for nobody")
        self.assertEqual(self.pipes[1].value(), b"")

    def test_nonsense(self) -> None:
        """Who sends what is no message is not spoken with any more."""
        for data in (
            b"",
            b"{",
            b"[]",
            b"1",
            b'"call"',
            b'{"call":"say"}',
            b'{"call":"say","id":1,"with":3}',
            b"{}",
            *KEYS,
        ):
            self.setUp()
            self.peers[0].dataReceived(framed(data))
            self.assertTrue(self.pipes[0].disconnecting, data)

    def test_endless(self) -> None:
        """A message that is announced too long ends the conversation before it is kept."""
        self.peers[0].dataReceived(struct.pack("!I", 0xFFFFFFFF))
        self.assertTrue(self.pipes[0].disconnecting)

    def test_stranger(self) -> None:
        """An answer that nobody waits for changes nothing."""
        self.peers[0].dataReceived(framed(json.dumps({"answer": 99, "value": 1}).encode()))
        self.assertFalse(self.pipes[0].disconnecting)


class NoiseTests(SynchronousTestCase):
    """Any bytes at all."""

    @given(st.lists(st.binary(max_size=40), max_size=5))
    def test_noise(self, pieces: list[bytes]) -> None:
        """Noise raises nothing; what is understood is answered, and what is not ends the conversation."""
        one, pipe = Peer(Echo().handlers()), StringTransport()
        one.makeConnection(pipe)
        for piece in pieces:
            one.dataReceived(framed(piece))
        self.assertTrue(pipe.disconnecting or not pieces)
