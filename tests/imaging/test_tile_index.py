"""Frames of instances that are not TILED_FULL: where they lie, from metadata made of real files, and what lies between them."""

from __future__ import annotations

import io
import json
from typing import Any

import attrs
import numpy
import pydicom
from PIL import Image, ImageCms
from twisted.trial.unittest import SynchronousTestCase

from tests.properties import given, st
from tests.slides import Made, slide
from twistedproxy.dicom.json_events import BadMetadata
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.imaging.describe import SparseDescription, absent_color
from twistedproxy.imaging.downsampled_instance import Downsampled, downsampled
from twistedproxy.imaging.errors import CannotRender
from twistedproxy.imaging.icc import profile_of
from twistedproxy.imaging.parameters import INTERPOLATIONS, Viewport
from twistedproxy.imaging.resizing import EMPTY, Canvas
from twistedproxy.imaging.tile_index import (
    MAX_FRAMES,
    Placement,
    Positions,
    lies_in_order,
    needs_positions,
    read_placement,
    refusal,
)

METADATA = InstanceMetadata(4, 8, 16, 80, 150, "TILED_SPARSE")
"""A grid of 10 rows and 10 columns."""


def at(row: int, column: int, plane: int = 0) -> int:
    """The place of a frame at *row*, *column* of the grid."""
    return (plane * 80 + row * 8) * 150 + column * 16


def groups(row: int, column: int, z: float = 0.0, path: str = "1") -> dict[str, Any]:
    """The functional groups of a frame at *row*, *column* of the grid, from 0."""
    position = {
        "0048021F": {"vr": "SL", "Value": [row * 8 + 1]},
        "0048021E": {"vr": "SL", "Value": [column * 16 + 1]},
        "0040074A": {"vr": "DS", "Value": [z]},
    }
    identified = {"00480106": {"vr": "SH", "Value": [path]}}
    return {"0048021A": {"vr": "SQ", "Value": [position]}, "00480207": {"vr": "SQ", "Value": [identified]}}


def placed(*frames: dict[str, Any], metadata: InstanceMetadata = METADATA) -> Placement:
    """The placement of *frames*."""
    positions = Positions(attrs.evolve(metadata, frames=len(frames)))
    for frame in frames:
        positions.add(frame)
    return positions.placement()


class OrderTests(SynchronousTestCase):
    """Whether the order of frames says where they lie."""

    def test_organization(self) -> None:
        """Only TILED_FULL says it, and a frame that is all of the matrix; not what is a later part from no told frame on."""
        for organization, more, in_order, positions in (
            ("TILED_FULL", {}, True, False),
            ("TILED_SPARSE", {}, False, True),
            (None, {}, False, True),
            ("3D", {}, False, False),
            (None, {"frames": 1}, False, True),
            (None, {"frames": 1, "rows": 80, "columns": 150}, True, False),
            (None, {"frames": 3, "rows": 80, "columns": 150}, False, True),
            (None, {"total_rows": None}, False, False),
            ("TILED_FULL", {"concatenation_part": 2, "frame_offset": 4}, True, False),
            ("TILED_FULL", {"concatenation_part": 2}, False, True),
        ):
            metadata = attrs.evolve(METADATA, organization=organization, **more)
            self.assertEqual((lies_in_order(metadata), needs_positions(metadata)), (in_order, positions), metadata)


class PlacementTests(SynchronousTestCase):
    """Places in the grid."""

    def test_order(self) -> None:
        """Places are counted row by row; of two frames at one place the first is shown. Without DimensionOrganizationType
        it is the same."""
        placement = placed(groups(9, 9), groups(0, 3), groups(0, 3), groups(2, 0))
        self.assertEqual(list(placement.places), [at(0, 3), at(2, 0), at(9, 9)])
        self.assertEqual((list(placement.numbers), placement.in_grid), ([2, 4, 1], True))
        full = placement.as_full(METADATA)
        self.assertEqual((full.frames, full.organization, full.grid), (100, "TILED_FULL", (10, 10)))

    def test_planes(self) -> None:
        """Planes are those of TILED_FULL: optical paths as they come, in each the focal planes from the slide upwards."""
        placement = placed(groups(0, 0, 2.0, "b"), groups(0, 1, -1.0, "b"), groups(0, 2, -1.0, "a"))
        self.assertEqual((placement.planes, placement.focal_planes), (4, 2))
        self.assertEqual(
            (list(placement.places), list(placement.numbers)), ([at(0, 1), at(0, 0, 1), at(0, 2, 2)], [2, 1, 3])
        )

    def test_without_planes(self) -> None:
        """Neither depth nor path need be told."""
        bare = groups(1, 1)
        del bare["00480207"], bare["0048021A"]["Value"][0]["0040074A"]
        self.assertEqual(list(placed(bare).places), [at(1, 1)])

    def test_heights(self) -> None:
        """Frames at more heights than there are focal planes follow the tissue: none is left out of the first plane."""
        frames = [groups(0, 0, 0.3), groups(0, 1, 0.1), groups(0, 0, 0.2), groups(0, 2, 0.15)]
        positions = Positions(METADATA)
        for frame in frames:
            positions.add(frame)
        placement = positions.placement(focal_planes=2)
        self.assertEqual((placement.planes, placement.focal_planes), (2, 2))
        self.assertEqual(list(placement.places), [at(0, 0), at(0, 1), at(0, 2), at(0, 0, 1)])
        self.assertEqual(list(placement.numbers), [3, 2, 4, 1])

    def test_shared(self) -> None:
        """What the shared functional groups say counts for frames that do not say it themselves."""
        for frames in ([{}], []):
            positions = Positions(attrs.evolve(METADATA, frames=1))
            positions.share(groups(2, 3))
            for frame in frames:
                positions.add(frame)
            self.assertEqual(list(positions.placement().places), [at(2, 3)])
        positions = Positions(attrs.evolve(METADATA, frames=2))
        positions.share({"00480207": groups(0, 0)["00480207"]})
        positions.add({"0048021A": groups(0, 0)["0048021A"]})
        positions.add({})
        self.assertRaises(CannotRender, positions.placement)

    def test_texts(self) -> None:
        """Some stores give positions as texts; fractions are no positions."""
        frame = groups(1, 2)
        frame["0048021A"]["Value"][0]["0048021F"]["Value"] = ["9"]
        self.assertEqual(list(placed(frame).places), [at(1, 2)])
        for value in (9.5, "9.5", None, "x"):
            frame["0048021A"]["Value"][0]["0048021F"]["Value"] = [value]
            self.assertRaises(CannotRender, placed, frame)

    def test_in_no_grid(self) -> None:
        """Frames may lie anywhere inside the matrix, so long as they do not overlap, which says where."""

        def moved(row: int, column: int) -> dict[str, Any]:
            frame = groups(0, 0)
            position = frame["0048021A"]["Value"][0]
            position["0048021F"]["Value"], position["0048021E"]["Value"] = [row + 1], [column + 1]
            return frame

        placement = placed(moved(13, 40), moved(5, 3), moved(5, 19), moved(13, 3))
        self.assertEqual(list(placement.places), [5 * 150 + 3, 5 * 150 + 19, 13 * 150 + 3, 13 * 150 + 40])
        self.assertEqual((list(placement.numbers), placement.in_grid), ([2, 3, 4, 1], False))
        self.assertFalse(read_placement(placement.to_bytes()).in_grid)
        for row, column in ((5, 4), (12, 18), (12, 3), (5, 10), (0, 0)):
            error = self.assertRaises(CannotRender, placed, moved(5, 3), moved(row, column))
            self.assertIn("overlap", str(error), (row, column))
        placed(moved(5, 3), {**moved(6, 4), "00480207": groups(0, 0, path="2")["00480207"]})

    def test_refused(self) -> None:
        """Frames outside of the matrix or without a place, too many and too few are refused in words."""
        above, outside, without, endless = groups(1, 1), groups(10, 0), groups(1, 1), groups(1, 1)
        endless["0048021A"]["Value"][0]["0048021F"]["Value"] = [float("inf")]
        above["0048021A"]["Value"][0]["0048021F"]["Value"] = [0]
        without["0048021A"] = {"vr": "SQ"}
        for frame, words in (
            (above, "outside"),
            (outside, "outside"),
            (without, "do not say where frame 1 lies"),
            (endless, "do not say where frame 1 lies"),
            ({}, "1"),
        ):
            self.assertIn(words, str(self.assertRaises(CannotRender, placed, frame)))
        self.assertRaises(CannotRender, placed, groups(-1, 0))
        few = Positions(METADATA)
        few.add(groups(0, 0))
        self.assertIn("4 frames; the metadata say of 1", str(self.assertRaises(CannotRender, few.placement)))
        many = attrs.evolve(METADATA, frames=MAX_FRAMES + 1)
        self.assertIn(str(MAX_FRAMES), str(self.assertRaises(CannotRender, Positions(many).placement)))
        self.assertRaises(CannotRender, Positions(InstanceMetadata(4, organization="TILED_SPARSE")).placement)

    @given(st.sets(st.integers(0, 99), max_size=30), st.sampled_from(INTERPOLATIONS), st.floats(1.0, 30.0), st.data())
    def test_tiles(self, places: set[int], interpolation: str, factor: float, data: st.DataObject) -> None:
        """A picture needs those frames of the full instance that are there, in the same order."""
        ordered = sorted(places)
        placement = Placement(1, [at(*divmod(place, 10)) for place in ordered], [place + 1000 for place in ordered])
        virtual = Downsampled.of(placement.as_full(METADATA), factor)
        # undownsampled, frames are asked for by themselves: only a picture of the whole needs their places
        cut = virtual.whole() if factor == 1.0 else virtual.frame(data.draw(st.integers(1, virtual.frames)))
        cut = cut.shown(Viewport(5, 5, 0, 0, 3, 2))
        expected = [attrs.evolve(t, number=t.number + 999) for t in cut.tiles(interpolation) if t.number - 1 in places]
        self.assertEqual(list(placement.tiles(cut, interpolation)), expected)

    @given(st.sampled_from(INTERPOLATIONS), st.floats(0.5, 9.0), st.data())
    def test_picture_in_no_grid(self, interpolation: str, step: float, data: st.DataObject) -> None:
        """Frames that lie in no grid make the picture that one large frame makes."""
        pixels = numpy.full((80, 150), EMPTY, numpy.uint8)
        places = []
        for row in range(data.draw(st.integers(0, 7)), 72, 11):
            for column in range(data.draw(st.integers(0, 9)), 134, 20):
                places.append(row * 150 + column)
                pixels[row : row + 8, column : column + 16] = 60 + (row * 31 + column * 7) % 130
        placement = Placement(2, [80 * 150 + place for place in places], range(1, len(places) + 1), in_grid=False)
        metadata = attrs.evolve(METADATA, total_rows=80, total_columns=150)
        virtual = Downsampled.of(placement.as_full(metadata), 1.0)
        x, y = data.draw(st.integers(0, 100)), data.draw(st.integers(0, 60))
        viewport = Viewport(max(1, int(40 / step)), max(1, int(20 / step)), x, y, 40, 20)
        cut = virtual.plane(1).shown(viewport)
        whole = Canvas(attrs.evolve(cut, frame_rows=80, frame_columns=150, grid_columns=1), interpolation)
        whole.add(0, 0, pixels)
        canvas = Canvas(cut, interpolation, in_grid=False)
        for tile in placement.tiles(cut, interpolation):
            canvas.add(tile.top, tile.left, pixels[tile.top : tile.top + 8, tile.left : tile.left + 16])
        self.assertLessEqual(numpy.abs(canvas.finish().astype(int) - whole.finish()).max(), 1)

    def test_packed(self) -> None:
        """What is packed comes back, refusals as such; half a million frames take some megabytes."""
        one = Placement(4, [1, 1 << 40], [3, 4], (1, 2, 3), 2)
        back = read_placement(one.to_bytes())
        self.assertEqual(
            (back.planes, list(back.places), list(back.numbers), back.background, back.focal_planes),
            (4, [1, 1 << 40], [3, 4], (1, 2, 3), 2),
        )
        self.assertIn("why", str(self.assertRaises(CannotRender, read_placement, refusal("why"))))
        for wrong in (b"", b"x", one.to_bytes()[:10]):
            self.assertRaises(ValueError, read_placement, wrong)
        large = Placement(1, range(0, 3 * MAX_FRAMES, 3), range(1, MAX_FRAMES + 1))
        self.assertLess(len(large.to_bytes()), 12 * MAX_FRAMES)


class DescriptionTests(SynchronousTestCase):
    """Whole metadata."""

    def described(self, made: Made, size: int) -> Placement:
        """The placement in the metadata of *made*, which come in pieces of *size* bytes."""
        dataset = pydicom.dcmread(made.path, stop_before_pixels=True)
        self.attributes = dataset.to_json_dict(bulk_data_threshold=1 << 20)
        description = SparseDescription(InstanceMetadata.from_dataset(dataset))
        text = json.dumps([self.attributes]).encode()
        for start in range(0, len(text), size):
            description.feed(text[start : start + size])
        return read_placement(description.packed({})[0])

    def test_slide(self) -> None:
        """The places of a real file's frames, in any pieces, and the color between them."""
        positions = ((2, 1), (0, 0), (1, 3))
        made = slide(
            self.mktemp(), 3, 4, 16, "raw", sparse=True, positions=positions, focal_planes=2,
            extra={"RecommendedAbsentPixelCIELabValue": [65535, 32896, 32896]},
        )  # fmt: skip
        for size in (1, 50, 1 << 20):
            placement = self.described(made, size)
            self.assertEqual(
                list(placement.places), [(row * 16) * 64 + column * 16 for row, column in
                                         ((0, 0), (1, 3), (2, 1), (3, 0), (4, 3), (5, 1))]
            )  # fmt: skip
            self.assertEqual(list(placement.numbers), [2, 3, 1, 5, 6, 4])
            self.assertEqual((placement.focal_planes, placement.background), (2, (255, 255, 255)))

    def test_no_positions(self) -> None:
        """A slide without them is refused, whatever it calls itself but TILED_FULL; metadata that end too early are no
        metadata."""
        bare = slide(self.mktemp(), 2, 2, 16, "raw", extra={"DimensionOrganizationType": None})
        self.assertIn("0 where they lie", str(self.assertRaises(CannotRender, self.described, bare, 1 << 20)))
        made = slide(self.mktemp(), 2, 2, 16, "raw", sparse=True, extra={"PerFrameFunctionalGroupsSequence": None})
        self.assertIn("0 where they lie", str(self.assertRaises(CannotRender, self.described, made, 1 << 20)))
        description = SparseDescription(METADATA)
        description.feed(b"[{")
        self.assertRaises(BadMetadata, description.packed, {})

    def test_downsampled(self) -> None:
        """The smaller instance is a full one: its metadata say so, and how many planes and frames it has."""
        made = slide(self.mktemp(), 6, 8, 16, "raw", sparse=True, focal_planes=2)
        self.described(made, 1 << 20)
        smaller = pydicom.Dataset.from_json(downsampled(self.attributes, 2.0))
        self.assertEqual(smaller.DimensionOrganizationType, "TILED_FULL")
        self.assertEqual((smaller.TotalPixelMatrixRows, smaller.TotalPixelMatrixColumns), (48, 64))
        self.assertEqual((smaller.NumberOfFrames, smaller.TotalPixelMatrixFocalPlanes), (24, 2))
        self.assertEqual(smaller.NumberOfOpticalPaths, 1)
        self.assertNotIn("PerFrameFunctionalGroupsSequence", smaller)
        found = {tag: element for tag, element in self.attributes.items() if tag != "52009230"}
        searched = pydicom.Dataset.from_json(downsampled(found, 2.0))
        self.assertEqual((searched.TotalPixelMatrixRows, "NumberOfFrames" in searched), (48, False))
        self.attributes["52009230"]["Value"].pop()
        self.assertEqual(downsampled(self.attributes, 2.0), self.attributes)


class ColorTests(SynchronousTestCase):
    """Recommended Absent Pixel CIELab Value."""

    def test_littlecms(self) -> None:
        """It is what LittleCMS makes of the same color, within 1 level."""
        transform = ImageCms.buildTransform(
            ImageCms.createProfile("LAB"), ImageCms.ImageCmsProfile(io.BytesIO(profile_of("srgb"))), "LAB", "RGB", 1
        )
        for light, a, b in ((100, 0, 0), (0, 0, 0), (50, 0, 0), (60, 40, -30), (80, -20, 30), (30, 20, 20)):
            pixel = Image.fromarray(
                numpy.array([[[round(light * 2.55), a % 256, b % 256]]], numpy.uint8), "LAB"
            )  # a and b are signed there
            theirs = numpy.asarray(ImageCms.applyTransform(pixel, transform))[0, 0].astype(int)
            exact = round(light * 2.55) / 255
            value = [round(exact * 65535), (a + 128) * 257, (b + 128) * 257]
            ours = absent_color({"vr": "US", "Value": value})
            assert ours is not None
            self.assertLessEqual(numpy.abs(theirs - ours).max(), 1, (light, a, b, ours, theirs))

    def test_none(self) -> None:
        """What is no color is none."""
        for element in (
            {},
            {"Value": [1, 2]},
            {"Value": [1, 2, 70000]},
            {"Value": ["a", 1, 1]},
            {"Value": [float("inf"), 1, 1]},
            [],
            None,
        ):
            self.assertIsNone(absent_color(element))
