"""What the origin answered callers who asked for the metadata of a series or a study: proof for every instance that it named to them,
and what the series is.

- From the second instance on that a caller asks for, the series is asked for, once: a stack of 200 slices would take 200 requests.
- An answer counts under the fence that the series had before the origin was asked. It is looked at anew each time, so a STOW or
  a DELETE of any instance of the series ends it, whoever hears of that first.
- An answer for a study counts for each series that it names, under the fence that the series had before the origin was asked: it is
  the one that it has afterwards, where the study, whose fence any change below it changes, has the same as before.
- A denial of one instance, or of the series or study, ends what was said before, and what was asked for before.
- What is slow, large or no such answer is not asked for again for a while: then instances are asked one by one.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional, TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.threads import deferToThread
from twisted.logger import Logger

from twistedproxy.cache.interface import Cache, Fence, Reading
from twistedproxy.deferreds import all_or_none, in_slices
from twistedproxy.dicom.json_events import BadMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.entries import pack_series, series_name, unpack_series
from twistedproxy.frames.invalidation import Siblings
from twistedproxy.frames.single_flight import SingleFlight
from twistedproxy.origin.errors import DENIALS, OriginBadAnswer, OriginError, OriginRefused
from twistedproxy.origin.interface import Caller, Origin, OriginRequest, OriginResponse, is_dicom_json, is_for
from twistedproxy.series.knowledge import Pyramid, Stack, pyramids_of, stack_of
from twistedproxy.series.members import Member, SeriesParser
from twistedproxy.system.outages import Recent

MAX_ANSWER = 16 << 20
"""Bytes of a series' metadata: some 5,000 instances of a CT. Those of a sparse slide may have more."""

SECONDS = 2.0
"""How long callers wait for it."""

AVOIDED_SECONDS = 600.0
"""How long a series is not asked for again that was no help."""

MAX_SERIES = 500
"""Series of a study whose metadata are a proof: each is read from the cache and written to it."""

MAX_HELD = 100_000
"""Answers, and instances that they name, that one worker holds: some 100 MB."""

MAX_REMEMBERED = 10_000
"""Callers and series of which it is known what was asked for first, and what was denied."""

MANY = 1000
"""Instances that are packed and unpacked in a thread: 30 ms."""

PACKED_BYTES = 50
"""Bytes of a packed instance, about."""

JSON = b"application/dicom+json"

_Key = tuple[bytes, Instance]
_T = TypeVar("_T")


class _NoHelp(Exception):
    """The series' metadata are slow or large, for whoever asks."""


@attrs.frozen(eq=False)
class SeriesAnswer:
    """Proof for all *members*, by SOP Instance UID, under the *fence* of the series. *asked*, *expires*: when the origin was asked, and
    until when that proves (seconds since the epoch)."""

    members: Mapping[str, Member]
    asked: float
    expires: float
    fence: Fence
    stack: Optional[Stack] = attrs.field(init=False, repr=False)
    pyramids: Mapping[str, Pyramid] = attrs.field(init=False, repr=False)
    """By the SOP Instance UIDs of their levels."""

    @stack.default
    def _stack(self) -> Optional[Stack]:
        return stack_of(self.members.values())

    @pyramids.default
    def _pyramids(self) -> Mapping[str, Pyramid]:
        return pyramids_of(self.members.values())


Proof = tuple[Member, float]
"""What is said of an instance, and until when that is proved (seconds since the epoch)."""


@attrs.define(eq=False)
class SeriesAnswers:
    """Those of one worker. *reactor*: a clock; *wall_clock* gives seconds since the epoch; *ttl*: how long an answer proves."""

    cache: Cache
    reactor: Any
    wall_clock: Callable[[], float]
    ttl: float
    siblings: Siblings = attrs.Factory(Siblings)
    _held: OrderedDict[_Key, SeriesAnswer] = attrs.field(init=False, factory=OrderedDict)
    _size: int = attrs.field(init=False, default=0)
    _first: OrderedDict[_Key, str] = attrs.field(init=False, factory=OrderedDict)
    _denied: OrderedDict[_Key, float] = attrs.field(init=False, factory=OrderedDict)
    _of_study: OrderedDict[_Key, Sequence[Instance]] = attrs.field(init=False, factory=OrderedDict)
    _avoided: Recent[_Key] = attrs.field(init=False, factory=lambda: Recent(AVOIDED_SECONDS))
    _asking: SingleFlight[tuple[bytes, Instance, Fence], Optional[SeriesAnswer]] = attrs.field(
        init=False, factory=SingleFlight
    )
    _log = Logger()

    async def proof(self, origin: Origin, instance: Instance, caller: Caller) -> Optional[Proof]:
        """What an answer to *caller* says of *instance*; None where there is none. The origin is asked from the second instance of the
        series on."""
        key = caller.credential, instance.of_series
        first = self._first.setdefault(key, instance.sop)
        _use(self._first, key)
        return _proof(await self.find(origin, instance, caller, ask=first != instance.sop), instance)

    async def renewed(
        self, origin: Origin, instance: Instance, caller: Caller, proved_until: float
    ) -> Optional[Proof]:  # fmt: skip
        """The same, of an answer that proves for longer than until *proved_until*; where one was used before."""
        if (caller.credential, instance.of_series) not in self._held:
            return None
        return _proof(await self.find(origin, instance, caller, ask=True, later_than=proved_until), instance)

    async def find(
        self, origin: Origin, instance: Instance, caller: Caller, ask: bool, later_than: float = 0.0
    ) -> Optional[SeriesAnswer]:
        """The answer to *caller* for the series of *instance* that is valid now, and later than *later_than*. *ask*: whether the
        origin may be asked for it."""
        series, least = instance.of_series, max(later_than, self.wall_clock())
        key, names = (caller.credential, series), [series_name(caller)]
        held = self._held.get(key)
        reading = await self.cache.get_many(series, names if held is None else [])
        if held is not None and not self._is_valid(key, held, reading.fence, least):
            held, reading = None, await self.cache.get_many(series, names)
        if held is None:
            held = await self._unpacked(reading.entries.get(names[0]), reading.fence)
        if reading.fence is None:
            return None
        if held is not None and self._is_valid(key, held, reading.fence, least):
            self._hold(key, held)
            return held
        if not ask or self._is_avoided(caller, series):
            return None
        fence = reading.fence
        answer, _ = await self._asking.one(
            (*key, fence), caller.credential, lambda: self._ask(origin, instance, caller, fence)
        )
        return answer

    async def record(
        self, series: Instance, caller: Caller, members: Mapping[str, Member], fence: Fence, asked: float
    ) -> Optional[SeriesAnswer]:
        """Keep what the origin, *asked* then (seconds since the epoch), has answered *caller* for the series of *series*, which had this
        *fence* before; for other workers, too. None where the caller was denied something of it meanwhile."""
        answer, key = SeriesAnswer(members, asked, asked + self.ttl, fence), (caller.credential, series.of_series)
        left = answer.expires - self.wall_clock()
        if left <= 0 or self._is_denied(key, asked):
            return None
        self._hold(key, answer)
        packed = await _in_thread_if(len(members), pack_series, answer.expires, list(members.values()))
        await self.cache.put_many(series.of_series, fence, {series_name(caller): packed}, left)
        if self._is_denied(key, asked):
            await self.cache.remove(series.of_series, [series_name(caller)])
            return None
        return answer

    async def record_study(
        self, study: Instance, caller: Caller, found: Mapping[str, Mapping[str, Member]], fence: Fence, asked: float
    ) -> None:
        """The same of all series that the origin has named in the metadata of *study* (`Instance.of_study`), by their UIDs; *fence*: that
        of the study before the origin was *asked*."""
        if len(found) > MAX_SERIES:
            return
        series = [attrs.evolve(study, series=uid, sop=uid) for uid in found]
        fences = [reading.fence for reading in await self._readings(series)]
        (after,) = await self._readings([study])
        if after.fence != fence:
            return
        key = caller.credential, study
        self._of_study[key] = series
        _use(self._of_study, key)
        for one, members, known in zip(series, found.values(), fences, strict=True):
            if known is not None and members:
                await self.record(one, caller, members, known, asked)

    async def _readings(self, instances: Sequence[Instance]) -> list[Reading]:
        return await all_or_none([Deferred.fromCoroutine(self.cache.get_many(one, [])) for one in instances])

    def forget(self, caller: Caller, instance: Instance) -> None:
        """The origin has just denied *instance* to *caller*, or (`Instance.of_series`, `Instance.of_study`) all of a series or study: what
        it said of the whole before is no proof, nor what it was asked for before, and the series is not asked for again for a
        while."""
        key = caller.credential, instance.of_series
        self._denied[key] = self.wall_clock()
        _use(self._denied, key)
        self._drop(key)
        self._avoided.add(key, self.reactor.seconds())

    async def revoke(self, caller: Caller, instance: Instance) -> None:
        """The same, in the cache, too."""
        self.forget(caller, instance)
        whole = instance.of_series
        for one in [whole, *self._of_study.pop((caller.credential, whole), ())]:
            await self.cache.remove(one, [series_name(caller)])

    def _is_valid(self, key: _Key, answer: SeriesAnswer, fence: Optional[Fence], least: float) -> bool:
        return answer.fence == fence and answer.expires > least and not self._is_denied(key, answer.asked)

    def _is_denied(self, key: _Key, asked: float) -> bool:
        """Whether the caller was denied something of the series, or all of the study, since the origin was *asked*."""
        credential, series = key
        return max(self._denied.get(one, -math.inf) for one in (key, (credential, series.of_study))) >= asked

    def _is_avoided(self, caller: Caller, series: Instance) -> bool:
        now = self.reactor.seconds()
        return self._avoided.has((b"", series), now) or self._avoided.has((caller.credential, series), now)

    async def _unpacked(self, packed: Optional[bytes], fence: Optional[Fence]) -> Optional[SeriesAnswer]:
        if packed is None or fence is None:
            return None
        found = await _in_thread_if(len(packed) // PACKED_BYTES, unpack_series, packed)
        if found is None:
            return None
        expires = min(found[0], self.wall_clock() + self.ttl)
        return SeriesAnswer(found[1], expires - self.ttl, expires, fence)

    def _hold(self, key: _Key, answer: SeriesAnswer) -> None:
        if self._held.get(key) is not answer:
            self._drop(key)
            self._held[key] = answer
            self._size += 1 + len(answer.members)
        self._held.move_to_end(key)
        while len(self._held) > 1 and self._size > MAX_HELD:
            self._drop(next(iter(self._held)))

    def _drop(self, key: _Key) -> None:
        answer = self._held.pop(key, None)
        if answer is not None:
            self._size -= 1 + len(answer.members)

    async def _ask(self, origin: Origin, instance: Instance, caller: Caller, fence: Fence) -> Optional[SeriesAnswer]:
        asked = self.wall_clock()
        asking = Deferred.fromCoroutine(self._members(origin, instance, caller))
        try:
            members = await asking.addTimeout(SECONDS, self.reactor)
        except (OriginError, BadMetadata, DeferredTimeout, _NoHelp) as error:
            whose = b"" if isinstance(error, _NoHelp) else caller.credential
            self._avoided.add((whose, instance.of_series), self.reactor.seconds())
            self._log.info(
                "the metadata of a series are no help: {reason}",
                event="series_avoided",
                reason=str(error) or "they come slowly",
                instance=instance.path,
            )
            if isinstance(error, OriginRefused) and error.status in DENIALS:
                await self.revoke(caller, instance)
                await self.siblings.revoke(caller.credential, instance.of_series)
            return None
        return await self.record(instance, caller, members, fence, asked)

    async def _members(self, origin: Origin, instance: Instance, caller: Caller) -> Mapping[str, Member]:
        path = f"{instance.root}/studies/{instance.study}/series/{instance.series}/metadata".encode("ascii")
        response = await origin.forward(OriginRequest.get(path, b"", JSON, caller))
        try:
            return await self._parsed(response, instance, caller)
        finally:
            response.body.close()

    async def _parsed(self, response: OriginResponse, instance: Instance, caller: Caller) -> Mapping[str, Member]:
        if response.status >= 400:
            raise OriginRefused(response.status, response.headers, b"")
        if response.status != 200 or not is_dicom_json(response.headers) or not is_for(caller, response.headers):
            raise OriginBadAnswer("the origin's response to a request for a series' metadata is of no use")
        size, parser = 0, SeriesParser(instance.study, instance.series)
        if (response.length or 0) > MAX_ANSWER:
            raise _NoHelp(f"they have more than {MAX_ANSWER} bytes")
        while chunk := await response.body.read():
            size += len(chunk)
            if size > MAX_ANSWER:
                raise _NoHelp(f"they have more than {MAX_ANSWER} bytes")
            await in_slices(parser.feed, chunk, self.reactor)
        if not response.framed():
            raise OriginBadAnswer("the origin's response has neither a length nor chunks")
        return parser.close()


def _proof(answer: Optional[SeriesAnswer], instance: Instance) -> Optional[Proof]:
    member = None if answer is None else answer.members.get(instance.sop)
    return None if answer is None or member is None else (member, answer.expires)


def _use(table: OrderedDict[_Key, Any], key: _Key) -> None:
    """*key* was used last; of too many, the one that was not used for longest goes."""
    table.move_to_end(key)
    if len(table) > MAX_REMEMBERED:
        table.popitem(last=False)


async def _in_thread_if(members: int, do: Callable[..., _T], *arguments: Any) -> _T:
    """Do it, where it concerns so many *members* that the reactor would stand still in a thread."""
    if members < MANY:
        return do(*arguments)
    done: _T = await deferToThread(do, *arguments)
    return done
