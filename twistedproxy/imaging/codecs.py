"""Compressed frames: which codec decodes which, and what their results mean.

Rules:

- The header is checked against the instance before a codec sees the data: what is allocated is bounded by the facts.
- A codestream's end must be there: libjpeg fills what is missing with gray, without an error. What follows it is ignored.
- One thread per decode: how many run at once is decided elsewhere.
- The result is (rows, columns) or (rows, columns, samples), colors as RGB wherever the codestream gives the conversion.

YBR to RGB: PS3.3 section C.7.6.3.1.2, as ITU-T T.871 rounds it.
"""

from __future__ import annotations

import io
from typing import Any

import imagecodecs
import numpy
from PIL import Image

from twistedproxy.dicom.codestream import Header, jpeg2000_codestream, jpeg2000_header, jpeg_header, jpegxl_header
from twistedproxy.dicom.transfer_syntaxes import END_OF_IMAGE
from twistedproxy.imaging.errors import BadImage
from twistedproxy.imaging.pixel_description import PixelFacts

Pixels = numpy.ndarray[Any, numpy.dtype[Any]]

FULL = frozenset({"YBR_FULL", "YBR_FULL_422"})
PARTIAL = frozenset({"YBR_PARTIAL_422", "YBR_PARTIAL_420"})
SUBSAMPLED = frozenset({"YBR_FULL_422", "YBR_PARTIAL_422"})
"""Native frames of these have two Y for each Cb and Cr: half of the chroma is not there."""

_TO_RGB = numpy.array(
    [
        [1.0, 1.0, 1.0],
        [0.0, -0.114 * 1.772 / 0.587, 1.772],
        [1.402, -0.299 * 1.402 / 0.587, 0.0],
    ],
    numpy.float32,
)
# Retired (PS3.3-2014 C.7.6.3.1.2): Y from 16 to 235, chroma from 16 to 240
_FROM_PARTIAL = numpy.array([255 / 219, 255 / 224, 255 / 224], numpy.float32)


def ybr_to_rgb(array: Pixels, bits: int = 8, partial: bool = False) -> Pixels:
    """(rows, columns, 3) of *bits* deep YBR_FULL, or YBR_PARTIAL, as RGB of the same type."""
    middle = 1 << (bits - 1)
    values = array.astype(numpy.float32)
    values -= (middle // 8 if partial else 0, middle, middle)
    matrix = _TO_RGB * _FROM_PARTIAL[:, None] if partial else _TO_RGB
    values = numpy.matmul(values, matrix)
    values += 0.5
    return numpy.clip(values, 0, 2 * middle - 1).astype(array.dtype)


def expand_422(values: Pixels, rows: int, columns: int) -> Pixels:
    """A native frame of Y Y Cb Cr quadruples as (rows, columns, 3); *columns* is even (PS3.3 C.7.6.3.1.2)."""
    groups = values.reshape(rows, columns // 2, 4)
    result = numpy.empty((rows, columns // 2, 2, 3), values.dtype)
    result[..., 0] = groups[..., :2]
    result[..., 1:] = groups[..., None, 2:]
    return result.reshape(rows, columns, 3)


_START_OF_SCAN, _START_OF_DATA = b"\xff\xda", b"\xff\x93"  # T.81 table B.1, T.800 table A.2
SCALES = (1, 2, 4, 8)
_ROOM = bytes(64)  # CharLS 2.4 takes 3-10 s to refuse a codestream that ends inside its pixels


def decode_jpeg(data: bytes, facts: PixelFacts, scale: int) -> Pixels:
    """Baseline, extended, progressive and lossless JPEG of 2-16 bits. 8-bit lossy ones are scaled by the inverse DCT."""
    header = jpeg_header(data)
    _agree(header, facts)
    ybr = header.components == 3 and _is_ybr(header, facts)
    libjpeg_agrees = header.components == 1 or ybr or (header.adobe and header.color_transform is False)
    if not _ends(data, _START_OF_SCAN):
        raise BadImage("a JPEG without its end")
    if scale > 1 and header.levels and libjpeg_agrees:
        return _draft(data, facts, scale)
    if header.components == 1:
        return signed(imagecodecs.jpeg8_decode(data), header.precision, facts)
    if header.lossless_process:  # libjpeg-turbo refuses to convert the colors of what is lossless
        raw = imagecodecs.jpeg8_decode(data, colorspace="RGB", outcolorspace="RGB")
        return ybr_to_rgb(raw, header.precision) if ybr else raw
    return imagecodecs.jpeg8_decode(data, colorspace="YCBCR" if ybr else "RGB", outcolorspace="RGB")


def _is_ybr(header: Header, facts: PixelFacts) -> bool:
    """The color space in the codestream goes before the instance's, as in pydicom."""
    if header.color_transform is not None:
        return header.color_transform
    return facts.photometric_interpretation.startswith("YBR")


def _draft(data: bytes, facts: PixelFacts, scale: int) -> Pixels:
    """Pillow, since imagecodecs does not reach libjpeg's scaling."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as picture:
        picture.draft(None, (max(1, facts.columns // scale), max(1, facts.rows // scale)))
        return numpy.asarray(picture)


def decode_jpeg2000(data: bytes, facts: PixelFacts, scale: int) -> Pixels:
    """JPEG 2000 and HTJ2K; resolutions that are not needed are not decoded, but at most what is there.

    OpenJPEG decodes both. OpenJPH takes 0.4 of its time on HTJ2K, but imagecodecs (2026.3) drops its errors: what it
    did not decode would be memory of whatever was there before.
    """
    data = jpeg2000_codestream(data)
    header = jpeg2000_header(data)
    _agree(header, facts)
    if not _ends(data, _START_OF_DATA):
        raise BadImage("a JPEG 2000 codestream without its end")
    skipped = min(SCALES.index(scale), header.levels)
    if header.subsampled:  # luminance and chrominance, then, whatever the instance's attributes are
        if header.precision != 8 or header.signed:
            raise BadImage(f"JPEG 2000 with fewer pixels of chrominance, of {header.precision} bits")
        return _reduced(data, header, skipped)
    shallow = header.precision <= 16 if header.components == 1 else header.precision == 8 and not header.signed
    if skipped and shallow:  # what Pillow holds
        array = _reduced(data, header, skipped)
    else:
        array = imagecodecs.jpeg2k_decode(data, numthreads=1)
    if header.components == 3 and not header.color_transform and facts.photometric_interpretation in FULL:
        return ybr_to_rgb(array, header.precision)
    if header.components == 1 and header.signed == facts.signed:
        return array
    return signed(array, header.precision, facts)


def _reduced(data: bytes, header: Header, skipped: int) -> Pixels:
    """Pillow, since imagecodecs does not reach OpenJPEG's reduction. Unlike imagecodecs it holds the GIL meanwhile."""
    scale = 1 << skipped
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG2000",)) as picture:
            picture.reduce = skipped  # type: ignore[assignment,method-assign]
            # Pillow (13.0) rounds to the nearest where the standard rounds up, and then finds too many pixels
            width, height = picture.size
            picture._size = (-(-width // scale) * scale, -(-height // scale) * scale)
            array = numpy.asarray(picture)
    except OSError:  # as of an image that does not begin at the origin of its grid
        if header.subsampled:
            raise
        return imagecodecs.jpeg2k_decode(data, numthreads=1)
    if skipped:
        array = _centered(array, scale)
    if header.components > 1:
        return array
    # Pillow fills bytes or words from the top, and makes what is signed positive
    values = numpy.right_shift(array, 8 * array.dtype.itemsize - header.precision)
    if not header.signed:
        return values
    return (values.astype(numpy.int32) - (1 << header.precision - 1)).astype(f"i{array.dtype.itemsize}")


def _centered(array: Pixels, scale: int) -> Pixels:
    """A resolution of a wavelet as averages would lie: a pixel of it lies at the first of *scale* pixels each way, not
    in their middle. It comes close to averages thereby, too."""
    share = (1 - 1 / scale) / 2
    values = array.astype(numpy.float32)
    values[:-1] += share * (values[1:] - values[:-1])
    values[:, :-1] += share * (values[:, 1:] - values[:, :-1])
    return numpy.rint(values).astype(array.dtype)


def decode_jpegls(data: bytes, facts: PixelFacts, scale: int) -> Pixels:
    """JPEG-LS, which knows neither signs (PS3.5 section 8.2.3) nor smaller sizes."""
    header = jpeg_header(data)
    _agree(header, facts)
    array = imagecodecs.jpegls_decode(data + _ROOM)
    if array.ndim == 3 and array.shape[0] == header.components != array.shape[2]:
        array = array.transpose(1, 2, 0)  # not interleaved
    if header.components == 3 and facts.photometric_interpretation in FULL:
        return ybr_to_rgb(array, header.precision)
    return signed(array, header.precision, facts)


def decode_jpegxl(data: bytes, facts: PixelFacts, scale: int) -> Pixels:
    """JPEG XL; a decoder turns what was YCbCr or XYB into RGB by itself."""
    header = jpegxl_header(data)
    if (header.rows, header.columns) != (facts.rows, facts.columns):
        raise BadImage(_unlike(header, facts))
    array = imagecodecs.jpegxl_decode(data, index=0, keeporientation=True, numthreads=1)
    return signed(array, 8 * array.dtype.itemsize, facts) if facts.signed else array


def signed(array: Pixels, bits: int, facts: PixelFacts) -> Pixels:
    """Values of *bits* bits, signed or not as PixelRepresentation has it; what lies above them is dropped. The sign of
    signed ones is at the end of the stored bits: codestreams may declare more (DCMTK's do)."""
    if facts.signed:
        bits = min(bits, facts.bits_stored)
    room = 8 * array.dtype.itemsize - bits
    if room < 0:
        raise BadImage(f"{bits} bits in {array.dtype}")
    kind = numpy.dtype(f"{'i' if facts.signed else 'u'}{array.dtype.itemsize}")
    if not room:
        return array.view(kind)
    if not facts.signed and array.dtype.kind == "u":
        return array
    return numpy.right_shift(numpy.left_shift(array, room).view(kind), room)


def _ends(data: bytes, pixels: bytes) -> bool:
    """Whether the end marker follows the last *pixels* marker. Neither occurs in what is coded; any bytes may follow."""
    return data.rfind(END_OF_IMAGE) > data.rfind(pixels)


def _agree(header: Header, facts: PixelFacts) -> None:
    if (header.rows, header.columns, header.components) != (facts.rows, facts.columns, facts.samples_per_pixel):
        raise BadImage(_unlike(header, facts))
    if header.precision > max(8, facts.bits_allocated):
        raise BadImage(f"a frame of {header.precision} bits in an instance of {facts.bits_allocated}")


def _unlike(header: Header, facts: PixelFacts) -> str:
    return (
        f"a frame of {header.columns} x {header.rows} x {header.components} "
        f"in an instance of {facts.columns} x {facts.rows} x {facts.samples_per_pixel}"
    )
