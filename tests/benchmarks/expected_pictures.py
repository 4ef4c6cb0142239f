"""What an instance's frames and pictures should be, by pydicom and DCMTK; nothing here is the proxy's.

Rules:

- Stored frames: a frame's items joined, pad bytes kept (PS3.5 section A.4); native ones cut by size, in little endian.
- Pictures: modality LUT, VOI LUT or first window, inversion of MONOCHROME1 (PS3.3 section C.11), 8 bits.
- Where neither a window nor a VOI LUT applies, more than one range of values is a right one to show: `pictures` gives all
  of them, each with its name, the range of the frame's own values first.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.uid import UID, JPEGLSLossless, JPEGLSNearLossless

Pixels = numpy.ndarray[Any, Any]

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_EXTREMES = (-1e15, 1e15)
_DISPLAY = ("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept", "VOILUTSequence", "WindowCenter", "WindowWidth")
_LOSSY = {f"1.2.840.10008.1.2.4.{end}" for end in (50, 51, 81, 91, 112, 203)}
TIMEOUT = 60.0  # seconds, of a decoder of DCMTK


class NoReference(Exception):
    """What should come is not known: the text says why."""


@attrs.frozen(eq=False)
class Instance:
    """One file's image."""

    path: Path
    data: Dataset
    decoded: Path | None = None
    """The same, decoded by DCMTK, where pydicom has no decoder for it."""
    _made: dict[int, dict[str, Pixels]] = attrs.field(factory=dict, init=False, repr=False)

    @property
    def resource(self) -> str:
        """The DICOMweb resource (PS3.18 section 10.4), no leading slash."""
        data = self.data
        return f"studies/{data.StudyInstanceUID}/series/{data.SeriesInstanceUID}/instances/{data.SOPInstanceUID}"

    @property
    def syntax(self) -> UID:
        return UID(self.data.file_meta.get("TransferSyntaxUID", "1.2.840.10008.1.2"))

    @property
    def lossy(self) -> bool:
        """Whether decoders may differ."""
        return self.syntax in _LOSSY

    @property
    def frames(self) -> int:
        count = str(self.data.get("NumberOfFrames") or 1)
        return int(count) if count.isdigit() else 1

    @property
    def is_tiled(self) -> bool:
        return "TotalPixelMatrixRows" in self.data

    @property
    def profile(self) -> bytes:
        """The ICC profile of the first optical path, or of the instance; b"" for none, and for what has no colors."""
        paths = self.data.get("OpticalPathSequence") or [self.data]
        return bytes(paths[0].get("ICCProfile") or b"") if self.data.get("SamplesPerPixel") == 3 else b""

    def stored(self) -> list[bytes]:
        """All frames as they are stored. Raises NoReference."""
        try:
            frames = _stored(self)
        except Exception as error:  # pydicom has many for what is wrong in a file
            raise NoReference(f"pydicom has no frames: {error}") from error
        if len(frames) != self.frames:
            raise NoReference(f"pydicom finds {len(frames)} frames where the instance says {self.frames}")
        return frames

    def pictures(self, frame: int) -> dict[str, Pixels]:
        """The right pictures of *frame* (from 1) by the range that they show: uint8, (rows, columns) or (rows, columns, 3).
        Raises NoReference."""
        if frame in self._made:
            return self._made[frame]
        try:
            with warnings.catch_warnings(), numpy.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                return self._made.setdefault(frame, dict(_pictures(self, frame)))
        except Exception as error:
            raise NoReference(f"pydicom has no picture: {' '.join(str(error).split())[:160]}") from error

    def mosaic(self) -> Pixels:
        """The total pixel matrix of a tiled image, white where there is no frame. Raises NoReference."""
        data = self.data
        first = self._only_picture(1)
        whole = numpy.full(
            (data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns, *first.shape[2:]), 255, numpy.uint8
        )
        for number, (top, left) in enumerate(_positions(data), 1):
            part = whole[top : top + data.Rows, left : left + data.Columns]
            part[:] = self._only_picture(number)[: part.shape[0], : part.shape[1]]
        return whole

    def _only_picture(self, frame: int) -> Pixels:
        return next(iter(self.pictures(frame).values()))


def instance_at(path: Path, folder: Path) -> Instance:
    """The image at *path*; what DCMTK decodes goes below *folder*."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        instance = Instance(path, pydicom.dcmread(path, force=True))
        if not _needs_dcmtk(instance.syntax):
            return instance
        program = "dcmdjpls" if instance.syntax in (JPEGLSLossless, JPEGLSNearLossless) else "dcmdjpeg"
        if not shutil.which(program):
            return instance
        target = Path(tempfile.mkdtemp(dir=folder)) / path.name
        done = subprocess.run([program, str(path), str(target)], capture_output=True, timeout=TIMEOUT)
        return attrs.evolve(instance, decoded=target if done.returncode == 0 else None)


def _needs_dcmtk(syntax: UID) -> bool:
    try:
        return pydicom.pixels.get_decoder(syntax).is_available is False or syntax[-3:] == ".51"
    except NotImplementedError:
        return False


def _stored(instance: Instance) -> list[bytes]:
    data, count = instance.data, instance.frames
    if instance.syntax.is_encapsulated:
        tables = None
        if "ExtendedOffsetTable" in data:
            tables = (data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths)
        return list(generate_frames(data.PixelData, number_of_frames=count, extended_offsets=tables))
    element = next(data[keyword] for keyword in PIXELS if keyword in data)
    samples, bits = data.get("SamplesPerPixel", 1), data.get("BitsAllocated", 8)
    value = little_endian(element.value, bits, element.VR) if not instance.syntax.is_little_endian else element.value
    pixels = data.Rows * data.Columns * samples
    if data.PhotometricInterpretation == "YBR_FULL_422":
        pixels = pixels * 2 // 3
    if bits == 1:
        return bit_frames(value, pixels, count)
    size = pixels * bits // 8
    if len(value) < size * count:
        raise ValueError(f"{len(value)} bytes where {count} frames need {size * count}")
    return [value[number * size : (number + 1) * size] for number in range(count)]


def little_endian(value: bytes, bits: int, vr: str) -> bytes:
    """Big endian pixel data as little endian has it: of OW each word is swapped, of 8-bit samples, too (PS3.5 section
    7.3)."""
    size = max(2, bits // 8) if vr == "OW" else bits // 8
    if size < 2:
        return value
    return numpy.frombuffer(value[: len(value) // size * size], f">u{size}").astype(f"<u{size}").tobytes()


def bit_frames(value: bytes, pixels: int, count: int) -> list[bytes]:
    """Frames of one bit a pixel lie without a gap (PS3.5 section 8.1.1); each comes as whole bytes."""
    bits = numpy.unpackbits(numpy.frombuffer(value, numpy.uint8), bitorder="little")
    if len(bits) < pixels * count:
        raise ValueError("too few bits")
    frames = bits[: pixels * count].reshape(count, pixels)
    return [numpy.packbits(frame, bitorder="little").tobytes() for frame in frames]


def _positions(data: Dataset) -> list[tuple[int, int]]:
    """Top and left of each frame in the total pixel matrix, from 0."""
    if data.get("PerFrameFunctionalGroupsSequence") and data.get("DimensionOrganizationType") != "TILED_FULL":
        places = [group.PlanePositionSlideSequence[0] for group in data.PerFrameFunctionalGroupsSequence]
        return [
            (place.RowPositionInTotalImagePixelMatrix - 1, place.ColumnPositionInTotalImagePixelMatrix - 1)
            for place in places
        ]
    across = -(-data.TotalPixelMatrixColumns // data.Columns)
    return [(n // across * data.Rows, n % across * data.Columns) for n in range(int(data.NumberOfFrames))]


def _values(instance: Instance, frame: int) -> Pixels:
    """Stored values, or RGB."""
    return pixel_array(str(instance.decoded) if instance.decoded else instance.data, index=frame - 1)


def _pictures(instance: Instance, frame: int) -> Iterator[tuple[str, Pixels]]:
    data, values = instance.data, _values(instance, frame)
    bits = int(data.get("BitsStored") or data.get("BitsAllocated", 32))
    if values.ndim == 3:
        yield "colors", numpy.rint(values / ((1 << bits) - 1) * 255).astype(numpy.uint8)
    elif data.PhotometricInterpretation == "PALETTE COLOR":
        colors = apply_color_lut(values, data)
        width = max(8, int(data.RedPaletteColorLookupTableDescriptor[2]))
        yield "palette", (colors >> width - 8).astype(numpy.uint8)
        yield "palette of 8 bits in 16", (colors & 255).astype(numpy.uint8)
    else:
        inverted = data.PhotometricInterpretation == "MONOCHROME1"
        for name, share in _shares(values, _shown_with(data, frame), bits):
            shown = numpy.rint(numpy.clip(share, 0, 1) * 255).astype(numpy.uint8)
            yield name, 255 - shown if inverted else shown


def _shown_with(data: Dataset, frame: int) -> Dataset:
    """What the display of one frame depends on, as if it stood at the top level (PS3.3 section C.7.6.16)."""
    flat = Dataset()
    flat.set_original_encoding(*data.original_encoding, data.original_character_set)
    keywords = ("PhotometricInterpretation", "PixelRepresentation", "BitsStored", "BitsAllocated", "PixelPaddingValue")
    more = ("VOILUTFunction", "SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingRangeLimit")
    groups = [*data.get("SharedFunctionalGroupsSequence", ())[:1]]
    groups += data.get("PerFrameFunctionalGroupsSequence", ())[frame - 1 : frame]
    macros = [
        group[keyword].value[0]
        for group in groups
        for keyword in ("PixelValueTransformationSequence", "FrameVOILUTSequence")
        if group.get(keyword)
    ]
    for source in [data, *macros]:
        for keyword in (*keywords, *more, *_DISPLAY):
            if keyword in source and source[keyword].value not in (None, ""):
                flat[keyword] = source[keyword]
    return flat


def _shares(values: Pixels, shown: Dataset, bits: int) -> Iterator[tuple[str, Pixels]]:
    """Shares of white, by what they show."""
    if values.dtype.kind == "f":
        yield "values", _stretched(values, float(numpy.nanmin(values)), float(numpy.nanmax(values)))
        return
    real = numpy.asarray(apply_modality_lut(values, shown))
    width = shown.get("WindowWidth")
    first = width[0] if isinstance(width, (list, pydicom.multival.MultiValue)) and width else width
    if "VOILUTSequence" in shown:
        looked_up = apply_voi_lut(numpy.rint(real).astype(numpy.int64), shown, index=0)
        yield "VOI LUT", looked_up / ((1 << int(shown.VOILUTSequence[0].LUTDescriptor[2])) - 1)
    elif first and "WindowCenter" in shown:
        lowest, highest = apply_voi_lut(numpy.array(_EXTREMES), shown, index=0, prefer_lut=False)
        yield "window", (apply_voi_lut(real, shown, index=0, prefer_lut=False) - lowest) / (highest - lowest)
    else:
        yield from _ranges(values, real, shown, bits)


def _ranges(values: Pixels, real: Pixels, shown: Dataset, bits: int) -> Iterator[tuple[str, Pixels]]:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if shown.PixelRepresentation else (0, (1 << bits) - 1)
    if bits <= 8 and "ModalityLUTSequence" not in shown:
        yield (
            "values as they are",
            _stretched(values, low, high) if shown.get("RescaleSlope", 1) >= 0 else 1 - _stretched(values, low, high),
        )
        return
    counted = real
    if "PixelPaddingValue" in shown and real is not None:
        ends = sorted((int(shown.PixelPaddingValue), int(shown.get("PixelPaddingRangeLimit", shown.PixelPaddingValue))))
        counted = real[(values < ends[0]) | (values > ends[1])]
    if counted.size and counted.min() < counted.max():
        yield "range of the frame's values", _stretched(real, float(counted.min()), float(counted.max()))
    if "SmallestImagePixelValue" in shown and "LargestImagePixelValue" in shown:
        ends = apply_modality_lut(numpy.array([shown.SmallestImagePixelValue, shown.LargestImagePixelValue]), shown)
        yield "range that the instance names", _stretched(real, float(min(ends)), float(max(ends)))
    if "ModalityLUTSequence" in shown:
        yield "range of the modality LUT", real / ((1 << int(shown.ModalityLUTSequence[0].LUTDescriptor[2])) - 1)
    else:
        ends = apply_modality_lut(numpy.array([low, high]), shown)
        yield "range of the bits", _stretched(real, float(min(ends)), float(max(ends)))


def _stretched(real: Pixels, low: float, high: float) -> Pixels:
    return (real.astype(numpy.float64) - low) / ((high - low) or 1.0)
