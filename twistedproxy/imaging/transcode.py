"""JPEG to JPEG XL and back, bit for bit (ISO/IEC 18181-2: JPEG bitstream reconstruction)."""

from __future__ import annotations

import imagecodecs

from twistedproxy.dicom.transfer_syntaxes import END_OF_IMAGE
from twistedproxy.imaging.errors import BadImage, ImageTooLarge, NotDecodable
from twistedproxy.imaging.headers import Header, jpeg_header, jpegxl_header

MAX_PIXELS = 1 << 26  # libjxl takes about 30 bytes for each


def jpeg_to_jxl(data: bytes, max_pixels: int = MAX_PIXELS) -> bytes:
    """An 8-bit lossy JPEG as a JPEG XL from which `jxl_to_jpeg` gives the same bytes; a pad byte behind it is dropped.

    Raises BadImage for what is no whole JPEG, of it NotDecodable for 12-bit and lossless ones.
    """
    header = jpeg_header(data)
    _check(header, max_pixels)
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
    _check(jpegxl_header(data), max_pixels)
    try:
        return bytes(imagecodecs.jpegxl_decode_jpeg(data))  # type: ignore[call-arg]  # the stub has one too many
    except Exception as error:
        raise NotDecodable(f"a JPEG XL that holds no JPEG: {str(error)[:200]}") from error


def _check(header: Header, max_pixels: int) -> None:
    if header.rows * header.columns > max_pixels:
        raise ImageTooLarge(f"{header.columns} x {header.rows} pixels, when {max_pixels} are allowed")
