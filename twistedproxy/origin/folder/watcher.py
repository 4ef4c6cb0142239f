"""Changes in folders as the kernel reports them: Linux's inotify, through Twisted.

It is a hint and no more: events may be lost (too many at once, too many folders, network drives), so folders are walked, too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.filepath import FilePath

log = Logger()


class FolderWatcher:
    """Calls *notice* with each path in watched folders that changed, and whether it is a folder; for a file that is written,
    once it is closed. *working*: all folders that were to be watched are; False from the start watches none."""

    def __init__(self, reactor: Any, notice: Callable[[str, bool], None], working: bool = True) -> None:
        self._reactor = reactor
        self._notice = notice
        self._inotify: Any = None
        self._watched: set[str] = set()
        self.working = working

    def watch(self, folders: Iterable[str]) -> bool:
        """Watch *folders* too; whether any of them was not watched yet."""
        new = [folder for folder in folders if folder not in self._watched]
        try:
            for folder in new if self.working else ():
                self._watch(folder)
        except Exception as error:  # no Linux, or fs.inotify.max_user_instances or max_user_watches is reached
            log.info(
                "inotify is not available, so changes in the folder are found by scans only: {reason}",
                event="no_inotify",
                reason=str(error),
            )
            self.working = False
        return bool(new) and self.working

    def stop(self) -> None:
        """End all watches."""
        self.working = False
        if self._inotify is not None:
            self._inotify.stopReading()
            self._inotify.connectionLost(Failure(ConnectionDone()))

    def _watch(self, folder: str) -> None:
        from twisted.internet import inotify as bits

        if self._inotify is None:

            class Reader(bits.INotify):
                def loseConnection(self) -> None:
                    """Twisted's reader ends with the first watched folder that is removed; this one does not."""

            self._inotify = Reader(self._reactor)
            self._inotify.startReading()
        mask = bits.IN_CLOSE_WRITE | bits.IN_ATTRIB | bits.IN_CREATE | bits.IN_DELETE | bits.IN_MOVED
        try:
            self._inotify.watch(FilePath(os.fsencode(folder)), mask, callbacks=[self._event])
            self._watched.add(folder)
        except bits.INotifyError:
            if os.path.lexists(folder):  # else it went meanwhile
                raise

    def _event(self, _watch: object, path: FilePath[bytes], mask: int) -> None:
        from twisted.internet import inotify as bits

        name = os.fsdecode(path.path)
        if mask & bits.IN_DELETE_SELF:
            self._watched.discard(name)
        elif os.path.basename(name).startswith("."):
            return
        elif mask & bits.IN_ISDIR:
            if mask & (bits.IN_DELETE | bits.IN_MOVED_FROM):
                self._unwatch(name)
            self._notice(name, True)
        else:
            with contextlib.suppress(OSError):
                # A file just created is being written, and noticed when it is closed; a link has its content already.
                if not mask & bits.IN_CREATE or os.stat(name, follow_symlinks=False).st_nlink > 1:
                    self._notice(name, False)

    def _unwatch(self, folder: str) -> None:
        """End the watches of a folder that went: those of a folder that was moved report its old name."""
        below = os.path.join(folder, "")
        for watched in [one for one in self._watched if one == folder or one.startswith(below)]:
            self._watched.discard(watched)
            with contextlib.suppress(KeyError):
                self._inotify.ignore(FilePath(os.fsencode(watched)))
