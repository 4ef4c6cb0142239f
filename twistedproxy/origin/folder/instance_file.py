"""One DICOM file: its header, read with pydicom up to the pixel data, and what the index keeps of it. Blocking.

- Only DICOM Part 10 files (PS3.10 section 7.1) are taken: preamble and prefix. Folders hold anything, and pydicom raises
  anything on it.
- A file that ends too early is refused: it is being written, or was never whole. pydicom takes what there is of it.
- A deflated data set (PS3.5 section A.5) is inflated in memory, to `MAX_INFLATED` bytes and no further.
- What is kept is small, for there may be a hundred thousand files: what the files of a series have in common is kept
  once, the rest as text. Pixels and long attributes stay in the file.
"""

from __future__ import annotations

import functools
import io
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple, Optional, Union

import attrs
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileDataset
from pydicom.filereader import read_partial

from twistedproxy.dicom.metadata import FIELDS, InstanceMetadata
from twistedproxy.dicom.part10.dataset import PIXEL_TAGS, UNDEFINED_LENGTH
from twistedproxy.dicom.part10.pixels import swap_bytes
from twistedproxy.dicom.resource import validate_uid
from twistedproxy.dicom.transfer_syntaxes import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN as DEFLATED
from twistedproxy.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN as PLAIN
from twistedproxy.dicom.transfer_syntaxes import TransferSyntax, lookup
from twistedproxy.origin.folder.json_model import (
    INSTANCE_TAGS,
    SERIES_TAGS,
    STUDY_TAGS,
    dataset_json,
    dumps,
    element_of,
)

_OF_PROFILES = ("00480105", "00282000")  # Optical Path Sequence, ICC Profile: whether there is a profile
_READ = [int(tag, 16) for tag in {*STUDY_TAGS, *SERIES_TAGS, *INSTANCE_TAGS, *FIELDS, *_OF_PROFILES}]
MAX_INFLATED = 256 * 1024 * 1024  # bytes; the syntax is meant for reports, not for slides
_MAX_META = 64 * 1024
_WORDS = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}  # bytes of one value
# A file may hold values that break the rules of their VR: they are shown as they are, without a warning each.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

# An attribute in the DICOM JSON Model (PS3.18 annex F): {"vr": ..., "Value": [...]}. Shared between
# records, so never changed.
JSONElement = Mapping[str, Any]
Key = tuple[str, str, str]  # StudyInstanceUID, SeriesInstanceUID, SOPInstanceUID
ReadAt = Callable[[int, int], bytes]  # reads from an offset so many bytes; fewer only at the end


class UnreadableFile(Exception):
    """A file is no DICOM file that can be served, or its pixel data do not fit its header; `str()` gives the reason."""


class FileChanged(Exception):
    """A file is not what it was when it was indexed."""


class Stamp(NamedTuple):
    device: int
    inode: int
    size: int
    modified: int


"""Identifies one state of a file: device, inode, size in bytes, time of change in ns."""


def stamp_of(status: os.stat_result) -> Stamp:
    """The stamp of a file with that *status*."""
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class PixelElement(NamedTuple):
    """Where a file's pixel data lie.

    *tag* is (7FE0,0010), or (7FE0,0008)/(7FE0,0009) for floats; *start* is the byte after the element's header
    (in a deflated file: of the inflated content); *length* is in bytes, None for encapsulated pixel data (undefined length).
    """

    tag: int
    vr: str
    start: int
    length: Optional[int]
    little_endian: bool


shared_pixels = functools.lru_cache(maxsize=4096)(PixelElement)  # files of a series have the same


@attrs.frozen(eq=False)
class Common:
    """What files of a series have in common. *attributes*: of study and series, by tag as eight hexadecimal digits.
    *packed*: all of this as JSON."""

    study: str
    series: str
    sop_class: str
    transfer_syntax: str
    facts: InstanceMetadata
    attributes: Mapping[str, JSONElement]
    packed: bytes = attrs.field(repr=False)

    @classmethod
    @functools.lru_cache(maxsize=50_000)
    def unpack(cls, packed: bytes) -> Common:
        """Undo *packed*: the same for all files. Raises ValueError, TypeError, KeyError for anything else."""
        study, series, sop_class, syntax, facts, attributes = json.loads(packed)
        return cls(study, series, sop_class, syntax, InstanceMetadata(**facts), attributes, packed)


@attrs.frozen(eq=False)
class StoredFile:
    """One DICOM file as it was when its *stamp* was taken. *own*: the values of `INSTANCE_TAGS` as JSON."""

    path: str
    stamp: Stamp
    sop: str
    common: Common
    own: bytes = attrs.field(repr=False)
    pixels: Optional[PixelElement]

    @property
    def key(self) -> Key:
        """StudyInstanceUID, SeriesInstanceUID, SOPInstanceUID."""
        return self.common.study, self.common.series, self.sop

    @property
    def facts(self) -> InstanceMetadata:
        """What the proxy needs to know."""
        return self.common.facts

    @property
    def resource(self) -> str:
        """The DICOMweb resource (PS3.18 section 10.4), with a leading slash."""
        return "/studies/{}/series/{}/instances/{}".format(*self.key)

    @property
    def own_attributes(self) -> dict[str, JSONElement]:
        """Those of the instance that searches know, by tag as eight hexadecimal digits."""
        return {
            tag: {"vr": vr, "Value": value} if value else {"vr": vr}
            for (tag, vr), value in zip(_instance_elements(), json.loads(self.own))
            if value is not None
        }

    @property
    def syntax(self) -> TransferSyntax:
        """The transfer syntax; of an unknown one, what the file shows of it."""
        uid = self.common.transfer_syntax
        encapsulated = self.pixels is not None and self.pixels.length is None
        return lookup(uid) or TransferSyntax(uid, encapsulated=encapsulated)

    @property
    def frames(self) -> int:
        """How many frames can be asked for: all pictures of a video are one stream (PS3.5 sections 8.2.5 to 8.2.9)."""
        return self.facts.frames if self.syntax.frames_separable else 1


@attrs.frozen(eq=False)
class LeftOut:
    """A file that is not served, as it was then, and why."""

    stamp: Stamp
    reason: str = ""


Known = dict[str, Union[StoredFile, LeftOut, None]]
"""What is known of files, by path; None: there is none any more."""


@functools.cache
def _instance_elements() -> tuple[tuple[str, str], ...]:
    return tuple((tag, dictionary_VR(int(tag, 16))) for tag in INSTANCE_TAGS)


def open_plain(path: str) -> BinaryIO:
    """Open *path* for reading; never through a symlink."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")


def open_content(file: BinaryIO) -> BinaryIO:
    """*file*, or its content inflated if that is deflated, positioned at its start."""
    head = file.read(144)
    if head[128:132] != b"DICM":
        raise UnreadableFile("it is not a DICOM file (no DICM prefix)")
    # (0002,0000) must come first, and gives the end of the file meta information (PS3.10 section 7.1).
    size = int.from_bytes(head[140:], "little") if head[132:140] == b"\x02\x00\x00\x00UL\x04\x00" else 0
    meta = file.read(min(size, _MAX_META))
    if DEFLATED.encode() not in meta:
        file.seek(0)
        return file
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflater.decompress(file.read(MAX_INFLATED), MAX_INFLATED)
    if not inflater.eof:
        raise UnreadableFile(f"its deflated data set is cut off, or has more than {MAX_INFLATED} bytes")
    # Same length, so that nothing else in the meta information has to change.
    plain = PLAIN.encode().ljust(len(DEFLATED), b"\x00")
    return io.BytesIO(head + meta.replace(DEFLATED.encode(), plain) + content)


def reader(content: BinaryIO) -> ReadAt:
    """Reads from *content*, which nothing else uses meanwhile."""
    return lambda offset, size: content.read(size) if content.seek(offset) == offset else b""


def items(read_at: ReadAt, position: int, little_endian: bool) -> Iterator[tuple[int, int]]:
    """(first byte, byte after the last) of the value of each item (PS3.5 section A.4) up to the sequence delimiter.

    pydicom's `parse_fragments` takes pixel data that are cut off for whole, and needs 1.3 times as long.
    """
    unpack = struct.Struct("<HHI" if little_endian else ">HHI").unpack
    while len(header := read_at(position, 8)) == 8:
        group, element, length = unpack(header)
        if (group, element) == (0xFFFE, 0xE0DD):
            return
        if (group, element) != (0xFFFE, 0xE000):
            raise UnreadableFile("its pixel data contain something other than items")
        yield position + 8, position + 8 + length
        position += 8 + length
    raise UnreadableFile("its pixel data are cut off")


def read_dataset(content: BinaryIO, tags: Optional[list[int]] = None) -> tuple[FileDataset, PixelElement]:
    """The data set in front of the pixel data, only *tags* of it if given; and the element that ended it: the pixel data, or
    the last one."""
    last: tuple[int, Optional[str], int, int] = 0, "", 0, 0

    def at_pixels(tag: int, vr: Optional[str], length: int) -> bool:
        nonlocal last
        last = int(tag), vr, content.tell(), length
        return tag in PIXEL_TAGS

    try:
        dataset = read_partial(content, at_pixels, specific_tags=tags)  # type: ignore[arg-type]
    except Exception as error:  # pydicom raises anything on broken files
        raise UnreadableFile(f"{type(error).__name__}: {error}") from None
    tag, vr, start, length = last
    known = None if length == UNDEFINED_LENGTH else length
    return dataset, shared_pixels(tag, vr or "OW", start, known, bool(dataset.original_encoding[1]))


def read_full_header(record: StoredFile, tags: Optional[list[int]] = None) -> FileDataset:
    """All attributes of an indexed file in front of its pixel data, or only *tags*. Raises `FileChanged`, `OSError`,
    `UnreadableFile`."""
    with open_plain(record.path) as file:
        if stamp_of(os.fstat(file.fileno())) != record.stamp:
            raise FileChanged(record.path)
        dataset, _ = read_dataset(open_content(file), tags)
    if not dataset.original_encoding[1]:
        _swap_values(dataset)
    return dataset


def _swap_values(dataset: Dataset) -> None:
    """Binary values of a big endian file as they go out: in little endian (PS3.18 sections 8.7.3 and F.2.7)."""
    for tag in list(dataset.keys()):
        element = element_of(dataset, tag)
        if element is not None and element.VR == "SQ":
            for item in element.value or ():
                _swap_values(item)
        elif element is not None and isinstance(element.value, bytes):
            element.value = swap_bytes(element.value, _WORDS.get(str(element.VR).rpartition(" ")[2], 1))


def read_header(path: str) -> StoredFile:
    """What the index keeps of the file at *path*. Raises `UnreadableFile`, `OSError`, and anything else on broken files."""
    with open_plain(path) as file:
        stamp = stamp_of(os.fstat(file.fileno()))
        content = open_content(file)
        dataset, last = read_dataset(content, _READ)
        _check_whole(content, last)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not dataset.get(keyword):
            raise UnreadableFile(f"it has no {keyword}")
    study, series, sop, syntax = (
        validate_uid(str(uid))
        for uid in (
            dataset.StudyInstanceUID,
            dataset.SeriesInstanceUID,
            dataset.SOPInstanceUID,
            dataset.file_meta.TransferSyntaxUID if content is file else DEFLATED,
        )
    )
    facts = attrs.evolve(InstanceMetadata.from_dataset(dataset), transfer_syntax=syntax)
    found = dataset_json(dataset, "")
    shared = {tag: element for tag, element in found.items() if tag in STUDY_TAGS + SERIES_TAGS}
    packed = dumps((study, series, str(dataset.get("SOPClassUID", "")), syntax, attrs.asdict(facts), shared))
    own = dumps([found[tag].get("Value", []) if tag in found else None for tag in INSTANCE_TAGS])
    return StoredFile(path, stamp, sop, Common.unpack(packed), own, last if last.tag in PIXEL_TAGS else None)


def _check_whole(content: BinaryIO, last: PixelElement) -> None:
    """Refuse a file that ends within its *last* element or within the header of the next."""
    end = content.seek(0, os.SEEK_END)
    read_at = reader(content)
    if last.length is None:
        delimiter = struct.pack("<HH" if last.little_endian else ">HH", 0xFFFE, 0xE0DD)
        if last.tag in PIXEL_TAGS and read_at(max(last.start, end - 8), 4) != delimiter:  # most files end with it
            for _ in items(read_at, last.start, last.little_endian):
                pass
        return
    rest = end - last.start - last.length
    if rest < 0:
        raise UnreadableFile(f"({last.tag:08X}) should have {last.length} bytes and has {end - last.start}")
    if last.tag not in PIXEL_TAGS and rest < 8 and read_at(end - rest, rest).strip(b"\0"):
        raise UnreadableFile("it is cut off")
