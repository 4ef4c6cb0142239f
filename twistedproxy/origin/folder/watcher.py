"""Changes in folders as the kernel reports them: Linux's inotify, through Twisted.

It is a hint and no more: events may be lost (too many at once, too many folders, network drives), so folders are walked, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.filepath import FilePath

log = Logger()


class Notices:
    """Calls *notice* with each path in watched folders that changed, and whether it is a folder; for a file that is written,
    once it is closed. *lost* is called when all watches ended: they have to be set anew."""

    def __init__(self, reactor: Any, notice: Callable[[str, bool], None], lost: Callable[[], None]) -> None:
        self._reactor = reactor
        self._notice = notice
        self._lost = lost
        self._inotify: Any = None
        self._watched: set[str] = set()
        self._failed = False

    @property
    def working(self) -> bool:
        """Whether all folders that were to be watched are."""
        return self._inotify is not None and not self._failed

    def watch(self, folders: Iterable[str]) -> bool:
        """Watch *folders* too; whether any of them was not watched yet."""
        new = [folder for folder in folders if folder not in self._watched]
        if not new or self._failed:
            return False
        try:
            inotify = self._begun()
        except Exception as error:  # no Linux, or fs.inotify.max_user_instances is reached
            self._fail(error)
            return False
        for folder in new:
            try:
                inotify.watch(FilePath(os.fsencode(folder)), mask=self._mask, callbacks=[self._event])
            except Exception as error:
                if not os.path.lexists(folder):
                    continue  # it went meanwhile
                self._fail(error)  # fs.inotify.max_user_watches is reached
                break
            self._watched.add(folder)
        return True

    def stop(self) -> None:
        """End all watches."""
        self._failed = True
        if self._inotify is not None:
            self._inotify.stopReading()
            self._inotify.connectionLost(Failure(ConnectionDone()))

    def _fail(self, error: Exception) -> None:
        self._failed = True
        log.info("changes in the folder are noticed by looking only: {reason}", event="no_inotify", reason=str(error))

    def _begun(self) -> Any:
        from twisted.internet import inotify

        if self._inotify is None:
            self._mask = (
                inotify.IN_CLOSE_WRITE | inotify.IN_ATTRIB | inotify.IN_CREATE | inotify.IN_DELETE | inotify.IN_MOVED
            )
            self._is_folder, self._created = inotify.IN_ISDIR, inotify.IN_CREATE
            self._moved_away = inotify.IN_MOVED_FROM

            ended = self._ended

            class Reader(inotify.INotify):
                def connectionLost(self, reason: Any) -> None:
                    super().connectionLost(reason)
                    ended()

            self._inotify = Reader(self._reactor)
            self._inotify.startReading()
        return self._inotify

    def _ended(self) -> None:
        """Twisted's reader ends with the first watched folder that is removed."""
        self._inotify = None
        self._watched.clear()
        if not self._failed:
            self._lost()

    def _event(self, _watch: object, path: FilePath[bytes], mask: int) -> None:
        name = os.fsdecode(path.path)
        if os.path.basename(name).startswith("."):
            return
        is_folder = bool(mask & self._is_folder)
        if is_folder and mask & self._moved_away:
            self._unwatch(name)
        if mask & self._created and not is_folder and not _is_link(name):
            return  # it is being written, and noticed when it is closed
        self._notice(name, is_folder)

    def _unwatch(self, folder: str) -> None:
        """End the watches of a folder that was moved: they report its old name."""
        below = os.path.join(folder, "")
        for watched in [one for one in self._watched if one == folder or one.startswith(below)]:
            self._watched.discard(watched)
            self._inotify.ignore(FilePath(os.fsencode(watched)))


def _is_link(path: str) -> bool:
    """Whether a file just created has its content already: under another name."""
    try:
        return os.stat(path, follow_symlinks=False).st_nlink > 1
    except OSError:
        return False
