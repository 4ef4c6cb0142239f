"""Which frames lie around those that a caller looks at."""

from __future__ import annotations

import attrs
from twisted.trial.unittest import SynchronousTestCase

from tests.prefetch.support import LOOP, SLIDE
from tests.properties import given, st
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.prefetch.ahead.surroundings import (
    FURTHER,
    RING,
    Gaze,
    Reach,
    around,
    edge,
    ordered,
    same_place,
    tiled_fully,
)
from twistedproxy.prefetch.regions import FrameGrid

GRID = FrameGrid.of(SLIDE)
ALL_ROUND = Reach(RING, RING, RING, RING)
ONE = Reach(1, 1, 1, 1)


def square(side: int, tile: int = 256) -> InstanceMetadata:
    """A level of so many tiles a side."""
    pixels = side * tile
    return InstanceMetadata(side * side, tile, tile, pixels, pixels, "TILED_FULL")


class AroundTests(SynchronousTestCase):
    """Frames around a place."""

    def test_nearest_first(self) -> None:
        """The frame itself, then those beside it, row by row."""
        self.assertEqual(around(GRID, 0, 1, 1, ONE), [202, 1, 2, 3, 201, 203, 401, 402, 403])

    def test_edges(self) -> None:
        """Nothing beyond the grid, on any side."""
        self.assertEqual(around(GRID, 0, 0, 0, ONE), [1, 2, 201, 202])
        self.assertEqual(around(GRID, 0, 99, 199, ONE), [20_000, 19_799, 19_800, 19_999])
        self.assertEqual(around(GRID, 0, -3, 500, ONE), [])

    def test_planes(self) -> None:
        """In the plane of the frame, and none that the instance does not have."""
        planes = FrameGrid.of(attrs.evolve(SLIDE, frames=40_000))
        self.assertEqual(around(planes, 1, 0, 0, ONE), [20_001, 20_002, 20_201, 20_202])
        short = FrameGrid.of(attrs.evolve(SLIDE, frames=201))
        self.assertEqual(around(short, 0, 0, 0, ONE), [1, 2, 201])

    @given(st.integers(1, 20_000), st.builds(Reach, *[st.integers(0, 9)] * 4))
    def test_edge_is_of_it(self, number: int, reach: Reach) -> None:
        """The edge is part of what lies around, and holds its first and last frame."""
        inside = around(GRID, *GRID.place(number), reach)
        found = list(edge(GRID, number, reach))
        self.assertLessEqual({*found, number}, {*inside})
        self.assertLessEqual({min(inside), max(inside)}, {*found})


class GazeTests(SynchronousTestCase):
    """Where a caller goes."""

    def test_at_rest(self) -> None:
        """Who looks at one place sees as far on all sides."""
        gaze = Gaze(0, 10, 10)
        self.assertEqual({gaze.move(0, 10, column) for column in (10, 11, 9, 10)}, {ALL_ROUND})

    def test_moving(self) -> None:
        """Who moves to the right sees further there, and up, there."""
        right, up = Gaze(0, 10, 10), Gaze(0, 10, 10)
        for step in range(6):
            reach = right.move(0, 10, 10 + step), up.move(0, 10 - step, 10)
        self.assertEqual(reach, (Reach(RING, RING, RING, RING + FURTHER), Reach(RING + FURTHER, RING, RING, RING)))

    def test_jump(self) -> None:
        """Who jumps, or looks at another plane, goes in no direction, and is there."""
        gaze = Gaze(0, 10, 10)
        self.assertEqual(gaze.move(0, 10, 60), ALL_ROUND)
        self.assertEqual((gaze.row, gaze.column), (10, 60))
        self.assertEqual(gaze.move(1, 14, 60), ALL_ROUND)
        self.assertEqual((gaze.plane, gaze.row), (1, 14))


class OtherLevelTests(SynchronousTestCase):
    """The same place of another level."""

    def test_same_place(self) -> None:
        """The middle of a frame is where it is on the slide, whatever the levels' sizes and tiles."""
        self.assertEqual(same_place(Gaze(0, 3, 5), square(32), square(128)), (14, 22))
        self.assertEqual(same_place(Gaze(0, 14, 22), square(128), square(32)), (3.625, 5.625))
        self.assertEqual(same_place(Gaze(0, 3, 5), square(32), square(64, 512)), (7, 11))

    def test_which(self) -> None:
        """Only frames that tile a plane row by row have places."""
        self.assertEqual(tiled_fully(SLIDE), GRID)
        for other in (LOOP, attrs.evolve(SLIDE, organization="TILED_SPARSE"), attrs.evolve(SLIDE, frames=0)):
            self.assertIsNone(tiled_fully(other))

    def test_ordered(self) -> None:
        """Frames that follow each other lie in one row; what has one frame, no size, or no order has no places."""
        self.assertEqual(ordered(SLIDE), GRID)
        self.assertEqual(ordered(attrs.evolve(SLIDE, frames=1)), attrs.evolve(GRID, frames=1))
        loop = ordered(LOOP)
        assert loop is not None
        self.assertEqual((loop.rows, loop.columns), (1, 100))
        sparse = attrs.evolve(SLIDE, organization="TILED_SPARSE")
        for other in (sparse, attrs.evolve(LOOP, frames=1), attrs.evolve(LOOP, rows=0), attrs.evolve(SLIDE, frames=0)):
            self.assertIsNone(ordered(other))
