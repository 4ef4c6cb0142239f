"""Grants: proof, with an expiry, that one caller may read one instance.

- A grant comes only from the origin: from its answer to that caller's own request.
- It lives in this worker and, under a keyed digest, in the cache, where other workers find it.
- It carries the fence that it was won under: once the instance is forgotten it is worth nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Optional

import attrs

from twistedproxy.cache.interface import Fence
from twistedproxy.dicom.address import Instance
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.origin.interface import Caller

MAX_GRANTS = 100_000
"""Grants kept in one worker; the longest unused goes first. About 300 bytes each."""

RENEW_AT = 0.75
"""The part of its life after which a grant that is used is renewed in the background."""


@attrs.define(eq=False)
class Grant:
    """That *caller's credential* may read *instance* until *expires* (seconds since the epoch)."""

    metadata: InstanceMetadata
    expires: float
    fence: Optional[Fence]
    next_renewal: float = 0.0
    """When the next renewal may begin (seconds since the epoch): none while one is under way, or after a denial."""

    def spent(self, now: float, ttl: float) -> bool:
        """Whether it is time to renew: less than a quarter of *ttl* is left."""
        return self.expires - now < ttl * (1 - RENEW_AT)


class Grants:
    """The grants that this worker knows, bounded, least recently used first out."""

    def __init__(self, limit: int = MAX_GRANTS) -> None:
        self._limit = limit
        self._grants: OrderedDict[tuple[bytes, Instance], Grant] = OrderedDict()

    def __len__(self) -> int:
        return len(self._grants)

    def find(self, caller: Caller, instance: Instance, now: float) -> Optional[Grant]:
        """The grant, if there is one that has not ended."""
        key = (caller.credential, instance)
        grant = self._grants.get(key)
        if grant is None:
            return None
        if grant.expires <= now:
            del self._grants[key]
            return None
        self._grants.move_to_end(key)
        return grant

    def add(self, caller: Caller, instance: Instance, grant: Grant) -> None:
        """Keep a grant, in the place of an older one."""
        key = (caller.credential, instance)
        self._grants[key] = grant
        self._grants.move_to_end(key)
        while len(self._grants) > self._limit:
            self._grants.popitem(last=False)

    def revoke(self, caller: Caller, instance: Instance) -> None:
        """Drop the grant, where there is one."""
        self._grants.pop((caller.credential, instance), None)

    def forget(self, concerned: Callable[[Instance], bool]) -> None:
        """Drop all grants for the instances that *concerned* names: one pass, for the rare STOW and DELETE."""
        for key in [key for key in self._grants if concerned(key[1])]:
            del self._grants[key]
