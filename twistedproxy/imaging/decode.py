"""One stored frame's bytes to pixels.

Rules:

- Nothing is decoded before its size is known to be the instance's, and that to be within the limit.
- Whatever a codec raises for damaged data leaves here as a BadImage.
- Pure, and safe in several threads at once. A codec written in C may still crash: frames of unknown
  origin are decoded in a process that may die.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy

from twistedproxy.dicom import transfer_syntaxes as syntaxes
from twistedproxy.imaging import codecs
from twistedproxy.imaging.codecs import FULL, PARTIAL, SCALES, SUBSAMPLED, expand_422, ybr_to_rgb
from twistedproxy.imaging.errors import BadImage, ImageTooLarge, NotDecodable
from twistedproxy.imaging.pixel_description import MONOCHROME, PixelFacts

Pixels = numpy.ndarray[Any, numpy.dtype[Any]]
"""(rows, columns) or (rows, columns, 3)."""

Decoder = Callable[[bytes, PixelFacts, int], Pixels]

_COLORS = frozenset({"RGB", "YBR_ICT", "YBR_RCT", "XYB"}) | FULL | PARTIAL


def decode(data: bytes, transfer_syntax: str, facts: PixelFacts, *, max_pixels: int, scale: int = 1) -> Pixels:
    """The pixels of one frame: (rows, columns) as stored, or (rows, columns, 3) as RGB.

    The type is that of the stored values, in the machine's byte order. *scale* (1, 2, 4 or 8) lets the codec leave
    out detail: the result then has ceil(rows / scale) rows for a scale up to the one that was asked for; where a codec
    cannot, it is whole. Raises BadImage, of it ImageTooLarge and NotDecodable.
    """
    if scale not in SCALES:
        raise ValueError(f"no scale of {scale}")
    _check(facts, max_pixels)
    if not data:
        raise BadImage("the stored frame is empty")
    if facts.photometric_interpretation == "XYB" and transfer_syntax not in _JPEG_XLS:
        raise NotDecodable("XYB is a color space of JPEG XL alone")
    decoder = DECODERS.get(transfer_syntax)
    if decoder is None:
        raise NotDecodable(f"frames in transfer syntax {transfer_syntax} cannot be decoded")
    try:
        array = decoder(data, facts, scale)
    except BadImage:
        raise
    except Exception as error:  # BadCodestream, RuntimeError, ValueError, OSError, SyntaxError, MemoryError, ...
        raise BadImage(f"a damaged frame: {str(error)[:200] or type(error).__name__}") from error
    return _conformed(array, facts, scale)


def reduced(facts: PixelFacts, scale: int) -> tuple[int, int]:
    """Rows and columns of a frame that a codec decoded at *scale*."""
    return -(-facts.rows // scale), -(-facts.columns // scale)


def _check(facts: PixelFacts, max_pixels: int) -> None:
    if facts.rows < 1 or facts.columns < 1:
        raise BadImage(f"an instance of {facts.columns} x {facts.rows} pixels")
    if facts.rows * facts.columns > max_pixels:
        raise ImageTooLarge(f"{facts.columns} x {facts.rows} pixels, when {max_pixels} are allowed")
    kind = facts.photometric_interpretation
    if (facts.samples_per_pixel, kind in _COLORS) not in ((1, False), (3, True)) or (
        kind not in _COLORS | MONOCHROME | {"PALETTE COLOR"}
    ):
        raise NotDecodable(f"{facts.samples_per_pixel} samples of {kind} cannot be shown")
    depths = (32, 64) if facts.floating else (1, 8, 16, 32)
    if facts.bits_allocated not in depths or not (
        0 < facts.bits_stored <= facts.bits_allocated
        and facts.bits_stored <= facts.high_bit + 1 <= facts.bits_allocated
    ):
        raise NotDecodable(f"{facts.bits_stored} of {facts.bits_allocated} bits up to bit {facts.high_bit}")


def _conformed(array: Pixels, facts: PixelFacts, scale: int) -> Pixels:
    """Hold the result to the instance's shape and type."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    samples = () if facts.samples_per_pixel == 1 else (facts.samples_per_pixel,)
    sizes = [reduced(facts, smaller) for smaller in SCALES if smaller <= scale]
    kinds = "f" if facts.floating else "iu"
    if array.shape[:2] not in sizes or array.shape[2:] != samples or array.dtype.kind not in kinds:
        raise BadImage(f"a frame decoded to {array.shape} of {array.dtype}")
    if array.dtype.itemsize > numpy.dtype(facts.dtype).itemsize:
        raise BadImage(f"a frame of {array.dtype} in an instance of {facts.dtype}")
    return array if array.dtype == facts.dtype else array.astype(facts.dtype)


def _native(data: bytes, facts: PixelFacts, scale: int, order: str = "<") -> Pixels:
    """PS3.5 section 8.2: bare values, by pixel or by plane."""
    rows, columns = facts.rows, facts.columns
    count = rows * columns * facts.samples_per_pixel
    if facts.bits_allocated == 1:
        return _bits(data, facts)
    # The length decides: modalities and stores keep the photometric interpretation of what was compressed.
    whole = count * facts.bits_allocated // 8
    halved = facts.photometric_interpretation in SUBSAMPLED and len(data) < whole
    if halved:
        count = rows * columns * 2
        if len(data) > count * facts.bits_allocated // 8 + 1:
            raise BadImage(f"a frame of {len(data)} bytes: {whole * 2 // 3} or {whole} are right")
    if facts.photometric_interpretation == "YBR_PARTIAL_420" or (halved and columns % 2):
        raise NotDecodable(f"native {facts.photometric_interpretation} of {columns} columns cannot be shown")
    bare = _enough(data, count * facts.bits_allocated // 8)
    if facts.floating:
        return numpy.frombuffer(bare, order + facts.dtype).reshape(rows, columns)
    values = numpy.frombuffer(bare, f"{order}u{numpy.dtype(facts.dtype).itemsize}")
    values = _significant(values.astype(values.dtype.newbyteorder("="), copy=False), facts)
    if facts.samples_per_pixel == 1:
        return values.reshape(rows, columns)
    if halved:
        return _rgb(expand_422(values, rows, columns), facts)
    if facts.planar_configuration == 1:
        return _rgb(values.reshape(3, rows, columns).transpose(1, 2, 0), facts)
    return _rgb(values.reshape(rows, columns, 3), facts)


def _bits(data: bytes, facts: PixelFacts) -> Pixels:
    """One bit each, the least significant first (PS3.5 section 8.1.1); a frame starts at a byte."""
    count = facts.rows * facts.columns * facts.samples_per_pixel
    packed = numpy.frombuffer(_enough(data, -(-count // 8)), numpy.uint8)
    if facts.samples_per_pixel != 1:
        raise NotDecodable("colors of one bit cannot be shown")
    return numpy.unpackbits(packed, count=count, bitorder="little").reshape(facts.rows, facts.columns)


def _enough(data: bytes, size: int) -> memoryview:
    """The first *size* bytes. More than a pad byte behind them is let pass, as pydicom does."""
    if len(data) < size:
        raise BadImage(f"a frame of {len(data)} bytes where {size} are needed")
    return memoryview(data)[:size]


def _significant(values: Pixels, facts: PixelFacts) -> Pixels:
    """Drop what lies above the high bit and below the stored bits (retired overlays do), and spread the sign."""
    size = 8 * values.dtype.itemsize
    kind = facts.dtype
    if facts.bits_stored == size:
        return values.view(kind)
    shifted = numpy.left_shift(values, size - 1 - facts.high_bit).view(kind)
    return numpy.right_shift(shifted, size - facts.bits_stored)


def _rgb(array: Pixels, facts: PixelFacts) -> Pixels:
    kind = facts.photometric_interpretation
    if kind in FULL or kind in PARTIAL:
        return ybr_to_rgb(array, facts.bits_stored, kind in PARTIAL)
    return array


def _deflated(data: bytes, facts: PixelFacts, scale: int) -> Pixels:
    """PS3.5 section A.4.13: each frame a raw deflate stream of native values. Inflates no more than is needed."""
    size = -(-facts.rows * facts.columns * facts.samples_per_pixel * facts.bits_allocated // 8)
    return _native(zlib.decompressobj(-15).decompress(data, size), facts, scale)


_MORE = 128  # bytes behind the pixels, and an eighth of those: twice as many are another image's


def _rle(data: bytes, facts: PixelFacts, scale: int) -> Pixels:
    """PS3.5 annex G: a segment for each byte of each sample, the most significant byte first."""
    width = facts.bits_allocated // 8
    if len(data) < syntaxes.RLE_HEADER.size or not width:
        raise BadImage("an RLE frame without its header")
    count, *offsets = syntaxes.RLE_HEADER.unpack_from(data)
    if count != width * facts.samples_per_pixel or count > 15:
        raise BadImage(f"an RLE frame of {count} segments where {width * facts.samples_per_pixel} are needed")
    pixels = facts.rows * facts.columns
    planes = numpy.empty((facts.samples_per_pixel, pixels, width), numpy.uint8)
    for index in range(count):
        end = offsets[index + 1] if index + 1 < count else len(data)
        segment = data[offsets[index] : end]
        if not syntaxes.RLE_HEADER.size <= offsets[index] < end <= len(data):
            raise BadImage("an RLE frame whose segments lie outside of it")
        planes[index // width, :, width - 1 - index % width] = _unpacked(segment, pixels)
    values = _significant(planes.view(f"<u{width}")[..., 0].astype(f"=u{width}", copy=False), facts)
    array = values.reshape(facts.samples_per_pixel, facts.rows, facts.columns).transpose(1, 2, 0)
    return array[:, :, 0] if facts.samples_per_pixel == 1 else _rgb(array, facts)


def _unpacked(segment: bytes, size: int) -> Pixels:
    """A PackBits segment's bytes. More of them than are needed are let pass, as in pydicom, but no runs without end."""
    unpacked = imagecodecs.packbits_decode(segment, out=size + size // 8 + _MORE)
    if len(unpacked) < size:
        raise BadImage(f"an RLE segment of {len(unpacked)} bytes where {size} are needed")
    return numpy.frombuffer(unpacked, numpy.uint8)[:size]


_JPEGS = syntaxes.uids_of("image/jpeg")
_JPEG_2000S = syntaxes.uids_of("image/jp2") + syntaxes.uids_of("image/jpx") + syntaxes.uids_of("image/jphc")
_JPEG_XLS = syntaxes.uids_of("image/jxl")
DECODERS: dict[str, Decoder] = {
    syntaxes.IMPLICIT_VR_LITTLE_ENDIAN: _native,
    syntaxes.EXPLICIT_VR_LITTLE_ENDIAN: _native,
    syntaxes.ENCAPSULATED_UNCOMPRESSED: _native,
    syntaxes.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN: _native,
    syntaxes.EXPLICIT_VR_BIG_ENDIAN: functools.partial(_native, order=">"),
    syntaxes.DEFLATED_IMAGE_FRAME: _deflated,
    syntaxes.RLE_LOSSLESS: _rle,
    **dict.fromkeys(_JPEGS, codecs.decode_jpeg),
    **dict.fromkeys(_JPEG_2000S, codecs.decode_jpeg2000),
    **dict.fromkeys(syntaxes.uids_of("image/jls"), codecs.decode_jpegls),
    **dict.fromkeys(_JPEG_XLS, codecs.decode_jpegxl),
}
"""What frames can be decoded, by their transfer syntax."""
