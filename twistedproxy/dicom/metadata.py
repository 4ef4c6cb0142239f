"""What the proxy needs to know of an instance, read from its DICOM JSON metadata (PS3.18 annex F).

Rules that this file keeps:

- The JSON is read as it comes and dropped: 100 MB of per-frame functional groups leave nothing behind.
- What is missing has a default; what is there and makes no sense is `BadMetadata`, never a guess, if frames depend on it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Optional, get_args, get_type_hints

import attrs

from twistedproxy.dicom.json_events import CLOSE, OPEN, BadMetadata, Events, MetadataEvents, keep_values

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MAX_INTEGER = 2**53
"""Larger than any count or size in DICOM, and still exact in JSON numbers."""
_SHARED_CHROMINANCE = {"YBR_FULL_422": 2, "YBR_PARTIAL_422": 2, "YBR_PARTIAL_420": 1.5}
"""Samples a pixel of native data whose pixels share them (PS3.3 section C.7.6.3.1.2)."""
# Video Endoscopic, Microscopic and Photographic Image Storage (PS3.4 table B.5-1). YBR_PARTIAL_420 is for MPEG alone.
_VIDEO_CLASSES = frozenset(f"1.2.840.10008.5.1.4.1.1.77.1.{kind}.1" for kind in (1, 2, 4))
MAX_TEXT_LENGTH = 256
"""Characters of a text that is kept: the longest are UIDs, of 64 (PS3.5 section 6.2)."""


@attrs.frozen
class InstanceMetadata:
    """Facts of one instance. Sizes in pixels; None where the metadata does not say.

    *total_rows*, *total_columns*: TotalPixelMatrixRows/Columns (0048,0007), (0048,0006).
    *organization*: DimensionOrganizationType (0020,9311).
    *transfer_syntax*: (0002,0010) or (0008,3002). Focal planes and optical paths repeat the grid: see *frames*.
    *concatenation_part*, *frame_offset*: InConcatenationNumber (0020,9162) and ConcatenationFrameOffsetNumber (0020,9228):
    of a concatenation, frame n of this instance is frame n + *frame_offset* (PS3.3 section C.7.6.16.1).
    *created*: InstanceCreationDate and -Time (0008,0012), (0008,0013), ContentDate and -Time (0008,0023), (0008,0033).
    """

    frames: int
    rows: int = 0
    columns: int = 0
    total_rows: Optional[int] = None
    total_columns: Optional[int] = None
    organization: Optional[str] = None
    concatenation_part: int = 1
    frame_offset: int = 0
    samples_per_pixel: int = 1
    bits_allocated: int = 8
    bits_stored: int = 8
    high_bit: int = 7
    pixel_representation: int = 0
    planar_configuration: int = 0
    photometric_interpretation: str = ""
    transfer_syntax: Optional[str] = None
    sop_class: str = ""
    has_icc_profile: bool = False
    created: str = ""

    def may_be_of_same(self, other: InstanceMetadata) -> bool:
        """Whether *other* may be read from the same data. What either does not say is not compared: stores leave out, for some
        callers, when an instance was made, and not all know the transfer syntax."""
        unsaid = {name: getattr(other, name) for name in ("transfer_syntax", "created") if not getattr(self, name)}
        unsaid.update(
            {name: getattr(self, name) for name in ("transfer_syntax", "created") if not getattr(other, name)}
        )
        return attrs.evolve(self, **unsaid) == attrs.evolve(other, **unsaid)

    @property
    def is_tiled(self) -> bool:
        """Whether the frames tile a total pixel matrix, fully or sparsely."""
        return bool(self.rows and self.columns and self.total_rows and self.total_columns)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of frames that cover one total pixel matrix (PS3.3 section C.7.6.17.3); one row of all
        frames where there is none."""
        if not self.is_tiled:
            return 1, self.frames
        assert self.total_rows is not None and self.total_columns is not None
        return -(-self.total_rows // self.rows), -(-self.total_columns // self.columns)

    @property
    def pixel_bits(self) -> int:
        """Bits of one native frame with all samples of each pixel; 0 where its size is not known."""
        return self.rows * self.columns * self.samples_per_pixel * self.bits_allocated

    @property
    def frame_bits(self) -> int:
        """Bits of one native frame as its attributes say; 0 where its size is not known.

        Frames of 1-bit samples follow each other without padding (PS3.5 section 8.1.1).
        """
        shared = _SHARED_CHROMINANCE.get(self.photometric_interpretation, 3) if self.samples_per_pixel == 3 else 3
        return int(self.pixel_bits * shared / 3)

    @property
    def frame_length(self) -> int | None:
        """Bytes of one native frame; None where frames do not end at a byte or the size of a frame is not known."""
        bits = self.frame_bits
        return None if not bits or self.bits_allocated % 8 else bits // 8

    @property
    def has_pictures(self) -> bool:
        """Whether its frames are pictures, as far as the metadata show: it has pixels, and is not a video of a store that does
        not state its transfer syntax. "Frame 1" of a video may be all of it (PS3.18 section 8.7.3.3.2)."""
        video = self.sop_class in _VIDEO_CLASSES or self.photometric_interpretation == "YBR_PARTIAL_420"
        return bool(self.rows and self.columns) and not (video and self.transfer_syntax is None)

    @property
    def native_lengths(self) -> frozenset[int]:
        """The bytes that one native frame may have as stores send it; empty where the size of a frame is not known.

        With a pad byte to an even length. Data that claim shared chrominance often have it for each pixel. Of frames
        that do not end at a byte some stores send the bytes that hold them, others just as many as they fill.
        """
        lengths: set[int] = set()
        for bits in {self.frame_bits, self.pixel_bits} - {0}:
            least = -(-bits // 8)
            lengths |= {least, least + least % 2}
            if bits % 8:
                lengths |= {least + 1, least + 2 - least % 2}
        return frozenset(lengths)

    def to_bytes(self) -> bytes:
        """A compact form for `from_bytes`: about 500 bytes."""
        return json.dumps(attrs.asdict(self), separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> InstanceMetadata:
        """Undo `to_bytes`. Raises `BadMetadata` for anything else, of another version too."""
        try:
            values = json.loads(data)
        except ValueError as error:
            raise BadMetadata("cached metadata are malformed") from error
        return cls.of(values)

    @classmethod
    def of(cls, values: Any) -> InstanceMetadata:
        """The facts that these *values* are, by field. Raises `BadMetadata` where they are no such."""
        if not isinstance(values, dict) or values.keys() != FIELD_TYPES.keys():
            raise BadMetadata("cached metadata are of another version: their fields differ")
        if not all(type(value) in FIELD_TYPES[name] for name, value in values.items()):
            raise BadMetadata("cached metadata are of another version: a field's type differs")
        return cls(**values)

    @classmethod
    def from_dataset(cls, dataset: Dataset) -> InstanceMetadata:
        """The same facts of a pydicom dataset, with or without its pixels. Raises `BadMetadata`."""
        values: dict[str, Any] = {}
        for source in (dataset, getattr(dataset, "file_meta", None) or {}):
            for key in list(source.keys()):
                tag = f"{int(key):08X}"
                if tag in _TAGS:
                    element = source[key]
                    if element.VM > 0:
                        values[tag] = element.value if element.VM == 1 else element.value[0]
        paths = dataset.get("OpticalPathSequence") or ()
        return from_values(values, "ICCProfile" in dataset or any("ICCProfile" in path for path in paths))


FIELD_TYPES: dict[str, tuple[type, ...]] = {
    name: get_args(kind) or (kind,) for name, kind in get_type_hints(InstanceMetadata).items()
}

FIELDS = {
    "00080016": "sop_class",
    "00280002": "samples_per_pixel",
    "00280004": "photometric_interpretation",
    "00280006": "planar_configuration",
    "00280008": "frames",
    "00280010": "rows",
    "00280011": "columns",
    "00280100": "bits_allocated",
    "00280101": "bits_stored",
    "00280102": "high_bit",
    "00280103": "pixel_representation",
    "00209162": "concatenation_part",
    "00209228": "frame_offset",
    "00209311": "organization",
    "00480006": "total_columns",
    "00480007": "total_rows",
}
TRANSFER_SYNTAX_TAGS = ("00020010", "00083002")  # the first one with a value wins
CREATION_TAGS = ("00080012", "00080013", "00080023", "00080033")
_TAGS = frozenset((*FIELDS, *TRANSFER_SYNTAX_TAGS, *CREATION_TAGS))
_FOR_PICTURES_ONLY = frozenset(("00280006", "00280101", "00280102", "00280103"))
"""What frames do not depend on: what makes no sense counts as missing."""
_OPTICAL_PATHS = "00480105"
_ICC_PROFILE = "00282000"
_ELEMENT_VALUES = frozenset(("Value", "InlineBinary", "BulkDataURI"))


def from_values(values: Mapping[str, Any], has_icc_profile: bool) -> InstanceMetadata:
    """Make facts of *values*: the first value of elements by tag (eight hexadecimal digits), as JSON or pydicom
    gives it; tags of `FIELDS`, `TRANSFER_SYNTAX_TAGS` and `CREATION_TAGS` only. Raises `BadMetadata`."""
    facts: dict[str, Any] = {"frames": 1, "has_icc_profile": has_icc_profile}
    for tag, value in values.items():
        if tag not in FIELDS or value in ("", None):
            continue
        name = FIELDS[tag]
        try:
            facts[name] = _integer(tag, value) if int in FIELD_TYPES[name] else _text(tag, value)
        except BadMetadata:
            if tag not in _FOR_PICTURES_ONLY:
                raise
    facts["frames"] = max(facts["frames"], 1)
    allocated, stored = facts.get("bits_allocated", 8), facts.get("bits_stored", 0)
    facts["bits_stored"] = stored if 0 < stored <= allocated else allocated
    if not facts["bits_stored"] <= facts.get("high_bit", -1) + 1 <= allocated:
        facts["high_bit"] = max(0, facts["bits_stored"] - 1)
    for tag in TRANSFER_SYNTAX_TAGS:
        if values.get(tag):
            facts["transfer_syntax"] = _text(tag, values[tag])
            break
    created = " ".join([str(values[tag]) for tag in CREATION_TAGS if values.get(tag)])
    return InstanceMetadata(**facts, created=created[:MAX_TEXT_LENGTH])


def _integer(tag: str, value: Any) -> int:
    """US and IS come as numbers or as texts, depending on the store (PS3.18 table F.2.3-1 asks for numbers)."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if isinstance(value, bool) or not 0 <= number <= MAX_INTEGER or number != int(number):
        raise BadMetadata(f"({tag[:4]},{tag[4:]}) is {str(value)[:40]!r}, which is not a count")
    return int(number)


def _text(tag: str, value: Any) -> str:
    text = str(value).strip(" \0")
    if not isinstance(value, str) or len(text) > MAX_TEXT_LENGTH:
        raise BadMetadata(f"({tag[:4]},{tag[4:]}) has the invalid value {text[:40]!r}")
    return text


class MetadataParser(MetadataEvents):
    """Reads the facts of an instance from the answer to a metadata request.

    It takes 20 ms a megabyte: feed slices of 64 kB on the reactor. Memory does not grow with the
    answer, but for one value that is large by itself (an ICC profile inline).
    """

    def __init__(self, uids: Optional[tuple[str, str, str]] = None) -> None:
        self._found = FoundFacts()
        super().__init__(self._found.element, uids)

    def close(self) -> InstanceMetadata:
        """The answer has ended. Raises `BadMetadata` as `check_complete` does, and for facts that make no sense."""
        self.check_complete()
        return self._found.metadata()


class FoundFacts:
    """What a parser has found so far of one instance."""

    def __init__(self) -> None:
        self.values: dict[str, list[Any]] = defaultdict(list)
        self.has_icc_profile = False

    def metadata(self) -> InstanceMetadata:
        """The facts. Raises `BadMetadata`."""
        first = {tag: next((one for one in some if one is not None), None) for tag, some in self.values.items()}
        return from_values(first, self.has_icc_profile)

    def element(self, tag: str) -> Optional[Events]:
        """The reader of a top-level element; None for one that is not needed."""
        if tag in _TAGS:
            return keep_values(self.values[tag])
        if tag in (_OPTICAL_PATHS, _ICC_PROFILE):
            return self._watch_icc_profile(tag)
        return None

    def _watch_icc_profile(self, tag: str) -> Events:
        """Notice an ICC profile that is not empty in an element that has just begun."""
        depth = 1
        while depth:
            event, value = yield
            if event in OPEN:
                depth += 1
            elif event in CLOSE:
                depth -= 1
            elif event == "map_key" and value in _ELEMENT_VALUES:
                self.has_icc_profile |= tag == _ICC_PROFILE
            elif event == "map_key" and len(value) == 8:  # a tag; other keys belong to the element
                tag = value
