"""twistedproxy.imaging.encode and .icc: what others read of the pictures."""

from __future__ import annotations

import io
import threading

import imagecodecs
import numpy
import pydicom
from PIL import Image, ImageCms
from twisted.trial.unittest import SynchronousTestCase
from wsidicom_data import TestData

from tests.imaging.damage import codecs, damaged
from tests.imaging.test_decode import TEST_FILES
from twistedproxy.imaging.encode import encode, jpeg_to_jxl, jxl_to_jpeg
from twistedproxy.imaging.errors import BadImage, BadProfile, ImageTooLarge, NotDecodable
from twistedproxy.imaging.icc import convert_colors, profile_of
from twistedproxy.imaging.parameters import TARGETS
from twistedproxy.rendering.planner import PICTURE_TYPES

CRAYONS = TEST_FILES[0].with_name("crayons.icc").read_bytes()


def tile() -> numpy.ndarray:
    """A piece of tissue, 240 x 240."""
    return numpy.asarray(TestData.rgb().convert("RGB"))


def read(data: bytes, media_type: str) -> numpy.ndarray:
    """A picture's pixels, by a reader that is not ours."""
    if media_type == "image/jxl":
        return imagecodecs.jpegxl_decode(data)
    if media_type == "image/jp2":
        return imagecodecs.jpeg2k_decode(data)
    picture = Image.open(io.BytesIO(data))
    return numpy.asarray(picture.convert("RGB") if picture.mode == "P" else picture)


class EncodeTests(SynchronousTestCase):
    """Pictures of every type that is offered."""

    def test_every_type(self) -> None:
        """Gray and color come out near what went in; PNG exactly."""
        for pixels in (tile(), tile()[:, :, 1]):
            for media_type in PICTURE_TYPES:
                shown = read(encode(pixels, media_type), media_type)
                if shown.shape != pixels.shape:  # WebP and GIF have no gray of their own
                    shown = shown[:, :, 0]
                off = numpy.abs(shown.astype(int) - pixels).mean()
                self.assertLess(off, {"image/png": 1e-9, "image/gif": 6}.get(media_type, 5), (media_type, pixels.ndim))

    def test_quality(self) -> None:
        """A higher quality takes more bytes and comes nearer; the highest of JPEG XL and JPEG 2000 loses nothing."""
        for media_type in ("image/jpeg", "image/webp", "image/jxl", "image/jp2"):
            made = [encode(tile(), media_type, quality) for quality in (10, 60, 95, 100)]
            off = [numpy.abs(read(data, media_type).astype(int) - tile()).mean() for data in made]
            self.assertEqual(sorted(map(len, made)), list(map(len, made)), media_type)
            self.assertEqual(sorted(off, reverse=True), off, media_type)
            if media_type in ("image/jxl", "image/jp2"):
                self.assertEqual(off[-1], 0)

    def test_profile(self) -> None:
        """A profile is embedded whole, also one that takes several segments; gray and no profile have none."""
        for profile in (profile_of("displayp3"), CRAYONS * 50):
            for media_type in ("image/jpeg", "image/png", "image/webp"):
                made = Image.open(io.BytesIO(encode(tile(), media_type, icc=profile)))
                self.assertEqual(made.info.get("icc_profile"), profile, media_type)
        self.assertGreater(len(CRAYONS) * 50, 2 * 65_536)
        for pixels, icc in ((tile(), None), (tile()[:, :, 0], CRAYONS)):
            self.assertNotIn("icc_profile", Image.open(io.BytesIO(encode(pixels, "image/jpeg", icc=icc))).info)

    def test_profile_of_the_newer(self) -> None:
        """JPEG XL's is in the JPEG that it gives back, JPEG 2000's in its color box; both still decode."""
        profile = profile_of("adobergb")
        made = encode(tile(), "image/jxl", icc=profile)
        self.assertEqual(Image.open(io.BytesIO(jxl_to_jpeg(made))).info["icc_profile"], profile)
        made = encode(tile(), "image/jp2", 100, icc=profile)
        self.assertIn(b"colr\2\0\0" + profile, made)
        self.assertTrue((numpy.asarray(Image.open(io.BytesIO(made))) == tile()).all())

    def test_same_bytes(self) -> None:
        """The same picture twice is the same bytes."""
        for media_type in PICTURE_TYPES:
            self.assertEqual(*(encode(tile(), media_type, icc=profile_of("srgb")) for _ in range(2)))

    def test_refused(self) -> None:
        """Types and qualities that there are not, and pictures that a type cannot hold."""
        for wrong in (("image/bmp", 95), ("image/jpeg", 0), ("image/jpeg", 101)):
            self.assertRaises(ValueError, encode, tile(), *wrong)
        wide = numpy.zeros((1, 70_000), numpy.uint8)
        for media_type in ("image/jpeg", "image/webp", "image/gif"):
            self.assertRaises(BadImage, encode, wide, media_type)
        self.assertRaises(BadImage, encode, wide.astype("u2"), "image/png")
        self.assertRaises(BadImage, encode, wide[:, :0], "image/png")


class ColorTests(SynchronousTestCase):
    """Color spaces."""

    def test_littlecms(self) -> None:
        """sRGB of another profile is what LittleCMS makes of it and its own sRGB, within 1 level."""
        goal = ImageCms.createProfile("sRGB")
        for data, moved in ((CRAYONS, 0), (profile_of("adobergb"), 20), (profile_of("rommrgb"), 20)):
            source = ImageCms.ImageCmsProfile(io.BytesIO(data))
            intent = ImageCms.Intent(ImageCms.getDefaultIntent(source))
            theirs = ImageCms.profileToProfile(Image.fromarray(tile()), source, goal, intent, "RGB")
            ours, profile = convert_colors(tile(), data, "srgb")
            self.assertLessEqual(numpy.abs(ours.astype(int) - numpy.asarray(theirs)).max(), 1)
            self.assertGreaterEqual(numpy.abs(ours.astype(int) - tile()).max(), moved)
            self.assertEqual(profile, profile_of("srgb"))

    def test_pydicom(self) -> None:
        """An instance's profile gives the colors that pydicom gives."""
        transform = pydicom.pixels.create_icc_transform(icc_profile=profile_of("displayp3"), color_space="sRGB")
        theirs = pydicom.pixels.apply_icc_profile(tile().copy(), transform=transform)
        ours, _ = convert_colors(tile(), profile_of("displayp3"), "srgb")
        self.assertLessEqual(numpy.abs(ours.astype(int) - theirs).max(), 1)

    def test_made_profiles(self) -> None:
        """The profiles made here have the published primaries, and white stays white in all."""
        published = {
            "srgb": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
            "displayp3": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
            "adobergb": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)),
            "rommrgb": ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)),
        }
        self.assertEqual(set(published), set(TARGETS))
        white = numpy.full((1, 1, 3), 255, numpy.uint8)
        for name, primaries in published.items():
            profile = ImageCms.ImageCmsProfile(io.BytesIO(profile_of(name))).profile
            adapted = numpy.linalg.inv(profile.chromatic_adaptation[0])
            for primary, (x, y) in zip(
                (profile.red_colorant, profile.green_colorant, profile.blue_colorant), primaries
            ):
                xyz = adapted @ primary[0]
                self.assertAlmostEqual(xyz[0] / xyz.sum(), x, 3, name)
                self.assertAlmostEqual(xyz[1] / xyz.sum(), y, 3, name)
            self.assertEqual(convert_colors(white, b"", name)[0].tolist(), [[[255, 255, 255]]])

    def test_curves(self) -> None:
        """Middle gray, 0.216 of white's light, has the number that each space's curve gives it."""
        gray = numpy.full((1, 1, 3), 128, numpy.uint8)
        for name, number in (("srgb", 128), ("displayp3", 128), ("adobergb", 127), ("rommrgb", 109)):
            self.assertEqual(set(convert_colors(gray, b"", name)[0].flat), {number}, name)

    def test_theirs_and_back(self) -> None:
        """To a wider space and back is where it was, within rounding; without a profile sRGB is meant."""
        for name in TARGETS:
            there, profile = convert_colors(tile(), b"", name)
            back, _ = convert_colors(there, profile, "srgb")
            self.assertLess(numpy.abs(back.astype(int) - tile()).mean(), 0.6, name)
        self.assertIs(convert_colors(tile(), profile_of("srgb"), "srgb")[1], profile_of("srgb"))

    def test_own(self) -> None:
        """Profiles of one's own go before those made here."""
        pixels, profile = convert_colors(tile(), b"", "adobergb", CRAYONS)
        self.assertEqual(profile, CRAYONS)
        self.assertTrue((pixels != convert_colors(tile(), b"", "adobergb")[0]).any())

    def test_wrong(self) -> None:
        """What is no profile, not of RGB, or no name, is refused."""
        gray = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
        for profile in (b"nothing", CRAYONS[:200], bytes(1000), gray):
            self.assertRaises(BadProfile, convert_colors, tile(), profile, "srgb")
        self.assertRaises(BadProfile, convert_colors, tile(), b"", "cmyk")

    def test_damaged_profiles(self) -> None:
        """Damaged profiles are refused or used, never more."""
        for seed in range(300):
            try:
                pixels, _ = convert_colors(tile()[:8, :8], damaged(CRAYONS, seed), "srgb")
                self.assertEqual(pixels.shape, (8, 8, 3))
            except BadProfile:
                pass

    def test_threads(self) -> None:
        """Several threads that use one transform get the same colors as one."""
        expected = convert_colors(tile(), profile_of("displayp3"), "srgb")[0]
        wrong: list[int] = []

        def convert() -> None:
            results = [convert_colors(tile(), profile_of("displayp3"), "srgb")[0] for _ in range(10)]
            wrong.extend(int((result != expected).sum()) for result in results)

        threads = [threading.Thread(target=convert) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual((sum(wrong), len(wrong)), (0, 40))


class TranscodeTests(SynchronousTestCase):
    """JPEG and JPEG XL."""

    def test_there_and_back(self) -> None:
        """Every byte comes back: baseline, progressive, gray, RGB and with a profile; a pad byte is dropped."""
        forms: list[bytes] = []
        for pixels, options in (
            (tile(), {"subsampling": 2}),
            (tile(), {"subsampling": 0, "progressive": True, "icc_profile": CRAYONS}),
            (tile()[:, :, 0], {}),
        ):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=80, **options)
            forms.append(buffer.getvalue())
        forms.append(imagecodecs.jpeg8_encode(tile(), 80, colorspace="RGB", outcolorspace="RGB"))
        for jpeg in forms:
            packed = jpeg_to_jxl(jpeg + b"\0")
            self.assertEqual(jxl_to_jpeg(packed), jpeg)
            self.assertLess(len(packed), len(jpeg))

    def test_refused(self) -> None:
        """What cannot be: deep and lossless JPEG, JPEG XL made of pixels, cut off and too large ones."""
        frames = codecs()
        for name in ("jpeg-12", "jpeg-lossless", "jpeg-ls"):
            self.assertRaises(NotDecodable, jpeg_to_jxl, frames[name][0])
        self.assertRaises(NotDecodable, jxl_to_jpeg, frames["jpegxl"][0])
        self.assertRaises(BadImage, jpeg_to_jxl, frames["jpeg"][0][:900])
        self.assertRaises(BadImage, jxl_to_jpeg, frames["jpegxl-jpeg"][0][:300])
        self.assertRaises(ImageTooLarge, jpeg_to_jxl, frames["jpeg"][0], 64 * 63)
        self.assertRaises(ImageTooLarge, jxl_to_jpeg, frames["jpegxl-jpeg"][0], 64 * 63)

    def test_damaged(self) -> None:
        """Damaged ones are refused or transcoded, never more."""
        frames = codecs()
        for transcode, data in ((jpeg_to_jxl, frames["jpeg"][0]), (jxl_to_jpeg, frames["jpegxl-jpeg"][0])):
            refused = 0
            for seed in range(200):
                try:
                    transcode(damaged(data, seed))
                except BadImage:
                    refused += 1
            self.assertGreater(refused, 20)
