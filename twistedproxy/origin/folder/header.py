"""A file's header, read with pydicom up to the pixel data. Blocking: call it in a thread.

- Only DICOM Part 10 files (PS3.10 section 7.1) are taken: preamble and prefix.
- Whatever pydicom raises becomes `UnreadableFile`: folders hold anything.
- A deflated dataset (PS3.5 section A.5) is inflated in memory, to `MAX_INFLATED` bytes and no further.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from typing import Any, BinaryIO, Optional

import attrs
import pydicom
from pydicom.dataset import Dataset, FileDataset

from twistedproxy.dicom.address import validate_uid
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.native_pixels import swap_bytes
from twistedproxy.dicom.transfer_syntaxes import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN as DEFLATED
from twistedproxy.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN as PLAIN
from twistedproxy.origin.folder import attributes
from twistedproxy.origin.folder.json_model import element_json, element_of
from twistedproxy.origin.folder.records import JSONElement, PixelElement, Stamp, StoredFile

MAX_INFLATED = 256 * 1024 * 1024  # bytes; the syntax is meant for reports, not for slides
_MAX_META = 64 * 1024
_PIXEL_TAGS = (0x7FE00010, 0x7FE00008, 0x7FE00009)
_UNDEFINED = 0xFFFFFFFF
# A file may hold values that break the rules of their VR: they are shown as they are, without a warning each.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

_WORDS = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}  # bytes of one value
_FACT_TAGS = frozenset((0x00480105, 0x00282000))  # Optical Path Sequence, ICC Profile: whether there is a profile


class UnreadableFile(Exception):
    """A file is no DICOM file that can be served; `str()` says why."""


class FileChanged(Exception):
    """A file is not what it was when it was indexed."""


def open_plain(path: str) -> BinaryIO:
    """Open *path* for reading; never through a symlink."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")


def open_content(file: BinaryIO) -> BinaryIO:
    """*file*, or its content inflated if that is deflated, positioned at its start."""
    head = file.read(144)
    if len(head) < 144 or head[128:132] != b"DICM":
        raise UnreadableFile("it is no DICOM file (no DICM prefix)")
    # (0002,0000) must come first and says where the file meta information ends (PS3.10 section 7.1).
    size = struct.unpack("<I", head[140:144])[0] if head[132:140] == b"\x02\x00\x00\x00UL\x04\x00" else 0
    meta = file.read(min(size, _MAX_META))
    if DEFLATED.encode() not in meta:
        file.seek(0)
        return file
    # Same length, so that nothing else in the meta information has to change.
    plain = PLAIN.encode().ljust(len(DEFLATED), b"\x00")
    return io.BytesIO(head + meta.replace(DEFLATED.encode(), plain) + _inflate(file))


def _inflate(file: BinaryIO) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = inflater.decompress(file.read(MAX_INFLATED), MAX_INFLATED)
    except zlib.error as error:
        raise UnreadableFile(f"its deflated dataset is broken: {error}") from None
    if inflater.unconsumed_tail:
        raise UnreadableFile(f"its deflated dataset has more than {MAX_INFLATED} bytes")
    return content


def read_dataset(file: BinaryIO, tags: Optional[list[int]] = None) -> FileDataset:
    """The dataset in front of the pixel data, only *tags* of it if given; *file* then stands at the pixel data."""
    try:
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)  # type: ignore[arg-type]
    except Exception as error:  # pydicom raises anything on broken files
        raise UnreadableFile(f"{type(error).__name__}: {error}") from None


def read_full_header(record: StoredFile) -> FileDataset:
    """All attributes of an indexed file in front of its pixel data. Raises `FileChanged`, `OSError`, `UnreadableFile`."""
    with open_plain(record.path) as file:
        if Stamp.of(os.fstat(file.fileno())) != record.stamp:
            raise FileChanged(record.path)
        dataset = read_dataset(open_content(file))
    if not dataset.original_encoding[1]:
        _swap_values(dataset)
    return dataset


def _swap_values(dataset: Dataset) -> None:
    """Binary values of a big endian file as they go out: in little endian (PS3.18 sections 8.7.3 and F.2.7)."""
    for tag in list(dataset.keys()):
        element = element_of(dataset, tag)
        if element is None:
            continue
        if element.VR == "SQ":
            for item in element.value or ():
                _swap_values(item)
        elif isinstance(element.value, bytes):
            element.value = swap_bytes(element.value, _WORDS.get(str(element.VR).rpartition(" ")[2], 1))


def read_header(path: str, intern: dict[str, JSONElement]) -> StoredFile:
    """What the index keeps of the file at *path*. Raises `UnreadableFile`, `OSError`.

    *intern* keeps one copy of attributes that many files share (those of a study, a series).
    """
    with open_plain(path) as file:
        stamp = Stamp.of(os.fstat(file.fileno()))
        content = open_content(file)
        dataset = read_dataset(content, sorted(attributes.INDEXED | _FACT_TAGS))
        try:
            pixels = _pixel_element(content, dataset)
            return _record(path, stamp, dataset, pixels, DEFLATED if content is not file else None, intern)
        except UnreadableFile:
            raise
        except Exception as error:
            raise UnreadableFile(f"{type(error).__name__}: {error}") from None


def _record(
    path: str,
    stamp: Stamp,
    dataset: FileDataset,
    pixels: Optional[PixelElement],
    syntax: Optional[str],
    intern: dict[str, JSONElement],
) -> StoredFile:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not dataset.get(keyword):
            raise UnreadableFile(f"it has no {keyword}")
    syntax = syntax or str(dataset.file_meta.TransferSyntaxUID)
    return StoredFile(
        path=path,
        stamp=stamp,
        study=validate_uid(str(dataset.StudyInstanceUID)),
        series=validate_uid(str(dataset.SeriesInstanceUID)),
        sop=validate_uid(str(dataset.SOPInstanceUID)),
        sop_class=str(dataset.get("SOPClassUID", "")),
        transfer_syntax=validate_uid(syntax),
        facts=attrs.evolve(InstanceMetadata.from_dataset(dataset), transfer_syntax=syntax),
        attributes=dict(_attributes(dataset, intern)),
        pixels=pixels,
    )


def _attributes(dataset: FileDataset, intern: dict[str, JSONElement]) -> Any:
    for tag in sorted(dataset.keys()):
        if int(tag) not in attributes.INDEXED:
            continue
        element = element_of(dataset, tag)
        if element is not None and (found := element_json(element, "")) is not None:
            name = f"{int(tag):08X}"
            yield name, intern.setdefault(f"{name}{found}", found)


def _check_end(content: BinaryIO, position: int, end: int, order: str) -> None:
    """Refuse encapsulated pixel data that are cut off: a file that is being written, or that never was whole."""
    content.seek(max(position, end - 8))
    while content.read(4) != struct.pack(f"{order}HH", 0xFFFE, 0xE0DD):  # most files end with the delimiter
        if position + 8 > end:
            raise UnreadableFile("its pixel data are cut off")
        content.seek(position)
        head = content.read(8)
        if head[:4] == struct.pack(f"{order}HH", 0xFFFE, 0xE000):
            position += 8 + struct.unpack(f"{order}I", head[4:])[0]
        elif head[:4] != struct.pack(f"{order}HH", 0xFFFE, 0xE0DD):
            raise UnreadableFile("its pixel data hold something else than items")
        content.seek(position)


def _pixel_element(content: BinaryIO, dataset: FileDataset) -> Optional[PixelElement]:
    """The header of the element at which pydicom stopped (PS3.5 section 7.1), None where the file ended."""
    implicit, little = dataset.original_encoding
    order = "<" if little else ">"
    raw = content.read(12)
    if len(raw) < 12:
        return None
    group, number = struct.unpack(f"{order}HH", raw[:4])
    tag = group << 16 | number
    if tag not in _PIXEL_TAGS:
        return None
    length = struct.unpack(f"{order}I", raw[4:8] if implicit else raw[8:12])[0]
    start = content.tell() - (4 if implicit else 0)
    vr = "OW" if implicit else raw[4:6].decode("ascii", "replace")
    end = content.seek(0, os.SEEK_END)
    if length == _UNDEFINED:
        _check_end(content, start, end, order)
        return PixelElement(tag, vr, start, None, bool(little))
    if start + length > end:
        raise UnreadableFile(f"its pixel data should have {length} bytes and have {end - start}")
    return PixelElement(tag, vr, start, length, bool(little))
