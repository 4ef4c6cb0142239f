"""Which content coding a client takes, and what becomes of the headers."""

from __future__ import annotations

from typing import Optional

from twisted.trial.unittest import SynchronousTestCase

from tests.properties import given, st
from twistedproxy.server.compression import Choice, altered, choose, may_transform, varied

BOTH = ("zstd", "gzip")


class ChoiceTests(SynchronousTestCase):
    """Accept-Encoding (RFC 9110 section 12.5.3)."""

    def test_choices(self) -> None:
        """Weights decide, the better coding among equal ones, and identity only where it is named with more."""
        cases: list[tuple[Optional[bytes], Optional[str]]] = [
            (None, None),
            (b"", None),
            (b"identity", None),
            (b"gzip", "gzip"),
            (b"x-gzip", "gzip"),
            (b"GZip , br", "gzip"),
            (b"gzip, deflate, br, zstd", "zstd"),
            (b"gzip;q=1.0, zstd;q=0.5", "gzip"),
            (b"gzip; q=0.5,zstd;q=0", "gzip"),
            (b"gzip;q=0", None),
            (b"gzip;q=0.000, *", None),
            (b"br", None),
            (b"*", "gzip"),
            (b"*;q=0.1", "gzip"),
            (b"*;q=0", None),
            (b"zstd, *;q=0", "zstd"),
            (b"gzip;q=0.5, identity", None),
            (b"gzip;q=0.5, identity;q=0.5", "gzip"),
            (b"gzip;q=high, zstd;q=0.1", "zstd"),
            (b"gzip;q=-1", None),
            (b"gzip;q=2", None),
            (b",,;,gzip", "gzip"),
        ]
        for header, coding in cases:
            self.assertEqual(choose(header, BOTH).coding, coding, header)

    def test_no_library(self) -> None:
        """What cannot be made is not chosen."""
        self.assertEqual(choose(b"zstd, gzip;q=0.1", ("gzip",)).coding, "gzip")
        self.assertEqual(choose(b"zstd", ("gzip",)).coding, None)

    def test_plain_refused(self) -> None:
        """A client that refuses plain answers is told apart, by name or by a star."""
        for header in (b"gzip, identity;q=0", b"gzip, *;q=0"):
            self.assertEqual(choose(header, BOTH), Choice("gzip", required=True))
        for header in (b"gzip", b"gzip, *;q=0, identity;q=0.1", b"gzip, *;q=0.5"):
            self.assertEqual(choose(header, BOTH), Choice("gzip", required=False))

    @given(st.binary(max_size=60))
    def test_anything(self, header: bytes) -> None:
        """Nothing that a client can write breaks it."""
        self.assertIn(choose(header, BOTH).coding, (None, *BOTH))


class HeaderTests(SynchronousTestCase):
    """What describes bytes that are no longer the same."""

    def test_altered(self) -> None:
        """The tag becomes weak once; lengths, digests and ranges go; the rest stays."""
        headers = (
            (b"Content-Type", b"application/dicom+json"),
            (b"etag", b'"a"'),
            (b"ETag", b'W/"b"'),
            (b"Content-Length", b"9"),
            (b"Accept-Ranges", b"bytes"),
            (b"Content-MD5", b"x"),
            (b"Repr-Digest", b"sha-256=:x:"),
            (b"Last-Modified", b"then"),
        )
        self.assertEqual(
            altered(headers),
            (
                (b"Content-Type", b"application/dicom+json"),
                (b"etag", b'W/"a"'),
                (b"ETag", b'W/"b"'),
                (b"Last-Modified", b"then"),
            ),
        )

    def test_varied(self) -> None:
        """Vary names Accept-Encoding, once."""
        self.assertEqual(varied(()), ((b"Vary", b"Accept-Encoding"),))
        for value in (b"Accept, accept-encoding", b"*"):
            self.assertEqual(varied(((b"vary", value),)), ((b"vary", value),))

    def test_no_transform(self) -> None:
        """The origin can forbid it."""
        self.assertFalse(may_transform(((b"Cache-Control", b"max-age=1, No-Transform"),)))
        self.assertTrue(may_transform(((b"Cache-Control", b"max-age=1"),)))
