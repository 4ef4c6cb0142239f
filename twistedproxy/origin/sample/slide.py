"""What the sample slide is: its size, its levels, its UIDs. Values only; nothing here needs pydicom or Pillow."""

from __future__ import annotations

import uuid

import attrs

VERSION = 2  # of the pictures and headers: each has a folder of its own
TILE = 256  # pixels, rows and columns of a frame
BASE_COLUMNS, BASE_ROWS = 48, 32  # frames
DOWNSAMPLING = (1, 4, 16)
BASE_SPACING = 0.0005  # mm between pixels: what a 20x objective gives

_NAMESPACE = uuid.UUID("b2b1c8a4-6f0e-5a3c-9d53-0c6f5b1e7a11")


def uid(name: str) -> str:
    """A UID of our own that is always the same for *name* (PS3.5 section B.2)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, f'1/{name}').int}"


STUDY = uid("study")
SERIES = uid("series")


@attrs.frozen
class SampleLevel:
    """One level of the pyramid. *columns*, *rows*: frames; *spacing*: mm between pixels."""

    number: int
    columns: int
    rows: int
    spacing: float
    sop: str

    @property
    def frames(self) -> int:
        """How many frames it has."""
        return self.columns * self.rows

    @property
    def file_name(self) -> str:
        """Of its file, in the slide's folder."""
        return f"level-{self.number}.dcm"

    @property
    def path(self) -> str:
        """The DICOMweb resource (PS3.18 section 10.4), no leading slash."""
        return f"studies/{STUDY}/series/{SERIES}/instances/{self.sop}"


LEVELS = tuple(
    SampleLevel(number, BASE_COLUMNS // factor, BASE_ROWS // factor, BASE_SPACING * factor, uid(f"level {number}"))
    for number, factor in enumerate(DOWNSAMPLING, 1)
)
"""From the largest to the smallest."""
