"""Forgetting what a STOW or a DELETE has made old, through whichever mount it was asked for.

The cache ends the scope's generation, which every worker and host sees with its next reading. While the cache
cannot be told, the scope stays *pending* here: it is told again until it knows, and nothing of the scope is read
from it or written to it by this worker in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.cache.interface import Cache
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.frames.grants import Grants
from twistedproxy.frames.peers import NoSiblings, Siblings

RETRY_SECONDS = 1.0
"""How long to wait before a cache that could not be told is told again."""

MAX_PENDING = 1000
"""Scopes that are pending one by one; of more, all below their roots is. Each read of a frame looks through them."""


def covers(scope: Scope, instance: Instance) -> bool:
    """Whether *instance* lies in *scope*."""
    below = ((scope.sop, instance.sop), (scope.series, instance.series), (scope.study, instance.study))
    return all(wanted is None or wanted == has for wanted, has in below) and scope.store == instance.store


class Forgetting:
    """Forgets scopes, in this worker and in the cache."""

    _log = Logger()

    def __init__(self, cache: Cache, grants: Grants, clock: IReactorTime, siblings: Optional[Siblings] = None) -> None:
        self.also: list[Callable[[Scope], None]] = []
        """What else remembers things of scopes, and must drop them."""
        self._siblings = siblings or NoSiblings()
        self._cache = cache
        self._grants = grants
        self._clock = clock
        self._pending: dict[Scope, None] = {}
        self._insisting: Optional[Deferred[None]] = None

    def is_pending(self, instance: Instance) -> bool:
        """Whether the cache still holds what of this instance should be forgotten."""
        return bool(self._pending) and any(covers(scope, instance) for scope in self._pending)

    async def forget(self, scope: Scope) -> None:
        """Forget *scope*; once this returns, nobody on this host sees what was kept of it.

        It is forgotten also where the caller gives up waiting.
        """
        try:
            told = await self._told(scope)
        except CancelledError:
            self.hear(scope, told=False)
            telling = Deferred.fromCoroutine(self._siblings.forget(scope, False))
            telling.addErrback(lambda failure: self._log.failure("other workers could not be told to forget", failure))
            raise
        if not told:
            self._log.warn("the cache could not be told to forget: it will be told again", scope=str(scope))
        self.hear(scope, told)
        await self._siblings.forget(scope, told)

    def hear(self, scope: Scope, told: bool) -> None:
        """Drop what this worker remembers of *scope*. *told*: whether the cache knows already."""
        self._grants.forget(lambda instance: covers(scope, instance))
        for drop in self.also:
            drop(scope)
        if not told:
            self._insist_on(scope)

    def _insist_on(self, scope: Scope) -> None:
        if len(self._pending) >= MAX_PENDING:
            scope = Scope(scope.origin, scope.root)
            for narrower in [one for one in self._pending if one.store == scope.store]:
                del self._pending[narrower]
        self._pending[scope] = None
        if self._insisting is None:
            self._insisting = Deferred.fromCoroutine(self._insist())
            self._insisting.addErrback(self._stopped_insisting)

    async def _insist(self) -> None:
        while self._pending:
            await deferLater(self._clock, RETRY_SECONDS)
            for scope in list(self._pending):
                if not await self._told(scope):
                    break
                self._pending.pop(scope, None)
        self._insisting = None

    def _stopped_insisting(self, failure: Failure) -> None:
        self._insisting = None
        if failure.check(CancelledError) is None:
            self._log.failure("the cache is no longer told to forget", failure)

    async def _told(self, scope: Scope) -> bool:
        try:
            await self._cache.forget(scope)
        except CancelledError:
            raise
        except Exception as error:
            self._log.debug("the cache can still not be told to forget: {reason}", reason=str(error))
            return False
        return True

    def stop(self) -> None:
        """Tell no more."""
        self._pending.clear()
        if self._insisting is not None:
            self._insisting.cancel()
