"""The part of a DICOM file before its pixels: preamble and file meta information (PS3.10 section 7.1), then the
data set (PS3.5 section 7) up to the pixel data element of its top level.

Rules that this file keeps:

- Values that are not needed are skipped, not kept; what is kept is bounded.
- Nested sequences cost no recursion: only how deep the reader stands is remembered, and that is bounded too.
- No I/O; every cut of the stream gives the same result.

All stages of the Part 10 stream share the errors here, and `Gatherer`, which gathers chunks until there are enough:

- Each byte is copied at most once into a joined piece, however the stream is cut.
- A stage states how many bytes it needs before it gathers, so it can refuse a number that makes no sense.
"""

from __future__ import annotations

import functools
import struct
from typing import Any

import attrs

from twistedproxy.dicom.json_events import UIDS, BadMetadata
from twistedproxy.dicom.metadata import CREATION_TAGS, FIELD_TYPES, FIELDS, InstanceMetadata, from_values
from twistedproxy.dicom.transfer_syntaxes import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN


class BadPart10(ValueError):
    """A stream is not a DICOM file, is cut off, or contradicts itself. All frames that it gave are in doubt."""


class NotByFrame(BadPart10):
    """A DICOM file whose frames cannot be separated without decoding: 1-bit pixels, video."""


class NotAsDescribed(BadPart10):
    """A file is of another instance than expected, or its frames are not what its transfer syntax or the metadata say."""


class Gatherer:
    """Chunks that wait until they hold what is needed next."""

    def __init__(self, need: int) -> None:
        self._need = need
        self._size = 0
        self._chunks: list[bytes] = []

    def add(self, chunk: bytes) -> bytes | None:
        """All that waited and *chunk*, once that is enough; None before."""
        if not self._chunks:
            if len(chunk) >= self._need:
                return chunk
            if not chunk:
                return None
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size < self._need:
            return None
        data = b"".join(self._chunks)
        self._chunks.clear()
        self._size = 0
        return data

    def keep(self, data: bytes, position: int, need: int) -> None:
        """Let what follows *position* wait until there are *need* bytes from there."""
        self._need = need
        if position < len(data):
            rest = data[position:]
            self._chunks.append(rest)
            self._size = len(rest)


MAX_META_BYTES = 1 << 20
"""File meta information. About 300 bytes are usual; private information may add some."""
MAX_TABLE_BYTES = 64 << 20
"""An offset table: 8 million frames in the Extended Offset Table."""
MAX_VALUE_BYTES = 256
"""Any other value that is kept."""
MAX_DEPTH = 100
"""Sequences within sequences. Structured reports, the deepest, have about 20."""

UNDEFINED_LENGTH = 0xFFFFFFFF
PIXEL_DATA = 0x7FE00010
PIXEL_TAGS = (PIXEL_DATA, 0x7FE00008, 0x7FE00009)  # Float and Double Float Pixel Data are native alike
EXTENDED_OFFSET_TABLE = 0x7FE00001
EXTENDED_OFFSET_TABLE_LENGTHS = 0x7FE00002
_META_LENGTH, _TRANSFER_SYNTAX = 0x00020000, 0x00020010
_KEPT = {int(tag, 16): MAX_VALUE_BYTES for tag in (*FIELDS, *CREATION_TAGS, *UIDS)}
_KEPT |= {_META_LENGTH: MAX_VALUE_BYTES, _TRANSFER_SYNTAX: MAX_VALUE_BYTES}
_KEPT |= {EXTENDED_OFFSET_TABLE: MAX_TABLE_BYTES, EXTENDED_OFFSET_TABLE_LENGTHS: MAX_TABLE_BYTES}

# PS3.5 section 7.1.2: these have a 16-bit length; those not in the list, of the future too, a 32-bit one.
_SHORT_VRS = frozenset(
    [b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS"]
    + [b"ST", b"TM", b"UI", b"UL", b"US"]
)
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_NUMBER_OF_FRAMES = "00280008"


@attrs.frozen
class _Level:
    """A sequence or an item of undefined length that the reader stands in."""

    is_item: bool
    implicit_vr: bool
    big_endian: bool


_level = functools.cache(_Level)  # a sparse slide enters a million of them; eight are different


class DataSetReader:
    """Reads a data set up to its pixel data.

    Then *pixel_tag* is set, *pixel_vr*, and *pixel_length* (bytes, or `UNDEFINED_LENGTH`).
    """

    def __init__(self, implicit_vr: bool, big_endian: bool) -> None:
        self._gather = Gatherer(1)
        self._least = 8  # bytes that an element takes at least
        self._skip = 0
        self.ended = False
        self._top = _Level(True, implicit_vr, big_endian)  # not from the cache: known by its identity
        self._levels = [self._top]
        self._values: dict[int, bytes] = {}
        self.pixel_tag = 0
        self.pixel_vr = "OW"
        self.pixel_length = 0

    def feed(self, chunk: bytes) -> bytes | None:
        """Take the next bytes; once the reader has ended, return what follows (maybe nothing). Raises `BadPart10`."""
        if self._skip >= len(chunk):
            self._skip -= len(chunk)
            return None
        data = self._gather.add(chunk[self._skip :] if self._skip else chunk)
        self._skip = 0
        if data is None:
            return None
        position, size, need = 0, len(data), self._least
        while size - position >= self._least:
            used = self._element(data, position)
            if self.ended:
                return data[position + used :]
            if used < 0:
                need = -used
                break
            position += used
            if position > size:
                self._skip, position, need = position - size, size, 1
        self._gather.keep(data, position, need)
        return None

    def metadata(self, transfer_syntax: str) -> InstanceMetadata:
        """The facts that stood before the pixel data; raises `BadPart10` for impossible ones."""
        values: dict[str, Any] = {}
        for tag, value in self._values.items():
            name = f"{tag:08X}"
            if name in (*FIELDS, *CREATION_TAGS) and value:
                values[name] = self._decoded(name, value)
        values["00020010"] = transfer_syntax
        try:
            return from_values(values, False)
        except BadMetadata as error:
            raise BadPart10(str(error)) from error

    @property
    def uids(self) -> tuple[str, ...]:
        """Study, Series and SOP Instance UID; "" for those that have not come."""
        values = [self._values.get(int(tag, 16), b"") for tag in UIDS]
        return tuple(value.decode("latin-1").strip(" \0") for value in values)

    def extended_offsets(self) -> tuple[bytes, bytes]:
        """Give away the Extended Offset Table and its lengths, little endian 64-bit numbers; empty where there are none."""
        pop = self._values.pop
        return pop(EXTENDED_OFFSET_TABLE, b""), pop(EXTENDED_OFFSET_TABLE_LENGTHS, b"")

    def _decoded(self, name: str, value: bytes) -> object:
        if name == _NUMBER_OF_FRAMES or name not in FIELDS or str in FIELD_TYPES[FIELDS[name]]:
            return value.decode("latin-1").split("\\")[0].strip(" \0")
        return int.from_bytes(value[: 4 if len(value) == 4 else 2], "big" if self._top.big_endian else "little")

    def _element(self, data: bytes, position: int) -> int:
        """Read what stands at *position*. Return the bytes to go on by (maybe more than there are), or minus the bytes
        needed from *position* to say so."""
        level = self._levels[-1]
        group, element, length = struct.unpack_from(">HHL" if level.big_endian else "<HHL", data, position)
        tag = group << 16 | element
        if group == 0xFFFE:
            return self._delimiter(tag, length, level)
        if not level.is_item:
            raise BadPart10(f"({group:04X},{element:04X}) stands between the items of a sequence")
        header, is_unknown = 8, False
        if not level.implicit_vr:
            vr = data[position + 4 : position + 6]
            if vr in _SHORT_VRS:
                length = int.from_bytes(data[position + 6 : position + 8], "big" if level.big_endian else "little")
            else:
                if not (vr.isalpha() and vr.isupper()):
                    raise BadPart10(f"({group:04X},{element:04X}) has no VR")
                if len(data) - position < 12:
                    return -12
                header, is_unknown = 12, vr == b"UN"
                length = struct.unpack_from(">8xL" if level.big_endian else "<8xL", data, position)[0]
        if level is self._top:
            if tag in PIXEL_TAGS:
                self.pixel_tag, self.pixel_length, self.ended = tag, length, True
                if not level.implicit_vr:
                    self.pixel_vr = vr.decode("latin-1")
                return header
            if tag in _KEPT and length != UNDEFINED_LENGTH:
                if length > _KEPT[tag]:
                    raise BadPart10(f"({group:04X},{element:04X}) has {length} bytes, which is too many")
                if len(data) - position < header + length:
                    return -int(header + length)
                self._values[tag] = data[position + header : position + header + length]
        if length == UNDEFINED_LENGTH:
            # PS3.5 section 6.2.2: what UN of undefined length holds is implicit VR little endian.
            implicit, big = (True, False) if is_unknown else (level.implicit_vr, level.big_endian)
            self._enter(_level(False, implicit, big))
            return header
        return int(header + length)

    def _delimiter(self, tag: int, length: int, level: _Level) -> int:
        if tag == _ITEM and not level.is_item:
            if length != UNDEFINED_LENGTH:
                return 8 + length
            self._enter(_level(True, level.implicit_vr, level.big_endian))
        elif level is not self._top and tag == (_ITEM_END if level.is_item else _SEQUENCE_END):
            self._levels.pop()
        else:
            raise BadPart10("items and their delimiters are out of order")
        return 8

    def _enter(self, level: _Level) -> None:
        if len(self._levels) > MAX_DEPTH:
            raise BadPart10(f"sequences more than {MAX_DEPTH} deep")
        self._levels.append(level)


class FileMetaReader(DataSetReader):
    """Reads preamble and file meta information, which is explicit VR little endian always, up to the data set. That is no tags
    where it is deflated."""

    def __init__(self) -> None:
        super().__init__(False, False)
        self._gather = Gatherer(132)
        self._least = 2
        self._read = 0

    @property
    def transfer_syntax(self) -> str:
        """The UID; "" while it has not come."""
        return self._values.get(_TRANSFER_SYNTAX, b"").decode("latin-1").strip(" \0")

    def _element(self, data: bytes, position: int) -> int:
        if not self._read:
            if data[128:132] != b"DICM":
                raise BadPart10("not a DICOM file: DICM is missing after the preamble")
            used = 132
        elif data[position : position + 2] != b"\x02\x00" or self._is_deflated_from_here():
            if not self.transfer_syntax:
                raise BadPart10("the file meta information names no transfer syntax")
            self.ended = True
            return 0
        elif len(data) - position < 12:
            return -12  # none is shorter that anything is followed by
        else:
            used = super()._element(data, position)
        self._read += max(used, 0)
        if self._read > MAX_META_BYTES:
            raise BadPart10(f"file meta information of more than {MAX_META_BYTES} bytes")
        return used

    def _is_deflated_from_here(self) -> bool:
        length = self._values.get(_META_LENGTH, b"")
        end = 132 + 12 + int.from_bytes(length, "little")  # the element of the length is the first
        return self.transfer_syntax == DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN and len(length) == 4 and self._read == end
