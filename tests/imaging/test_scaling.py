"""twistedproxy.imaging.scaling: values, parts, types, refusals."""

from __future__ import annotations

import numpy
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.imaging.errors import BadImage
from twistedproxy.imaging.scaling import AREA, INTERPOLATIONS, REACH, resize


def noise(rows: int, columns: int, dtype: str = "u1", bands: int = 3) -> numpy.ndarray:
    """The same noise at every call, over the whole range of the type."""
    limits = numpy.iinfo(dtype)
    shape = (rows, columns, bands) if bands > 1 else (rows, columns)
    return numpy.random.default_rng(5).integers(limits.min, limits.max, shape, dtype, endpoint=True)


def by_hand(array: numpy.ndarray, rows: int, columns: int) -> numpy.ndarray:
    """Averages by area: every pixel cut into as many parts as there are result lines, in float64."""
    height, width = array.shape[:2]
    fine = array.astype("f8").repeat(rows, axis=0).repeat(columns, axis=1)
    return fine.reshape(rows, height, columns, width, -1).mean(axis=(1, 3)).reshape(rows, columns, *array.shape[2:])


class AreaTests(SynchronousTestCase):
    """The default."""

    def test_exact(self) -> None:
        """Whole and fractional factors give the average by area, within rounding."""
        for bands in (1, 3):
            array = noise(24, 30, bands=bands)
            for rows, columns in ((12, 15), (7, 11), (6, 10), (1, 1), (24, 11), (24, 30)):
                result = resize(array, rows, columns)
                self.assertEqual((result.shape[:2], result.dtype), ((rows, columns), array.dtype))
                off = numpy.abs(result - by_hand(array, rows, columns)).max()
                self.assertLessEqual(off, 0.51, (rows, columns, bands))

    def test_between_pixels(self) -> None:
        """A box that starts inside of a pixel takes of it what lies inside, also at whole factors."""
        line = numpy.array([[0, 100, 200, 40, 250]], "u1").repeat(4, axis=0)
        self.assertEqual(resize(line, 2, 2, AREA, (0.5, 0.0, 4.5, 4.0)).tolist(), [[100, 133]] * 2)

    def test_sixteen_bits(self) -> None:
        """Types wider than a byte, signed ones too, keep their type and range."""
        for dtype in ("u2", "i2"):
            array = noise(20, 20, dtype, 1)
            result = resize(array, 6, 6)
            self.assertEqual(result.dtype, array.dtype)
            self.assertLessEqual(numpy.abs(result - by_hand(array, 6, 6)).max(), 0.6)


class PartTests(SynchronousTestCase):
    """One part at a time."""

    def test_no_seam(self) -> None:
        """Parts resized by themselves, with the filter's reach around them, equal the same part of the whole."""
        whole = noise(185, 185)
        factor, side = 3.7, 50
        for name in INTERPOLATIONS:
            expected = resize(whole, side, side, name).astype(int)
            reach = int(numpy.ceil(REACH[name] * factor)) + 1
            for first, last in ((0, 20), (20, 40), (40, 50)):
                low = max(0, int(first * factor) - reach)
                high = min(185, int(numpy.ceil(last * factor)) + reach)
                part = whole[low:high]
                # the part grows to whole result lines: only what lies inside is wanted
                box = (0.0, first * factor - low, 185.0, min(last * factor - low, float(len(part))))
                if name == AREA:
                    result = resize(part, last - first, side, name, box)
                    self.assertLessEqual(numpy.abs(result.astype(int) - expected[first:last]).max(), 1, name)
                else:
                    inner = resize(part, last - first, side, name, box).astype(int)
                    middle = slice(3, -3)
                    self.assertLessEqual(numpy.abs(inner[middle] - expected[first:last][middle]).max(), 1, name)

    def test_whole_pixels(self) -> None:
        """A box of the result's size is cut out as it is."""
        array = noise(10, 10)
        for name in INTERPOLATIONS:
            self.assertTrue((resize(array, 3, 4, name, (2, 5, 6, 8)) == array[5:8, 2:6]).all())


class FilterTests(SynchronousTestCase):
    """The named interpolations."""

    def test_flat(self) -> None:
        """An even surface stays even, larger or smaller, in every type."""
        for name in INTERPOLATIONS:
            for dtype in ("u1", "u2", "i2"):
                array = numpy.full((13, 17), 77, dtype)
                for size in ((5, 6), (40, 31)):
                    result = resize(array, *size, name)
                    self.assertEqual((result.shape, result.dtype.str[1:], set(result.flat)), (size, dtype, {77}))

    def test_nearest_invents_nothing(self) -> None:
        """Nearest takes values that are there."""
        array = noise(16, 16, "u2", 1)
        self.assertLessEqual(set(resize(array, 5, 7, "nearest").flat), set(array.flat))

    def test_differ(self) -> None:
        """Each interpolation is one of its own."""
        array = noise(40, 40)
        results = {resize(array, 11, 11, name).tobytes() for name in INTERPOLATIONS}
        self.assertEqual(len(results), len(INTERPOLATIONS))

    def test_refused(self) -> None:
        """Unknown names, empty results and boxes outside of the array."""
        array = noise(8, 8)
        self.assertRaises(ValueError, resize, array, 4, 4, "sinc")
        self.assertRaises(BadImage, resize, array, 0, 4)
        self.assertRaises(BadImage, resize, array, 4, 4, AREA, (0, 0, 9, 8))
        self.assertRaises(BadImage, resize, array, 4, 4, AREA, (5, 0, 5, 8))
