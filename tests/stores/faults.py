"""How a store can fail, as values that a test gives to `SimulatedStore.fail`."""

from __future__ import annotations

import json
from typing import Any, Optional

import attrs

from tests.stores.replies import Part, Reply


@attrs.frozen
class Fault:
    """A fault. The base changes nothing."""

    def change(self, reply: Reply) -> Reply:
        """The answer in place of *reply*, which may still have its parts."""
        return reply


@attrs.frozen
class Cut(Fault):
    """After *after* bytes of the answer's body (None: before its first header) something ends it."""

    after: Optional[int] = None


@attrs.frozen
class Stall(Cut):
    """No byte more, and the connection stays open."""


@attrs.frozen
class Reset(Cut):
    """A TCP reset."""


@attrs.frozen
class Close(Cut):
    """An orderly end of the connection, too early."""


@attrs.frozen
class Slow(Fault):
    """The body trickles, *bytes_per_second* of it a second, in *piece*s of bytes."""

    bytes_per_second: float
    piece: int = 1


@attrs.frozen
class Answer(Fault):
    """Another answer altogether."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    framing: str = "length"

    def change(self, reply: Reply) -> Reply:
        return Reply(self.status, list(self.headers), self.body, framing=self.framing)


def server_error() -> Answer:
    """500 with a body."""
    return Answer(500, (("Content-Type", "text/plain"),), b"out of disks")


def too_many_requests(retry_after: Optional[int] = 1) -> Answer:
    """429 (RFC 6585), with Retry-After in seconds unless None."""
    return Answer(429, _retry(retry_after), b"quota")


def unavailable(retry_after: Optional[int] = None) -> Answer:
    """503, with Retry-After in seconds unless None."""
    return Answer(503, _retry(retry_after), b"later")


def html(status: int = 200) -> Answer:
    """A page for people where DICOM belongs: what a login or an outage page in between sends."""
    return Answer(status, (("Content-Type", "text/html"),), b"<!doctype html><title>Sign in</title><p>Sign in")


def redirect(location: str, status: int = 302) -> Answer:
    """A redirect to *location*."""
    return Answer(status, (("Location", location),))


def _retry(seconds: Optional[int]) -> tuple[tuple[str, str], ...]:
    return (("Retry-After", str(seconds)),) if seconds is not None else ()


@attrs.frozen
class HalfMultipart(Fault):
    """Half of the body, correctly framed: only the missing delimiter tells."""

    def change(self, reply: Reply) -> Reply:
        reply.flatten()
        return attrs.evolve(reply, body=reply.body[: len(reply.body) // 2])


@attrs.frozen
class NoClosingDelimiter(Fault):
    """All parts, correctly framed, and no closing delimiter."""

    def change(self, reply: Reply) -> Reply:
        return attrs.evolve(reply, closing_delimiter=False)


@attrs.frozen
class TooFewParts(Fault):
    """The last *missing* parts are left out; the closing delimiter is there."""

    missing: int = 1

    def change(self, reply: Reply) -> Reply:
        parts = reply.parts or []
        return attrs.evolve(reply, parts=parts[: max(0, len(parts) - self.missing)])


@attrs.frozen
class TooManyParts(Fault):
    """The last part comes twice."""

    def change(self, reply: Reply) -> Reply:
        parts = reply.parts or []
        return attrs.evolve(reply, parts=[*parts, *parts[-1:]])


@attrs.frozen
class WrongPartType(Fault):
    """Each part says that it is *content_type*."""

    content_type: str = "text/html"

    def change(self, reply: Reply) -> Reply:
        parts = [
            Part(
                [(name, self.content_type if name == "Content-Type" else value) for name, value in part.headers],
                part.body,
            )
            for part in reply.parts or []
        ]
        return attrs.evolve(reply, parts=parts)


@attrs.frozen
class MetadataSays(Fault):
    """The first data set of a metadata or search answer has other attributes: *tags* (eight hex digits) to an
    element of DICOM JSON, or None to leave it out."""

    tags: dict[str, Any]

    def change(self, reply: Reply) -> Reply:
        found = json.loads(reply.body)
        for tag, element in self.tags.items():
            if element is None:
                found[0].pop(tag, None)
            else:
                found[0][tag] = element
        return attrs.evolve(reply, body=json.dumps(found).encode())


def number_of_frames(count: int) -> MetadataSays:
    """Metadata whose NumberOfFrames (0028,0008) is *count*, whatever is stored."""
    return MetadataSays({"00280008": {"vr": "IS", "Value": [count]}})
