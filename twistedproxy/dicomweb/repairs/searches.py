"""Attributes that a store left out of search results (PS3.18 section 10.6.3).

- RetrieveURL (0008,1190) is where the proxy has the study, series or instance; clients may rely on it.
- InstanceAvailability (0008,0056), where it was asked for, is ONLINE: what a store answers for without more ado is.
- ModalitiesInStudy (0008,0061) and numbers of series and instances (0020,1206), (0020,1208), where they were asked for, come from one
  more search for each study, in the caller's name: of its series. Not where many studies were found, or many series: those might be
  one page of more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Optional
from urllib.parse import parse_qsl

import attrs
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from twistedproxy.deferreds import all_or_none
from twistedproxy.dicom.lenient_json import first_value
from twistedproxy.dicom.resource import InvalidUID, validate_uid
from twistedproxy.dicomweb.mounts import Target
from twistedproxy.dicomweb.repairs.members import Members, has_value, objects_in, with_turns
from twistedproxy.frames.searches import search
from twistedproxy.origin.errors import OriginError
from twistedproxy.origin.interface import Caller

MAX_STUDIES = 20
"""Studies of one answer that are searched for more, at most."""

MAX_SERIES = 100
"""Series from which on an answer may be one page of several: the shortest page of stores in use."""

MAX_ANSWER = 256 << 10
"""Bytes of the answer to such a search."""

WAIT_SECONDS = 5.0
"""How long an answer waits for these searches (seconds)."""

RETRIEVE_URL, AVAILABILITY = "00081190", "00080056"
MODALITIES, SERIES_COUNT, INSTANCE_COUNT = "00080061", "00201206", "00201208"
_FIELDS = {
    "instanceavailability": AVAILABILITY,
    "modalitiesinstudy": MODALITIES,
    "numberofstudyrelatedseries": SERIES_COUNT,
    "numberofstudyrelatedinstances": INSTANCE_COUNT,
}
_OF_STUDIES = (MODALITIES, SERIES_COUNT, INSTANCE_COUNT)
_LEVELS = {"studies": "0020000D", "series": "0020000E", "instances": "00080018"}
_SERIES_FIELDS = "includefield=00080060&includefield=00201209"


@attrs.frozen
class SearchRepairs:
    """Finds what to add. *clock*: for deadlines."""

    clock: IReactorTime

    async def members(self, answer: bytes, whole: bool, target: Target, caller: Caller) -> dict[int, Members]:
        """What to add to the objects in *answer*, what the store found for *caller*, or (not *whole*) its beginning."""
        asked = asked_for(target.query)
        level = target.raw_path.rpartition(b"/")[2].decode("latin-1")
        members: dict[int, dict[str, bytes]] = {}
        studies: dict[int, tuple[str, list[str]]] = {}
        async for begin, end, attributes in with_turns(objects_in(answer), self.clock):
            if not end or not isinstance(attributes, dict) or (path := _path(attributes, level, target)) is None:
                continue
            added = {RETRIEVE_URL: _element("UR", [f"{target.origin.url}{target.resource.root}{path}"])}
            if AVAILABILITY in asked:
                added[AVAILABILITY] = _element("CS", ["ONLINE"])
            members[begin] = {tag: element for tag, element in added.items() if not has_value(attributes.get(tag))}
            lacking = [tag for tag in _OF_STUDIES if tag in asked and not has_value(attributes.get(tag))]
            if lacking and level == "studies":
                studies[begin] = path, lacking
        if studies and whole and len(studies) <= MAX_STUDIES:
            summaries = await self._summaries([path for path, _ in studies.values()], target, caller)
            for (begin, (_, tags)), summary in zip(studies.items(), summaries):
                members[begin] |= {tag: summary[tag] for tag in tags if tag in summary}
        return {begin: added for begin, added in members.items() if added}

    async def _summaries(self, paths: Sequence[str], target: Target, caller: Caller) -> Sequence[Members]:
        """What is known of each study, as far as that comes soon."""
        waits = [Deferred.fromCoroutine(self._summary(path, target, caller)) for path in paths]
        for wait in waits:
            wait.addTimeout(WAIT_SECONDS, self.clock)
            wait.addErrback(lambda failure: failure.trap(defer.TimeoutError) and {})
        return await all_or_none(waits)

    async def _summary(self, path: str, target: Target, caller: Caller) -> Members:
        """What the series of the study at *path* say of it; nothing where they are not all there."""
        where = f"{target.resource.root}{path}/series"
        try:
            return summary_of(await search(target.origin, where, _SERIES_FIELDS, caller, MAX_ANSWER, whole=True))
        except OriginError:
            return {}


def asked_for(query: bytes) -> frozenset[str]:
    """The tags that a search asks for beside those that the store gives anyway, of those that can be added."""
    asked: set[str] = set()
    for name, value in parse_qsl(query.decode("latin-1")):
        if name.lower() == "includefield":
            for field in value.lower().split(","):
                asked |= set(_FIELDS.values()) if field == "all" else {_FIELDS.get(field, field.upper())}
    return frozenset(asked & set(_FIELDS.values()))


def summary_of(series: Any) -> Members:
    """What the *series* of a study, as a search found them, say of the study; nothing where they may be one page of more."""
    if not isinstance(series, list) or not 0 < len(series) < MAX_SERIES:
        return {}
    modalities = [first_value(one, "00080060") for one in series]
    counts = [_count(first_value(one, "00201209")) for one in series]
    summary = {SERIES_COUNT: _element("IS", [len(series)])}
    if all(isinstance(modality, str) for modality in modalities):
        summary[MODALITIES] = _element("CS", sorted(set(modalities)))
    if None not in counts:
        summary[INSTANCE_COUNT] = _element("IS", [sum(filter(None, counts))])
    return summary


def _count(value: Any) -> Optional[int]:
    """IS comes as a number or as a text, depending on the store."""
    text = str(value).strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else None


def _path(attributes: Mapping[str, Any], level: str, target: Target) -> Optional[str]:
    """The path of the study, series or instance that an object describes; None where it does not place it."""
    named = {"studies": target.resource.study, "series": target.resource.series, "instances": None}
    path = ""
    for one, tag in _LEVELS.items():
        uid = first_value(attributes, tag) or named[one]
        try:
            path += f"/{one}/{validate_uid(uid)}" if isinstance(uid, str) else ""
        except InvalidUID:
            return None
        if not isinstance(uid, str):
            return None
        if one == level:
            return path
    return None


def _element(vr: str, values: Sequence[object]) -> bytes:
    return json.dumps({"vr": vr, "Value": values}, separators=(",", ":")).encode("ascii")
