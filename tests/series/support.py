"""DICOM JSON of made-up series."""

from __future__ import annotations

from typing import Any

STUDY, SERIES = "1.2", "1.2.3"


def slice_json(sop: str, number: int = 1, z: float = 0.0, **values: Any) -> dict[str, Any]:
    """The metadata of a slice of a stack, as a store gives them. *values*: of other elements, by tag with a ``_`` before it; None
    leaves one out."""
    found: dict[str, tuple[str, Any]] = {
        "00080018": ("UI", [sop]),
        "0020000D": ("UI", [STUDY]),
        "0020000E": ("UI", [SERIES]),
        "00080016": ("UI", ["1.2.840.10008.5.1.4.1.1.2"]),
        "00200013": ("IS", [number]),
        "00200032": ("DS", [-100.0, -100, z]),
        "00200037": ("DS", [1, 0, 0, 0, 1, 0]),
        "00280010": ("US", [512]),
        "00280011": ("US", [512]),
        "00280100": ("US", [16]),
        "00083002": ("UI", ["1.2.840.10008.1.2.1"]),
    }
    for tag, value in values.items():
        found[tag.strip("_")] = (found.get(tag.strip("_"), ("LO",))[0], value)
    return {tag: {"vr": vr, "Value": value} for tag, (vr, value) in found.items() if value is not None}


def level_json(sop: str, number: int, rows: int, columns: int, frames: int, **values: Any) -> dict[str, Any]:
    """The metadata of a level of a slide of so many pixels, in tiles of 256."""
    found = slice_json(sop, number, _00200032=None, _00200037=None, **values)
    more: dict[str, tuple[str, list[Any]]] = {
        "00080008": ("CS", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]),
        "00080016": ("UI", ["1.2.840.10008.5.1.4.1.1.77.1.6"]),
        "00083002": ("UI", ["1.2.840.10008.1.2.4.50"]),
        "00209311": ("CS", ["TILED_FULL"]),
        "00280008": ("IS", [frames]),
        "00280010": ("US", [256]),
        "00280011": ("US", [256]),
        "00480006": ("UL", [columns]),
        "00480007": ("UL", [rows]),
    }
    for tag, (vr, value) in more.items():
        if f"_{tag}" not in values:
            found[tag] = {"vr": vr, "Value": value}
    return found


def path_json(*identifiers: str) -> dict[str, Any]:
    """An OpticalPathSequence (0048,0105)."""
    items = [
        {
            "0022001A": {"vr": "US", "Value": [1]},
            "00480106": {"vr": "SH", "Value": [identifier]},
            "00480108": {"vr": "SQ", "Value": [{"00080100": {"vr": "SH", "Value": ["414298005"]}}]},
        }
        for identifier in identifiers
    ]
    return {"vr": "SQ", "Value": items}
