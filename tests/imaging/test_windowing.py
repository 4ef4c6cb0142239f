"""twistedproxy.imaging.windowing: beside pydicom, and by the formulas' own numbers."""

from __future__ import annotations

import itertools
import logging

import attrs
import numpy
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut
from twisted.trial.unittest import SynchronousTestCase

from tests.imaging.datasets import facts_of_dataset
from tests.imaging.test_decode import TEST_FILES
from twistedproxy.imaging.errors import BadImage, NotDecodable
from twistedproxy.imaging.luts_and_palettes import LookupTable
from twistedproxy.imaging.parameters import Window
from twistedproxy.imaging.pixel_description import WINDOW_FUNCTIONS, PixelFacts
from twistedproxy.imaging.windowing import to_display
from twistedproxy.rendering.planner import is_shown_as_stored

DEEP = PixelFacts(1, 5, bits_allocated=16, bits_stored=12, high_bit=11)


def row(*values: int, dtype: str = "u2") -> numpy.ndarray:
    """One line of pixels."""
    return numpy.array([values], dtype)


def table(first: int, bits: int, *entries: int) -> LookupTable:
    """A lookup table."""
    return LookupTable(first, bits, numpy.array(entries, "<u2").tobytes())


class TheirsTests(SynchronousTestCase):
    """Beside pydicom."""

    def setUp(self) -> None:
        """pydicom warns of what its own test files are made to break."""
        logging.disable(logging.CRITICAL)
        self.addCleanup(logging.disable, logging.NOTSET)
        self.addCleanup(self.flushWarnings)

    def test_files(self) -> None:
        """Test files with a window or a palette look as pydicom makes them, within rounding."""
        compared = 0
        for path in TEST_FILES:
            dataset = pydicom.dcmread(path, force=True)
            try:
                pixels = dataset.pixel_array
            except Exception:
                continue
            pixels = pixels.astype(pixels.dtype.newbyteorder("="))
            facts = facts_of_dataset(dataset)
            if facts.photometric_interpretation == "PALETTE COLOR":
                theirs = apply_color_lut(pixels, dataset) >> 8
            elif facts.window_widths:
                theirs = _windowed(pixels, dataset, facts)
            else:
                continue
            self.assertLessEqual(numpy.abs(to_display(pixels, facts) - theirs).max(), 0.51, path.name)
            compared += 1
        self.assertGreaterEqual(compared, 10)

    def test_functions(self) -> None:
        """Every window function over every stored value, signed and not, as pydicom has them."""
        dataset = pydicom.Dataset()
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsStored, dataset.WindowCenter, dataset.WindowWidth = 12, 700.5, 1200
        dataset.RescaleSlope, dataset.RescaleIntercept = 1.5, -300
        for signed, low in ((0, 0), (1, -2048)):
            dataset.PixelRepresentation = signed
            pixels = numpy.arange(low, low + 4096, dtype="i2" if signed else "u2")[None]
            facts = attrs.evolve(
                DEEP,
                pixel_representation=signed,
                window_centers=(700.5,),
                window_widths=(1200.0,),
                rescale_slope=1.5,
                rescale_intercept=-300.0,
            )
            for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
                dataset.VOILUTFunction = function
                ours = to_display(pixels, attrs.evolve(facts, voi_lut_function=function))
                off = numpy.abs(ours - _windowed(pixels, dataset, facts)).max()
                self.assertLessEqual(off, 0.51, (function, signed))


def _windowed(pixels: numpy.ndarray, dataset: pydicom.Dataset, facts: PixelFacts) -> numpy.ndarray:
    """pydicom's result, whose range is that of the stored values, as 0 to 255."""
    result = apply_voi_lut(apply_modality_lut(pixels, dataset), dataset)
    half = 1 << facts.bits_stored - 1
    ends = numpy.array((-half, half - 1) if facts.signed else (0, 2 * half - 1))
    low, high = ends * facts.rescale_slope + facts.rescale_intercept
    return (result - low) / (high - low) * 255


class OrderTests(SynchronousTestCase):
    """Which table or window counts."""

    def test_nothing_said(self) -> None:
        """Without a window, 8-bit values stay; deeper ones of one of many tiles spread over what the bits hold."""
        eight = row(0, 7, 255, dtype="u1")
        self.assertTrue((to_display(eight, PixelFacts(1, 3)) == eight).all())
        tile = attrs.evolve(DEEP, tiled=True)
        self.assertEqual(to_display(row(0, 1024, 2048), tile).tolist(), [[0, 64, 128]])

    def test_range_of_a_byte(self) -> None:
        """Deep values whose range is that of 8 bits, by depth, by name or by themselves, come as 8 bits."""
        expected = [[0, 7, 255]]
        for kind, bits in (("u2", 16), ("u4", 32)):
            facts = PixelFacts(1, 3, bits_allocated=bits, bits_stored=12, high_bit=11)
            for how in ({"bits_stored": 8, "high_bit": 7}, {"value_range": (0, 255)}, {}):
                shown = to_display(row(0, 7, 255, dtype=kind), attrs.evolve(facts, **how))
                self.assertEqual((shown.dtype, shown.tolist()), (numpy.uint8, expected), (kind, how))

    def test_smallest_and_largest(self) -> None:
        """Values that the instance names span black to white, before those of the frame."""
        named = attrs.evolve(DEEP, value_range=(1000, 2000))
        self.assertEqual(to_display(row(0, 1000, 1500, 2000, 4000), named).tolist(), [[0, 0, 128, 255, 255]])

    def test_frame(self) -> None:
        """A frame that is no tile spans black to white by itself, its padding left out."""
        alone = attrs.evolve(DEEP, padding=(4095, 4095))
        self.assertEqual(to_display(row(100, 200, 300, 4095), alone).tolist(), [[0, 128, 255, 255]])
        self.assertEqual(to_display(row(7, 7), attrs.evolve(alone)).tolist(), [[0, 0]])

    def test_asked_before_stored(self) -> None:
        """A window asked for goes before the VOI LUT, and that before the stored window."""
        facts = attrs.evolve(DEEP, window_centers=(1.0,), window_widths=(2.0,), voi_lut=table(10, 8, 0, 100, 255))
        pixels = row(0, 10, 11, 12, 4000)
        self.assertEqual(to_display(pixels, facts).tolist(), [[0, 0, 100, 255, 255]])
        self.assertEqual(
            to_display(pixels, facts, Window(2000.0, 4000.0, "linear-exact")).tolist(), [[0, 1, 1, 1, 255]]
        )

    def test_modality_table(self) -> None:
        """A modality LUT's values are what the window is about, or are shown over its depth."""
        facts = attrs.evolve(DEEP, modality_lut=table(1, 12, 0, 1000, 4095))
        self.assertEqual(to_display(row(0, 1, 2, 3, 9), facts).tolist(), [[0, 0, 62, 255, 255]])
        shown = to_display(row(0, 1, 2, 3, 9), facts, Window(1000.0, 1.0))
        self.assertEqual(shown.tolist(), [[0, 0, 255, 255, 255]])

    def test_modality_table_alone(self) -> None:
        """A modality LUT that fills less than its depth is shown from its smallest to its largest value."""
        facts = attrs.evolve(DEEP, modality_lut=table(0, 16, 100, 200, 300))
        self.assertEqual(to_display(row(0, 1, 2), facts).tolist(), [[0, 128, 255]])

    def test_floating(self) -> None:
        """Floating-point values span black to white, what is no number left out."""
        facts = PixelFacts(1, 4, bits_allocated=32, bits_stored=32, high_bit=31, floating=True)
        pixels = row(0.5, 1.0, 1.5, numpy.nan, dtype="f4")
        self.assertEqual(to_display(pixels, facts).tolist(), [[0, 128, 255, 0]])

    def test_narrow_window(self) -> None:
        """A linear window less than 1 wide, which only values that are no integers can need, is taken exactly."""
        facts = attrs.evolve(DEEP, rescale_slope=0.001, window_centers=(0.5,), window_widths=(0.5,))
        self.assertEqual(to_display(row(0, 250, 500, 750), facts).tolist(), [[0, 0, 128, 255]])

    def test_shown_as_stored(self) -> None:
        """Gray of 8 bits is shown as it is stored where nothing, or a window of just that width, applies to it."""
        plain = PixelFacts(1, 1)
        full = {"window_centers": (128.0,), "window_widths": (256.0,)}
        for same in ({}, full, {"rescale_slope": 2.0, "rescale_intercept": -5.0}):
            self.assertTrue(is_shown_as_stored(attrs.evolve(plain, **same)), same)
        for other in (
            {**full, "window_widths": (200.0,)},
            {"rescale_slope": -1.0},
            {"rescale_slope": 2.0, **full},
            {"voi_lut": table(0, 8, 0, 255)},
            {"modality_lut": table(0, 8, 0, 255)},
            {"inverse": True},
            {"photometric_interpretation": "MONOCHROME1"},
            {"photometric_interpretation": "PALETTE COLOR"},
            {"pixel_representation": 1},
            {"bits_stored": 7, "high_bit": 6},
            {"bits_allocated": 16, "bits_stored": 8},
        ):
            self.assertFalse(is_shown_as_stored(attrs.evolve(plain, **other)), other)
        values = numpy.arange(256, dtype="u1")[None]
        seen = set()
        for function in WINDOW_FUNCTIONS:
            for center, width, slope in itertools.product(
                (127, 127.5, 128, 128.4), (0.5, 1, 254, 255, 256, 256.9), (1, 2)
            ):
                window = {"voi_lut_function": function, "window_centers": (center,), "window_widths": (width,)}
                facts = attrs.evolve(plain, rescale_slope=slope, **window)
                same = bool((to_display(values, facts) == values).all())
                self.assertEqual(same, is_shown_as_stored(facts), facts)
                seen.add((function, same))
        self.assertEqual(5, len(seen), seen)

    def test_stored_values(self) -> None:
        """Gray of 8 bits that is a frame, and no rendered picture, keeps its values."""
        facts = PixelFacts(1, 2, photometric_interpretation="MONOCHROME1", window_centers=(9.0,), window_widths=(2.0,))
        self.assertEqual(to_display(row(3, 250, dtype="u1"), facts, stored_values=True).tolist(), [[3, 250]])

    def test_inverted(self) -> None:
        """MONOCHROME1, or a shape of INVERSE, is white where it is low, at every depth and with a window."""
        low = attrs.evolve(DEEP, photometric_interpretation="MONOCHROME1")
        self.assertEqual(to_display(row(0, 4095), low).tolist(), [[255, 0]])
        self.assertEqual(to_display(row(0, 4095), low, Window(100.0, 10.0)).tolist(), [[255, 0]])
        for byte in ({"photometric_interpretation": "MONOCHROME1"}, {"inverse": True}):
            self.assertEqual(to_display(row(0, 250, dtype="u1"), PixelFacts(1, 2, **byte)).tolist(), [[255, 5]])
        both = attrs.evolve(low, inverse=True)  # as digital X-ray has it (PS3.3 section C.8.11.3.1.2)
        self.assertEqual(to_display(row(0, 4095), both).tolist(), [[255, 0]])

    def test_bits(self) -> None:
        """One bit is black or white; 32 bits are windowed without a table."""
        one = PixelFacts(1, 2, bits_allocated=1, bits_stored=1, high_bit=0)
        self.assertEqual(to_display(row(0, 1, dtype="u1"), one).tolist(), [[0, 255]])
        long = PixelFacts(1, 2, bits_allocated=32, bits_stored=32, high_bit=31)
        pixels = row(0, 1 << 31, (1 << 32) - 1, dtype="u4")
        self.assertEqual(to_display(pixels, long).tolist(), [[0, 128, 255]])
        self.assertEqual(to_display(pixels, long, Window(2.0**31, 10.0)).tolist(), [[0, 142, 255]])

    def test_no_such_window(self) -> None:
        """An unknown function or an empty window asked for is refused; a stored one without width says nothing."""
        for window in (Window(1.0, 10.0, "cubic"), Window(1.0, 0.0)):
            self.assertRaises(BadImage, to_display, row(1, 2), DEEP, window)
        stored = attrs.evolve(DEEP, window_centers=(1.0,), window_widths=(0.0,))
        self.assertEqual(to_display(row(0, 4095), stored).tolist(), [[0, 255]])


class ColorTests(SynchronousTestCase):
    """What is not gray."""

    def test_palette(self) -> None:
        """Entries are looked up by value; those of 16 bits that hold 8 are taken for 8."""
        tables = (table(1, 8, 10, 20), table(1, 16, 0x1000, 0xFF00), table(1, 16, 3, 4))
        facts = PixelFacts(1, 3, photometric_interpretation="PALETTE COLOR", palette=tables)
        shown = to_display(row(0, 2, 9, dtype="u1"), facts)
        self.assertEqual(shown.tolist(), [[[10, 16, 3], [20, 255, 4], [20, 255, 4]]])
        missing = attrs.evolve(facts, palette=None)
        self.assertRaises(NotDecodable, to_display, row(0, dtype="u1"), missing)

    def test_deep_colors(self) -> None:
        """Of 16 bits a color the upper 8 are shown."""
        facts = attrs.evolve(DEEP, samples_per_pixel=3, photometric_interpretation="RGB", bits_stored=16, high_bit=15)
        pixels = numpy.array([[[0, 0x80FF, 0xFFFF]]], "u2")
        self.assertEqual(to_display(pixels, facts).tolist(), [[[0, 0x80, 0xFF]]])
