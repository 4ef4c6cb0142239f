"""The virtual, smaller instance that ``downsample`` asks for: its sizes, and where its frames come from. Pure.

Rules:
- it has max(1, int(size / factor)) pixels a side, in frames of the stored frames' size, as TILED_FULL (DICOM PS3.3
  section C.7.6.17.3); its planes follow each other as the stored ones do; of a part of a concatenation it has the planes
  that the part holds frames of;
- its pixel t covers the source from t * size / new size on: the whole matrix, not a remainder less, so that PixelSpacing
  times matrix stays what it was;
- a virtual edge frame is filled by repeating the last row and column, which adds no edge to compress;
- frames of an instance that is not tiled are resized each by itself.

Its attributes, as DICOM JSON (PS3.18 annex F):
- TotalPixelMatrixColumns and -Rows, NumberOfFrames and PixelSpacing become those of the smaller instance; spacing grows
  by what the sizes shrank by, so their product, the imaged volume, stays (PS3.3 section C.8.12.4.1.2).
- The frames of an instance that is not tiled shrink themselves: Rows and Columns.
- Functional groups of each frame are dropped, for they describe frames that are no longer there (TILED_FULL needs none;
  what was not is TILED_FULL then, with empty frames where there was nothing), and so is what makes an instance a part of
  a concatenation: the smaller one has all of the matrix.
- ImageType becomes DERIVED, and of a slide's level RESAMPLED (PS3.3 section C.8.12.4.1.1).
- What an answer lacks is not made up: a search that leaves sizes out leaves them out here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Optional

import attrs

from twistedproxy.dicom.json_events import BadMetadata
from twistedproxy.dicom.lenient_json import read_json
from twistedproxy.dicom.metadata import InstanceMetadata, from_values
from twistedproxy.imaging.errors import CannotRender, NoSuchVirtualFrame
from twistedproxy.imaging.geometry import Axis, Cut
from twistedproxy.imaging.pixel_description import PER_FRAME, SHARED
from twistedproxy.imaging.tile_index import (
    FOCAL_PLANES,
    POSITION,
    TILED_FULL,
    Placement,
    Positions,
    count_of,
    lies_in_order,
    needs_positions,
)

SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""VL Whole Slide Microscopy Image Storage."""

_IMAGE_TYPE = "00080008"
_CLASS = "00080016"
_ORGANIZATION = "00209311"
_FRAMES, _ROWS, _COLUMNS, _SPACING = "00280008", "00280010", "00280011", "00280030"
_PATHS = "00480302"
_TOTAL_COLUMNS, _TOTAL_ROWS = "00480006", "00480007"
_PIXEL_MEASURES = "00289110"
_IMAGER_SPACING, _NOMINAL_SPACING = "00181164", "00182010"

_PART, _OFFSET = "00209162", "00209228"
_CONCATENATION = ("00200242", "00209161", "00209163", _PART, _OFFSET)
"""What makes an instance a part of a concatenation (PS3.3 section C.7.6.16.1)."""

ASKED_FOR = (_TOTAL_COLUMNS, _TOTAL_ROWS, _ORGANIZATION, _FRAMES, _ROWS, _COLUMNS, _PART, _OFFSET)
"""What a search for instances must ask for besides, so that its answer can be given at another size."""


@attrs.frozen
class Downsampled:
    """An instance as it looks at *factor*: the stored one itself at 1.

    *rows*, *columns*: of one frame. *total_rows*, *total_columns*: of the picture that the frames tile; of one frame
    where it is not tiled.
    """

    metadata: InstanceMetadata
    factor: float
    is_tiled: bool
    rows: int
    columns: int
    total_rows: int
    total_columns: int
    planes: int

    @classmethod
    def of(cls, metadata: InstanceMetadata, factor: float = 1.0) -> Downsampled:
        """Raises `CannotRender` where the metadata have no size, or the frames lie in no order that can be relied on."""
        if metadata.rows < 1 or metadata.columns < 1:
            raise CannotRender("the metadata do not say how large a frame is")
        if not lies_in_order(metadata):
            if factor > 1.0 and needs_positions(metadata):
                raise CannotRender("it must be known where the frames of an instance that is not TILED_FULL lie")
            rows, columns = shrunk(metadata.rows, factor), shrunk(metadata.columns, factor)
            return cls(metadata, factor, False, rows, columns, rows, columns, metadata.frames)
        assert metadata.total_rows is not None and metadata.total_columns is not None
        grid_rows, grid_columns = metadata.grid
        size = grid_rows * grid_columns
        planes = -(-(metadata.frame_offset + metadata.frames) // size) - metadata.frame_offset // size
        return cls(
            metadata,
            factor,
            True,
            metadata.rows,
            metadata.columns,
            shrunk(metadata.total_rows, factor),
            shrunk(metadata.total_columns, factor),
            planes,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of frames in one plane."""
        return -(-self.total_rows // self.rows), -(-self.total_columns // self.columns)

    @property
    def frames(self) -> int:
        """NumberOfFrames."""
        if self.factor == 1.0:
            return self.metadata.frames
        rows, columns = self.grid
        return rows * columns * self.planes

    def frame(self, number: int) -> Cut:
        """Frame *number*, from 1. Raises `NoSuchVirtualFrame`."""
        if not 1 <= number <= self.frames:
            raise NoSuchVirtualFrame(
                f"frame {number} does not exist; at downsample={self.factor:g} the instance has frames 1 to {self.frames}"
            )
        if not self.is_tiled or self.factor == 1.0:
            return self._by_itself(number)
        rows, columns = self.grid
        plane, within = divmod(number - 1, rows * columns)
        row, column = divmod(within, columns)
        top, left = row * self.rows, column * self.columns
        return self._of_plane(
            plane, top, left, min(self.rows, self.total_rows - top), min(self.columns, self.total_columns - left)
        )  # fmt: skip

    def whole(self) -> Cut:
        """All of the first plane that there are frames of as one picture; of an instance that is not tiled, one frame."""
        return self.plane(0) if self.is_tiled else self._by_itself(1)

    def plane(self, plane: int) -> Cut:
        """All of a plane, counted from the first that there are frames of, as one picture."""
        cut = self._of_plane(plane, 0, 0, self.total_rows, self.total_columns)
        return attrs.evolve(cut, rows=self.total_rows, columns=self.total_columns)

    def _by_itself(self, number: int) -> Cut:
        """A stored frame, pixel for pixel, or resized."""
        metadata = self.metadata
        vertical = Axis(metadata.rows, self.rows, 0.0, metadata.rows / self.rows)
        horizontal = Axis(metadata.columns, self.columns, 0.0, metadata.columns / self.columns)
        return Cut(
            vertical, horizontal, metadata.rows, metadata.columns, 1, number, metadata.frames, self.rows, self.columns
        )  # fmt: skip

    def _of_plane(self, plane: int, top: int, left: int, rows: int, columns: int) -> Cut:
        metadata = self.metadata
        assert metadata.total_rows is not None and metadata.total_columns is not None
        grid_rows, grid_columns = metadata.grid
        plane += metadata.frame_offset // (grid_rows * grid_columns)
        down, across = metadata.total_rows / self.total_rows, metadata.total_columns / self.total_columns
        return Cut(
            Axis(metadata.total_rows, rows, _exact(top, metadata.total_rows, self.total_rows), down),
            Axis(metadata.total_columns, columns, _exact(left, metadata.total_columns, self.total_columns), across),
            metadata.rows,
            metadata.columns,
            grid_columns,
            plane * grid_rows * grid_columns + 1 - metadata.frame_offset,
            metadata.frames,
            self.rows,
            self.columns,
        )


def _exact(at: int, source: int, target: int) -> float:
    """Where target pixel *at* begins: multiplied first, so that whole pixels come out whole."""
    return at * source / target


def shrunk(size: int, factor: float) -> int:
    """Pixels of a side at *factor*."""
    return max(1, int(size / factor))


def downsampled_answer(answer: bytes, factor: float) -> bytes:
    """An answer to a request for metadata or a search, as it is at *factor*. Raises ValueError for no DICOM JSON."""
    instances = read_json(answer)
    if not isinstance(instances, list) or not all(isinstance(attributes, dict) for attributes in instances):
        raise ValueError("not DICOM JSON")
    return json.dumps([downsampled(attributes, factor) for attributes in instances], separators=(",", ":")).encode()


def downsampled(attributes: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """The attributes of one instance at *factor*; as they are where they describe no image."""
    result = dict(attributes)
    try:
        facts = from_values({tag: value for tag in ASKED_FOR if (value := _first(attributes, tag)) is not None}, False)
        if factor == 1.0:
            return result
        placement = _placement(attributes, facts)
        virtual = Downsampled.of(placement.as_full(facts) if placement is not None else facts, factor)
    except (BadMetadata, CannotRender):
        return result
    if not virtual.is_tiled and _first(attributes, _CLASS) == SLIDE_CLASS and _TOTAL_ROWS not in attributes:
        result.pop(_FRAMES, None)  # a search that leaves the matrix out: how many are left is unknown
        return result
    for tag in (PER_FRAME, *(_CONCATENATION if virtual.is_tiled else ())):
        result.pop(tag, None)
    if placement is not None:
        result[_ORGANIZATION] = {"vr": "CS", "Value": [TILED_FULL]}
        if PER_FRAME in attributes:  # what TILED_FULL requires (PS3.3 sections C.8.12.4 and C.8.12.5)
            result[FOCAL_PLANES] = {"vr": "UL", "Value": [placement.focal_planes]}
            result[_PATHS] = {"vr": "UL", "Value": [placement.planes // placement.focal_planes]}
        else:
            result.pop(_FRAMES, None)  # a search: how many planes there are is unknown
    if image_type := _values(result, _IMAGE_TYPE):
        resampled = virtual.is_tiled and image_type[3:4] == ["NONE"]
        fourth = ["RESAMPLED"] if resampled else image_type[3:4]
        derived = ["DERIVED", *image_type[1:3], *fourth, *image_type[4:]]
        result[_IMAGE_TYPE] = {**result[_IMAGE_TYPE], "Value": derived}
    if virtual.is_tiled:
        assert facts.total_rows is not None and facts.total_columns is not None
        sizes = {_TOTAL_ROWS: virtual.total_rows, _TOTAL_COLUMNS: virtual.total_columns}
        ratios = facts.total_rows / virtual.total_rows, facts.total_columns / virtual.total_columns
        if _FRAMES in result:
            sizes[_FRAMES] = virtual.frames
    else:
        sizes = {_ROWS: virtual.rows, _COLUMNS: virtual.columns}
        ratios = facts.rows / virtual.rows, facts.columns / virtual.columns
    for tag, size in sizes.items():
        result[tag] = {**attributes[tag], "Value": [size]}
    widened: dict[str, Any] = _widened(result, ratios)
    return widened


def _placement(attributes: Mapping[str, Any], facts: InstanceMetadata) -> Optional[Placement]:
    """Where the frames lie of an instance that is not TILED_FULL; in a search, which lacks that, as if there were one
    plane. Raises `CannotRender`."""
    if not needs_positions(facts):
        return None
    if PER_FRAME not in attributes:
        return Placement(1, [], [])
    positions = Positions(facts)
    for groups in _values(attributes, SHARED):
        positions.share(groups)
    for groups in _values(attributes, PER_FRAME):
        positions.add(groups)
    return positions.placement(focal_planes=count_of(attributes.get(FOCAL_PLANES)))


def _first(attributes: Mapping[str, Any], tag: str) -> Any:
    return next(iter(_values(attributes, tag)), None)


def _values(attributes: Mapping[str, Any], tag: str) -> list[Any]:
    element = attributes.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _widened(attributes: Any, ratios: tuple[float, float]) -> Any:
    """*attributes* with every spacing wider: at the top, and in the pixel measures of the shared functional groups, which lose a
    position: it would be that of all frames."""
    if not isinstance(attributes, dict):
        return attributes
    result = {tag: element for tag, element in attributes.items() if tag != POSITION}
    for tag in result.keys() & {_SPACING, _IMAGER_SPACING, _NOMINAL_SPACING}:
        result[tag] = _wider(result[tag], ratios)
    for tag in (SHARED, _PIXEL_MEASURES):
        if values := _values(result, tag):
            result[tag] = {**result[tag], "Value": [_widened(item, ratios) for item in values]}
    return result


def _wider(element: Any, ratios: tuple[float, float]) -> Any:
    """A spacing (between rows, then between columns) times what the sizes shrank by. A DS has up to 16 characters."""
    try:
        first, second = element["Value"]
        spacing = [float(f"{float(value) * ratio:.10g}") for value, ratio in zip((first, second), ratios)]
    except (LookupError, TypeError, ValueError, OverflowError):
        return element
    return {**element, "Value": spacing}
