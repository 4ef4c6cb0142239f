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
