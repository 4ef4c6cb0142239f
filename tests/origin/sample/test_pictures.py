"""The sample slide's pictures: like tissue, numbered, the same every time."""

from __future__ import annotations

import io
from pathlib import Path

import numpy
import pydicom
from PIL import Image, ImageChops, ImageCms
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.origin.sample.instances import srgb_profile, write_level
from twistedproxy.origin.sample.pyramid import Tissue, encode, make_frames, numbered
from twistedproxy.origin.sample.slide import LEVELS, TILE, SampleLevel

SMALL = (SampleLevel(1, 8, 8, 0.0005, "1.1"), SampleLevel(2, 2, 2, 0.002, "1.2"))


def picture(frames: list[bytes], columns: int) -> Image.Image:
    rows = len(frames) // columns
    whole = Image.new("RGB", (columns * TILE, rows * TILE))
    for number, frame in enumerate(frames):
        whole.paste(Image.open(io.BytesIO(frame)), (number % columns * TILE, number // columns * TILE))
    return whole


class PictureTests(SynchronousTestCase):
    """A small slide, painted as the large one is."""

    def test_same_every_time(self) -> None:
        """The same size gives the same pixels, whichever strips are painted before."""
        first, second = Tissue(1024, 512), Tissue(1024, 512)
        first.strip(0, TILE)
        self.assertEqual(first.strip(TILE, TILE).tobytes(), second.strip(TILE, TILE).tobytes())

    def test_strips_fit(self) -> None:
        """Nuclei and fibres run on from strip to strip: two strips are one of twice the height."""
        tissue = Tissue(1024, 512)
        whole = numpy.asarray(tissue.strip(0, 512)).astype(int)
        halves = numpy.concatenate([numpy.asarray(tissue.strip(top, 256)) for top in (0, 256)]).astype(int)
        # Where strips meet the enlargement of the map sees no rows beyond the strip's own.
        self.assertLess(numpy.abs(whole - halves).mean(), 1.0)

    def test_like_tissue(self) -> None:
        """There is glass, pink tissue and dark purple nuclei."""
        pixels = numpy.asarray(Tissue(2048, 2048).strip(768, 512)).reshape(-1, 3).astype(int)
        red, green, blue = pixels.T
        pink = (red > 190) & (green < 200) & (blue > green)
        purple = (red < 140) & (blue > red) & (green < 100)
        self.assertGreater(pink.mean(), 0.3)
        self.assertGreater(purple.mean(), 0.02)
        corner = numpy.asarray(Tissue(2048, 2048).strip(0, 16))[:, :16].reshape(-1, 3)
        self.assertGreater(corner.min(), 220)

    def test_numbers(self) -> None:
        """Each frame shows its own number: two of the same tissue differ, and only near the number."""
        blank = Image.new("RGB", (TILE, TILE), (230, 170, 200))
        one, other = numbered(blank.copy(), 123), numbered(blank.copy(), 124)
        box = ImageChops.difference(one, other).getbbox()
        assert box is not None
        self.assertTrue(box[2] < 120 and box[3] < 50, box)
        self.assertNotEqual(encode(one), encode(other))

    def test_levels(self) -> None:
        """The lower level is the upper one, made smaller, apart from numbers and lines."""
        frames = make_frames(SMALL[0], SMALL)
        self.assertEqual([len(level) for level in frames], [64, 4])
        upper, lower = picture(frames[0], 8).reduce(4), picture(frames[1], 2)
        difference = numpy.abs(numpy.asarray(upper).astype(int) - numpy.asarray(lower)).max(axis=2)
        self.assertLess(numpy.median(difference), 6)

    def test_profile(self) -> None:
        """The ICC profile can be read, is sRGB and has no date of today."""
        profile = ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile()))
        self.assertIn("sRGB", ImageCms.getProfileDescription(profile))
        self.assertEqual(srgb_profile()[24:26], b"\x07\xea")

    def test_instance(self) -> None:
        """The header says what the frames are."""
        folder = Path(self.mktemp())
        folder.mkdir()
        frames = make_frames(SMALL[0], SMALL)[1]
        data = pydicom.dcmread(write_level(folder, SMALL[1], frames))
        self.assertEqual((data.NumberOfFrames, data.Rows, data.Columns), (4, TILE, TILE))
        self.assertEqual((data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows), (512, 512))
        self.assertEqual(data.DimensionOrganizationType, "TILED_FULL")
        self.assertEqual(data.ImageType[2:], ["VOLUME", "RESAMPLED"])
        self.assertEqual(data.OpticalPathSequence[0].ICCProfile, srgb_profile())
        self.assertEqual(data.file_meta.TransferSyntaxUID, "1.2.840.10008.1.2.4.50")
        self.assertEqual(data.PixelData[8:12], bytes(4))  # a Basic Offset Table begins with 0

    def test_slide(self) -> None:
        """The slide has three levels, at least 1,500 frames in the first, all of one size on the glass."""
        self.assertEqual([level.frames for level in LEVELS], [1536, 96, 6])
        self.assertEqual(len({level.columns * level.spacing for level in LEVELS}), 1)
        self.assertEqual(len({level.sop for level in LEVELS}), 3)
