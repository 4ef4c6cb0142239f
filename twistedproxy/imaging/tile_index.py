"""Where the frames of an instance lie that is not TILED_FULL: their places in its total pixel matrix. Pure.

Rules:
- only TILED_FULL gives places by the order of frames (DICOM PS3.3 section C.7.6.17.3); of any other instance with a
  total pixel matrix the functional groups give them: Plane Position (Slide) and Optical Path Identification (sections
  C.8.12.6.1 and C.8.12.6.2), the frame's own or the shared ones. A missing place is not guessed;
- frames may lie anywhere inside the matrix, but must not overlap;
- planes follow each other as in TILED_FULL: by optical path, in each by focal plane, from the slide upwards; where there are
  more heights than focal planes, frames follow the tissue, and those at one place are counted from the slide upwards;
- of several frames at one place the first counts; a place without a frame has the color of absent pixels (C.8.12.4);
- a frame takes 12 bytes, and there is a limit of frames.
"""

from __future__ import annotations

import json
import sys
import zlib
from array import array
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional

import attrs

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.imaging.errors import CannotRender
from twistedproxy.imaging.geometry import Cut, Tile

TILED_FULL = "TILED_FULL"

MAX_FRAMES = 500_000
"""Frames whose places are kept: 6 MB."""
MAX_PLANES = 1000
MAX_HEIGHTS = 100_000
"""Of frames that follow the tissue, each with an optical path."""
MAX_PLACES = 1 << 53
"""Pixels of all planes together: what a JSON number holds exactly."""

POSITION, PATH = "0048021A", "00480207"
FOCAL_PLANES = "00480303"
WANTED = frozenset((POSITION, PATH))
"""The functional groups that give a frame's place."""
_COLUMN, _ROW, _Z, _PATH_NAME = "0048021E", "0048021F", "0040074A", "00480106"


def lies_in_order(metadata: InstanceMetadata) -> bool:
    """Whether frames tile a total pixel matrix row by row, from *metadata*'s offset on."""
    if not metadata.is_tiled:
        return False
    if metadata.frames == 1 and metadata.grid == (1, 1):
        return True
    known = metadata.concatenation_part == 1 or metadata.frame_offset > 0
    return metadata.organization == TILED_FULL and known


def needs_positions(metadata: InstanceMetadata) -> bool:
    """Whether only functional groups give the places of frames in the total pixel matrix. "3D" and "3D_TEMPORAL" are
    stacks, whatever else the metadata hold."""
    stack = (metadata.organization or "").startswith("3D")
    return metadata.is_tiled and not stack and not lies_in_order(metadata)


def _color(value: Optional[Sequence[int]]) -> Any:
    return tuple(value) if value else None


@attrs.frozen(eq=False)
class Placement:
    """The frames of an instance by their places. *places*: of their first pixels in ascending order, counted from 0, plane
    after plane, row after row of the total pixel matrix. *numbers*: the frame at each of them. *focal_planes*: of each
    optical path. *background*: the 8-bit sRGB color of absent pixels. *in_grid*: whether all lie where frames of
    TILED_FULL would."""

    planes: int
    places: Sequence[int]
    numbers: Sequence[int]
    background: Optional[tuple[int, int, int]] = attrs.field(default=None, converter=_color)
    focal_planes: int = 1
    in_grid: bool = True

    def as_full(self, metadata: InstanceMetadata) -> InstanceMetadata:
        """The instance as it were with a frame at each place."""
        rows, columns = metadata.grid
        return attrs.evolve(
            metadata,
            organization=TILED_FULL,
            frames=self.planes * rows * columns,
            concatenation_part=1,
            frame_offset=0,
        )

    def tiles(self, cut: Cut, interpolation: str) -> Iterator[Tile]:
        """The stored frames that a cut of the full instance needs, row by row."""
        (top, bottom), (left, right) = cut.vertical.reach(interpolation), cut.horizontal.reach(interpolation)
        across = cut.horizontal.source
        plane = (cut.first_number - 1) // (-(-cut.vertical.source // cut.frame_rows) * cut.grid_columns)
        above = plane * cut.vertical.source
        low, first = above + max(0, top - cut.frame_rows + 1), max(0, left - cut.frame_columns + 1)
        at = bisect_left(self.places, low * across + first)
        stop = bisect_left(self.places, (above + bottom - 1) * across + right)
        while at < stop:
            row, column = divmod(self.places[at], across)
            if first <= column < right:
                yield Tile(self.numbers[at], row - above, column)
                at += 1
            else:
                next_row = row if column < first else row + 1
                at = bisect_left(self.places, next_row * across + first, at, stop)

    def to_bytes(self) -> bytes:
        """A compact form; `read_placement` reads it."""
        head = attrs.asdict(self, filter=lambda field, _: field.name not in ("places", "numbers"))
        head["frames"] = len(self.places)
        return _packed(head, array("Q", self.places).tobytes() + array("I", self.numbers).tobytes())


def refusal(text: str) -> bytes:
    """What stands in the place of a placement where there is none, so that it is not looked for again."""
    return _packed({"refused": text})


def _packed(head: Mapping[str, Any], body: bytes = b"") -> bytes:
    return zlib.compress(json.dumps({**head, "order": sys.byteorder}).encode() + b"\n" + body, 1)


def read_placement(data: bytes) -> Placement:
    """Undo `Placement.to_bytes`. Raises `CannotRender` for a `refusal`, ValueError for anything else."""
    try:
        packed, _, body = zlib.decompress(data).partition(b"\n")
        head = json.loads(packed)
        if "refused" in head:
            raise CannotRender(head["refused"])
        if head.pop("order") != sys.byteorder:
            raise ValueError("a placement of another kind of machine")
        places, numbers = array("Q"), array("I")
        split = head.pop("frames") * places.itemsize
        places.frombytes(body[:split])
        numbers.frombytes(body[split:])
        return Placement(places=places, numbers=numbers, **head)
    except (zlib.error, KeyError, TypeError, AttributeError) as error:
        raise ValueError("no placement of frames") from error


class Positions:
    """Takes the functional groups of one frame after the other, and makes the placement of all."""

    def __init__(self, metadata: InstanceMetadata) -> None:
        self._metadata = metadata
        self._refused = ""
        if not metadata.is_tiled:
            self._refused = "the metadata do not say how large the instance and its frames are"
        elif metadata.frames > MAX_FRAMES:
            self._refused = f"{_organization(metadata)} and has {metadata.frames} frames; the places of at most {MAX_FRAMES} are read"
        self._shared: Mapping[str, Any] = {}
        self._places = array("Q")
        self._planes = array("I")
        self._known: dict[tuple[str, float], int] = {}

    def share(self, groups: Mapping[str, Any]) -> None:
        """The shared functional groups, which come before those of the frames, as DICOM JSON."""
        self._shared = groups

    def add(self, groups: Mapping[str, Any]) -> None:
        """The functional groups of the next frame, as DICOM JSON. Nothing more is looked at once there is no placement to be had."""
        metadata, number = self._metadata, len(self._places) + 1
        if self._refused:
            return
        if number > metadata.frames:
            self._refused = "the metadata have functional groups for more frames than the instance has"
            return
        try:
            groups = {**self._shared, **groups}
            position = groups[POSITION]["Value"][0]
            row, column = _whole(position[_ROW]["Value"][0]), _whole(position[_COLUMN]["Value"][0])
            z = float((position.get(_Z) or {}).get("Value", (0.0,))[0])
            path = str(groups[PATH]["Value"][0][_PATH_NAME]["Value"][0]) if PATH in groups else ""
        except (LookupError, TypeError, ValueError, OverflowError, AttributeError):
            self._refused = f"the metadata do not say where frame {number} lies: {_organization(metadata)}"
            return
        # PS3.3 section C.8.12.6.1.1: positions count from 1, at a frame's top left pixel.
        total_rows, total_columns = metadata.total_rows or 0, metadata.total_columns or 0
        if not (0 < row <= total_rows and 0 < column <= total_columns):
            self._refused = f"frame {number} lies at row {row}, column {column}: outside of the total pixel matrix"
            return
        self._places.append((row - 1) * total_columns + column - 1)
        self._planes.append(self._known.setdefault((path, z), len(self._known)))
        if len(self._known) > MAX_HEIGHTS:
            self._refused = f"the frames lie at more than {MAX_HEIGHTS} heights"

    def placement(
        self, background: Optional[tuple[int, int, int]] = None, focal_planes: Optional[int] = None
    ) -> Placement:
        """All have come. *focal_planes*: TotalPixelMatrixFocalPlanes (0048,0303). Raises `CannotRender`."""
        metadata = self._metadata
        if not self._places and self._shared and metadata.frames == 1:
            self.add({})
        if self._refused:
            raise CannotRender(self._refused)
        if len(self._places) != metadata.frames:
            raise CannotRender(
                f"{_organization(metadata)} and has {metadata.frames} frames; the metadata say of "
                f"{len(self._places)} where they lie"
            )
        size = (metadata.total_rows or 0) * (metadata.total_columns or 0)
        planes, heights, order = self._in_planes(size, focal_planes)
        if planes > MAX_PLANES:
            raise CannotRender(f"the frames lie in more than {MAX_PLANES} planes")
        if planes * size > MAX_PLACES:
            raise CannotRender("the total pixel matrix is too large for its frames")
        found: dict[int, int] = {}
        for number, (place, plane) in enumerate(zip(self._places, order), start=1):
            found.setdefault(plane * size + place, number)
        occupied = sorted(found)
        in_grid = self._are_in_grid()
        if not in_grid:
            self._check_apart(occupied)
        numbers = array("I", [found[place] for place in occupied])
        return Placement(planes, array("Q", occupied), numbers, background, heights, in_grid)

    def _in_planes(self, size: int, focal_planes: Optional[int]) -> tuple[int, int, Sequence[int]]:
        """How many planes there are, how many of each optical path, and each frame's plane."""
        paths = {path: at for at, path in enumerate(dict.fromkeys(path for path, _ in self._known))}
        heights = {z: at for at, z in enumerate(sorted({z for _, z in self._known}))}
        if focal_planes is None or len(heights) <= focal_planes:
            plane_of = [paths[path] * len(heights) + heights[z] for path, z in self._known]
            return len(paths) * len(heights), len(heights), [plane_of[plane] for plane in self._planes]
        known = list(self._known)
        stacks: dict[int, list[tuple[float, int]]] = {}
        for index, (place, plane) in enumerate(zip(self._places, self._planes)):
            path, z = known[plane]
            stacks.setdefault(paths[path] * size + place, []).append((z, index))
        deepest = max(map(len, stacks.values()))
        order = [0] * len(self._places)
        for place, stack in stacks.items():
            for depth, (_, index) in enumerate(sorted(stack)):
                order[index] = place // size * deepest + depth
        return len(paths) * deepest, deepest, order

    def _are_in_grid(self) -> bool:
        metadata, across = self._metadata, self._metadata.total_columns or 1
        places = ((place // across, place % across) for place in self._places)
        return all(row % metadata.rows == 0 and column % metadata.columns == 0 for row, column in places)

    def _check_apart(self, occupied: Sequence[int]) -> None:
        """Raises `CannotRender` where frames of one plane overlap: which of them is to be seen is undefined."""
        metadata = self._metadata
        down, across = metadata.total_rows or 1, metadata.total_columns or 1
        above: deque[tuple[int, int]] = deque()  # frames that reach down to the row at work, by row and column
        columns: list[int] = []  # theirs, in order
        for row, column in (divmod(place, across) for place in occupied):
            plane = row // down
            while above and (above[0][0] + metadata.rows <= row or above[0][0] // down != plane):
                del columns[bisect_left(columns, above.popleft()[1])]
            at = bisect_left(columns, column - metadata.columns + 1)
            if at < len(columns) and columns[at] < column + metadata.columns:
                raise CannotRender(
                    f"frames overlap at row {row % down + 1}, column {column + 1}: no picture is made of them"
                )
            above.append((row, column))
            insort(columns, column)


def _organization(metadata: InstanceMetadata) -> str:
    """Why places are looked for, for errors."""
    if metadata.organization == TILED_FULL:
        return "the instance is a later part of a concatenation without ConcatenationFrameOffsetNumber"
    if metadata.organization is None:
        return "the instance has no DimensionOrganizationType TILED_FULL"
    return f"the instance is {metadata.organization}, not TILED_FULL,"


def _whole(value: Any) -> int:
    """A position as a number or, of some stores, as a text. Raises ValueError and OverflowError."""
    number = int(value)
    if number != float(value):
        raise ValueError("no whole number")
    return number


def count_of(element: Any) -> Optional[int]:
    """The number in an element of DICOM JSON; None for none, or none above 0."""
    try:
        return max(0, int(element["Value"][0])) or None
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
