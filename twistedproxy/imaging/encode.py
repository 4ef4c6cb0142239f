"""Pixels to pictures as browsers show them, and JPEG to JPEG XL and back, bit for bit (ISO/IEC 18181-2).

Rules:

- The same pixels, type, quality and profile give the same bytes.
- A profile is embedded as the format has it: JPEG APP2, PNG iCCP, WebP ICCP, JP2 colr, JPEG XL within. GIF has no place.
- What a format cannot hold is refused, not cut.
- JPEG is imagecodecs': Pillow makes the same bytes, but takes 1.36 times as long for 256 x 256 pixels (169 us).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy
from PIL import Image

from twistedproxy.dicom.codestream import BadCodestream, Header, jpeg_header, jpegxl_header
from twistedproxy.dicom.transfer_syntaxes import END_OF_IMAGE
from twistedproxy.imaging.errors import BadImage, ImageTooLarge, NotDecodable
from twistedproxy.imaging.parameters import DEFAULT_QUALITY

Bytes = numpy.ndarray[Any, numpy.dtype[numpy.uint8]]

Encoder = Callable[[Bytes, int, bytes], bytes]

MAX_PIXELS = 1 << 26  # libjxl takes about 30 bytes for each

# Full color resolution only where the caller asks for the most: it makes encoding take 1.6 times as long
_FULL_CHROMA_ABOVE = 95
_PNG_LEVEL = 1  # of zlib: tissue gets 6 % smaller at 6, in three times the time
_WEBP_METHOD = 2  # of libwebp, 0-6
_JXL_EFFORT = 3  # of libjxl, 1-10: a fifth of the default's time


def encode(array: Bytes, media_type: str, quality: int = DEFAULT_QUALITY, icc: bytes | None = None) -> bytes:
    """(rows, columns) of gray or (rows, columns, 3) of RGB as one picture.

    *quality* is 1-100; at 100 JPEG 2000 loses nothing, nor does JPEG XL without a profile. *icc*, of RGB, is embedded
    where the type has a place for it, and left out of gray.
    Raises ValueError for another media type or quality, BadImage for a picture that the type cannot hold.
    """
    encoder, side = _ENCODERS.get(media_type, (None, 0))
    if encoder is None or not 1 <= quality <= 100:
        raise ValueError(f"no picture can be made as {media_type} of quality {quality}")
    if array.dtype != numpy.uint8 or not array.size > 0 or array.ndim not in (2, 3):
        raise BadImage(f"no picture can be made of {array.shape} of {array.dtype}")
    if max(array.shape[:2]) > side:
        raise BadImage(f"{array.shape[1]} x {array.shape[0]} pixels, when {media_type} holds {side} a side")
    fitting = icc if icc and array.ndim == 3 else b""  # an RGB profile on gray makes a picture that readers refuse
    return encoder(numpy.ascontiguousarray(array), quality, fitting)


def _jpeg(array: Bytes, quality: int, icc: bytes) -> bytes:
    subsampling = "444" if quality > _FULL_CHROMA_ABOVE else "420"
    data = bytes(imagecodecs.jpeg8_encode(array, quality, subsampling=subsampling if array.ndim == 3 else None))
    return _with_profile(data, icc) if icc else data


_ICC_MARK = b"ICC_PROFILE\0"
_ICC_PART = 65_533 - len(_ICC_MARK) - 2  # ICC.1 section B.4: an APP2 segment's room


def _with_profile(data: bytes, icc: bytes) -> bytes:
    """A JPEG with a profile in APP2 segments behind its JFIF one."""
    parts = [icc[start : start + _ICC_PART] for start in range(0, len(icc), _ICC_PART)]
    if len(parts) > 255:
        raise BadImage(f"an ICC profile of {len(icc)} bytes does not fit a JPEG")
    place = 2
    while data[place : place + 2] == b"\xff\xe0":
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    segments = [
        struct.pack(">2sH12sBB", b"\xff\xe2", len(part) + 16, _ICC_MARK, number, len(parts)) + part
        for number, part in enumerate(parts, 1)
    ]
    return b"".join((data[:place], *segments, data[place:]))


def _saved(picture: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    return buffer.getvalue()


def _png(array: Bytes, quality: int, icc: bytes) -> bytes:
    return _saved(Image.fromarray(array), format="PNG", compress_level=_PNG_LEVEL, icc_profile=icc or None)


def _webp(array: Bytes, quality: int, icc: bytes) -> bytes:
    return _saved(Image.fromarray(array), format="WEBP", quality=quality, method=_WEBP_METHOD, icc_profile=icc or None)


def _gif(array: Bytes, quality: int, icc: bytes) -> bytes:
    picture = Image.fromarray(array)
    if array.ndim == 3:  # an octree is a fifth further off than the default's median cut, in a fiftieth of the time
        picture = picture.quantize(256, Image.Quantize.FASTOCTREE)
    return _saved(picture, format="GIF")


def _jxl(array: Bytes, quality: int, icc: bytes) -> bytes:
    if icc:
        # imagecodecs writes no profile into JPEG XL, but what a JPEG has stays in its transcoding
        return bytes(imagecodecs.jpegxl_encode_jpeg(_jpeg(array, quality, icc), numthreads=1))
    # libjxl's JxlEncoderDistanceFromQuality: the distance that looks like that quality of JPEG
    distance = 0.1 + (100 - quality) * 0.09
    if quality < 30:
        distance = 53.0 / 3000.0 * quality * quality - 23.0 / 20.0 * quality + 25.0
    loss = {"lossless": True} if quality == 100 else {"distance": distance}
    return bytes(imagecodecs.jpegxl_encode(array, effort=_JXL_EFFORT, numthreads=1, **loss))


def _jp2(array: Bytes, quality: int, icc: bytes) -> bytes:
    # the level is a signal to noise ratio in dB: 44 at 95
    loss = {"reversible": True} if quality == 100 else {"level": 20 + quality // 4}
    data = bytes(imagecodecs.jpeg2k_encode(array, codecformat="jp2", numthreads=1, **loss))
    return _with_colr(data, icc) if icc else data


def _with_colr(data: bytes, icc: bytes) -> bytes:
    """A JP2 whose color specification (T.800 I.5.3.3) is a profile: method 2."""
    header, colr = data.index(b"jp2h") - 4, data.index(b"colr") - 4
    old = int.from_bytes(data[colr : colr + 4], "big")
    box = struct.pack(">I4sBBB", 11 + len(icc), b"colr", 2, 0, 0) + icc
    length = int.from_bytes(data[header : header + 4], "big") - old + len(box)
    return data[:header] + struct.pack(">I", length) + data[header + 4 : colr] + box + data[colr + old :]


_ENCODERS: dict[str, tuple[Encoder, int]] = {
    "image/jpeg": (_jpeg, 65_500),  # libjpeg's limit
    "image/png": (_png, 1 << 20),
    "image/webp": (_webp, 16_383),
    "image/gif": (_gif, 65_535),
    "image/jxl": (_jxl, 1 << 18),
    "image/jp2": (_jp2, 1 << 18),
}


def jpeg_to_jxl(data: bytes, max_pixels: int = MAX_PIXELS) -> bytes:
    """An 8-bit lossy JPEG as a JPEG XL from which `jxl_to_jpeg` gives the same bytes; a pad byte behind it is dropped.

    Raises BadImage for what is no whole JPEG, of it NotDecodable for 12-bit and lossless ones.
    """
    header = _header(jpeg_header, data, max_pixels)
    if header.precision != 8 or not header.levels:
        raise NotDecodable("only 8-bit lossy JPEG can be JPEG XL without loss")
    end = data.rfind(END_OF_IMAGE)
    if end < 0:
        raise BadImage("a JPEG without its end")
    try:
        return bytes(imagecodecs.jpegxl_encode_jpeg(data[: end + 2], numthreads=1))
    except Exception as error:
        raise BadImage(f"a JPEG that cannot be JPEG XL: {str(error)[:200]}") from error


def jxl_to_jpeg(data: bytes, max_pixels: int = MAX_PIXELS) -> bytes:
    """The JPEG that a JPEG XL was made of. Raises BadImage for a damaged one, and for one made of pixels."""
    _header(jpegxl_header, data, max_pixels)
    try:
        return bytes(imagecodecs.jpegxl_decode_jpeg(data))  # type: ignore[call-arg]  # the stub has one too many
    except Exception as error:
        raise NotDecodable(f"a JPEG XL that holds no JPEG: {str(error)[:200]}") from error


def _header(read: Callable[[bytes], Header], data: bytes, max_pixels: int) -> Header:
    try:
        header = read(data)
    except BadCodestream as error:
        raise BadImage(str(error)) from error
    if header.rows * header.columns > max_pixels:
        raise ImageTooLarge(f"{header.columns} x {header.rows} pixels, when {max_pixels} are allowed")
    return header
