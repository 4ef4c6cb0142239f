"""What a codestream says of itself, read before anything is decoded.

Rules that this file keeps:

- Only the first bytes are read, by offsets that are checked; nothing is allocated by what they say.
- What makes a decoder take memory or time out of proportion to the pixels is refused here: tiles, precincts,
  layers, scans, components.
- Whatever is wrong is a BadImage.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import attrs

from twistedproxy.imaging.errors import BadImage

MAX_COMPONENTS = 4
MAX_SCANS = 100  # the common scripts of progressive JPEG have 10; each scan walks over all pixels
MAX_TILES = 4_096  # OpenJPEG takes about 6 kB for each before it reads one; 64 x 64 tiles of a 4,096 frame
MAX_PACKETS = 1_000_000  # layers x components x resolutions x precincts: OpenJPEG keeps a note for each


@attrs.frozen
class Header:
    """*precision* in bits; *signed* is JPEG 2000's. *color_transform*: whether the codestream says that its decoder
    is to turn YCbCr into RGB (None: it says nothing). *levels* is how often its size can be halved in decoding.
    *lossless_process*: JPEG's process 14. *adobe*: whether an APP14 segment said so. *subsampled*: whether the second and
    third component of JPEG 2000 have fewer pixels than the first.
    """

    rows: int
    columns: int
    components: int
    precision: int
    signed: bool = False
    color_transform: bool | None = None
    levels: int = 0
    lossless_process: bool = False
    adobe: bool = False
    subsampled: bool = False


def jpeg_header(data: bytes) -> Header:
    """Of a JPEG (ITU-T T.81) or JPEG-LS (T.87) codestream. Raises BadImage."""
    jfif, adobe = False, None
    for marker, segment in _jpeg_segments(data):
        if marker == 0xE0 and segment.startswith(b"JFIF"):
            jfif = True
        elif marker == 0xEE and segment.startswith(b"Adobe") and len(segment) >= 12:
            adobe = segment[11] != 0
        elif marker in _START_OF_FRAME:
            return _frame_header(data, marker, segment, jfif, adobe)
    raise BadImage("a JPEG without a frame header")


# SOF0-3 and SOF55 (JPEG-LS): T.81 table B.1. Hierarchical and arithmetic ones are not DICOM's.
_START_OF_FRAME = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xF7})


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The marker segments before the first scan."""
    if data[:2] != b"\xff\xd8":
        raise BadImage("no JPEG")
    place = 2
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            raise BadImage("a JPEG with something else where a marker must be")
        marker = data[place + 1]
        if marker == 0xFF:  # T.81 B.1.1.2: fill bytes
            place += 1
            continue
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0xDA or length < 2 or place + 2 + length > len(data):
            break
        yield marker, data[place + 4 : place + 2 + length]
        place += 2 + length


def _frame_header(data: bytes, marker: int, segment: bytes, jfif: bool, adobe: bool | None) -> Header:
    if len(segment) < 6 or len(segment) < 6 + 3 * segment[5]:
        raise BadImage("a JPEG with a frame header that is cut off")
    precision, rows, columns, components = struct.unpack(">BHHB", segment[:6])
    if data.count(b"\xff\xda") > MAX_SCANS:
        raise BadImage(f"a JPEG with more than {MAX_SCANS} scans")
    ids = segment[6 : 6 + 3 * components : 3]
    transform = adobe
    if adobe is None and (ids in (b"RGB", b"rgb") or jfif):
        transform = jfif and ids not in (b"RGB", b"rgb")
    return _checked(
        Header(
            rows,
            columns,
            components,
            precision,
            color_transform=transform,
            levels=0 if marker in (0xC3, 0xF7) or precision != 8 else 3,
            lossless_process=marker == 0xC3,
            adobe=adobe is not None,
        )
    )


def jpeg2000_codestream(data: bytes) -> bytes:
    """What is inside of a JP2 file (T.800 annex I); a bare codestream, as DICOM has it, is given back.

    What the file says of colors is left: PS3.5 section A.4.4 has it be ignored. Raises BadImage.
    """
    if data[4:8] != b"jP  ":
        return data
    for kind, start, end in _boxes(data):
        if kind == b"jp2c":
            return data[start:end]
    raise BadImage("a JP2 file without a codestream")


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The outer boxes of JP2 and JPEG XL files: kind, start and end of what is inside."""
    place = 0
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        head = 8
        if length == 1:
            length, head = int.from_bytes(data[place + 8 : place + 16], "big"), 16
        end = place + length if length else len(data)
        if end < place + head:
            break
        yield kind, place + head, min(end, len(data))
        place = end


def jpeg2000_header(data: bytes) -> Header:
    """Of a bare JPEG 2000 codestream (T.800 annex A) or HTJ2K (T.814). Raises BadImage."""
    if data[:4] != b"\xff\x4f\xff\x51" or len(data) < 42:
        raise BadImage("no JPEG 2000 codestream")
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top, components = struct.unpack_from(
        ">8IH", data, 8
    )
    parts = data[42 : 42 + 3 * components]
    if not 0 < components <= MAX_COMPONENTS or len(parts) < 3 * components or right <= left or bottom <= top:
        raise BadImage("a JPEG 2000 size that cannot be")
    subsampled = components == 3 and parts[1:3] == b"\1\1" and parts[3:6] == parts[6:9] and parts[4:6] in _CHROMA
    if any(depth != parts[0] for depth in parts[::3]) or not (subsampled or set(parts[1::3] + parts[2::3]) == {1}):
        raise BadImage("a JPEG 2000 codestream with unlike components")
    if not tile_width or not tile_height or tile_left > left or tile_top > top:
        raise BadImage("a JPEG 2000 tile grid that cannot be")
    tiles = -(-(right - tile_left) // tile_width) * -(-(bottom - tile_top) // tile_height)
    if tiles > MAX_TILES:
        raise BadImage(f"a JPEG 2000 codestream of {tiles} tiles")
    size = int.from_bytes(data[4:6], "big")
    header = Header(
        bottom - top,
        right - left,
        components,
        (parts[0] & 0x7F) + 1,
        signed=bool(parts[0] & 0x80),
        subsampled=subsampled,
    )
    return _coding_style(data, 4 + size, _checked(header), tiles)


_CHROMA = (b"\2\1", b"\2\2", b"\1\2")
"""How much sparser chrominance may be, horizontally and vertically: what decoders know how to spread."""


def _coding_style(data: bytes, place: int, header: Header, tiles: int) -> Header:
    """Add what COD (T.800 A.6.1) says. Precincts of every COC and tile are bounded by the same sum."""
    packets, levels, transform = 0, 32, None
    while place + 4 <= len(data) and (marker := data[place : place + 2]) != b"\xff\x90":  # SOT
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        segment = data[place + 4 : place + 2 + length]
        if marker[0] != 0xFF or length < 2 or len(segment) < length - 2:
            raise BadImage("a JPEG 2000 main header that is cut off")
        if marker == b"\xff\x52":
            if len(segment) < 10:
                raise BadImage("a JPEG 2000 coding style that is cut off")
            levels, transform = segment[5], bool(segment[4])
            packets = int.from_bytes(segment[2:4], "big") * _precincts(header, segment, tiles)
        place += 2 + length
    if transform is None or levels > 32 or packets > MAX_PACKETS:
        raise BadImage("a JPEG 2000 coding style that is missing, or out of proportion")
    _all_tiles(data, place, tiles)
    return attrs.evolve(header, levels=levels, color_transform=transform and header.components >= 3)


def _all_tiles(data: bytes, place: int, tiles: int) -> None:
    """Every tile has a part (T.800 A.4.2), all there: OpenJPEG leaves out those that are missing and says nothing."""
    seen = set()
    while data[place : place + 4] == b"\xff\x90\0\x0a" and len(data) >= place + 12:
        tile, length = struct.unpack_from(">HI", data, place + 4)
        seen.add(tile)
        if not length:  # the last one, up to the end
            break
        if length < 14 or place + length > len(data):
            raise BadImage("a JPEG 2000 tile that is cut off")
        place += length
    if len(seen) < tiles:
        raise BadImage(f"a JPEG 2000 codestream with {len(seen)} of {tiles} tiles")


def _precincts(header: Header, segment: bytes, tiles: int) -> int:
    sizes = segment[10:] if segment[0] & 1 else b"\xff" * (segment[5] + 1)
    if len(sizes) < segment[5] + 1:
        raise BadImage("a JPEG 2000 coding style that is cut off")
    total = 0
    for resolution, exponents in enumerate(sizes[: segment[5] + 1]):
        shift = segment[5] - resolution
        across = (header.columns >> shift) >> (exponents & 15)
        down = (header.rows >> shift) >> (exponents >> 4)
        total += (across + 1) * (down + 1) + tiles - 1
    return total * header.components


def jpegxl_header(data: bytes) -> Header:
    """The size in a JPEG XL codestream (ISO/IEC 18181-1 annex D) or the container around one.

    Components and precision are not read (1 and 8 stand for them): the decoder's result says. Raises BadImage.
    """
    stream = _jxl_codestream(data)
    if stream[:2] != b"\xff\x0a" or len(stream) < 4:
        raise BadImage("no JPEG XL codestream")
    bits = _Bits(stream[2:14])
    small = bits.take(1)
    rows = (bits.take(5) + 1) * 8 if small else bits.size()
    ratio = bits.take(3)
    if ratio:
        across, down = _RATIOS[ratio - 1]
        columns = rows * across // down
    else:
        columns = (bits.take(5) + 1) * 8 if small else bits.size()
    return _checked(Header(rows, columns, 1, 8))


_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def _jxl_codestream(data: bytes) -> bytes:
    """The first bytes of the codestream, whether bare or in boxes (ISO/IEC 18181-2)."""
    if data[:12] != b"\0\0\0\x0cJXL \r\n\x87\n":
        return data[:16]
    for kind, start, _ in _boxes(data):
        if kind in (b"jxlc", b"jxlp"):
            place = start + (4 if kind == b"jxlp" else 0)
            return data[place : place + 16]
    raise BadImage("a JPEG XL container without a codestream")


class _Bits:
    """JPEG XL's numbers: least significant bit first; what lies past the end is zero."""

    def __init__(self, data: bytes) -> None:
        self._rest = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        value = self._rest & ((1 << count) - 1)
        self._rest >>= count
        return value

    def size(self) -> int:
        return 1 + self.take((9, 13, 18, 30)[self.take(2)])


def _checked(header: Header) -> Header:
    if not (header.rows and header.columns and 0 < header.components <= MAX_COMPONENTS and 0 < header.precision <= 32):
        raise BadImage("an image header that cannot be")
    return header
