"""How the instances of a series belong together."""

from __future__ import annotations

from typing import Optional

import attrs
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.series.knowledge import Stack, stack_of
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
