"""The instances of a series, or of all series of a study, read from its DICOM JSON metadata (PS3.18 section 10.4.1.1.2, annex F) as they come.

- Objects that do not name study, series and instance, each once, count for nothing; nor do two of one instance.
- An object whose facts make no sense is left out, and the others stay.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Optional

import attrs

from twistedproxy.dicom.json_events import UIDS, ArrayEvents, BadMetadata, Events, keep_values, read_object, uids_in
from twistedproxy.dicom.metadata import FoundFacts, InstanceMetadata
from twistedproxy.dicom.resource import InvalidUID, validate_uid

MAX_MEMBERS = 20_000
"""Instances of a series or study: some 10 MB. One of more is not known."""

_NUMBER, _POSITION, _ORIENTATION = "00200013", "00200032", "00200037"
_LENGTHS = {_NUMBER: 1, _POSITION: 3, _ORIENTATION: 6}

Numbers = tuple[float, ...]


@attrs.frozen
class Member:
    """An instance of a series. *number*: InstanceNumber (0020,0013), one value; *position*: ImagePositionPatient (0020,0032),
    three, in mm; *orientation*: ImageOrientationPatient (0020,0037), six. Each is empty where it is missing, or makes no sense."""

    sop: str
    metadata: InstanceMetadata
    number: Numbers = ()
    position: Numbers = ()
    orientation: Numbers = ()


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
        more: dict[str, list[Any]] = {tag: [] for tag in _LENGTHS}

        def element(tag: str) -> Optional[Events]:
            return keep_values(more[tag]) if tag in more else facts.element(tag)

        yield from read_object(element, uids)
        named = uids_in(uids)
        if named is not None and named[0] == self._study and self._series in (None, named[1]):
            self._add(named[1], named[2], facts, more)

    def _add(self, series: str, sop: str, facts: FoundFacts, more: Mapping[str, list[Any]]) -> None:
        if len(self._seen) >= MAX_MEMBERS:
            raise BadMetadata(f"there are more than {MAX_MEMBERS} instances")
        if sop in self._seen:
            self.members.get(self._seen[sop], {}).pop(sop, None)
            return
        self._seen[sop] = series
        try:
            values = [_numbers(more[tag], length) for tag, length in _LENGTHS.items()]
            member = Member(validate_uid(sop), facts.metadata(), *values)
            self.members.setdefault(validate_uid(series), {})[sop] = member
        except (BadMetadata, InvalidUID):
            return


def _numbers(values: list[Any], length: int) -> Numbers:
    """So many numbers; none where *values* are no such. IS and DS come as numbers or as texts, depending on the store."""
    try:
        numbers = tuple([float(value) for value in values])
    except (TypeError, ValueError, OverflowError):
        return ()
    return numbers if len(numbers) == length and all(abs(number) < 1e9 for number in numbers) else ()


def pack_members(members: Iterable[Member]) -> bytes:
    """A compact form for `unpack_members`: some 50 bytes an instance."""
    rows = [[one.sop, attrs.asdict(one.metadata), one.number, one.position, one.orientation] for one in members]
    return zlib.compress(json.dumps(rows, separators=(",", ":")).encode(), 1)


def unpack_members(packed: bytes) -> Mapping[str, Member]:
    """Undo `pack_members`. Raises `BadMetadata` for anything else, of another version too."""
    try:
        rows = json.loads(zlib.decompress(packed))
        return {sop: Member(sop, InstanceMetadata.of(facts), *map(tuple, more)) for sop, facts, *more in rows}
    except (ValueError, TypeError, zlib.error) as error:
        raise BadMetadata("the cached instances of a series are malformed") from error
