"""What decoding and showing frames needs of an instance.

Rules:

- A value is small enough to travel to a worker with every frame, and holds nothing of the patient.
- A frame's own functional groups go before the shared ones, and those before the top level (PS3.3 section C.7.6.16.1.1).
- What cannot be read counts as absent, as in most viewers, and what this picture does not need is not read: a window of
  NaN, a palette that a gray image has left over. Sizes, depth and colors must be there, and a modality LUT must be whole.
  So must be what was fetched: there the metadata are in order, and what came for a table or a profile is something else.
- `from_bytes` reads untrusted data: JSON and plain bytes, no pickle.
- DICOM JSON is read as it is: pydicom's own reader refuses a whole instance for one wrong value.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Self

import attrs

from twistedproxy.imaging.errors import BadImage
from twistedproxy.imaging.luts_and_palettes import Fetched, LookupTable, read_table

MONOCHROME = frozenset({"MONOCHROME1", "MONOCHROME2"})
WINDOW_FUNCTIONS = frozenset({"LINEAR", "LINEAR_EXACT", "SIGMOID"})
LARGEST = 3.4e38
"""No number that means something is larger: that of single precision. Their products are still numbers."""
SHARED, PER_FRAME, OPTICAL_PATHS, ICC_PROFILE = "52009229", "52009230", "00480105", "00282000"
TRANSFORMATION, FRAME_VOI = "00289145", "00289132"
"""Pixel Value Transformation and Frame VOI LUT: the functional groups for how values are shown."""

BulkReader = Callable[[str], bytes]
"""Gives the bytes behind a BulkDataURI."""


def _bytes(value: bytes | str) -> bytes:
    return base64.b64decode(value) if isinstance(value, str) else value


def _table(value: Any) -> LookupTable | None:
    if value is None or isinstance(value, LookupTable):
        return value
    return LookupTable(**{**value, "data": _bytes(value["data"])})


def _pair(value: Any) -> Any:
    return None if value is None else tuple(value)


def _palette_of(values: Any) -> Any:
    return None if values is None else tuple(map(_table, values))


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
    modality_lut: LookupTable | None = attrs.field(default=None, converter=_table)
    window_centers: tuple[float, ...] = attrs.field(default=(), converter=tuple)
    window_widths: tuple[float, ...] = attrs.field(default=(), converter=tuple)
    voi_lut_function: str = "LINEAR"
    voi_lut: LookupTable | None = attrs.field(default=None, converter=_table)
    padding: tuple[int, int] | None = attrs.field(default=None, converter=_pair)
    value_range: tuple[float, float] | None = attrs.field(default=None, converter=_pair)
    palette: tuple[LookupTable, ...] | None = attrs.field(default=None, converter=_palette_of)
    icc_profile: bytes = attrs.field(default=b"", repr=False, converter=_bytes)
    tiled: bool = False
    inverse: bool = False
    floating: bool = False

    @property
    def signed(self) -> bool:
        """Whether stored values are in two's complement (PS3.3 section C.7.6.3.1, Pixel Representation)."""
        return self.pixel_representation == 1

    @property
    def dtype(self) -> str:
        """numpy's type of one stored value, in the machine's byte order; one-bit values take a byte each."""
        size = max(8, self.bits_allocated) // 8
        return f"{'f' if self.floating else 'i' if self.signed else 'u'}{size}"

    @property
    def stored_range(self) -> tuple[int, int]:
        """The smallest and the largest value that the stored bits can hold."""
        if self.signed:
            return -(1 << self.bits_stored - 1), (1 << self.bits_stored - 1) - 1
        return 0, (1 << self.bits_stored) - 1

    def to_bytes(self) -> bytes:
        """A compact form; `from_bytes` reads it."""
        values = attrs.asdict(self, filter=lambda field, value: value != field.default)
        return json.dumps(values, separators=(",", ":"), default=lambda data: base64.b64encode(data).decode()).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What `to_bytes` wrote. Raises BadImage for anything else."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise BadImage("not the facts of an image") from error

    @classmethod
    def from_dicom_json(cls, instance: Mapping[str, Any], bulk: BulkReader | None = None, frame: int = 1) -> Self:
        """The facts of *frame* (from 1) in an instance's metadata (PS3.18 annex F).

        *bulk* reads values that stand elsewhere (ICC profile, tables); without it, and where it gives b"", they are left out.
        It may block. Raises BadImage, for what *bulk* gave and is no such value, too, and what *bulk* raises.
        """
        try:
            return cls(**_facts(_Attributes(instance, bulk), frame))
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise BadImage(f"the instance's image attributes are wrong: {error}") from error


@attrs.frozen
class _Attributes:
    """A data set of DICOM JSON. Numbers may be texts, texts may hold several values, and any value may be null."""

    elements: Mapping[str, Any]
    bulk: BulkReader | None

    def items(self, tag: str, start: int = 0, stop: int | None = None) -> list[_Attributes]:
        """The items of a sequence, or of part of it."""
        element = self.elements.get(tag)
        values = element.get("Value") if isinstance(element, Mapping) else None
        chosen = values[start:stop] if isinstance(values, list) else []
        return [_Attributes(item, self.bulk) for item in chosen if isinstance(item, Mapping)]

    def data(self, tag: str) -> bytes | list[Any] | None:
        """The values, or the bytes; None where the element is missing or malformed."""
        element = self.elements.get(tag)
        if not isinstance(element, Mapping):
            return None
        values, inline, uri = (element.get(key) for key in ("Value", "InlineBinary", "BulkDataURI"))
        if isinstance(values, list):
            return [part for value in values for part in (value.split("\\") if isinstance(value, str) else [value])]
        if isinstance(inline, str):
            try:
                return base64.b64decode(inline)
            except ValueError:
                return None
        return Fetched(self.bulk(uri)) if self.bulk is not None and uri and isinstance(uri, str) else None

    def values(self, tag: str) -> list[Any]:
        """All values; none of a missing element."""
        data = self.data(tag)
        return list(data.decode("latin-1").split("\\")) if isinstance(data, bytes) else data or []

    def number(self, tag: str) -> float | None:
        """The first value."""
        return _number((self.values(tag) or [None])[0])

    def integer(self, tag: str) -> int | None:
        """The first value where that is a whole number."""
        number = self.number(tag)
        return int(number) if number is not None and number == int(number) else None

    def count(self, tag: str, name: str) -> int:
        """What there is no picture without. Raises ValueError."""
        number = self.integer(tag)
        if number is None or number < 1:
            raise ValueError(f"{name} is {str(self.values(tag))[:40]}")
        return number

    def text(self, tag: str) -> str:
        """The first value in upper case, "" for none."""
        first = (self.values(tag) or [None])[0]
        return first.strip().upper() if isinstance(first, str) else ""

    def stored(self, tag: str, signed: bool, bits: int) -> int | None:
        """A stored value. Its VR is "US or SS": stores send either."""
        value = self.integer(tag)
        if value is None:
            return None
        value &= (1 << bits) - 1
        return value - (1 << bits) if signed and value >> bits - 1 else value

    def table(self, signed: bool, needed: bool = False) -> LookupTable | None:
        """The lookup table in an item of a Modality or VOI LUT Sequence."""
        return read_table(self.values("00283002"), self.data("00283006"), signed, needed=needed)


def _number(value: Any) -> float | None:
    """A number, or a text of one."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and abs(number) <= LARGEST else None


def _facts(top: _Attributes, frame: int) -> dict[str, Any]:
    allocated, declared = top.count("00280100", "BitsAllocated"), top.integer("00280101")
    stored = declared if declared and 0 < declared <= allocated else allocated
    high_bit, samples = top.integer("00280102"), top.integer("00280002") or 1
    representation = top.integer("00280103")
    kind = top.text("00280004")
    if not kind:
        raise ValueError("PhotometricInterpretation is missing")
    facts = {
        "rows": top.count("00280010", "Rows"),
        "columns": top.count("00280011", "Columns"),
        "samples_per_pixel": samples,
        "bits_allocated": allocated,
        "bits_stored": stored,
        "high_bit": high_bit if high_bit and stored <= high_bit + 1 <= allocated else stored - 1,
        "pixel_representation": int(representation == 1),
        "planar_configuration": top.integer("00280006") or 0,
        "photometric_interpretation": kind,
        "tiled": top.data("00480006") is not None,
        # bits stored are for integers alone; the pixel data's tag would show it, too, but metadata leave that out
        "floating": declared is None and representation is None and allocated in (32, 64) and samples == 1,
        "icc_profile": _icc_profile(top),
    }
    if kind == "PALETTE COLOR":
        return facts | {"palette": _palette(top, representation == 1)}
    return facts | _gray(top, frame, representation == 1, allocated, stored) if kind in MONOCHROME else facts


def _gray(top: _Attributes, frame: int, signed: bool, allocated: int, stored: int) -> dict[str, Any]:
    """How gray values are shown."""
    groups = [*top.items(PER_FRAME, frame - 1, frame), *top.items(SHARED, 0, 1)]

    def macro(tag: str) -> _Attributes:
        return next((items[0] for group in groups if (items := group.items(tag))), top)

    transformation, voi = macro(TRANSFORMATION), macro(FRAME_VOI)
    slope, intercept = transformation.number("00281053"), transformation.number("00281052")
    modality = top.items("00283000", 0, 1)
    windows = [(_number(c), _number(w)) for c, w in zip(voi.values("00281050"), voi.values("00281051"))]
    windows = [(center, width) for center, width in windows if center is not None and width is not None and width > 0]
    function = voi.text("00281056")
    below_zero = not modality and (signed or min(slope or 0.0, intercept or 0.0) < 0)
    tables = (item.table(below_zero) for item in voi.items("00283010"))
    return {
        "rescale_slope": 1.0 if slope is None else slope,
        "rescale_intercept": intercept or 0.0,
        "modality_lut": modality[0].table(signed, needed=True) if modality else None,
        "window_centers": [center for center, _ in windows],
        "window_widths": [width for _, width in windows],
        "voi_lut_function": function if function in WINDOW_FUNCTIONS else "LINEAR",
        "voi_lut": next((table for table in tables if table is not None), None),
        "padding": _padding(top, signed, allocated),
        "value_range": _value_range(top, signed, stored),
        "inverse": top.text("20500020") == "INVERSE",
    }


def _padding(top: _Attributes, signed: bool, bits: int) -> tuple[int, int] | None:
    """PS3.3 section C.7.5.1.1.2: one value, or a range with the limit at either end."""
    value, limit = (top.stored(tag, signed, bits) for tag in ("00280120", "00280121"))
    if value is None:
        return None
    other = value if limit is None else limit
    return min(value, other), max(value, other)


def _value_range(top: _Attributes, signed: bool, stored: int) -> tuple[int, int] | None:
    """None unless these are two values that the stored bits can hold."""
    low, high = (top.stored(tag, signed, max(stored, 16)) for tag in ("00280106", "00280107"))  # the VR has 16
    least, most = PixelFacts(1, 1, bits_stored=stored, pixel_representation=int(signed)).stored_range
    return (low, high) if low is not None and high is not None and least <= low < high <= most else None


def _palette(top: _Attributes, signed: bool) -> list[LookupTable] | None:
    """Red, green and blue; None unless all are there."""
    data = [[top.data(f"0028{group}{color}") for group in ("120", "122")] for color in "123"]
    tables = [
        read_table(top.values(f"0028110{color}"), plain, signed, segmented)
        for color, (plain, segmented) in zip("123", data)
    ]
    found = [table for table in tables if table is not None]
    return found if len(found) == 3 else None


def _icc_profile(top: _Attributes) -> bytes:
    for place in (top, *top.items(OPTICAL_PATHS)):
        value = place.data(ICC_PROFILE)
        if isinstance(value, Fetched) and value and value[36:40] != b"acsp":  # ICC.1 section 7.2.11
            raise ValueError("the value of the ICC profile is not a profile")
        if isinstance(value, bytes) and value:
            return bytes(value)
    return b""
