"""What is known of a folder's files, and how more is learned of them.

- The catalog is never changed once made. Its order is that of the paths, so that pages of a search fit together and several
  workers give the same.
- Only regular files count; symlinks below the folder are not followed, so nothing outside it is served. Names that start
  with a dot are left alone: programs that copy files give them such names meanwhile.
- A file is read when it is new or its stamp changed, never else, and only whole ones are taken. One that cannot be read,
  whatever the reason, is remembered with its stamp, and logged once.
"""

from __future__ import annotations

import functools
import os
import stat
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Optional, Union

import attrs
from twisted.logger import Logger

from twistedproxy.origin.errors import OriginUnreachable
from twistedproxy.origin.folder.instance_file import (
    Key,
    Known,
    LeftOut,
    Stamp,
    StoredFile,
    UnreadableFile,
    read_header,
    stamp_of,
)

MAX_DEPTH = 64  # folders within folders
MAX_LOGGED = 20  # files left out, of each slice, that get a log line each; the others are counted

log = Logger()


Series = Mapping[str, StoredFile]


@attrs.frozen(eq=False)
class Study:
    """*files*: in the order of their paths. *series*: by SeriesInstanceUID the instances, by SOPInstanceUID the file; of several
    files with one instance the first is served."""

    files: Sequence[StoredFile]
    series: Mapping[str, Series]

    @classmethod
    def of(cls, files: Iterable[StoredFile]) -> Study:
        """Arrange *files*."""
        ordered = sorted(files, key=lambda file: file.path)
        series: dict[str, dict[str, StoredFile]] = {}
        for file in ordered:
            series.setdefault(file.common.series, {}).setdefault(file.sop, file)
        return cls(ordered, series)

    @property
    def size(self) -> int:
        """How many instances there are."""
        return sum(map(len, self.series.values()))


@attrs.frozen(eq=False, slots=False)
class Catalog:
    """*studies*: by StudyInstanceUID. *size*, *duplicates*: numbers of files that are served, and that are not."""

    studies: Mapping[str, Study] = attrs.field(factory=dict)
    size: int = 0
    duplicates: int = 0

    @functools.cached_property
    def ordered(self) -> Sequence[tuple[str, Study]]:
        """The studies, by the path of their first file."""
        return sorted(self.studies.items(), key=lambda item: item[1].files[0].path)

    def files(self, study: str, series: Optional[str] = None, sop: Optional[str] = None) -> list[StoredFile]:
        """All files of a study, a series or one instance; none where there is no such thing."""
        found = self.studies[study].series if study in self.studies else {}
        chosen = found.values() if series is None else [found.get(series, {})]
        if sop is None:
            return [file for instances in chosen for file in instances.values()]
        return [instances[sop] for instances in chosen if sop in instances]

    def changed(self, gone: Collection[StoredFile], come: Collection[StoredFile]) -> Catalog:
        """The catalog without the files *gone* and with those that have *come*: only their studies are arranged anew."""
        studies = dict(self.studies)
        size, count = self.size, self.size + self.duplicates
        without = {id(file) for file in gone}
        added: dict[str, list[StoredFile]] = {file.common.study: [] for file in (*gone, *come)}
        for file in come:
            added[file.common.study].append(file)
        for uid, files in added.items():
            before = studies.pop(uid, Study((), {}))
            after = Study.of([*(file for file in before.files if id(file) not in without), *files])
            size += after.size - before.size
            count += len(after.files) - len(before.files)
            if after.files:
                studies[uid] = after
        return Catalog(studies, size, count - size)

    def replaced(self, after: Catalog, touched: Iterable[StoredFile]) -> set[Key]:
        """Which instances of the files *touched* were served, and are no more by the same file."""
        keys = {file.key for file in touched}
        return {key for key in keys if any(file not in after.files(*key) for file in self.files(*key))}


class FolderGone(OriginUnreachable):
    """The folder itself cannot be listed."""


class Stopped(OriginUnreachable):
    """The index is being stopped."""


class FolderContents:
    """*known*: the state of all files in *folder*. *catalog*: those that are served. `walk` and `read` are called in threads, and
    raise `Stopped` once it is *stopping*."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.known: Known = {}
        self.catalog = Catalog()
        self.stopping = False

    @property
    def unreadable(self) -> int:
        """How many files are left out."""
        return len(self.known) - self.catalog.size - self.catalog.duplicates

    def check_there(self) -> None:
        """Raises `FolderGone` where the whole cannot be listed."""
        try:
            os.scandir(self._folder).close()
        except OSError as error:
            raise FolderGone(f"the folder cannot be listed: {error.strerror}") from None

    def walk(self, top: str) -> tuple[Iterable[str], Sequence[str], Mapping[str, str]]:
        """The files below the folder *top* that are to be looked at; all folders there; those that cannot be listed, and why.
        Raises `FolderGone`."""
        candidates: list[tuple[int, str]] = []
        seen: set[str] = set()
        folders: list[str] = []
        unlisted: dict[str, str] = {}

        def note(error: OSError) -> None:
            if error.filename == self._folder:
                raise FolderGone(f"the folder cannot be listed: {error.strerror}") from None
            if os.path.lexists(error.filename):
                unlisted[error.filename] = error.strerror or type(error).__name__

        for folder, below, names in os.walk(top, onerror=note):
            if self.stopping:
                raise Stopped("the folder is not being served")
            folders.append(folder)
            is_deep = folder.count(os.sep) >= top.count(os.sep) + MAX_DEPTH
            below[:] = [name for name in below if not is_deep and not name.startswith(".")]
            for path in (os.path.join(folder, name) for name in names if not name.startswith(".")):
                if (stamp := file_stamp(path)) is not None:
                    seen.add(path)
                    if not self._knows(path, stamp):
                        candidates.append((-stamp.modified, path))
        inside = os.path.join(top, "")
        gone = [path for path in list(self.known) if path not in seen and path.startswith(inside)]
        # The newest first: users wait for those.
        return [*gone, *(path for _, path in sorted(candidates))], folders, unlisted

    def read(self, paths: deque[str], seconds: float) -> tuple[Known, Catalog, float]:
        """Read files for *seconds*. What changed, the catalog with that, and the seconds that arranging it took."""
        changed: Known = {}
        until = time.monotonic() + seconds
        while paths and time.monotonic() < until:
            if self.stopping:
                raise Stopped("the folder is not being served")
            path = paths.popleft()
            stamp = file_stamp(path)
            if path not in changed and not self._knows(path, stamp):  # it may have been noticed twice
                changed[path] = stamp and self._read(path, stamp)
        started = time.monotonic()
        catalog = self.catalog.changed(stored(map(self.known.get, changed)), stored(changed.values()))
        return changed, catalog, time.monotonic() - started

    def enter(self, changed: Known, catalog: Catalog) -> None:
        """Take over what `read` found."""
        self.known |= changed
        for path in [path for path, known in changed.items() if known is None]:
            del self.known[path]
        left_out = [(path, known.reason) for path, known in changed.items() if isinstance(known, LeftOut)]
        for path, reason in left_out[:MAX_LOGGED]:
            log.warn("skipped {path}: {reason}", event="file_left_out", path=path, reason=reason)
        if len(left_out) > MAX_LOGGED:
            log.warn("skipped {count} more files", event="files_left_out", count=len(left_out) - MAX_LOGGED)
        count = catalog.duplicates - self.catalog.duplicates
        if count > 0:
            log.warn(
                "skipped {count} files that duplicate instances of other files",
                event="duplicates_left_out",
                count=count,
            )
        self.catalog = catalog

    def _knows(self, path: str, stamp: Optional[Stamp]) -> bool:
        known = self.known.get(path)
        return (known and known.stamp) == stamp

    def _read(self, path: str, stamp: Stamp) -> Union[StoredFile, LeftOut, None]:
        """None for a file that went meanwhile."""
        try:
            return read_header(path)
        except FileNotFoundError:
            return None
        except (UnreadableFile, OSError) as error:
            return LeftOut(stamp, getattr(error, "strerror", None) or str(error))
        except Exception as error:
            return LeftOut(stamp, f"{type(error).__name__}: {error}")


def file_stamp(path: str) -> Optional[Stamp]:
    """The stamp of the regular file at *path*, None where there is none."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return stamp_of(status) if stat.S_ISREG(status.st_mode) else None


def stored(known: Iterable[object]) -> list[StoredFile]:
    """Those that can be served."""
    return [one for one in known if isinstance(one, StoredFile)]


def representative(files: Sequence[StoredFile]) -> StoredFile:
    """The one to show for *files*, at least one, of a series or study: of tiled levels the largest image that is one frame,
    else the middle one (the first and last slices of a stack show little)."""
    tiled = [file for file in files if file.facts.is_tiled]
    if tiled:
        return min(tiled, key=lambda file: (file.facts.frames, -file.facts.rows * file.facts.columns))
    return files[len(files) // 2]
