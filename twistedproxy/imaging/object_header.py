"""What stores leave out of an instance's metadata, read from the stored object (PS3.10 section 7) up to its pixels.

- PerFrameFunctionalGroupsSequence (5200,9230), as DICOM JSON (PS3.18 annex F): Google's store leaves out long ones.
- ICC profiles (0028,2000), at the top or in OpticalPathSequence (0048,0105): Azure's store leaves out all binary values.

Frames' functional groups are read one by one: as objects of pydicom, those of 100,000 frames would take a gigabyte. The proxy itself,
which needs `HeldBack`, does not load pydicom.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO

import attrs

from twistedproxy.dicom.json_events import BadMetadata
from twistedproxy.dicom.part10.dataset import MAX_META_BYTES, FileMetaReader
from twistedproxy.dicom.transfer_syntaxes import lookup

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MAX_HEADER = 32 << 20
"""Bytes of an object in front of its pixels: those of 100,000 sparse frames have some 30 MB."""

MAX_GROUPS = 32 << 20
"""Bytes of functional groups as JSON: some 200 a frame where they hold positions."""

_CHARACTER_SET, _PROFILE, _PATHS, _GROUPS = 0x00080005, 0x00282000, 0x00480105, 0x52009230
_UNDEFINED = 0xFFFFFFFF


@attrs.frozen
class HeldBack:
    """*groups*: the JSON of the functional groups element, compressed with zlib, b"" for none; *groups_size*: its bytes when it is
    not. *profiles*: ICC profiles by the place that a BulkDataURI names them by (``00480105/1/00282000``)."""

    groups: bytes = attrs.field(default=b"", repr=False)
    groups_size: int = 0
    profiles: Mapping[str, bytes] = attrs.field(factory=dict, repr=False)

    def to_bytes(self) -> bytes:
        """A compact form; `from_bytes` reads it."""
        lengths = {place: len(profile) for place, profile in self.profiles.items()}
        head = json.dumps([len(self.groups), self.groups_size, lengths]).encode("ascii")
        return b"".join((head, b"\n", self.groups, *self.profiles.values()))

    @classmethod
    def from_bytes(cls, data: bytes) -> HeldBack:
        """Undo `to_bytes`. Raises ValueError."""
        head, _, rest = bytes(data).partition(b"\n")
        try:
            length, size, lengths = json.loads(head)
            profiles, position = {}, length
            for place, count in lengths.items():
                profiles[place] = rest[position : position + count]
                position += count
        except (TypeError, AttributeError) as error:
            raise ValueError("not what an object's header gave") from error
        if position != len(rest):
            raise ValueError("what an object's header gave is cut off")
        return cls(rest[:length], size, profiles)


class ObjectHeader:
    """Gathers the beginning of a stored object, up to its pixels at least."""

    def __init__(self) -> None:
        self._data = BytesIO()

    def feed(self, piece: bytes) -> None:
        """Take the next bytes. Raises `BadMetadata` for too many."""
        self._data.write(piece)
        if self._data.tell() > MAX_HEADER:
            raise BadMetadata(f"more than {MAX_HEADER} bytes stand in front of the pixels")

    def packed(self, _bulk: Mapping[str, bytes], _profile: bool = False) -> tuple[bytes, list[str]]:
        """What was found, for `HeldBack`; no value of it stands elsewhere. Raises `BadMetadata`."""
        self._data.seek(0)
        try:
            found = _read(self._data)
        except BadMetadata:
            raise
        except Exception as error:  # pydicom raises anything on a broken data set
            raise BadMetadata(f"the object cannot be read: {error}"[:200]) from error
        return found.to_bytes(), []


def _read(file: BinaryIO) -> HeldBack:
    from pydicom.charset import convert_encodings
    from pydicom.filereader import read_dataset

    syntax = lookup(_transfer_syntax(file))
    if syntax is None or syntax.deflated:  # two megabytes may inflate to two gigabytes
        return HeldBack()
    dataset = read_dataset(
        file,
        syntax.implicit_vr,
        not syntax.big_endian,
        stop_when=lambda tag, _vr, _length: tag >= _GROUPS,
        specific_tags=[_CHARACTER_SET, _PROFILE, _PATHS],
    )
    profiles = {place: value for place, value in _profiles(dataset) if isinstance(value, bytes) and value}
    compressor, size, parts = zlib.compressobj(6), 0, []
    encoding = convert_encodings(dataset.get("SpecificCharacterSet", "ISO_IR 6"))
    order = "big" if syntax.big_endian else "little"
    for item in _items(file, syntax.implicit_vr, order, encoding):
        text = json.dumps(item.to_json_dict(suppress_invalid_tags=True), separators=(",", ":"), allow_nan=False)
        piece = (b"," if size else b'{"vr":"SQ","Value":[') + text.encode("ascii")
        size += len(piece)
        if size > MAX_GROUPS:
            raise BadMetadata(f"the functional groups have more than {MAX_GROUPS} bytes")
        parts.append(compressor.compress(piece))
    if not size:
        return HeldBack(profiles=profiles)
    parts += (compressor.compress(b"]}"), compressor.flush())
    return HeldBack(b"".join(parts), size + 2, profiles)


def _transfer_syntax(file: BinaryIO) -> str:
    """That of the data set in *file*, which stands next then. (pydicom's own reader would inflate it.)"""
    meta, head = FileMetaReader(), file.read(2 * MAX_META_BYTES)
    rest = meta.feed(head)
    if rest is None:
        raise BadMetadata("the object ends in its file meta information")
    file.seek(len(head) - len(rest))
    return meta.transfer_syntax


def _profiles(dataset: Dataset) -> Iterator[tuple[str, Any]]:
    yield f"{_PROFILE:08X}", dataset.get("ICCProfile")
    for number, item in enumerate(dataset.get("OpticalPathSequence") or (), 1):
        yield f"{_PATHS:08X}/{number}/{_PROFILE:08X}", item.get("ICCProfile")


def _items(file: BinaryIO, implicit_vr: bool, order: Any, encoding: Any) -> Iterator[Dataset]:
    """The items of the functional groups sequence, if that is what stands next in *file*."""
    from pydicom.filereader import read_sequence_item

    def number(size: int) -> int:
        return int.from_bytes(file.read(size), order)

    if (number(2) << 16 | number(2)) != _GROUPS:
        return
    if not implicit_vr:
        file.read(4)  # SQ, and two bytes that are reserved (PS3.5 section 7.1.2)
    length = number(4)
    end = None if length == _UNDEFINED else file.tell() + length
    while end is None or file.tell() < end:
        item = read_sequence_item(file, implicit_vr, order == "little", encoding)
        if item is None:
            return
        yield item
