"""The lock of an instance in the cache: of all workers and hosts, one loads it."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Optional

import attrs

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.dicom.resource import Instance

LOCK = b"load"


@attrs.define(eq=False)
class LoadLock:
    """One try for the lock, as ``async with``: what was taken and is not to be kept is given back, whatever the way out.

    The fence is part of its name: what was forgotten may be loaded anew at once.
    """

    cache: Cache = attrs.field(repr=False)
    instance: Instance
    fence: Fence
    token: bytes = attrs.field(factory=lambda: os.urandom(12), repr=False)
    _to_give_back: bool = attrs.field(init=False, default=False)

    async def __aenter__(self) -> LoadLock:
        return self

    async def __aexit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        if self._to_give_back:
            await self.give_back()

    async def take(self, seconds: float) -> bool:
        """Take it for at most *seconds*, if nobody holds it; whether it was taken."""
        self._to_give_back = True  # who is cancelled while asking does not hear that it was taken
        won = await self.cache.claim(self.instance, [LOCK + self.fence], self.token, seconds)
        self._to_give_back = bool(won)
        return self._to_give_back

    def keep(self) -> LoadLock:
        """Leave it taken beyond the ``async with``: whoever has it now gives it back."""
        self._to_give_back = False
        return self

    async def give_back(self) -> None:
        """Let others have it. Harmless where we never had it, or no longer."""
        await self.cache.unclaim(self.instance, [LOCK + self.fence], self.token)


async def seconds_left(cache: Cache, instance: Instance, fence: Fence) -> Optional[float]:
    """After how many seconds whoever holds the lock holds it no longer; None where that is not known."""
    return await cache.claim_left(instance, LOCK + fence)
