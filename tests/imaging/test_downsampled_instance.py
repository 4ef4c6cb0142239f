"""Where pixels come from, and that pictures put together from frames have no seams."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any, Optional

import attrs
import numpy
from PIL import Image
from twisted.trial.unittest import SynchronousTestCase

from tests.properties import example, given, settings, st
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.imaging.downsampled_instance import Downsampled, downsampled, downsampled_answer, shrunk
from twistedproxy.imaging.errors import CannotRender, NoSuchVirtualFrame
from twistedproxy.imaging.geometry import Cut, decoder_scale
from twistedproxy.imaging.parameters import INTERPOLATIONS, Viewport
from twistedproxy.imaging.resizing import Canvas

FACTORS = st.sampled_from((2.0, 2.5, 3.7, 4.0, 8.0, 64.0, 1.001)) | st.floats(1.0, 100.0)


def slide(rows: int, columns: int, tile: int, tile_rows: Optional[int] = None, planes: int = 1) -> InstanceMetadata:
    """A slide of *rows* x *columns* pixels."""
    tile_rows = tile_rows or tile
    grid = -(-rows // tile_rows) * -(-columns // tile)
    return InstanceMetadata(
        frames=grid * planes, rows=tile_rows, columns=tile, total_rows=rows, total_columns=columns,
        organization="TILED_FULL", samples_per_pixel=3,
    )  # fmt: skip


class Matrix:
    """The pixels of a slide, and its frames, which hold what must never be seen beyond the matrix."""

    def __init__(self, metadata: InstanceMetadata, gray: bool = False, detail: int = 30) -> None:
        self.metadata = metadata
        assert metadata.total_rows and metadata.total_columns
        noise = numpy.random.default_rng(1)
        shape = (metadata.total_rows, metadata.total_columns) + (() if gray else (3,))
        coarse = noise.integers(60, 196, (9, 9, *shape[2:]), dtype=numpy.uint8)
        smooth = numpy.asarray(Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
        # fine detail, but too little of it for filters that sharpen to pass what a byte holds
        self.pixels = smooth + noise.integers(0, detail + 1, shape, dtype=numpy.uint8)
        grid_rows, grid_columns = metadata.grid
        missing = (grid_rows * metadata.rows - shape[0], grid_columns * metadata.columns - shape[1])
        self.padded = numpy.pad(
            self.pixels, [(0, missing[0]), (0, missing[1]), (0, 0)][: len(shape)], constant_values=99
        )  # fmt: skip

    def made(self, cut: Cut, interpolation: str, scale: int = 1) -> Any:
        """The picture that *cut* describes."""
        canvas = Canvas(cut, interpolation, scale)
        for tile in cut.tiles(interpolation):
            frame = self.padded[tile.top : tile.top + cut.frame_rows, tile.left : tile.left + cut.frame_columns]
            canvas.add(tile.top, tile.left, frame)
        return canvas.finish()


def together(matrix: Matrix, virtual: Downsampled, interpolation: str) -> Any:
    """All virtual frames of the first plane, side by side, as far as the total matrix goes."""
    rows, columns = virtual.grid
    lines = []
    for row in range(rows):
        numbers = range(row * columns + 1, (row + 1) * columns + 1)
        lines.append(numpy.concatenate([matrix.made(virtual.frame(n), interpolation) for n in numbers], axis=1))
    return numpy.concatenate(lines)[: virtual.total_rows, : virtual.total_columns]


def differ(one: Any, other: Any) -> int:
    """The largest difference of two pictures."""
    assert one.shape == other.shape, (one.shape, other.shape)
    return int(numpy.abs(one.astype(int) - other).max())


class SizeTests(SynchronousTestCase):
    """Sizes and numbers of virtual instances."""

    @given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 300), FACTORS, st.integers(1, 3))
    def test_sizes(self, rows: int, columns: int, tile: int, factor: float, planes: int) -> None:
        """The matrix has max(1, int(size / factor)) pixels a side, and each plane a grid of frames of the old size."""
        metadata = slide(rows, columns, tile, planes=planes)
        virtual = Downsampled.of(metadata, factor)
        self.assertEqual(virtual.total_rows, max(1, int(rows / factor)))
        self.assertEqual(virtual.total_columns, max(1, int(columns / factor)))
        self.assertEqual((virtual.rows, virtual.columns), (tile, tile))
        if factor > 1.0:
            grid = -(-virtual.total_rows // tile) * -(-virtual.total_columns // tile)
            self.assertEqual(virtual.frames, grid * planes)
        self.assertRaises(NoSuchVirtualFrame, virtual.frame, virtual.frames + 1)

    @given(st.integers(1, 2000), st.integers(1, 2000), st.integers(64, 300), FACTORS, st.sampled_from(INTERPOLATIONS))
    def test_sources(self, rows: int, columns: int, tile: int, factor: float, interpolation: str) -> None:
        """Source frames exist, come row by row, are counted beforehand, and all of them together are all frames."""
        metadata = slide(rows, columns, tile)
        virtual = Downsampled.of(metadata, factor)
        needed: set[int] = set()
        for number in range(1, min(virtual.frames, 20) + 1):
            cut = virtual.frame(number)
            numbers = [source.number for source in cut.tiles(interpolation)]
            self.assertEqual(numbers, sorted(numbers))
            self.assertEqual(len(numbers), cut.source_count(interpolation))
            self.assertTrue(1 <= numbers[0] <= numbers[-1] <= metadata.frames)
            needed.update(numbers)
        if virtual.frames <= 20 and interpolation == "area":
            self.assertEqual(needed, set(range(1, metadata.frames + 1)))

    def test_planes(self) -> None:
        """The frames of a plane come from that plane."""
        virtual = Downsampled.of(slide(512, 512, 128, planes=3), 2.0)
        self.assertEqual(virtual.frames, 12)
        for number in range(1, 13):
            sources = [source.number for source in virtual.frame(number).tiles("lanczos4")]
            plane = (number - 1) // 4
            self.assertTrue(all(plane * 16 < source <= (plane + 1) * 16 for source in sources), number)

    @given(st.integers(1, 400), st.integers(1, 400), st.data(), st.sampled_from(INTERPOLATIONS), FACTORS)
    def test_concatenation(
        self, rows: int, columns: int, data: st.DataObject, interpolation: str, factor: float
    ) -> None:  # fmt: skip
        """The parts of a concatenation need, between them, the frames that the whole needs, in the same places."""
        whole = slide(rows, columns, 50, planes=2)
        ends = sorted({*data.draw(st.sets(st.integers(1, whole.frames), max_size=4)), whole.frames})
        plane_size = whole.grid[0] * whole.grid[1]
        found, expected = set(), set()
        for part, (start, end) in enumerate(zip([0, *ends], ends), start=1):
            one = attrs.evolve(whole, frames=end - start, frame_offset=start, concatenation_part=part)
            virtual, skipped = Downsampled.of(one, factor), start // plane_size
            for plane in range(virtual.planes):
                cut = virtual.plane(plane)
                numbers = [tile.number for tile in cut.tiles(interpolation)]
                self.assertTrue(all(1 <= number <= end - start for number in numbers))
                self.assertLessEqual(len(numbers), cut.source_count(interpolation))
                found.update((start + t.number, t.top, t.left, plane + skipped) for t in cut.tiles(interpolation))
        for plane in range(2):
            cut = Downsampled.of(whole, factor).plane(plane)
            expected.update((t.number, t.top, t.left, plane) for t in cut.tiles(interpolation))
        self.assertEqual(found, expected)

    def test_not_tiled(self) -> None:
        """Frames of a loop shrink each by itself."""
        virtual = Downsampled.of(InstanceMetadata(frames=7, rows=480, columns=640), 3.0)
        self.assertEqual((virtual.frames, virtual.rows, virtual.columns), (7, 160, 213))
        cut = virtual.frame(5)
        self.assertEqual([(tile.number, tile.top, tile.left) for tile in cut.tiles("cubic")], [(5, 0, 0)])
        self.assertEqual((cut.rows, cut.columns), (160, 213))

    def test_cannot(self) -> None:
        """Sparse slides, and instances without sizes, are refused in words."""
        sparse = InstanceMetadata(1, 8, 8, 80, 80, "TILED_SPARSE")
        self.assertRaises(CannotRender, Downsampled.of, sparse, 2.0)
        self.assertTrue(Downsampled.of(sparse).frame(1).is_whole_frame)
        self.assertRaises(CannotRender, Downsampled.of, InstanceMetadata(1))

    def test_as_stored(self) -> None:
        """At factor 1 a frame is the stored frame, its edge frames included."""
        virtual = Downsampled.of(slide(500, 500, 256))
        for number in (1, 4):
            self.assertTrue(virtual.frame(number).is_whole_frame)
            self.assertEqual([tile.number for tile in virtual.frame(number).tiles("area")], [number])

    def test_decoder_scale(self) -> None:
        """A decoder shrinks by a power of two that leaves whole steps, and never where tiles would not meet."""
        for factor, size, tile, scale in (
            (2.0, 2048, 256, 2), (4.0, 2048, 256, 4), (8.0, 2048, 256, 8), (64.0, 2048, 256, 8), (6.0, 2040, 240, 2),
            (3.7, 2048, 256, 1), (1.0, 2048, 256, 1), (2.0, 2049, 256, 2), (2.0, 2048, 255, 1), (1.9, 2048, 256, 1),
        ):  # fmt: skip
            cut = Downsampled.of(slide(size, size, tile), factor).frame(1)
            self.assertEqual(decoder_scale(cut), scale, (factor, size, tile))
        shown = Downsampled.of(slide(2048, 2048, 256)).whole().shown(Viewport(100, 100))
        self.assertEqual(decoder_scale(shown, any_step=True), 8)

    def test_decoder_that_does_not_average(self) -> None:
        """What only comes close to averages leaves two steps at least to the filter. A frame that meets no other may have
        any size."""
        for side, viewport, scale in ((2048, 128, 8), (2048, 100, 8), (2048, 256, 4), (2048, 1024, 1), (2047, 256, 1)):
            shown = Downsampled.of(slide(side, side, side if side % 2 == 0 else 255), 1.0).whole()
            shown = shown.shown(Viewport(viewport, viewport))
            self.assertEqual(decoder_scale(shown, any_step=True, averages=False), scale, (side, viewport))
        alone = Downsampled.of(slide(2047, 2045, 2047), 1.0).whole().shown(Viewport(256, 256))
        self.assertEqual(decoder_scale(alone, any_step=True, averages=False), 2)
        virtual = Downsampled.of(slide(2048, 2048, 256), 4.0).frame(1)
        self.assertEqual((decoder_scale(virtual), decoder_scale(virtual, averages=False)), (4, 2))


class SeamTests(SynchronousTestCase):
    """Pictures put together."""

    @settings(max_examples=25)
    @example(112, 79, 32, 1.0005969633171108, "nearest", True)
    @example(88, 4, 48, 1.4653500030699944, "nearest", False)
    @given(
        st.integers(1, 120), st.integers(1, 120), st.integers(12, 64), FACTORS, st.sampled_from(INTERPOLATIONS),
        st.booleans(),
    )  # fmt: skip
    def test_no_seams(
        self, rows: int, columns: int, tile: int, factor: float, interpolation: str, gray: bool
    ) -> None:  # fmt: skip
        """Virtual frames side by side are the filter run over the whole, whatever the sizes."""
        matrix = Matrix(slide(rows, columns, tile, max(1, tile // 2)), gray)
        virtual = Downsampled.of(matrix.metadata, factor)
        if virtual.factor > 1.0:
            whole = matrix.made(virtual.whole(), interpolation)
            self.assertLessEqual(differ(together(matrix, virtual, interpolation), whole), 1)

    def test_like_pillow(self) -> None:
        """The filters are Pillow's; area is its exact kin: the same at whole factors."""
        matrix = Matrix(slide(360, 480, 64))
        for name, kin in (("area", "BOX"), ("linear", "BILINEAR"), ("cubic", "BICUBIC"), ("lanczos4", "LANCZOS")):
            for factor in (2.0, 3.0, 8.0) if name == "area" else (2.0, 3.7, 64.0):
                virtual = Downsampled.of(matrix.metadata, factor)
                size = (virtual.total_columns, virtual.total_rows)
                expected = numpy.asarray(Image.fromarray(matrix.pixels).resize(size, Image.Resampling[kin]))
                # Pillow rounds to whole levels between its two passes
                self.assertLessEqual(differ(together(matrix, virtual, name), expected), 2, (name, factor))

    def test_area_is_exact(self) -> None:
        """Area weighs each pixel by how much of it is covered, fractions included."""
        matrix = Matrix(slide(1, 10, 4), gray=True)
        matrix.padded[0, :10] = [0, 0, 0, 240, 240, 240, 60, 90, 90, 90]
        (made,) = together(matrix, Downsampled.of(matrix.metadata, 3.0), "area")
        exact = (240 / 3, 240 * (2 / 3 + 2) + 60 * 2 / 3, 60 / 3 + 270)
        self.assertEqual(list(made), [round(value / (10 / 3)) for value in exact])

    def test_shrunk_by_the_decoder(self) -> None:
        """Frames that their decoder averaged make the picture that frames of full size make."""
        for factor, columns, detail in ((2.0, 768, 30), (8.0, 768, 30), (16.0, 768, 30), (2.0, 777, 0), (8.0, 777, 0)):
            matrix = Matrix(slide(1008, columns, 64), detail=detail)
            virtual = Downsampled.of(matrix.metadata, factor)
            for number in (1, virtual.frames):
                cut = virtual.frame(number)
                scale = decoder_scale(cut)
                canvas = Canvas(cut, "area", scale)
                for tile in cut.tiles("area"):
                    frame = Image.fromarray(matrix.padded[tile.top : tile.top + 64, tile.left : tile.left + 64])
                    canvas.add(tile.top, tile.left, numpy.asarray(frame.reduce(scale)))
                made = canvas.finish()
                self.assertEqual(made.shape, (64, 64, 3))
                rows, across = cut.vertical.count - 1, cut.horizontal.count - 1
                # the last one may see beyond the matrix
                whole = matrix.made(cut, "area")
                self.assertLessEqual(differ(made[:rows, :across], whole[:rows, :across]), 2, (factor, columns))

    def test_edges(self) -> None:
        """Beyond the matrix a virtual edge frame repeats its last pixels, and shows nothing of the stored filling."""
        matrix = Matrix(slide(100, 100, 64))
        virtual = Downsampled.of(matrix.metadata, 1.5)
        made = matrix.made(virtual.frame(4), "linear")
        self.assertEqual(made.shape, (64, 64, 3))
        valid = shrunk(100, 1.5) - 64
        self.assertTrue((made[valid:, :valid] == made[valid - 1, :valid]).all())
        self.assertTrue((made[:, valid:] == made[:, valid - 1 : valid]).all())

    def test_missing_frames(self) -> None:
        """Where an instance lacks frames its picture is white, or what is said, as if the frames were there and even."""
        for empty in ((255, 255, 255), (200, 20, 90)):
            matrix = Matrix(slide(100, 130, 32))
            missing = {1, 7, 8, 15, 16, 17, 18, 19, 20}
            for number in missing:
                row, column = divmod(number - 1, 5)
                matrix.padded[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32] = empty
            for factor, interpolation in itertools.product((1.0, 2.0, 3.7, 0.3), INTERPOLATIONS):
                whole = Downsampled.of(matrix.metadata).whole()
                cut = whole.shown(Viewport(round(130 / factor), round(100 / factor)))
                canvas = Canvas(cut, interpolation, 1, empty)
                for tile in cut.tiles(interpolation):
                    if tile.number not in missing:
                        part = matrix.padded[tile.top : tile.top + 32, tile.left : tile.left + 32]
                        canvas.add(tile.top, tile.left, part)
                self.assertLessEqual(
                    differ(canvas.finish(), matrix.made(cut, interpolation)), 1, (factor, interpolation)
                )

    def test_no_frames(self) -> None:
        """A picture of no frames at all has as many samples as it would have."""
        cut = Downsampled.of(slide(16, 16, 8)).whole()
        self.assertEqual(set(map(tuple, Canvas(cut, "area", 1, (1, 2, 3)).finish().reshape(-1, 3))), {(1, 2, 3)})
        self.assertEqual(Canvas(cut, "area").finish().tolist(), [[255] * 16] * 16)


class ViewportTests(SynchronousTestCase):
    """Regions in viewports (PS3.18 section 8.3.5.1.3)."""

    def shown(self, text: Viewport, size: tuple[int, int] = (120, 160)) -> Any:
        self.matrix = Matrix(slide(*size, 32))
        return self.matrix.made(Downsampled.of(self.matrix.metadata).whole().shown(text), "area")

    def test_aspect(self) -> None:
        """The region is made as large as fits the viewport; its aspect is kept, larger or smaller."""
        for viewport, shape in (
            (Viewport(80, 80), (60, 80)),
            (Viewport(300, 60), (60, 80)),
            (Viewport(320, 999), (240, 320)),
            (Viewport(50, 50, 0, 0, 100, 10), (5, 50)),
            (Viewport(10, 10, 0, 0, 160, 0.5), (1, 10)),
        ):
            self.assertEqual(self.shown(viewport).shape[:2], shape, viewport)

    def test_region(self) -> None:
        """At its own size a region is cut out pixel for pixel; what is left out reaches to the edge."""
        cut = self.shown(Viewport(50, 40, 30, 20, 50, 40))
        self.assertEqual(differ(cut, self.matrix.pixels[20:60, 30:80]), 0)
        cut = self.shown(Viewport(130, 100, 30, 20))
        self.assertEqual(differ(cut, self.matrix.pixels[20:120, 30:160]), 0)

    @given(
        st.integers(1, 40), st.integers(1, 40), st.floats(0, 50), st.floats(0, 50), st.floats(0.1, 40), st.floats(0.1, 40),
        st.sampled_from(INTERPOLATIONS), st.sampled_from((1, 2, 4, 8)), st.booleans(), FACTORS | st.just(1.0),
    )  # fmt: skip
    @example(1, 1, 0.0, 2.0**-24, 1.0, 2.0, "linear", 1, False, 1.0)
    def test_nothing_beside_the_region(
        self, width: int, height: int, x: float, y: float, w: float, h: float, interpolation: str, largest: int,
        flip: bool, factor: float,
    ) -> None:  # fmt: skip
        """No filter, and no decoder that averages, looks beyond the region, enlarged or made smaller."""
        matrix = Matrix(slide(64, 64, 16))
        virtual = Downsampled.of(matrix.metadata, factor)
        step = 64 / virtual.total_rows
        viewport = Viewport(width, height, x / step, y / step, -w / step if flip else w / step, h / step)
        cut = virtual.whole().shown(viewport)
        matrix.padded[:] = 250
        edges = [math.floor(y + 1e-6), math.ceil(y + h - 1e-6), math.floor(x + 1e-6), math.ceil(x + w - 1e-6)]
        matrix.padded[edges[0] : edges[1], edges[2] : edges[3]] = 50
        scale = decoder_scale(cut, True, largest) if interpolation == "area" else 1
        canvas = Canvas(cut, interpolation, scale)
        for tile in cut.tiles(interpolation):
            frame = matrix.padded[tile.top : tile.top + 16, tile.left : tile.left + 16]
            canvas.add(tile.top, tile.left, numpy.asarray(Image.fromarray(frame).reduce(scale)))
        made = canvas.finish()
        self.assertTrue(((made >= 49) & (made <= 51)).all(), made.max())

    def test_flips(self) -> None:
        """A width below 0 flips left and right, a height below 0 top and bottom."""
        region = self.shown(Viewport(50, 40, 30, 20, 50, 40))
        self.assertEqual(differ(self.shown(Viewport(50, 40, 30, 20, -50, 40)), region[:, ::-1]), 0)
        self.assertEqual(differ(self.shown(Viewport(50, 40, 30, 20, 50, -40)), region[::-1]), 0)
        self.assertEqual(differ(self.shown(Viewport(25, 20, 30, 20, -50, -40)),
                                self.shown(Viewport(25, 20, 30, 20, 50, 40))[::-1, ::-1]), 0)  # fmt: skip

    def test_beyond(self) -> None:
        """A region that reaches over the edge ends there; one that begins there is refused."""
        self.assertEqual(self.shown(Viewport(10, 10, 150, 110, 1000, 1000)).shape[:2], (10, 10))
        self.assertRaises(CannotRender, self.shown, Viewport(10, 10, 160, 0))
        self.assertRaises(CannotRender, self.shown, Viewport(10, 10, 0, 5000))

    def test_of_a_downsampled_frame(self) -> None:
        """A viewport counts the pixels of the frame that it looks at, also of a virtual one."""
        matrix = Matrix(slide(256, 256, 32))
        virtual = Downsampled.of(matrix.metadata, 2.0)
        frame = matrix.made(virtual.frame(6), "area")
        shown = matrix.made(virtual.frame(6).shown(Viewport(16, 16, 8, 4, 16, 16)), "area")
        self.assertEqual(differ(shown, frame[4:20, 8:24]), 0)

    @settings(max_examples=50)
    @given(
        st.integers(1, 90), st.integers(1, 90), st.floats(0, 59), st.floats(0, 59), st.floats(0.1, 100) | st.none(),
        st.floats(-100, -0.1) | st.none(), st.sampled_from(INTERPOLATIONS),
    )  # fmt: skip
    def test_any(
        self, width: int, height: int, x: float, y: float, w: Optional[float], h: Optional[float], interpolation: str
    ) -> None:
        """Any viewport gives a picture that fits it, with no pixel of what lies beyond the matrix."""
        matrix = Matrix(slide(60, 60, 16))
        matrix.padded[:60, :60] = 50
        cut = Downsampled.of(matrix.metadata).whole().shown(Viewport(width, height, x, y, w, h))
        made = matrix.made(cut, interpolation)
        self.assertEqual(made.shape, (cut.rows, cut.columns, 3))
        self.assertTrue(cut.rows <= height and cut.columns <= width)
        self.assertTrue(((made >= 49) & (made <= 51)).all())


SPACING = {"vr": "DS", "Value": [0.0005, 0.00025]}
LEVEL = {
    "00080008": {"vr": "CS", "Value": ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]},
    "00080018": {"vr": "UI", "Value": ["1.2.3"]},
    "00209311": {"vr": "CS", "Value": ["TILED_FULL"]},
    "00280008": {"vr": "IS", "Value": [20]},
    "00280010": {"vr": "US", "Value": [256]},
    "00280011": {"vr": "US", "Value": [256]},
    "00480006": {"vr": "UL", "Value": [1203]},
    "00480007": {"vr": "UL", "Value": [1000]},
    "52009229": {"vr": "SQ", "Value": [{"00289110": {"vr": "SQ", "Value": [{"00280030": SPACING}]}}]},
    "52009230": {"vr": "SQ", "Value": [{}] * 20},
}


class AttributeTests(SynchronousTestCase):
    """Metadata of virtual instances."""

    def test_level(self) -> None:
        """Sizes, number of frames and spacing of a slide's level agree with its virtual frames, and spacing with size."""
        for factor in (2.0, 3.7, 8.0, 64.0):
            made = downsampled(LEVEL, factor)
            virtual = Downsampled.of(slide(1000, 1203, 256), factor)
            self.assertEqual(made["00480006"], {"vr": "UL", "Value": [virtual.total_columns]})
            self.assertEqual(made["00480007"], {"vr": "UL", "Value": [virtual.total_rows]})
            self.assertEqual(made["00280008"], {"vr": "IS", "Value": [virtual.frames]})
            spacing = made["52009229"]["Value"][0]["00289110"]["Value"][0]["00280030"]["Value"]
            self.assertAlmostEqual(spacing[0] * virtual.total_rows, 0.0005 * 1000, 8)
            self.assertAlmostEqual(spacing[1] * virtual.total_columns, 0.00025 * 1203, 8)
            self.assertTrue(all(len(str(value)) <= 16 for value in spacing))
            self.assertEqual(made["00080008"]["Value"], ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"])
            self.assertNotIn("52009230", made)
            for tag in ("00080018", "00280010", "00280011"):
                self.assertEqual(made[tag], LEVEL[tag])

    def test_part(self) -> None:
        """The smaller instance of a part of a concatenation is no part: it has all of the matrix, in metadata and searches."""
        part = {
            **LEVEL,
            "00280008": {"vr": "IS", "Value": [7]},
            "00209161": {"vr": "UI", "Value": ["1.2"]},
            "00209162": {"vr": "US", "Value": [3]},
            "00209163": {"vr": "US", "Value": [3]},
            "00209228": {"vr": "UL", "Value": [13]},
        }
        for attributes in (part, {tag: value for tag, value in part.items() if not tag.startswith("52")}):
            made = downsampled(attributes, 2.0)
            self.assertEqual((made["00280008"]["Value"], made["00480007"]["Value"]), ([6], [500]))
            self.assertEqual({tag for tag in made if tag.startswith("0020")}, {"00209311"})

    def test_without_organization(self) -> None:
        """Positions tell the smaller instance where there is no DimensionOrganizationType; without them it cannot be told, and a
        search does not say how many frames there are."""
        bare = {tag: value for tag, value in LEVEL.items() if tag != "00209311"}
        self.assertEqual(downsampled(bare, 2.0), bare)
        shared = {
            "0048021A": {
                "vr": "SQ",
                "Value": [{"0048021F": {"vr": "SL", "Value": [257]}, "0048021E": {"vr": "SL", "Value": [1]}}],
            }
        }
        one = {
            **bare,
            "00280008": {"vr": "IS", "Value": [1]},
            "52009230": {"vr": "SQ", "Value": [{}]},
            "52009229": {"vr": "SQ", "Value": [shared]},
        }
        made = downsampled(one, 2.0)
        self.assertEqual((made["00280008"]["Value"], made["00209311"]["Value"]), ([6], ["TILED_FULL"]))
        self.assertEqual(made["52009229"]["Value"], [{}])
        made = downsampled({tag: value for tag, value in bare.items() if tag != "52009230"}, 2.0)
        self.assertEqual((made["00480006"]["Value"], "00280008" in made), ([601], False))

    def test_spacing_that_is_no_number(self) -> None:
        """What cannot be counted with is left as it is."""
        odd = {**LEVEL, "00280030": {"vr": "DS", "Value": [10**400, 1]}}
        self.assertEqual(downsampled(odd, 2.0)["00280030"], odd["00280030"])

    def test_loop(self) -> None:
        """What is not tiled keeps its frames, which are smaller."""
        loop = {"00280008": {"vr": "IS", "Value": [5]}, "00280010": {"vr": "US", "Value": [480]},
                "00280011": {"vr": "US", "Value": [640]}, "00280030": {"vr": "DS", "Value": ["0.5", "0.5"]}}  # fmt: skip
        made = downsampled(loop, 4.0)
        self.assertEqual([made[tag]["Value"] for tag in loop], [[5], [120], [160], [2.0, 2.0]])

    def test_left_alone(self) -> None:
        """What is no image, says too little, or is asked for at factor 1 stays as it is."""
        for attributes in ({}, {"00080018": LEVEL["00080018"]}, {**LEVEL, "00280010": {"vr": "US"}}):
            self.assertEqual(downsampled(attributes, 2.0), attributes)
        self.assertEqual(downsampled(LEVEL, 1.0), LEVEL)

    def test_search(self) -> None:
        """A search that does not say the number of frames is not told one."""
        found = {tag: value for tag, value in LEVEL.items() if tag != "00280008"}
        (made,) = json.loads(downsampled_answer(json.dumps([found]).encode(), 2.0))
        self.assertEqual((made["00480006"]["Value"], "00280008" in made), ([601], False))
        malformed = json.dumps([found]).encode().replace(b"{", b'{"00091001":{"vr":"LO","Value":["\xfc"]},', 1)
        (same,) = json.loads(downsampled_answer(b"\xef\xbb\xbf" + malformed, 2.0))
        self.assertEqual(same.pop("00091001")["Value"], ["\ufffd"])
        self.assertEqual(same, made)
        self.assertRaises(ValueError, downsampled_answer, b'{"a": 1}', 2.0)
        self.assertRaises(ValueError, downsampled_answer, b"no", 2.0)
