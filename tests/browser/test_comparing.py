"""How a browser's picture is judged, without a browser."""

from __future__ import annotations

from pathlib import Path

import numpy
from PIL import Image
from twisted.trial.unittest import SynchronousTestCase

from tests.browser.comparing import MOST, is_blank, worst_block
from tests.browser.slides import Pixels, Truth
from tests.slides import slide

LEFT, TOP, WIDTH, HEIGHT = 70, 90, 320, 256


class ComparingTests(SynchronousTestCase):
    """Pictures of a slide with 3 x 4 frames."""

    def setUp(self) -> None:
        self.truth = Truth(slide(self.mktemp(), 3, 4, 128, total_rows=370, total_columns=500).path)

    def picture(self, pixels: Pixels) -> Path:
        """A screenshot that shows *pixels*."""
        path = Path(self.mktemp() + ".png")
        Image.fromarray(pixels).save(path)
        return path

    def test_right(self) -> None:
        """What is cut out of the slide is found to be the slide, and no blank."""
        path = self.picture(self.truth.region(LEFT, TOP, WIDTH, HEIGHT))
        self.assertEqual(worst_block(path, self.truth, LEFT, TOP), 0)
        self.assertFalse(is_blank(path))

    def test_one_tile_missing(self) -> None:
        """One tile that was not drawn is noticed."""
        pixels = self.truth.region(LEFT, TOP, WIDTH, HEIGHT)
        pixels[128 - TOP : 256 - TOP, 128 - LEFT : 256 - LEFT] = 255
        self.assertGreater(worst_block(self.picture(pixels), self.truth, LEFT, TOP), MOST)

    def test_elsewhere(self) -> None:
        """A picture of another place is noticed."""
        path = self.picture(self.truth.region(LEFT + 6, TOP, WIDTH, HEIGHT))
        self.assertGreater(worst_block(path, self.truth, LEFT, TOP), MOST)

    def test_beyond_the_edge(self) -> None:
        """Beyond the slide a viewer may draw what it likes."""
        shown = numpy.zeros((HEIGHT, WIDTH, 3), numpy.uint8)
        known = self.truth.region(300, 200, WIDTH, HEIGHT)
        self.assertEqual(known.shape, (170, 200, 3))
        shown[: known.shape[0], : known.shape[1]] = known
        self.assertEqual(worst_block(self.picture(shown), self.truth, 300, 200), 0)

    def test_frame_by_frame(self) -> None:
        """A region is what the frames' own pixels say, also over their borders."""
        whole = self.truth.region(0, 0, 500, 370)
        self.assertEqual(whole.shape, (370, 500, 3))
        numpy.testing.assert_array_equal(self.truth.region(LEFT, TOP, 50, 60), whole[90:150, 70:120])

    def test_blank(self) -> None:
        """A picture of one colour is blank."""
        self.assertTrue(is_blank(self.picture(numpy.full((20, 20, 3), 240, numpy.uint8))))
