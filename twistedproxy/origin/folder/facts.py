"""The facts of an instance, read from a pydicom dataset."""

from __future__ import annotations

from typing import Any, Optional

from pydicom.dataset import Dataset

from twistedproxy.dicom.metadata import InstanceMetadata


def facts_of(dataset: Dataset, transfer_syntax: str, has_pixels: bool) -> InstanceMetadata:
    """An `InstanceMetadata`; *frames* is 0 where there are no pixels. Raises `ValueError` on numbers that are none."""
    frames = max(_number(dataset, "NumberOfFrames", 1), 1) if has_pixels else 0
    return InstanceMetadata(
        frames=frames,
        rows=_number(dataset, "Rows", 0),
        columns=_number(dataset, "Columns", 0),
        total_rows=_optional(dataset, "TotalPixelMatrixRows"),
        total_columns=_optional(dataset, "TotalPixelMatrixColumns"),
        organization=_text(dataset, "DimensionOrganizationType") or None,
        focal_planes=max(_number(dataset, "TotalPixelMatrixFocalPlanes", 1), 1),
        optical_paths=max(_number(dataset, "NumberOfOpticalPaths", 1), 1),
        samples_per_pixel=_number(dataset, "SamplesPerPixel", 1),
        bits_allocated=_number(dataset, "BitsAllocated", 8),
        bits_stored=_number(dataset, "BitsStored", 8),
        high_bit=_number(dataset, "HighBit", 7),
        pixel_representation=_number(dataset, "PixelRepresentation", 0),
        planar_configuration=_number(dataset, "PlanarConfiguration", 0),
        photometric_interpretation=_text(dataset, "PhotometricInterpretation"),
        transfer_syntax=transfer_syntax,
        sop_class=_text(dataset, "SOPClassUID"),
        has_icc_profile=_has_icc_profile(dataset),
    )


def _has_icc_profile(dataset: Dataset) -> bool:
    paths = dataset.get("OpticalPathSequence") or ()
    return "ICCProfile" in dataset or any("ICCProfile" in path for path in paths)


def _optional(dataset: Dataset, keyword: str) -> Optional[int]:
    value: Any = dataset.get(keyword)
    return int(value) if value not in (None, "") else None


def _number(dataset: Dataset, keyword: str, default: int) -> int:
    value = _optional(dataset, keyword)
    return default if value is None else value


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "")
