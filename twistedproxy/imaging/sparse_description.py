"""The metadata of an instance that is not TILED_FULL (DICOM JSON, PS3.18 annex F), read as they come, down to its frames'
places."""

from __future__ import annotations

from typing import Any, Optional

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.metadata_json import Events, MetadataEvents
from twistedproxy.imaging.elements import read_items, read_value
from twistedproxy.imaging.errors import CannotRender
from twistedproxy.imaging.sparse import WANTED, Positions, refusal

SHARED, PER_FRAME = "52009229", "52009230"
ABSENT, FOCAL_PLANES = "00480015", "00480303"

Colour = tuple[int, int, int]


class SparseDescription(MetadataEvents):
    """Reads where frames lie from the answer to a metadata request of the instance that *metadata* are of."""

    def __init__(self, metadata: InstanceMetadata, uids: Optional[tuple[str, str, str]] = None) -> None:
        self._places = _Places(metadata)
        super().__init__(self._places.element, uids)

    def packed(self) -> bytes:
        """The placement, or the refusal, for `read_placement`. Raises `BadMetadata` for what ended too early."""
        self.check_complete()
        return self._places.packed()


class _Places:
    """Where frames lie, as far as their functional groups have passed; or why that cannot be said."""

    def __init__(self, metadata: InstanceMetadata) -> None:
        self._refused = ""
        self._positions: Optional[Positions] = None
        self._elements: dict[str, Any] = {}
        try:
            self._positions = Positions(metadata)
        except CannotRender as error:
            self._refused = str(error)

    def packed(self) -> bytes:
        """See `SparseDescription.packed`."""
        try:
            if self._positions is None:
                return refusal(self._refused)
            colour, planes = absent_colour(self._elements.get(ABSENT)), count_of(self._elements.get(FOCAL_PLANES))
            return self._positions.placement(colour, planes).to_bytes()
        except CannotRender as error:
            return refusal(str(error))

    def element(self, tag: str) -> Optional[Events]:
        """The reader of a top-level element; None for one that places nothing."""
        if tag in (SHARED, PER_FRAME) and self._positions is not None:
            return read_items(self._positions.share if tag == SHARED else self._add, WANTED)
        return self._keep(tag) if tag in (ABSENT, FOCAL_PLANES) else None

    def _add(self, groups: dict[str, Any]) -> None:
        if self._positions is None:
            return
        try:
            self._positions.add(groups)
        except CannotRender as error:
            self._refused, self._positions = str(error), None

    def _keep(self, tag: str) -> Events:
        self._elements[tag] = yield from read_value("start_map", None)


def count_of(element: Any) -> Optional[int]:
    """The number in an element of DICOM JSON; None for none, or none above 0."""
    try:
        return max(0, int(element["Value"][0])) or None
    except (LookupError, TypeError, ValueError, OverflowError):
        return None


def absent_colour(element: Any) -> Optional[Colour]:
    """The 8-bit sRGB colour of Recommended Absent Pixel CIELab Value (0048,0015), as DICOM JSON; None for none.

    PS3.3 section C.10.7.1.1: three US, L* from 0 to 100 as 0 to 65535, a* and b* from -128 to 127 as 0 to 65535, D50.
    """
    try:
        light, a, b = (int(value) for value in element["Value"])
    except (LookupError, TypeError, ValueError, OverflowError):
        return None
    if not all(0 <= value <= 0xFFFF for value in (light, a, b)):
        return None
    return _srgb(light * 100 / 0xFFFF, a * 255 / 0xFFFF - 128, b * 255 / 0xFFFF - 128)


_WHITE = (0.9642, 1.0, 0.8249)  # D50, ICC.1 section 7.2.16
_FROM_D50 = (  # XYZ under D50 to linear sRGB: IEC 61966-2-1 with the Bradford adaptation
    (3.1338561, -1.6168667, -0.4906146),
    (-0.9787684, 1.9161415, 0.0334540),
    (0.0719453, -0.2289914, 1.4052427),
)


def _srgb(light: float, a: float, b: float) -> Colour:
    """CIE 15:2004 section 8.2.1, backwards, then IEC 61966-2-1."""
    middle = (light + 16) / 116
    terms = (middle + a / 500, middle, middle - b / 200)
    xyz = [white * (t**3 if t > 6 / 29 else (t - 4 / 29) * 3 * (6 / 29) ** 2) for white, t in zip(_WHITE, terms)]
    linear = [min(max(sum(w * value for w, value in zip(line, xyz)), 0.0), 1.0) for line in _FROM_D50]
    red, green, blue = (
        round(255 * (12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055)) for value in linear
    )
    return red, green, blue
