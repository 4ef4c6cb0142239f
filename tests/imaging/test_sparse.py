"""Frames of TILED_SPARSE instances: where they lie, from metadata made of real files, and what lies between them."""

from __future__ import annotations

import io
import json
from typing import Any

import attrs
import numpy
import pydicom
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from twisted.trial.unittest import SynchronousTestCase

from tests.slides import Made, slide
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.metadata_json import BadMetadata
from twistedproxy.imaging.attributes import downsampled
from twistedproxy.imaging.downsampled import Downsampled
from twistedproxy.imaging.errors import CannotRender
from twistedproxy.imaging.icc import profile_of
from twistedproxy.imaging.parameters import INTERPOLATIONS, Viewport
from twistedproxy.imaging.sparse import MAX_FRAMES, Placement, Positions, read_placement, refusal
from twistedproxy.imaging.sparse_description import SparseDescription, absent_colour

METADATA = InstanceMetadata(4, 8, 16, 80, 150, "TILED_SPARSE")
"""A grid of 10 rows and 10 columns."""


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


class PlacementTests(SynchronousTestCase):
    """Places in the grid."""

    def test_order(self) -> None:
        """Places are counted row by row; of two frames at one place the first is shown."""
        placement = placed(groups(9, 9), groups(0, 3), groups(0, 3), groups(2, 0))
        self.assertEqual((list(placement.places), list(placement.numbers)), ([3, 20, 99], [2, 4, 1]))
        full = placement.as_full(METADATA)
        self.assertEqual((full.frames, full.organization, full.grid), (100, "TILED_FULL", (10, 10)))

    def test_planes(self) -> None:
        """Planes are those of TILED_FULL: optical paths as they come, in each the focal planes from the slide upwards."""
        placement = placed(groups(0, 0, 2.0, "b"), groups(0, 1, -1.0, "b"), groups(0, 2, -1.0, "a"))
        self.assertEqual((placement.planes, placement.focal_planes), (4, 2))
        self.assertEqual((list(placement.places), list(placement.numbers)), ([1, 100, 202], [2, 1, 3]))

    def test_without_planes(self) -> None:
        """Neither depth nor path need be told."""
        bare = groups(1, 1)
        del bare["00480207"], bare["0048021A"]["Value"][0]["0040074A"]
        self.assertEqual(list(placed(bare).places), [11])

    def test_refused(self) -> None:
        """Frames beside the grid, outside of it or without a place, too many and too few are refused in words."""
        beside, outside, without, endless = groups(1, 1), groups(10, 0), groups(1, 1), groups(1, 1)
        endless["0048021A"]["Value"][0]["0048021F"]["Value"] = [float("inf")]
        beside["0048021A"]["Value"][0]["0048021F"]["Value"] = [10]
        without["0048021A"] = {"vr": "SQ"}
        for frame, words in (
            (beside, "no grid"),
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
        self.assertIn(str(MAX_FRAMES), str(self.assertRaises(CannotRender, Positions, many)))
        self.assertRaises(CannotRender, Positions, InstanceMetadata(4, organization="TILED_SPARSE"))

    @given(st.sets(st.integers(0, 99), max_size=30), st.sampled_from(INTERPOLATIONS), st.floats(1.0, 30.0), st.data())
    def test_tiles(self, places: set[int], interpolation: str, factor: float, data: st.DataObject) -> None:
        """A picture needs those frames of the full instance that are there, in the same order."""
        ordered = sorted(places)
        placement = Placement(1, ordered, [place + 1000 for place in ordered])
        virtual = Downsampled.of(placement.as_full(METADATA), factor)
        cut = virtual.frame(data.draw(st.integers(1, virtual.frames))).shown(Viewport(5, 5, 0, 0, 3, 2))
        expected = [attrs.evolve(t, number=t.number + 999) for t in cut.tiles(interpolation) if t.number - 1 in places]
        self.assertEqual(list(placement.tiles(cut, interpolation)), expected)

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
        return read_placement(description.packed())

    def test_slide(self) -> None:
        """The places of a real file's frames, in any pieces, and the colour between them."""
        positions = ((2, 1), (0, 0), (1, 3))
        made = slide(
            self.mktemp(), 3, 4, 16, "raw", sparse=True, positions=positions, focal_planes=2,
            extra={"RecommendedAbsentPixelCIELabValue": [65535, 32896, 32896]},
        )  # fmt: skip
        for size in (1, 50, 1 << 20):
            placement = self.described(made, size)
            self.assertEqual(list(placement.places), [0, 7, 9, 12, 19, 21])
            self.assertEqual(list(placement.numbers), [2, 3, 1, 5, 6, 4])
            self.assertEqual((placement.focal_planes, placement.background), (2, (255, 255, 255)))

    def test_no_positions(self) -> None:
        """A slide without them is refused; metadata that end too early are no metadata."""
        made = slide(self.mktemp(), 2, 2, 16, "raw", sparse=True, extra={"PerFrameFunctionalGroupsSequence": None})
        self.assertIn("0 where they lie", str(self.assertRaises(CannotRender, self.described, made, 1 << 20)))
        description = SparseDescription(METADATA)
        description.feed(b"[{")
        self.assertRaises(BadMetadata, description.packed)

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


class ColourTests(SynchronousTestCase):
    """Recommended Absent Pixel CIELab Value."""

    def test_littlecms(self) -> None:
        """It is what LittleCMS makes of the same colour, within 1 level."""
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
            ours = absent_colour({"vr": "US", "Value": value})
            assert ours is not None
            self.assertLessEqual(numpy.abs(theirs - ours).max(), 1, (light, a, b, ours, theirs))

    def test_none(self) -> None:
        """What is no colour is none."""
        for element in (
            {},
            {"Value": [1, 2]},
            {"Value": [1, 2, 70000]},
            {"Value": ["a", 1, 1]},
            {"Value": [float("inf"), 1, 1]},
            [],
            None,
        ):
            self.assertIsNone(absent_colour(element))
