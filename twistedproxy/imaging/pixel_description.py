"""What decoding and showing frames needs of an instance.

Rules that this file keeps:

- A value is small enough to travel to a worker with every frame, and says nothing of the patient.
- What a frame's functional groups say goes before what the shared ones say, and that before the top level
  (PS3.3 section C.7.6.16.1.1).
- What cannot be read counts as absent, as in most viewers, and what this picture does not need is not read: a window of
  NaN, a palette that a gray image has left over. Sizes, depth and colors must be there, and a modality LUT must be whole.
  So must be what was fetched: there the metadata are in order, and what came for a table or a profile is something else.
- `from_bytes` trusts nobody: JSON and plain bytes, no pickle.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import attrs
import numpy
from pydicom import DataElement, Dataset

from twistedproxy.imaging.errors import BadImage
from twistedproxy.imaging.lut import LookupTable, lut_item, palette_of

MONOCHROME = frozenset({"MONOCHROME1", "MONOCHROME2"})
WINDOW_FUNCTIONS = frozenset({"LINEAR", "LINEAR_EXACT", "SIGMOID"})
LARGEST = 3.4e38
"""No number that means something is larger: that of single precision. Their products are still numbers."""

BulkReader = Callable[[str], bytes]
"""Gives the bytes behind a BulkDataURI."""


@attrs.frozen
class PixelFacts:
    """The Image Pixel module (PS3.3 section C.7.6.3) of one instance, and how its values are to be shown.

    *window_centers* and *window_widths* are alternatives, the first one is the default. *voi_lut* goes before a
    window. *inverse*: the Presentation LUT Shape. *padding*: first and last value of the range that stands
    for no data. *value_range*: Smallest and Largest Image Pixel Value. *palette*: red, green, blue. *icc_profile* is that
    of the first optical path, or the instance's; b"" for none. *tiled*: whether frames are tiles of one picture.
    *floating*: whether values are floating-point numbers (PS3.3 section C.7.6.24).
    """

    rows: int
    columns: int
    samples_per_pixel: int = 1
    bits_allocated: int = 8
    bits_stored: int = 8
    high_bit: int = 7
    pixel_representation: int = 0
    planar_configuration: int = 0
    photometric_interpretation: str = "MONOCHROME2"
    rescale_slope: float = 1.0
    rescale_intercept: float = 0.0
    modality_lut: LookupTable | None = None
    window_centers: tuple[float, ...] = ()
    window_widths: tuple[float, ...] = ()
    voi_lut_function: str = "LINEAR"
    voi_lut: LookupTable | None = None
    padding: tuple[int, int] | None = None
    value_range: tuple[float, float] | None = None
    palette: tuple[LookupTable, LookupTable, LookupTable] | None = None
    icc_profile: bytes = attrs.field(default=b"", repr=False)
    tiled: bool = False
    inverse: bool = False
    floating: bool = False

    @property
    def signed(self) -> bool:
        """Whether stored values are in two's complement (PS3.3 section C.7.6.3.1, Pixel Representation)."""
        return self.pixel_representation == 1

    @property
    def dtype(self) -> numpy.dtype[Any]:
        """Of one stored value, in the machine's byte order; one-bit values take a byte each."""
        size = max(8, self.bits_allocated) // 8
        return numpy.dtype(f"{'f' if self.floating else 'i' if self.signed else 'u'}{size}")

    @property
    def inverted(self) -> bool:
        """Whether the lowest value is shown white (PS3.3 sections C.7.6.3.1.2 and C.11.6)."""
        return self.inverse or self.photometric_interpretation == "MONOCHROME1"

    @property
    def stored_range(self) -> tuple[int, int]:
        """The smallest and the largest value that the stored bits can hold."""
        if self.signed:
            return -(1 << self.bits_stored - 1), (1 << self.bits_stored - 1) - 1
        return 0, (1 << self.bits_stored) - 1

    def to_bytes(self) -> bytes:
        """A compact form; `from_bytes` reads it."""
        values = attrs.asdict(self, filter=lambda field, value: value != field.default)
        return json.dumps(values, separators=(",", ":"), default=_text).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What `to_bytes` wrote. Raises BadImage for anything else."""
        try:
            return cls(**{name: _value(name, value) for name, value in json.loads(data).items()})
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise BadImage("not the facts of an image") from error

    @classmethod
    def from_dataset(cls, dataset: Dataset, frame: int = 1) -> Self:
        """The facts of *frame* (from 1); the pixel data itself is not touched. Raises BadImage."""
        try:
            return cls(**_facts(dataset, frame))
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise BadImage(f"the instance's image attributes are wrong: {error}") from error

    @classmethod
    def from_dicom_json(cls, instance: Mapping[str, Any], bulk: BulkReader | None = None, frame: int = 1) -> Self:
        """The facts in an instance's metadata (PS3.18 annex F).

        *bulk* reads values that stand elsewhere (ICC profile, tables); without it, and where it gives b"", they are left out.
        It may block. Raises BadImage, for what *bulk* gave and is no such value, too, and what *bulk* raises.
        """
        kind = _text_of(instance, "00280004")
        tables = _PALETTE if kind == "PALETTE COLOR" else _OF_GRAY if kind in MONOCHROME else frozenset()
        wanted = _only_frame({tag: instance[tag] for tag in _WANTED | tables if tag in instance}, frame)
        return cls.from_dataset(_dataset(wanted, bulk), 1)


SHARED, PER_FRAME, OPTICAL_PATHS = "52009229", "52009230", "00480105"
_WANTED = frozenset(
    f"0028{element}"
    for element in "0002 0004 0006 0008 0010 0011 0100 0101 0102 0103 0106 0107 0120 0121 1050 1051 1052 1053 1056 "
    "2000".split()
) | {OPTICAL_PATHS, "00480006", "20500020"}
_OF_GRAY = frozenset((SHARED, PER_FRAME, "00283000", "00283010"))
"""Where windows and tables stand."""
_PALETTE = frozenset(f"0028{element}" for element in "1101 1102 1103 1201 1202 1203 1221 1222 1223".split())
_SEQUENCES = _OF_GRAY | {OPTICAL_PATHS, "00289132", "00289145"}


class _Fetched(bytes):
    """A value that stood elsewhere."""


def _only_frame(instance: dict[str, Any], frame: int) -> dict[str, Any]:
    """Of the functional groups of up to 100,000 frames those of one: the rest costs more than all else here."""
    groups = instance.get(PER_FRAME)
    if isinstance(groups, Mapping):
        instance[PER_FRAME] = {"vr": "SQ", "Value": _list(groups.get("Value"))[frame - 1 : frame]}
    return instance


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dataset(elements: Mapping[str, Any], bulk: BulkReader | None) -> Dataset:
    """A data set of DICOM JSON, values as they are: numbers may be texts, and any may be null. What has no such form is
    left out; pydicom's own reader refuses the whole."""
    dataset = Dataset()
    for tag, element in elements.items():
        if isinstance(element, Mapping) and (value := _element_value(tag, element, bulk)) is not None:
            dataset[tag] = DataElement(tag, "LO", value, already_converted=True)
    return dataset


def _element_value(tag: str, element: Mapping[str, Any], bulk: BulkReader | None) -> Any:
    values, inline, uri = (element.get(key) for key in ("Value", "InlineBinary", "BulkDataURI"))
    if tag in _SEQUENCES:
        return [_dataset(item, bulk) for item in _list(values) if isinstance(item, Mapping)]
    if isinstance(values, list):
        split = [part for value in values for part in (value.split("\\") if isinstance(value, str) else [value])]
        return split[0] if len(split) == 1 else split
    if isinstance(inline, str):
        try:
            return base64.b64decode(inline)
        except ValueError:
            return None
    return _Fetched(bulk(uri)) if bulk is not None and uri and isinstance(uri, str) else None


def _text_of(instance: Mapping[str, Any], tag: str) -> str:
    element = instance.get(tag)
    value = _element_value(tag, element, None) if isinstance(element, Mapping) else None
    return value.strip().upper() if isinstance(value, str) else ""


def _text(value: object) -> str:
    assert isinstance(value, bytes)
    return base64.b64encode(value).decode()


def _value(name: str, value: Any) -> Any:
    if name == "icc_profile":
        return base64.b64decode(value)
    if name in ("modality_lut", "voi_lut"):
        return _table(value)
    if name == "palette":
        return tuple(_table(item) for item in value)
    return tuple(value) if isinstance(value, list) else value


def _table(value: dict[str, Any]) -> LookupTable:
    return LookupTable(int(value["first"]), int(value["bits"]), base64.b64decode(value["data"]))


def _items(dataset: Dataset, keyword: str) -> Sequence[Dataset]:
    return dataset.get(keyword) or ()


def _groups(dataset: Dataset, frame: int) -> Iterator[Dataset]:
    """Where a frame's attributes may stand, the nearest first."""
    yield from _items(dataset, "PerFrameFunctionalGroupsSequence")[frame - 1 : frame]
    yield from _items(dataset, "SharedFunctionalGroupsSequence")[:1]


def _macro(dataset: Dataset, frame: int, sequence: str) -> Dataset:
    """The item of a functional group, or the data set itself where there are none."""
    for group in _groups(dataset, frame):
        if items := _items(group, sequence):
            return items[0]
    return dataset


def _facts(dataset: Dataset, frame: int) -> dict[str, Any]:
    little = dataset.original_encoding[1] is not False
    transformation = _macro(dataset, frame, "PixelValueTransformationSequence")
    window = _macro(dataset, frame, "FrameVOILUTSequence")
    bits_allocated = _count(dataset, "BitsAllocated")
    bits_told = _integer(dataset, "BitsStored")
    bits_stored = bits_told if bits_told and 0 < bits_told <= bits_allocated else bits_allocated
    high_bit = _integer(dataset, "HighBit")
    samples = _integer(dataset, "SamplesPerPixel") or 1
    representation = _integer(dataset, "PixelRepresentation")
    signed = representation == 1
    slope, intercept = _number(transformation, "RescaleSlope", 1.0), _number(transformation, "RescaleIntercept", 0.0)
    modality = _items(dataset, "ModalityLUTSequence")
    windows = _windows(window)
    photometric_interpretation = str(dataset.PhotometricInterpretation).strip().upper()
    facts: dict[str, Any] = {
        "rows": _count(dataset, "Rows"),
        "columns": _count(dataset, "Columns"),
        "samples_per_pixel": samples,
        "bits_allocated": bits_allocated,
        "bits_stored": bits_stored,
        "high_bit": high_bit if high_bit and bits_stored <= high_bit + 1 <= bits_allocated else bits_stored - 1,
        "pixel_representation": int(signed),
        "planar_configuration": _integer(dataset, "PlanarConfiguration") or 0,
        "photometric_interpretation": photometric_interpretation,
        "tiled": "TotalPixelMatrixColumns" in dataset,
        # bits stored are for integers alone; the pixel data's tag would say it, too, but metadata leave that out
        "floating": bits_told is None and representation is None and bits_allocated in (32, 64) and samples == 1,
        "icc_profile": _icc_profile(dataset),
    }
    if photometric_interpretation == "PALETTE COLOR":
        return facts | {"palette": _palette(dataset, signed, little)}
    if photometric_interpretation not in MONOCHROME:
        return facts
    below_zero = not modality and (signed or min(slope, intercept) < 0)
    return facts | {
        "rescale_slope": slope,
        "rescale_intercept": intercept,
        "modality_lut": lut_item(modality[0], signed, little) if modality else None,
        "window_centers": tuple(center for center, _ in windows),
        "window_widths": tuple(width for _, width in windows),
        "voi_lut_function": _function(window),
        "voi_lut": _voi_lut(window, below_zero, little),
        "padding": _padding(dataset, signed, bits_allocated),
        "value_range": _value_range(
            dataset, PixelFacts(1, 1, bits_stored=bits_stored, pixel_representation=int(signed))
        ),
        "inverse": _text_value(dataset, "PresentationLUTShape") == "INVERSE",
    }


def _values(dataset: Dataset, keyword: str) -> list[Any]:
    value = dataset.get(keyword)
    if isinstance(value, bytes):
        value = value.decode("latin-1").split("\\")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return [] if value is None else [value]


def _readable(value: Any) -> float | None:
    """A number, or a text of one."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and abs(number) <= LARGEST else None


def _first(dataset: Dataset, keyword: str) -> float | None:
    values = _values(dataset, keyword)
    return _readable(values[0]) if values else None


def _number(dataset: Dataset, keyword: str, default: float) -> float:
    number = _first(dataset, keyword)
    return default if number is None else number


def _integer(dataset: Dataset, keyword: str) -> int | None:
    number = _first(dataset, keyword)
    return int(number) if number is not None and number == int(number) else None


def _count(dataset: Dataset, keyword: str) -> int:
    """What there is no picture without."""
    number = _integer(dataset, keyword)
    if number is None or number < 1:
        raise ValueError(f"{keyword} is {str(dataset.get(keyword))[:40]!r}")
    return number


def _text_value(dataset: Dataset, keyword: str) -> str:
    values = _values(dataset, keyword)
    return values[0].strip().upper() if values and isinstance(values[0], str) else ""


def _windows(dataset: Dataset) -> list[tuple[float, float]]:
    """Centers with their widths, as far as both mean something."""
    pairs = zip(_values(dataset, "WindowCenter"), _values(dataset, "WindowWidth"))
    read = [(_readable(center), _readable(width)) for center, width in pairs]
    return [(center, width) for center, width in read if center is not None and width is not None and width > 0]


def _function(dataset: Dataset) -> str:
    function = _text_value(dataset, "VOILUTFunction")
    return function if function in WINDOW_FUNCTIONS else "LINEAR"


def _voi_lut(dataset: Dataset, signed: bool, little_endian: bool) -> LookupTable | None:
    """The first one that can be read."""
    for item in _items(dataset, "VOILUTSequence"):
        try:
            if (table := lut_item(item, signed, little_endian)) is not None:
                return table
        except (TypeError, ValueError):
            if _any_fetched(item):
                raise
    return None


def _palette(dataset: Dataset, signed: bool, little_endian: bool) -> tuple[LookupTable, ...] | None:
    try:
        return palette_of(dataset, signed, little_endian)
    except (TypeError, ValueError, IndexError):
        if _any_fetched(dataset):
            raise
        return None


def _any_fetched(dataset: Dataset) -> bool:
    return any(isinstance(element.value, _Fetched) for element in dataset)


def _stored(dataset: Dataset, keyword: str, signed: bool, bits: int) -> int | None:
    """A stored value. Its VR is "US or SS": stores give it as either."""
    value = _integer(dataset, keyword)
    if value is None:
        return None
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >> bits - 1 else value


def _padding(dataset: Dataset, signed: bool, bits: int) -> tuple[int, int] | None:
    """PS3.3 section C.7.5.1.1.2: one value, or a range with the limit at either end."""
    value = _stored(dataset, "PixelPaddingValue", signed, bits)
    limit = _stored(dataset, "PixelPaddingRangeLimit", signed, bits)
    if value is None:
        return None
    other = value if limit is None else limit
    return min(value, other), max(value, other)


def _value_range(dataset: Dataset, facts: PixelFacts) -> tuple[int, int] | None:
    """None unless these are two values that the stored bits can hold."""
    bits = max(facts.bits_stored, 16)  # the VR has 16
    low = _stored(dataset, "SmallestImagePixelValue", facts.signed, bits)
    high = _stored(dataset, "LargestImagePixelValue", facts.signed, bits)
    if low is None or high is None or not facts.stored_range[0] <= low < high <= facts.stored_range[1]:
        return None
    return low, high


def _icc_profile(dataset: Dataset) -> bytes:
    for place in (dataset, *_items(dataset, "OpticalPathSequence")):
        value = place.get("ICCProfile")
        if isinstance(value, _Fetched) and value and value[36:40] != b"acsp":  # ICC.1 section 7.2.11
            raise ValueError("what came for the ICC profile is none")
        if isinstance(value, bytes) and value:
            return value
    return b""
