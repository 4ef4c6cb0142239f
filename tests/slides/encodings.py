"""Frames in the encodings that slides come in, each with its number in it.

- A frame's bytes depend on the encoding, the size and the number alone.
- Tissue comes in `VARIANTS` different crops of one real tile; encoding those few and stamping the
  number into a comment marker makes 10,000 distinct frames in well under a second.
- Where a syntax has no comment marker the number goes into the first pixels, and every frame is encoded.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Callable
from typing import Any

import attrs
import imagecodecs
import numpy
from PIL import Image
from wsidicom_data import EncodedTestData, TestData  # type: ignore[import-untyped]

VARIANTS = 32
JPEG_QUALITY = 23  # 8.7 kB for a 256 x 256 tile: 10,000 of them are the 87 MB slide of the figures
PREPARED_SIDE = 240  # pixels; the side of the frames that come encoded with wsidicom-data

Pixels = numpy.ndarray[Any, numpy.dtype[Any]]


@attrs.frozen
class Encoding:
    """How the frames of a file are stored.

    *media_type* is the one of DICOM PS3.18 section 8.7.3 for *transfer_syntax*. *bits* is BitsAllocated;
    *bits_stored* may be fewer. *lossy* is LossyImageCompressionMethod, "" where nothing was lost.
    *side* is the only frame side (pixels) that there is, None where any will do.
    """

    name: str
    transfer_syntax: str
    media_type: str
    encode: Callable[[int, int, int], bytes] = attrs.field(repr=False)
    photometric: str = "RGB"
    samples: int = 3
    bits: int = 8
    bits_stored: int = 8
    lossy: str = ""
    side: int | None = None

    @property
    def encapsulated(self) -> bool:
        """Whether frames are items of a sequence (PS3.5 annex A.4) or lie side by side."""
        return self.media_type != "application/octet-stream"


def encoded_frame(encoding: str, number: int, rows: int = 256, columns: int = 256) -> bytes:
    """The bytes of frame *number* (from 1), *rows* x *columns* pixels, without any padding."""
    return ENCODINGS[encoding].encode(number, rows, columns)


@functools.lru_cache(maxsize=4 * VARIANTS)
def tissue(variant: int, rows: int, columns: int, gray: bool = False) -> Pixels:
    """Crop *variant* of the tissue tile: uint8, (rows, columns, 3) or, if *gray*, (rows, columns)."""
    tile = TestData.rgb().convert("L" if gray else "RGB")
    pixels = numpy.roll(numpy.asarray(tile), (variant * 37, variant * 59), axis=(0, 1))
    height, width = pixels.shape[:2]
    mirrored = numpy.concatenate([pixels, pixels[::-1]], axis=0)
    mirrored = numpy.concatenate([mirrored, mirrored[:, ::-1]], axis=1)
    repeats = (-(-rows // (2 * height)), -(-columns // (2 * width)), 1)[: pixels.ndim]
    return numpy.tile(mirrored, repeats)[:rows, :columns].copy()


def stamped(number: int, rows: int, columns: int, gray: bool = False) -> Pixels:
    """Tissue whose first samples hold *number*, as far as there is room (four bytes)."""
    pixels = tissue(number % VARIANTS, rows, columns, gray).copy()
    flat = pixels.reshape(-1)
    flat[:4] = numpy.frombuffer(struct.pack("<I", number), numpy.uint8)[: flat.size]
    return pixels


def with_comment(codestream: bytes, number: int) -> bytes:
    """*codestream* (JPEG, JPEG-LS, JPEG 2000) with a comment marker that holds *number*.

    After JPEG's SOI (ITU-T T.81 B.2.4.5, COM), after JPEG 2000's SIZ (T.800 A.9.2, COM).
    """
    text = b"frame %d" % number
    if codestream.startswith(b"\xff\x4f"):
        place = 4 + int.from_bytes(codestream[4:6], "big")
        marker = b"\xff\x64" + struct.pack(">HH", len(text) + 4, 1) + text
    else:
        place = 2
        if codestream[2:4] == b"\xff\xe0":  # JFIF wants its APP0 to come first
            place = 4 + int.from_bytes(codestream[4:6], "big")
        marker = b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text
    return codestream[:place] + marker + codestream[place:]


@functools.lru_cache(maxsize=8 * VARIANTS)
def _codestream(kind: str, variant: int, rows: int, columns: int) -> bytes:
    pixels = tissue(variant, rows, columns, gray=kind.endswith("gray"))
    if kind in ("jpeg", "jpeg-gray"):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "JPEG", quality=JPEG_QUALITY)
        return out.getvalue()
    if kind == "jpeg2000":
        return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", level=30, mct=True))
    if kind == "jpeg2000-lossless":
        return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, mct=True))
    if kind == "htj2k":
        return bytes(imagecodecs.htj2k_encode(pixels))
    return bytes(imagecodecs.jpegls_encode(pixels, level=0 if kind == "jpegls" else 2))


def _marked(kind: str) -> Callable[[int, int, int], bytes]:
    def encode(number: int, rows: int, columns: int) -> bytes:
        return with_comment(_codestream(kind, number % VARIANTS, rows, columns), number)

    return encode


@functools.cache
def _prepared(name: str) -> bytes:
    return bytes(EncodedTestData.test_data_path.joinpath(name).read_bytes())


def _from_file(name: str) -> Callable[[int, int, int], bytes]:
    def encode(number: int, rows: int, columns: int) -> bytes:
        if (rows, columns) != (PREPARED_SIDE, PREPARED_SIDE):
            raise ValueError(f"{name} has {PREPARED_SIDE} x {PREPARED_SIDE} pixels only")
        return with_comment(_prepared(name), number)

    return encode


def _native(number: int, rows: int, columns: int) -> bytes:
    return stamped(number, rows, columns).tobytes()


def _native_gray(number: int, rows: int, columns: int) -> bytes:
    return stamped(number, rows, columns, gray=True).tobytes()


def _native_16(number: int, rows: int, columns: int) -> bytes:
    return (stamped(number, rows, columns, gray=True).astype("<u2") * 256).tobytes()


def _jpeg_xl(number: int, rows: int, columns: int) -> bytes:
    return bytes(imagecodecs.jpegxl_encode(stamped(number, rows, columns), lossless=True))


def _jpeg_xl_lossy(number: int, rows: int, columns: int) -> bytes:
    return bytes(imagecodecs.jpegxl_encode(stamped(number, rows, columns), distance=2.0))


def _rle(number: int, rows: int, columns: int) -> bytes:
    """PS3.5 annex G: 16 little endian numbers (how many segments, where each starts), then a segment a sample;
    each row is packed by itself and each segment has an even length."""
    pixels = stamped(number, rows, columns)
    segments = []
    for sample in range(3):
        segment = b"".join(bytes(imagecodecs.packbits_encode(row.tobytes())) for row in pixels[:, :, sample])
        segments.append(segment + b"\x00" * (len(segment) % 2))
    starts = [64, 64 + len(segments[0]), 64 + len(segments[0]) + len(segments[1])]
    return struct.pack("<16I", 3, *starts, *[0] * 12) + b"".join(segments)


_SYNTAX = "1.2.840.10008.1.2"
_NATIVE = "application/octet-stream"

ENCODINGS: dict[str, Encoding] = {
    encoding.name: encoding
    for encoding in (
        Encoding("raw", f"{_SYNTAX}.1", _NATIVE, _native),
        Encoding("raw-gray", f"{_SYNTAX}.1", _NATIVE, _native_gray, "MONOCHROME2", 1),
        Encoding("raw-16", f"{_SYNTAX}.1", _NATIVE, _native_16, "MONOCHROME2", 1, 16, 16),
        Encoding("implicit", _SYNTAX, _NATIVE, _native),
        Encoding("big-endian", f"{_SYNTAX}.2", _NATIVE, _native),
        Encoding("deflated", f"{_SYNTAX}.1.99", _NATIVE, _native),
        Encoding("rle", f"{_SYNTAX}.5", "image/dicom-rle", _rle),
        Encoding("jpeg", f"{_SYNTAX}.4.50", "image/jpeg", _marked("jpeg"), "YBR_FULL_422", lossy="ISO_10918_1"),
        Encoding(
            "jpeg-gray", f"{_SYNTAX}.4.50", "image/jpeg", _marked("jpeg-gray"), "MONOCHROME2", 1, lossy="ISO_10918_1"
        ),
        Encoding(
            "jpeg-extended",
            f"{_SYNTAX}.4.51",
            "image/jpeg",
            _from_file("JPEG_Extended_(Process_2_and_4)-GRAYSCALE-12.jpg"),
            "MONOCHROME2",
            1,
            16,
            12,
            lossy="ISO_10918_1",
            side=PREPARED_SIDE,
        ),
        Encoding(
            "jpeg-lossless",
            f"{_SYNTAX}.4.57",
            "image/jpeg",
            _from_file("JPEG_Lossless,_Non-Hierarchical_(Process_14)-RGB-8.jpg"),
            side=PREPARED_SIDE,
        ),
        Encoding("jpegls", f"{_SYNTAX}.4.80", "image/jls", _marked("jpegls")),
        Encoding("jpegls-near", f"{_SYNTAX}.4.81", "image/jls", _marked("jpegls-near"), lossy="ISO_14495_1"),
        Encoding("jpeg2000-lossless", f"{_SYNTAX}.4.90", "image/jp2", _marked("jpeg2000-lossless"), "YBR_RCT"),
        Encoding("jpeg2000", f"{_SYNTAX}.4.91", "image/jp2", _marked("jpeg2000"), "YBR_ICT", lossy="ISO_15444_1"),
        Encoding("jpegxl-lossless", f"{_SYNTAX}.4.110", "image/jxl", _jpeg_xl),
        Encoding("jpegxl", f"{_SYNTAX}.4.112", "image/jxl", _jpeg_xl_lossy, "XYB", lossy="ISO_18181_1"),
        Encoding("htj2k", f"{_SYNTAX}.4.201", "image/jphc", _marked("htj2k"), "YBR_RCT"),
    )
}
