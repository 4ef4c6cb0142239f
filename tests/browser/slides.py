"""The slides that are looked at, and what a viewer has to show of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import imagecodecs
import numpy
import pydicom
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000, generate_uid

from twistedproxy.origin.sample.provider import slide_folder
from twistedproxy.origin.sample.slide import LEVELS

PADDING = 77  # pixels of the last column of frames, and of the last row, that stand over the slide's edge
LEVEL = 30  # dB of PSNR; about what scanners do

Pixels = numpy.ndarray[Any, numpy.dtype[numpy.uint8]]


def sample_files() -> list[Path]:
    """The files of the sample slide, made if they are not there, the largest level first."""
    folder = slide_folder(os.environ)
    subprocess.run([sys.executable, "-m", "twistedproxy.origin.sample", str(folder)], check=True)
    return [folder / level.file_name for level in LEVELS]


def as_jpeg2000(files: list[Path], folder: Path) -> list[Path]:
    """The levels in *files* as a slide of its own, in JPEG 2000, which no browser shows; *files*: the largest first.

    Its size is no multiple of a frame's.
    """
    study, series, scale = generate_uid(), generate_uid(), 0
    written = []
    for path in files:
        data = pydicom.dcmread(path)
        scale = scale or int(data.TotalPixelMatrixColumns)
        padding = PADDING * int(data.TotalPixelMatrixColumns) // scale
        data.StudyInstanceUID, data.SeriesInstanceUID, data.SOPInstanceUID = study, series, generate_uid()
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        data.file_meta.TransferSyntaxUID = JPEG2000
        data.PhotometricInterpretation, data.LossyImageCompressionMethod = "YBR_ICT", "ISO_15444_1"
        data.TotalPixelMatrixColumns -= padding
        data.TotalPixelMatrixRows -= padding
        frames = generate_frames(data.PixelData, number_of_frames=int(data.NumberOfFrames))
        pixels = (imagecodecs.jpeg_decode(frame) for frame in frames)
        data.PixelData = encapsulate(
            [bytes(imagecodecs.jpeg2k_encode(one, codecformat="j2k", level=LEVEL, mct=True)) for one in pixels]
        )
        written.append(folder / f"{data.SOPInstanceUID}.dcm")
        data.save_as(written[-1], enforce_file_format=True)
    return written


class Truth:
    """The pixels of one level, read from its file without the proxy."""

    def __init__(self, path: Path) -> None:
        self._data = pydicom.dcmread(path)
        count = int(self._data.NumberOfFrames)
        self._frames = list(generate_frames(self._data.PixelData, number_of_frames=count))

    @property
    def width(self) -> int:
        """Pixels."""
        return int(self._data.TotalPixelMatrixColumns)

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self._data.TotalPixelMatrixRows)

    def region(self, left: int, top: int, width: int, height: int) -> Pixels:
        """What is in a rectangle, as far as it is in the slide: uint8, (rows, columns, 3)."""
        side_x, side_y = int(self._data.Columns), int(self._data.Rows)
        right, bottom = min(left + width, self.width), min(top + height, self.height)
        canvas = numpy.zeros((bottom - top, right - left, 3), numpy.uint8)
        across = -(-self.width // side_x)
        for row in range(top // side_y, -(-bottom // side_y)):
            for column in range(left // side_x, -(-right // side_x)):
                frame = imagecodecs.imread(self._frames[row * across + column])
                x, y = column * side_x, row * side_y
                cut = frame[max(top - y, 0) : bottom - y, max(left - x, 0) : right - x]
                at_y, at_x = max(y - top, 0), max(x - left, 0)
                canvas[at_y : at_y + cut.shape[0], at_x : at_x + cut.shape[1]] = cut
        return canvas
