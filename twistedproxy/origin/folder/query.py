"""Search queries (QIDO-RS, DICOM PS3.18 sections 8.3.4 and 10.6), read and checked.

- Attributes go by keyword or by eight hexadecimal digits, those in sequences with dots between.
- What is not understood is refused, naming what came and what is accepted; `fuzzymatching` is ignored,
  as the standard allows.
"""

from __future__ import annotations

import re
from typing import Optional
from urllib.parse import parse_qsl

import attrs
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword

from twistedproxy.origin.folder.answers import Refusal, shown
from twistedproxy.origin.folder.instance_file import ALL_LEVELS

MAX_PARAMETERS = 100
MAX_RESULTS = 5000  # of one answer; a client that wants more asks for the next ones with offset
_HEX = re.compile(r"[0-9A-Fa-f]{8}")
_IGNORED = frozenset(("fuzzymatching", "accept", "charset", "emptyvaluematching", "multiplevaluematching"))

Place = tuple[str, ...]


@attrs.frozen
class Match:
    """One matching key: the attribute at *place* (tags from the outside in) must match *value*."""

    place: Place
    vr: str
    value: str


@attrs.frozen
class Query:
    """*include*: attributes asked for; *include_all*: all that are there. *limit*: None where none was given."""

    matches: tuple[Match, ...] = ()
    include: tuple[Place, ...] = ()
    include_all: bool = False
    limit: Optional[int] = None
    offset: int = 0


def parse_query(raw: bytes) -> Query:
    """Read a query string. Raises `Refusal` 400."""
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS, errors="strict")
    except ValueError:
        raise Refusal(400, f"the query is no UTF-8 or has more than {MAX_PARAMETERS} parameters") from None
    matches: list[Match] = []
    include: list[Place] = []
    include_all = False
    numbers: dict[str, int] = {}
    for name, value in pairs:
        lowered = name.lower()
        if lowered in _IGNORED:
            continue
        if lowered in ("limit", "offset"):
            numbers[lowered] = _count(lowered, value)
        elif lowered == "includefield":
            fields = [field for field in value.split(",") if field]
            include_all = include_all or "all" in (field.lower() for field in fields)
            include += [_place(field) for field in fields if field.lower() != "all"]
        else:
            matches.append(_match(name, value))
    return Query(tuple(matches), tuple(include), include_all, numbers.get("limit"), numbers.get("offset", 0))


def _count(name: str, value: str) -> int:
    if value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    raise Refusal(400, f"{name}={shown(value)}: a number from 0 is accepted")


def _match(name: str, value: str) -> Match:
    place = _place(name)
    if place[0] not in ALL_LEVELS:
        accepted = ", ".join(sorted(keyword_for_tag(int(tag, 16)) for tag in ALL_LEVELS))
        raise Refusal(400, f"{shown(name)} cannot be searched by; accepted are limit, offset, includefield, {accepted}")
    return Match(place, dictionary_VR(int(place[-1], 16)), value)


def _place(field: str) -> Place:
    return tuple(_tag(name, field) for name in field.split("."))


def _tag(name: str, field: str) -> str:
    if _HEX.fullmatch(name):
        tag: Optional[int] = int(name, 16)
    else:
        tag = tag_for_keyword(name)
    if tag is None:
        raise Refusal(
            400,
            f"{shown(field)} is no attribute: a keyword of the DICOM dictionary (PatientID), a tag (00100020) or"
            " several with dots between, or limit, offset, includefield, fuzzymatching are accepted",
        )
    return f"{tag:08X}"
