"""The index of a folder, kept up to date.

- The folder is looked at every `INTERVAL` seconds, more seldom where looking takes long: at most
  `MAX_SHARE` of the time.
- Who asks for an instance that is not known makes it be looked at now, unless that was done just before.
- Scans never overlap; what a scan found replaces the index at once, in the reactor's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Optional

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from twistedproxy.origin.folder.catalog import Catalog
from twistedproxy.origin.folder.records import Stamp
from twistedproxy.origin.folder.scan import FolderGone, Found, Scanner, Stopped
from twistedproxy.origin.folder.threads import Shared, Threads

INTERVAL = 2.0  # seconds between two looks
MAX_SHARE = 0.03  # of the time may go into looking
MIN_PAUSE = 1.0  # seconds between two looks that were asked for
MAX_TOLD = 20  # files left out that get a log line each; the others are counted

log = Logger()


class Watch:
    """Knows what a folder holds. *reactor*: a clock; scans run in *threads*."""

    def __init__(self, reactor: Any, folder: str, threads: Threads, interval: float = INTERVAL) -> None:
        self._reactor = reactor
        self._threads = threads
        self._interval = interval
        self._stopping = False
        self._scanner = Scanner(folder, lambda: self._stopping)
        self._found = Found()
        self._lock = DeferredLock()
        self._scan = Shared(self._scan_now)
        self._next: Optional[IDelayedCall] = None
        self._ended = 0.0
        self._took = 0.0
        self._gone = ""
        self.on_change: Callable[[], None] = lambda: None

    @property
    def catalog(self) -> Catalog:
        """What the last look at the folder found."""
        return self._found.catalog

    @property
    def unreadable(self) -> int:
        """Files that are left out."""
        return len(self._found.unreadable)

    @property
    def scan_seconds(self) -> float:
        """How long the last look at the whole folder took."""
        return self._took

    def is_current(self, path: str, stamp: Stamp) -> bool:
        """Whether the file at *path* was in the state *stamp* at the last look."""
        known = self._found.files.get(path)
        return known is not None and known.stamp == stamp

    async def start(self) -> None:
        """Look at the folder for the first time, then again and again. Raises `FolderGone`."""
        await self._scan.join()
        self._schedule()

    async def stop(self) -> None:
        self._stopping = True
        if self._next is not None and self._next.active():
            self._next.cancel()
        try:
            await self._lock.run(lambda: None)  # a scan that runs ends soon
        except CancelledError:
            pass

    async def refresh(self) -> None:
        """Look now, or wait for the look that is under way. Nothing if that was done just before."""
        pause = max(MIN_PAUSE, self._took / MAX_SHARE)
        if self._stopping or (not self._scan.running and self._reactor.seconds() - self._ended < pause):
            return
        try:
            await self._scan.join()
        except (FolderGone, Stopped):
            pass  # told of where it happened

    async def look_at(self, paths: Collection[str]) -> None:
        """Take up what was done to some files."""
        await self._lock.acquire()
        try:
            before = self._found
            self._take(await self._threads.run(lambda: self._scanner.look_at(before, paths)))
        finally:
            self._lock.release()

    async def _scan_now(self) -> None:
        await self._lock.acquire()
        started = self._reactor.seconds()
        try:
            before = self._found
            self._take(await self._threads.run_long(lambda: self._scanner.scan(before)))
            self._gone = ""
        except FolderGone as error:
            if str(error) != self._gone:
                log.error("the folder cannot be listed: {reason}", reason=str(error))
            self._gone = str(error)
            self._take(Found(changed=bool(self._found.files)))
            raise
        finally:
            self._ended = self._reactor.seconds()
            self._took = self._ended - started
            self._lock.release()

    def _take(self, found: Found) -> None:
        self._found = found
        for path, reason in found.problems[:MAX_TOLD]:
            log.warn("left out {path}: {reason}", path=path, reason=reason)
        if len(found.problems) > MAX_TOLD:
            log.warn("left out {count} more files", count=len(found.problems) - MAX_TOLD)
        if found.changed:
            log.info("{count} instances are in the folder", count=found.catalog.size)
            self.on_change()

    def _schedule(self) -> None:
        if not self._stopping:
            self._next = self._reactor.callLater(max(self._interval, self._took / MAX_SHARE), self._tick)

    def _tick(self) -> None:
        def over(result: Any) -> None:
            failure = result if hasattr(result, "check") else None
            if failure is not None and not failure.check(FolderGone, Stopped, CancelledError):
                log.failure("looking at the folder failed", failure)
            self._schedule()

        wait: Deferred[None] = self._scan.join()
        wait.addBoth(over)
