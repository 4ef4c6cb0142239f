"""What the index keeps of each file. Values only; a file's pixels and long attributes stay in the file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Optional

import attrs

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.native_pixels import swapped_width
from twistedproxy.dicom.transfer_syntaxes import lookup

# An attribute in the DICOM JSON Model (PS3.18 annex F): {"vr": ..., "Value": [...]}. Shared between
# records, so never changed.
JSONElement = Mapping[str, Any]


@attrs.frozen
class Stamp:
    """What tells one state of a file from another: device, inode, size in bytes, time of change in ns."""

    device: int
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """The stamp of a file with that *status*."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@attrs.frozen
class PixelElement:
    """Where a file's pixel data lie.

    *tag* is (7FE0,0010), or (7FE0,0008)/(7FE0,0009) for floats; *start* is the byte after the element's header
    (in a deflated file: of the inflated content); *length* is in bytes, None for encapsulated pixel data (undefined length).
    """

    tag: int
    vr: str
    start: int
    length: Optional[int]
    little_endian: bool


@attrs.frozen(eq=False)
class StoredFile:
    """One DICOM file as it was when its *stamp* was taken.

    *attributes* holds those that searches know, by tag as eight hexadecimal digits.
    """

    path: str
    stamp: Stamp
    study: str
    series: str
    sop: str
    sop_class: str
    transfer_syntax: str
    facts: InstanceMetadata
    attributes: Mapping[str, JSONElement]
    pixels: Optional[PixelElement]

    @property
    def key(self) -> tuple[str, str, str]:
        """StudyInstanceUID, SeriesInstanceUID, SOPInstanceUID."""
        return self.study, self.series, self.sop

    @property
    def resource(self) -> str:
        """The DICOMweb resource (PS3.18 section 10.4), with a leading slash."""
        return f"/studies/{self.study}/series/{self.series}/instances/{self.sop}"

    @property
    def frame_syntax(self) -> str:
        """The UID that labels a single frame."""
        known = lookup(self.transfer_syntax)
        return known.frame_uid if known else self.transfer_syntax

    @property
    def frames(self) -> int:
        """How many frames can be asked for: all pictures of a video are one stream (PS3.5 sections 8.2.5 to 8.2.9)."""
        known = lookup(self.transfer_syntax)
        return 1 if known is not None and not known.frames_separable else self.facts.frames

    @property
    def swapped(self) -> int:
        """Of how many bytes the words are that have to be swapped for little endian; 1: none."""
        if self.pixels is None or self.pixels.little_endian:
            return 1
        return swapped_width(self.pixels.vr, self.facts.bits_allocated)

    @property
    def deflated(self) -> bool:
        """Whether all behind the file meta information is compressed (PS3.5 section A.5)."""
        known = lookup(self.transfer_syntax)
        return known is not None and known.deflated
