"""The lock of an instance in the cache: of all workers and hosts, one loads it."""

from __future__ import annotations

import os

import attrs

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.dicom.address import Instance

LOCK = b"load"


@attrs.frozen(eq=False)
class LoadLock:
    """One try for the lock. The fence is part of its name: what was forgotten may be loaded anew at once."""

    cache: Cache = attrs.field(repr=False)
    instance: Instance
    fence: Fence
    token: bytes = attrs.field(factory=lambda: os.urandom(12), repr=False)

    async def take(self, seconds: float) -> bool:
        """Take it for at most *seconds*, if nobody holds it; whether it was taken."""
        return await self.cache.lock(self.instance, LOCK + self.fence, self.token, seconds)

    async def give_back(self) -> None:
        """Let others have it. Harmless where we never had it, or no longer."""
        await self.cache.unlock(self.instance, LOCK + self.fence, self.token)
