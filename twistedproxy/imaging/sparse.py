"""Where the frames of a TILED_SPARSE instance lie: their places in the grid that TILED_FULL would have. Pure.

Rules kept here:
- a frame's place is what its own functional groups say: Plane Position (Slide) and Optical Path Identification (DICOM
  PS3.3 sections C.8.12.6.1 and C.8.12.6.2);
- frames must lie in a grid; of an instance whose frames overlap or leave gaps between them no grid is made;
- planes follow each other as in TILED_FULL (C.7.6.17.3): by optical path, in each by focal plane, from the slide upwards;
- of several frames at one place the first counts; a place without a frame has the colour of absent pixels (C.8.12.4);
- a frame takes 12 bytes, and there is a limit of frames.
"""

from __future__ import annotations

import json
import sys
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

import attrs

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.imaging.cut import Cut, Tile
from twistedproxy.imaging.errors import CannotRender

TILED_SPARSE, TILED_FULL = "TILED_SPARSE", "TILED_FULL"

MAX_FRAMES = 500_000
"""Frames whose places are kept: 6 MB."""
MAX_PLANES = 1000
MAX_PLACES = 1 << 53
"""Places of all grids together: what a JSON number holds exactly."""

POSITION, PATH = "0048021A", "00480207"
WANTED = frozenset((POSITION, PATH))
"""The functional groups that tell a frame's place."""
_COLUMN, _ROW, _Z, _PATH_NAME = "0048021E", "0048021F", "0040074A", "00480106"


def is_sparse(metadata: InstanceMetadata) -> bool:
    """Whether an instance's frames cover some of its total pixel matrix, in any order."""
    return metadata.is_tiled and metadata.organization == TILED_SPARSE


@attrs.frozen(eq=False)
class Placement:
    """The frames of an instance by their places. *places*: occupied ones in ascending order, counted from 0, plane after
    plane, row after row. *numbers*: the frame at each of them. *focal_planes*: of each optical path. *background*: the
    8-bit sRGB colour of absent pixels."""

    planes: int
    places: Sequence[int]
    numbers: Sequence[int]
    background: Optional[tuple[int, int, int]] = None
    focal_planes: int = 1

    def as_full(self, metadata: InstanceMetadata) -> InstanceMetadata:
        """The instance as it were with a frame at each place."""
        rows, columns = metadata.grid
        return attrs.evolve(metadata, organization=TILED_FULL, frames=self.planes * rows * columns)

    def tiles(self, cut: Cut, interpolation: str) -> Iterator[Tile]:
        """The stored frames that a cut of the full instance needs, row by row."""
        rows, columns = cut.runs(interpolation)
        first, across = cut.first_number - 1, cut.grid_columns
        at = bisect_left(self.places, first + rows.start * across + columns.start)
        stop = bisect_left(self.places, first + (rows.stop - 1) * across + columns.stop)
        while at < stop:
            row, column = divmod(self.places[at] - first, across)
            if column in columns:
                yield Tile(self.numbers[at], row * cut.frame_rows, column * cut.frame_columns)
                at += 1
            else:
                next_row = row if column < columns.start else row + 1
                at = bisect_left(self.places, first + next_row * across + columns.start, at, stop)

    def to_bytes(self) -> bytes:
        """A compact form; `read_placement` reads it."""
        planes = {"planes": self.planes, "focal_planes": self.focal_planes}
        head = {**planes, "background": self.background, "frames": len(self.places)}
        body = _little(array("Q", self.places)) + _little(array("I", self.numbers))
        return zlib.compress(json.dumps(head).encode() + b"\n" + body, 1)


def refusal(text: str) -> bytes:
    """What stands in the place of a placement where there is none, so that it is not looked for again."""
    return zlib.compress(json.dumps({"refused": text}).encode() + b"\n")


def read_placement(data: bytes) -> Placement:
    """Undo `Placement.to_bytes`. Raises `CannotRender` for a `refusal`, ValueError for anything else."""
    try:
        packed, _, body = zlib.decompress(data).partition(b"\n")
        head = json.loads(packed)
        if "refused" in head:
            raise CannotRender(head["refused"])
        places, numbers = array("Q"), array("I")
        split = head["frames"] * places.itemsize
        places.frombytes(body[:split])
        numbers.frombytes(body[split:])
        background = tuple(head["background"]) if head["background"] else None
        ordered = (_little_array(places), _little_array(numbers))
        return Placement(head["planes"], *ordered, background, head["focal_planes"])
    except (zlib.error, KeyError, TypeError) as error:
        raise ValueError("no placement of frames") from error


def _little(values: array[int]) -> bytes:
    return _little_array(values).tobytes()


def _little_array(values: array[int]) -> array[int]:
    if sys.byteorder == "big":
        values.byteswap()
    return values


class Positions:
    """Takes what functional groups say of one frame after the other, and makes the placement of all."""

    def __init__(self, metadata: InstanceMetadata) -> None:
        if not metadata.is_tiled:
            raise CannotRender("the metadata do not say how large the instance and its frames are")
        if metadata.frames > MAX_FRAMES:
            raise CannotRender(
                f"the instance is TILED_SPARSE and has {metadata.frames} frames; the places of at most {MAX_FRAMES} are read"
            )
        self._metadata = metadata
        self._places = array("Q")
        self._planes = array("I")
        self._known: dict[tuple[str, float], int] = {}

    def add(self, groups: Mapping[str, Any]) -> None:
        """The functional groups of the next frame, as DICOM JSON. Raises `CannotRender`."""
        number = len(self._places) + 1
        if number > self._metadata.frames:
            raise CannotRender("the metadata hold functional groups of more frames than there are")
        try:
            position = groups[POSITION]["Value"][0]
            row, column = int(position[_ROW]["Value"][0]), int(position[_COLUMN]["Value"][0])
            z = float((position.get(_Z) or {}).get("Value", (0.0,))[0])
            path = str(groups[PATH]["Value"][0][_PATH_NAME]["Value"][0]) if PATH in groups else ""
        except (LookupError, TypeError, ValueError, OverflowError, AttributeError):
            raise CannotRender(f"the metadata do not say where frame {number} lies: it is TILED_SPARSE") from None
        self._places.append(self._place(number, row, column))
        self._planes.append(self._known.setdefault((path, z), len(self._known)))
        if len(self._known) > MAX_PLANES:
            raise CannotRender(f"the frames lie in more than {MAX_PLANES} planes")

    def _place(self, number: int, row: int, column: int) -> int:
        """PS3.3 section C.8.12.6.1.1: positions count from 1, at a frame's top left pixel."""
        metadata = self._metadata
        down, over_down = divmod(row - 1, metadata.rows)
        right, over_right = divmod(column - 1, metadata.columns)
        grid_rows, grid_columns = metadata.grid
        if over_down or over_right:
            raise CannotRender(f"frame {number} lies at row {row}, column {column}: that is in no grid of frames")
        if not (0 <= down < grid_rows and 0 <= right < grid_columns):
            raise CannotRender(f"frame {number} lies at row {row}, column {column}: that is outside of the instance")
        return down * grid_columns + right

    def placement(self, background: Optional[tuple[int, int, int]] = None) -> Placement:
        """All have come. Raises `CannotRender`."""
        if len(self._places) != self._metadata.frames:
            raise CannotRender(
                f"the instance is TILED_SPARSE and has {self._metadata.frames} frames; the metadata say of "
                f"{len(self._places)} where they lie"
            )
        paths = list(dict.fromkeys(path for path, _ in self._known))
        heights = sorted({z for _, z in self._known})
        planes = len(paths) * len(heights)
        grid_rows, grid_columns = self._metadata.grid
        size = grid_rows * grid_columns
        if planes * size > MAX_PLACES:
            raise CannotRender("the total pixel matrix is too large for its frames")
        order = {index: paths.index(path) * len(heights) + heights.index(z) for (path, z), index in self._known.items()}
        found: dict[int, int] = {}
        for number, (place, plane) in enumerate(zip(self._places, self._planes), start=1):
            found.setdefault(order[plane] * size + place, number)
        occupied = sorted(found)
        numbers = array("I", [found[place] for place in occupied])
        return Placement(planes, array("Q", occupied), numbers, background, len(heights))
