"""Functional groups and ICC profiles that a store left out of metadata, from the stored object.

Viewers place the frames of sparse slides, and of enhanced CT, MR and PET, by their functional groups, and slides look wrong without
their profile.

Rules:
- PerFrameFunctionalGroupsSequence (5200,9230) is missing where an instance of several frames has the shared groups and is not
  TILED_FULL: only there is it optional (PS3.3 section C.7.6.16). Google leaves out long ones.
- A profile of optical paths (0048,0105) is missing where a color image has none, though PS3.3 section C.8.12.5 asks for one, and
  nothing in the object has a binary value or says where one is: Azure leaves out all. Slides without a profile exist, too, at stores
  that take long to give an object: of such a store one object is read, and then none for a while.
- The object is read once, up to its pixels, with the caller's own headers; what it gave is shown to callers who hold a grant for its
  pixels, beside the metadata that the store gave them.
- What is kept of the metadata stays as the store sent it.
- An answer waits for this, but not for long; the next one may have it.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Optional

import attrs
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.threads import deferToThread
from twisted.logger import Logger

from twistedproxy.deferreds import all_or_none, follow
from twistedproxy.dicom.lenient_json import first_value
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicomweb.mounts import Target
from twistedproxy.dicomweb.repairs.members import (
    GROUPS,
    PATHS,
    Members,
    element_of,
    has_value,
    instance_of,
    objects_in,
    with_members,
    with_turns,
)
from twistedproxy.imaging.errors import PoolError
from twistedproxy.imaging.object_header import HeldBack
from twistedproxy.origin.errors import OriginError
from twistedproxy.origin.interface import Caller
from twistedproxy.rendering.service import PictureService
from twistedproxy.system.memory_budget import NoRoom
from twistedproxy.system.outages import Recent

MAX_REPAIRED = 32
"""Instances of one answer that are repaired: a pyramid has some ten, with channels more."""

MAX_ADDED = 64 << 20
"""Bytes of functional groups that are added to one answer: the levels of a large sparse slide have less. The largest of one object have
half of that (`twistedproxy.imaging.object_header.MAX_GROUPS`)."""

WAIT_SECONDS = 10.0
"""How long an answer waits for the header of an object (seconds)."""

PROFILE_SECONDS = 3.0
"""The same where nothing but the profile is missing: colors are then as they would be without."""

STORE_SECONDS = 3600.0
"""For how long it is remembered whether a store leaves out profiles (seconds)."""

PAUSE_SECONDS = 300.0
"""For how long an object that could not be read is left alone (seconds)."""

INFLATED_AT_ONCE = 1 << 20
"""Bytes of functional groups that are decompressed in the reactor's thread: 2 ms."""

PROFILE = "00282000"
SHARED_GROUPS = "52009229"

_PAIRS = ((b"52009229", b"52009230"), (b"00480105", b"00282000"))
_BINARY = re.compile(rb'"(?:InlineBinary|BulkDataURI)"')
_PROFILE_PATH = re.compile(rb"/bulkdata/((?:00480105/[1-9][0-9]{0,3}/)?00282000)")
_log = Logger()


@attrs.frozen
class Missing:
    """An object in an answer that lacks something, where it begins and ends, and what: *groups*, *profile*."""

    begin: int
    end: int
    instance: Instance
    attributes: Mapping[str, Any]
    groups: bool
    profile: bool

    @property
    def frames(self) -> float:
        """NumberOfFrames (0028,0008), as far as it is a number."""
        try:
            return float(first_value(self.attributes, "00280008") or 1)
        except (TypeError, ValueError, OverflowError):
            return 1

    @property
    def is_volume(self) -> bool:
        """Whether it shows the slide, as ImageType (0008,0008) says; labels and overviews do not."""
        with suppress(LookupError, TypeError):
            return "VOLUME" in self.attributes["00080008"]["Value"]
        return False


@attrs.frozen
class MetadataRepairs:
    """Finds what is missing. *imaging*: reads objects; None where none is read."""

    imaging: Optional[PictureService]
    clock: IReactorTime
    _failed: Recent[tuple[bytes, Instance]] = attrs.field(init=False, factory=lambda: Recent(PAUSE_SECONDS))
    _leaves_out: Recent[str] = attrs.field(init=False, factory=lambda: Recent(STORE_SECONDS))
    _gives_all: Recent[str] = attrs.field(init=False, factory=lambda: Recent(STORE_SECONDS))

    async def members(self, answer: bytes, target: Target, caller: Caller) -> tuple[dict[int, Members], dict[int, int]]:
        """What to add to the objects in *answer*, the metadata that the store gave to *caller*, or their beginning; and where these
        objects end."""
        found: list[Missing] = []
        if self.imaging is None or not may_lack(answer):
            return {}, {}
        async for begin, end, attributes in with_turns(objects_in(answer), self.clock):
            if end and isinstance(attributes, dict) and len(found) < MAX_REPAIRED:
                found += _missing(answer, begin, end, attributes, target)
        members: dict[int, Members] = {}
        left = MAX_ADDED
        first, rest = self._in_turn(found)
        for some in (first, rest):
            if some is first or self._withholds(some):
                held = await all_or_none([Deferred.fromCoroutine(self._soon(target, one, caller)) for one in some])
                self._learn(some, held)
                for one, back in zip(some, held):
                    added = {} if back is None else await _members(answer, one, back, left)
                    members[one.begin], left = added, left - len(added.get(GROUPS, b""))
        return members, {one.begin: one.end for one in found}

    def _in_turn(self, found: Sequence[Missing]) -> tuple[Sequence[Missing], Sequence[Missing]]:
        """What is read first, and what only if the store turns out to leave out profiles. An image of the slide shows that: labels
        may well have no profile; of these the one of fewest frames."""
        rest = [one for one in found if not one.groups]
        if not rest or self._withholds(rest):
            return found, []
        first = [one for one in found if one.groups]
        if not self._gives_all.has(rest[0].instance.place, self.clock.seconds()):
            probe = min(rest, key=lambda one: (not one.is_volume, one.frames))
            rest.remove(probe)
            first.append(probe)
        return first, rest

    def _withholds(self, some: Sequence[Missing]) -> bool:
        return bool(some) and self._leaves_out.has(some[0].instance.place, self.clock.seconds())

    def _learn(self, some: Sequence[Missing], held: Sequence[Optional[HeldBack]]) -> None:
        """Remember whether the store leaves out profiles."""
        read = [(one, bool(back.profiles)) for one, back in zip(some, held) if one.profile and back is not None]
        for one, had in read:
            if had:
                self._leaves_out.add(one.instance.place, self.clock.seconds())
            elif one.is_volume and not self._withholds(some):
                self._gives_all.add(one.instance.place, self.clock.seconds())

    async def _soon(self, target: Target, missing: Missing, caller: Caller) -> Optional[HeldBack]:
        """What the object gives, if it comes soon."""
        reading = Deferred.fromCoroutine(self._held_back(target, missing.instance, caller))
        try:
            return await follow(reading).addTimeout(WAIT_SECONDS if missing.groups else PROFILE_SECONDS, self.clock)
        except defer.TimeoutError:
            return None

    async def _held_back(self, target: Target, instance: Instance, caller: Caller) -> Optional[HeldBack]:
        key = caller.credential, instance
        if self.imaging is None or self._failed.has(key, self.clock.seconds()):
            return None
        try:
            return await self.imaging.held_back(target.origin, instance, caller)
        except (OriginError, PoolError, NoRoom) as error:
            self._failed.add(key, self.clock.seconds())
            _log.info(
                "metadata of {instance} stay incomplete: the object could not be read: {reason}",
                event="metadata_incomplete",
                instance=instance.path,
                reason=str(error),
            )
            return None

    async def profile(self, target: Target, caller: Caller) -> Optional[bytes]:
        """The ICC profile that *target* names in a way of ours; None where there is none. Raises `PoolError` and the errors of
        `twistedproxy.origin.errors`."""
        place = profile_place(target)
        if place is None or self.imaging is None:
            return None
        return (await self.imaging.held_back(target.origin, target.instance, caller)).profiles.get(place)


def profile_place(target: Target) -> Optional[str]:
    """Where in its instance the ICC profile stands that *target* names."""
    path = _PROFILE_PATH.search(target.raw_path)
    whole = path is not None and path.end() == len(target.raw_path) and target.resource.sop is not None
    return path[1].decode("ascii") if path is not None and whole else None


def may_lack(answer: bytes) -> bool:
    """Whether it is worth while to look at each object: there are more shared groups than those of frames, or optical paths than
    profiles."""
    return any(answer.count(b'"%s"' % there) > answer.count(b'"%s"' % lacking) for there, lacking in _PAIRS)


def _missing(answer: bytes, begin: int, end: int, attributes: Mapping[str, Any], target: Target) -> Sequence[Missing]:
    instance = instance_of(attributes, target)
    groups = _lacks_groups(attributes)
    profile = _lacks_profile(attributes) and not _BINARY.search(answer, begin, end)
    return [Missing(begin, end, instance, attributes, groups, profile)] if instance and (groups or profile) else []


def _lacks_groups(attributes: Mapping[str, Any]) -> bool:
    several = str(first_value(attributes, "00280008") or "1").strip() not in ("0", "1")
    full = first_value(attributes, "00209311") == "TILED_FULL"
    return several and not full and has_value(attributes.get(SHARED_GROUPS)) and not has_value(attributes.get(GROUPS))


def _lacks_profile(attributes: Mapping[str, Any]) -> bool:
    paths: Sequence[Any] = ()
    with suppress(LookupError, TypeError):
        paths = list(attributes[PATHS]["Value"])
    color = str(first_value(attributes, "00280002")) == "3"
    return color and bool(paths) and not any(isinstance(path, dict) and has_value(path.get(PROFILE)) for path in paths)


async def _members(answer: bytes, missing: Missing, held: HeldBack, left: int) -> Members:
    """What *held* has of what is missing; functional groups of *left* bytes at most."""
    members: dict[str, bytes] = {}
    if missing.groups and held.groups and held.groups_size <= left:
        inflate = zlib.decompress
        large = held.groups_size > INFLATED_AT_ONCE
        members[GROUPS] = await deferToThread(inflate, held.groups) if large else inflate(held.groups)
    if missing.profile and held.profiles:
        paths = element_of(answer[missing.begin : missing.end], PATHS)
        if paths is not None:
            members[PATHS] = _with_profiles(paths, missing.instance, held)
        if PROFILE in held.profiles:
            members[PROFILE] = _reference(missing.instance, PROFILE)
    return members


def _with_profiles(paths: bytes, instance: Instance, held: HeldBack) -> bytes:
    """The element *paths* with a reference to the profile in each item that has one in the object."""
    start = max(0, paths.find(b"["))
    added: dict[int, Members] = {}
    ends: dict[int, int] = {}
    for number, (begin, end, _) in enumerate(objects_in(paths[start:]), 1):
        ends[begin] = end
        if (place := f"{PATHS}/{number}/{PROFILE}") in held.profiles:
            added[begin] = {PROFILE: _reference(instance, place)}
    return paths[:start] + with_members(paths[start:], added, ends)


def _reference(instance: Instance, place: str) -> bytes:
    """An element whose value is at the proxy: what follows the origin's URL is named below the mount on the way out."""
    uri = f"{instance.place}/{instance.path}/bulkdata/{place}"
    return json.dumps({"vr": "OB", "BulkDataURI": uri}, separators=(",", ":")).encode("ascii")
