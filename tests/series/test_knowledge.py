"""How the instances of a series belong together."""

from __future__ import annotations

from typing import Optional

import attrs
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.series.knowledge import WHOLE_SLIDE, Stack, pyramids_of, stack_of
from twistedproxy.series.members import Member

SLICE = InstanceMetadata(frames=1, rows=512, columns=512)
AXIAL, SAGITTAL = (1.0, 0, 0, 0, 1, 0), (0, 1.0, 0, 0, 0, -1)


def member(name: int, z: Optional[float], number: Optional[int] = None, facts: InstanceMetadata = SLICE) -> Member:
    """Instance 1.*name* of a stack of axial slices."""
    position = () if z is None else (-100.0, -50.0, z)
    return Member(f"1.{name}", facts, () if number is None else (float(number),), position, AXIAL)


def order(*members: Member) -> Optional[list[str]]:
    """The order of the stack that they make."""
    stack = stack_of(members)
    return None if stack is None else list(stack.order)


class StackTests(SynchronousTestCase):
    """Stacks."""

    def test_by_position(self) -> None:
        """Slices go by where they lie, not by their numbers, in the direction in which those run."""
        up = [member(1, 3.0, 10), member(2, 1.0, 8), member(3, 2.0, 9), member(4, 0.0, 7)]
        self.assertEqual(order(*up), ["1.4", "1.2", "1.3", "1.1"])
        down = [member(1, 3.0, 1), member(2, 1.0, 3), member(3, 2.0, 2), member(4, 0.0, 4)]
        self.assertEqual(order(*down), ["1.1", "1.3", "1.2", "1.4"])
        self.assertEqual(order(member(1, 2.0, 2), member(2, 0.0, 3), member(3, 1.0, 9)), ["1.1", "1.3", "1.2"])

    def test_tilted(self) -> None:
        """The position along the normal decides, whatever the axes."""
        slices = [
            attrs.evolve(member(name, 0.0, name), orientation=SAGITTAL, position=(x, 7.0 * x, -x))
            for name, x in ((1, 4.0), (2, -1.0), (3, 2.0))
        ]
        self.assertEqual(order(*slices), ["1.1", "1.3", "1.2"])

    def test_by_number(self) -> None:
        """Where two lie at one place, or one says nothing of its place, by number."""
        phases = [member(1, 0.0, 3), member(2, 1.0, 4), member(3, 0.0, 1), member(4, 1.0, 2)]
        self.assertEqual(order(*phases), ["1.3", "1.4", "1.1", "1.2"])
        self.assertEqual(order(member(1, 0.0, 3), member(2, None, 1), member(3, 1.0, 2)), ["1.2", "1.3", "1.1"])

    def test_others(self) -> None:
        """A localizer, a reformatted slice and a report are no part of the stack."""
        slices = [member(name, float(name), name) for name in (1, 2, 3)]
        others = [
            attrs.evolve(member(10, 5.0, 10), orientation=SAGITTAL),
            member(11, 6.0, 11, attrs.evolve(SLICE, rows=256)),
            member(12, None, 12, InstanceMetadata(frames=1)),
        ]
        self.assertEqual(order(*others, *slices), ["1.1", "1.2", "1.3"])

    def test_none(self) -> None:
        """One slice is no stack; nor are the levels of a pyramid, or volumes."""
        level = attrs.evolve(SLICE, total_rows=512, total_columns=512)
        for facts in (level, attrs.evolve(SLICE, frames=20)):
            self.assertIsNone(order(member(1, 0.0, 1, facts), member(2, 1.0, 2, facts)))
        self.assertIsNone(order(member(1, 0.0, 1)))
        self.assertIsNone(order())

    def test_places(self) -> None:
        """Each slice has its place."""
        self.assertEqual(Stack(["1.5", "1.4"]).index, {"1.5": 0, "1.4": 1})


def level(name: int, side: int, flavor: str = "VOLUME", paths: tuple[str, ...] = (), **facts: object) -> Member:
    """Instance 1.*name*: so many tiles a side."""
    pixels = side * 256
    metadata = InstanceMetadata(
        frames=side * side, rows=256, columns=256, total_rows=pixels, total_columns=pixels, sop_class=WHOLE_SLIDE
    )
    return Member(f"1.{name}", attrs.evolve(metadata, **facts), (float(name),), flavor=flavor, paths=paths)


class PyramidTests(SynchronousTestCase):
    """Pyramids."""

    def test_levels(self) -> None:
        """The finest first, whatever the order of the instances; each with the ones beside it."""
        pyramid = pyramids_of([level(1, 8), level(2, 128), level(3, 32)])["1.3"]
        self.assertEqual([one.sop for one in pyramid.levels], ["1.2", "1.3", "1.1"])
        beside = [[one.sop for one in pyramid.beside(f"1.{name}")] for name in (1, 2, 3, 4)]
        self.assertEqual(beside, [["1.3"], ["1.3"], ["1.2", "1.1"], []])
        self.assertEqual(pyramid.frames, 128 * 128 + 32 * 32 + 8 * 8)

    def test_others(self) -> None:
        """The label is no part; the overview and the thumbnail are known as such. What is no whole slide image is none."""
        one = [level(1, 8), level(2, 1, "LABEL"), level(3, 1, "OVERVIEW"), level(4, 1, "THUMBNAIL", total_columns=100)]
        pyramids = pyramids_of([*one, level(5, 16, sop_class="1.2"), member(6, 1.0, 6)])
        self.assertEqual({*pyramids}, {"1.1", "1.3", "1.4"})
        self.assertEqual([level.sop for level in pyramids["1.3"].levels], ["1.1", "1.4"])
        self.assertEqual([level.sop for level in pyramids["1.1"].overviews], ["1.3", "1.4"])

    def test_optical_paths(self) -> None:
        """Each set of optical paths has a pyramid of its own."""
        pyramids = pyramids_of(
            [level(name, side, paths=(path,)) for name, side, path in ((1, 8, "a"), (2, 2, "a"), (3, 8, "b"))]
        )
        self.assertEqual(
            [[one.sop for one in pyramids[sop].levels] for sop in ("1.1", "1.3")], [["1.1", "1.2"], ["1.3"]]
        )

    def test_one_of_a_size(self) -> None:
        """Of focal planes that are instances of their own, the first is the level."""
        pyramid = pyramids_of([level(3, 8), level(2, 8), level(1, 2)])["1.1"]
        self.assertEqual([one.sop for one in pyramid.levels], ["1.2", "1.1"])

    def test_none(self) -> None:
        """Slices, and pictures of a slide without a level, are none."""
        self.assertEqual(pyramids_of([member(1, 0.0, 1), level(2, 1, "OVERVIEW")]), {})
