"""How the frames of an instance lie, and sets of them kept as runs of numbers. Pure.

Rules:
- frame numbers start at 1; a region names none twice;
- a region is kept as one run of numbers for each row of frames, never as a list of frames.

Frame n of a TILED_FULL instance stands, within its plane, at row (n-1) // columns and column
(n-1) % columns of the frame grid; planes (focal planes, optical paths) follow each other
(DICOM PS3.3 section C.7.6.17.3).
"""

from __future__ import annotations

import enum
from bisect import bisect_right
from collections.abc import Iterable, Iterator

import attrs

from twistedproxy.dicom.metadata import InstanceMetadata

Runs = tuple[range, ...]


class Tiling(enum.Enum):
    """How the frames of an instance lie."""

    FULL = "full"
    """They tile a plane, row by row."""

    SPARSE = "sparse"
    """They tile a plane in no order that can be relied on."""

    NONE = "none"
    """They follow each other: a loop, a stack."""


@attrs.frozen
class Region:
    """Frames of one instance: runs of numbers, ascending, disjoint, none empty, each within one row of frames."""

    runs: Runs = ()

    def __iter__(self) -> Iterator[int]:
        return numbers(self.runs)

    def __len__(self) -> int:
        return sum(map(len, self.runs))

    def __contains__(self, number: object) -> bool:
        return any(number in run for run in self.runs)

    def without(self, other: Region) -> Region:
        """This region less the frames of *other*, still row by row."""
        starts = [run.start for run in other.runs]
        left: list[range] = []
        for run in self.runs:
            at = run.start
            first = max(0, bisect_right(starts, at) - 1)
            for cut in other.runs[first : bisect_right(starts, run.stop - 1)]:
                left.append(range(at, cut.start))
                at = max(at, cut.stop)
            left.append(range(at, run.stop))
        return Region(tuple(run for run in left if run))


def numbers(runs: Iterable[range]) -> Iterator[int]:
    """Each frame number of *runs*, in their order."""
    for run in runs:
        yield from run


@attrs.frozen
class FrameGrid:
    """The frames of one instance: *rows* x *columns* of them in each plane, each *frame_rows* x *frame_columns* pixels.

    *frames* is NumberOfFrames, which may be less or more than one plane holds. An instance that is
    not tiled has a grid of one row.
    """

    rows: int = attrs.field(validator=attrs.validators.ge(1))
    columns: int = attrs.field(validator=attrs.validators.ge(1))
    frame_rows: int = attrs.field(validator=attrs.validators.ge(1))
    frame_columns: int = attrs.field(validator=attrs.validators.ge(1))
    frames: int = attrs.field(validator=attrs.validators.ge(1))
    tiling: Tiling = Tiling.FULL

    @classmethod
    def of(cls, metadata: InstanceMetadata) -> FrameGrid:
        """The grid of an instance. Raises ValueError where the metadata says no size of a frame, or no frames."""
        tiling = tiling_of(metadata)
        rows, columns = (1, metadata.frames) if tiling is Tiling.NONE else metadata.grid
        return cls(rows, columns, metadata.rows, metadata.columns, metadata.frames, tiling)

    def height(self, pixels: int) -> int:
        """Rows of frames that *pixels* reach over, however many there are."""
        return _frames_along(pixels, self.frame_rows)

    def width(self, pixels: int) -> int:
        """Columns of frames that *pixels* reach over, however many there are."""
        return _frames_along(pixels, self.frame_columns)

    def held(self, side: int) -> int:
        """Frames that a square of *side* pixels holds, however many there are."""
        return self.height(side) * self.width(side)

    def is_within(self, side: int) -> bool:
        """Whether a square of *side* pixels would hold as many frames as there are: its load would fetch as much."""
        return self.frames <= self.held(side)

    def place(self, number: int) -> tuple[int, int, int]:
        """Plane, row and column of a frame, each from 0."""
        plane, within = divmod(number - 1, self.rows * self.columns)
        return plane, *divmod(within, self.columns)


def tiling_of(metadata: InstanceMetadata) -> Tiling:
    """How the frames lie, by DimensionOrganizationType (PS3.3 section C.7.6.17) and the total pixel matrix.

    Older slides say no organization; theirs are taken to be full: a wrong guess costs only frames loaded in vain.
    """
    organization = metadata.organization or ""
    if organization == "TILED_SPARSE":
        return Tiling.SPARSE
    # "3D" and "3D_TEMPORAL" are stacks, whatever else the metadata says.
    if organization.startswith("3D") or not metadata.is_tiled:
        return Tiling.NONE
    return Tiling.FULL


def _frames_along(pixels: int, frame_pixels: int) -> int:
    return max(0, -(-pixels // frame_pixels))
