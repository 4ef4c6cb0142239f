"""twistedproxy.imaging.resizing: one frame made smaller. What is put together of several is tested with downsampled instances."""

from __future__ import annotations

import numpy
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.imaging.geometry import Axis, Cut
from twistedproxy.imaging.resizing import Canvas


def resized(pixels: numpy.ndarray, rows: int, columns: int) -> numpy.ndarray:
    """*pixels*, one frame, as *rows* x *columns*."""
    height, width = pixels.shape[:2]
    vertical, horizontal = Axis(height, rows, step=height / rows), Axis(width, columns, step=width / columns)
    canvas = Canvas(Cut(vertical, horizontal, height, width, 1, 1, 1, rows, columns))
    canvas.add(0, 0, pixels)
    return canvas.finish()


def noise(rows: int, columns: int, bands: int) -> numpy.ndarray:
    """The same noise at every call."""
    shape = (rows, columns, bands) if bands > 1 else (rows, columns)
    return numpy.random.default_rng(5).integers(0, 256, shape, numpy.uint8)


def by_hand(array: numpy.ndarray, rows: int, columns: int) -> numpy.ndarray:
    """Averages by area: every pixel cut into as many parts as there are result lines, in float64."""
    height, width = array.shape[:2]
    fine = array.astype("f8").repeat(rows, axis=0).repeat(columns, axis=1)
    return fine.reshape(rows, height, columns, width, -1).mean(axis=(1, 3)).reshape(rows, columns, *array.shape[2:])


class ResizedTests(SynchronousTestCase):
    """One array."""

    def test_exact(self) -> None:
        """Whole and fractional factors give the average by area, within rounding."""
        for bands in (1, 3):
            array = noise(24, 30, bands)
            for rows, columns in ((12, 15), (7, 11), (6, 10), (1, 1), (24, 11), (24, 30)):
                result = resized(array, rows, columns)
                self.assertEqual((result.shape[:2], result.dtype), ((rows, columns), array.dtype))
                off = numpy.abs(result - by_hand(array, rows, columns)).max()
                self.assertLessEqual(off, 0.51, (rows, columns, bands))

    def test_flat(self) -> None:
        """An even surface stays even, larger or smaller."""
        array = numpy.full((13, 17), 77, numpy.uint8)
        for size in ((5, 6), (40, 31), (13, 40)):
            result = resized(array, *size)
            self.assertEqual((result.shape, set(result.flat)), (size, {77}))
