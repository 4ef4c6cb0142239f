"""What the origin answered callers who asked for the metadata of a series: proof for every instance that it named to them, and
what the series is.

- From the second instance on that a caller asks for, the series is asked for, once: a stack of 200 slices would take 200 requests.
- An answer counts under the fence that the series had before the origin was asked. It is looked at anew each time, so a STOW or
  a DELETE of any instance of the series ends it, whoever hears of that first.
- What is slow, large or no such answer is not asked for again for a while: then instances are asked one by one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.task import deferLater
from twisted.logger import Logger

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.dicom.json_events import BadMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.entries import pack_series, series_name, unpack_series
from twistedproxy.frames.single_flight import SingleFlight
from twistedproxy.origin.errors import OriginBadAnswer, OriginError, OriginRefused
from twistedproxy.origin.interface import Caller, Origin, OriginRequest, OriginResponse, is_dicom_json, is_for
from twistedproxy.series.knowledge import Stack, stack_of
from twistedproxy.series.members import Member, SeriesParser
from twistedproxy.system.outages import Recent

MAX_ANSWER = 16 << 20
"""Bytes of a series' metadata: some 5,000 instances of a CT. Those of a sparse slide may have more."""

SECONDS = 2.0
"""How long callers wait for it."""

AVOIDED_SECONDS = 600.0
"""How long a series is not asked for again that was no help."""

MAX_HELD = 200_000
"""Instances of all answers that one worker holds: some 100 MB."""

SLICE = 65536
"""Bytes parsed between two turns of the reactor."""

JSON = b"application/dicom+json"

_Key = tuple[bytes, Instance]


class _NoHelp(Exception):
    """The series' metadata are slow or large, for whoever asks."""


@attrs.frozen(eq=False)
class SeriesAnswer:
    """Proof for all *members*, by SOP Instance UID, until *expires* (seconds since the epoch), under the *fence* of the series."""

    members: Mapping[str, Member]
    expires: float
    fence: Fence
    stack: Optional[Stack] = attrs.field(init=False, repr=False)

    @stack.default
    def _stack(self) -> Optional[Stack]:
        return stack_of(self.members.values())


@attrs.define(eq=False)
class SeriesAnswers:
    """Those of one worker. *reactor*: a clock; *wall_clock* gives seconds since the epoch; *ttl*: how long an answer proves."""

    cache: Cache
    reactor: Any
    wall_clock: Any
    ttl: float
    _held: OrderedDict[_Key, SeriesAnswer] = attrs.field(init=False, factory=OrderedDict)
    _first: OrderedDict[_Key, str] = attrs.field(init=False, factory=OrderedDict)
    _avoided: Recent[tuple[bytes, Instance]] = attrs.field(init=False, factory=lambda: Recent(AVOIDED_SECONDS))
    _asking: SingleFlight[tuple[bytes, Instance, Fence], Optional[SeriesAnswer]] = attrs.field(
        init=False, factory=SingleFlight
    )
    _log = Logger()

    async def proof(self, origin: Origin, instance: Instance, caller: Caller) -> Optional[tuple[Member, float]]:
        """What an answer to *caller* says of *instance*, and when that ends; None where there is none. The origin is asked from the
        second instance of the series on."""
        key = caller.credential, instance.of_series
        first = self._first.setdefault(key, instance.sop)
        self._first.move_to_end(key)
        if len(self._first) > self._avoided.most:
            self._first.popitem(last=False)
        answer = await self.find(origin, instance, caller, ask=first != instance.sop)
        member = None if answer is None else answer.members.get(instance.sop)
        return None if answer is None or member is None else (member, answer.expires)

    async def renewed(
        self, origin: Origin, instance: Instance, caller: Caller, proved_until: float
    ) -> Optional[tuple[Member, float]]:
        """The same, of an answer that proves for longer than until *proved_until*; where one was used before."""
        if (caller.credential, instance.of_series) not in self._held:
            return None
        answer = await self.find(origin, instance, caller, ask=True, later_than=proved_until)
        member = None if answer is None else answer.members.get(instance.sop)
        return None if answer is None or member is None else (member, answer.expires)

    async def find(
        self, origin: Origin, instance: Instance, caller: Caller, ask: bool, later_than: float = 0.0
    ) -> Optional[SeriesAnswer]:
        """The answer to *caller* for the series of *instance* that is valid now, and later than *later_than*. *ask*: whether the
        origin may be asked for it."""
        series, least = instance.of_series, max(later_than, self.wall_clock())
        held = self._held.get((caller.credential, series))
        reading = await self.cache.get_many(series, [] if held is not None else [series_name(caller)])
        if reading.fence is None:
            return None
        if held is None and (packed := reading.entries.get(series_name(caller))) is not None:
            held = self._unpacked(packed, reading.fence)
        if held is not None and held.fence == reading.fence and held.expires > least:
            self._hold((caller.credential, series), held)
            return held
        if not ask or self._is_avoided(caller, series):
            return None
        fence, key = reading.fence, (caller.credential, series, reading.fence)
        answer, _ = await self._asking.one(
            key, caller.credential, lambda: self._ask(origin, instance, caller, fence)
        )  # fmt: skip
        return answer

    def record(self, instance: Instance, caller: Caller, members: Mapping[str, Member], fence: Fence) -> SeriesAnswer:
        """Hold what the origin has just answered *caller* for the series of *instance*, which had this *fence* before."""
        answer = SeriesAnswer(members, self.wall_clock() + self.ttl, fence)
        self._hold((caller.credential, instance.of_series), answer)
        return answer

    async def keep(self, instance: Instance, caller: Caller, answer: SeriesAnswer) -> None:
        """Let other workers find it."""
        packed = pack_series(answer.expires, answer.members.values())
        await self.cache.put_many(instance.of_series, answer.fence, {series_name(caller): packed}, self.ttl)

    def forget(self, caller: Caller, instance: Instance) -> None:
        """The origin has just denied *instance* to *caller*: what it said of the whole series is no proof, and not asked for again
        for a while."""
        self._held.pop((caller.credential, instance.of_series), None)
        self._avoided.add((caller.credential, instance.of_series), self.reactor.seconds())

    async def revoke(self, caller: Caller, instance: Instance) -> None:
        """The same, for all workers."""
        self.forget(caller, instance)
        await self.cache.remove(instance.of_series, [series_name(caller)])

    def _is_avoided(self, caller: Caller, series: Instance) -> bool:
        now = self.reactor.seconds()
        return self._avoided.has((b"", series), now) or self._avoided.has((caller.credential, series), now)

    def _unpacked(self, packed: bytes, fence: Fence) -> Optional[SeriesAnswer]:
        found = unpack_series(packed)
        return None if found is None else SeriesAnswer(found[1], min(found[0], self.wall_clock() + self.ttl), fence)

    def _hold(self, key: _Key, answer: SeriesAnswer) -> None:
        self._held[key] = answer
        self._held.move_to_end(key)
        while len(self._held) > 1 and sum(len(one.members) for one in self._held.values()) > MAX_HELD:
            self._held.popitem(last=False)

    async def _ask(self, origin: Origin, instance: Instance, caller: Caller, fence: Fence) -> Optional[SeriesAnswer]:
        asking = Deferred.fromCoroutine(self._members(origin, instance, caller))
        try:
            members = await asking.addTimeout(SECONDS, self.reactor)
        except (OriginError, BadMetadata, DeferredTimeout, _NoHelp) as error:
            everybody = isinstance(error, (DeferredTimeout, _NoHelp))
            self._avoided.add((b"" if everybody else caller.credential, instance.of_series), self.reactor.seconds())
            self._log.info(
                "the metadata of a series are no help: {reason}",
                event="series_avoided",
                reason=str(error) or "they come slowly",
                instance=instance.path,
            )
            return None
        answer = self.record(instance, caller, members, fence)
        await self.keep(instance, caller, answer)
        return answer

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
            for start in range(0, len(chunk), SLICE):
                parser.feed(chunk[start : start + SLICE])
                await deferLater(self.reactor, 0)
        if not response.framed():
            raise OriginBadAnswer("the origin's response has neither a length nor chunks")
        return parser.close()
