"""What a frame's first bytes say: its transfer syntax where nothing else does, and whether they can be in the one that is said.

Rules that this file keeps:

- None rather than a guess for bytes that carry no signature: native frames have none.
- A codestream that fits several transfer syntaxes gets the narrowest that can be proved from its header:
  reversible JPEG 2000 is "lossless only".
- The markers looked at and the bytes read are bounded; no bytes make it raise.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator

from twistedproxy.dicom import transfer_syntaxes as ts

MAX_MARKERS = 1000
"""Marker segments looked at. An ICC profile of 16 MB takes 255 of them."""

RLE_HEADER_BYTES = 64
"""PS3.5 section G.5."""

_SOI = b"\xff\xd8\xff"
_SOC = b"\xff\x4f\xff\x51"
_JXL_CODESTREAM = b"\xff\x0a"
_JXL_CONTAINER = b"\x00\x00\x00\x0cJXL \r\n\x87\n"
_JP2_CONTAINER = b"\x00\x00\x00\x0cjP  \r\n\x87\n"

# How frames of a media type begin. T.81 B.1.1.2 lets fill bytes, FF, stand before a marker.
_BEGINNINGS: dict[str, tuple[bytes, ...]] = {
    "image/jpeg": (b"\xff\xd8", b"\xff\xff"),
    "image/jls": (b"\xff\xd8", b"\xff\xff"),
    "image/jp2": (_SOC, _JP2_CONTAINER),
    "image/jpx": (_SOC, _JP2_CONTAINER),
    "image/jphc": (_SOC, _JP2_CONTAINER),
    "image/jxl": (_JXL_CODESTREAM, _JXL_CONTAINER),
}
_RLE = "image/dicom-rle"

# T.81 table B.1: start of frame markers, by the process that they announce.
_JPEG_PROCESSES = {0xC0: ts.JPEG_BASELINE, 0xC1: ts.JPEG_EXTENDED, 0xC2: ts.JPEG_PROGRESSIVE}
_SOF_LOSSLESS = 0xC3
_SOF_JPEG_LS = 0xF7
_SOS = 0xDA

_COD = 0x52
_CAP = 0x50
_SIZ_CAPABILITIES = 0x4000  # T.800 A.5.1: bit 14 of Rsiz, a CAP segment follows
_SIZ_PART_2 = 0x8000  # T.801 A.2.1: bit 15 of Rsiz
_CAP_PART_15 = 0x00020000  # T.814 A.3.1: Pcap15, high throughput
_REVERSIBLE = 1  # T.800 table A.20: the 5-3 wavelet


SNIFFED_BYTES = 65536
"""As much of a frame as is worth looking at: ICC profiles may stand in front of what tells."""

_JPEG_2000_TYPES = frozenset(("image/jp2", "image/jpx", "image/jphc"))


def other_codec(frame: bytes, uid: str) -> str | None:
    """The media type that *frame* shows where that is of another codec than frames in transfer syntax *uid* are of.

    Processes of one codec are not told apart: decoders read them all.
    """
    said = ts.media_type_of(uid)
    shown = sniff(frame[:SNIFFED_BYTES]) if said.startswith("image/") else None
    found = ts.media_type_of(shown) if shown is not None else said
    return None if found == said or {found, said} <= _JPEG_2000_TYPES else found


def sniff(frame: bytes) -> str | None:
    """The UID of the transfer syntax that *frame* (or its first kilobytes) is encoded in; None if it cannot be told."""
    try:
        return _sniff(frame)
    except (struct.error, IndexError):  # cut off in the middle of what would have told
        return None


def may_be(frame: bytes, uid: str) -> bool:
    """Whether *frame* begins as frames in transfer syntax *uid* do; True where these have no beginning in common."""
    media_type = ts.media_type_of(uid)
    if media_type == _RLE:
        return len(frame) >= RLE_HEADER_BYTES and _is_rle(frame)
    return frame.startswith(_BEGINNINGS.get(media_type, b""))


def is_text(data: bytes) -> bool:
    """Whether *data* begins as a page, XML or JSON does: what servers in between send where a picture belongs."""
    return data[:64].lstrip()[:1] in (b"<", b"{", b"[")


def _sniff(frame: bytes) -> str | None:
    if frame.startswith(_SOI):
        return _jpeg(frame)
    if frame.startswith(_SOC):
        return _jpeg_2000(frame, 2)
    if frame.startswith(_JXL_CODESTREAM):
        return ts.JPEG_XL
    if frame.startswith(_JXL_CONTAINER):
        return ts.JPEG_XL_RECOMPRESSION if any(kind == b"jbrd" for kind, _ in _boxes(frame)) else ts.JPEG_XL
    if frame.startswith(_JP2_CONTAINER):
        for kind, start in _boxes(frame):
            if kind == b"jp2c":
                return _jpeg_2000(frame, start + 2)
        return None
    return ts.RLE_LOSSLESS if _is_rle(frame) else None


def _segments(data: bytes, position: int) -> Iterator[tuple[int, int]]:
    """(marker, offset of what follows the segment's length) of consecutive marker segments."""
    for _ in range(MAX_MARKERS):
        while data[position] == 0xFF and data[position + 1] == 0xFF:  # fill bytes, T.81 B.1.1.2
            position += 1
        if data[position] != 0xFF:
            return
        yield data[position + 1], position + 4
        position += 2 + int(struct.unpack_from(">H", data, position + 2)[0])


def _jpeg(data: bytes) -> str | None:
    start_of_frame = 0
    for marker, start in _segments(data, 2):
        if marker in _JPEG_PROCESSES:
            return _JPEG_PROCESSES[marker]
        if marker in (_SOF_LOSSLESS, _SOF_JPEG_LS):
            start_of_frame = marker
        elif marker == _SOS:
            # After the components: Ss, the predictor, of lossless JPEG (T.81 B.2.3), NEAR of JPEG-LS (T.87 C.2.3).
            selection = data[start + 1 + 2 * data[start]]
            if start_of_frame == _SOF_LOSSLESS:
                return ts.JPEG_LOSSLESS_SV1 if selection == 1 else ts.JPEG_LOSSLESS
            if start_of_frame == _SOF_JPEG_LS:
                return ts.JPEG_LS_NEAR_LOSSLESS if selection else ts.JPEG_LS_LOSSLESS
            return None
    return None


def _jpeg_2000(data: bytes, position: int) -> str | None:
    """*position*: just after the SOC marker."""
    capabilities = int(struct.unpack_from(">H", data, position + 4)[0])
    high_throughput = False
    for marker, start in _segments(data, position):
        if marker == _CAP and capabilities & _SIZ_CAPABILITIES:
            high_throughput = bool(struct.unpack_from(">L", data, start)[0] & _CAP_PART_15)
        elif marker == _COD:
            # Scod, then progression order, layers (2), multiple component transform; then the five of SPcod.
            reversible = data[start + 9] == _REVERSIBLE
            if high_throughput:
                return ts.HTJ2K_LOSSLESS if reversible else ts.HTJ2K
            if capabilities & _SIZ_PART_2:
                return ts.JPEG_2000_PART_2_LOSSLESS if reversible else ts.JPEG_2000_PART_2
            return ts.JPEG_2000_LOSSLESS if reversible else ts.JPEG_2000
    return None


def _boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    """(type, offset of the contents) of the top-level boxes of an ISO container (T.800 I.4)."""
    position = 0
    for _ in range(MAX_MARKERS):
        if position + 8 > len(data):
            return
        length, kind = struct.unpack_from(">L4s", data, position)
        header = 8
        if length == 1:
            length, header = struct.unpack_from(">Q", data, position + 8)[0], 16
        yield kind, position + header
        if length < header:  # 0: to the end; less: nonsense
            return
        position += length


def _is_rle(data: bytes) -> bool:
    """Whether the 16 numbers of an RLE header are there (PS3.5 section G.5): count, ascending offsets, zeros."""
    count, *offsets = struct.unpack_from("<16L", data)
    if not 1 <= count <= 15 or offsets[0] != 64 or any(offsets[count:]):
        return False
    used = offsets[:count]
    return all(earlier < later for earlier, later in itertools.pairwise(used))
