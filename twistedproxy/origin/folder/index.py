"""The index of a folder, made in the background and kept up to date.

Rules that this module keeps:

- Only regular files count; symlinks below the folder are not followed, so nothing outside it is served. Names that start
  with a dot are left alone: programs that copy files give them such names meanwhile.
- A file is read when it is new or its stamp changed, never else, and only whole ones are taken. One that cannot be read,
  whatever the reason, is counted and remembered with its stamp, is logged once, and never stops the index.
- What changes is noticed by inotify where there is one. The folder is also walked every `INTERVAL` seconds, more seldom
  where that takes long (network drives tell nothing of what other machines write).
- What was cached of an instance whose file changed or went is invalidated before the index shows the new state, and
  requests for it wait meanwhile: old frames are never served with new metadata.
- Threads read, in slices; the reactor's thread alone changes the index, one change after the other.
"""

from __future__ import annotations

import functools
import os
import stat
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any, Optional, Union

import attrs
from twisted.internet.defer import CancelledError, Deferred, DeferredLock, ensureDeferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from twistedproxy.origin.errors import OriginBusy, OriginUnreachable
from twistedproxy.origin.folder.catalog import Catalog, Key
from twistedproxy.origin.folder.index_cache import Kept
from twistedproxy.origin.folder.instance_file import Common, Stamp, StoredFile, UnreadableFile, read_header
from twistedproxy.origin.folder.threads import Shared, Threads
from twistedproxy.origin.folder.watcher import Notices

INTERVAL = 2.0  # seconds between two walks
MAX_SHARE = 0.03  # of the time may go into walking
MAX_SHARE_NOTICED = 0.005  # the same where inotify reports changes
MIN_PAUSE = 1.0  # seconds between two walks that were asked for
SLICE_SECONDS = 0.5  # of reading, between two states of the index
FIRST_WAIT = 10.0  # seconds that a request waits for the first scan
WRITING_SECONDS = 10.0  # after which a file that is written over counts as broken
NOTICE_SECONDS = 0.2  # within which noticed changes are gathered
MAX_LOGGED = 20  # files left out, of each slice, that get a log line each; the others are counted
MAX_DEPTH = 64  # folders within folders
MAX_INTERNED = 50_000  # what files have in common; beyond that sharing starts anew

Invalidate = Callable[[Optional[Collection[Key]]], Awaitable[None]]
Read = Union[StoredFile, str, None]

log = Logger()


class FolderGone(Exception):
    """The folder itself cannot be listed; `str()` says why, without its path."""


class Stopped(Exception):
    """The index is being stopped."""


@attrs.frozen(eq=False)
class _Walked:
    """*files*: those that are to be looked at. *folders*: all that were listed. *unlisted*: those that cannot be, and why."""

    files: deque[str]
    folders: Sequence[str]
    unlisted: Sequence[tuple[str, str]]


@attrs.frozen(eq=False)
class _Slice:
    """*found*: path, stamp (None: it went) and what was read, of each file that changed. *replaced*: instances whose file
    is another now."""

    found: Sequence[tuple[str, Optional[Stamp], Read]]
    catalog: Catalog
    replaced: set[Key]
    seconds: float


async def _nothing(_keys: Optional[Collection[Key]]) -> None:
    return


def file_stamp(path: str) -> Optional[Stamp]:
    """The stamp of the regular file at *path*, None where there is none."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return Stamp.of(status) if stat.S_ISREG(status.st_mode) else None


class Index:
    """Knows what a folder holds. *reactor*: a clock, and for inotify a reactor of file descriptors. *invalidate*: called
    with the instances whose files changed or went; None: with any, as far as is known."""

    def __init__(
        self,
        reactor: Any,
        folder: str,
        threads: Threads,
        interval: float = INTERVAL,
        kept: Optional[Kept] = None,
        invalidate: Invalidate = _nothing,
        notices: Optional[Callable[[Callable[[str, bool], None], Callable[[], None]], Notices]] = None,
    ) -> None:
        self._reactor = reactor
        self._folder = folder
        self._threads = threads
        self._interval = interval
        self._kept = kept
        self._invalidate = invalidate
        self._make_notices = notices
        self._notices: Optional[Notices] = None
        self._noticed: dict[str, bool] = {}
        self._gathering: Optional[IDelayedCall] = None
        self._stopping = False
        self._intern: dict[bytes, Common] = {}
        self._files: dict[str, StoredFile] = {}
        self._unreadable: dict[str, Stamp] = {}
        self._unlisted: dict[str, str] = {}
        self._writing: dict[Key, tuple[str, float]] = {}
        self._changing: Optional[tuple[set[Key], list[Deferred[None]]]] = None
        self._lock = DeferredLock()
        self._scan = Shared(self._scan_now)
        self._next: Optional[IDelayedCall] = None
        self._ended = 0.0
        self._walk_seconds = 0.0
        self._scan_seconds = 0.0
        self._gone = ""
        self._waiting: list[Deferred[None]] = []
        self._loaded = False
        self.complete = False
        """Whether the folder was looked at as a whole."""
        self.catalog = Catalog()
        """What is known of the folder."""
        self.on_change: Callable[[], None] = lambda: None

    def status(self) -> dict[str, object]:
        """For ``/status.json``."""
        return {
            "instances": self.catalog.size,
            "indexing": not self.complete,
            "unreadable_files": len(self._unreadable),
            "unreadable_folders": len(self._unlisted),
            "duplicates": self.catalog.duplicates,
            "scan_seconds": round(self._scan_seconds, 3),
        }

    def is_current(self, path: str, stamp: Stamp) -> bool:
        """Whether the file at *path* is known to be in the state *stamp*."""
        known = self._files.get(path)
        return known is not None and known.stamp == stamp

    async def start(self) -> None:
        """Begin to look at the folder. Raises `FolderGone`."""
        await self._threads.run(functools.partial(_list, self._folder))
        if self._make_notices is not None:
            self._notices = self._make_notices(self._notice, self._lost_notices)
        self._tick()

    async def stop(self) -> None:
        self._stopping = True
        for call in (self._next, self._gathering):
            if call is not None and call.active():
                call.cancel()
        if self._notices is not None:
            self._notices.stop()
        try:
            await self._lock.run(lambda: None)  # what is read is left soon
        except CancelledError:
            pass
        self._progressed()
        if self._kept is not None:
            await self._threads.run_long(self._kept.close)

    async def find(self, study: str, series: Optional[str] = None, sop: Optional[str] = None) -> list[StoredFile]:
        """The files of a study, a series or an instance, each in the state in which it is now; none: there is nothing.

        Raises `OriginBusy` while the first scan runs, for longer than a request should wait, and for an instance
        whose file is being written over; as `check_there`.
        """
        await self._settled(study, series, sop)
        found = self.catalog.files(study, series, sop)
        until = self._reactor.seconds() + FIRST_WAIT
        while not self.complete and (not found or sop is None):
            if not await self._progress(until - self._reactor.seconds()):
                raise OriginBusy("the folder is still being indexed")
            found = self.catalog.files(study, series, sop)
        if not found:
            await self.refresh()
            self.check_there()
            found = self.catalog.files(study, series, sop)
        if found:
            known = found
            stale = await self._threads.run(
                lambda: [file.path for file in known if file_stamp(file.path) != file.stamp]
            )
            if stale:
                await self.look_at(stale)
                found = self.catalog.files(study, series, sop)
        if not found and any(_is_below(key, study, series, sop) for key in self._being_written()):
            raise OriginBusy("the instance's file is being written")
        return found

    def check_there(self) -> None:
        """Raises `OriginUnreachable` while the folder cannot be listed: what is not known then is not known to be missing."""
        if self._gone:
            raise OriginUnreachable(f"the folder cannot be listed: {self._gone}")

    async def first_scan(self, seconds: float = FIRST_WAIT) -> bool:
        """Whether the folder was looked at as a whole; waits for that as long as a request may."""
        until = self._reactor.seconds() + seconds
        while not self.complete and await self._progress(until - self._reactor.seconds()):
            pass
        return self.complete

    async def _progress(self, seconds: float) -> bool:
        """Wait until more of the folder is known; False where nothing came of that."""
        if self._stopping or seconds <= 0:
            return False
        waiter: Deferred[None] = Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        try:
            await waiter.addTimeout(seconds, self._reactor)
        except DeferredTimeout:
            return False
        return True

    async def refresh(self) -> None:
        """Walk now, or wait for the walk that is under way. Nothing if that was done just before."""
        pause = max(MIN_PAUSE, self._walk_seconds / MAX_SHARE)
        if self._stopping or (not self._scan.running and self._reactor.seconds() - self._ended < pause):
            return
        try:
            await self._scan.join()
        except (FolderGone, Stopped):
            pass  # logged where it happened

    async def look_at(self, paths: Iterable[str]) -> None:
        """Take up what was done to some files, also when the request that waits for it is cancelled. Raises `Stopped`."""
        await Shared(lambda: self._look_at(deque(paths))).join()

    async def _look_at(self, paths: deque[str]) -> None:
        seconds = SLICE_SECONDS
        while paths:
            await self._lock.acquire()
            try:
                part = await self._threads.run_long(functools.partial(self._read_slice, paths, seconds))
                await self._take(part)
                seconds = max(SLICE_SECONDS, 10 * part.seconds)
            finally:
                self._lock.release()

    # --- what threads do

    def _walk(self, top: str) -> _Walked:
        """All below the folder *top*. Raises `FolderGone` if the whole cannot be listed, `Stopped`."""
        candidates: list[tuple[int, str]] = []
        seen: set[str] = set()
        folders: list[str] = []
        unlisted: list[tuple[str, str]] = []
        waiting = [(top, 0)]
        while waiting:
            folder, depth = waiting.pop()
            if self._stopping:
                raise Stopped
            try:
                listed = _list(folder)
            except FolderGone as error:
                if folder == self._folder:
                    raise
                if os.path.lexists(folder):
                    unlisted.append((folder, str(error)))
                continue
            folders.append(folder)
            for entry in listed:
                if entry.name.startswith("."):
                    continue
                try:
                    if entry.is_dir(follow_symlinks=False):
                        if depth < MAX_DEPTH:
                            waiting.append((entry.path, depth + 1))
                    elif entry.is_file(follow_symlinks=False):
                        seen.add(entry.path)
                        stamp = Stamp.of(entry.stat(follow_symlinks=False))
                        if not self._knows(entry.path, stamp):
                            candidates.append((-stamp.modified, entry.path))
                except OSError:
                    continue  # it went meanwhile
        below = top if top == self._folder else os.path.join(top, "")
        known = [*list(self._files), *list(self._unreadable)]
        gone = [path for path in known if path not in seen and path.startswith(below)]
        # The newest first: users wait for those.
        return _Walked(deque([*gone, *(path for _, path in sorted(candidates))]), folders, unlisted)

    def _knows(self, path: str, stamp: Optional[Stamp]) -> bool:
        known = self._files.get(path)
        return (known.stamp if known is not None else self._unreadable.get(path)) == stamp

    def _read_slice(self, paths: deque[str], seconds: float) -> _Slice:
        """Read files for as long as a slice may take, and arrange what changed."""
        found: list[tuple[str, Optional[Stamp], Read]] = []
        seen: set[str] = set()  # a path may have been noticed twice
        until = time.monotonic() + seconds
        while paths and time.monotonic() < until:
            if self._stopping:
                raise Stopped
            path = paths.popleft()
            stamp = file_stamp(path)
            if path not in seen and not self._knows(path, stamp):
                seen.add(path)
                found.append((path, stamp, None if stamp is None else self._read(path)))
        started = time.monotonic()
        gone = [self._files[path] for path, _, _ in found if path in self._files]
        come = [read for _, _, read in found if isinstance(read, StoredFile)]
        catalog = self.catalog.changed(gone, come) if gone or come else self.catalog
        return _Slice(found, catalog, self.catalog.replaced(catalog, (*gone, *come)), time.monotonic() - started)

    def _read(self, path: str) -> Read:
        """The record, or why there is none; None for a file that went meanwhile."""
        if len(self._intern) > MAX_INTERNED:
            self._intern.clear()
        try:
            return read_header(path, self._intern)
        except FileNotFoundError:
            return None
        except OSError as error:
            return error.strerror or type(error).__name__
        except UnreadableFile as error:
            return str(error)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    # --- what the reactor's thread does

    async def _take(self, part: _Slice) -> None:
        """Show the new state of some files, once nothing is cached of the old one."""
        if not part.found:
            return
        waiters: list[Deferred[None]] = []
        self._changing = part.replaced, waiters
        if part.replaced:
            await self._invalidated(part.replaced)
        duplicates = part.catalog.duplicates - self.catalog.duplicates
        unreadable = self._record(part)
        self.catalog = part.catalog
        self._changing = None
        for waiter in waiters:
            waiter.callback(None)
        self._log(part, unreadable, duplicates)
        self.on_change()
        self._progressed()
        if self._kept is not None:
            gone = [path for path, _, _ in part.found]
            come = [read for _, _, read in part.found if isinstance(read, StoredFile)]
            await self._threads.run_long(functools.partial(self._kept.write, gone, come, unreadable))

    async def _invalidated(self, keys: Optional[Collection[Key]]) -> None:
        try:
            await self._invalidate(keys)
        except Exception:
            log.failure("what was cached of changed files could not be invalidated")

    def _record(self, part: _Slice) -> dict[str, Stamp]:
        """Enter what was found; returns the files that cannot be read."""
        unreadable: dict[str, Stamp] = {}
        for path, stamp, read in part.found:
            before = self._files.pop(path, None)
            self._unreadable.pop(path, None)
            if isinstance(read, StoredFile):
                self._files[path] = read
                self._writing.pop(read.key, None)
            elif isinstance(read, str) and stamp is not None:
                self._unreadable[path] = unreadable[path] = stamp
                if before is not None:
                    self._writing[before.key] = path, self._reactor.seconds() + WRITING_SECONDS
        return unreadable

    def _log(self, part: _Slice, unreadable: dict[str, Stamp], duplicates: int) -> None:
        for path in list(unreadable)[:MAX_LOGGED]:
            reason = next(read for found, _, read in part.found if found == path)
            log.warn("left out {path}: {reason}", event="file_left_out", path=path, reason=reason)
        if len(unreadable) > MAX_LOGGED:
            log.warn("left out {count} more files", event="files_left_out", count=len(unreadable) - MAX_LOGGED)
        if duplicates > 0:
            log.warn(
                "left out {count} files whose instances other files hold", event="duplicates_left_out", count=duplicates
            )

    def _being_written(self) -> list[Key]:
        now = self._reactor.seconds()
        self._writing = {key: value for key, value in self._writing.items() if value[1] > now}
        return list(self._writing)

    async def _settled(self, study: str, series: Optional[str], sop: Optional[str]) -> None:
        """Wait while what is asked for is being invalidated."""
        while self._changing is not None:
            keys, waiters = self._changing
            if not any(_is_below(key, study, series, sop) for key in keys):
                return
            waiter: Deferred[None] = Deferred(waiters.remove)
            waiters.append(waiter)
            await waiter

    async def _scan_now(self) -> None:
        started = self._reactor.seconds()
        try:
            if not self._loaded:
                self._loaded = True
                await self._load()
            walked = await self._threads.run_long(functools.partial(self._walk, self._folder))
            self._walk_seconds = self._reactor.seconds() - started
            await self._come_back()
            self._note_unlisted(walked.unlisted)
            if self._watch(walked.folders):  # what came in between is found by another walk
                again = await self._threads.run_long(functools.partial(self._walk, self._folder))
                walked.files.extend(again.files)
            await self.look_at(walked.files)
            if not self.complete:
                self.complete = True
                self._progressed()
                log.info(
                    "{count} instances are in the folder, {unreadable} files are left out",
                    event="folder_indexed",
                    count=self.catalog.size,
                    unreadable=len(self._unreadable),
                )
        except FolderGone as error:
            await self._go(str(error))
            raise
        finally:
            self._ended = self._reactor.seconds()
            self._scan_seconds = self._ended - started

    async def _load(self) -> None:
        """Begin with what was kept. Without it any cached frame may be old, so all of them are invalidated."""
        learned = None
        if self._kept is not None:
            learned = await self._threads.run_long(functools.partial(self._kept.load, self._intern))
        if learned is None:
            await self._invalidated(None)
            return
        files = learned.files
        catalog = await self._threads.run_long(lambda: Catalog().changed((), list(files.values())))
        self._files, self._unreadable, self.catalog = dict(files), dict(learned.unreadable), catalog

    async def _go(self, reason: str) -> None:
        """The folder is not there: nothing of it is served, and all that is known is kept for when it comes back."""
        if reason != self._gone:
            log.error("the folder cannot be listed: {reason}", event="folder_gone", reason=reason)
        self._gone = reason
        await self._show(Catalog)

    async def _come_back(self) -> None:
        if self._gone:
            self._gone = ""
            await self._show(lambda: Catalog().changed((), list(self._files.values())))

    async def _show(self, make: Callable[[], Catalog]) -> None:
        """Show another catalog, after what is being taken up: that would put what it began with in its place."""
        await self._lock.acquire()
        try:
            self.catalog = make()
            self.on_change()
        finally:
            self._lock.release()

    def _note_unlisted(self, unlisted: Sequence[tuple[str, str]]) -> None:
        for folder, reason in unlisted:
            if folder not in self._unlisted:
                log.warn("left out the folder {path}: {reason}", event="folder_left_out", path=folder, reason=reason)
        self._unlisted = dict(unlisted)

    def _progressed(self) -> None:
        for waiter in list(self._waiting):
            self._waiting.remove(waiter)
            waiter.callback(None)

    # --- noticing

    def _watch(self, folders: Iterable[str]) -> bool:
        return self._notices is not None and self._notices.watch(folders)

    def _notice(self, path: str, is_folder: bool) -> None:
        """Something happened to *path*, which is below the folder."""
        if self._stopping:
            return
        self._noticed[path] = is_folder or self._noticed.get(path, False)
        if self._gathering is None or not self._gathering.active():
            self._gathering = self._reactor.callLater(NOTICE_SECONDS, self._take_up_noticed)

    def _take_up_noticed(self) -> None:
        noticed, self._noticed = self._noticed, {}
        self._in_background(self._look_into(noticed))

    async def _look_into(self, noticed: dict[str, bool]) -> None:
        files = deque(path for path, is_folder in noticed.items() if not is_folder)
        for folder in (path for path, is_folder in noticed.items() if is_folder):
            for _ in range(2):  # the second time with all that is in it being watched
                walked = await self._threads.run_long(functools.partial(self._walk, folder))
                files.extend(walked.files)
                if not self._watch(walked.folders):
                    break
        await self.look_at(files)

    def _lost_notices(self) -> None:
        """Nothing is noticed for now: walk, which begins to watch anew."""
        if self._next is not None and self._next.active():
            self._next.reset(NOTICE_SECONDS)

    def _tick(self) -> None:
        self._in_background(self._scan.join(), self._schedule)

    def _schedule(self) -> None:
        if not self._stopping:
            noticing = self._notices is not None and self._notices.working
            share = MAX_SHARE_NOTICED if noticing else MAX_SHARE
            self._next = self._reactor.callLater(max(self._interval, self._walk_seconds / share), self._tick)

    def _in_background(self, what: Any, then: Callable[[], None] = lambda: None) -> None:
        def over(result: Any) -> None:
            if hasattr(result, "check") and not result.check(FolderGone, Stopped, CancelledError):
                log.failure("looking at the folder failed", result)
            then()

        ensureDeferred(what).addBoth(over)


def _is_below(key: Key, study: str, series: Optional[str], sop: Optional[str]) -> bool:
    return key[0] == study and series in (None, key[1]) and sop in (None, key[2])


def _list(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise FolderGone(error.strerror or type(error).__name__) from None
