"""What decoding and showing frames needs of an instance.

Rules that this file keeps:

- A value is small enough to travel to a worker with every frame, and says nothing of the patient.
- What a frame's functional groups say goes before what the shared ones say, and that before the top level
  (PS3.3 section C.7.6.16.1.1).
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
from pydicom import Dataset

from twistedproxy.imaging.errors import BadImage
from twistedproxy.imaging.lookup import LookupTable, lut_item, palette_of

MONOCHROME = frozenset({"MONOCHROME1", "MONOCHROME2"})

BulkReader = Callable[[str], bytes]
"""Gives the bytes behind a BulkDataURI."""


@attrs.frozen
class PixelFacts:
    """The Image Pixel module (PS3.3 section C.7.6.3) of one instance, and how its values are to be shown.

    *window_centers* and *window_widths* are alternatives, the first one is the default. *voi_lut* goes before a
    window. *padding*: first and last value of the range that stands for no data. *value_range*: Smallest and
    Largest Image Pixel Value. *palette*: red, green, blue. *icc_profile* is that of the first optical path, or the
    instance's; b"" for none. *single_frame*: whether there is one frame and no matrix that it is a tile of.
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
    value_range: tuple[int, int] | None = None
    palette: tuple[LookupTable, LookupTable, LookupTable] | None = None
    icc_profile: bytes = attrs.field(default=b"", repr=False)
    single_frame: bool = False

    @property
    def signed(self) -> bool:
        """Whether stored values are in two's complement (PS3.3 section C.7.6.3.1, Pixel Representation)."""
        return self.pixel_representation == 1

    @property
    def dtype(self) -> numpy.dtype[Any]:
        """Of one stored value, in the machine's byte order; one-bit values take a byte each."""
        size = max(8, self.bits_allocated) // 8
        return numpy.dtype(f"{'i' if self.signed else 'u'}{size}")

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

        *bulk* reads values that stand elsewhere (ICC profile, tables); without it they are left out. It may block.
        Raises BadImage, and what *bulk* raises.
        """
        wanted = _only_frame({tag: instance[tag] for tag in _WANTED if tag in instance}, frame)

        def read(tag: str, vr: str, uri: str) -> bytes:
            return bulk(uri) if bulk is not None and uri else b""

        try:
            dataset = Dataset.from_json(wanted, read)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BadImage(f"the instance's metadata is no DICOM JSON: {error}") from error
        return cls.from_dataset(dataset, 1)


_SHARED, _PER_FRAME, _OPTICAL_PATHS = "52009229", "52009230", "00480105"
_WANTED = frozenset(
    f"0028{element}"
    for element in "0002 0004 0006 0008 0010 0011 0100 0101 0102 0103 0106 0107 0120 0121 1050 1051 1052 1053 1056 "
    "1101 1102 1103 1201 1202 1203 1221 1222 1223 2000 3000 3010".split()
) | {_SHARED, _PER_FRAME, _OPTICAL_PATHS, "00480006"}


def _only_frame(instance: dict[str, Any], frame: int) -> dict[str, Any]:
    """Of the functional groups of up to 100,000 frames those of one: the rest costs more than all else here."""
    groups = instance.get(_PER_FRAME, {}).get("Value", ())
    if groups:
        instance[_PER_FRAME] = {"vr": "SQ", "Value": groups[frame - 1 : frame]}
    return instance


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
    bits_stored = int(dataset.get("BitsStored") or dataset.BitsAllocated)
    little = dataset.original_encoding[1] is not False
    transformation = _macro(dataset, frame, "PixelValueTransformationSequence")
    window = _macro(dataset, frame, "FrameVOILUTSequence")
    centers, widths = _numbers(window, "WindowCenter"), _numbers(window, "WindowWidth")
    modality, voi = _items(dataset, "ModalityLUTSequence"), _items(window, "VOILUTSequence")
    high_bit = dataset.get("HighBit")
    return {
        "rows": int(dataset.Rows),
        "columns": int(dataset.Columns),
        "samples_per_pixel": int(dataset.get("SamplesPerPixel") or 1),
        "bits_allocated": int(dataset.BitsAllocated),
        "bits_stored": bits_stored,
        "high_bit": bits_stored - 1 if high_bit is None else int(high_bit),
        "pixel_representation": int(dataset.get("PixelRepresentation") or 0),
        "planar_configuration": int(dataset.get("PlanarConfiguration") or 0),
        "photometric_interpretation": str(dataset.PhotometricInterpretation).strip().upper(),
        "rescale_slope": _number(transformation, "RescaleSlope", 1.0),
        "rescale_intercept": _number(transformation, "RescaleIntercept", 0.0),
        "modality_lut": lut_item(modality[0], little) if modality else None,
        "window_centers": centers[: len(widths)],
        "window_widths": widths[: len(centers)],
        "voi_lut_function": str(window.get("VOILUTFunction") or "LINEAR").strip().upper(),
        "voi_lut": lut_item(voi[0], little) if voi else None,
        "padding": _padding(dataset),
        "value_range": _value_range(dataset),
        "palette": palette_of(dataset, little),
        "icc_profile": _icc_profile(dataset),
        "single_frame": int(dataset.get("NumberOfFrames") or 1) == 1 and "TotalPixelMatrixColumns" not in dataset,
    }


def _numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    value = dataset.get(keyword)
    if value is None or value == "":
        return ()
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    numbers = tuple(float(one) for one in values)
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{keyword} is {numbers}")
    return numbers


def _number(dataset: Dataset, keyword: str, default: float) -> float:
    return (_numbers(dataset, keyword) or (default,))[0]


def _padding(dataset: Dataset) -> tuple[int, int] | None:
    """PS3.3 section C.7.5.1.1.2: one value, or a range with the limit at either end."""
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if not isinstance(value, int):
        return None
    other = limit if isinstance(limit, int) else value
    return min(value, other), max(value, other)


def _value_range(dataset: Dataset) -> tuple[int, int] | None:
    low, high = dataset.get("SmallestImagePixelValue"), dataset.get("LargestImagePixelValue")
    if isinstance(low, int) and isinstance(high, int) and low < high:
        return low, high
    return None


def _icc_profile(dataset: Dataset) -> bytes:
    for place in (dataset, *_items(dataset, "OpticalPathSequence")):
        value = place.get("ICCProfile")
        if isinstance(value, bytes) and value:
            return value
    return b""
