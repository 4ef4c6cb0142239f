"""One DICOM file: its header, read with pydicom up to the pixel data, and what the index keeps of it. Blocking.

- Only DICOM Part 10 files (PS3.10 section 7.1) are taken: preamble and prefix.
- Whatever pydicom raises becomes `UnreadableFile`: folders hold anything.
- A deflated dataset (PS3.5 section A.5) is inflated in memory, to `MAX_INFLATED` bytes and no further.
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
from collections.abc import Mapping
from typing import Any, BinaryIO, Optional

import attrs
import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset, FileDataset

from twistedproxy.dicom.metadata import FIELDS, InstanceMetadata
from twistedproxy.dicom.native_pixels import swap_bytes, swapped_width
from twistedproxy.dicom.part10.buffer import BadPart10
from twistedproxy.dicom.part10.dataset import PIXEL_TAGS, UNDEFINED_LENGTH, DataSetReader, FileMetaReader
from twistedproxy.dicom.resource import validate_uid
from twistedproxy.dicom.transfer_syntaxes import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN as DEFLATED
from twistedproxy.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN as PLAIN
from twistedproxy.dicom.transfer_syntaxes import lookup
from twistedproxy.origin.folder.json_model import dumps, element_json, element_of


def _tags(keywords: str) -> tuple[str, ...]:
    return tuple(f"{tag_for_keyword(keyword):08X}" for keyword in keywords.split())


STUDY_TAGS = _tags(
    "StudyDate StudyTime AccessionNumber ReferringPhysicianName TimezoneOffsetFromUTC InstitutionName"
    " StudyDescription PatientName PatientID IssuerOfPatientID PatientBirthDate PatientSex PatientAge StudyInstanceUID StudyID"
)
SERIES_TAGS = _tags(
    "SeriesDate SeriesTime Modality Manufacturer StationName SeriesDescription ManufacturerModelName BodyPartExamined"
    " ProtocolName SeriesInstanceUID SeriesNumber FrameOfReferenceUID Laterality PerformedProcedureStepStartDate"
    " PerformedProcedureStepStartTime RequestAttributesSequence ContainerIdentifier"
)
INSTANCE_TAGS = _tags(
    "ImageType SOPClassUID SOPInstanceUID AcquisitionDate AcquisitionTime AcquisitionDateTime ContentDate ContentTime"
    " InstanceNumber NumberOfFrames Rows Columns SamplesPerPixel PhotometricInterpretation PlanarConfiguration BitsAllocated"
    " BitsStored HighBit PixelRepresentation TotalPixelMatrixColumns TotalPixelMatrixRows TotalPixelMatrixFocalPlanes"
    " NumberOfOpticalPaths DimensionOrganizationType VolumetricProperties LossyImageCompression ContentLabel"
)

# What an origin adds of its own (PS3.18 tables 10.6.3-3, -4, -5).
RETRIEVE_URL = "00081190"
AVAILABILITY = "00080056"
AVAILABLE_TRANSFER_SYNTAX = "00083002"
MODALITIES_IN_STUDY = "00080061"
SOP_CLASSES_IN_STUDY = "00080062"
STUDY_SERIES_COUNT = "00201206"
STUDY_INSTANCE_COUNT = "00201208"
SERIES_INSTANCE_COUNT = "00201209"

STUDY_LEVEL = frozenset(STUDY_TAGS) | {
    MODALITIES_IN_STUDY,
    SOP_CLASSES_IN_STUDY,
    STUDY_SERIES_COUNT,
    STUDY_INSTANCE_COUNT,
}
SERIES_LEVEL = frozenset(SERIES_TAGS) | {SERIES_INSTANCE_COUNT}
INSTANCE_LEVEL = frozenset(INSTANCE_TAGS) | {AVAILABLE_TRANSFER_SYNTAX}
ALL_LEVELS = STUDY_LEVEL | SERIES_LEVEL | INSTANCE_LEVEL

INDEXED = frozenset(int(tag, 16) for tag in STUDY_TAGS + SERIES_TAGS + INSTANCE_TAGS)
_INSTANCE = frozenset(INSTANCE_TAGS)

MAX_INFLATED = 256 * 1024 * 1024  # bytes; the syntax is meant for reports, not for slides
_MAX_META = 64 * 1024
_READ_BYTES = 512 * 1024
# A file may hold values that break the rules of their VR: they are shown as they are, without a warning each.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

_WORDS = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}  # bytes of one value
_FACT_TAGS = frozenset(int(tag, 16) for tag in FIELDS) | {0x00480105, 0x00282000}
"""What `InstanceMetadata` is made of; Optical Path Sequence, ICC Profile: whether there is a profile."""

# An attribute in the DICOM JSON Model (PS3.18 annex F): {"vr": ..., "Value": [...]}. Shared between
# records, so never changed.
JSONElement = Mapping[str, Any]


@attrs.frozen
class Stamp:
    """What tells one state of a file from another: device, inode, size in bytes, time of change in ns."""

    device: int
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """The stamp of a file with that *status*."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@attrs.frozen
class PixelElement:
    """Where a file's pixel data lie.

    *tag* is (7FE0,0010), or (7FE0,0008)/(7FE0,0009) for floats; *start* is the byte after the element's header
    (in a deflated file: of the inflated content); *length* is in bytes, None for encapsulated pixel data (undefined length).
    """

    tag: int
    vr: str
    start: int
    length: Optional[int]
    little_endian: bool


_shared_element = functools.lru_cache(maxsize=4096)(PixelElement)  # files of a series have the same


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
    def unpack(cls, packed: bytes) -> Common:
        """Undo *packed*. Raises ValueError, TypeError, KeyError for anything else."""
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
    def study(self) -> str:
        """StudyInstanceUID."""
        return self.common.study

    @property
    def series(self) -> str:
        """SeriesInstanceUID."""
        return self.common.series

    @property
    def sop_class(self) -> str:
        """SOPClassUID."""
        return self.common.sop_class

    @property
    def transfer_syntax(self) -> str:
        """The file's own."""
        return self.common.transfer_syntax

    @property
    def facts(self) -> InstanceMetadata:
        """What the proxy needs to know."""
        return self.common.facts

    @property
    def own_attributes(self) -> dict[str, JSONElement]:
        """Those of the instance that searches know, by tag as eight hexadecimal digits."""
        return {
            tag: {"vr": vr, "Value": value} if value else {"vr": vr}
            for (tag, vr), value in zip(_instance_elements(), json.loads(self.own))
            if value is not None
        }

    @property
    def key(self) -> tuple[str, str, str]:
        """StudyInstanceUID, SeriesInstanceUID, SOPInstanceUID."""
        return self.study, self.series, self.sop

    @property
    def resource(self) -> str:
        """The DICOMweb resource (PS3.18 section 10.4), with a leading slash."""
        return f"/studies/{self.study}/series/{self.series}/instances/{self.sop}"

    @property
    def frame_syntax(self) -> str:
        """The UID that labels a single frame."""
        known = lookup(self.transfer_syntax)
        return known.frame_uid if known else self.transfer_syntax

    @property
    def frames(self) -> int:
        """How many frames can be asked for: all pictures of a video are one stream (PS3.5 sections 8.2.5 to 8.2.9)."""
        known = lookup(self.transfer_syntax)
        return 1 if known is not None and not known.frames_separable else self.facts.frames

    @property
    def swapped(self) -> int:
        """Of how many bytes the words are that have to be swapped for little endian; 1: none."""
        if self.pixels is None or self.pixels.little_endian:
            return 1
        return swapped_width(self.pixels.vr, self.facts.bits_allocated)

    @property
    def deflated(self) -> bool:
        """Whether all behind the file meta information is compressed (PS3.5 section A.5)."""
        known = lookup(self.transfer_syntax)
        return known is not None and known.deflated


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
    if not inflater.eof and not inflater.unconsumed_tail:
        raise UnreadableFile("its deflated dataset is cut off")
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


def read_header(path: str, intern: dict[bytes, Common]) -> StoredFile:
    """What the index keeps of the file at *path*. Raises `UnreadableFile`, `OSError`.

    *intern* keeps one copy of what many files have in common.
    """
    with open_plain(path) as file:
        stamp = Stamp.of(os.fstat(file.fileno()))
        try:
            content = open_content(file)
            dataset = read_dataset(content, sorted(INDEXED | _FACT_TAGS))
            pixels = _pixel_element(content, dataset)
            if pixels is None:
                _check_whole(content, str(dataset.file_meta.TransferSyntaxUID))
            return _record(path, stamp, dataset, pixels, DEFLATED if content is not file else None, intern)
        except (UnreadableFile, OSError):
            raise
        except Exception as error:
            raise UnreadableFile(f"{type(error).__name__}: {error}") from None


def _record(
    path: str,
    stamp: Stamp,
    dataset: FileDataset,
    pixels: Optional[PixelElement],
    syntax: Optional[str],
    intern: dict[bytes, Common],
) -> StoredFile:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not dataset.get(keyword):
            raise UnreadableFile(f"it has no {keyword}")
    study, series, sop = (
        validate_uid(str(dataset[keyword].value))
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    syntax = validate_uid(syntax or str(dataset.file_meta.TransferSyntaxUID))
    facts = attrs.evolve(InstanceMetadata.from_dataset(dataset), transfer_syntax=syntax)
    found = dict(_attributes(dataset))
    shared = {tag: element for tag, element in found.items() if tag not in _INSTANCE}
    stated = (study, series, str(dataset.get("SOPClassUID", "")), syntax, attrs.asdict(facts), shared)
    packed = dumps(stated)
    common = intern.get(packed)
    if common is None:
        common = intern[packed] = Common.unpack(packed)
    own = [found[tag].get("Value", []) if tag in found else None for tag in INSTANCE_TAGS]
    return StoredFile(path, stamp, sop, common, dumps(own), pixels)


@functools.cache
def _instance_elements() -> tuple[tuple[str, str], ...]:
    return tuple((tag, dictionary_VR(int(tag, 16))) for tag in INSTANCE_TAGS)


def _attributes(dataset: FileDataset) -> Any:
    for tag in sorted(dataset.keys()):
        if int(tag) not in INDEXED:
            continue
        element = element_of(dataset, tag)
        if element is not None and (found := element_json(element, "")) is not None:
            yield f"{int(tag):08X}", found


def _check_whole(content: BinaryIO, transfer_syntax: str) -> None:
    """Refuse a file without pixel data that ends within an element, as one that is being written: pydicom takes what
    there is of it."""
    syntax = lookup(transfer_syntax)
    if syntax is None:
        return
    content.seek(0)
    meta = FileMetaReader()
    reader = DataSetReader(syntax.implicit_vr, syntax.big_endian)
    try:
        begun = False
        while chunk := content.read(_READ_BYTES):
            rest = reader.feed(chunk) if begun else meta.feed(chunk)
            if not begun and rest is not None:
                begun = True
                rest = reader.feed(rest)
            if begun and rest is not None:
                return  # there is pixel data after all
        whole = begun and reader.is_whole
    except BadPart10:
        return  # that reader is stricter than pydicom
    if not whole:
        raise UnreadableFile("it is cut off")


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
    if tag not in PIXEL_TAGS:
        return None
    length = struct.unpack(f"{order}I", raw[4:8] if implicit else raw[8:12])[0]
    start = content.tell() - (4 if implicit else 0)
    vr = "OW" if implicit else raw[4:6].decode("ascii", "replace")
    end = content.seek(0, os.SEEK_END)
    if length == UNDEFINED_LENGTH:
        _check_end(content, start, end, order)
        return _shared_element(tag, vr, start, None, bool(little))
    if start + length > end:
        raise UnreadableFile(f"its pixel data should have {length} bytes and have {end - start}")
    return _shared_element(tag, vr, start, length, bool(little))
