from __future__ import annotations

import contextlib
import gc
import json
import math
import tracemalloc
import weakref
from types import GeneratorType
from typing import Any, Optional
from unittest import SkipTest

import attrs
import ijson
from pydicom.dataset import Dataset, FileMetaDataset
from twisted.trial.unittest import SynchronousTestCase

from tests.properties import given, settings, st
from twistedproxy.dicom import lenient_json
from twistedproxy.dicom.json_events import BadMetadata, MetadataEvents
from twistedproxy.dicom.lenient_json import LenientJson
from twistedproxy.dicom.metadata import InstanceMetadata, MetadataParser
from twistedproxy.dicom.transfer_syntaxes import JPEG_2000, JPEG_BASELINE
from twistedproxy.imaging.describe import Description, SparseDescription


def element(vr: str, *values: object) -> dict[str, Any]:
    return {"vr": vr, "Value": list(values)} if values else {"vr": vr}


SLIDE: dict[str, Any] = {
    "00080016": element("UI", "1.2.840.10008.5.1.4.1.1.77.1.6"),
    "00083002": element("UI", JPEG_BASELINE),
    "00100010": element("PN", {"Alphabetic": "A^B"}),
    "00209167": element("AT", "52009230"),
    "00209311": element("CS", "TILED_FULL"),
    "00280002": element("US", 3),
    "00280004": element("CS", "YBR_FULL_422"),
    "00280006": element("US", 0),
    "00280008": element("IS", 10000),
    "00280010": element("US", 240),
    "00280011": element("US", 256),
    "00280100": element("US", 8),
    "00280101": element("US", 8),
    "00280102": element("US", 7),
    "00280103": element("US", 0),
    "00480006": element("UL", 25601),
    "00480007": element("UL", 23999),
    "00480105": element(
        "SQ", {"00282000": {"vr": "OB", "BulkDataURI": "http://store/bulk"}, "00480106": element("SH")}
    ),
    "00480302": element("UL", 2),
    "00480303": element("UL", 3),
    "52009229": element(
        "SQ", {"00289110": element("SQ", {"00280008": element("IS", 5), "00280030": element("DS", 1)})}
    ),
}
FACTS = InstanceMetadata(
    frames=10000,
    rows=240,
    columns=256,
    total_rows=23999,
    total_columns=25601,
    organization="TILED_FULL",
    samples_per_pixel=3,
    photometric_interpretation="YBR_FULL_422",
    transfer_syntax=JPEG_BASELINE,
    sop_class="1.2.840.10008.5.1.4.1.1.77.1.6",
    has_icc_profile=True,
)


def parse(answer: object, size: int = 1 << 20, uids: Optional[tuple[str, str, str]] = None) -> InstanceMetadata:
    data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    parser = MetadataParser(uids)
    for start in range(0, len(data), size):
        parser.feed(data[start : start + size])
    return parser.close()


def changed(**elements: object) -> list[object]:
    return [{**SLIDE, **{name.removeprefix("t"): value for name, value in elements.items()}}]


def generators() -> int:
    """Readers of elements are generators, and what they read lives as long as they do."""
    return sum(isinstance(one, GeneratorType) for one in gc.get_objects())


class ReadingTests(SynchronousTestCase):
    def test_a_slide(self) -> None:
        """All facts of a slide are read, from its top level only, however the answer is cut."""
        data = json.dumps([SLIDE]).encode()
        for size in (1, 2, 3, 7, 100, len(data)):
            self.assertEqual(parse(data, size), FACTS)

    def test_nothing_said(self) -> None:
        """An instance that says nothing has one frame and no size."""
        self.assertEqual(parse([{}]), InstanceMetadata(frames=1))

    def test_elements_without_values(self) -> None:
        """Elements without values, with empty and with null ones count as missing."""
        for empty in (
            {"vr": "IS"},
            {"vr": "IS", "Value": []},
            {"vr": "IS", "Value": [None]},
            {"vr": "IS", "Value": [""]},
        ):
            found = parse(changed(t00280008=empty, t00480006=empty, t00083002=empty))
            self.assertEqual((found.frames, found.total_columns, found.transfer_syntax), (1, None, None))

    def test_numbers_as_texts(self) -> None:
        """A number may come as a text, or with a fraction of zero."""
        for value in ("10000", " 10000 ", 10000.0, "10000.0"):
            self.assertEqual(parse(changed(t00280008=element("IS", value))).frames, 10000)

    def test_impossible_values(self) -> None:
        """What is no count and what is no text is an error that names the attribute."""
        for value in (-1, 1.5, "x", "nan", 1e300, True, {"a": 1}.__repr__(), "9" * 30):
            error = self.assertRaises(BadMetadata, parse, changed(t00280008=element("IS", value)))
            self.assertIn("(0028,0008)", str(error))
        for text in (5, "x" * 1000):
            error = self.assertRaises(BadMetadata, parse, changed(t00080016=element("UI", text)))
            self.assertIn("(0008,0016)", str(error))

    def test_odd_depth(self) -> None:
        """What only pictures need counts as missing where it makes no sense: the bits that are allocated are stored."""
        for value in ("x", -1, 1.5, "", None, 17):
            odd = element("US", value)
            answer = changed(t00280100=element("US", 16), t00280101=odd, t00280102=odd, t00280103=odd, t00280006=odd)
            found = parse(answer)
            self.assertEqual((found.bits_stored, found.high_bit), (16, 15), value)
        upper = changed(t00280100=element("US", 16), t00280101=element("US", 12), t00280102=element("US", 15))
        self.assertEqual((parse(upper).bits_stored, parse(upper).high_bit), (12, 15))

    def test_huge_numbers(self) -> None:
        """A number that no attribute can have makes the metadata bad, wherever it stands; it does not end the process,
        as it would in a parser that makes integers of any size."""
        for number in (b"9" * 400, b"9" * 5000, b"-" + b"1" * 100_000):
            for tag in (b"00280008", b"00091001"):
                answer = b'[{"%s": {"vr": "IS", "Value": [%s]}}]' % (tag, number)
                self.assertRaises(BadMetadata, parse, answer)

    def test_malformed_where_it_does_not_matter(self) -> None:
        """What a strict parser refuses is dropped with the elements that are not read; where a count belongs it is none."""
        slide = json.dumps([SLIDE]).encode()
        for value in (
            b"18446744073709551615",
            b"-9223372036854775808",
            b"9" * 200,
            b"NaN",
            b"-Infinity,  Infinity",
            b"1e400",
            b"-1E+9999",
            b"1e999999999999999999999",
            b'"M\xfcller"',
            b'"\xed\xa0\x80 \\ud800"',
            b'"a\x00\x1b\tb"',
        ):
            private = b'{"00091001": {"vr": "UN", "Value": [%s]},' % value
            for answer in (slide.replace(b"{", private, 1), b"\xef\xbb\xbf" + slide.replace(b"{", private, 1)):
                for size in (1, 7, len(answer)):
                    self.assertEqual(parse(answer, size), FACTS)
            count = b'[{"00280008": {"vr": "IS", "Value": [%s]}}]' % value
            self.assertIn("(0028,0008)", str(self.assertRaises(BadMetadata, parse, count)))

    def test_blocks_of_any_size(self) -> None:
        """Wherever what was gathered ends, in a number, a word, an escape or a character, the same comes out."""
        text = b'[{"a": [18446744073709551615 ,NaN,-Infinity,1e999, 7],"b\\\\": "x, NaN\\\\\\", -NaN\xfc\xc3\xa9\x00 \\u00e9"},'
        text += b'NaN, 18446744073709551615,"", true, "18446744073709551615",[1e+400]]'
        whole = LenientJson()
        expected = whole.feed(text) + whole.close()
        strict = json.loads(expected, parse_constant=self.fail)
        self.assertEqual(strict[0]["a"], ["18446744073709551615", "NaN", "-Infinity", "1e999", 7])
        self.assertEqual(strict[1:], ["NaN", "18446744073709551615", "", True, "18446744073709551615", ["1e+400"]])
        for size in range(1, len(text)):
            for step in (1, size, size + 3):
                pieces = LenientJson(size)
                out = [pieces.feed(text[start : start + step]) for start in range(0, len(text), step)]
                self.assertEqual(b"".join(out) + pieces.close(), expected, (size, step))

    def test_texts_stay(self) -> None:
        """What is malformed as a number is left alone in a text, whatever quotes and backslashes stand before it."""
        for text in ("x, NaN", '", Infinity', "\\", '\\", -NaN, 18446744073709551615, "', "é, 1e999 \\ü\\"):
            for size in (1, 5, 1000):
                found = parse([{"00091001": element("LT", text), "00280004": element("CS", text), **SLIDE}], size)
                self.assertEqual(found, FACTS)
                found = parse([{"00091001": element("FD", math.nan), "00280004": element("CS", text)}], size)
                self.assertEqual(found.photometric_interpretation, text)

    def test_a_long_value(self) -> None:
        """A value that takes the parser more and more time with each piece is given up; many short ones are not."""
        self.patch(lenient_json, "MAX_VALUE", 1000)
        piece = b"A" * 100
        parser = MetadataParser()
        parser.feed(b'[{"00282000": {"vr": "OB", "InlineBinary": "')
        for _ in range(10):
            parser.feed(piece)
        self.assertRaises(BadMetadata, parser.feed, piece)
        self.assertEqual(parse(changed(t00081140=element("SQ", *[{"00091001": element("LO", "x" * 90)}] * 50))), FACTS)

    def test_order_of_transfer_syntaxes(self) -> None:
        """(0002,0010) goes before (0008,3002), wherever it stands; an empty one does not count."""
        self.assertEqual(parse(changed(t00020010=element("UI", JPEG_2000))).transfer_syntax, JPEG_2000)
        self.assertEqual(parse(changed(t00020010=element("UI"))).transfer_syntax, JPEG_BASELINE)

    def test_icc_profile(self) -> None:
        """A profile counts inline, by URI, of an optical path or the instance; not empty, not of something else."""
        inline = {"vr": "OB", "InlineBinary": "AAAA"}
        for paths, top, expected in [
            ([{"00282000": inline}], None, True),
            ([{}, {"00480106": element("SH", "1"), "00282000": inline}], None, True),
            ([{"00282000": {"vr": "OB"}, "00480106": element("SH", "Value")}], None, False),
            ([], {"vr": "OB", "BulkDataURI": "/x"}, True),
            ([], {"vr": "OB"}, False),
            ([{"00480106": {"vr": "OB", "BulkDataURI": "/x"}}], None, False),
        ]:
            answer = changed(t00480105=element("SQ", *paths), **({"t00282000": top} if top else {}))
            self.assertEqual(parse(answer).has_icc_profile, expected, (paths, top))
        self.assertFalse(parse([{"00480106": element("SQ", {"00282000": inline})}]).has_icc_profile)

    def test_not_one_object(self) -> None:
        """Metadata of one instance are an array of one object: a gateway's refusal is none, nor is a search's answer."""
        for answer in ([SLIDE, {}], [SLIDE, SLIDE], SLIDE, {"error": "access denied"}, [[SLIDE]]):
            self.assertRaises(BadMetadata, parse, answer)
        self.assertRaises(BadMetadata, parse, json.dumps([SLIDE]).encode()[:-1] + b", nonsense")

    def test_of_the_instance(self) -> None:
        """Only the metadata of the instance that was asked for are its metadata: study, series and instance are theirs."""
        uids = ("1.2", "1.2.3", "1.2.3.4")
        right = {"t0020000D": "1.2", "t0020000E": "1.2.3", "t00080018": "1.2.3.4"}
        elements = {name: element("UI", value) for name, value in right.items()}
        data = json.dumps(changed(**elements)).encode()
        for size in (1, len(data)):
            self.assertEqual(parse(data, size, uids), FACTS)
        for name in right:
            for wrong in (element("UI", "1.2.3.5"), element("UI"), element("UI", ""), element("UI", 5), {"vr": "UI"}):
                self.assertRaises(BadMetadata, parse, changed(**{**elements, name: wrong}), 1 << 20, uids)
            missing = {other: value for other, value in elements.items() if other != name}
            self.assertRaises(BadMetadata, parse, changed(**missing), 1 << 20, uids)
            other, right_one = element("UI", "9.9"), element("UI", right[name])
            for wrong in (
                element("UI", None, right[name]),
                element("UI", right[name], "9.9"),
                element("UI", right[name], right[name]),
                element("UI", right[name], {"Value": right[name]}),
                element("UI", {"Alphabetic": right[name]}),
                {"vr": "UI", "Value": {"a": right[name]}},
            ):
                self.assertRaises(BadMetadata, parse, changed(**{**elements, name: wrong}), 1 << 20, uids)
            for twin in (other, right_one, element("UI"), None, "9.9", [right[name]]):
                for pair in ((right_one, twin), (twin, right_one)):
                    first, second = (f'"{name[1:]}":{json.dumps(one)}' for one in pair)
                    rest = json.dumps(changed(**{key: value for key, value in elements.items() if key != name}))
                    twice = f"[{{{first},{second},{rest[2:]}".encode()
                    self.assertRaises(BadMetadata, parse, twice, 1 << 20, uids)
                    self.assertEqual(parse(twice), FACTS, "where any instance will do")
        nested = {**SLIDE, "00081115": element("SQ", {name[1:]: value for name, value in elements.items()})}
        self.assertRaises(BadMetadata, parse, [nested], 1 << 20, uids)

    def test_what_follows(self) -> None:
        """Behind the array only white space may come, however the answer is cut: a proxy's error page behind it, or another
        array, may be all that another reader sees."""
        data = json.dumps([SLIDE]).encode()
        block = lenient_json.BLOCK
        for rest in (
            b"<html>denied",
            json.dumps([{"error": 1}]).encode(),
            b"]",
            b",",
            b"null",
            b"nul",
            b"1",
            b'"',
            b'"x',
            b"{",
        ):
            for space in (b"", b"\r\n", b" " * (2 * block)):
                for size in (len(data), 1000, 1 << 20):
                    self.assertRaises(BadMetadata, parse, data + space + rest, size)
        for space in (b"\r\n", b"\0", b" \t\n" * block):
            self.assertEqual(parse(data + space, 1000), FACTS)
        for make in (Description, lambda: SparseDescription(InstanceMetadata(frames=1))):
            parser: MetadataEvents = make()
            with self.assertRaises(BadMetadata):
                parser.feed(data + b"<html>" + b" " * block)
            self.assertRaises(BadMetadata, parser.check_complete)

    def test_no_instance(self) -> None:
        """An empty array, an error page, another JSON and nothing at all are errors."""
        for answer in (b"[]", b"<html>", b"5", b'"x"', b"[[]]", b"", b"  ", b"null", b"\xff\xfe", b'[{"a":\xff}]'):
            self.assertRaises(BadMetadata, parse, answer)

    def test_every_truncation(self) -> None:
        """An answer that ends within its array is an error."""
        data = json.dumps(changed(t00480105=element("SQ"))).encode()
        for length in [*range(0, len(data) - 1, 7), len(data) - 2, len(data) - 1]:
            self.assertRaises(BadMetadata, parse, data[:length])
        self.assertEqual(parse(data + b"\r\n").frames, 10000)

    @settings(max_examples=200)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(max_size=9),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from([*SLIDE, "Value", "vr", "00282000"]), inner, max_size=4)
            ),
            max_leaves=20,
        )
    )
    def test_any_json(self, answer: object) -> None:
        """Any JSON gives facts or `BadMetadata`."""
        try:
            self.assertGreaterEqual(parse(answer).frames, 1)
        except BadMetadata:
            pass

    @settings(max_examples=200)
    @given(
        st.recursive(
            st.booleans()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.integers(1 - 2**63, 2**63 - 1)
            | st.text(),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
            max_leaves=20,
        ),
        st.booleans(),
        st.integers(1, 60),
        st.integers(1, 60),
    )
    def test_good_json_stays(self, answer: object, escape: bool, block: int, step: int) -> None:
        """JSON that any parser takes comes out as it was, whatever the blocks and pieces."""
        data = json.dumps(answer, ensure_ascii=escape).encode()
        text = LenientJson(block)
        out = [text.feed(data[start : start + step]) for start in range(0, len(data), step)]
        self.assertEqual(b"".join(out) + text.close(), data)

    def test_memory_stays_flat(self) -> None:
        """4 MB of per-frame functional groups leave nothing behind."""
        frame = json.dumps({"0048021A": element("SQ", {"0048021E": element("SL", 1), "0040072A": element("DS", 0.25)})})
        parser = MetadataParser()
        tracemalloc.start()
        try:
            parser.feed(json.dumps([SLIDE]).encode()[:-2] + b', "52009230": {"vr": "SQ", "Value": [')
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            chunk = f"{frame},".encode() * 250
            for _ in range(128):
                parser.feed(chunk)
            self.assertLess(tracemalloc.get_traced_memory()[1] - before, 200_000)
        finally:
            tracemalloc.stop()
        parser.feed(frame.encode() + b"]}}]")
        self.assertEqual(parser.close(), FACTS)

    def test_small_pieces_take_linear_time(self) -> None:
        """A long text with escapes goes to the event parser in few pieces, because that begins it anew with each."""
        text = LenientJson()
        answer = b'[{"00091001":{"vr":"UN","InlineBinary":"' + b"AB\\/" * 800_000 + b'"}}]'
        blocks = [text.feed(answer[start : start + 1460]) for start in range(0, len(answer), 1460)]
        blocks.append(text.close())
        self.assertEqual(b"".join(blocks), answer)
        again = sum(len(answer) - sum(map(len, blocks[:number])) for number, block in enumerate(blocks) if block)
        self.assertLess(again, 10 * len(answer))

    def test_long_numbers_end_at_once(self) -> None:
        """A number without an end is given up with the first block, not gathered."""
        parser = MetadataParser()
        parser.feed(b'[{"00091001":{"vr":"DS","Value":[')
        self.assertRaises(BadMetadata, parser.feed, b"9" * lenient_json.BLOCK)

    def test_nothing_stays_behind(self) -> None:
        """A parser is gone with its last user: after the end, after an error, and left in the middle of an element. No
        circle leads through ijson's objects, where the garbage collector sees nothing."""
        if ijson.backend != "yajl2_c":
            raise SkipTest("ijson has no C backend here")
        whole = json.dumps([SLIDE]).encode()
        sparse = InstanceMetadata(frames=2, rows=1, columns=1, total_rows=1, total_columns=2)
        middle = [whole.index(mark) for mark in (b'"00480106"', b"YBR_FULL_422", b'"00289110"')]
        answers = [whole, b"[{]", b'[{"00280008": {"vr": "IS", "Value": [1', *(whole[:length] for length in middle)]
        answers.append(b'[{"52009230": {"vr": "SQ", "Value": [{"0048021A": {"vr": "SQ", "Value": [{')
        gc.disable()
        self.addCleanup(gc.enable)
        gc.freeze()  # what is there already need not be looked at
        self.addCleanup(gc.unfreeze)
        before = generators()
        for make in (MetadataParser, Description, lambda: SparseDescription(sparse)):
            for answer in answers:
                parser: MetadataEvents = make()
                parser.feed(answer)
                with contextlib.suppress(BadMetadata):
                    parser.feed(b" " * lenient_json.BLOCK)
                self.assertGreaterEqual(generators(), before)
                gone = weakref.ref(parser)
                del parser
                self.assertEqual((gone(), generators()), (None, before), answer)


class FactsTests(SynchronousTestCase):
    def test_round_trip(self) -> None:
        """The stored form gives back all facts."""
        for facts in (FACTS, InstanceMetadata(frames=1)):
            self.assertEqual(InstanceMetadata.from_bytes(facts.to_bytes()), facts)

    def test_broken_stored_form(self) -> None:
        """Anything but this version's stored form is refused."""
        values = json.loads(FACTS.to_bytes())
        for broken in (
            b"",
            b"\xff",
            b"[]",
            b"{}",
            FACTS.to_bytes()[:-1],
            json.dumps({**values, "more": 1}).encode(),
            json.dumps({**values, "frames": "1"}).encode(),
            json.dumps({**values, "frames": True}).encode(),
            json.dumps({**values, "rows": None}).encode(),
        ):
            self.assertRaises(BadMetadata, InstanceMetadata.from_bytes, broken)

    def test_may_be_of_same(self) -> None:
        """Any fact that differs tells of other data; but what one of two does not say is no difference: when the instance was
        made, and its transfer syntax."""
        facts = attrs.evolve(FACTS, created="20260101 120000", transfer_syntax=JPEG_BASELINE)
        for name, value in attrs.asdict(facts).items():
            other = (
                not value if isinstance(value, bool) else f"{value}x" if isinstance(value, str) else (value or 0) + 1
            )
            self.assertFalse(facts.may_be_of_same(attrs.evolve(facts, **{name: other})), name)
            self.assertFalse(attrs.evolve(facts, **{name: other}).may_be_of_same(facts), name)
        self.assertTrue(facts.may_be_of_same(InstanceMetadata.from_bytes(facts.to_bytes())))
        unsaid = attrs.evolve(facts, created="", transfer_syntax=None)
        for less in (attrs.evolve(facts, created=""), attrs.evolve(facts, transfer_syntax=None), unsaid):
            self.assertTrue(facts.may_be_of_same(less))
            self.assertTrue(less.may_be_of_same(facts))
            self.assertFalse(less.may_be_of_same(attrs.evolve(facts, rows=facts.rows + 1)))
        made = attrs.evolve(facts, transfer_syntax=None, created="20260102 120000")
        self.assertFalse(facts.may_be_of_same(made))
        self.assertFalse(
            attrs.evolve(facts, created="").may_be_of_same(attrs.evolve(unsaid, transfer_syntax=JPEG_2000))
        )

    def test_grid(self) -> None:
        """Frames that overlap the edges of the total pixel matrix count; without one all frames stand in a row."""
        self.assertEqual(FACTS.grid, (100, 101))
        loop = InstanceMetadata(frames=60, rows=480, columns=640)
        self.assertEqual((FACTS.is_tiled, loop.is_tiled, loop.grid), (True, False, (1, 60)))

    def test_frame_length(self) -> None:
        """A native frame's bytes follow from its size, samples and bits; 1-bit and unknown ones have none."""
        rgb = attrs.evolve(FACTS, photometric_interpretation="RGB")
        self.assertEqual(rgb.frame_length, 240 * 256 * 3)
        self.assertEqual(FACTS.frame_length, 240 * 256 * 2)
        self.assertEqual(attrs.evolve(rgb, bits_allocated=16).frame_length, 240 * 256 * 6)
        self.assertIsNone(attrs.evolve(rgb, bits_allocated=1).frame_length)
        self.assertIsNone(InstanceMetadata(frames=1).frame_length)

    def test_from_dataset(self) -> None:
        """A dataset gives the facts that its JSON gives."""
        dataset = Dataset.from_json({tag: value for tag, value in SLIDE.items() if tag not in ("00480105", "00083002")})
        path = Dataset()
        path.ICCProfile = b"1234"
        dataset.OpticalPathSequence = [path]
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = JPEG_BASELINE
        self.assertEqual(InstanceMetadata.from_dataset(dataset), FACTS)
        self.assertEqual(InstanceMetadata.from_dataset(Dataset()), InstanceMetadata(frames=1))
