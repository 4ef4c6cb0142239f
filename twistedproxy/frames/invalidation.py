"""Invalidation of what a STOW or a DELETE has made out of date, through whichever mount it was requested.

The cache ends the scope's generation, which every worker and host sees with its next reading. While the cache cannot be
reached, the scope stays *pending* here: the cache is asked again until it answers, and nothing of the scope is read from
it or written to it by this worker in between.

Other workers drop what they keep themselves: `Siblings` tells them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.frames.grants import Grants
from twistedproxy.origin.interface import Caller
from twistedproxy.system.metrics import Snapshot


class Siblings:
    """The other workers; here there are none. Each method returns once all of them have answered, or have gone."""

    async def invalidate(self, scope: Scope, cache_invalidated: bool) -> None:
        """Have them drop what they keep of *scope*. *cache_invalidated*: whether the cache has done so already."""

    async def revoke(self, credential: bytes, instance: Instance) -> None:
        """Have them drop a grant."""

    async def snapshots(self) -> list[Snapshot]:
        """Their metrics."""
        return []

    async def statuses(self) -> list[dict[str, Any]]:
        """Their parts of ``/status.json``: ``{"worker": {...}, "jobs": {...}}``."""
        return []


RETRY_SECONDS = 1.0
"""Pause before a cache that could not be reached is asked again."""

MAX_PENDING = 1000
"""Scopes that are pending one by one; of more, all below their roots are. Each read of a frame looks through them."""


def covers(scope: Scope, instance: Instance) -> bool:
    """Whether *instance* lies in *scope*."""
    below = ((scope.sop, instance.sop), (scope.series, instance.series), (scope.study, instance.study))
    return all(wanted is None or wanted == has for wanted, has in below) and scope.store == instance.store


def reaches(scope: Scope, instance: Instance) -> bool:
    """Whether a change of *scope* ends what is kept below *instance*, which may stand for a series or study as a whole
    (`Instance.of_series`, `Instance.of_study`)."""
    if covers(scope, instance):
        return True
    around = ((scope.study, scope.study, scope.study), (scope.study, scope.series, scope.series))
    return scope.store == instance.store and instance.uids in around


class Invalidation:
    """Invalidates scopes, in this worker, in the cache, and at the other workers."""

    _log = Logger()

    def __init__(self, cache: Cache, grants: Grants, clock: IReactorTime, siblings: Optional[Siblings] = None) -> None:
        self.also: list[Callable[[Scope], None]] = []
        """Invalidates a scope in another component of this worker that keeps things of it."""
        self.audit: Callable[[Scope, Optional[Caller], bool, str], None] = lambda _scope, _caller, _complete, _why: None
        """Called with each scope, on whose behalf it was invalidated, and whether the cache has done so."""
        self._siblings = siblings or Siblings()
        self._cache = cache
        self._grants = grants
        self._clock = clock
        self.pending: dict[Scope, None] = {}
        """Scopes that the cache may still hold; almost always there are none."""
        self._retrying: Optional[Deferred[None]] = None

    def is_pending(self, instance: Instance) -> bool:
        """Whether the cache may still hold what was invalidated of *instance*."""
        return any(reaches(scope, instance) for scope in self.pending)

    async def purge(self, scope: Scope, why: str) -> bool:
        """Invalidate *scope*, otherwise than for a request; *why*, that it changed or how that is known: one of ``webhook``, ``changes``
        (of the store), ``folder``, ``replaced`` (its metadata are others) and ``load`` (one of it turned out wrong, or was left half
        done). The result is that of `invalidate`."""
        return await self.invalidate(scope, why=why)

    async def invalidate(self, scope: Scope, caller: Optional[Caller] = None, why: str = "request") -> bool:
        """Invalidate *scope* on behalf of *caller* (None: of the proxy itself); once this returns, no request on this host is answered
        with what was kept of it.

        Whether the cache has confirmed it; otherwise it is asked again, until it does, and other hosts do not know of it before.
        A caller that gives up waiting does not stop it.
        """
        try:
            done = await self._in_cache(scope)
        except CancelledError:
            self.apply(scope, cache_invalidated=False)
            self.audit(scope, caller, False, why)
            sending = Deferred.fromCoroutine(self._siblings.invalidate(scope, False))
            sending.addErrback(lambda failure: self._log.failure("invalidation of other workers failed", failure))
            raise
        if not done:
            self._log.warn("cache invalidation of {scope} failed; retrying", scope=str(scope))
        self.apply(scope, done)
        self.audit(scope, caller, done, why)
        await self._siblings.invalidate(scope, done)
        return done

    def apply(self, scope: Scope, cache_invalidated: bool) -> None:
        """Drop what this worker keeps of *scope*. *cache_invalidated*: whether the cache has done so already."""
        self._grants.invalidate(lambda instance: covers(scope, instance))
        for invalidate in self.also:
            invalidate(scope)
        if not cache_invalidated:
            self._retry(scope)

    def _retry(self, scope: Scope) -> None:
        if len(self.pending) >= MAX_PENDING:
            scope = Scope(scope.origin, scope.root)
            for narrower in [one for one in self.pending if one.store == scope.store]:
                del self.pending[narrower]
        self.pending[scope] = None
        if self._retrying is None:
            self._retrying = Deferred.fromCoroutine(self._retry_all())
            self._retrying.addBoth(self._retry_ended)

    async def _retry_all(self) -> None:
        while self.pending:
            await deferLater(self._clock, RETRY_SECONDS)
            for scope in list(self.pending):
                if not await self._in_cache(scope):
                    break
                self.pending.pop(scope, None)

    def _retry_ended(self, outcome: Optional[Failure]) -> None:
        self._retrying = None
        if outcome is not None and outcome.check(CancelledError) is None:
            self._log.failure("retrying the cache invalidation failed; giving up", outcome)

    async def _in_cache(self, scope: Scope) -> bool:
        try:
            await self._cache.invalidate(scope)
        except CancelledError:
            raise
        except Exception as error:
            self._log.debug("cache invalidation failed: {reason}", reason=str(error))
            return False
        return True

    def stop(self) -> None:
        """Stop retrying."""
        self.pending.clear()
        if self._retrying is not None:
            self._retrying.cancel()


Ticket = tuple[int, float]
"""When the cache was asked, for a `FenceWatch`."""


class FenceWatch(Protocol):
    """Keeps the fences that readings of the cache find."""

    def ticket(self) -> Ticket:
        """To be taken before the cache is asked."""

    def checked(self, instance: Instance, fence: Optional[Fence], ticket: Ticket) -> None:
        """The cache, asked when *ticket* was taken, had this *fence* for *instance*; None: it did not answer."""
