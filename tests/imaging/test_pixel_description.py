"""twistedproxy.imaging.pixel_description and .luts_and_palettes: what is read of an instance, and how it travels."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy
from pydicom import Dataset, Sequence
from twisted.trial.unittest import SynchronousTestCase

from tests.imaging.datasets import facts_of_dataset
from twistedproxy.imaging.describe import Description, InstanceFacts
from twistedproxy.imaging.errors import BadImage
from twistedproxy.imaging.icc import profile_of
from twistedproxy.imaging.luts_and_palettes import LookupTable, lay_out
from twistedproxy.imaging.pixel_description import PixelFacts


def item(**values: object) -> Dataset:
    """A data set of these elements."""
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def instance(**values: object) -> Dataset:
    """A data set of one deep gray frame, and these elements."""
    return item(
        **{
            "Rows": 4,
            "Columns": 6,
            "SamplesPerPixel": 1,
            "BitsAllocated": 16,
            "BitsStored": 12,
            "HighBit": 11,
            "PixelRepresentation": 0,
            "PhotometricInterpretation": "MONOCHROME2",
            **values,
        }
    )


def words(*values: int) -> bytes:
    """16-bit words, little endian."""
    return numpy.array(values, "<u2").tobytes()


class DatasetTests(SynchronousTestCase):
    """From a data set."""

    def test_plain(self) -> None:
        """What stands at the top is read; what is missing has the standard's default."""
        facts = facts_of_dataset(
            instance(WindowCenter=[40, 50.5], WindowWidth=[400, 80], RescaleSlope=2, RescaleIntercept=-1024)
        )
        self.assertEqual((facts.rows, facts.columns, facts.bits_stored, facts.dtype), (4, 6, 12, "u2"))
        self.assertEqual((facts.window_centers, facts.window_widths), ((40.0, 50.5), (400.0, 80.0)))
        self.assertEqual((facts.rescale_slope, facts.rescale_intercept), (2.0, -1024.0))
        self.assertEqual((facts.voi_lut_function, facts.icc_profile, facts.tiled), ("LINEAR", b"", False))

    def test_functional_groups(self) -> None:
        """A frame's own group goes before the shared one, and that before the top."""
        dataset = instance(
            NumberOfFrames=2,
            WindowCenter=1,
            WindowWidth=1,
            SharedFunctionalGroupsSequence=[
                item(PixelValueTransformationSequence=[item(RescaleSlope=3, RescaleIntercept=1)])
            ],
            PerFrameFunctionalGroupsSequence=[
                item(FrameVOILUTSequence=[item(WindowCenter=center, WindowWidth=9, VOILUTFunction="SIGMOID")])
                for center in (10, 20)
            ],
        )
        for frame, center in ((1, 10.0), (2, 20.0)):
            facts = facts_of_dataset(dataset, frame)
            self.assertEqual((facts.window_centers, facts.window_widths), ((center,), (9.0,)))
            self.assertEqual((facts.voi_lut_function, facts.rescale_slope), ("SIGMOID", 3.0))
            self.assertFalse(facts.tiled)
        self.assertTrue(facts_of_dataset(instance(TotalPixelMatrixColumns=9)).tiled)

    def test_optical_path(self) -> None:
        """A slide's profile is that of its first optical path."""
        facts = facts_of_dataset(instance(OpticalPathSequence=[item(ICCProfile=b"profile!")]))
        self.assertEqual(facts.icc_profile, b"profile!")

    def test_padding_and_range(self) -> None:
        """Padding may be a range with its limit at either end."""
        dataset = instance()
        for keyword, value in (("PixelPaddingValue", 9), ("PixelPaddingRangeLimit", 5)):
            dataset.add_new(keyword, "US", value)
        dataset.add_new("SmallestImagePixelValue", "US", 3)
        dataset.add_new("LargestImagePixelValue", "US", 300)
        facts = facts_of_dataset(dataset)
        self.assertEqual((facts.padding, facts.value_range), ((5, 9), (3, 300)))
        for low, high in ((300, 3), (7, 7), (0, 5000)):  # more than 12 bits hold
            dataset.SmallestImagePixelValue, dataset.LargestImagePixelValue = low, high
            self.assertIsNone(facts_of_dataset(dataset).value_range)

    def test_signs(self) -> None:
        """What is "US or SS" is a stored value, as signed as those, whichever of the two a store says."""
        metadata = instance(PixelRepresentation=1, BitsStored=16, HighBit=15).to_json_dict()
        metadata["00280120"] = {"vr": "US", "Value": [63536]}
        metadata["00280106"], metadata["00280107"] = {"vr": "SS", "Value": [-1000]}, {"vr": "US", "Value": [3000]}
        table = {
            "00283002": {"vr": "US", "Value": [2, 65436, 8]},
            "00283006": {"vr": "OW", "InlineBinary": base64.b64encode(b"\x07\x09").decode()},
        }
        metadata["00283010"] = {"vr": "SQ", "Value": [table]}
        facts = PixelFacts.from_dicom_json(metadata)
        self.assertEqual((facts.padding, facts.value_range), ((-2000, -2000), (-1000, 3000)))
        self.assertEqual(facts.voi_lut, LookupTable(-100, 8, words(7, 9)))
        metadata["00280103"] = {"vr": "US", "Value": [0]}
        facts = PixelFacts.from_dicom_json(metadata)
        self.assertEqual((facts.padding, facts.voi_lut), ((63536, 63536), LookupTable(65436, 8, words(7, 9))))

    def test_wrong(self) -> None:
        """What lacks sizes, or has tables shorter than they say, is a bad image."""
        self.assertRaises(BadImage, facts_of_dataset, item(Columns=3))
        table = item()
        table.add_new("LUTDescriptor", "US", [100, 0, 16])
        table.add_new("LUTData", "OW", words(1, 2, 3))
        self.assertRaises(BadImage, facts_of_dataset, instance(ModalityLUTSequence=Sequence([table])))


class TravelTests(SynchronousTestCase):
    """As bytes and as DICOM JSON."""

    def palette(self) -> Dataset:
        """An instance with a palette."""
        dataset = instance(PhotometricInterpretation="PALETTE COLOR")
        for color in ("Red", "Green", "Blue"):
            dataset.add_new(f"{color}PaletteColorLookupTableDescriptor", "US", [2, 0, 8])
            dataset.add_new(f"{color}PaletteColorLookupTableData", "OW", b"\x07\x09")
        return dataset

    def full(self) -> Dataset:
        """A gray instance that has of everything."""
        table = item()
        table.add_new("LUTDescriptor", "US", [4, 2, 12])
        table.add_new("LUTData", "OW", words(0, 100, 2000, 4095))
        dataset = instance(
            WindowCenter=[40],
            WindowWidth=[400],
            ICCProfile=b"a profile ",
            ModalityLUTSequence=[table],
            VOILUTSequence=[table],
        )
        return dataset

    def test_bytes(self) -> None:
        """Facts come back from bytes as they were, plain ones in few."""
        facts = facts_of_dataset(self.full())
        self.assertEqual(PixelFacts.from_bytes(facts.to_bytes()), facts)
        colors = facts_of_dataset(self.palette())
        self.assertEqual(PixelFacts.from_bytes(colors.to_bytes()), colors)
        assert colors.palette is not None and facts.voi_lut is not None
        self.assertEqual(colors.palette[0].data, words(7, 9))
        self.assertEqual(facts.voi_lut, LookupTable(2, 12, words(0, 100, 2000, 4095)))
        self.assertLess(len(PixelFacts(256, 256, 3, photometric_interpretation="RGB").to_bytes()), 100)

    def test_no_facts(self) -> None:
        """Bytes that are something else are a bad image."""
        for data in (b"", b"[]", b'{"rows": 1}', b'{"rows":1,"columns":1,"more":1}', b"\x80\x04", b'{"palette":[1]}'):
            self.assertRaises(BadImage, PixelFacts.from_bytes, data)

    def test_bulk_data(self) -> None:
        """Values that stand elsewhere are asked for by their address, and left out where nobody reads them."""
        metadata = json.loads(instance().to_json())
        metadata["00282000"] = {"vr": "OB", "BulkDataURI": "http://store/bulk/1"}
        self.assertEqual(PixelFacts.from_dicom_json(metadata).icc_profile, b"")
        asked: list[str] = []

        def read(uri: str) -> bytes:
            asked.append(uri)
            return profile

        profile = profile_of("srgb")
        self.assertEqual(PixelFacts.from_dicom_json(metadata, read).icc_profile, profile)
        self.assertEqual(asked, ["http://store/bulk/1"])
        self.assertEqual(PixelFacts.from_dicom_json(metadata, lambda _: b"").icc_profile, b"")

    def test_what_was_fetched_and_is_no_such_value(self) -> None:
        """A page in the place of a table or a profile is an error: without it there would be a picture, and a wrong one."""
        data = {"vr": "OW", "BulkDataURI": "http://store/bulk/1"}
        voi = {"vr": "SQ", "Value": [{"00283002": {"vr": "US", "Value": [4, 0, 16]}, "00283006": data}]}
        descriptors = {f"0028110{n}": {"vr": "US", "Value": [4, 0, 16]} for n in (1, 2, 3)}
        palette = instance(PhotometricInterpretation="PALETTE COLOR").to_json_dict() | descriptors
        plain = instance().to_json_dict()
        entries = words(1, 2, 3, 400)
        for metadata, right in (
            (plain | {"00283010": voi}, entries),
            (plain | {"52009229": {"vr": "SQ", "Value": [{"00289132": {"Value": [{"00283010": voi}]}}]}}, entries),
            (plain | {"00283000": voi}, entries),
            (palette | {f"0028120{n}": data for n in (1, 2, 3)}, entries),
            (palette | {f"0028122{n}": data for n in (1, 2, 3)}, words(0, 4, 1, 2, 3, 400)),
            (plain | {"00282000": data}, profile_of("srgb")),
            (plain | {"00480105": {"vr": "SQ", "Value": [{"00282000": data}]}}, profile_of("srgb")),
        ):
            PixelFacts.from_dicom_json(metadata, lambda _, right=right: right)  # type: ignore[misc]
            for wrong in (b"<p>", right[:3]):
                with self.assertRaises(BadImage):
                    PixelFacts.from_dicom_json(metadata, lambda _, wrong=wrong: wrong)  # type: ignore[misc]

    def test_one_frame_of_many(self) -> None:
        """Of the groups of all frames the one that is asked for counts."""
        groups = [item(FrameVOILUTSequence=[item(WindowCenter=n, WindowWidth=5)]) for n in range(1, 6)]
        metadata = instance(NumberOfFrames=5, PerFrameFunctionalGroupsSequence=groups).to_json_dict()
        self.assertEqual(PixelFacts.from_dicom_json(metadata, frame=4).window_centers, (4.0,))


class OddTests(SynchronousTestCase):
    """What cannot be read counts as absent."""

    def odd(self, **elements: Any) -> PixelFacts:
        """The facts of an instance with these elements of DICOM JSON, each by its element in group 0028."""
        metadata = instance(WindowCenter=1000, WindowWidth=500).to_json_dict()
        metadata |= {f"0028{tag.removeprefix('e')}": element for tag, element in elements.items()}
        return PixelFacts.from_dicom_json(metadata)

    def test_windows(self) -> None:
        """Of windows those pairs count of which both numbers say something, in whatever form."""
        for centers, widths, expected in (
            (["1000\\50"], ["500\\10"], [(1000, 500), (50, 10)]),
            (["1000", " 50 "], [500.0, "10"], [(1000, 500), (50, 10)]),
            ([None, 1000], [300, 500], [(1000, 500)]),
            ([1000, 50], [500], [(1000, 500)]),
            ([""], [""], []),
            (["NaN", 7], [500, "inf"], []),
            ([1, 2, 3, 4], [0, -1, "1e99", 5], [(4, 5)]),
            ([{}, True], [[], {"a": 1}], []),
            ([10**400, 1], [1, 1], [(1, 1)]),
        ):
            facts = self.odd(e1050={"vr": "DS", "Value": centers}, e1051={"vr": "DS", "Value": widths})
            self.assertEqual(list(zip(facts.window_centers, facts.window_widths)), expected, (centers, widths))
        for nothing in ({"vr": "DS"}, {}, {"Value": None}, {"Value": 5}, {"vr": "UN", "InlineBinary": "?"}, [], None):
            self.assertEqual(self.odd(e1050=nothing).window_centers, (), nothing)

    def test_others(self) -> None:
        """An unknown function is linear, an odd slope 1; depth and signs have defaults."""
        self.assertEqual(self.odd(e1056={"vr": "CS", "Value": ["NONSENSE"]}).voi_lut_function, "LINEAR")
        self.assertEqual(self.odd(e1056={"vr": "LO", "Value": [" sigmoid "]}).voi_lut_function, "SIGMOID")
        for value in ("", None, "x", "NaN", 1e300):
            facts = self.odd(e1053={"vr": "DS", "Value": [value]}, e1052={"vr": "DS", "Value": [value]})
            self.assertEqual((facts.rescale_slope, facts.rescale_intercept), (1.0, 0.0), value)
            odd = {"vr": "US", "Value": [value]}
            facts = self.odd(e0101=odd, e0102=odd, e0103=odd, e0120=odd, e0106=odd, e0002=odd, e0008=odd)
            self.assertEqual((facts.bits_stored, facts.high_bit, facts.signed, facts.padding), (16, 15, False, None))
        facts = self.odd(e0101={"vr": "US", "Value": [17]}, e0102={"vr": "US", "Value": ["3"]})
        self.assertEqual((facts.bits_stored, facts.high_bit), (16, 15))
        self.assertFalse(facts.floating)

    def test_numbers_as_texts(self) -> None:
        """A size may be a text."""
        facts = self.odd(e0010={"vr": "US", "Value": ["4"]}, e0100={"vr": "US", "Value": ["16"]})
        self.assertEqual((facts.rows, facts.bits_allocated), (4, 16))

    def test_needed(self) -> None:
        """Without sizes and depth there is no picture: the error names them."""
        for tag, name in (("0010", "Rows"), ("0011", "Columns"), ("0100", "BitsAllocated")):
            for value in ("", None, 0, "x"):
                error = self.assertRaises(BadImage, self.odd, **{f"e{tag}": {"vr": "US", "Value": [value]}})
                self.assertIn(name, str(error))

    def test_tables_that_are_not_needed(self) -> None:
        """A palette that a gray image has left over is not read, nor fetched, nor are windows and tables that one in color has;
        a VOI LUT that is broken is passed over."""
        tags = ("1101", "1102", "1103", "1201", "1202", "1203")
        odd = {f"e{tag}": {"vr": "OW", "BulkDataURI": "http://store/bulk"} for tag in tags}
        metadata = instance().to_json_dict() | {f"0028{tag}": odd[f"e{tag}"] for tag in tags}
        self.assertIsNone(PixelFacts.from_dicom_json(metadata, lambda uri: self.fail(uri)).palette)
        elsewhere = {"00283006": {"vr": "OW", "BulkDataURI": "http://store/bulk"}}
        voi = {"vr": "SQ", "Value": [{"00283002": {"vr": "US", "Value": [2, 0, 8]}, **elsewhere}]}
        color = instance(PhotometricInterpretation="RGB", SamplesPerPixel=3).to_json_dict()
        for more in (
            {"00283010": voi},
            {"52009229": {"vr": "SQ", "Value": [{"00289132": {"Value": [{"00283010": voi}]}}]}},
        ):
            self.assertIsNone(PixelFacts.from_dicom_json(color | more, lambda uri: self.fail(uri)).voi_lut)
        short = {
            "00283002": {"vr": "US", "Value": [99, 0, 8]},
            "00283006": {"vr": "US", "Value": [1]},
        }
        sound = {"00283002": {"vr": "US", "Value": [2, 0, 8]}, "00283006": {"vr": "US", "Value": [1, 200]}}
        self.assertIsNone(self.odd(e3010={"vr": "SQ", "Value": [short, {}, None]}).voi_lut)
        facts = self.odd(e3010={"vr": "SQ", "Value": [short, sound]})
        self.assertEqual(facts.voi_lut, LookupTable(0, 8, words(1, 200)))

    def test_sequences(self) -> None:
        """A sequence of something else is passed over, and what follows is read."""
        metadata = instance().to_json_dict()
        for odd in ({"a": [1]}, [[1], {"00289132": {"Value": [[{}]]}}, 5], "x", 5, None, [None], [{"00289132": 5}]):
            sequences = {tag: {"vr": "SQ", "Value": odd} for tag in ("52009229", "52009230", "00480105", "00283010")}
            description = Description()
            description.feed(json.dumps([sequences | metadata]).encode())
            packed = InstanceFacts.from_bytes(description.packed({})[0]).of(1)
            self.assertEqual(PixelFacts.from_bytes(packed), PixelFacts.from_dicom_json(metadata), odd)

    def test_floating(self) -> None:
        """Pixels of floating-point numbers have no bits stored and no sign (PS3.3 section C.7.6.24)."""
        metadata = instance(BitsAllocated=32).to_json_dict()
        for tag in ("00280101", "00280102", "00280103"):
            del metadata[tag]
        facts = PixelFacts.from_dicom_json(metadata)
        self.assertEqual((facts.floating, facts.dtype), (True, "f4"))


class PaletteTests(SynchronousTestCase):
    """Palettes in every form that PS3.3 sections C.7.6.3.1.5 and C.7.9 allow, and in some that they do not."""

    def palette(self, descriptor: list[int], data: Any, signed: int = 0, element: str = "120") -> LookupTable | None:
        """The red one of three."""
        metadata = instance(PhotometricInterpretation="PALETTE COLOR", PixelRepresentation=signed).to_json_dict()
        value = {"InlineBinary": base64.b64encode(data).decode()} if isinstance(data, bytes) else {"Value": data}
        for number in (1, 2, 3):
            metadata[f"0028110{number}"] = {"vr": "US", "Value": descriptor}
            metadata[f"0028{element}{number}"] = {"vr": "OW", **value}
        palette = PixelFacts.from_dicom_json(metadata).palette
        return palette[0] if palette is not None else None

    def test_forms(self) -> None:
        """Entries of 8 bits by themselves, two in a word, one in a word, and of 16 bits; as bytes and as numbers."""
        eight = LookupTable(0, 8, words(1, 2, 255))
        for descriptor, data in (
            ([3, 0, 8], b"\1\2\xff\0"),
            ([3, 0, 8], b"\1\2\xff"),
            ([3, 0, 8], words(1, 2, 255)),
            ([3, 0, 8], [1, 2, 255]),
            ([3, 0, 16], b"\1\2\xff\0"),  # what they hold counts
        ):
            self.assertEqual(self.palette(descriptor, data), eight, (descriptor, data))
        self.assertEqual(self.palette([3, 0, 16], words(256, 2, 65535)), LookupTable(0, 16, words(256, 2, 65535)))
        self.assertEqual(self.palette([2, 0, 8], words(0x1010, 0xFFFF)), LookupTable(0, 16, words(0x1010, 0xFFFF)))
        self.assertEqual(self.palette([1, 0, 8], b"\7"), LookupTable(0, 8, words(7)))

    def test_descriptors(self) -> None:
        """No number of entries stands for 65,536; the first value may be below 0, as US or as SS."""
        table = self.palette([0, 0, 16], bytes(131_070) + b"\xff\xff")
        assert table is not None
        self.assertEqual((len(table.data), table.data[-2:]), (131_072, b"\xff\xff"))
        for first in (-2, 65_534):
            for signed, expected in ((1, -2), (0, 65_534)):
                found = self.palette([2, first, 8], [1, 2], signed)
                self.assertEqual(found, LookupTable(expected, 8, words(1, 2)), (first, signed))

    def test_segmented(self) -> None:
        """Segments are numbers of 16 bits, or of 8 where the entries are."""
        segments = [0, 2, 5, 10, 1, 5, 60, 2, 1, 0, 0]
        entries = words(5, 10, 20, 30, 40, 50, 60, 5, 10)
        self.assertEqual(self.palette([9, 0, 16], words(*segments), element="122"), LookupTable(0, 16, entries))
        eight = bytes([*segments, 0, 0])  # an offset takes four of 8 bits
        self.assertEqual(self.palette([9, 0, 8], eight, element="122"), LookupTable(0, 8, entries))

    def test_broken(self) -> None:
        """A palette that is too short, or none, is none."""
        for descriptor, data in (([9, 0, 8], b"\1\2"), ([9, 0], b"\1"), ([1, 0, 17], [1]), ([2, 0, 8], [None, 1])):
            self.assertIsNone(self.palette(descriptor, data), (descriptor, data))


class SegmentTests(SynchronousTestCase):
    """Segmented palettes (PS3.3 section C.7.9.2)."""

    def test_segments(self) -> None:
        """Discrete, linear and indirect segments follow each other."""
        self.assertEqual(lay_out([0, 2, 5, 10, 1, 5, 60, 2, 1, 0, 0]), [5, 10, 20, 30, 40, 50, 60, 5, 10])

    def test_ties(self) -> None:
        """Half way between two numbers is the even one, wherever the ramp begins: as numpy rounds, and pydicom with it."""
        for first, last, count in ((13, 13107, 4), (5, 8, 86), (4525, 124, 206), (9, 9, 3)):
            ramp = numpy.around(numpy.linspace(first, last, count + 1)).astype(int).tolist()
            self.assertEqual(lay_out([0, 1, first, 1, count, last]), ramp)

    def test_wrong(self) -> None:
        """A ramp from nowhere, an unknown segment, one that calls itself, and one without end."""
        for table in ([1, 5, 60], [7, 1, 1], [0, 1, 5, 2, 9, 6, 0], [0, 1, 5] + [1, 60_000, 7] * 2):
            self.assertRaises(ValueError, lay_out, table)
