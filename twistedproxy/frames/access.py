"""Who may read what: grants found, won from the origin, and renewed.

The origin alone decides. Its answer to the caller's own metadata request is the access check and brings the
facts of the instance (`twistedproxy.frames.proofs`); what it refuses goes back to the caller as it came. A grant in use is renewed
before it ends, by an answer that gives the thing itself: a search proves nothing, for stores exist that let callers search and not
retrieve.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twistedproxy.cache.interface import Cache, Fence, Reading
from twistedproxy.deferreds import all_or_none
from twistedproxy.dicom.json_events import BadMetadata
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.frames.entries import (
    METADATA,
    REFERENCE,
    grant_name,
    pack_grant,
    pack_reference,
    token_name,
    unpack_grant,
    unpack_reference,
)
from twistedproxy.frames.grants import Grant, Grants
from twistedproxy.frames.invalidation import Siblings
from twistedproxy.frames.proofs import proved
from twistedproxy.frames.series_answers import SeriesAnswers
from twistedproxy.frames.single_flight import SingleFlight
from twistedproxy.origin.errors import DENIALS, OriginError, OriginRefused
from twistedproxy.origin.interface import Caller, Origin

METADATA_SECONDS = 30 * 24 * 3600.0
"""How long metadata stay in the cache; invalidating an instance ends them at once. As long as frames may, whose time goes on while
the metadata are still the same."""

RENEWAL_PAUSE = 15.0
"""Seconds before a renewal that failed is tried again: a viewer at work would ask a hundred times a second."""

CLOCK_SLACK = 30.0
"""Seconds by which the clock may be set back under a grant; by more, and it would last that much longer."""

MAX_DENIED = 10_000
"""Denials that are remembered, for answers that are under way."""

_Key = tuple[bytes, Instance, Optional[Fence], float]


@attrs.define(eq=False)
class Access:
    """Grants of one proxy. *wall_clock* gives seconds since the epoch. *by_pixels*: whether only a frame or the object is a proof, and
    metadata are facts alone. *entry_seconds*: by how long frames whose time has ended go
    on where the origin's metadata are the same (None: without end); *changed* is called where they are not."""

    cache: Cache
    wall_clock: Callable[[], float]
    ttl: float
    entry_seconds: Optional[float] = None
    changed: Optional[Callable[[Scope], Awaitable[object]]] = None
    grants: Grants = attrs.Factory(Grants)
    siblings: Siblings = attrs.Factory(Siblings)
    series: Optional[SeriesAnswers] = None
    by_pixels: bool = False
    _asking: SingleFlight[_Key, Grant] = attrs.field(init=False, factory=SingleFlight)
    _ending: SingleFlight[tuple[Instance, Fence], None] = attrs.field(init=False, factory=SingleFlight)
    _denied: OrderedDict[tuple[bytes, Instance], float] = attrs.field(init=False, factory=OrderedDict)
    _log = Logger()

    def known(self, caller: Caller, instance: Instance) -> Optional[Grant]:
        """The grant that this worker remembers."""
        now = self.wall_clock()
        grant = self.grants.find(caller, instance, now)
        return None if grant is not None and grant.expires > now + self.ttl + CLOCK_SLACK else grant

    def known_for_long(self, caller: Caller, instance: Instance) -> Optional[Grant]:
        """The same, if it was used before and need not be renewed yet: nothing is to be done but to answer."""
        now = self.wall_clock()
        grant = self.grants.find(caller, instance, now)
        if grant is None or grant.expires > now + self.ttl + CLOCK_SLACK or grant.spent(now, self.ttl):
            return None
        return grant if grant.used else None

    @staticmethod
    def entry_names(caller: Caller) -> tuple[bytes, bytes]:
        """What to read from the cache, along with whatever else is read, where no grant is known."""
        return grant_name(caller), METADATA

    def from_reading(self, caller: Caller, instance: Instance, reading: Reading) -> Optional[Grant]:
        """The grant that another worker, or an earlier life, left in the cache."""
        packed, metadata = reading.entries.get(grant_name(caller)), metadata_in(reading)
        expires = unpack_grant(packed) if packed is not None else None
        now = self.wall_clock()
        if expires is None or metadata is None or expires <= now:
            return None
        grant = Grant(metadata, min(expires, now + self.ttl), reading.fence)
        self.grants.add(caller, instance, grant)
        return grant

    async def ask(self, origin: Origin, instance: Instance, caller: Caller, reading: Reading) -> Grant:
        """Win a grant from the origin; callers of one credential who ask together share one request.

        *reading*: what the cache held before. Raises `OriginError`; a denial revokes what was known.
        """
        key = self._key(caller, instance, reading.fence)
        grant, _ = await self._asking.one(key, caller.credential, lambda: self._ask(origin, instance, caller, reading))
        return grant

    def _key(self, caller: Caller, instance: Instance, fence: Optional[Fence]) -> _Key:
        """Who comes after a STOW, or a denial, must not get what an answer from before it said."""
        return caller.credential, instance, fence, self._denied_at(caller, instance)

    def _denied_at(self, caller: Caller, instance: Instance) -> float:
        """When the origin has denied it last (seconds since the epoch), as far as that is remembered."""
        return self._denied.get((caller.credential, instance), -math.inf)

    async def _ask(self, origin: Origin, instance: Instance, caller: Caller, reading: Reading) -> Grant:
        by_series, asked = None, self.wall_clock()
        known = None if reading.ended else metadata_in(reading)
        # Without a fence the series may have changed, too; what has ended goes on only if the origin says the same now.
        of_use = reading.fence is not None and not reading.ended and not (self.by_pixels and known)
        if self.series is not None and of_use:
            by_series = await self.series.proof(origin, instance, caller)
        if by_series is not None:
            member, expires = by_series
            known = member.metadata
            if not self.by_pixels:
                # Not just now: what is cached does not go on for that.
                return await self.record(instance, caller, known, reading, False, expires, True, asked)
        try:
            metadata, said = await proved(origin, instance, caller, known, self.by_pixels)
        except OriginRefused as refused:
            if refused.status in DENIALS and self._may_be_known(caller, instance, reading):
                await self.revoke(caller, instance)
            raise
        return await self.record(instance, caller, metadata, reading, said, asked=asked)

    async def record(
        self,
        instance: Instance,
        caller: Caller,
        metadata: InstanceMetadata,
        reading: Reading,
        said: bool = True,
        expires: float = math.inf,
        by_series: bool = False,
        asked: Optional[float] = None,
    ) -> Grant:
        """Keep the grant that the origin's answer to *caller* with this *metadata* is.

        *reading*: what the cache held before the origin was asked. A transfer syntax that was learned stays known. *said*: whether
        the origin has just said the metadata; else it gave something that proves the right alone. *expires*: when the proof ends,
        where that is sooner than of one from now. *by_series*: it was said of the whole series, where other workers find it.
        *asked*: when the origin was asked, if frames may have been cached since. If it has denied the caller the instance since, the
        grant is for what waits for it now, and not kept.
        """
        fence = await self._compared(instance, metadata, reading) if said else reading.fence
        known = self.known(caller, instance)
        first = METADATA not in reading.entries and (known is None or known.fence != fence)
        if metadata.transfer_syntax is None and fence == reading.fence:
            metadata = attrs.evolve(metadata, transfer_syntax=self._learned(instance, caller, reading))
        grant = Grant(metadata, min(expires, self.wall_clock() + self.ttl), fence, by_series)
        if asked is not None and self._denied_at(caller, instance) > asked:
            return grant
        self.grants.add(caller, instance, grant)
        entries = self._facts(metadata, asked) if first else {}
        if not by_series:
            entries[METADATA] = metadata.to_bytes()
        writes = [self._put(instance, fence, entries, METADATA_SECONDS)] if entries else []
        if not by_series:
            writes.append(self._put(instance, fence, {grant_name(caller): pack_grant(grant.expires)}, self.ttl))
        await all_or_none(writes)
        return grant

    async def record_passing(
        self, instance: Instance, caller: Caller, metadata: InstanceMetadata, reading: Reading, expires: float
    ) -> None:
        """Keep what the origin's *metadata*, which have passed to *caller*, are: the grant, as of `record`, or facts alone. *expires*:
        `ttl` after the origin was asked."""
        if not self.by_pixels:
            await self.record(instance, caller, metadata, reading, expires=expires, asked=expires - self.ttl)
        elif METADATA not in reading.entries:
            await self._put(instance, reading.fence, self._facts(metadata), METADATA_SECONDS)

    def _facts(self, metadata: InstanceMetadata, asked: Optional[float] = None) -> dict[bytes, bytes]:
        """The entries of facts that are kept for the first time."""
        asked = self.wall_clock() if asked is None else asked
        return {REFERENCE: pack_reference(asked, metadata), METADATA: metadata.to_bytes()}

    async def _compared(self, instance: Instance, metadata: InstanceMetadata, reading: Reading) -> Optional[Fence]:
        """The fence that a grant of this *metadata* has. If they are those that the instance was cached under, what is cached goes on
        from now, whether its time has ended or will. If they are not, and it has ended, the origin has replaced the instance, and
        what is cached of it is invalidated. (Before its time ends it is not: callers may be shown different attributes.)"""
        if not self.cache.keeps_ended or reading.fence is None or self.entry_seconds is None:
            return reading.fence
        present = await self.cache.get_many(instance, [REFERENCE])
        if present.fence != reading.fence:
            return reading.fence  # it was invalidated meanwhile
        reference = unpack_reference(present.entries.get(REFERENCE, b""))
        if reference is not None and reference[1].may_be_of_same(metadata):
            await self.cache.prolong(instance, reading.fence, self.entry_seconds, reference[0])
        elif reading.ended and self.changed is not None:
            await self._ending.one((instance, reading.fence), None, lambda: self._end(instance))
            return None  # this answer may be of before: the next request asks again
        return reading.fence

    async def _end(self, instance: Instance) -> None:
        assert self.changed is not None
        self._log.info("the origin has replaced {instance}", event="instance_replaced", instance=instance.path)
        await self.changed(instance.scope)

    async def denied(self, caller: Caller, instance: Instance, fence: Fence, refused: OriginRefused) -> None:
        """The origin has denied a frame to *caller*, of whom nothing was known: so does every proof that is under way end."""
        self._asking.fail(self._key(caller, instance, fence), refused)
        if self.known(caller, instance) is not None:  # meanwhile
            await self.revoke(caller, instance)
        else:
            self.forget(caller, instance)

    def _may_be_known(self, caller: Caller, instance: Instance, reading: Reading) -> bool:
        """Whether anybody can have a grant to revoke: a flood of strangers must not keep all workers busy."""
        cache_was_asked = reading.fence is not None
        known = self.known(caller, instance) is not None or grant_name(caller) in reading.entries
        return known or not cache_was_asked

    def _learned(self, instance: Instance, caller: Caller, reading: Reading) -> Optional[str]:
        known = self.known(caller, instance)
        if known is not None and known.fence == reading.fence and known.metadata.transfer_syntax is not None:
            return known.metadata.transfer_syntax
        cached = metadata_in(reading)
        return cached.transfer_syntax if cached is not None else None

    def _put(
        self, instance: Instance, fence: Optional[Fence], entries: Mapping[bytes, bytes], seconds: float
    ) -> Deferred[bool]:
        return Deferred.fromCoroutine(self.cache.put_many(instance, fence, entries, seconds))

    async def revoke(self, caller: Caller, instance: Instance) -> None:
        """Forget the caller's grant, and proofs of the instance's descriptions: the origin has just denied it."""
        self.forget(caller, instance)
        await self.cache.remove(instance, [grant_name(caller), token_name(caller)])
        if self.series is not None:
            await self.series.revoke(caller, instance)
        await self.siblings.revoke(caller.credential, instance)

    async def revoke_whole(self, caller: Caller, whole: Instance) -> None:
        """The origin has just denied the caller a series or study (`Instance.of_series`, `Instance.of_study`)."""
        if self.series is not None:
            await self.series.revoke(caller, whole)
        await self.siblings.revoke(caller.credential, whole)

    def forget(self, caller: Caller, instance: Instance) -> None:
        """Forget the caller's grant in this worker, and what proved it with others; what is asked for now is no grant either."""
        key = caller.credential, instance
        self._denied[key] = self.wall_clock()
        self._denied.move_to_end(key)
        if len(self._denied) > MAX_DENIED:
            self._denied.popitem(last=False)
        self.grants.revoke(caller, instance)
        if self.series is not None:
            self.series.forget(caller, instance)

    async def learn_transfer_syntax(self, instance: Instance, grant: Grant, uid: str) -> None:
        """Add to the metadata what only a frame could tell."""
        if grant.metadata.transfer_syntax is None:
            grant.metadata = attrs.evolve(grant.metadata, transfer_syntax=uid)
            await self.cache.put_many(instance, grant.fence, {METADATA: grant.metadata.to_bytes()}, METADATA_SECONDS)

    def renew_if_spent(self, origin: Origin, instance: Instance, caller: Caller, grant: Grant) -> None:
        """Renew in the background a grant that is mostly spent; a denial revokes it at once."""
        now = self.wall_clock()
        if now < grant.next_renewal or not grant.spent(now, self.ttl):
            return
        grant.next_renewal = math.inf
        renewing = Deferred.fromCoroutine(self._renew(origin, instance, caller, grant))
        renewing.addErrback(lambda failure: self._log.failure("renewing a grant failed", failure))

    async def _renew(self, origin: Origin, instance: Instance, caller: Caller, grant: Grant) -> None:
        reading, asked = Reading(grant.fence, {}), self.wall_clock()
        try:
            by_series = None
            if self.series is not None and not self.by_pixels:
                by_series = await self.series.renewed(origin, instance, caller, grant.expires)
            if by_series is not None:
                member, expires = by_series
                await self.record(instance, caller, member.metadata, reading, True, expires, True, asked)
            else:
                metadata, said = await proved(origin, instance, caller, grant.metadata, self.by_pixels)
                await self.record(instance, caller, metadata, reading, said, asked=asked)
        except OriginRefused as refused:
            if refused.status in DENIALS:
                await self.revoke(caller, instance)
            else:
                self._not_renewed(instance, grant, refused)
        except OriginError as error:
            self._not_renewed(instance, grant, error)

    def _not_renewed(self, instance: Instance, grant: Grant, error: OriginError) -> None:
        grant.next_renewal = self.wall_clock() + RENEWAL_PAUSE
        self._log.info("a grant was not renewed: {reason}", reason=str(error), instance=instance.path)


def metadata_in(reading: Reading) -> Optional[InstanceMetadata]:
    """The metadata among what was read from the cache."""
    packed = reading.entries.get(METADATA)
    if packed is None:
        return None
    try:
        return InstanceMetadata.from_bytes(packed)
    except BadMetadata:
        return None
