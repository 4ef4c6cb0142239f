"""The short path ``studies/{}/instances/{}/frames/…`` lacks the series: a search with the caller's own headers finds it.

What was found is remembered until a STOW or DELETE may have changed it. A search that is under way then says what was
before: it is neither remembered nor joined.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Optional

from twistedproxy.dicom.lenient_json import first_value
from twistedproxy.dicom.resource import Instance, Scope, store_of, validate_uid
from twistedproxy.frames.searches import search
from twistedproxy.frames.single_flight import SingleFlight
from twistedproxy.origin.errors import OriginBadAnswer, refused
from twistedproxy.origin.interface import Caller, Origin

MAX_REMEMBERED = 10_000
"""Answers that are remembered, each for one caller: about 400 bytes each."""

_Key = tuple[bytes, str, str, str]  # credential, place (see `Instance`), study, instance


class SeriesLookup:
    """Finds the series of instances. What was found for a caller is remembered for that caller, *seconds* long."""

    def __init__(self, clock: Callable[[], float], seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._found: OrderedDict[_Key, tuple[float, str]] = OrderedDict()
        self._searching: SingleFlight[_Key, str] = SingleFlight()

    async def instance(
        self, origin: Origin, root: str, study: Optional[str], sop: Optional[str], caller: Caller
    ) -> Instance:
        """The whole address of instance *sop* in *study*.

        Raises the errors of `twistedproxy.origin.errors`; `OriginRefused` with 404 where the search finds nothing.
        """
        assert study is not None and sop is not None
        key = (caller.credential, origin.url + root, study, sop)
        expires, series = self._found.get(key, (0.0, ""))
        if expires <= self._clock():
            search = functools.partial(self._search, key, origin, root, caller)
            series, _ = await self._searching.one(key, caller.credential, search)
        return Instance(origin.url, root, study, series, sop)

    def invalidate(self, scope: Scope) -> None:
        """Remember nothing of *scope* any more: one pass, for the rare STOW and DELETE."""
        self._searching = SingleFlight()
        for key in [key for key, (_, series) in self._found.items() if _lies_in(scope, key, series)]:
            del self._found[key]

    async def _search(self, key: _Key, origin: Origin, root: str, caller: Caller) -> str:
        _, _, study, sop = key
        searching = self._searching
        series = await self._ask(origin, root, study, sop, caller)
        if self._searching is not searching:  # an invalidation came meanwhile
            return series
        self._found[key] = (self._clock() + self._seconds, series)
        self._found.move_to_end(key)
        while len(self._found) > MAX_REMEMBERED:
            self._found.popitem(last=False)
        return series

    async def _ask(self, origin: Origin, root: str, study: str, sop: str, caller: Caller) -> str:
        query = f"SOPInstanceUID={sop}&includefield=0020000E&limit=1"
        return _series_in(await search(origin, f"{root}/studies/{study}/instances", query, caller), study, sop)


def _lies_in(scope: Scope, key: _Key, series: str) -> bool:
    """Whether *scope* may concern what was found. An instance in it may have been in another series before."""
    _, place, study, sop = key
    within = scope.sop == sop if scope.sop is not None else scope.series in (None, series)
    return within and scope.study in (None, study) and scope.store == store_of(place)


def _series_in(found: Sequence[Any], study: str, sop: str) -> str:
    """The series that what a search *found* names for the instance; one that names another study is of another."""
    try:
        for attributes in found:
            same_study = first_value(attributes, "0020000D") in (None, study)
            if same_study and attributes["00080018"]["Value"][0] == sop:
                return validate_uid(first_value(attributes, "0020000E"))
    except (ValueError, LookupError, TypeError):
        raise OriginBadAnswer("the origin's response to a search for one instance is not DICOM JSON") from None
    raise refused(404, "the study has no such instance")
