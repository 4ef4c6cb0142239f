"""Leases: claims that are short, and renewed for as long as their holder lives. Who dies lets go within seconds.

A lease keeps others from doing the same work. It does not keep a holder who was suspended, and lost it, from going on: what that
one writes is told apart by its fence.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Optional

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from twistedproxy.cache.interface import Cache
from twistedproxy.dicom.resource import Instance

LEASE_SECONDS = 10.0
"""How long a lease lasts after its holder's death."""

RENEW_SECONDS = 3.0
"""Interval of renewals: two may fail before the lease ends."""


@attrs.define(eq=False)
class Lease:
    """One try for the lease *name* of *instance*, as ``async with``: what was taken and is not to be kept is given back, whatever
    the way out. *name* begins as one of `twistedproxy.cache.interface.LASTING` does.
    """

    cache: Cache = attrs.field(repr=False)
    clock: IReactorTime = attrs.field(repr=False)
    instance: Instance
    name: bytes
    token: bytes = attrs.field(factory=lambda: os.urandom(12), repr=False)
    lost: bool = attrs.field(init=False, default=False)
    """Whether it was found, when it was to be renewed, that another has it by now."""
    _to_give_back: bool = attrs.field(init=False, default=False)
    _renewing: LoopingCall = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._renewing = LoopingCall(self._renew)
        self._renewing.clock = self.clock

    async def __aenter__(self) -> Lease:
        return self

    async def __aexit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        if self._to_give_back:
            await self.give_back()

    async def take(self) -> bool:
        """Take it for `LEASE_SECONDS`, if nobody holds it; whether it was taken."""
        self._to_give_back = True  # who is cancelled while asking does not hear that it was taken
        self._to_give_back = await self._claim()
        self.lost = False
        return self._to_give_back

    def keep(self) -> None:
        """Hold it beyond the ``async with``, and renew it, until it is given back."""
        self._to_give_back = False
        self._renewing.start(RENEW_SECONDS, now=False)

    async def give_back(self) -> None:
        """Let others have it. Harmless where we never had it, or no longer."""
        self._to_give_back = False
        if self._renewing.running:
            self._renewing.stop()
        await self.cache.unclaim(self.instance, [self.name], self.token)

    async def left(self) -> Optional[float]:
        """After how many seconds it ends if its holder, whoever that is, does not renew it; None where it is free, or unknown."""
        return await self.cache.claim_left(self.instance, self.name)

    async def _claim(self) -> bool:
        return bool(await self.cache.claim(self.instance, [self.name], self.token, LEASE_SECONDS))

    async def _renew(self) -> None:
        """Renew it; what a cache has lost, by a restart or for want of room, is taken anew unless another was faster."""
        held = await self.cache.renew_claims(self.instance, [self.name], self.token, LEASE_SECONDS)
        if not held and self._renewing.running:
            held = await self._claim()
        self.lost = not held and await self.left() is not None
