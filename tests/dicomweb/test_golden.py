"""The bytes of answers, in full: what clients keep, compare and validate must not change unnoticed."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from tests.hot.support import HotProxy
from twistedproxy.settings import MIB

_OWN = re.compile(rb"(?:Server|Date|X-Request-Id): [^\r]*\r\n")

MULTIPART = (
    b"HTTP/1.1 200 OK\r\n"
    b"X-Content-Type-Options: nosniff\r\n"
    b"Cache-Status: twistedproxy; hit\r\n"
    b"Vary: Accept, Authorization, Cookie\r\n"
    b"Cache-Control: private, max-age=3600\r\n"
    b'ETag: "52c76ccb3b894734369ac3a5cd75ace3"\r\n'
    b"Accept-Ranges: bytes\r\n"
    b'Content-Type: multipart/related; type="image/jpeg"; transfer-syntax=1.2.840.10008.1.2.4.50; boundary=52c76ccb3b894734369ac3a5cd75ace3\r\n'
    b"Content-Length: 170\r\n"
    b"\r\n"
    b"--52c76ccb3b894734369ac3a5cd75ace3\r\n"
    b"Content-Type: image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50\r\n"
    b"Content-Length: 7\r\n"
    b"\r\n"
    b"frame 1\r\n"
    b"--52c76ccb3b894734369ac3a5cd75ace3--\r\n"
)

SINGLE = (
    b"HTTP/1.1 200 OK\r\n"
    b"X-Content-Type-Options: nosniff\r\n"
    b"Cache-Status: twistedproxy; hit\r\n"
    b"Vary: Accept, Authorization, Cookie\r\n"
    b"Cache-Control: private, max-age=3600\r\n"
    b'ETag: "12a9fde0242273f4722b76f82a81fe58"\r\n'
    b"Accept-Ranges: bytes\r\n"
    b"Content-Type: image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50\r\n"
    b"Content-Length: 7\r\n"
    b"\r\n"
    b"frame 1"
)

LIST = (
    b"HTTP/1.1 200 OK\r\n"
    b"X-Content-Type-Options: nosniff\r\n"
    b"Cache-Status: twistedproxy; hit\r\n"
    b"Vary: Accept, Authorization, Cookie\r\n"
    b"Cache-Control: private, max-age=3600\r\n"
    b'ETag: "17889484a30792072df50d32741183da"\r\n'
    b'Content-Type: multipart/related; type="image/jpeg"; transfer-syntax=1.2.840.10008.1.2.4.50; boundary=17889484a30792072df50d32741183da\r\n'
    b"Content-Length: 302\r\n"
    b"\r\n"
    b"--17889484a30792072df50d32741183da\r\n"
    b"Content-Type: image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50\r\n"
    b"Content-Length: 7\r\n"
    b"\r\n"
    b"frame 2\r\n"
    b"--17889484a30792072df50d32741183da\r\n"
    b"Content-Type: image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50\r\n"
    b"Content-Length: 7\r\n"
    b"\r\n"
    b"frame 1\r\n"
    b"--17889484a30792072df50d32741183da--\r\n"
)


class GoldenTests(SynchronousTestCase):
    """One frame and a list of frames, from the store, from the cache, and hot."""

    def answers(self, frames: object, **more: str) -> list[bytes]:
        """Three answers to one request, without what differs from day to day and from release to release."""
        hot, plain = HotProxy(self, 64 * MIB), HotProxy(self, 0)
        plain.get(frames, **more)
        replies = [hot.get(frames, **more), plain.get(frames, **more), hot.get(frames, **more)]
        self.assertEqual([reply.outcome for reply in replies], ["miss", "hit", "hot"])
        return [_OWN.sub(b"", reply.head + b"\r\n\r\n" + reply.body) for reply in replies]

    def _check(self, expected: bytes, answers: list[bytes]) -> None:
        missed = expected.replace(b"twistedproxy; hit", b"twistedproxy; fwd=uri-miss; stored")
        self.assertEqual([missed, expected, expected], answers)

    def test_multipart(self) -> None:
        """One frame in the form that viewers request."""
        self._check(MULTIPART, self.answers(1))

    def test_single_part(self) -> None:
        """One frame as it is."""
        self._check(SINGLE, self.answers(1, accept="image/jpeg"))

    def test_list(self) -> None:
        """Two frames."""
        self._check(LIST, self.answers("2,1"))
