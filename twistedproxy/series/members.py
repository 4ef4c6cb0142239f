"""The instances of a series, or of all series of a study, read from its DICOM JSON metadata (PS3.18 section 10.4.1.1.2, annex F) as they come.

- Objects that do not name study, series and instance, each once, count for nothing; nor do two of one instance.
- An object whose facts make no sense is left out, and the others stay.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Optional

import attrs

from twistedproxy.dicom.json_events import (
    CLOSE,
    OPEN,
    UIDS,
    ArrayEvents,
    BadMetadata,
    Events,
    keep_values,
    read_object,
    uids_in,
)
from twistedproxy.dicom.metadata import FoundFacts, InstanceMetadata
from twistedproxy.dicom.resource import InvalidUID, validate_uid

MAX_MEMBERS = 20_000
"""Instances of a series or study: some 10 MB. One of more is not known."""

_NUMBER, _POSITION, _ORIENTATION = "00200013", "00200032", "00200037"
_LENGTHS = {_NUMBER: 1, _POSITION: 3, _ORIENTATION: 6}
_IMAGE_TYPE, _OPTICAL_PATHS, _OPTICAL_PATH = "00080008", "00480105", "00480106"

Numbers = tuple[float, ...]


@attrs.frozen
class Member:
    """An instance of a series. *number*: InstanceNumber (0020,0013), one value; *position*: ImagePositionPatient (0020,0032),
    three, in mm; *orientation*: ImageOrientationPatient (0020,0037), six; *flavor*: the third value of ImageType (0008,0008), of a
    slide VOLUME, LABEL, OVERVIEW or THUMBNAIL (PS3.3 section C.8.12.4.1.1); *paths*: OpticalPathIdentifier (0048,0106) of each. Each
    is empty where it is missing, or makes no sense."""

    sop: str
    metadata: InstanceMetadata
    number: Numbers = ()
    position: Numbers = ()
    orientation: Numbers = ()
    flavor: str = ""
    paths: tuple[str, ...] = ()


class SeriesParser(ArrayEvents):
    """Reads the instances of the series with UIDs *study* and *series* from the answer to a request for its metadata. Feed slices
    of 64 kB on the reactor."""

    def __init__(self, study: str, series: str) -> None:
        self._series, self._found = series, _FoundMembers(study, series)
        super().__init__(self._found.read_one)

    def close(self) -> Mapping[str, Member]:
        """The answer has ended: its instances by their UIDs. Raises `BadMetadata` as `check_complete` does."""
        self.check_complete()
        return self._found.members.get(self._series, {})


class StudyParser(ArrayEvents):
    """The same for all series of the study with UID *study*."""

    def __init__(self, study: str) -> None:
        self._found = _FoundMembers(study)
        super().__init__(self._found.read_one)

    def close(self) -> Mapping[str, Mapping[str, Member]]:
        """The same, by the UIDs of their series."""
        self.check_complete()
        return self._found.members


class _FoundMembers:
    """What a parser has found so far, of one series or (None) of all of the study."""

    def __init__(self, study: str, series: Optional[str] = None) -> None:
        self.members: dict[str, dict[str, Member]] = {}
        self._study, self._series = study, series
        self._seen: dict[str, str] = {}

    def read_one(self) -> Events:
        """Read an object that has begun."""
        facts = FoundFacts()
        uids: dict[str, list[Any]] = {tag: [] for tag in UIDS}
        more: dict[str, list[Any]] = {tag: [] for tag in (*_LENGTHS, _IMAGE_TYPE)}
        paths: list[str] = []

        def element(tag: str) -> Optional[Events]:
            if tag in more:
                return keep_values(more[tag])
            fact = facts.element(tag)
            return fact if tag != _OPTICAL_PATHS or fact is None else _both(fact, _keep_paths(paths))

        yield from read_object(element, uids)
        named = uids_in(uids)
        if named is not None and named[0] == self._study and self._series in (None, named[1]):
            self._add(named[1], named[2], facts, more, tuple(sorted(paths)))

    def _add(
        self, series: str, sop: str, facts: FoundFacts, more: Mapping[str, list[Any]], paths: tuple[str, ...]
    ) -> None:  # fmt: skip
        if len(self._seen) >= MAX_MEMBERS:
            raise BadMetadata(f"there are more than {MAX_MEMBERS} instances")
        if sop in self._seen:
            self.members.get(self._seen[sop], {}).pop(sop, None)
            return
        self._seen[sop] = series
        try:
            number, position, orientation = [_numbers(more[tag], length) for tag, length in _LENGTHS.items()]
            flavor = _text(more[_IMAGE_TYPE][2:3])
            member = Member(validate_uid(sop), facts.metadata(), number, position, orientation, flavor, paths)
            self.members.setdefault(validate_uid(series), {})[sop] = member
        except (BadMetadata, InvalidUID):
            return


MAX_PATHS = 64
"""Optical paths of an instance that are told apart."""


def _keep_paths(paths: list[str]) -> Events:
    """Add the identifiers of the items of an OpticalPathSequence that has just begun to *paths*."""
    depth, at = 1, 0
    while depth:
        event, value = yield
        if event in OPEN:
            depth += 1
        elif event in CLOSE:
            depth -= 1
            at = 0 if depth < at else at
        elif event == "map_key" and value == _OPTICAL_PATH and not at:
            at = depth + 1
        elif at and event == "string" and depth == at + 1 and len(paths) < MAX_PATHS:
            paths.append(_text([value]))


def _both(one: Events, other: Events) -> Events:
    """Have two readers read the same element."""
    next(one)
    next(other)
    try:
        while True:
            event = yield
            other.send(event)
            one.send(event)
    except StopIteration:
        with contextlib.suppress(StopIteration):
            one.send(event)


def _text(values: list[Any]) -> str:
    """The text that the only one of *values* is; "" where it is none, or is none of DICOM's short ones."""
    return values[0].strip() if values and isinstance(values[0], str) and len(values[0]) <= MAX_TEXT else ""


MAX_TEXT = 16
"""Characters of a CS or SH value (PS3.5 section 6.2)."""


def _numbers(values: list[Any], length: int) -> Numbers:
    """So many numbers; none where *values* are no such. IS and DS come as numbers or as texts, depending on the store."""
    try:
        numbers = tuple([float(value) for value in values])
    except (TypeError, ValueError, OverflowError):
        return ()
    return numbers if len(numbers) == length and all(abs(number) < 1e9 for number in numbers) else ()


def pack_members(members: Iterable[Member]) -> bytes:
    """A compact form for `unpack_members`: some 50 bytes an instance."""
    rows = [[one.sop, attrs.asdict(one.metadata), *attrs.astuple(one, recurse=False)[2:]] for one in members]
    return zlib.compress(json.dumps(rows, separators=(",", ":")).encode(), 1)


def unpack_members(packed: bytes) -> Mapping[str, Member]:
    """Undo `pack_members`. Raises `BadMetadata` for anything else, of another version too."""
    try:
        rows = json.loads(zlib.decompress(packed))
        return {
            sop: Member(sop, InstanceMetadata.of(facts), tuple(number), tuple(at), tuple(along), flavor, tuple(paths))
            for sop, facts, number, at, along, flavor, paths in rows
        }
    except (ValueError, TypeError, zlib.error) as error:
        raise BadMetadata("the cached instances of a series are malformed") from error
