"""Adds AvailableTransferSyntaxUID (0008,3002) to instances in DICOM JSON (PS3.18 annex F) whose origin left it out.

A viewer that must probe for the transfer syntax takes minutes to open a slide.

Rules:
- only the part of an answer that is held is looked at, one object at a time; what follows it passes unchanged;
- an object's own (0002,0010), which Google sends, comes before what is known of its instance;
- the member goes in front of the first greater tag, so members that are sorted (section F.2.2) stay sorted;
- all else stays as it is, byte for byte: texts are read as Latin-1, one character a byte, for UIDs are ASCII;
- what is no DICOM JSON is never an error: at worst nothing is added.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Optional, Union

from twistedproxy.dicom.lenient_json import first_value
from twistedproxy.dicom.resource import Instance, InvalidUID
from twistedproxy.dicomweb.mounts import Target

MAX_LOOKUPS = 64
"""Instances of one answer whose transfer syntax is looked up: search pages of viewers are not longer."""

MAX_HEAD = 64 << 10
"""Bytes of an object in which the place of the member is looked for: sorted members in front of it are few and small."""

AVAILABLE = "00083002"

_DECODER = json.JSONDecoder(strict=False)
_ARRAY = re.compile(r"(?:\xef\xbb\xbf)?[ \t\r\n]*\[")  # perhaps behind a byte order mark
_BETWEEN = re.compile(r"[ \t\r\n,]*")
_KEY = re.compile(r'[ \t\r\n,]*"([0-9A-Fa-f]{8})"[ \t\r\n]*:[ \t\r\n]*')
_END = re.compile(r"[ \t\r\n]*\}")
_UID = re.compile(r"[0-9.]{1,64}")
_MEMBER = b'"00083002":{"vr":"UI","Value":["%s"]}'


def instances_in(answer: bytes, target: Target) -> Iterator[tuple[int, Union[Instance, str, None]]]:
    """The first instances that a DICOM JSON *answer*, or the beginning of one, describes without (0008,3002), as far as
    it places them, and where their objects begin; for an object with (0002,0010) that transfer syntax. None for each object in
    between: decoding many takes its time."""
    found = 0
    for position, attributes in objects_in(answer):
        placed = _placed(attributes, target)
        found += isinstance(placed, Instance)
        yield position, placed
        if found == MAX_LOOKUPS:
            break


def objects_in(answer: bytes) -> Iterator[tuple[int, object]]:
    """The values in a JSON array, or in the beginning of one, and where they begin."""
    text = answer.decode("latin-1")
    array = _ARRAY.match(text)
    position = array.end() if array is not None else len(text)
    with suppress(ValueError, RecursionError):  # the end, or what is no JSON
        while between := _BETWEEN.match(text, position):
            value, position = _DECODER.raw_decode(text, between.end())
            yield between.end(), value


def _placed(attributes: object, target: Target) -> Union[Instance, str, None]:
    if not isinstance(attributes, dict) or _first(attributes, AVAILABLE):
        return None
    if own := _first(attributes, "00020010"):
        return own
    study = _first(attributes, "0020000D") or target.resource.study
    series = _first(attributes, "0020000E") or target.resource.series
    sop = _first(attributes, "00080018")
    if not study or not series or not sop:
        return None
    try:
        return Instance(target.origin.url, target.resource.root, study, series, sop)
    except InvalidUID:
        return None


def _first(attributes: dict[str, object], tag: str) -> Optional[str]:
    value = first_value(attributes, tag)
    return value if isinstance(value, str) else None


def with_syntaxes(answer: bytes, syntaxes: Mapping[int, str]) -> bytes:
    """*answer* with the transfer syntax of each object that begins at a position in *syntaxes*, where the object has none."""
    out: list[bytes] = []
    done = 0
    for position, uid in sorted(syntaxes.items()):
        place = _place(answer[position : position + MAX_HEAD].decode("latin-1")) if _UID.fullmatch(uid) else None
        if place is not None:
            begin, end, member = place
            out += (answer[done : position + begin], member % uid.encode("ascii"))
            done = position + end
    return b"".join((*out, answer[done:]))


def _place(head: str) -> Optional[tuple[int, int, bytes]]:
    """Where the object that *head* begins with gets the member: instead of what, and with which comma. None where it has one,
    or where that is not certain."""
    place: Optional[tuple[int, int, bytes]] = None
    position = 1
    with suppress(ValueError, RecursionError):
        while key := _KEY.match(head, position):
            begin, tag = key.start(1) - 1, key[1].upper()
            if tag > AVAILABLE and place is None:
                place = begin, begin, _MEMBER + b","
            if place is not None and f'"{AVAILABLE}"' not in head[begin:]:
                return place
            value, position = _DECODER.raw_decode(head, key.end())
            if tag == AVAILABLE:
                return None if isinstance(value, dict) and value.get("Value") else (begin, position, _MEMBER)
        if place is None and position > 1 and _END.match(head, position):
            place = position, position, b"," + _MEMBER
    return place
