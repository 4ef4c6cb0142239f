"""Headers of JPEG, JPEG-LS, JPEG 2000 and JPEG XL codestreams, read before anything is decoded.

Rules:

- Offsets are checked, markers are counted, and nothing is allocated on a header's word.
- What makes a decoder take memory or time out of proportion to the pixels is refused: tiles, precincts, layers, scans,
  components.
- Whatever is wrong is a BadCodestream.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import attrs

MAX_COMPONENTS = 4
MAX_SCANS = 100  # the common scripts of progressive JPEG have 10; each scan walks over all pixels
MAX_TILES = 4_096  # OpenJPEG takes about 6 kB for each before it reads one; 64 x 64 tiles of a 4,096 frame
MAX_PACKETS = 1_000_000  # layers x components x resolutions x precincts: OpenJPEG keeps a note for each
MAX_MARKERS = 1_000  # an ICC profile of 16 MB takes 255 of them

SOI, SOC = b"\xff\xd8", b"\xff\x4f\xff\x51"
JXL_CODESTREAM, JXL_CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
JP2_CONTAINER = b"\0\0\0\x0cjP  \r\n\x87\n"

# T.81 table B.1: SOF0-3 and SOF55 (JPEG-LS); hierarchical and arithmetic ones are not DICOM's. T.800 table A.2.
LOSSY, LOSSLESS, JPEG_LS, SOS = (0xC0, 0xC1, 0xC2), 0xC3, 0xF7, 0xDA
COD, CAP, SOT = 0x52, 0x50, 0x90

_CHROMA = (b"\2\1", b"\2\2", b"\1\2")
"""How much sparser chrominance may be, horizontally and vertically: what decoders know how to spread."""


class BadCodestream(ValueError):
    """A frame's header is damaged, cut off, or out of proportion."""


@attrs.frozen
class Header:
    """*precision* in bits; *signed* is JPEG 2000's. *color_transform*: whether the codestream has its decoder
    turn YCbCr into RGB (None: undefined). *levels* is how often its size can be halved in decoding.
    *lossless_process*: JPEG's process 14. *adobe*: whether that is from an APP14 segment. *subsampled*: whether the second and
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
    """Of a JPEG (ITU-T T.81) or JPEG-LS (T.87) codestream. Raises BadCodestream."""
    if not data.startswith(SOI):
        raise BadCodestream("no JPEG")
    jfif, adobe = False, None
    for marker, _, segment in segments(data, 2):
        if marker == 0xE0 and segment.startswith(b"JFIF"):
            jfif = True
        elif marker == 0xEE and segment.startswith(b"Adobe") and len(segment) >= 12:
            adobe = segment[11] != 0
        elif marker in LOSSY or marker in (LOSSLESS, JPEG_LS):
            return _jpeg_frame(data, marker, segment, jfif, adobe)
        elif marker == SOS:
            break
    raise BadCodestream("a JPEG without a frame header")


def _jpeg_frame(data: bytes, marker: int, segment: bytes, jfif: bool, adobe: bool | None) -> Header:
    if len(segment) < 6 or len(segment) < 6 + 3 * segment[5]:
        raise BadCodestream("a JPEG with a frame header that is cut off")
    if data.count(b"\xff\xda") > MAX_SCANS:
        raise BadCodestream(f"a JPEG with more than {MAX_SCANS} scans")
    precision, rows, columns, components = struct.unpack_from(">BHHB", segment)
    is_rgb = segment[6 : 6 + 3 * components : 3] in (b"RGB", b"rgb")
    transform = adobe if adobe is not None or not (is_rgb or jfif) else not is_rgb
    levels = 3 if marker in LOSSY and precision == 8 else 0
    return _checked(
        Header(rows, columns, components, precision, False, transform, levels, marker == LOSSLESS, adobe is not None)
    )


def jpeg2000_codestream(data: bytes) -> bytes:
    """What is inside of a JP2 file (T.800 annex I); a bare codestream, as DICOM has it, is given back.

    The file's color specification is ignored (PS3.5 section A.4.4). Raises BadCodestream.
    """
    return _inside(data, b"jp2c")[1] if data[4:8] == b"jP  " else data


def jpeg2000_header(data: bytes) -> Header:
    """Of a bare JPEG 2000 codestream (T.800 annex A) or HTJ2K (T.814). Raises BadCodestream."""
    if not data.startswith(SOC) or len(data) < 42:
        raise BadCodestream("no JPEG 2000 codestream")
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top, components = struct.unpack_from(
        ">8IH", data, 8
    )
    parts = data[42 : 42 + 3 * components]
    if not 0 < components <= MAX_COMPONENTS or len(parts) < 3 * components or right <= left or bottom <= top:
        raise BadCodestream("a JPEG 2000 size that cannot be")
    subsampled = components == 3 and parts[1:3] == b"\1\1" and parts[3:6] == parts[6:9] and parts[4:6] in _CHROMA
    if any(part != parts[0] for part in parts[::3]) or not (subsampled or set(parts[1::3] + parts[2::3]) == {1}):
        raise BadCodestream("a JPEG 2000 codestream with unlike components")
    if not tile_width or not tile_height or tile_left > left or tile_top > top:
        raise BadCodestream("a JPEG 2000 tile grid that cannot be")
    tiles = -(-(right - tile_left) // tile_width) * -(-(bottom - tile_top) // tile_height)
    if tiles > MAX_TILES:
        raise BadCodestream(f"a JPEG 2000 codestream of {tiles} tiles")
    depth, signed = (parts[0] & 0x7F) + 1, parts[0] > 0x7F
    header = Header(bottom - top, right - left, components, depth, signed, subsampled=subsampled)
    return _coding_style(data, _checked(header), tiles)


def _coding_style(data: bytes, header: Header, tiles: int) -> Header:
    """Add the coding style, COD (T.800 A.6.1). Precincts of every COC and tile are bounded by the same sum."""
    packets, levels, transform, tile_parts = 0, 32, None, len(data)
    for marker, place, segment in segments(data, 2):
        if marker == SOT:
            tile_parts = place
            break
        if marker == COD:
            if len(segment) < 10:
                raise BadCodestream("a JPEG 2000 coding style that is cut off")
            levels, transform = segment[5], bool(segment[4])
            packets = int.from_bytes(segment[2:4], "big") * _precincts(header, segment, tiles)
    if transform is None or levels > 32 or packets > MAX_PACKETS:
        raise BadCodestream("a JPEG 2000 coding style that is missing, or out of proportion")
    _check_tiles(data, tile_parts, tiles)
    return attrs.evolve(header, levels=levels, color_transform=transform and header.components >= 3)


def _check_tiles(data: bytes, place: int, tiles: int) -> None:
    """Every tile has a part (T.800 A.4.2), all there: OpenJPEG leaves out those that are missing, without an error."""
    seen = set()
    while data[place : place + 4] == b"\xff\x90\0\x0a" and len(data) >= place + 12:
        tile, length = struct.unpack_from(">HI", data, place + 4)
        seen.add(tile)
        if not length:  # the last one, up to the end
            break
        if length < 14 or place + length > len(data):
            raise BadCodestream("a JPEG 2000 tile that is cut off")
        place += length
    if len(seen) < tiles:
        raise BadCodestream(f"a JPEG 2000 codestream with {len(seen)} of {tiles} tiles")


def _precincts(header: Header, segment: bytes, tiles: int) -> int:
    sizes = segment[10:] if segment[0] & 1 else b"\xff" * (segment[5] + 1)
    if len(sizes) < segment[5] + 1:
        raise BadCodestream("a JPEG 2000 coding style that is cut off")
    total = 0
    for resolution, exponents in enumerate(sizes[: segment[5] + 1]):
        shift = segment[5] - resolution
        across = (header.columns >> shift) >> (exponents & 15)
        down = (header.rows >> shift) >> (exponents >> 4)
        total += (across + 1) * (down + 1) + tiles - 1
    return total * header.components


def jpegxl_header(data: bytes) -> Header:
    """The size in a JPEG XL codestream (ISO/IEC 18181-1 annex D) or the container around one.

    Components and precision are not read (they are 1 and 8 here): the decoder's result has them. Raises BadCodestream.
    """
    kind, stream = _inside(data, b"jxlc", b"jxlp") if data.startswith(JXL_CONTAINER) else (b"", data)
    stream = stream[4:20] if kind == b"jxlp" else stream[:16]  # ISO/IEC 18181-2: a part begins with its number
    if not stream.startswith(JXL_CODESTREAM) or len(stream) < 4:
        raise BadCodestream("no JPEG XL codestream")
    bits = int.from_bytes(stream[2:14], "little")  # least significant bit first; what lies past the end is zero

    def take(count: int) -> int:
        nonlocal bits
        bits, value = bits >> count, bits & ((1 << count) - 1)
        return value

    def size() -> int:
        return (take(5) + 1) * 8 if small else 1 + take((9, 13, 18, 30)[take(2)])

    small = take(1)
    rows = size()
    ratio = take(3)
    across, down = _RATIOS[ratio]
    return _checked(Header(rows, rows * across // down if ratio else size(), 1, 8))


_RATIOS = ((1, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))


def _checked(header: Header) -> Header:
    if not (header.rows and header.columns and 0 < header.components <= MAX_COMPONENTS and 0 < header.precision <= 32):
        raise BadCodestream("an image header that cannot be")
    return header


def segments(data: bytes, place: int) -> Iterator[tuple[int, int, bytes]]:
    """Marker, its place, and what is inside, of marker segments that follow each other (T.81 B.1.1.4, T.800 A.1.1)."""
    for _ in range(MAX_MARKERS):
        while data[place : place + 2] == b"\xff\xff":  # fill bytes, T.81 B.1.1.2
            place += 1
        if place + 4 > len(data):
            return
        prefix, marker, length = struct.unpack_from(">BBH", data, place)
        if prefix != 0xFF or length < 2:
            raise BadCodestream("a codestream with something else where a marker must be")
        yield marker, place, data[place + 4 : place + 2 + length]
        place += 2 + length


def boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The outer boxes of JP2 and JPEG XL files (T.800 I.4): kind, start and end of what is inside."""
    place = 0
    for _ in range(MAX_MARKERS):
        if place + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, place)
        head = 8
        if length == 1:
            length, head = int.from_bytes(data[place + 8 : place + 16], "big"), 16
        end = place + length if length else len(data)
        if end < place + head:
            return
        yield kind, place + head, min(end, len(data))
        place = end


def _inside(data: bytes, *kinds: bytes) -> tuple[bytes, bytes]:
    """Which of *kinds* the first box of one of them is, and what is in it."""
    for kind, start, end in boxes(data):
        if kind in kinds:
            return kind, data[start:end]
    raise BadCodestream("a container without a codestream")
