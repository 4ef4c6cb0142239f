"""Sets of numbers as runs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.page.support import numbers
from twistedproxy.page.runs import merged, minus, runs_of

SETS = st.sets(st.integers(1, 30))


class RunsTests(SynchronousTestCase):
    """They do what sets do, and stay ascending with gaps."""

    @given(SETS, SETS)
    def test_like_sets(self, one: set[int], other: set[int]) -> None:
        """Union and difference."""
        self.assertEqual(numbers(runs_of(one)), one)
        self.assertEqual(numbers(minus(runs_of(one), runs_of(other))), one - other)
        self.assertEqual(numbers(merged([*runs_of(one), *runs_of(other)])), one | other)

    def test_overlap(self) -> None:
        """Runs that overlap or touch become one."""
        self.assertEqual(merged([(5, 9), (1, 3), (4, 4), (7, 8), (11, 12)]), [(1, 9), (11, 12)])
        self.assertEqual(minus([(1, 5), (7, 20)], [(4, 8), (10, 11), (20, 99)]), [(1, 3), (9, 9), (12, 19)])
