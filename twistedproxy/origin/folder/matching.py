"""Whether an attribute matches a key (DICOM PS3.4 section C.2.2.2). Pure.

- Nothing given matches everything.
- Any of several values: a parameter may be given several times, and values joined by backslashes; those of UIDs and codes
  (ModalitiesInStudy), which hold none, by commas too. Dates and times: a value or a range with a hyphen.
- Text: ``*`` and ``?`` as wildcards where the VR allows them; person names whatever their case.
- Of several values any one may match.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from twistedproxy.origin.folder.instance_file import JSONElement
from twistedproxy.origin.folder.query import Match

_WILDCARD_VRS = frozenset("AE CS LO LT PN SH ST UC UR UT".split())
_TEXT_VRS = frozenset("ST LT UT".split())  # a backslash is one of their characters
_LIST_VRS = frozenset("UI CS".split())
_RANGE_VRS = frozenset("DA TM DT".split())
_NUMBER_VRS = frozenset("IS DS US UL SS SL FL FD UV SV".split())
_LOWEST, _HIGHEST = "0", "9"
_PRECISION = 14  # digits of YYYYMMDDHHMMSS: shorter values stand for a range


def matches(attributes: Mapping[str, JSONElement], key: Match) -> bool:
    """Whether any value at the key's place matches."""
    wanted = [one for value in key.values for one in _alternatives(key.vr, value)]
    if "" in wanted:
        return True
    return any(_value_matches(value, key.vr, one) for value in _values(attributes, key.place) for one in wanted)


def _alternatives(vr: str, value: str) -> Sequence[str]:
    if vr in _TEXT_VRS:
        return (value,)
    if vr in _LIST_VRS:
        value = value.replace(",", "\\")
    return value.split("\\") if value else ("",)


def _values(attributes: Mapping[str, Any], place: Sequence[str]) -> list[Any]:
    found = attributes.get(place[0], {}).get("Value", ())
    if len(place) == 1:
        return list(found)
    return [value for item in found if isinstance(item, dict) for value in _values(item, place[1:])]


def _value_matches(value: Any, vr: str, wanted: str) -> bool:
    if vr == "UI":
        return bool(value == wanted)
    if vr in _RANGE_VRS:
        return _in_range(_digits(str(value)), wanted)
    if vr in _NUMBER_VRS:
        return _number(value) == _number(wanted) is not None
    if vr == "PN":
        names = value.values() if isinstance(value, dict) else (value,)
        return any(like(str(name).rstrip("^").casefold(), wanted.rstrip("^").casefold()) for name in names)
    return like(str(value), wanted) if vr in _WILDCARD_VRS else str(value) == wanted


def _number(value: Any) -> Optional[float]:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _digits(text: str) -> str:
    # The parts of a second and time zones are beyond what a search is made by.
    return text.replace(":", "").partition(".")[0].partition("+")[0]


def _in_range(value: str, wanted: str) -> bool:
    start, hyphen, end = (_digits(part) for part in wanted.partition("-"))
    if not hyphen:
        end = start
    earliest = value.ljust(_PRECISION, _LOWEST)
    if start and earliest < start.ljust(_PRECISION, _LOWEST):
        return False
    return not end or earliest <= end.ljust(_PRECISION, _HIGHEST)


def like(text: str, pattern: str) -> bool:
    """Whether *text* fits *pattern* with ``*`` (any characters) and ``?`` (any one).

    In the time of len(text) * len(pattern), whatever they hold: regular expressions may take much longer.
    """
    at = star = 0
    position, resume = 0, -1
    while position < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, resume = at, position
            at += 1
        elif at < len(pattern) and pattern[at] in (text[position], "?"):
            at += 1
            position += 1
        elif resume >= 0:  # let the last star take one character more
            resume += 1
            at, position = star + 1, resume
        else:
            return False
    return not pattern[at:].strip("*")
