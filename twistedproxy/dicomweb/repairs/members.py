"""Members added to objects in DICOM JSON (PS3.18 annex F), and where the objects are. AvailableTransferSyntaxUID (0008,3002) is
one: a viewer that must probe for the transfer syntax takes minutes to open a slide.

Rules:
- only the part of an answer that is held is looked at, one object at a time; what follows it passes unchanged;
- an object's own (0002,0010), which Google sends, comes before what is known of its instance;
- a member goes in front of the first greater tag, so members that are sorted (section F.2.2) stay sorted;
- all else stays as it is, byte for byte: texts are read as Latin-1, one character a byte, for what is added is ASCII;
- what is no DICOM JSON is never an error: at worst nothing is added.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from contextlib import suppress
from typing import Any, Optional, TypeVar, Union

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from twistedproxy.dicom.lenient_json import first_value
from twistedproxy.dicom.resource import Instance, InvalidUID
from twistedproxy.dicomweb.mounts import Target

MAX_LOOKUPS = 64
"""Instances of one answer whose transfer syntax is looked up: search pages of viewers are not longer."""

MAX_HEAD = 64 << 10
"""Bytes of an object in which the place of a member is looked for: sorted members in front of it are few and small."""

STRETCH = 0.002
"""Seconds of work after which the reactor gets its turn."""

AVAILABLE, PATHS, GROUPS = "00083002", "00480105", "52009230"
"""AvailableTransferSyntaxUID, OpticalPathSequence, PerFrameFunctionalGroupsSequence."""

_DECODER = json.JSONDecoder(strict=False)
_ARRAY = re.compile(r"(?:\xef\xbb\xbf)?[ \t\r\n]*\[")  # perhaps behind a byte order mark
_BETWEEN = re.compile(r"[ \t\r\n,]*")
_KEY = re.compile(r'[ \t\r\n,]*"([0-9A-Fa-f]{8})"[ \t\r\n]*:[ \t\r\n]*')
_END = re.compile(r"[ \t\r\n]*\}")
_ITEMS = re.compile(r'\{\s*"vr"\s*:\s*"SQ"\s*,\s*"Value"\s*:\s*\[')
_ITEMS_END = re.compile(r"\s*\]\s*\}")
_UID = re.compile(r"[0-9.]{1,64}")

T = TypeVar("T")

Members = Mapping[str, bytes]
"""Elements to add to one object, as JSON in ASCII, by tag."""


def instances_in(answer: bytes, target: Target) -> Iterator[tuple[int, Union[Instance, str, None]]]:
    """The first instances that a DICOM JSON *answer*, or the beginning of one, describes without (0008,3002), as far as
    it places them, and where their objects begin; for an object with (0002,0010) that transfer syntax. None for each object in
    between: decoding many takes its time."""
    found = 0
    for position, _, attributes in objects_in(answer):
        placed = _placed(attributes, target)
        found += isinstance(placed, Instance)
        yield position, placed
        if found == MAX_LOOKUPS:
            break


def objects_in(answer: bytes) -> Iterator[tuple[int, int, object]]:
    """The values in a JSON array, or in the beginning of one: where each begins and ends, and itself; of functional groups of each
    frame only that they are there. With 0 for the end, None for what is not over yet: decoding takes its time."""
    text = answer.decode("latin-1")
    array = _ARRAY.match(text)
    position = array.end() if array is not None else len(text)
    with suppress(ValueError, RecursionError):  # the end, or what is no JSON
        while between := _BETWEEN.match(text, position):
            begin = between.end()
            value, position = yield from _object(text, begin)
            yield begin, position, value


_Steps = Generator[tuple[int, int, object], None, T]


def _object(text: str, begin: int) -> _Steps[tuple[object, int]]:
    attributes: dict[str, object] = {}
    position = begin + 1
    while text.startswith("{", begin) and (key := _KEY.match(text, position)):
        tag = key[1].upper()
        items = _ITEMS.match(text, key.end()) if tag == GROUPS else None
        if items is None:
            attributes[tag], position = _DECODER.raw_decode(text, key.end())
        else:
            count, position = yield from _passed_by(text, begin, items.end())
            attributes[tag] = {"vr": "SQ", "Value": [{}] * min(count, 1)}
    end = _END.match(text, position) if text.startswith("{", begin) else None
    return (attributes, end.end()) if end is not None else _DECODER.raw_decode(text, begin)


def _passed_by(text: str, begin: int, position: int) -> _Steps[tuple[int, int]]:
    """How many items a sequence has, and where its element ends."""
    count = 0
    while (end := _ITEMS_END.match(text, position)) is None:
        between = _BETWEEN.match(text, position)
        _, position = _DECODER.raw_decode(text, between.end() if between is not None else position)
        count += 1
        yield begin, 0, None
    return count, end.end()


async def with_turns(values: Iterator[T], clock: IReactorTime) -> AsyncIterator[T]:
    """*values*, with turns of the reactor between."""
    begin = clock.seconds()
    for value in values:
        yield value
        if clock.seconds() - begin > STRETCH:
            await deferLater(clock, 0)
            begin = clock.seconds()


def _placed(attributes: object, target: Target) -> Union[Instance, str, None]:
    if not isinstance(attributes, dict) or _first(attributes, AVAILABLE):
        return None
    if own := _first(attributes, "00020010"):
        return own
    return instance_of(attributes, target)


def instance_of(attributes: Mapping[str, Any], target: Target) -> Optional[Instance]:
    """The instance that an object in the answer to a request for *target* describes; None where it does not place it."""
    study = _first(attributes, "0020000D") or target.resource.study
    series = _first(attributes, "0020000E") or target.resource.series
    sop = _first(attributes, "00080018")
    if not study or not series or not sop:
        return None
    try:
        return Instance(target.origin.url, target.resource.root, study, series, sop)
    except InvalidUID:
        return None


def _first(attributes: Mapping[str, Any], tag: str) -> Optional[str]:
    value = first_value(attributes, tag)
    return value if isinstance(value, str) else None


def syntax_members(syntaxes: Mapping[int, str]) -> dict[int, Members]:
    """The transfer syntaxes as members to add, less what is no UID."""
    element = b'{"vr":"UI","Value":["%s"]}'
    return {at: {AVAILABLE: element % uid.encode("ascii")} for at, uid in syntaxes.items() if _UID.fullmatch(uid)}


def with_members(answer: bytes, members: Mapping[int, Members], ends: Mapping[int, int] = {}) -> bytes:
    """*answer* with *members* added to each object that begins at a position, where the object has no value for them; its
    optical paths are replaced. *ends*: where objects end that are known as a whole; of others the beginning decides."""
    out: list[bytes] = []
    done = 0
    for position, added in sorted(members.items()):
        head = answer[position : ends.get(position, position + MAX_HEAD)].decode("latin-1")
        places = [place for tag in sorted(added) if (place := _place(head, tag, added[tag])) is not None]
        for begin, end, member in sorted(places, key=lambda place: place[:1]):
            out += (answer[done : position + begin], member)
            done = position + end
    return b"".join((*out, answer[done:]))


def _place(head: str, tag: str, element: bytes) -> Optional[tuple[int, int, bytes]]:
    """Where the object that *head* begins with gets the member *tag*: instead of what, and with which comma. None where it has
    one, or where that is not certain."""
    member = b'"%s":%s' % (tag.encode("ascii"), element)
    place: Optional[tuple[int, int, bytes]] = None
    position, last = 1, head.rfind(f'"{tag}"')
    with suppress(ValueError, RecursionError):
        while key := _KEY.match(head, position):
            begin, other = key.start(1) - 1, key[1].upper()
            if other > tag and place is None:
                place = begin, begin, member + b","
            if place is not None and last < begin:
                return place
            value, position = _DECODER.raw_decode(head, key.end())
            if other == tag:
                return (begin, position, member) if tag == PATHS or not has_value(value) else None
        if place is None and position > 1 and _END.match(head, position):
            place = position, position, b"," + member
    return place


def element_of(item: bytes, tag: str) -> Optional[bytes]:
    """The element *tag* of the object that *item* begins with, as it stands there."""
    text = item.decode("latin-1")
    position = 1
    with suppress(ValueError, RecursionError):
        while key := _KEY.match(text, position):
            _, position = _DECODER.raw_decode(text, key.end())
            if key[1].upper() == tag:
                return item[key.end() : position]
    return None


def has_value(element: object) -> bool:
    """Whether an element has a value, or says where it is."""
    return isinstance(element, dict) and any(element.get(key) for key in ("Value", "InlineBinary", "BulkDataURI"))
