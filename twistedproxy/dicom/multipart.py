"""Reading multipart/related bodies (RFC 2046 section 5.1, RFC 2387): bytes in, events out, no I/O.

Rules that this file keeps:

- Every byte is looked at a bounded number of times, however the body is cut: time is linear.
- Only the delimiter ends a part. A part's Content-Length may prove it wrong, never end it. A part that is coded
  (Content-Encoding, base64) or a piece of something (Content-Range) is refused: its bytes are not the thing itself.
- No more is held back than a delimiter or the headers of one part; both are bounded.
- A body is whole only if its closing delimiter came: `close` raises otherwise. Some stores leave it out, or the dashes at
  its end: where the length of the message shows that all came, a delimiter at the very end will do.
- Tolerated: LF for CRLF, a preamble, an epilogue, space after a delimiter, a part without headers, and a body
  whose Content-Type leaves the boundary out (then its first line says it).
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping

import attrs

from twistedproxy.dicom.media_types import MediaType, parse_media_type
from twistedproxy.streams import Gathered

MAX_HEADER_BYTES = 16 * 1024
"""Headers of one part. Stores send about 150 bytes."""
MAX_BOUNDARY_BYTES = 256
"""RFC 2046 section 5.1.1 allows 70; some libraries make longer ones."""
MAX_PADDING_BYTES = 64
"""Space between a delimiter and its line's end; none is usual."""

_AFTER_DELIMITER = re.compile(rb"(--)|[ \t]*+\r?\n")
_AFTER_DELIMITER_CUT = re.compile(rb"-|[ \t]*+\r?")
_BLANK_LINE = re.compile(rb"\n\r?\n")
_FOLD = re.compile(r"\r?\n[ \t]+")
# Headers of a part whose bytes are not the thing itself, and the values that leave them so (RFC 2045 section 6.2).
_CODED = {
    "content-encoding": frozenset({"", "identity"}),
    "content-transfer-encoding": frozenset({"", "7bit", "8bit", "binary", "identity"}),
    "content-range": frozenset({""}),
}


class BadMultipart(ValueError):
    """A body is not the multipart body that it should be, or was cut off."""


@attrs.frozen
class PartStart:
    """A part begins; *headers* have lower-cased names, the first of repeated ones."""

    headers: Mapping[str, str]


@attrs.frozen
class PartData:
    """Some bytes of the part that began last; never empty."""

    data: bytes


@attrs.frozen
class PartEnd:
    """The part that began last is complete."""


@attrs.frozen
class End:
    """The closing delimiter came; what follows is ignored."""


Event = PartStart | PartData | PartEnd | End


class MultipartParser:
    """Feed it a body, chunk by chunk; *boundary* None: taken from the body's first line. *lenient*: only delimiters count, and
    nothing that headers of parts say makes it raise: for bodies that the origin judges."""

    def __init__(self, boundary: bytes | None, lenient: bool = False) -> None:
        self._lenient = lenient
        self._data = b""  # what was held back, and what came last
        self._position = 0  # in it, where the next step begins
        self._events: list[Event] = []
        self._in_part = self._ended = False
        self._parts = 0
        self._length = ""  # of the part, as its headers say
        self._received = 0  # bytes of the part
        self._steps = self._read(boundary)
        next(self._steps)

    def feed(self, chunk: bytes) -> list[Event]:
        """Take the next bytes of the body; return what happened. Raises `BadMultipart`."""
        self._data, self._position = self._data[self._position :] + chunk, 0
        next(self._steps)
        events, self._events = self._events, []
        return events

    def close(self, framed: bool = False) -> list[Event]:
        """The body has ended; return what that says of the last part. *framed*: the length of the message, or its chunks,
        showed that all of it came. Raises `BadMultipart` if that was before its closing delimiter."""
        if self._ended:
            return []
        if framed and self._in_part:
            events = self.feed(b"--\r\n")  # makes a delimiter at the very end the closing one, and nothing else
            if self._ended:
                return events
        elif framed and self._parts and not self._data[self._position :].strip():
            return [End()]
        raise BadMultipart("the body ended before its closing delimiter")

    def _read(self, boundary: bytes | None) -> Iterator[None]:
        """All of the body. This and what it calls yield where they need more bytes, which stand in `_data` then."""
        at_headers = not boundary
        if not boundary:
            boundary = yield from self._read_first_line()
        elif len(boundary) > MAX_BOUNDARY_BYTES and not self._lenient:
            raise BadMultipart(f"a boundary of more than {MAX_BOUNDARY_BYTES} bytes")
        else:
            # A delimiter begins a line (RFC 2046: the line end before it belongs to it). The first one may
            # stand at the very beginning: a line end is put there, which is no part's data.
            self._data = b"\n"
        while at_headers or not (yield from self._read_data(b"\n--" + boundary)):
            at_headers = False
            yield from self._read_headers()
        self._events.append(End())
        self._ended = True
        while True:
            self._position = len(self._data)
            yield

    def _read_first_line(self) -> Generator[None, None, bytes]:
        while True:
            self._data = self._data.lstrip(b"\r\n")
            if not b"--".startswith(self._data[:2]):
                raise BadMultipart("no boundary is given, and the body does not begin with a delimiter")
            line, newline, _ = self._data.partition(b"\n")
            if len(line) > MAX_BOUNDARY_BYTES + MAX_PADDING_BYTES:
                raise BadMultipart("no boundary is given, and the body's first line is too long")
            if newline:
                break
            yield
        self._position = len(line)
        boundary = line[2:].rstrip()
        if not boundary:
            raise BadMultipart("no boundary is given, and the body's first delimiter is empty")
        return boundary

    def _read_headers(self) -> Iterator[None]:
        """From the line end of a delimiter to that of the blank line."""
        scanned = 0
        while (blank := _BLANK_LINE.search(self._data, self._position + scanned)) is None:
            scanned = max(0, len(self._data) - self._position - 2)
            if scanned > MAX_HEADER_BYTES:
                break
            yield
        headers: dict[str, str] = {}
        if blank is not None and blank.start() - self._position <= MAX_HEADER_BYTES:
            headers = _parse_headers(self._data[self._position + 1 : blank.start() + 1], self._lenient)
            # the blank line's end may be the line end of the next delimiter: an empty part
            self._position = blank.end() - 1
        elif not self._lenient:
            raise BadMultipart(f"headers of a part of more than {MAX_HEADER_BYTES} bytes")
        self._events.append(PartStart(headers))
        self._in_part = True
        self._parts += 1
        self._length, self._received = "" if self._lenient else headers.get("content-length", ""), 0

    def _read_data(self, delimiter: bytes) -> Generator[None, None, bool]:
        """The data of a part, or the preamble, up to the next delimiter; whether that is the closing one."""
        unread = 1  # of the bytes from the position, those that are no data
        while True:
            data, search = self._data, self._position
            start = search + unread
            while (found := data.find(delimiter, search)) >= 0:
                after = found + len(delimiter)
                end = found - 1 if found > start and data[found - 1] == 13 else found
                if match := _AFTER_DELIMITER.match(data, after, after + MAX_PADDING_BYTES):
                    self._give(data, start, end)
                    self._end_part()
                    self._position = match.end() - 1
                    return match.group(1) is not None
                if len(data) - after < MAX_PADDING_BYTES and _AFTER_DELIMITER_CUT.fullmatch(data, after):
                    break
                search = found + 1  # a line that only begins like the delimiter is data
            else:
                end = len(data) - len(delimiter)
            if end > start:  # give away what cannot belong to a delimiter
                self._give(data, start, end)
                self._position, unread = end, 0
            yield

    def _give(self, data: bytes, start: int, end: int) -> None:
        if self._in_part and end > start:
            self._events.append(PartData(data[start:end]))
            self._received += end - start

    def _end_part(self) -> None:
        if not self._in_part:
            return
        said = self._length
        if said.isdecimal() and (said.lstrip("0") or "0") != str(self._received):
            raise BadMultipart(f"a part has {self._received} bytes, its Content-Length is {said[:20]}")
        self._events.append(PartEnd())
        self._in_part = False


def _parse_headers(block: bytes, lenient: bool) -> dict[str, str]:
    headers: dict[str, str] = {}
    text = block.decode("latin-1")
    if "\n " in text or "\n\t" in text:
        text = _FOLD.sub(" ", text)
    for line in text.split("\n"):
        name, colon, value = line.partition(":")
        if colon:
            name, value = name.strip().lower(), value.strip()
            if not lenient and name in _CODED and value.lower() not in _CODED[name]:
                raise BadMultipart(f"a part has {name}: {value[:40]}")
            headers.setdefault(name, value)
    return headers


@attrs.frozen
class Part:
    """One whole part."""

    headers: Mapping[str, str]
    data: bytes

    @property
    def media_type(self) -> MediaType | None:
        """What Content-Type says; None where it is missing or invalid."""
        return parse_media_type(self.headers.get("content-type", ""))


class PartCollector:
    """Collects whole parts. Nothing it gave is to be trusted before `close` returned.

    *max_parts*: how many parts make sense. The caller bounds the bytes.
    """

    def __init__(self, boundary: bytes | None, max_parts: int) -> None:
        self._parser = MultipartParser(boundary)
        self._max_parts = max_parts
        self._count = 0
        self._headers: Mapping[str, str] = {}
        self._data = Gathered()

    def feed(self, chunk: bytes) -> list[Part]:
        """Take the next bytes; return the parts that they complete. Raises `BadMultipart`."""
        parts: list[Part] = []
        for event in self._parser.feed(chunk):
            if isinstance(event, PartData):
                self._data.add(event.data)
            elif isinstance(event, PartStart):
                self._count += 1
                if self._count > self._max_parts:
                    raise BadMultipart(f"more than {self._max_parts} parts")
                self._headers = event.headers
            elif isinstance(event, PartEnd):
                parts.append(self._part())
        return parts

    def close(self, framed: bool = False) -> list[Part]:
        """The body has ended; return the part that this completes, if any: see `MultipartParser.close`."""
        return [self._part() for event in self._parser.close(framed) if isinstance(event, PartEnd)]

    def _part(self) -> Part:
        data, self._data = self._data.whole(), Gathered()
        return Part(self._headers, data)
