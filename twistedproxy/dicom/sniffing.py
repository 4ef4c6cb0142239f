"""What a frame's first bytes show: its transfer syntax where that is not declared, or another codec than the declared one's.

Rules:

- None rather than a guess for bytes that carry no signature: native frames have none.
- A codestream that fits several transfer syntaxes gets the narrowest that can be proved from its header:
  reversible JPEG 2000 is "lossless only".
- The markers looked at and the bytes read are bounded; no bytes make it raise.
"""

from __future__ import annotations

import struct

from twistedproxy.dicom import transfer_syntaxes as ts
from twistedproxy.dicom.codestream import (
    CAP,
    COD,
    JP2_CONTAINER,
    JPEG_LS,
    JXL_CODESTREAM,
    JXL_CONTAINER,
    LOSSLESS,
    SOC,
    SOI,
    SOS,
    BadCodestream,
    boxes,
    jpeg2000_codestream,
    segments,
)

SNIFFED_BYTES = 65_536
"""As much of a frame as is worth looking at: ICC profiles may stand in front of what shows it."""

_JPEG_2000_TYPES = frozenset(("image/jp2", "image/jpx", "image/jphc"))
_PROCESSES = {0xC0: ts.JPEG_BASELINE, 0xC1: ts.JPEG_EXTENDED, 0xC2: ts.JPEG_PROGRESSIVE}


def sniff(frame: bytes) -> str | None:
    """The UID of the transfer syntax that *frame* (or its first kilobytes) is encoded in; None if it is not shown."""
    try:
        if frame.startswith(SOI + b"\xff"):
            return _jpeg_syntax(frame)
        if frame.startswith((SOC, JP2_CONTAINER)):
            return _jpeg2000_syntax(jpeg2000_codestream(frame))
    except (BadCodestream, struct.error, IndexError):  # cut off in the middle of what would have shown it
        return None
    if frame.startswith(JXL_CODESTREAM):
        return ts.JPEG_XL
    if frame.startswith(JXL_CONTAINER):
        return ts.JPEG_XL_RECOMPRESSION if any(kind == b"jbrd" for kind, _, _ in boxes(frame)) else ts.JPEG_XL
    return ts.RLE_LOSSLESS if ts.is_rle(frame) else None


def _jpeg_syntax(data: bytes) -> str | None:
    process = 0
    for marker, _, segment in segments(data, 2):
        if marker in _PROCESSES:
            return _PROCESSES[marker]
        if marker in (LOSSLESS, JPEG_LS):
            process = marker
        elif marker == SOS:
            # After the components: Ss, the predictor, of lossless JPEG (T.81 B.2.3), NEAR of JPEG-LS (T.87 C.2.3).
            selection = segment[1 + 2 * segment[0]]
            if process == LOSSLESS:
                return ts.JPEG_LOSSLESS_SV1 if selection == 1 else ts.JPEG_LOSSLESS
            if process == JPEG_LS:
                return ts.JPEG_LS_NEAR_LOSSLESS if selection else ts.JPEG_LS_LOSSLESS
            return None
    return None


def _jpeg2000_syntax(data: bytes) -> str | None:
    (capabilities,) = struct.unpack_from(">H", data, 6)
    high_throughput = False
    for marker, _, segment in segments(data, 2):
        if marker == CAP and capabilities & 0x4000:  # T.800 A.5.1: bit 14 of Rsiz; T.814 A.3.1: Pcap15
            high_throughput = bool(struct.unpack_from(">I", segment)[0] & 0x20000)
        elif marker == COD:
            reversible = segment[9] == 1  # T.800 table A.20: the 5-3 wavelet
            if high_throughput:
                return ts.HTJ2K_LOSSLESS if reversible else ts.HTJ2K
            if capabilities & 0x8000:  # T.801 A.2.1: bit 15 of Rsiz
                return ts.JPEG_2000_PART_2_LOSSLESS if reversible else ts.JPEG_2000_PART_2
            return ts.JPEG_2000_LOSSLESS if reversible else ts.JPEG_2000
    return None


def other_codec(frame: bytes, uid: str) -> str | None:
    """The media type that *frame* shows where that is of another codec than frames in transfer syntax *uid* are of.

    Processes of one codec count as the same: decoders read them all.
    """
    declared = ts.media_type_of(uid)
    shown = sniff(frame[:SNIFFED_BYTES]) if declared.startswith("image/") else None
    found = ts.media_type_of(shown) if shown is not None else declared
    return None if found == declared or {found, declared} <= _JPEG_2000_TYPES else found
