from __future__ import annotations

import time

from twisted.trial.unittest import SynchronousTestCase

from tests.properties import given, st
from twistedproxy.dicom.media_types import (
    MAX_LENGTH,
    BadMediaType,
    covers,
    parse_media_type,
    parse_media_type_list,
)

BASELINE = "1.2.840.10008.1.2.4.50"

TOKEN = st.text("abcdefghijklmnopqrstuvwxyz0123456789.-+", min_size=1, max_size=12)
VALUE = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20).map(
    lambda text: text.strip().strip('"').strip()
)


def quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


class WhatClientsSend(SynchronousTestCase):
    """Accept headers from the sources of real clients."""

    def assert_reads(self, text: str, *expected: tuple[str, str | None, str | None]) -> None:
        found = parse_media_type_list(text)
        self.assertEqual([(m.type, m.part_type, m.transfer_syntax) for m in found], list(expected))

    def test_dicomweb_client(self) -> None:
        """Several multipart types joined by commas, each with its own parameters."""
        self.assert_reads('multipart/related; type="*/*"', ("multipart/related", "*/*", None))
        self.assert_reads(
            f'multipart/related; type="image/jpeg"; transfer-syntax={BASELINE}, '
            'multipart/related; type="application/octet-stream"',
            ("multipart/related", "image/jpeg", BASELINE),
            ("multipart/related", "application/octet-stream", None),
        )

    def test_cornerstone(self) -> None:
        """An unquoted type holds a slash."""
        self.assert_reads(
            "multipart/related; type=application/octet-stream; transfer-syntax=*",
            ("multipart/related", "application/octet-stream", "*"),
        )

    def test_ohif(self) -> None:
        """A quoted star is a star; of a doubled parameter the first concrete one wins, in either order."""
        expected = ("multipart/related", "application/octet-stream", "*")
        self.assert_reads('multipart/related; type="application/octet-stream"; transfer-syntax="*"', expected)
        for order in (
            f'transfer-syntax="{BASELINE}"; transfer-syntax="*"',
            f"transfer-syntax=*;transfer-syntax={BASELINE}",
        ):
            self.assert_reads(
                f"multipart/related; type=image/jpeg; {order}", ("multipart/related", "image/jpeg", BASELINE)
            )

    def test_star_then_nothing(self) -> None:
        """A doubled parameter without a value takes nothing away."""
        self.assert_reads("a/b; transfer-syntax=*; transfer-syntax=", ("a/b", "a/b", "*"))

    def test_ez_wsi(self) -> None:
        """A single part type carries a transfer syntax too."""
        self.assert_reads("application/dicom; transfer-syntax=*", ("application/dicom", "application/dicom", "*"))

    def test_any_order_and_case(self) -> None:
        """Names and types are read whatever their letter case, order and spaces."""
        self.assert_reads(
            f'MULTIPART/Related ;Transfer-Syntax = {BASELINE} ; TYPE = "Image/JPEG"',
            ("multipart/related", "image/jpeg", BASELINE),
        )

    def test_empty_or_missing(self) -> None:
        """No header and an empty one are empty lists."""
        for text in (None, "", "  ", ",", b" , ,"):
            self.assertEqual(parse_media_type_list(text), [])

    def test_weights(self) -> None:
        """q is a weight and no parameter; what is no weight counts as not said."""
        found = parse_media_type_list("image/png;q=0.5, image/jpeg; q=0, */*;q=.2, text/html;q=x, a/b;q=nan, c/d;q=1.7")
        self.assertEqual([m.q for m in found], [0.5, 0.0, 0.2, 1.0, 1.0, 1.0])
        self.assertEqual([dict(m.parameters) for m in found], [{}] * 6)

    def test_java(self) -> None:
        """A lone star means any type."""
        self.assertEqual([m.type for m in parse_media_type_list("text/html, *; q=.2")], ["text/html", "*/*"])

    def test_separators_inside_quotes(self) -> None:
        """Commas, semicolons and escaped quotes inside quotes separate nothing."""
        found = parse_media_type_list(r'a/b; x="1,2;3\"4"; y=5, c/d')
        self.assertEqual([dict(m.parameters) for m in found], [{"x": '1,2;3"4', "y": "5"}, {}])

    def test_nonsense_between(self) -> None:
        """What is no media type is left out and harms none beside it."""
        self.assertEqual([m.type for m in parse_media_type_list("image, a b/c, image/jpeg, /, x/")], ["image/jpeg"])


class WhatStoresSend(SynchronousTestCase):
    """Content-Type headers of real stores."""

    def test_orthanc(self) -> None:
        """The parts' parameters stand inside the quotes of the type."""
        found = parse_media_type(f'multipart/related; type="image/jpeg; transfer-syntax={BASELINE}"; boundary=f3-a')
        self.assertEqual((found.part_type, found.transfer_syntax, found.boundary), ("image/jpeg", BASELINE, b"f3-a"))

    def test_boundaries(self) -> None:
        """A boundary may be quoted or not, hold commas and colons, or be missing."""
        for text, expected in [
            ('multipart/related; boundary="a b,c;d"; type=a/b', b"a b,c;d"),
            ("multipart/related; boundary==_x:1,2", b"=_x:1,2"),
            ("multipart/related; type=a/b", None),
            ('multipart/related; boundary=""', None),
            ("multipart/related;type='a/b';boundary='abc'", None),
            ("multipart/related; boundary=it's", b"it's"),
        ]:
            self.assertEqual(parse_media_type(text).boundary, expected)

    def test_single_quotes(self) -> None:
        """dicomweb-pacs has single quotes, which mean nothing in a type, and may belong to a boundary: the body tells."""
        found = parse_media_type("multipart/related;start=1;type='application/octed-stream';boundary='0a1b'")
        self.assertEqual((found.part_type, found.boundary), ("application/octed-stream", None))

    def test_no_media_type(self) -> None:
        """What is no media type at all is refused."""
        for text in ("", "jpeg", ";", "a/b/c"):
            self.assertIsNone(parse_media_type(text), text)

    def test_quotes_left_open(self) -> None:
        """Quotes that nobody closes run to the end."""
        self.assertEqual(parse_media_type('multipart/related; boundary="abc').boundary, b"abc")


class Properties(SynchronousTestCase):
    @given(TOKEN, TOKEN, st.lists(st.tuples(TOKEN, VALUE), unique_by=lambda pair: pair[0], max_size=5))
    def test_round_trip(self, major: str, minor: str, pairs: list[tuple[str, str]]) -> None:
        """Whatever is quoted properly is read as it was meant."""
        pairs = [(name, value) for name, value in pairs if name not in ("q", "type")]
        text = f"{major}/{minor}" + "".join(f"; {name}={quote(value)}" for name, value in pairs)
        expected = dict(pairs)
        self.assertEqual(dict(parse_media_type(text).parameters), expected)
        self.assertEqual([dict(m.parameters) for m in parse_media_type_list(f"{text},{text}")], [expected] * 2)

    @given(st.text(max_size=200) | st.text('ab/*;,="\\ ', max_size=200))
    def test_any_text(self, text: str) -> None:
        """No text makes the list reader fail."""
        for media_type in parse_media_type_list(text):
            self.assertIn("/", media_type.type)

    def test_hostile_text_in_linear_time(self) -> None:
        """The longest accepted nonsense is read in milliseconds."""
        for unit in ('"', '\\"', '"\\', "a/b;", "a/b,", ';"', 'a/b; type="x;', '="a"b'):
            text = (unit * MAX_LENGTH)[:MAX_LENGTH]
            started = time.process_time()
            parse_media_type_list(text)
            self.assertLess(time.process_time() - started, 0.25, unit)

    def test_too_long(self) -> None:
        """Longer text than the limit is refused."""
        self.assertRaises(BadMediaType, parse_media_type_list, "a" * (MAX_LENGTH + 1))

    def test_ranges(self) -> None:
        """Ranges take in what they should, and nothing by mere likeness."""
        self.assertTrue(covers("*/*", "image/jpeg") and covers("image/*", "image/jpeg"))
        self.assertFalse(covers("image/jp", "image/jpeg") or covers("video/*", "image/jpeg"))
