"""Purges what changed in a store that numbers its changes (``--follow-changes``).

Rules:
- One worker of all that share a cache asks: the one with the lease. If it dies, another goes on within seconds; one that has lost it
  to another ends.
- How far it came is an entry of the cache, written once the cache has confirmed that all up to there is purged: what was kept and the
  place in the list are lost together. Where there is none, all that is kept of the mount is out of date, as far as anybody knows, and
  so it is where the store has fewer changes than were seen: it was set up anew.
- A store that does not answer is complained of once, and asked again.
- What a long list names is purged one by one, with turns of the reactor between them. Where many instances of a series come at once,
  as they do when it arrives, the series is purged: a local cache has room for some 30,000 invalidations before it drops all.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Optional

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.cache.interface import Cache
from twistedproxy.cache.lease import Lease
from twistedproxy.dicom.resource import InvalidUID, Scope, known_instance
from twistedproxy.frames.invalidation import Invalidation
from twistedproxy.origin.errors import OriginError
from twistedproxy.origin.interface import Changes, ChangeSource
from twistedproxy.system.outages import Outage

SECONDS = 2.0
"""Interval at which a store is asked: what is out of date is given for no longer than twice that."""

MANY = 4
"""Instances of a series on one page above which the series is purged."""

REFRESH_SECONDS = 60.0
"""Interval at which the position is written although it is the same: a cache drops what is not used."""

POSITION = b"q"
"""The name of the entry with the position."""


@attrs.frozen
class Followers:
    """Those of one worker."""

    all: Sequence[ChangeFollower]

    def start(self) -> None:
        """Follow from now on."""
        for follower in self.all:
            follower.start()

    async def stop(self) -> None:
        """Follow no more."""
        for follower in self.all:
            await follower.stop()


class ChangeFollower:
    """Follows the changes of the store at the origin URL *store*, for one worker. *source* is at *url*."""

    _log = Logger()

    def __init__(
        self, source: ChangeSource, url: str, store: str, cache: Cache, invalidation: Invalidation, clock: IReactorTime
    ) -> None:
        self._source = source
        self._url = url
        self._store = store
        self._cache = cache
        self._invalidation = invalidation
        self._clock = clock
        self._place = known_instance(store, "", "0", "0", "0")  # no instance has these UIDs
        self._lease = Lease(cache, clock, self._place, b"follow")
        self._outage = Outage(f"the list of changes of {url}", clock.seconds)
        self._position: Optional[int] = None
        self._kept: Optional[int] = None
        self._written = 0.0
        self._looping = LoopingCall(self._turn)
        self._looping.clock = clock
        self._running: Optional[Deferred[None]] = None
        self._leading = False

    def start(self) -> None:
        """Follow from now on."""
        self._looping.start(SECONDS)

    async def stop(self) -> None:
        """Follow no more, and let another."""
        if self._looping.running:
            self._looping.stop()
        if self._running is not None:
            self._running.cancel()
        await self._lease.give_back()
        await self._source.stop()

    def _turn(self) -> Deferred[None]:
        self._running = Deferred.fromCoroutine(self._follow())
        self._running.addErrback(self._failed)
        return self._running

    async def _follow(self) -> None:
        if self._leading and self._lease.lost:
            self._leading, self._position = False, None
            await self._lease.give_back()
        if not self._leading:
            self._leading = await self._lease.take()
            if not self._leading:
                return
            self._lease.keep()
        if self._position is None:
            await self._begin()
        while self._position is not None:
            changes = await self._source.since(self._position)
            self._outage.worked("")
            if await self._apply(changes, self._position):
                break

    async def _begin(self) -> None:
        """Find out how far the changes were followed, where the cache can be asked."""
        reading = await self._cache.get_many(self._place, [POSITION])
        if reading.fence is None:
            return
        kept = reading.entries.get(POSITION)
        if kept is not None:
            self._position = self._kept = int(kept)
            return
        last = await self._source.last()
        await self._purge_all("it is not known how far they were followed")
        self._position = last

    async def _apply(self, changes: Changes, position: int) -> bool:
        """Purge what a page after *position* names; whether to go on later."""
        if changes.last < position:
            await self._purge_all(f"the last one has the number {changes.last}, not {position} or more")
        for scope in self._scopes(changes):
            await self._invalidation.purge(scope, "changes")
            await deferLater(self._clock, 0)
        if changes.instances:
            self._log.info(
                "{url}: {count} instances are new or were replaced",
                event="changes_followed",
                url=self._url,
                count=len(changes.instances),
            )
        self._position = changes.last
        due = self._clock.seconds() - self._written >= REFRESH_SECONDS
        if not self._invalidation.pending and (due or changes.last != self._kept):
            await self._write(changes.last)
        # The latter: a list that goes back and forth would be read without a pause.
        return changes.done or changes.last <= position

    def _scopes(self, changes: Changes) -> Iterator[Scope]:
        """What is to be purged for a page."""
        of_series = Counter(uids[:2] for uids in changes.instances)
        for uids in dict.fromkeys(each[: 2 if of_series[each[:2]] > MANY else 3] for each in changes.instances):
            with contextlib.suppress(InvalidUID):  # nobody can ask the proxy for it either
                yield Scope(self._store, "", *uids)

    async def _purge_all(self, why: str) -> None:
        self._log.info("{url}: the changes begin anew: {why}", event="changes_begin", url=self._url, why=why)
        await self._invalidation.purge(Scope(self._store, ""), "changes")

    async def _write(self, position: int) -> None:
        self._written, self._kept = self._clock.seconds(), position
        fence = (await self._cache.get_many(self._place, [])).fence
        await self._cache.put_many(self._place, fence, {POSITION: b"%d" % position}, None)

    def _failed(self, failure: Failure) -> None:
        error = failure.value
        if isinstance(error, (OriginError, OSError)):
            self._outage.failed("", str(error) or type(error).__name__)
        elif not isinstance(error, CancelledError):
            self._log.failure("following the changes of a store failed; trying again", failure)
