"""DICOM files for tests and benchmarks, made of real tissue tiles (PyPI's wsidicom-data).

- Frames of one file are distinct: each carries its number, in a comment marker or in its first pixels.
- The same arguments give the same pixels; only UIDs are random, and those can be given.
- What is written is valid unless an argument says otherwise.
"""

from tests.slides.encodings import ENCODINGS, Encoding, encoded_frame
from tests.slides.files import Made, Pieces, loop, multi_frame, slide, stored_frames
from tests.slides.pixel_data import OffsetTable

__all__ = [
    "ENCODINGS",
    "Encoding",
    "Made",
    "OffsetTable",
    "Pieces",
    "encoded_frame",
    "loop",
    "multi_frame",
    "slide",
    "stored_frames",
]
