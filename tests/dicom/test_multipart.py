from __future__ import annotations

import time

from twisted.trial.unittest import SynchronousTestCase

from tests.properties import given, settings, st
from twistedproxy.dicom.media_types import parse_media_type
from twistedproxy.dicom.multipart import (
    MAX_BOUNDARY_BYTES,
    MAX_HEADER_BYTES,
    BadMultipart,
    End,
    Event,
    MultipartParser,
    Part,
    PartCollector,
    PartData,
    PartEnd,
    PartStart,
)
from twistedproxy.dicom.multipart_writer import build
from twistedproxy.dicom.transfer_syntaxes import JPEG_BASELINE

BODY = (
    b"preamble\r\n--b\r\nContent-Type: image/jpeg\r\nX-Folded: one\r\n two\r\n\r\nfirst\r\n--bogus\r\n--b-\r\nend"
    b"\r\n--b  \r\n\r\n"  # no headers, nothing inside
    b"\r\n--b\nA: B\nContent-Length: 7\n\nline\n\r\n\n--b--epilogue\r\n--b\r\n\r\nno part\r\n--b--"
)
FIRST = b"first\r\n--bogus\r\n--b-\r\nend"


def collect(body: bytes, boundary: bytes | None, size: int) -> list[Part]:
    """All parts of *body*, fed in chunks of *size*."""
    collector = PartCollector(boundary, 100)
    parts = [part for start in range(0, len(body), size) for part in collector.feed(body[start : start + size])]
    collector.close()
    return parts


def events_of(body: bytes, boundary: bytes | None, size: int) -> list[Event]:
    """All events of *body*, fed in chunks of *size*, neighbouring data joined."""
    parser = MultipartParser(boundary)
    joined: list[Event] = []
    for start in range(0, len(body), size):
        for event in parser.feed(body[start : start + size]):
            if isinstance(event, PartData) and joined and isinstance(joined[-1], PartData):
                joined[-1] = PartData(joined[-1].data + event.data)
            else:
                joined.append(event)
    parser.close()
    return joined


class ReadingTests(SynchronousTestCase):
    def test_every_cut(self) -> None:
        """Preamble, folded headers, look-alike delimiters, empty parts, bare LF and epilogue, in chunks of any size."""
        expected = [
            PartStart({"content-type": "image/jpeg", "x-folded": "one two"}),
            PartData(FIRST),
            PartEnd(),
            PartStart({}),
            PartEnd(),
            PartStart({"a": "B", "content-length": "7"}),
            PartData(b"line\n\r\n"),
            PartEnd(),
            End(),
        ]
        for size in range(1, len(BODY) + 1):
            self.assertEqual(events_of(BODY, b"b", size), expected, size)

    def test_every_single_cut(self) -> None:
        """Two chunks, cut at each byte, give what one gives."""
        whole = [(p.headers, p.data) for p in collect(BODY, b"b", len(BODY))]
        for cut in range(len(BODY)):
            collector = PartCollector(b"b", 1000)
            parts = [*collector.feed(BODY[:cut]), *collector.feed(BODY[cut:])]
            self.assertEqual([(p.headers, p.data) for p in parts], whole)

    def test_every_truncation(self) -> None:
        """A body that lacks any of the bytes up to its closing delimiter is not whole."""
        complete = BODY.index(b"--b--epi") + len(b"--b--")
        for length in range(complete):
            self.assertRaises(BadMultipart, collect, BODY[:length], b"b", 7)
        self.assertEqual(len(collect(BODY[:complete], b"b", 7)), 3)

    def test_no_boundary_given(self) -> None:
        """A boundary that stands only in the body is read from its first line, in chunks of any size."""
        body = b"\r\n--odd boundary  \r\nA: b\r\n\r\none\r\n--odd boundary\r\n\r\ntwo\r\n--odd boundary--\r\n"
        for size in range(1, len(body) + 1):
            self.assertEqual([part.data for part in collect(body, None, size)], [b"one", b"two"])

    def test_no_boundary_anywhere(self) -> None:
        """Without a boundary given, a body that begins otherwise is refused at once."""
        for body in (b"<html>", b"-x\r\n", b"--\r\nA: b\r\n\r\n", b"--" + b"x" * 1000):
            self.assertRaises(BadMultipart, collect, body, None, 1)
            self.assertRaises(BadMultipart, collect, body, None, 1000)

    def test_no_parts(self) -> None:
        """A closing delimiter alone is a whole body without parts."""
        self.assertEqual(events_of(b"--b--", b"b", 1), [End()])

    def test_part_that_ends_at_its_blank_line(self) -> None:
        """The blank line after the headers may be the line end before the next delimiter."""
        body = b"--b\r\nA: b\r\n\r\n--b\r\nA: c\n\n--b--"
        for size in range(1, len(body) + 1):
            self.assertEqual([(p.headers["a"], p.data) for p in collect(body, b"b", size)], [("b", b""), ("c", b"")])

    def test_bounds(self) -> None:
        """Endless headers and boundaries, and too many parts end in an error; endless padding is data."""
        self.assertRaises(BadMultipart, collect, b"--b\r\n" + b"x" * (MAX_HEADER_BYTES + 10), b"b", 1000)
        self.assertRaises(BadMultipart, MultipartParser, b"b" * (MAX_BOUNDARY_BYTES + 1))
        self.assertEqual(collect(b"--b" + b" " * 1000 + b"\r\n\r\n\r\n--b--", b"b", 10), [])
        body = b"--b\r\n\r\n12345678\r\n--b\r\n\r\n9\r\n--b--"
        self.assertEqual(len(PartCollector(b"b", 2).feed(body)), 2)
        self.assertRaises(BadMultipart, PartCollector(b"b", 1).feed, body)

    def test_content_length_proves_nothing_but_errors(self) -> None:
        """A part's Content-Length never ends it; one that does not agree with the delimiter is an error."""
        for said in (b"3", b"5", b"9" * 30):
            body = b"--b\r\nContent-Length: " + said + b"\r\n\r\nfour\r\n--b--"
            self.assertRaises(BadMultipart, events_of, body, b"b", 1000)
            self.assertRaises(BadMultipart, collect, body, b"b", 1000)
        for said in (b"4", b"", b"x", b"-4"):
            body = b"--b\r\nContent-Length: " + said + b"\r\n\r\nfour\r\n--b--"
            self.assertEqual(collect(body, b"b", 1)[0].data, b"four")

    def test_coded_parts(self) -> None:
        """A part whose bytes are coded, or a piece of something, is an error; one that says that it is neither, is not."""
        for field in (
            b"Content-Encoding: gzip",
            b"Content-Encoding: identity\r\nContent-Encoding: gzip",
            b"Content-Transfer-Encoding: base64",
            b"content-transfer-encoding: Quoted-Printable",
            b"Content-Range: bytes 0-3/9",
        ):
            body = b"--b\r\n" + field + b"\r\n\r\nfour\r\n--b--"
            self.assertRaises(BadMultipart, collect, body, b"b", 7)
        for field in (
            b"Content-Encoding: identity",
            b"Content-Transfer-Encoding: Binary",
            b"Content-Transfer-Encoding: 8bit",
        ):
            body = b"--b\r\n" + field + b"\r\n\r\nfour\r\n--b--"
            self.assertEqual(collect(body, b"b", 7)[0].data, b"four")

    def test_end_without_dashes(self) -> None:
        """Of a body that is known to be all there, a delimiter at the very end closes it; less does not, nor nothing."""
        for start in (b"", b"\r\n"):
            for end in (b"", b"-", b"\r\n", b"\n", b"--"):
                body = start + b"--b\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b" + end
                for size in range(1, len(body) + 1):
                    collector = PartCollector(b"b", 100)
                    parts = [p for at in range(0, len(body), size) for p in collector.feed(body[at : at + size])]
                    parts += collector.close(framed=True)
                    self.assertEqual([part.data for part in parts], [b"one", b"two"])
        for body in (
            b"--b\r\n\r\none",
            b"--b\r\n\r\none\r\n",
            b"--b\r\n\r\none\r\n--",
            b"--b\r\n\r\none\r\n--b\r\nA: b",
            b"--b\r\n\r\none\r\n--b\r\nA: b\r\n",
            b"--b\r\n\r\none\r\n--bb",
            b"--b\r\n\r\none\r\n--b\r",
            b"--b\r\n\r\none\r\n--b\r\n\r\n",
            b"--b\r\n",
            b"--b",
            b"",
        ):
            collector = PartCollector(b"b", 100)
            collector.feed(body)
            self.assertRaises(BadMultipart, collector.close, framed=True)

    def test_media_type_of_a_part(self) -> None:
        """A part says its media type, or nothing."""
        self.assertIsNone(Part({}, b"").media_type)
        media_type = Part({"content-type": "image/jpeg;transfer-syntax=1.2"}, b"").media_type
        assert media_type is not None
        self.assertEqual(media_type.transfer_syntax, "1.2")

    @settings(max_examples=300)
    @given(
        st.lists(st.text("\r\n-b x", max_size=30).map(str.encode), max_size=5),
        st.sampled_from([b"\r\n", b"\n"]),
        st.integers(1, 20),
    )
    def test_parts_of_line_ends_and_dashes(self, parts: list[bytes], newline: bytes, size: int) -> None:
        """Parts made of what delimiters are made of come back as they went in, whatever the cut."""
        boundary = b"b-b bb--"
        body = b"".join(b"--" + boundary + newline + newline + part + newline for part in parts)
        body += b"--" + boundary + b"--"
        if any(b"--" + boundary in newline + part for part in parts):
            return
        # Where line ends are LF, a CR before the delimiter cannot be told from a part of it.
        expected = [part[:-1] if newline == b"\n" and part.endswith(b"\r") else part for part in parts]
        self.assertEqual([part.data for part in collect(body, boundary, size)], expected)

    @settings(max_examples=300)
    @given(
        st.lists(st.sampled_from([b"--b", b"\r\n", b"\n", b"--", b":", b"x", b" "])).map(b"".join), st.integers(1, 9)
    )
    def test_any_bytes_any_cut(self, body: bytes, size: int) -> None:
        """Whatever the bytes, the cut changes neither the parts nor whether there is an error."""

        def outcome(size: int) -> object:
            try:
                return events_of(body, b"b", size)
            except BadMultipart:
                return "bad"

        self.assertEqual(outcome(size), outcome(len(body) + 1))


class SpeedTests(SynchronousTestCase):
    """64 MB in 64 kB chunks; it takes 0.1 s, and 6.5 s where each chunk makes a parser look at all before it."""

    def assert_quick(self, body: bytes, count: int) -> None:
        started = time.process_time()
        parser = MultipartParser(b"boundary")
        seen = 0
        for start in range(0, len(body), 65536):
            for event in parser.feed(body[start : start + 65536]):
                seen += isinstance(event, PartEnd)
        parser.close()
        self.assertEqual(seen, count)
        self.assertLess(time.process_time() - started, 1.0)

    def test_one_part(self) -> None:
        """One part of 64 MB."""
        self.assert_quick(b"--boundary\r\n\r\n" + b"\r\n--bound" * (64 << 17) + b"\r\n--boundary--", 1)

    def test_many_parts(self) -> None:
        """7,700 parts of 8.7 kB."""
        part = b"--boundary\r\nContent-Type: image/jpeg\r\nContent-Length: 8700\r\n\r\n" + b"\xff\n" * 4350 + b"\r\n"
        self.assert_quick(part * 7700 + b"--boundary--", 7700)

    def test_one_long_line_of_almost_headers(self) -> None:
        """Headers that come byte by byte are not searched from their start each time."""
        body = b"--boundary\r\n" + b"x" * (MAX_HEADER_BYTES - 100) + b"\r\n\r\n\r\n--boundary--"
        started = time.process_time()
        events_of(body, b"boundary", 1)
        self.assertLess(time.process_time() - started, 0.5)


class WritingTests(SynchronousTestCase):
    def test_exact_bytes(self) -> None:
        """The bytes, letter case and quotes that clients rely on."""
        body = build([b"one", b""], "image/jpeg", JPEG_BASELINE)
        boundary = body.digest.encode()
        self.assertEqual(
            body.content_type,
            b'multipart/related; type="image/jpeg"; transfer-syntax=1.2.840.10008.1.2.4.50; boundary=' + boundary,
        )
        head = b"Content-Type: image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50\r\nContent-Length: "
        expected = b"--%b\r\n%b3\r\n\r\none\r\n--%b\r\n%b0\r\n\r\n\r\n--%b--\r\n"
        expected %= (boundary, head, boundary, head, boundary)
        self.assertEqual(b"".join(body.chunks), expected)

    def test_same_parts_same_bytes(self) -> None:
        """The boundary follows from the parts: equal for equal ones, another for others, wherever they are cut."""
        made = build([b"one", b"two"], "image/jpeg", JPEG_BASELINE)
        self.assertEqual(made, build([b"one", b"two"], "image/jpeg", JPEG_BASELINE))
        others = [
            build([b"onet", b"wo"], "image/jpeg", JPEG_BASELINE),
            build([b"one", b"two", b""], "image/jpeg", JPEG_BASELINE),
            build([b"two", b"one"], "image/jpeg", JPEG_BASELINE),
            build([b"one", b"two"], "image/jpeg", None),
        ]
        self.assertEqual(len({made.digest, *(other.digest for other in others)}), 5)

    def test_nothing_to_inject(self) -> None:
        """A type or UID that would break out of its header is refused; so is a body without parts."""
        self.assertRaises(ValueError, build, [b""], "image/jpeg\r\nX: y", None)
        self.assertRaises(ValueError, build, [b""], "image/jpeg", "1.2\r\nX: y")
        self.assertRaises(ValueError, build, [], "image/jpeg", None)

    @given(st.lists(st.binary(max_size=100), min_size=1, max_size=5), st.integers(1, 50))
    def test_reads_back(self, parts: list[bytes], size: int) -> None:
        """What is written is read back as it was, by the boundary that the Content-Type gives."""
        body = build(parts, "application/octet-stream", "1.2.840.10008.1.2.1")
        boundary = parse_media_type(body.content_type).boundary
        self.assertEqual([part.data for part in collect(b"".join(body.chunks), boundary, size)], parts)
