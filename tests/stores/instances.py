"""What a simulated store holds: instances, cut open once."""

from __future__ import annotations

import fnmatch
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Optional

import attrs
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.encaps import generate_frames

BULK_THRESHOLD = 1024  # bytes; longer binary values stand in the metadata as a BulkDataURI
BULK_BASE = "https://bulk.invalid"  # stands for the instance's URL in `metadata`; replaced when it is sent
MEDIA_TYPES = {
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.4.110": "image/jxl",
    "1.2.840.10008.1.2.4.112": "image/jxl",
    "1.2.840.10008.1.2.4.201": "image/jphc",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}
STUDY_TAGS = (
    "00080005 00080020 00080030 00080050 00080090 00081030 00100010 00100020 00100030 00100040 0020000D 00200010"
)
SERIES_TAGS = "00080060 0008103E 0020000E 00200011"
INSTANCE_TAGS = "00080016 00080018 00200013 00280008 00280010 00280011 00280100"

Json = dict[str, Any]


@attrs.frozen(eq=False)
class StoredInstance:
    """One instance. *metadata* is its DICOM JSON (PS3.18 annex F) without pixels; *frames* its frames as stored;
    *part10* the file; *bulk* the long binary values by tag; *native_length* the bytes of one frame when decompressed."""

    study: str
    series: str
    sop: str
    sop_class: str
    transfer_syntax: str
    metadata: Json = attrs.field(repr=False)
    frames: Sequence[bytes] = attrs.field(repr=False)
    part10: bytes = attrs.field(repr=False)
    bulk: dict[str, bytes] = attrs.field(repr=False, factory=dict)
    native_length: int = 0

    @property
    def resource(self) -> str:
        """The DICOMweb resource (PS3.18 section 10.4), no leading slash."""
        return f"studies/{self.study}/series/{self.series}/instances/{self.sop}"

    @property
    def media_type(self) -> str:
        """The type of its frames as stored (PS3.18 section 8.7.3)."""
        return MEDIA_TYPES.get(self.transfer_syntax, "application/octet-stream")

    def decompressed(self, number: int) -> bytes:
        """What a store would send that decompressed frame *number*: of the right length, and plainly not as stored."""
        pattern = b"decompressed %08d " % number
        return (pattern * (self.native_length // len(pattern) + 1))[: self.native_length]

    def metadata_at(self, url: str) -> Json:
        """The metadata with URLs that start with *url*, that of this instance."""
        text = json.dumps(self.metadata).replace(BULK_BASE, url)
        return {**json.loads(text), "00081190": {"vr": "UR", "Value": [url]}}


def from_file(path: Path | str) -> StoredInstance:
    """Read a DICOM file."""
    return from_part10(Path(path).read_bytes())


def from_part10(part10: bytes) -> StoredInstance:
    """Cut a DICOM file open. Raises what pydicom raises on bytes that are none."""
    data = pydicom.dcmread(io.BytesIO(part10))
    bulk: dict[str, bytes] = {}
    syntax = str(data.file_meta.TransferSyntaxUID)
    samples, bits = int(data.get("SamplesPerPixel", 1)), int(data.get("BitsAllocated", 8))
    size = int(data.get("Rows", 0)) * int(data.get("Columns", 0)) * samples * bits // 8
    frames = _frames(data, size) if "PixelData" in data else []
    for keyword in ("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "DataSetTrailingPadding"):
        if keyword in data:
            delattr(data, keyword)

    def by_reference(element: DataElement) -> str:
        name = f"{int(element.tag):08X}"
        bulk[name] = element.value
        return f"{BULK_BASE}/bulkdata/{name}"

    metadata = data.to_json_dict(bulk_data_threshold=BULK_THRESHOLD, bulk_data_element_handler=by_reference)
    if frames:
        metadata["7FE00010"] = {"vr": "OW" if bits == 16 else "OB", "BulkDataURI": f"{BULK_BASE}/bulkdata/7FE00010"}
    return StoredInstance(
        str(data.StudyInstanceUID),
        str(data.SeriesInstanceUID),
        str(data.SOPInstanceUID),
        str(data.SOPClassUID),
        syntax,
        metadata,
        frames,
        part10,
        bulk,
        size,
    )


def _frames(data: pydicom.Dataset, size: int) -> list[bytes]:
    count = int(data.get("NumberOfFrames", 1))
    if not data.file_meta.TransferSyntaxUID.is_encapsulated:
        return [data.PixelData[n * size : (n + 1) * size] for n in range(count)]
    tables = (data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths) if data.get("ExtendedOffsetTable") else None
    return list(generate_frames(data.PixelData, number_of_frames=count, extended_offsets=tables))


def search(
    instances: Iterable[StoredInstance], level: str, arguments: Sequence[tuple[str, str]], url: str
) -> list[Json]:
    """What a search (PS3.18 section 10.6) for *level* ("studies", "series", "instances") finds. *url*: the root's."""
    found: dict[str, Json] = {}
    for instance in instances:
        if all(_matches(instance.metadata, name, value) for name, value in arguments):
            key, answer = _summary(instance, level, url)
            if level == "instances" or key not in found:
                found[key] = answer
    given = dict(arguments)
    start = int(given.get("offset", 0))
    return list(found.values())[start : start + int(given.get("limit", 1000))]


def _summary(instance: StoredInstance, level: str, url: str) -> tuple[str, Json]:
    tags, key, path = STUDY_TAGS, instance.study, f"studies/{instance.study}"
    if level != "studies":
        tags, key, path = f"{tags} {SERIES_TAGS}", instance.series, f"{path}/series/{instance.series}"
    if level == "instances":
        tags, key, path = f"{tags} {INSTANCE_TAGS}", instance.sop, instance.resource
    answer = {tag: instance.metadata[tag] for tag in tags.split() if tag in instance.metadata}
    return key, {**answer, "00081190": {"vr": "UR", "Value": [f"{url}/{path}"]}}


def _matches(metadata: Json, name: str, wanted: str) -> bool:
    if name in ("limit", "offset", "includefield", "fuzzymatching", "access_token"):
        return True
    number = tag_for_keyword(name)
    element: Optional[Json] = metadata.get(name.upper() if number is None else f"{number:08X}")
    values = element.get("Value", []) if element else []
    texts = [value.get("Alphabetic", "") if isinstance(value, dict) else str(value) for value in values]
    patterns = wanted.split(",") if name.upper().endswith(("UID", "0020000D", "0020000E", "00080018")) else [wanted]
    return any(fnmatch.fnmatchcase(text, pattern) for text in texts for pattern in patterns)
