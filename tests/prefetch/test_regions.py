"""Which frames block and display loads take: example by example, and against a second, naive implementation."""

from __future__ import annotations

import math
import time
from fractions import Fraction
from itertools import pairwise

import attrs
from twisted.trial.unittest import SynchronousTestCase

from tests.properties import given, settings, st
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.prefetch.regions import FrameGrid, Region, Screen, Tiling, block_load, display_load, numbers

BLOCK, DISPLAY = 8000, 3000

quickly = settings(max_examples=300)

# A slide of 100 x 100 frames of 256 pixels; its last frames are only partly used.
SLIDE = InstanceMetadata(
    frames=10_000,
    rows=256,
    columns=256,
    total_rows=25_600 - 100,
    total_columns=25_600 - 255,
    organization="TILED_FULL",
)
LOOP = InstanceMetadata(frames=600, rows=480, columns=640)


def number(row: int, column: int, plane: int = 0, rows: int = 100, columns: int = 100) -> int:
    return plane * rows * columns + row * columns + column + 1


def rectangle(rows: range, columns: range, plane: int = 0, height: int = 100, width: int = 100) -> list[int]:
    return [number(row, column, plane, height, width) for row in rows for column in columns]


def screen(metadata: InstanceMetadata, request: int, pixels: int = DISPLAY) -> Screen:
    return Screen(FrameGrid.of(metadata), request, pixels)


def naive_square(metadata: InstanceMetadata, request: int, side: int, pixels: int) -> list[int]:
    """The specification's words, step by step, over a written-out table of frame numbers."""
    if metadata.organization == "TILED_SPARSE":
        return []
    high, wide = (math.ceil(Fraction(side, length)) for length in (metadata.rows, metadata.columns))
    if metadata.total_rows is None or metadata.total_columns is None:
        table = [list(range(1, metadata.frames + 1))]
        top, left, up, back = 0, request - 1, 0, math.floor(Fraction(high * wide, 4))
        high, wide = 1, high * wide
    else:
        table = []
        following = 1
        while True:
            table = []
            for _ in range(math.ceil(Fraction(metadata.total_rows, metadata.rows))):
                width = math.ceil(Fraction(metadata.total_columns, metadata.columns))
                table.append(list(range(following, following + width)))
                following += width
            if request < following:
                break
        top, left = next((r, line.index(request)) for r, line in enumerate(table) if request in line)
        half_high = math.ceil(Fraction(pixels // 2, metadata.rows))
        half_wide = math.ceil(Fraction(pixels // 2, metadata.columns))
        up = math.floor(Fraction(high - half_high, 2)) if high > half_high else 0
        back = math.floor(Fraction(wide - half_wide, 2)) if wide > half_wide else 0
    top, left = max(0, top - up), max(0, left - back)
    while top + high > len(table) and top > 0:
        top -= 1
    while left + wide > len(table[0]) and left > 0:
        left -= 1
    return [n for line in table[top : top + high] for n in line[left : left + wide] if n <= metadata.frames]


def ring(metadata: InstanceMetadata, request: int, other: int) -> int:
    """How many rows or columns, whichever are more, lie between two frames of one plane."""
    width = metadata.frames
    height = 1
    if metadata.total_columns and metadata.total_rows:
        width = math.ceil(Fraction(metadata.total_columns, metadata.columns))
        height = math.ceil(Fraction(metadata.total_rows, metadata.rows))
    (row, column), (other_row, other_column) = (divmod((n - 1) % (width * height), width) for n in (request, other))
    return max(abs(row - other_row), abs(column - other_column))


@st.composite
def instances(draw: st.DrawFn) -> tuple[InstanceMetadata, int]:
    """An instance, tiled or not, and one of its frames."""
    rows, columns = draw(st.integers(1, 700)), draw(st.integers(1, 700))
    if draw(st.booleans()):
        high, wide = draw(st.integers(1, 40)), draw(st.integers(1, 40))
        planes = draw(st.integers(1, 3))
        metadata = InstanceMetadata(
            # Fewer than the grid has, as often as not.
            frames=draw(st.one_of(st.just(high * wide * planes), st.integers(1, high * wide * planes))),
            rows=rows,
            columns=columns,
            total_rows=high * rows - draw(st.integers(0, rows - 1)),
            total_columns=wide * columns - draw(st.integers(0, columns - 1)),
            organization=draw(st.sampled_from(["TILED_FULL", None])),
        )
    else:
        metadata = InstanceMetadata(frames=draw(st.integers(1, 1500)), rows=rows, columns=columns)
    return metadata, draw(st.integers(1, metadata.frames))


sides = st.integers(1, 9000)


class EveryRegion(SynchronousTestCase):
    """What holds for any instance, request and size of square."""

    @quickly
    @given(instances(), sides, sides)
    def test_as_specified(self, instance: tuple[InstanceMetadata, int], side: int, pixels: int) -> None:
        """A square has the very frames, in the very order, that the specification's steps give."""
        metadata, request = instance
        square = screen(metadata, request, pixels).square(side)
        self.assertEqual(list(square), naive_square(metadata, request, side, pixels))

    @quickly
    @given(instances(), sides, sides)
    def test_inside(self, instance: tuple[InstanceMetadata, int], side: int, pixels: int) -> None:
        """A square lies in the instance and in the request's plane, holds the request, and names no frame twice."""
        metadata, request = instance
        square = screen(metadata, request, pixels).square(side)
        frames = list(square)
        self.assertIn(request, square)
        self.assertEqual(sorted(set(frames)), frames)
        self.assertTrue(frames[0] >= 1 and frames[-1] <= metadata.frames)
        grid = FrameGrid.of(metadata)
        self.assertEqual({grid.place(n)[0] for n in (frames[0], frames[-1])}, {grid.place(request)[0]})
        self.assertEqual(len(square), len(frames))

    @quickly
    @given(instances(), sides, sides, st.booleans())
    def test_block_and_display_cover_the_block(
        self, instance: tuple[InstanceMetadata, int], side: int, pixels: int, one: bool
    ) -> None:
        """A block and the display load beside it share no frame, and together are exactly the block."""
        metadata, request = instance
        place = screen(metadata, request, pixels)
        alone, nothing = block_load(place, side, Region(), one)
        block, display = block_load(place, side, display_load(place, one), one)
        self.assertEqual(list(nothing), [])
        self.assertEqual(set(block) & set(display), set())
        self.assertEqual(len(block) + len(display), len(alone))
        if one:
            self.assertLessEqual(set(block) | set(display), set(place.square(side)))
        else:
            self.assertEqual(sorted([*block, *display]), list(place.square(side)))
        if not display:
            self.assertGreaterEqual(len(display_load(place, one)), len(alone))
        else:
            self.assertEqual(display, display_load(place, one))

    @quickly
    @given(instances(), sides, sides)
    def test_nearest(self, instance: tuple[InstanceMetadata, int], side: int, pixels: int) -> None:
        """At an origin that serves one frame a request, a load has the 64 frames nearest the request, row by row."""
        metadata, request = instance
        place = screen(metadata, request, pixels)
        everything = naive_square(metadata, request, pixels, pixels)
        nearest = sorted(everything, key=lambda n: (ring(metadata, request, n), n))[:64]
        display = display_load(place, one_frame_a_request=True)
        self.assertEqual(list(display), sorted(nearest))
        self.assertIn(request, display)
        columns = place.grid.columns
        self.assertTrue(all((run[0] - 1) // columns == (run[-1] - 1) // columns for run in display.runs))

    @quickly
    @given(instances(), sides, sides)
    def test_load_order_is_a_permutation(self, instance: tuple[InstanceMetadata, int], side: int, pixels: int) -> None:
        """Viewport rows first: the same frames, each once, and no row before one that is nearer to what is seen."""
        metadata, request = instance
        place = screen(metadata, request, pixels)
        block, display = block_load(place, side, display_load(place))
        for region in (block, display):
            ordered = list(numbers(place.viewport_first(region)))
            self.assertEqual(sorted(ordered), list(region))
            if place.grid.tiling is Tiling.FULL:
                top = place.grid.place(request)[1]
                seen = range(top, top + math.ceil(Fraction(max(1, pixels // 2), metadata.rows)))
                away = [min(abs(place.grid.place(n)[1] - row) for row in seen) for n in ordered]
                self.assertEqual(away, sorted(away))

    @quickly
    @given(st.sets(st.integers(1, 60)), st.sets(st.integers(1, 60)), st.integers(1, 9))
    def test_without(self, some: set[int], others: set[int], width: int) -> None:
        """A region without another has what sets of numbers would have, whatever the runs."""

        def region(frames: set[int]) -> Region:
            runs: list[range] = []
            for n in sorted(frames):
                if runs and runs[-1].stop == n and (n - 1) % width:
                    runs[-1] = range(runs[-1].start, n + 1)
                else:
                    runs.append(range(n, n + 1))
            return Region(tuple(runs))

        rest = region(some).without(region(others))
        self.assertEqual(list(rest), sorted(some - others))
        self.assertTrue(all(rest.runs))
        self.assertEqual([n in rest for n in range(62)], [n in some - others for n in range(62)])


class Squares(SynchronousTestCase):
    """Squares in a slide of 100 x 100 frames of 256 pixels."""

    def test_block_in_the_middle(self) -> None:
        """A block of 8000 px is 32 frames wide and starts 13 before the request."""
        block = screen(SLIDE, number(50, 60)).square(BLOCK)
        self.assertEqual(list(block), rectangle(range(37, 69), range(47, 79)))

    def test_display_in_the_middle(self) -> None:
        """A display load of 3000 px is 12 frames wide and starts 3 before the request."""
        self.assertEqual(list(screen(SLIDE, number(50, 60)).display()), rectangle(range(47, 59), range(57, 69)))

    def test_first_corner(self) -> None:
        """At the first frame nothing lies before it, and the square keeps its size."""
        self.assertEqual(list(screen(SLIDE, 1).square(BLOCK)), rectangle(range(32), range(32)))

    def test_last_corner(self) -> None:
        """At the last frame the whole square moves back and ends there."""
        self.assertEqual(list(screen(SLIDE, 10_000).display()), rectangle(range(88, 100), range(88, 100)))

    def test_larger_than_the_grid(self) -> None:
        """A square larger than the grid is all of it, and no more."""
        self.assertEqual(list(screen(SLIDE, 5_050).square(10**9)), list(range(1, 10_001)))

    def test_no_higher_than_half_a_screen(self) -> None:
        """A square no higher than half a screen starts at the request itself."""
        self.assertEqual(list(screen(SLIDE, number(50, 60)).square(1500)), rectangle(range(50, 56), range(60, 66)))

    def test_half_of_an_odd_screen(self) -> None:
        """Half a screen is rounded down in pixels, then up in frames: half of 1025 px is 512, two frames."""
        at = screen(SLIDE, number(50, 60), 1025)
        self.assertEqual(list(at.display()), rectangle(range(49, 54), range(59, 64)))
        self.assertEqual(list(at.square(1000)), rectangle(range(49, 53), range(59, 63)))

    def test_frames_of_1024_pixels(self) -> None:
        """Frames of 1024 px: a block is 8 x 8 from 3 before the request, a display 3 x 3 from the request."""
        large = attrs.evolve(SLIDE, rows=1024, columns=1024, total_rows=102_400, total_columns=102_400)
        at = screen(large, number(50, 60))
        self.assertEqual(list(at.square(BLOCK)), rectangle(range(47, 55), range(57, 65)))
        self.assertEqual(list(at.display()), rectangle(range(50, 53), range(60, 63)))

    def test_frames_higher_than_wide(self) -> None:
        """Height is counted in Rows, width in Columns."""
        tall = attrs.evolve(SLIDE, rows=1024, total_rows=102_400)
        at = screen(tall, number(50, 60))
        self.assertEqual(list(at.square(BLOCK)), rectangle(range(47, 55), range(47, 79)))

    def test_panning_by_half_a_screen(self) -> None:
        """Panning by half a screen, six frames, moves the display load by as much: half of it is new."""
        loads = [screen(SLIDE, number(50, 40 + 6 * step)).display() for step in range(5)]
        for step, load in enumerate(loads):
            self.assertEqual(list(load), rectangle(range(47, 59), range(37 + 6 * step, 49 + 6 * step)))
        for before, after in pairwise(loads):
            self.assertEqual(len(after.without(before)), len(after) // 2)

    def test_three_focal_planes(self) -> None:
        """Of three focal planes, the square stays in the one of the request, also at its edges."""
        planes = attrs.evolve(SLIDE, frames=30_000)
        middle = screen(planes, number(50, 60, plane=1)).display()
        self.assertEqual(list(middle), rectangle(range(47, 59), range(57, 69), plane=1))
        first = screen(planes, number(0, 0, plane=1)).display()
        self.assertEqual(list(first), rectangle(range(12), range(12), plane=1))
        last = screen(planes, number(99, 99, plane=1)).display()
        self.assertEqual(list(last), rectangle(range(88, 100), range(88, 100), plane=1))

    def test_optical_paths(self) -> None:
        """Optical paths repeat the grid like focal planes."""
        paths = attrs.evolve(SLIDE, frames=20_000)
        display = screen(paths, number(99, 0, plane=1)).display()
        self.assertEqual(list(display), rectangle(range(88, 100), range(12), plane=1))

    def test_fewer_frames_than_the_grid(self) -> None:
        """No number is above NumberOfFrames; the square is placed by the whole grid all the same."""
        cut = attrs.evolve(SLIDE, frames=number(95, 90))
        expected = [n for n in rectangle(range(88, 100), range(87, 99)) if n <= cut.frames]
        self.assertEqual(list(screen(cut, number(95, 90)).display()), expected)
        self.assertEqual(expected[-1], cut.frames)

    def test_request_outside(self) -> None:
        """A place for a frame that the instance doesn't have is refused."""
        for request in (0, 10_001):
            self.assertRaises(ValueError, screen, SLIDE, request)

    def test_no_frame_size(self) -> None:
        """Without the size of a frame there is no grid."""
        for sizes in ({"rows": 0}, {"columns": 0}):
            self.assertRaises(ValueError, FrameGrid.of, attrs.evolve(SLIDE, **sizes))


class Blocks(SynchronousTestCase):
    """What a block leaves to its display load."""

    def test_left_out_row_by_row(self) -> None:
        """A row that the display load crosses has two runs left, others one."""
        at = screen(SLIDE, number(50, 60))
        block, display = block_load(at, BLOCK, at.display())
        self.assertEqual(list(display), rectangle(range(47, 59), range(57, 69)))
        self.assertEqual(block.runs[0], range(number(37, 47), number(37, 79)))
        crossed = [run for run in block.runs if (run[0] - 1) // 100 == 47]
        self.assertEqual(crossed, [range(number(47, 47), number(47, 57)), range(number(47, 69), number(47, 78) + 1)])
        self.assertEqual(len(block.runs), 20 + 2 * 12)

    def test_display_as_large_as_the_block(self) -> None:
        """With a display load at least as large as the block there is none, and the block leaves nothing out."""
        for side in (DISPLAY, DISPLAY - 1, 256):
            at = screen(SLIDE, number(50, 60))
            block, display = block_load(at, side, at.display())
            self.assertEqual((list(block), list(display)), (list(at.square(side)), []))

    def test_viewport_rows_first(self) -> None:
        """A block load begins with the six rows that are seen, then goes on outwards."""
        at = screen(SLIDE, number(50, 60))
        block, _ = block_load(at, BLOCK, at.display())
        rows = list(dict.fromkeys((n - 1) // 100 for n in numbers(at.viewport_first(block))))
        self.assertEqual(rows[:6], [50, 51, 52, 53, 54, 55])
        self.assertEqual(rows[6:10], [49, 56, 48, 57])
        self.assertEqual(sorted(rows), list(range(37, 69)))

    def test_nearest_64(self) -> None:
        """Where an origin serves one frame a request, a display load is 64 frames in rings around the request."""
        at = screen(SLIDE, number(50, 60))
        display = display_load(at, one_frame_a_request=True)
        self.assertEqual(len(display), 64)
        self.assertLessEqual(set(rectangle(range(47, 54), range(57, 64))), set(display))
        block, beside = block_load(at, BLOCK, display, one_frame_a_request=True)
        self.assertEqual((len(block), len(beside)), (64, 0))

    def test_nearest_64_with_the_screen_first(self) -> None:
        """Where the screen is smaller than 64 frames, the block's share of them holds all of it."""
        large = attrs.evolve(SLIDE, rows=1024, columns=1024, total_rows=102_400, total_columns=102_400)
        at = screen(large, number(50, 60))
        block, display = block_load(at, 16_000, display_load(at, True), True)
        self.assertEqual(list(display), rectangle(range(50, 53), range(60, 63)))
        self.assertEqual(len(block), 64 - 9)

    def test_large_instances_are_cheap(self) -> None:
        """Half a million frames are held as few runs, and the nearest of them found in no time a reactor would notice."""
        huge = attrs.evolve(SLIDE, frames=500_000, total_rows=256 * 500, total_columns=256 * 1000)
        at = screen(huge, 250_500)
        everything = at.square(10**9)
        self.assertEqual((len(everything), len(everything.runs)), (500_000, 500))
        before = time.process_time()
        block, _ = block_load(at, 10**9, Region(), one_frame_a_request=True)
        # 2 ms where this was written, 300 ms where each frame is looked at.
        self.assertLess(time.process_time() - before, 0.05)
        self.assertEqual(len(block), 64)

    def test_nearest_row_by_row(self) -> None:
        """Also where the nearest frames fill whole rows, each row is a run of its own."""
        narrow = attrs.evolve(SLIDE, frames=400, total_columns=4 * 256)
        display = display_load(screen(narrow, 201, 10**6), one_frame_a_request=True)
        self.assertEqual(display.runs[:2], (range(169, 173), range(173, 177)))
        self.assertEqual((len(display.runs), len(display)), (16, 64))


class NotTiled(SynchronousTestCase):
    """Instances whose frames are no tiles."""

    def test_run_in_a_loop(self) -> None:
        """A loop's load is as many frames as the square would hold, a quarter of them before the request."""
        held = 7 * 5  # 3000 px of 480 rows and of 640 columns
        self.assertEqual(list(screen(LOOP, 300).display()), list(range(300 - held // 4, 300 - held // 4 + held)))

    def test_run_at_the_ends(self) -> None:
        """At either end of a loop the run moves to where there are frames, and keeps its length."""
        self.assertEqual(list(screen(LOOP, 3).display()), list(range(1, 36)))
        self.assertEqual(list(screen(LOOP, 599).display()), list(range(566, 601)))

    def test_short_loop(self) -> None:
        """A loop shorter than the run is taken whole."""
        self.assertEqual(list(screen(attrs.evolve(LOOP, frames=20), 11).display()), list(range(1, 21)))

    def test_load_order(self) -> None:
        """A loop is loaded from the request on, then what is before it."""
        at = screen(LOOP, 300)
        self.assertEqual(list(numbers(at.viewport_first(at.display()))), [*range(300, 327), *range(292, 300)])

    def test_block_leaves_out_the_display_run(self) -> None:
        """A loop's block load is what lies before and after its display load."""
        at = screen(LOOP, 300)
        block, display = block_load(at, BLOCK, at.display())
        self.assertEqual(block.runs, (range(300 - 221 // 4, 292), range(327, 300 - 221 // 4 + 221)))
        self.assertEqual(display.runs, (range(292, 327),))

    def test_stack_with_a_matrix(self) -> None:
        """An organization of three dimensions makes a stack, even beside the sizes of a total pixel matrix."""
        stack = attrs.evolve(LOOP, total_rows=480, total_columns=640, organization="3D")
        self.assertEqual(len(screen(stack, 300).display()), 35)

    def test_nearest_64_of_a_loop(self) -> None:
        """At an origin that serves one frame a request, a loop's load is the 64 frames around the request."""
        block, _ = block_load(screen(LOOP, 300), BLOCK, Region(), one_frame_a_request=True)
        self.assertEqual(block.runs, (range(268, 332),))

    def test_sparse(self) -> None:
        """A sparsely tiled instance has no order to rely on: no square holds anything."""
        at = screen(attrs.evolve(SLIDE, organization="TILED_SPARSE"), 5_000)
        self.assertEqual(list(at.square(BLOCK)) + list(display_load(at)), [])

    def test_slide_without_organization(self) -> None:
        """A slide that says no organization is taken to be tiled in full."""
        at = screen(attrs.evolve(SLIDE, organization=None), number(50, 60))
        self.assertEqual(list(at.display()), rectangle(range(47, 59), range(57, 69)))
