"""Native pixel data: the size of a frame, and the byte order (PS3.5 sections 7.3, 8.1 and 8.2).

Rules that this file keeps:

- The attributes determine the size of a frame, and the length of the value must fit; it is never length / number of frames.
- What does not fit is refused: frames cut in the wrong places look like pictures.
- Bytes are swapped from the start of the value on: frames of an odd length begin in the middle of a word.
"""

from __future__ import annotations

from array import array

from twistedproxy.dicom.metadata import InstanceMetadata

PIXEL_DATA = 0x7FE00010
_WORDS = {2: "H", 4: "I", 8: "Q"}


class BadPixelLength(ValueError):
    """The length of the pixel data does not fit the attributes; `str()` says both."""


def native_frame_bits(facts: InstanceMetadata, length: int) -> int:
    """Bits of one frame of native pixel data of *length* bytes. Raises `BadPixelLength`.

    One pad byte is usual, some writers leave more behind, but a whole frame more is a wrong number of frames.
    Subsampled data may come with all samples: ultrasound machines and decompressing stores leave the photometric
    interpretation of the compressed data.
    """
    stated, whole = facts.frame_bits, facts.pixel_bits
    if not stated:
        raise BadPixelLength(f"the size of its frames is not known: {facts.columns} x {facts.rows} pixels")
    for bits in (stated, whole):
        if 0 <= length - -(-facts.frames * bits // 8) <= 1:
            return bits
    surplus = length - -(-facts.frames * stated // 8)
    if stated != whole or not 0 <= surplus < max(stated // 8, 2):
        raise BadPixelLength(
            f"{length} bytes of pixel data for {facts.frames} frames of {-(-stated // 8)} bytes:"
            f" {facts.columns} x {facts.rows} {facts.photometric_interpretation} pixels,"
            f" {facts.samples_per_pixel} samples of {facts.bits_allocated} bits"
        )
    return stated


def swapped_width(vr: str, bits_allocated: int) -> int:
    """How many bytes are swapped with each other in Explicit VR Big Endian; 1: none are.

    Samples of 8 bits or fewer are swapped in the words of OW (PS3.5 section 8.1.2), larger ones as a whole.
    """
    width = bits_allocated // 8
    if width in _WORDS:
        return width
    return 2 if vr == "OW" else 1


def swap_bytes(data: bytes, width: int) -> bytes:
    """*data* with the bytes of each word of *width* bytes in reverse; what is left of no whole word stays as it is."""
    if width == 1:
        return data
    whole = len(data) - len(data) % width
    words = array(_WORDS[width], data[:whole])
    words.byteswap()
    return words.tobytes() + data[whole:]


class ByteSwapper:
    """Swaps a value that comes in pieces."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """The words that are complete with *chunk*, swapped."""
        data = self._rest + chunk
        whole = len(data) - len(data) % self._width
        self._rest = data[whole:]
        return swap_bytes(data[:whole], self._width)
