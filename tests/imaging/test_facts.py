"""twistedproxy.imaging.facts and .lookup: what is read of an instance, and how it travels."""

from __future__ import annotations

import json

import numpy
from pydicom import Dataset, Sequence
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.imaging.errors import BadImage
from twistedproxy.imaging.facts import PixelFacts
from twistedproxy.imaging.lookup import LookupTable, lay_out


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
        facts = PixelFacts.from_dataset(
            instance(WindowCenter=[40, 50.5], WindowWidth=[400, 80], RescaleSlope=2, RescaleIntercept=-1024)
        )
        self.assertEqual((facts.rows, facts.columns, facts.bits_stored, facts.dtype), (4, 6, 12, numpy.uint16))
        self.assertEqual((facts.window_centers, facts.window_widths), ((40.0, 50.5), (400.0, 80.0)))
        self.assertEqual((facts.rescale_slope, facts.rescale_intercept), (2.0, -1024.0))
        self.assertEqual((facts.voi_lut_function, facts.icc_profile, facts.single_frame), ("LINEAR", b"", True))

    def test_not_finite(self) -> None:
        """A window or a slope that is no finite number makes no picture."""
        for values in ({"WindowCenter": [1, "nan"], "WindowWidth": 1}, {"RescaleSlope": "inf"}):
            self.assertIn("is (", str(self.assertRaises(BadImage, PixelFacts.from_dataset, instance(**values))))

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
            facts = PixelFacts.from_dataset(dataset, frame)
            self.assertEqual((facts.window_centers, facts.window_widths), ((center,), (9.0,)))
            self.assertEqual((facts.voi_lut_function, facts.rescale_slope), ("SIGMOID", 3.0))
            self.assertFalse(facts.single_frame)

    def test_optical_path(self) -> None:
        """A slide's profile is that of its first optical path."""
        facts = PixelFacts.from_dataset(instance(OpticalPathSequence=[item(ICCProfile=b"profile!")]))
        self.assertEqual(facts.icc_profile, b"profile!")

    def test_padding_and_range(self) -> None:
        """Padding may be a range with its limit at either end."""
        dataset = instance()
        for keyword, value in (("PixelPaddingValue", 9), ("PixelPaddingRangeLimit", 5)):
            dataset.add_new(keyword, "US", value)
        dataset.add_new("SmallestImagePixelValue", "US", 3)
        dataset.add_new("LargestImagePixelValue", "US", 300)
        facts = PixelFacts.from_dataset(dataset)
        self.assertEqual((facts.padding, facts.value_range), ((5, 9), (3, 300)))

    def test_wrong(self) -> None:
        """What lacks sizes, or has tables shorter than they say, is a bad image."""
        self.assertRaises(BadImage, PixelFacts.from_dataset, item(Columns=3))
        table = item()
        table.add_new("LUTDescriptor", "US", [100, 0, 16])
        table.add_new("LUTData", "OW", words(1, 2, 3))
        self.assertRaises(BadImage, PixelFacts.from_dataset, instance(ModalityLUTSequence=Sequence([table])))


class TravelTests(SynchronousTestCase):
    """As bytes and as DICOM JSON."""

    def full(self) -> Dataset:
        """An instance that has of everything."""
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
        for colour in ("Red", "Green", "Blue"):
            dataset.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [2, 0, 8])
            dataset.add_new(f"{colour}PaletteColorLookupTableData", "OW", b"\x07\x09")
        return dataset

    def test_bytes(self) -> None:
        """Facts come back from bytes as they were, plain ones in few."""
        facts = PixelFacts.from_dataset(self.full())
        self.assertEqual(PixelFacts.from_bytes(facts.to_bytes()), facts)
        assert facts.palette is not None and facts.voi_lut is not None
        self.assertEqual(facts.palette[0].entries.tolist(), [7, 9])
        self.assertEqual(facts.voi_lut, LookupTable(2, 12, words(0, 100, 2000, 4095)))
        self.assertLess(len(PixelFacts(256, 256, 3, photometric_interpretation="RGB").to_bytes()), 100)

    def test_no_facts(self) -> None:
        """Bytes that are something else are a bad image."""
        for data in (b"", b"[]", b'{"rows": 1}', b'{"rows":1,"columns":1,"more":1}', b"\x80\x04", b'{"palette":[1]}'):
            self.assertRaises(BadImage, PixelFacts.from_bytes, data)

    def test_dicom_json(self) -> None:
        """Metadata give the same facts as the data set that they describe."""
        dataset = self.full()
        self.assertEqual(PixelFacts.from_dicom_json(dataset.to_json_dict()), PixelFacts.from_dataset(dataset))

    def test_bulk_data(self) -> None:
        """Values that stand elsewhere are asked for by their address, and left out where nobody reads them."""
        metadata = json.loads(instance().to_json())
        metadata["00282000"] = {"vr": "OB", "BulkDataURI": "http://store/bulk/1"}
        self.assertEqual(PixelFacts.from_dicom_json(metadata).icc_profile, b"")
        asked: list[str] = []

        def read(uri: str) -> bytes:
            asked.append(uri)
            return b"from there"

        self.assertEqual(PixelFacts.from_dicom_json(metadata, read).icc_profile, b"from there")
        self.assertEqual(asked, ["http://store/bulk/1"])

    def test_one_frame_of_many(self) -> None:
        """Of the groups of all frames the one that is asked for counts."""
        groups = [item(FrameVOILUTSequence=[item(WindowCenter=n, WindowWidth=5)]) for n in range(1, 6)]
        metadata = instance(NumberOfFrames=5, PerFrameFunctionalGroupsSequence=groups).to_json_dict()
        self.assertEqual(PixelFacts.from_dicom_json(metadata, frame=4).window_centers, (4.0,))


class SegmentTests(SynchronousTestCase):
    """Segmented palettes (PS3.3 section C.7.9.2)."""

    def test_segments(self) -> None:
        """Discrete, linear and indirect segments follow each other."""
        table = numpy.array([0, 2, 5, 10, 1, 5, 60, 2, 1, 0, 0], "<u2")
        self.assertEqual(lay_out(table), [5, 10, 20, 30, 40, 50, 60, 5, 10])

    def test_wrong(self) -> None:
        """A ramp from nowhere, an unknown segment, one that calls itself, and one without end."""
        for table in ([1, 5, 60], [7, 1, 1], [0, 1, 5, 2, 9, 6, 0], [0, 1, 5] + [1, 60_000, 7] * 2):
            self.assertRaises(ValueError, lay_out, numpy.array(table, "<u2"))
