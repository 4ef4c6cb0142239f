"""Forgetting what a STOW or a DELETE has made old.

The cache ends the scope's generation, which every worker and host sees with its next reading. While the cache
cannot be told, the scope stays *pending* here: it is told again until it knows, and nothing of the scope is read
from it or written to it by this worker in between.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from twistedproxy.cache.interface import Cache
from twistedproxy.dicom.address import Instance, Scope
from twistedproxy.frames.grants import Grants

RETRY_SECONDS = 1.0
"""How long to wait before a cache that could not be told is told again."""


def covers(scope: Scope, instance: Instance) -> bool:
    """Whether *instance* lies in *scope*."""
    return (scope.origin, scope.root) == (instance.origin, instance.root) and all(
        wanted is None or wanted == has
        for wanted, has in ((scope.study, instance.study), (scope.series, instance.series), (scope.sop, instance.sop))
    )


class Forgetting:
    """Forgets scopes, in this worker and in the cache."""

    _log = Logger()

    def __init__(self, cache: Cache, grants: Grants, clock: IReactorTime) -> None:
        self._cache = cache
        self._grants = grants
        self._clock = clock
        self._pending: dict[Scope, Deferred[None]] = {}

    def is_pending(self, instance: Instance) -> bool:
        """Whether the cache still holds what of this instance should be forgotten."""
        return bool(self._pending) and any(covers(scope, instance) for scope in self._pending)

    async def forget(self, scope: Scope) -> None:
        """Forget *scope*; once this returns, nobody on this host sees what was kept of it."""
        self._grants.forget(lambda instance: covers(scope, instance))
        if not await self._told(scope):
            self._log.warn("the cache could not be told to forget: it will be told again", scope=str(scope))
            if scope not in self._pending:
                self._pending[scope] = Deferred.fromCoroutine(self._insist(scope)).addErrback(lambda _: None)

    async def _insist(self, scope: Scope) -> None:
        while True:
            await deferLater(self._clock, RETRY_SECONDS)
            if await self._told(scope):
                del self._pending[scope]
                return

    async def _told(self, scope: Scope) -> bool:
        try:
            await self._cache.forget(scope)
        except Exception as error:
            self._log.debug("the cache can still not be told to forget: {reason}", reason=str(error))
            return False
        return True

    def stop(self) -> None:
        """Tell no more."""
        for insisting in list(self._pending.values()):
            insisting.cancel()
        self._pending.clear()
