"""What the comparison of `real_files` rests on."""

from __future__ import annotations

from pathlib import Path

import numpy
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from twisted.trial.unittest import SynchronousTestCase

from tests import slides
from tests.benchmarks.expected_pictures import Instance, bit_frames, instance_at, little_endian
from tests.benchmarks.file_comparison import DIFFERENT, EQUAL, FRAMES, REFUSED, Outcome, difference, sample
from tests.benchmarks.real_file_sources import read
from tests.benchmarks.real_files import groups, items_of, layers


class ExpectedTests(SynchronousTestCase):
    """Frames and pictures by pydicom."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def test_big_endian(self) -> None:
        """Values are swapped; 8-bit ones where they stand in words, and not where they are bytes."""
        self.assertEqual(little_endian(b"\1\2\3\4", 16, "OW"), b"\2\1\4\3")
        self.assertEqual(little_endian(b"\1\2\3\4", 32, "OW"), b"\4\3\2\1")
        self.assertEqual(little_endian(b"\1\2\3\4", 8, "OW"), b"\2\1\4\3")
        self.assertEqual(little_endian(b"\1\2\3\4", 8, "OB"), b"\1\2\3\4")

    def test_bits(self) -> None:
        """Frames of one bit a pixel follow each other without a gap, and come as whole bytes."""
        self.assertEqual(bit_frames(b"\xf0\x03", 5, 2), [b"\x10", b"\x1f"])
        self.assertRaises(ValueError, bit_frames, b"\xff", 5, 2)

    def test_stored(self) -> None:
        """Stored frames are those that were written, native or not."""
        for encoding in ("raw", "jpeg", "big-endian"):
            made = slides.multi_frame(self.folder / encoding, 3, 8, 8, encoding)
            self.assertEqual(instance_at(made.path, self.folder).stored(), made.stored_frames(), encoding)

    def test_pictures(self) -> None:
        """The modality LUT comes before the window, the inversion of MONOCHROME1 after it; without a window the values' own
        range is shown, or that of the bits."""
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.Rows, data.Columns, data.SamplesPerPixel = 1, 3, 1
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.PhotometricInterpretation = "MONOCHROME1"
        data.RescaleSlope, data.RescaleIntercept = 2, -100
        data.PixelData = numpy.array([50, 100, 150], "<u2").tobytes()
        data.save_as(self.folder / "gray", implicit_vr=False, little_endian=True)
        pictures = instance_at(self.folder / "gray", self.folder).pictures(1)
        self.assertEqual(pictures["range of the frame's values"].tolist(), [[255, 127, 0]])
        self.assertEqual(pictures["range of the bits"].tolist(), [[252, 249, 246]])
        data.WindowCenter, data.WindowWidth, data.VOILUTFunction = 200, 200, "LINEAR_EXACT"
        data.save_as(self.folder / "gray", implicit_vr=False, little_endian=True)
        self.assertEqual(Instance(self.folder / "gray", data).pictures(1)["window"].tolist(), [[255, 255, 127]])

    def test_mosaic(self) -> None:
        """Frames stand at their positions, and where there is none it is white."""
        made = slides.slide(
            self.folder / "slide", 2, 2, 8, "raw", sparse=True, positions=[(0, 0), (1, 1)], total_columns=13
        )
        instance = instance_at(made.path, self.folder)
        whole = instance.mosaic()
        self.assertEqual(whole.shape, (16, 13, 3))
        self.assertTrue((whole[:8, 8:] == 255).all())
        self.assertTrue((whole[8:, 8:] == instance.pictures(2)["colors"][:, :5]).all())


class ComparingTests(SynchronousTestCase):
    """What counts as the same, and what is said of the rest."""

    def test_difference(self) -> None:
        """Rounding is let pass, of lossy frames a bit more; another shape never is."""
        right = numpy.full((100, 100), 100, numpy.uint8)
        self.assertEqual(difference(right + 1, right, lossy=False), "")
        self.assertIn("apart", difference(right + 2, right, lossy=False))
        self.assertEqual(difference(right + 2, right, lossy=True), "")
        self.assertIn("apart", difference(right + 3, right, lossy=True))
        self.assertIn("a picture of (100, 1)", difference(right[:, :1], right, lossy=True))

    def test_sample(self) -> None:
        """Few frames are all compared, of many some, the first and the last among them."""
        self.assertEqual(sample(3), [1, 2, 3])
        chosen = sample(1000)
        self.assertEqual((len(chosen), chosen[0], chosen[-1]), (FRAMES, 1, 1000))

    def test_groups(self) -> None:
        """What is alike but for its numbers is said once, what is unexplained first; what is equal is left out."""
        told = groups(
            [
                Outcome("folder", "a", "a/1", "stored", 1, EQUAL),
                Outcome("folder", "a", "a/2", "stored", 1, DIFFERENT, "5 bytes", "for a reason"),
                Outcome("folder", "a", "a/3", "stored", 1, REFUSED, "502 after 3 tries"),
                Outcome("folder", "a", "a/3", "stored", 2, REFUSED, "502 after 4 tries"),
            ]
        )
        self.assertEqual([len(found) for found in told.values()], [2, 1])
        self.assertEqual([state for state, *_rest in told], ["", "explained"])

    def test_same_uid(self) -> None:
        """A file whose UID came before gets another one, and nothing else of it changes; a copy is left out."""
        folder = Path(self.mktemp())
        folder.mkdir()
        uid = "1.2.3.45678"
        paths = [
            slides.multi_frame(folder / name, 1, 8, side, "raw", sop=uid).path for name, side in (("a", 8), ("b", 9))
        ]
        (folder / "c").write_bytes(paths[0].read_bytes())
        items = list(items_of(dict.fromkeys([*paths, folder / "c"], "made"), folder))
        self.assertEqual([item.name for item in items], ["a", "b"])
        self.assertEqual(len({item.sop for item in items}), 2)
        second = read(paths[1])
        assert second is not None
        self.assertEqual((second.SOPInstanceUID, second.Columns), (items[1].sop, 9))
        self.assertEqual(len(layers(items)), 1)
        self.assertEqual(len(layers([items[0], items[0]])), 2)
