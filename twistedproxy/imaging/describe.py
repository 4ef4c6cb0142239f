"""An instance's metadata (DICOM JSON, PS3.18 annex F), read as it comes, down to the facts that pictures need.

- What pictures do not need is dropped unseen: 100 MB of per-frame functional groups leave nothing behind.
- Functional groups of each frame are looked into for how values are shown (PS3.3 section C.7.6.16.2), which differs from
  frame to frame in enhanced CT and PET; the facts of such a frame are kept as its own.

Elements of DICOM JSON (PS3.18 annex F) out of a stream of events, for readers of `MetadataEvents`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from typing import Any, Optional

import attrs
import ijson

from twistedproxy.dicom.json_events import CLOSE, OPEN, Events, MetadataEvents, skip
from twistedproxy.imaging.pixel_description import OPTICAL_PATHS, PER_FRAME, SHARED, PixelFacts


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


_SHOWING = frozenset(("00289145", "00289132"))
"""Pixel Value Transformation and Frame VOI LUT: the functional groups that tell how values are shown."""
ICC_PROFILE = "00282000"
_OF_A_PATH = frozenset((ICC_PROFILE,))

_TOP = frozenset(("00480006", "20500020"))
_IMAGE_GROUP = "0028"

MAX_OWN = 4096
"""Frames whose own facts are kept: more than enhanced CT has. Beyond, the first frame's count."""


@attrs.frozen
class Described:
    """*packed*: the facts, for `InstanceFacts`. *missing*: the URIs of values that were not there."""

    packed: bytes
    missing: list[str]


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
        self._kept = _Kept()
        super().__init__(self._kept.element, uids)

    def facts(self, bulk: Mapping[str, bytes], profile: bool = True) -> Described:
        """The facts, with values that stand elsewhere taken from *bulk*, by their URI. *profile*: whether the ICC profile is
        one of them. Raises `BadImage`, `BadMetadata`."""
        self.check_complete()
        missing: list[str] = []

        def read(uri: str) -> bytes:
            if uri not in bulk:
                missing.append(uri)
            return bulk.get(uri, b"")

        frames = self._kept.frames
        if not profile:
            for tag in (ICC_PROFILE, OPTICAL_PATHS):
                self._kept.elements.pop(tag, None)
        common = self._facts_with(frames[:1], read)
        own = {}
        if any(frames):
            packed = common.to_bytes()
            for number, groups in enumerate(frames[:MAX_OWN], start=1):
                facts = self._facts_with([groups], read).to_bytes()
                if facts != packed:
                    own[number] = facts
        return Described(InstanceFacts(common.to_bytes(), own).to_bytes(), sorted(set(missing)))

    def _facts_with(self, groups: list[dict[str, Any]], read: Any) -> PixelFacts:
        elements = dict(self._kept.elements)
        if groups:
            elements[PER_FRAME] = {"vr": "SQ", "Value": groups}
        return PixelFacts.from_dicom_json(elements, read)


class _Kept:
    """What a description keeps of the elements that have passed."""

    def __init__(self) -> None:
        self.elements: dict[str, Any] = {}
        self.frames: list[dict[str, Any]] = []

    def element(self, tag: str) -> Optional[Events]:
        """The reader of a top-level element; None for one that pictures do not need."""
        if tag in _TOP or tag.startswith(_IMAGE_GROUP):
            return self._keep(tag)
        if tag in (SHARED, OPTICAL_PATHS):
            items: list[dict[str, Any]] = []
            self.elements[tag] = {"vr": "SQ", "Value": items}
            return read_items(items.append, _SHOWING if tag == SHARED else _OF_A_PATH)
        if tag == PER_FRAME:
            return read_items(self.frames.append, _SHOWING)
        return None

    def _keep(self, tag: str) -> Events:
        self.elements[tag] = yield from read_value("start_map", None)
