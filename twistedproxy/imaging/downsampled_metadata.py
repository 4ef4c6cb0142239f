"""The attributes of a downsampled instance, as DICOM JSON (PS3.18 annex F). Pure.

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

from twistedproxy.dicom.json_events import BadMetadata
from twistedproxy.dicom.lenient_json import read_json
from twistedproxy.dicom.metadata import InstanceMetadata, from_values
from twistedproxy.imaging.downsampled import Downsampled
from twistedproxy.imaging.errors import CannotRender
from twistedproxy.imaging.pixel_description import PER_FRAME, SHARED
from twistedproxy.imaging.tile_index import (
    FOCAL_PLANES,
    POSITION,
    TILED_FULL,
    Placement,
    Positions,
    count_of,
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


def downsampled_answer(answer: bytes, factor: float) -> bytes:
    """An answer to a request for metadata or a search, as it is at *factor*. Raises ValueError for no DICOM JSON."""
    instances = read_json(answer)
    if not isinstance(instances, list) or not all(isinstance(attributes, dict) for attributes in instances):
        raise ValueError("no DICOM JSON")
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
    _derive(result, virtual)
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
    _widen(result, ratios)
    return result


def _placement(attributes: Mapping[str, Any], facts: InstanceMetadata) -> Optional[Placement]:
    """Where the frames lie of an instance that is not TILED_FULL; in a search, which lacks that, as if there were one
    plane. Raises `CannotRender`."""
    if not needs_positions(facts):
        return None
    if PER_FRAME not in attributes:
        return Placement(1, [], [])
    positions = Positions(facts)
    for groups in attributes.get(SHARED, {}).get("Value", ()):
        positions.share(groups)
    for groups in attributes[PER_FRAME].get("Value", ()):
        positions.add(groups)
    return positions.placement(focal_planes=count_of(attributes.get(FOCAL_PLANES)))


def _first(attributes: Mapping[str, Any], tag: str) -> Any:
    element = attributes.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _derive(result: dict[str, Any], virtual: Downsampled) -> None:
    element = result.get(_IMAGE_TYPE)
    values = list(element.get("Value") or ()) if isinstance(element, dict) else []
    if not values:
        return
    values[0] = "DERIVED"
    if virtual.is_tiled and len(values) >= 4 and values[3] == "NONE":
        values[3] = "RESAMPLED"
    result[_IMAGE_TYPE] = {**result[_IMAGE_TYPE], "Value": values}


def _widen(result: dict[str, Any], ratios: tuple[float, float]) -> None:
    """Multiply every spacing: at the top, and in the pixel measures of the shared functional groups."""
    for tag in (_SPACING, _IMAGER_SPACING, _NOMINAL_SPACING):
        if (wider := _wider(result.get(tag), ratios)) is not None:
            result[tag] = wider
    groups = result.get(SHARED)
    if isinstance(groups, dict) and isinstance(groups.get("Value"), list):
        result[SHARED] = {**groups, "Value": [_with_measures(item, ratios) for item in groups["Value"]]}


def _with_measures(item: Any, ratios: tuple[float, float]) -> Any:
    """Shared functional groups: spacings wider, and without a position, which would be that of all frames."""
    if isinstance(item, dict) and POSITION in item:
        item = {tag: element for tag, element in item.items() if tag != POSITION}
    measures = item.get(_PIXEL_MEASURES) if isinstance(item, dict) else None
    if not isinstance(measures, dict) or not isinstance(measures.get("Value"), list):
        return item
    widened = []
    for measure in measures["Value"]:
        wider = _wider(measure.get(_SPACING), ratios) if isinstance(measure, dict) else None
        widened.append({**measure, _SPACING: wider} if wider is not None else measure)
    return {**item, _PIXEL_MEASURES: {**measures, "Value": widened}}


def _wider(element: Any, ratios: tuple[float, float]) -> Optional[dict[str, Any]]:
    """A spacing (between rows, then between columns) times what the sizes shrank by. A DS has up to 16 characters."""
    values = element.get("Value") if isinstance(element, dict) else None
    if not isinstance(values, list) or len(values) != 2:
        return None
    try:
        spacing = [float(f"{float(value) * ratio:.10g}") for value, ratio in zip(values, ratios)]
    except (TypeError, ValueError, OverflowError):
        return None
    return {**element, "Value": spacing}
