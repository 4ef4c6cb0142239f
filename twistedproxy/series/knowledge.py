"""How the instances of a series belong together: as a stack, as pyramids, or in no way that is known.

A *stack* has instances of one frame and of like size and orientation, in the order in which they lie. Others of the series
(localizers, reports) are no part of it. The *levels* of a *pyramid* are whole slide images of one set of optical paths. The label is
part of none.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Optional

import attrs

from twistedproxy.series.members import Member, Numbers

DIGITS = 3
"""Digits of direction cosines in which those of parallel slices agree."""

APART = 1e-3
"""Millimeters between two positions that are not one."""


@attrs.frozen
class Stack:
    """*order*: SOP Instance UIDs in the order in which the slices lie; *index*: the place of each in that."""

    order: Sequence[str]
    index: Mapping[str, int] = attrs.field(init=False, repr=False)

    @index.default
    def _places(self) -> Mapping[str, int]:
        return {sop: place for place, sop in enumerate(self.order)}


WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""VL Whole Slide Microscopy Image Storage (PS3.4 section B.5)."""


@attrs.frozen
class Pyramid:
    """*levels*: the finest first, each of another total pixel matrix; *overviews*: small pictures of the slide, of one frame."""

    levels: Sequence[Member]
    overviews: Sequence[Member] = ()

    @property
    def frames(self) -> int:
        """Those of all levels."""
        return sum(level.metadata.frames for level in self.levels)

    def beside(self, sop: str) -> Sequence[Member]:
        """The next finer and the next coarser level."""
        at = next((place for place, level in enumerate(self.levels) if level.sop == sop), None)
        return () if at is None else (*self.levels[max(0, at - 1) : at], *self.levels[at + 1 : at + 2])


def pyramids_of(members: Collection[Member]) -> Mapping[str, Pyramid]:
    """The pyramids that *members* of a series make, by the SOP Instance UIDs of their levels and overviews. Of two instances of one size (focal planes,
    parts of a concatenation) the first is a level."""
    slides = [one for one in members if one.metadata.sop_class == WHOLE_SLIDE and one.metadata.frames]
    overviews = [one for one in slides if one.flavor in ("OVERVIEW", "THUMBNAIL") and one.metadata.frames == 1]
    groups: dict[tuple[str, ...], dict[tuple[int, int], Member]] = defaultdict(dict)
    for one in sorted(slides, key=lambda one: (one.number, one.sop)):
        facts = one.metadata
        if facts.is_tiled and one.flavor not in ("LABEL", "OVERVIEW"):
            groups[one.paths].setdefault((facts.total_columns or 0, facts.total_rows or 0), one)
    pyramids = [Pyramid([group[size] for size in sorted(group, reverse=True)], overviews) for group in groups.values()]
    found = {level.sop: pyramid for pyramid in pyramids for level in pyramid.levels}
    if pyramids:
        found.update(
            (one.sop, max(pyramids, key=lambda pyramid: pyramid.frames)) for one in overviews if one.sop not in found
        )
    return found


def stack_of(members: Collection[Member]) -> Optional[Stack]:
    """The stack that *members* of a series make; None where they make none. Of several groups of like instances the largest."""
    groups: dict[tuple[object, ...], list[Member]] = defaultdict(list)
    for one in members:
        facts = one.metadata
        if facts.frames == 1 and facts.rows and facts.columns and not facts.is_tiled:
            direction = tuple(round(value, DIGITS) for value in one.orientation)
            groups[facts.rows, facts.columns, direction].append(one)
    slices = max(groups.values(), key=len, default=[])
    return Stack([one.sop for one in _ordered(slices)]) if len(slices) > 1 else None


def _ordered(slices: Sequence[Member]) -> list[Member]:
    """By position along the normal (PS3.3 section C.7.6.2.1.1). Where several lie at one position (phases, echoes), or one has
    none, by InstanceNumber."""
    by_number = sorted(slices, key=lambda one: (one.number, one.sop))
    along = {one.sop: place for one in slices if (place := _along(one)) is not None}
    apart = all(after - before >= APART for before, after in itertools.pairwise(sorted(along.values())))
    if len(along) < len(slices) or not apart:
        return by_number
    ordered = sorted(slices, key=lambda one: along[one.sop])
    # In the direction in which the numbers run: that is the one in which viewers show them.
    return ordered[::-1] if by_number[0] is ordered[-1] else ordered


def _along(one: Member) -> Optional[float]:
    """The position of a slice along its normal, in mm."""
    if not one.position or not one.orientation:
        return None
    normal = _cross(one.orientation[:3], one.orientation[3:])
    return sum(a * b for a, b in zip(normal, one.position))


def _cross(a: Numbers, b: Numbers) -> Numbers:
    return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])
