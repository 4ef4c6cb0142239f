"""Answers of the simulated store before they are sent: still whole, so that faults can change them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Optional

import attrs

BOUNDARY = "simulated-boundary-7fe00010"
PIECE = 1 << 16  # bytes written at once


@attrs.define
class Part:
    """One part of a multipart answer."""

    headers: list[tuple[str, str]]
    body: bytes = attrs.field(repr=False)


@attrs.define
class Reply:
    """One answer. Either *parts* (multipart/related), or *body*, or *pieces* that are made while they are sent
    (*length* bytes in all). *framing*: "length", "chunked" or "close" (RFC 9112 section 6)."""

    status: int = 200
    headers: list[tuple[str, str]] = attrs.field(factory=list)
    body: bytes = attrs.field(default=b"", repr=False)
    parts: Optional[list[Part]] = None
    pieces: Optional[Iterable[bytes]] = None
    length: int = 0
    boundary: str = BOUNDARY
    closing_delimiter: bool = True
    framing: str = "length"

    def flatten(self) -> None:
        """Turn parts into the body: CRLF, a delimiter before each part, a closing one (RFC 2046 section 5.1.1)."""
        if self.parts is None:
            return
        lines: list[bytes] = []
        for part in self.parts:
            head = "".join(f"{name}: {value}\r\n" for name, value in part.headers)
            lines += [f"--{self.boundary}\r\n{head}\r\n".encode("latin-1"), part.body, b"\r\n"]
        if self.closing_delimiter:
            lines.append(f"--{self.boundary}--\r\n".encode("latin-1"))
        self.body, self.parts = b"".join(lines), None

    def content(self) -> Iterable[bytes]:
        """The body in pieces."""
        if self.pieces is not None:
            return self.pieces
        view = memoryview(self.body)
        return (bytes(view[start : start + PIECE]) for start in range(0, len(view), PIECE))

    def content_length(self) -> int:
        return self.length if self.pieces is not None else len(self.body)


def json_reply(value: Any, status: int = 200, content_type: str = "application/dicom+json") -> Reply:
    """*value* as DICOM JSON."""
    return Reply(status, [("Content-Type", content_type)], json.dumps(value).encode())


def error(status: int, text: str) -> Reply:
    """An error as most stores send it."""
    return Reply(status, [("Content-Type", "application/json")], json.dumps({"errorMessage": text}).encode())
