"""An instance's metadata (DICOM JSON, PS3.18 annex F), read as they come, down to what pictures need of them.

Rules:

- What pictures do not need is dropped unseen: 100 MB of per-frame functional groups leave nothing behind.
- Functional groups of each frame are looked into for how values are shown (PS3.3 section C.7.6.16.2), which differs from
  frame to frame in enhanced CT and PET; the facts of such a frame are kept as its own.
- LittleCMS would make the color of absent pixels, too, but of CIELab values of 8 bits: up to a level off.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Generator, Mapping
from typing import Any, Optional

import attrs
import ijson

from twistedproxy.dicom.json_events import CLOSE, OPEN, Events, MetadataEvents, skip
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.imaging.errors import CannotRender
from twistedproxy.imaging.pixel_description import (
    FRAME_VOI,
    ICC_PROFILE,
    OPTICAL_PATHS,
    PER_FRAME,
    SHARED,
    TRANSFORMATION,
    PixelFacts,
)
from twistedproxy.imaging.tile_index import FOCAL_PLANES, WANTED, Positions, count_of, refusal

MAX_OWN = 4096
"""Frames whose own facts are kept: more than enhanced CT has. Beyond, the first frame's count."""

_SHOWING = frozenset((TRANSFORMATION, FRAME_VOI))
_TOP = frozenset(("00480006", "20500020"))
_ABSENT = "00480015"

Color = tuple[int, int, int]


def read_items(keep: Callable[[dict[str, Any]], None], wanted: frozenset[str]) -> Events:
    """Read a sequence that has just begun (``{"vr": "SQ", "Value": [{…}, …]}``): of each item *keep* gets the *wanted*
    elements, as soon as the item has ended."""
    while True:
        event, key = yield
        if event == "end_map":
            return
        event, _ = yield
        if event not in OPEN:
            continue
        if key != "Value" or event != "start_array":
            yield from skip()
            continue
        while True:
            event, _ = yield
            if event == "end_array":
                break
            if event == "start_map":
                item: dict[str, Any] = {}
                yield from _read_item(item, wanted)
                keep(item)
            elif event in OPEN:
                yield from skip()


def _read_item(item: dict[str, Any], wanted: frozenset[str]) -> Events:
    while True:
        event, tag = yield
        if event == "end_map":
            return
        event, value = yield
        if tag in wanted:
            item[tag] = yield from read_value(event, value)
        elif event in OPEN:
            yield from skip()


def read_value(event: str, value: Any) -> Generator[None, tuple[str, Any], Any]:
    """The JSON value whose first event has just come."""
    builder = ijson.ObjectBuilder()
    depth = 0
    while True:
        builder.event(event, value)
        depth += (event in OPEN) - (event in CLOSE)
        if depth == 0:
            value = builder.value
            builder.containers.clear()  # a function in there leads back to the builder
            return value
        event, value = yield


@attrs.frozen
class InstanceFacts:
    """The facts of an instance: *common* ones, and those of frames that have their own, by number."""

    common: bytes
    own: Mapping[int, bytes] = attrs.Factory(dict)

    def of(self, number: int) -> bytes:
        """The packed facts of frame *number*."""
        return self.own.get(number, self.common)

    def to_bytes(self) -> bytes:
        """A compact form; `from_bytes` reads it."""
        own = {str(number): packed.decode() for number, packed in self.own.items()}
        return json.dumps([self.common.decode(), own], separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> InstanceFacts:
        """Undo `to_bytes`. Raises ValueError."""
        try:
            common, own = json.loads(data)
            return cls(common.encode(), {int(number): packed.encode() for number, packed in own.items()})
        except (TypeError, AttributeError) as error:
            raise ValueError("no facts of an instance") from error


class Description(MetadataEvents):
    """Reads what pictures need of an instance from the answer to a metadata request."""

    def __init__(self, uids: Optional[tuple[str, str, str]] = None) -> None:
        self._elements: dict[str, Any] = {}
        self._frames: list[dict[str, Any]] = []
        super().__init__(functools.partial(_shown_by, self._elements, self._frames), uids)

    def packed(self, bulk: Mapping[str, bytes], profile: bool = True) -> tuple[bytes, list[str]]:
        """The facts, for `InstanceFacts`, with values that stand elsewhere taken from *bulk*, by their URI; and the URIs of those
        that are not there. *profile*: whether the ICC profile is one of them. Raises `BadImage`, `BadMetadata`."""
        self.check_complete()
        missing: set[str] = set()

        def read(uri: str) -> bytes:
            if uri not in bulk:
                missing.add(uri)
            return bulk.get(uri, b"")

        def packed(groups: list[dict[str, Any]]) -> bytes:
            elements = {**self._elements, PER_FRAME: {"vr": "SQ", "Value": groups}}
            return PixelFacts.from_dicom_json(elements, read).to_bytes()

        if not profile:
            for tag in (ICC_PROFILE, OPTICAL_PATHS):
                self._elements.pop(tag, None)
        common = packed(self._frames[:1])
        frames = self._frames[:MAX_OWN] if any(self._frames) else []
        own = {number: facts for number, groups in enumerate(frames, 1) if (facts := packed([groups])) != common}
        return InstanceFacts(common, own).to_bytes(), sorted(missing)


def _shown_by(elements: dict[str, Any], frames: list[dict[str, Any]], tag: str) -> Optional[Events]:
    """The reader of a top-level element; None for one that pictures do not need."""
    if tag in _TOP or tag.startswith("0028"):
        return _keep(elements, tag)
    if tag in (SHARED, OPTICAL_PATHS):
        items: list[dict[str, Any]] = []
        elements[tag] = {"vr": "SQ", "Value": items}
        return read_items(items.append, _SHOWING if tag == SHARED else frozenset((ICC_PROFILE,)))
    return read_items(frames.append, _SHOWING) if tag == PER_FRAME else None


def _keep(elements: dict[str, Any], tag: str) -> Events:
    elements[tag] = yield from read_value("start_map", None)


class SparseDescription(MetadataEvents):
    """Reads where frames lie from the answer to a metadata request of the instance that *metadata* are of."""

    def __init__(self, metadata: InstanceMetadata, uids: Optional[tuple[str, str, str]] = None) -> None:
        self._elements: dict[str, Any] = {}
        self._positions = Positions(metadata)
        super().__init__(functools.partial(_placed_by, self._elements, self._positions), uids)

    def packed(self, _bulk: Mapping[str, bytes], _profile: bool = False) -> tuple[bytes, list[str]]:
        """The placement, or the refusal, for `read_placement`; no value of it stands elsewhere. Raises `BadMetadata` for what ended
        too early."""
        self.check_complete()
        color, planes = absent_color(self._elements.get(_ABSENT)), count_of(self._elements.get(FOCAL_PLANES))
        try:
            return self._positions.placement(color, planes).to_bytes(), []
        except CannotRender as error:
            return refusal(str(error)), []


def _placed_by(elements: dict[str, Any], positions: Positions, tag: str) -> Optional[Events]:
    """The reader of a top-level element; None for one that places nothing."""
    if tag in (SHARED, PER_FRAME):
        return read_items(positions.share if tag == SHARED else positions.add, WANTED)
    return _keep(elements, tag) if tag in (_ABSENT, FOCAL_PLANES) else None


def absent_color(element: Any) -> Optional[Color]:
    """The 8-bit sRGB color of Recommended Absent Pixel CIELab Value (0048,0015), as DICOM JSON; None for none.

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


def _srgb(light: float, a: float, b: float) -> Color:
    """CIE 15:2004 section 8.2.1, backwards, then IEC 61966-2-1."""
    middle = (light + 16) / 116
    terms = (middle + a / 500, middle, middle - b / 200)
    xyz = [white * (t**3 if t > 6 / 29 else (t - 4 / 29) * 3 * (6 / 29) ** 2) for white, t in zip(_WHITE, terms)]
    linear = [min(max(sum(w * value for w, value in zip(line, xyz)), 0.0), 1.0) for line in _FROM_D50]
    red, green, blue = (
        round(255 * (12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055)) for value in linear
    )
    return red, green, blue
