"""Who may read what: grants found, won from the origin, and renewed.

The origin alone decides. Its answer to the caller's own metadata request is the access check and brings the
facts of the instance; what it refuses goes back to the caller as it came. A grant in use is renewed before it ends,
by a small search instead of another reading of metadata that may be large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from twistedproxy.cache.interface import Cache, Fence, Reading
from twistedproxy.dicom.address import Instance
from twistedproxy.dicom.metadata import BadMetadata, InstanceMetadata
from twistedproxy.frames.entries import METADATA, grant_name, pack_grant, unpack_grant
from twistedproxy.frames.grants import Grant, Grants
from twistedproxy.frames.inflight import InFlight
from twistedproxy.origin.errors import OriginError, OriginRefused
from twistedproxy.origin.interface import Caller, Origin

METADATA_SECONDS = 24 * 3600.0
"""How long metadata stay in the cache; forgetting an instance ends them at once."""

_DENIALS = frozenset({401, 403, 404, 410})

_Key = tuple[bytes, Instance]


@attrs.define(eq=False)
class Access:
    """Grants of one proxy. *wall_clock* gives seconds since the epoch."""

    cache: Cache
    wall_clock: Callable[[], float]
    ttl: float
    grants: Grants = attrs.Factory(Grants)
    _asking: InFlight[_Key, Grant] = attrs.field(init=False, factory=InFlight)
    _log = Logger()

    def known(self, caller: Caller, instance: Instance) -> Optional[Grant]:
        """The grant that this worker remembers."""
        return self.grants.find(caller, instance, self.wall_clock())

    @staticmethod
    def entry_names(caller: Caller) -> tuple[bytes, bytes]:
        """What to read from the cache, along with whatever else is read, where no grant is known."""
        return grant_name(caller), METADATA

    def from_reading(self, caller: Caller, instance: Instance, reading: Reading) -> Optional[Grant]:
        """The grant that another worker, or an earlier life, left in the cache."""
        packed, metadata = reading.entries.get(grant_name(caller)), metadata_in(reading)
        expires = unpack_grant(packed) if packed is not None else None
        if expires is None or metadata is None or expires <= self.wall_clock():
            return None
        grant = Grant(metadata, min(expires, self.wall_clock() + self.ttl), reading.fence)
        self.grants.add(caller, instance, grant)
        return grant

    def ask(self, origin: Origin, instance: Instance, caller: Caller, fence: Optional[Fence]) -> Deferred[Grant]:
        """Win a grant from the origin; callers of one credential who ask together share one request.

        Fails with `OriginError`; a refusal revokes what was known.
        """
        key = (caller.credential, instance)
        fetch = self._asking.running([key]).get(key)
        waiter = (
            fetch.wait() if fetch is not None else self._asking.start([key], self._ask(origin, instance, caller, fence))
        )
        return waiter.addCallback(lambda grants: grants[key])

    async def _ask(
        self, origin: Origin, instance: Instance, caller: Caller, fence: Optional[Fence]
    ) -> Mapping[_Key, Grant]:
        try:
            metadata = await origin.metadata(instance, caller)
        except OriginRefused as refused:
            if refused.status in _DENIALS:
                self.grants.revoke(caller, instance)
            raise
        grant = await self.record(instance, caller, metadata, fence)
        return {(caller.credential, instance): grant}

    async def record(
        self, instance: Instance, caller: Caller, metadata: InstanceMetadata, fence: Optional[Fence]
    ) -> Grant:
        """Keep the grant that the origin's answer to *caller* with this *metadata* is.

        *fence* must have been read before the origin was asked.
        """
        known = self.known(caller, instance)
        if metadata.transfer_syntax is None and known is not None and known.fence == fence:
            metadata = attrs.evolve(metadata, transfer_syntax=known.metadata.transfer_syntax)
        grant = Grant(metadata, self.wall_clock() + self.ttl, fence)
        self.grants.add(caller, instance, grant)
        await self.cache.put_many(instance, fence, {grant_name(caller): pack_grant(grant.expires)}, self.ttl)
        await self.cache.put_many(instance, fence, {METADATA: metadata.to_bytes()}, METADATA_SECONDS)
        return grant

    async def learn_transfer_syntax(self, instance: Instance, grant: Grant, uid: str) -> None:
        """Add to the metadata what only a frame could tell."""
        if grant.metadata.transfer_syntax is None:
            grant.metadata = attrs.evolve(grant.metadata, transfer_syntax=uid)
            await self.cache.put_many(instance, grant.fence, {METADATA: grant.metadata.to_bytes()}, METADATA_SECONDS)

    def renew_if_spent(self, origin: Origin, instance: Instance, caller: Caller, grant: Grant) -> None:
        """Renew in the background a grant that is mostly spent, by the cheapest request that proves the right."""
        if grant.renewing or not grant.spent(self.wall_clock(), self.ttl):
            return
        grant.renewing = True
        renewing = Deferred.fromCoroutine(self._renew(origin, instance, caller, grant))
        renewing.addErrback(lambda failure: self._log.failure("renewing a grant failed", failure))

    async def _renew(self, origin: Origin, instance: Instance, caller: Caller, grant: Grant) -> None:
        try:
            if await origin.readable(instance, caller):
                await self.record(instance, caller, grant.metadata, grant.fence)
        except OriginError as error:
            self._log.info("a grant was not renewed: {reason}", reason=str(error), instance=instance.path)
        finally:
            grant.renewing = False


def metadata_in(reading: Reading) -> Optional[InstanceMetadata]:
    """The metadata among what was read from the cache."""
    packed = reading.entries.get(METADATA)
    if packed is None:
        return None
    try:
        return InstanceMetadata.from_bytes(packed)
    except BadMetadata:
        return None
