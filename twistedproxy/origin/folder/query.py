"""Search queries (QIDO-RS, DICOM PS3.18 sections 8.3.4 and 10.6), read and checked.

- Attributes go by keyword or by eight hexadecimal digits, those in sequences with dots between.
- Parameters that are not known, and attributes that cannot be matched by, are ignored, as PS3.18 section 8.3.4 and
  PS3.4 section C.2.2.1.3 ask for; the answer names them. `fuzzymatching` is ignored, as the standard allows.
"""

from __future__ import annotations

import re
from typing import Optional
from urllib.parse import parse_qsl

import attrs
from pydicom.datadict import dictionary_VR, tag_for_keyword

from twistedproxy.origin.folder.instance_file import ALL_LEVELS
from twistedproxy.origin.folder.refusals import Refusal, shown

MAX_PARAMETERS = 100
MAX_RESULTS = 5000  # of one answer; a client that wants more asks for the next ones with offset
_HEX = re.compile(r"[0-9A-Fa-f]{8}")
_IGNORED = frozenset(("fuzzymatching", "accept", "charset", "emptyvaluematching", "multiplevaluematching"))

Place = tuple[str, ...]


@attrs.frozen
class Match:
    """One matching key: the attribute at *place* (tags from the outside in) must match one of *values*."""

    place: Place
    vr: str
    values: tuple[str, ...]


@attrs.frozen
class Query:
    """*include*: attributes asked for; *include_all*: all that are there. *limit*: None where none was given. *ignored*: names
    of parameters that nothing is matched by."""

    matches: tuple[Match, ...] = ()
    include: tuple[Place, ...] = ()
    include_all: bool = False
    limit: Optional[int] = None
    offset: int = 0
    ignored: tuple[str, ...] = ()


def parse_query(raw: bytes) -> Query:
    """Read a query string. Raises `Refusal` 400."""
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS, errors="strict")
    except ValueError:
        raise Refusal(400, f"the query is no UTF-8 or has more than {MAX_PARAMETERS} parameters") from None
    wanted: dict[Place, list[str]] = {}
    include: list[Place] = []
    include_all = False
    numbers: dict[str, int] = {}
    ignored: list[str] = []
    for name, value in pairs:
        lowered = name.lower()
        if lowered in _IGNORED:
            continue
        if lowered in ("limit", "offset"):
            numbers[lowered] = _count(lowered, value)
        elif lowered == "includefield":
            fields = [field for field in value.split(",") if field]
            include_all = include_all or "all" in (field.lower() for field in fields)
            include += [place for field in fields if (place := _place(field)) is not None]
        elif (place := _place(name)) is not None and place[0] in ALL_LEVELS:
            wanted.setdefault(place, []).append(value)
        elif value:
            ignored.append(name)
    matches = tuple(Match(place, _vr(place[-1]), tuple(values)) for place, values in wanted.items())
    limit, offset = numbers.get("limit"), numbers.get("offset", 0)
    return Query(matches, tuple(include), include_all, limit, offset, tuple(ignored))


def _count(name: str, value: str) -> int:
    if value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    raise Refusal(400, f"{name}={shown(value)}: a number from 0 is accepted")


def _vr(tag: str) -> str:
    try:
        return dictionary_VR(int(tag, 16)).rpartition(" ")[2]
    except KeyError:  # a private or an unknown one
        return "UN"


def _place(field: str) -> Optional[Place]:
    """The tags that a keyword, a tag or a path of these names; None where that is no attribute."""
    tags = [int(name, 16) if _HEX.fullmatch(name) else tag_for_keyword(name) for name in field.split(".")]
    return None if None in tags else tuple(f"{tag:08X}" for tag in tags)
