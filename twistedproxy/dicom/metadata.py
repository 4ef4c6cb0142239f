"""What the proxy needs to know of an instance, read from its DICOM JSON metadata (PS3.18 annex F)."""

from __future__ import annotations

from typing import Optional

import attrs


@attrs.frozen
class InstanceMetadata:
    """Facts of one instance. Sizes in pixels; None where the metadata does not say.

    *total_rows*, *total_columns*: TotalPixelMatrixRows/Columns (0048,0007), (0048,0006).
    *organization*: DimensionOrganizationType (0020,9311). *focal_planes*: TotalPixelMatrixFocalPlanes (0048,0303).
    *optical_paths*: NumberOfOpticalPaths (0048,0302). *transfer_syntax*: (0002,0010) or (0008,3002), else None;
    """

    frames: int
    rows: int = 0
    columns: int = 0
    total_rows: Optional[int] = None
    total_columns: Optional[int] = None
    organization: Optional[str] = None
    focal_planes: int = 1
    optical_paths: int = 1
    samples_per_pixel: int = 1
    bits_allocated: int = 8
    bits_stored: int = 8
    high_bit: int = 7
    pixel_representation: int = 0
    planar_configuration: int = 0
    photometric_interpretation: str = ""
    transfer_syntax: Optional[str] = None
    sop_class: str = ""
    has_icc_profile: bool = False
