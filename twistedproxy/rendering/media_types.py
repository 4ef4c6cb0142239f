"""The forms that pictures have, and which stored frames are such pictures already."""

from __future__ import annotations

from typing import Optional

import attrs

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.transfer_syntaxes import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    JPEG_BASELINE,
    JPEG_PROGRESSIVE,
    JPEG_XL_RECOMPRESSION,
    lookup,
)

JPEG, JPEG_XL = "image/jpeg", "image/jxl"
PICTURE_TYPES = (JPEG, "image/png", "image/webp", "image/gif", JPEG_XL, "image/jp2")
"""What pictures can be made as, the preferred first (DICOM PS3.18 table 8.7.4-1, and what browsers show)."""


def is_same_picture(metadata: InstanceMetadata, media_type: str) -> bool:
    """Whether a stored frame, as it is or losslessly wrapped, is its pixels in *media_type*: what a browser makes of its
    bytes is what DICOM defines. (A JPEG of RGB components or a palette would come out otherwise.) Of gray the rendered picture
    is that only if no window or table makes other values of them, which the metadata here do not hold."""
    jpeg = metadata.transfer_syntax in (JPEG_BASELINE, JPEG_PROGRESSIVE)
    recompressed = metadata.transfer_syntax == JPEG_XL_RECOMPRESSION
    if not (jpeg or recompressed) or media_type not in (JPEG, JPEG_XL):
        return False
    return metadata.photometric_interpretation.startswith("YBR_FULL") or (
        is_gray(metadata) and metadata.bits_stored == 8
    )


def is_gray(metadata: InstanceMetadata) -> bool:
    """Whether windows and tables may apply to the values (PS3.3 section C.11)."""
    return metadata.photometric_interpretation.startswith("MONOCHROME")


def is_as_stored(metadata: InstanceMetadata, media_type: str) -> bool:
    """Whether a stored frame's bytes are its pixels in *media_type*; of gray see `is_same_picture`."""
    jpeg = metadata.transfer_syntax in (JPEG_BASELINE, JPEG_PROGRESSIVE)
    return (media_type == JPEG) == jpeg and is_same_picture(metadata, media_type)


def can_decode(transfer_syntax: Optional[str]) -> bool:
    """Whether pictures can be made of frames in that transfer syntax: not of video. An unknown one: to be tried."""
    syntax = lookup(transfer_syntax)
    return transfer_syntax is None or (syntax is not None and syntax.frames_separable)


def can_render(metadata: InstanceMetadata) -> bool:
    """Whether pictures can be made of that instance: not of documents, reports and waveforms, nor of video."""
    return metadata.has_pictures and can_decode(metadata.transfer_syntax)


def producible(metadata: InstanceMetadata, stored: str) -> tuple[str, ...]:
    """The transfer syntaxes that frames *stored* in one can be given in without loss, the preferred first."""
    syntax = lookup(stored)
    if syntax is None or not can_decode(stored):
        return ()
    if metadata.transfer_syntax != stored:
        metadata = attrs.evolve(metadata, transfer_syntax=stored)
    native = (EXPLICIT_VR_LITTLE_ENDIAN,) if metadata.bits_allocated >= 8 else ()
    if is_same_picture(metadata, "image/jxl") and stored == JPEG_BASELINE:
        return (JPEG_XL_RECOMPRESSION, *native)
    if is_same_picture(metadata, "image/jpeg") and stored == JPEG_XL_RECOMPRESSION:
        return (JPEG_BASELINE, *native)
    return native if syntax.encapsulated or syntax.big_endian else ()
