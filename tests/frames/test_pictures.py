"""The origin's pictures, over an origin and a cache in memory."""

from __future__ import annotations

from typing import Optional

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.frames.support import ALICE, INSTANCE, MALLORY, MemoryOrigin, Room
from twistedproxy.frames import pictures
from twistedproxy.frames.pictures import Picture, PictureAnswer, PictureReader, Rendered
from twistedproxy.frames.read_through import Wanted
from twistedproxy.origin.errors import OriginBadAnswer, OriginRefused
from twistedproxy.origin.interface import Caller, OriginRequest, OriginResponse
from twistedproxy.streams import BytesStream

PNG = b"image/png"


@attrs.define(eq=False)
class PaintingOrigin(MemoryOrigin):
    """Answers requests for pictures with *status*, *headers* and *body*, once *painted* lets it."""

    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ((b"Content-Type", PNG),)
    body: bytes = b"a picture"
    painted: Optional[Deferred[None]] = None
    requests: list[OriginRequest] = attrs.Factory(list)

    async def forward(self, request: OriginRequest) -> OriginResponse:
        self.requests.append(request)
        credential = b"alice" if (b"Authorization", b"Bearer alice") in request.headers else b"bob"
        if self.painted is not None:
            await self.painted
        if credential not in self.readers:
            return OriginResponse(403, (), BytesStream(b"no"))
        return OriginResponse(self.status, self.headers, BytesStream(self.body))


class PictureTests(SynchronousTestCase):
    """Read, shared, kept."""

    def setUp(self) -> None:
        self.origin = PaintingOrigin()
        self.room = Room(origin=self.origin)
        self.reader = self.worker()

    def worker(self) -> PictureReader:
        """A worker's reader."""
        return PictureReader(self.room.reader(), self.room.cache, 3600.0)

    def ask(
        self, caller: Caller = ALICE, numbers: tuple[int, ...] = (1,), query: bytes = b"", accept: bytes = PNG
    ) -> Deferred[PictureAnswer]:
        """Ask for a picture."""
        wanted = Wanted(self.origin, INSTANCE, numbers, caller)  # type: ignore[arg-type]
        return Deferred.fromCoroutine(self.reader.read(Picture(wanted, query, accept)))

    def test_request(self) -> None:
        """The origin is asked by the instance's own path, with the caller's headers and Accept."""
        self.successResultOf(self.ask(numbers=(2, 1), query=b"viewport=1,1"))
        (request,) = self.origin.requests
        self.assertEqual(request.path, b"/studies/1.2/series/1.2.3/instances/1.2.3.4/frames/2,1/rendered")
        self.assertEqual(request.query, b"viewport=1,1")
        self.assertLessEqual({*ALICE.headers, (b"Accept", PNG)}, set(request.headers))

    def test_kept(self) -> None:
        """The second time it comes from the cache, at another worker too; forgotten with its instance."""
        first = self.successResultOf(self.ask())
        self.assertEqual(first, PictureAnswer(Rendered(PNG, b"a picture"), stored=True))
        self.reader = self.worker()
        self.assertEqual(self.successResultOf(self.ask()), PictureAnswer(first.rendered, cached=True))
        self.successResultOf(Deferred.fromCoroutine(self.reader.reader.forgetting.forget(INSTANCE.scope)))
        self.assertFalse(self.successResultOf(self.ask()).cached)

    def test_names(self) -> None:
        """List, query and Accept make the name, and do not run together."""
        variants = [
            self.name((1,), b"", b""),
            self.name((1, 2), b"", b""),
            self.name((1,), b"ab", b"c"),
            self.name((1,), b"a", b"bc"),
            self.name((1,), b"", b"abc"),
            self.name((1,), b"a\0b", b"c"),
            self.name((1,), b"a", b"b\0c"),
        ]
        self.assertEqual(len(set(variants)), len(variants))

    def name(self, numbers: tuple[int, ...], query: bytes, accept: bytes) -> bytes:
        """The name of a picture's entry."""
        return Picture(Wanted(self.origin, INSTANCE, numbers, ALICE), query, accept).name  # type: ignore[arg-type]

    def test_leaving(self) -> None:
        """Who leaves ends its own wait; the last one ends the request."""
        self.successResultOf(self.ask(numbers=(3,)))
        self.origin.painted = Deferred()
        first, second = self.ask(), self.ask()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.origin.painted.callback(None)
        self.assertEqual(self.successResultOf(second).rendered.data, b"a picture")
        self.assertEqual(len(self.origin.requests), 2)

    def test_the_other_is_denied(self) -> None:
        """Of those who wait for one who is denied, each credential asks once for itself."""
        bob = Caller(b"bob", ((b"Authorization", b"Bearer bob"),))
        self.origin.readers.add(b"bob")
        for caller in (ALICE, bob):
            self.successResultOf(self.ask(caller, (9,)))
        self.origin.requests.clear()
        self.origin.painted = Deferred()
        waits = [self.ask(), self.ask(), self.ask(bob), self.ask(bob)]
        self.origin.readers.remove(b"alice")
        first, self.origin.painted = self.origin.painted, Deferred()
        first.callback(None)
        self.origin.painted.callback(None)
        for wait in waits[:2]:
            self.failureResultOf(wait, OriginRefused)
        for wait in waits[2:]:
            self.assertEqual(self.successResultOf(wait).rendered.data, b"a picture")
        self.assertEqual(len(self.origin.requests), 2)

    def test_the_other_fails(self) -> None:
        """So it is where the origin makes anything else of that one's request."""
        bob = Caller(b"bob", ((b"Authorization", b"Bearer bob"),))
        self.origin.readers.add(b"bob")
        for status, body in ((500, b"out of disks"), (429, b"later"), (302, b""), (200, b"<html>sign in")):
            for caller in (ALICE, bob):
                self.successResultOf(self.ask(caller, (9,)))
            self.origin.requests.clear()
            self.origin.painted = Deferred()
            query = b"of=%d" % status
            waits = [self.ask(caller, query=query) for caller in (ALICE, ALICE, bob, bob)]
            first, self.origin.painted = self.origin.painted, Deferred()
            self.origin.status, self.origin.body = status, body
            first.callback(None)
            self.origin.status, self.origin.body = 200, b"a picture"
            self.origin.painted.callback(None)
            for wait in waits[:2]:
                self.failureResultOf(wait, OriginRefused, OriginBadAnswer)
            for wait in waits[2:]:
                self.assertEqual(self.successResultOf(wait).rendered.data, b"a picture")
            self.assertEqual(len(self.origin.requests), 2)

    def test_no_grant(self) -> None:
        """Nobody gets a picture, cached or not, of what they may not read."""
        self.successResultOf(self.ask())
        self.failureResultOf(self.ask(MALLORY), OriginRefused)

    def test_not_kept(self) -> None:
        """What is no whole picture is the origin's fault; its refusal is its own. Neither is kept."""
        self.patch(pictures, "MAX_PICTURE", 100)
        part = b"--b\r\nContent-Type: image/png\r\n\r\nx\r\n"
        multipart = ((b"content-type", b"multipart/related; boundary=b"),)
        for status, headers, body, error in (
            (404, (), b"none", OriginRefused),
            (302, (), b"", OriginBadAnswer),
            (206, ((b"Content-Type", PNG),), b"half", OriginBadAnswer),
            (200, (), b"what", OriginBadAnswer),
            (200, ((b"Content-Type", b"text/html"),), b"<p>", OriginBadAnswer),
            (200, ((b"Content-Type", PNG),), b"", OriginBadAnswer),
            (200, ((b"Content-Type", PNG),), b"x" * 101, OriginBadAnswer),
            (200, multipart, part, OriginBadAnswer),
            (200, ((b"Content-Type", PNG),), b' {"error": 1}', OriginBadAnswer),
            (200, ((b"Content-Type", PNG),), b"<html>sign in", OriginBadAnswer),
            (200, multipart, part.replace(PNG, b"text/html") + b"--b--\r\n", OriginBadAnswer),
            (200, multipart, part.replace(b"\r\nx", b"\r\n<p>") + b"--b--\r\n", OriginBadAnswer),
        ):
            self.origin.status, self.origin.headers, self.origin.body = status, headers, body
            self.failureResultOf(self.ask(), error)
        self.origin.status, self.origin.headers, self.origin.body = 200, multipart, part + b"--b--\r\n"
        self.assertFalse(self.successResultOf(self.ask()).cached)
        self.assertTrue(self.successResultOf(self.ask()).cached)
