"""ETag, If-None-Match, Range and If-Range."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.dicom.multipart_writer import content_digest
from twistedproxy.server.conditional import ByteRange, entity_tag, matches_none, requested_range
from twistedproxy.server.problems import Problem

ETAG = b'"abc"'


class EntityTagTests(SynchronousTestCase):
    def test_follows_from_the_content(self) -> None:
        """The same type and bytes give the same tag, however they are cut; others give another."""
        tag = entity_tag(b"image/jpeg", content_digest([b"abc", b"def"]))
        self.assertEqual(tag, entity_tag(b"image/jpeg", content_digest([b"abcdef"])))
        self.assertNotEqual(tag, entity_tag(b"image/jpeg", content_digest([b"abcdeg"])))
        self.assertNotEqual(tag, entity_tag(b"image/jp2", content_digest([b"abcdef"])))
        self.assertRegex(tag.decode(), r'^"[0-9a-f]{32}"$')

    def test_if_none_match(self) -> None:
        """The tag is found in lists, weak or strong, and by a star; not inside another tag."""
        for value in (b'"abc"', b'W/"abc"', b'"x", "abc"', b'"x,y" , W/"abc"', b"*", b" * "):
            self.assertTrue(matches_none(value, ETAG), value)
        self.assertFalse(matches_none(None, ETAG))
        for value in (b"", b'"abcd"', b'"xabc"', b"abc", b'"ABC"', b'"x, abc"', b"\xff\x00"):
            self.assertFalse(matches_none(value, ETAG), value)


class RangeTests(SynchronousTestCase):
    def test_satisfiable(self) -> None:
        """A first and last position, an open end and a suffix select bytes, cut at the end."""
        cases = [
            (b"bytes=0-9", (0, 10)),
            (b"bytes=0-65535", (0, 100)),
            (b"bytes=99-", (99, 100)),
            (b"bytes=-1", (99, 100)),
            (b"bytes=-1000", (0, 100)),
            (b"BYTES = 5 - 5", (5, 6)),
            (b"bytes=0000000000000000000000001-2", (1, 3)),
            (b"bytes=0-" + b"9" * 5000, (0, 100)),
            (b"bytes=-" + b"9" * 5000, (0, 100)),
        ]
        for value, (start, stop) in cases:
            self.assertEqual(requested_range(value, None, ETAG, 100), ByteRange(start, stop, 100), value)

    def test_content_range(self) -> None:
        """The 206 says which bytes of how many."""
        self.assertEqual(ByteRange(0, 10, 100).content_range, b"bytes 0-9/100")

    def test_ignored(self) -> None:
        """Several ranges, other units and malformed ones get the whole answer."""
        for value in (None, b"", b"bytes=0-1,5-6", b"items=0-1", b"bytes=-", b"bytes=5-4", b"bytes=a-b", b"bytes=1--2"):
            self.assertIsNone(requested_range(value, None, ETAG, 100), value)
        self.assertIsNone(requested_range(b"bytes=" + b"9" * 50 + b"-" + b"8" * 50, None, ETAG, 100))

    def test_unsatisfiable(self) -> None:
        """What lies past the end is a 416 that says the size."""
        for value in (b"bytes=100-", b"bytes=100-200", b"bytes=-0", b"bytes=" + b"9" * 5000 + b"-"):
            problem = self.assertRaises(Problem, requested_range, value, None, ETAG, 100)
            self.assertEqual(problem.status, 416, value)
            self.assertIn((b"Content-Range", b"bytes */100"), problem.headers)

    def test_if_range(self) -> None:
        """A range counts only if If-Range is exactly the tag: no weak one, no other, no date."""
        self.assertEqual(requested_range(b"bytes=0-1", ETAG, ETAG, 100), ByteRange(0, 2, 100))
        for value in (b'W/"abc"', b'"x"', b"Sat, 29 Oct 1994 19:43:31 GMT", b""):
            self.assertIsNone(requested_range(b"bytes=0-1", value, ETAG, 100), value)
