"""Sets of numbers as runs."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.page.support import numbers
from twistedproxy.page.runs import merged, minus, runs_in, runs_of

SETS = [{number for number in range(1, 7) if bits >> number & 1} for bits in range(0, 128, 2)]
"""All sets of numbers from 1 to 6."""


class RunsTests(SynchronousTestCase):
    """They do what sets do, and stay ascending with gaps."""

    def test_like_sets(self) -> None:
        """Union and difference, of all pairs of small sets."""
        for one in SETS:
            self.assertEqual(numbers(runs_of(one)), one)
            self.assertEqual(runs_in(bytearray(number in one for number in range(8))), runs_of(one))
            for other in SETS:
                self.assertEqual(numbers(minus(runs_of(one), runs_of(other))), one - other)
                self.assertEqual(numbers(merged([*runs_of(one), *runs_of(other)])), one | other)

    def test_overlap(self) -> None:
        """Runs that overlap or touch become one."""
        self.assertEqual(merged([(5, 9), (1, 3), (4, 4), (7, 8), (11, 12)]), [(1, 9), (11, 12)])
        self.assertEqual(minus([(1, 5), (7, 20)], [(4, 8), (10, 11), (20, 99)]), [(1, 3), (9, 9), (12, 19)])
