"""Request bodies as streams: order, pace, ends."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.server.response_body import ClientGone
from twistedproxy.server.site import HIGH_WATER, Upload


class UploadTests(SynchronousTestCase):
    """One body."""

    def setUp(self) -> None:
        self.awaited: list[bool] = []
        self.upload = Upload(None, self.awaited.append)

    def read(self) -> Deferred[bytes]:
        return Deferred.fromCoroutine(self.upload.read())

    def test_waits(self) -> None:
        """A reader gets what comes as soon as it comes, and the end when it comes."""
        first = self.read()
        self.assertNoResult(first)
        self.upload.received(b"one")
        self.assertEqual(b"one", self.successResultOf(first))
        last = self.read()
        self.upload.ended()
        self.assertEqual(b"", self.successResultOf(last))

    def test_all_at_once(self) -> None:
        """What came since the last time is read in one piece, in order."""
        for piece in (b"a", b"b", b"c"):
            self.upload.received(piece)
        self.upload.ended()
        self.assertEqual(b"abc", self.successResultOf(self.read()))
        self.assertEqual(b"", self.successResultOf(self.read()))

    def test_asked_for(self) -> None:
        """The client is asked for the body when somebody begins to read, not before and not at each reading."""
        self.assertEqual([], self.awaited)
        self.upload.received(b"x")
        self.read()
        self.upload.received(b"y")
        self.read()
        self.assertEqual([True], self.awaited)

    def test_pace(self) -> None:
        """The client pauses once more waits than the bound, and goes on when it was read."""
        self.upload.received(b"x" * (HIGH_WATER - 100))
        self.assertEqual([], self.awaited)
        self.upload.received(b"y" * 200)
        self.assertEqual([False], self.awaited)
        self.assertEqual(HIGH_WATER + 100, len(self.successResultOf(self.read())))
        self.assertEqual([False, True], self.awaited)

    def test_tiny_pieces(self) -> None:
        """Pieces of one byte count with what they cost: a client cannot fill the memory with them."""
        for _ in range(HIGH_WATER // 32):
            self.upload.received(b"x")
        self.assertEqual([False], self.awaited)

    def test_client_gone(self) -> None:
        """What came is read, and then that the client has gone: never an end that looks like the end."""
        self.upload.received(b"half")
        self.upload.failed(Failure(ClientGone()))
        self.assertEqual(b"half", self.successResultOf(self.read()))
        self.failureResultOf(self.read(), ClientGone)
        self.failureResultOf(self.read(), ClientGone)

    def test_gone_after_the_end(self) -> None:
        """Who leaves after the last byte has sent it all."""
        self.upload.received(b"all")
        self.upload.ended()
        self.upload.failed(Failure(ClientGone()))
        self.assertEqual(b"all", self.successResultOf(self.read()))
        self.assertEqual(b"", self.successResultOf(self.read()))

    def test_closed(self) -> None:
        """A closed body swallows the rest at any pace, and who reads on is not told that it ended well."""
        reader = self.read()
        self.upload.close()
        self.failureResultOf(reader, RuntimeError)
        self.upload.received(b"x" * HIGH_WATER * 2)
        self.assertNotIn(False, self.awaited)

    def test_closed_while_paused(self) -> None:
        """Closing lets the client go on."""
        self.upload.received(b"x" * HIGH_WATER)
        self.upload.close()
        self.assertEqual([False, True], self.awaited)

    def test_cancelled(self) -> None:
        """A reader that gives up loses nothing for the next one."""
        reader = self.read()
        reader.cancel()
        self.failureResultOf(reader, CancelledError)
        self.upload.received(b"x")
        self.assertEqual(b"x", self.successResultOf(self.read()))

    def test_taken(self) -> None:
        """It was taken when all of it came and was read, also where it was closed after that."""
        self.upload.received(b"abc")
        self.upload.ended()
        self.assertFalse(self.upload.taken)
        self.successResultOf(self.read())
        self.upload.close()
        self.assertTrue(self.upload.taken)
        self.assertEqual(3, self.upload.size)

    def test_not_taken(self) -> None:
        """What was closed before all of it was read was not taken."""
        self.upload.received(b"abc")
        self.successResultOf(self.read())
        self.upload.received(b"def")
        self.upload.close()
        self.upload.ended()
        self.assertFalse(self.upload.taken)
