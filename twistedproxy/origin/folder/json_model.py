"""Data sets in the DICOM JSON Model (PS3.18 annex F), long binary values replaced by a reference.

- A reference names its value by its place, ``…/bulkdata/TAG`` or, inside a sequence, ``…/bulkdata/TAG/ITEM/TAG``
  with items counted from 1; `find_value` reads such a place.
- A value that cannot be expressed (a broken one) is left out: one bad attribute must not hide an instance. pydicom's
  `Dataset.to_json_dict` drops the whole sequence around it, and does not tell its handler of bulk data where an element is:
  it converts single elements here.
- What searches know without reading a file are attributes by level (PS3.18 tables 10.6.1-5, 10.6.3-3 to -5), whose tags are
  eight hexadecimal digits.
- Text is UTF-8, and Specific Character Set is set to that (PS3.18 section F.2.2).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Optional

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset


def _tags(keywords: str) -> tuple[str, ...]:
    return tuple(f"{tag_for_keyword(keyword):08X}" for keyword in keywords.split())


# What the index takes from files.
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

# What an origin adds of its own.
RETRIEVE_URL, AVAILABILITY = _tags("RetrieveURL InstanceAvailability")
STUDY_COUNTS = _tags("ModalitiesInStudy SOPClassesInStudy NumberOfStudyRelatedSeries NumberOfStudyRelatedInstances")
(SERIES_COUNT,) = _tags("NumberOfSeriesRelatedInstances")
AVAILABLE_TRANSFER_SYNTAX = "00083002"

LEVELS = ("studies", "series", "instances")
UIDS = _tags("StudyInstanceUID SeriesInstanceUID SOPInstanceUID")
SEARCHED = (
    frozenset(STUDY_TAGS + STUDY_COUNTS),
    frozenset((*SERIES_TAGS, SERIES_COUNT)),
    frozenset((*INSTANCE_TAGS, AVAILABLE_TRANSFER_SYNTAX)),
)
"""By level: what results show, and what searches match by."""
SEARCHED_ANYWHERE = frozenset().union(*SEARCHED)

MAX_INLINE = 1026
"""Bytes of a binary value; longer ones (ICC profiles, lookup tables) are requested by those that need them."""
_MAX_INLINE_BASE64 = MAX_INLINE // 3 * 4
_CHARACTER_SET = 0x00080005
_UTF8 = {"vr": "CS", "Value": ["ISO_IR 192"]}

# Offset tables and pixels of the instance are no metadata (of an icon they are); group lengths are retired (PS3.5 section 7.2).
_LEFT_OUT = frozenset((0x7FE00001, 0x7FE00002, 0x7FE00003, 0x7FE00008, 0x7FE00009, 0x7FE00010))


def element_json(element: DataElement, uri: str) -> Optional[dict[str, Any]]:
    """One attribute; *uri* is its own bulk data reference. None where its value cannot be expressed."""
    if element.tag == _CHARACTER_SET:
        return dict(_UTF8)
    try:
        if element.VR == "SQ":
            items = [dataset_json(item, f"{uri}/{number}") for number, item in enumerate(element.value or (), 1)]
            return {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
        found = element.to_json_dict(lambda _: uri, _MAX_INLINE_BASE64)
    except Exception:  # pydicom raises anything from AttributeError to OverflowError on broken values
        return None
    if any(isinstance(value, float) and not math.isfinite(value) for value in found.get("Value", ())):
        return None
    return {**found, "vr": str(element.VR).rpartition(" or ")[2]}


def dataset_json(dataset: Dataset, uri: str) -> dict[str, Any]:
    """All attributes of *dataset*, by tag as eight hexadecimal digits; *uri* is the reference to the data set itself."""
    found = ((name, element_json(element, f"{uri}/{name}")) for name, element in _elements(dataset))
    return {name: value for name, value in found if value is not None}


def _elements(dataset: Dataset) -> Iterator[tuple[str, DataElement]]:
    for tag in sorted(dataset.keys()):
        if tag.element and (element := element_of(dataset, tag)) is not None:
            yield f"{int(tag):08X}", element


def element_of(dataset: Dataset, tag: Any) -> Optional[DataElement]:
    """pydicom converts a raw value when it is first looked at: None for one that cannot be converted."""
    try:
        return dataset[tag]
    except Exception:  # anything, as above
        return None


def json_chunks(dataset: Dataset, uri: str, extra: dict[str, Any]) -> Iterator[bytes]:
    """The JSON text of *dataset* in pieces: a sequence of 500,000 items is never one string.

    *extra*: attributes by tag that are added, or that replace the data set's own. Tags ascend (PS3.18 section F.2.2).
    """
    found = {
        name: element if element.VR == "SQ" and element.value else element_json(element, f"{uri}/{name}")
        for name, element in _elements(dataset)
        if element.tag not in _LEFT_OUT
    }
    members = sorted((found | extra).items())
    return joined((_member(name, value, f"{uri}/{name}") for name, value in members if value is not None), b"{}")


def _member(name: str, value: Any, uri: str) -> Iterator[bytes]:
    yield b'"%s":' % name.encode("ascii")
    if isinstance(value, DataElement):
        yield b'{"vr":"SQ","Value":'
        yield from joined((dumps(dataset_json(item, f"{uri}/{n}")),) for n, item in enumerate(value.value, 1))
        yield b"}"
    else:
        yield dumps(value)


def joined(values: Iterable[Iterable[bytes]], brackets: bytes = b"[]") -> Iterator[bytes]:
    """A JSON array (or object) of *values*, each a text in pieces."""
    separator = brackets[:1]
    for value in values:
        yield separator
        yield from value
        separator = b","
    yield brackets if separator != b"," else brackets[1:]


def dumps(value: Any) -> bytes:
    """*value* as compact JSON in UTF-8; lone surrogates, which UTF-8 lacks, as question marks."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def find_value(dataset: Dataset, place: Sequence[str]) -> Optional[bytes]:
    """The binary value that a reference names, None where there is none; *place* is what follows ``bulkdata/``."""
    try:
        for tag, number in zip(place[::2], place[1::2]):
            if int(number) < 1:
                return None
            dataset = dataset[int(tag, 16)].value[int(number) - 1]
        value = dataset[int(place[-1], 16)].value or b""
    except Exception:  # anything, as above
        return None
    return value if isinstance(value, bytes) else None  # bytes() of a number would be as many zeros
