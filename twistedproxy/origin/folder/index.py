"""The index of a folder, made in the background and kept up to date.

Rules that this module keeps:

- What changes is noticed by inotify where there is one. The folder is also walked every `INTERVAL` seconds, more seldom
  where that takes long (network drives tell nothing of what other machines write).
- What was cached of an instance whose file changed or went is invalidated before the index shows the new state, and
  requests for it wait meanwhile: old frames are never served with new metadata.
- Threads read, in slices; the reactor's thread alone changes the index, one change after the other.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Optional

from twisted.internet.defer import CancelledError, Deferred, DeferredLock, ensureDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.deferreds import Waiters
from twistedproxy.origin.errors import OriginBusy, OriginUnreachable
from twistedproxy.origin.folder.contents import Catalog, FolderContents, FolderGone, Stopped, file_stamp, stored
from twistedproxy.origin.folder.index_cache import IndexCache
from twistedproxy.origin.folder.instance_file import Key, Known, LeftOut, StoredFile
from twistedproxy.origin.folder.threads import SharedRun, Threads
from twistedproxy.origin.folder.watcher import FolderWatcher

INTERVAL = 2.0  # seconds between two walks
MAX_SHARE = 0.03  # of the time may go into walking
MAX_SHARE_NOTICED = 0.005  # the same where inotify reports changes
MIN_PAUSE = 1.0  # seconds between two walks that were asked for
SLICE_SECONDS = 0.5  # of reading, between two states of the index
FIRST_WAIT = 10.0  # seconds that a request waits for the first scan
WRITING_SECONDS = 10.0  # after which a file that is written over counts as broken
NOTICE_SECONDS = 0.2  # within which noticed changes are gathered

Invalidate = Callable[[Optional[Collection[Key]]], Awaitable[None]]

log = Logger()


class Index:
    """Knows what a folder holds. *reactor*: a clock, and where folders are to be watched, a reactor of file descriptors.
    *invalidate*: called with the instances whose files changed or went; None: with any, as far as is known.

    *complete*: the folder was looked at as a whole. *on_change*: called when files changed.
    """

    def __init__(
        self,
        reactor: Any,
        folder: str,
        threads: Threads,
        invalidate: Invalidate,
        *,
        interval: float = INTERVAL,
        cache: Optional[IndexCache] = None,
        watched: bool = True,
    ) -> None:
        self._reactor = reactor
        self._folder = folder
        self._threads = threads
        self._invalidate = invalidate
        self._interval = interval
        self._cache = cache
        self._watcher = FolderWatcher(reactor, self._notice, watched)
        self._noticed: dict[str, bool] = {}
        self._gathering: Optional[IDelayedCall] = None
        self._next: Optional[IDelayedCall] = None
        self._contents = FolderContents(folder)
        self._unlisted: Mapping[str, str] = {}
        self._writing: dict[Key, float] = {}
        self._changing: Collection[Key] = ()
        self._news: Waiters[None] = Waiters()
        self._lock = DeferredLock()
        self._scan = SharedRun(self._scan_now)
        self._loaded = False
        self._gone = ""
        self._ended = 0.0
        self._walk_seconds = 0.0
        self._scan_seconds = 0.0
        self.complete = False
        self.on_change: Callable[[], None] = lambda: None

    @property
    def catalog(self) -> Catalog:
        """What is served: nothing while the folder cannot be listed; all that is known is kept for when it can."""
        return Catalog() if self._gone else self._contents.catalog

    def status(self) -> dict[str, object]:
        """For ``/status.json``."""
        return {
            "instances": self.catalog.size,
            "indexing": not self.complete,
            "unreadable_files": self._contents.unreadable,
            "unreadable_folders": len(self._unlisted),
            "duplicates": self.catalog.duplicates,
            "scan_seconds": round(self._scan_seconds, 3),
        }

    async def ping(self) -> None:
        """Raises `FolderGone` where the folder cannot be listed."""
        await self._threads.run(self._contents.check_there)

    async def start(self) -> None:
        """Begin to look at the folder. Raises as `ping`."""
        await self.ping()
        self._tick()

    async def stop(self) -> None:
        self._contents.stopping = True
        for call in (self._next, self._gathering):
            if call is not None and call.active():
                call.cancel()
        self._watcher.stop()
        with contextlib.suppress(CancelledError):
            await self._lock.run(lambda: None)  # what is read is left soon
        self._news.fire()
        if self._cache is not None:
            await self._threads.run_long(self._cache.close)

    async def find(self, *where: str) -> list[StoredFile]:
        """The files of a study, a series or an instance, whose UIDs are *where*, each in the state in which it is now; none:
        there is nothing.

        Raises `OriginBusy` while the first scan runs, for longer than a request should wait, and for an instance
        whose file is being written over; as `check_there`.
        """
        while any(_is_below(key, where) for key in self._changing):
            await self._news.wait()
        if not await self.first_scan(FIRST_WAIT, where):
            raise OriginBusy("the folder is still being indexed")
        found = self.catalog.files(*where)
        if not found:
            await self.refresh()
            self.check_there()
            found = self.catalog.files(*where)
        stamps = {file.path: file.stamp for file in found}
        if found:
            stale = await self._threads.run(lambda: [path for path in stamps if file_stamp(path) != stamps[path]])
            if stale:
                await self.look_at(stale)
                found = self.catalog.files(*where)
        written = [key for key, until in self._writing.items() if until > self._reactor.seconds()]
        if not found and any(_is_below(key, where) for key in written):
            raise OriginBusy("the instance's file is being written")
        return found

    def check_there(self) -> None:
        """Raises `OriginUnreachable` while the folder cannot be listed: what is not known then is not known to be missing."""
        if self._gone:
            raise OriginUnreachable(self._gone)

    async def first_scan(self, seconds: float = FIRST_WAIT, instance: Sequence[str] = ()) -> bool:
        """Whether the folder was looked at as a whole, or the *instance* of these three UIDs is known; waits for that as long
        as a request may."""
        until = self._reactor.seconds() + seconds
        while not self.complete and not (len(instance) == 3 and self.catalog.files(*instance)):
            left = until - self._reactor.seconds()
            if self._contents.stopping or left <= 0:
                return False
            try:
                await self._news.wait().addTimeout(left, self._reactor)
            except DeferredTimeout:
                return False
        return True

    async def refresh(self) -> None:
        """Walk now, or wait for the walk that is under way. Nothing if that was done just before."""
        pause = max(MIN_PAUSE, self._walk_seconds / MAX_SHARE)
        if self._contents.stopping or (not self._scan.running and self._reactor.seconds() - self._ended < pause):
            return
        with contextlib.suppress(FolderGone, Stopped):  # logged where it happened
            await self._scan.join()

    async def look_at(self, paths: Iterable[str]) -> None:
        """Take up what was done to some files, also when the request that waits for it is cancelled. Raises `Stopped`."""
        await SharedRun(lambda: self._look_at(deque(paths))).join()

    async def _look_at(self, paths: deque[str]) -> None:
        seconds = SLICE_SECONDS
        while paths:
            async with self._lock:
                read = functools.partial(self._contents.read, paths, seconds)
                changed, catalog, arranging = await self._threads.run_long(read)
                await self._take(changed, catalog)
            seconds = max(SLICE_SECONDS, 10 * arranging)

    async def _take(self, changed: Known, catalog: Catalog) -> None:
        """Show the new state of some files, once nothing is cached of the old one."""
        if not changed:
            return
        before = {path: self._contents.known.get(path) for path in changed}
        self._changing = self._contents.catalog.replaced(catalog, stored([*before.values(), *changed.values()]))
        try:
            if self._changing:
                await self._invalidated(self._changing)
            now = self._reactor.seconds()
            broken = stored(before[path] for path, known in changed.items() if isinstance(known, LeftOut))
            self._writing = {key: until for key, until in self._writing.items() if until > now}
            self._writing |= {file.key: now + WRITING_SECONDS for file in broken}
            self._contents.enter(changed, catalog)
            self.on_change()
        finally:
            self._changing = ()
            self._news.fire()
        if self._cache is not None:
            await self._threads.run_long(functools.partial(self._cache.write, changed))

    async def _invalidated(self, keys: Optional[Collection[Key]]) -> None:
        try:
            await self._invalidate(keys)
        except Exception:
            log.failure("invalidating cached frames of changed files failed")

    async def _scan_now(self) -> None:
        started = self._reactor.seconds()
        try:
            if not self._loaded:
                self._loaded = True
                await self._load()
            files = await self._walk_and_watch(self._folder)
            self._gone = ""
            await self.look_at(files)
            if not self.complete:
                self.complete = True
                self._news.fire()
                log.info(
                    "indexed {count} instances; skipped {unreadable} files",
                    event="folder_indexed",
                    count=self.catalog.size,
                    unreadable=self._contents.unreadable,
                )
        except FolderGone as error:
            if str(error) != self._gone:
                log.error("{reason}", event="folder_gone", reason=str(error))
            self._gone = str(error)
            self.on_change()
            raise
        finally:
            self._ended = self._reactor.seconds()
            self._scan_seconds = self._ended - started

    async def _load(self) -> None:
        """Begin with what was kept. Without it any cached frame may be old, so all of them are invalidated."""
        known = None
        if self._cache is not None:
            known = await self._threads.run_long(self._cache.load)
        if known is None:
            await self._invalidated(None)
            return
        self._contents.catalog = await self._threads.run_long(lambda: Catalog().changed((), stored(known.values())))
        self._contents.known = known

    async def _walk_and_watch(self, top: str) -> deque[str]:
        files: deque[str] = deque()
        for _ in range(2):  # the second time with all that is in it being watched
            started = self._reactor.seconds()
            found, folders, unlisted = await self._threads.run_long(functools.partial(self._contents.walk, top))
            files.extend(found)
            if top == self._folder:
                self._walk_seconds = self._reactor.seconds() - started
                for path in unlisted.keys() - self._unlisted.keys():
                    log.warn(
                        "skipped the folder {path}: {reason}",
                        event="folder_left_out",
                        path=path,
                        reason=unlisted[path],
                    )
                self._unlisted = unlisted
            if not self._watcher.watch(folders):
                break
        return files

    def _notice(self, path: str, is_folder: bool) -> None:
        """Something happened to *path*, which is below the folder."""
        self._noticed[path] = is_folder or self._noticed.get(path, False)
        if not self._contents.stopping and (self._gathering is None or not self._gathering.active()):
            self._gathering = self._reactor.callLater(
                NOTICE_SECONDS, lambda: self._in_background(self._look_into_noticed())
            )

    async def _look_into_noticed(self) -> None:
        noticed, self._noticed = self._noticed, {}
        files = deque(path for path, is_folder in noticed.items() if not is_folder)
        for folder in (path for path, is_folder in noticed.items() if is_folder):
            files.extend(await self._walk_and_watch(folder))
        await self.look_at(files)

    def _tick(self) -> None:
        self._in_background(self._scan.join()).addBoth(self._schedule)

    def _schedule(self, _: object) -> None:
        if not self._contents.stopping:
            share = MAX_SHARE_NOTICED if self._watcher.working else MAX_SHARE
            self._next = self._reactor.callLater(max(self._interval, self._walk_seconds / share), self._tick)

    def _in_background(self, what: Any) -> Deferred[None]:
        def failed(failure: Failure) -> None:
            if not failure.check(FolderGone, Stopped, CancelledError):
                log.failure("scanning the folder failed", failure)

        return ensureDeferred(what).addErrback(failed)


def _is_below(key: Key, where: tuple[str, ...]) -> bool:
    return key[: len(where)] == where
