"""What lies in a folder. Blocking: call it in a thread.

- Only regular files count; symlinks below the folder are not followed, so nothing outside it is served.
- Names that start with a dot are left alone: programs that copy files give them such names meanwhile.
- A file is read when it is new or its stamp changed, never else. A file that cannot be read is remembered
  with its stamp, and is told of once.
- Files are read one after the other: parsing holds the interpreter's lock, more threads would not be quicker.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping

import attrs

from twistedproxy.origin.folder.catalog import Catalog, build_catalog
from twistedproxy.origin.folder.header import UnreadableFile, read_header
from twistedproxy.origin.folder.records import JSONElement, Stamp, StoredFile

MAX_DEPTH = 64  # folders within folders
MAX_INTERNED = 200_000  # attributes shared between files; beyond that sharing starts anew


class FolderGone(Exception):
    """The folder itself cannot be listed; `str()` says why, without its path."""


class Stopped(Exception):
    """The scan was told to end."""


@attrs.frozen(eq=False)
class Found:
    """The result of a scan. *problems*: (path, reason) of files that are left out and were not told of before."""

    files: Mapping[str, StoredFile] = attrs.field(factory=dict)
    unreadable: Mapping[str, Stamp] = attrs.field(factory=dict)
    catalog: Catalog = attrs.field(factory=Catalog)
    problems: tuple[tuple[str, str], ...] = ()
    changed: bool = True


class Scanner:
    """Scans one folder again and again. One call at a time."""

    def __init__(self, folder: str, stopped: Callable[[], bool] = lambda: False) -> None:
        self._folder = folder
        self._stopped = stopped
        self._intern: dict[str, JSONElement] = {}

    def scan(self, before: Found) -> Found:
        """Look at the whole folder. Raises `FolderGone`, `Stopped`."""
        return self._compare(before, dict(self._walk(self._folder, 0)))

    def look_at(self, before: Found, paths: Collection[str]) -> Found:
        """Look at some files (new, changed or gone), the others stay as *before*."""
        stamps = {name: file.stamp for name, file in before.files.items()} | dict(before.unreadable)
        for path in paths:
            stamps.pop(path, None)
            try:
                stamps[path] = Stamp.of(os.stat(path, follow_symlinks=False))
            except OSError:
                continue  # it went again
        return self._compare(before, stamps)

    def _compare(self, before: Found, stamps: Mapping[str, Stamp]) -> Found:
        files: dict[str, StoredFile] = {}
        unreadable: dict[str, Stamp] = {}
        problems = []
        for path, stamp in stamps.items():
            known = before.files.get(path)
            if known is not None and known.stamp == stamp:
                files[path] = known
            elif before.unreadable.get(path) == stamp:
                unreadable[path] = stamp
            elif (read := self._read(path)) is not None:
                if isinstance(read, StoredFile):
                    files[path] = read
                else:
                    unreadable[path] = stamp
                    problems.append((path, read))
        # Records are reused as they are, so nothing changed if each is the very one from before.
        if len(files) == len(before.files) and all(before.files.get(path) is file for path, file in files.items()):
            return attrs.evolve(before, unreadable=unreadable, problems=tuple(problems), changed=False)
        catalog = build_catalog(files.values())
        told = {(file.path, file.stamp) for file in before.catalog.duplicates}
        problems += [
            (file.path, "another file holds the same instance")
            for file in catalog.duplicates
            if (file.path, file.stamp) not in told
        ]
        return Found(files, unreadable, catalog, tuple(problems))

    def _read(self, path: str) -> StoredFile | str | None:
        """The record, or why there is none; None for a file that went meanwhile."""
        if self._stopped():
            raise Stopped
        if len(self._intern) > MAX_INTERNED:
            self._intern.clear()
        try:
            return read_header(path, self._intern)
        except FileNotFoundError:
            return None
        except OSError as error:
            return error.strerror or type(error).__name__
        except (UnreadableFile, ValueError) as error:
            return str(error)

    def _walk(self, folder: str, depth: int) -> Iterator[tuple[str, Stamp]]:
        if self._stopped():
            raise Stopped
        try:
            with os.scandir(folder) as entries:
                listed = list(entries)
        except OSError as error:
            if depth == 0:
                raise FolderGone(error.strerror or type(error).__name__) from None
            return  # a folder that went, or that is not ours to read
        for entry in listed:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    if depth < MAX_DEPTH:
                        yield from self._walk(entry.path, depth + 1)
                elif entry.is_file(follow_symlinks=False):
                    yield entry.path, Stamp.of(entry.stat(follow_symlinks=False))
            except OSError:
                continue  # it went meanwhile
