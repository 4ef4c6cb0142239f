"""What was learned of a folder's files, kept for the next start in the user's cache folder.

- It names patients: its folder is the user's own, and only the user may read the file.
- It is a cache: one that cannot be written, was damaged, or is of another version of the proxy is done without.
- Several workers write the same things into it; SQLite keeps them apart. All methods block, and one waits for another:
  a database that is closed while another thread reads it ends the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Optional

import attrs
from twisted.logger import Logger

from twistedproxy.dicom.metadata import FIELD_TYPES
from twistedproxy.origin.folder import instance_file
from twistedproxy.origin.folder.instance_file import Common, PixelElement, Stamp, StoredFile

STALE_SECONDS = 180 * 24 * 3600.0
"""Files of folders that were not served for so long are removed."""
_VERSION = zlib.crc32(repr((1, sorted(FIELD_TYPES), sorted(instance_file.INDEXED))).encode()) >> 1
_TABLES = """
CREATE TABLE IF NOT EXISTS common (id BLOB PRIMARY KEY, packed BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, device INTEGER, inode INTEGER, size INTEGER, modified INTEGER,
    sop TEXT, common BLOB, own BLOB, pixels TEXT) WITHOUT ROWID;
"""
_DELETE_UNUSED = "DELETE FROM common WHERE id NOT IN (SELECT common FROM files WHERE common IS NOT NULL)"
log = Logger()


@attrs.frozen(eq=False)
class Learned:
    """*unreadable*: files that are left out, as they were then."""

    files: Mapping[str, StoredFile] = attrs.field(factory=dict)
    unreadable: Mapping[str, Stamp] = attrs.field(factory=dict)


def kept_place(environment: Mapping[str, str], folder: str) -> Path:
    """The file for *folder* (XDG Base Directory Specification)."""
    configured = environment.get("XDG_CACHE_HOME", "")
    base = Path(configured) if os.path.isabs(configured) else Path(os.path.expanduser("~")) / ".cache"
    name = hashlib.blake2b(os.fsencode(os.path.realpath(folder)), digest_size=16).hexdigest()
    return base / "twistedproxy" / "folders" / f"{name}.sqlite"


class Kept:
    """The file at *place*; None: nothing is kept."""

    def __init__(self, place: Optional[Path]) -> None:
        self._place = place
        self._database: Optional[sqlite3.Connection] = None
        self._lock = threading.Lock()

    def load(self, intern: dict[bytes, Common]) -> Optional[Learned]:
        """What was learned before; None where nothing was."""
        with self._lock:
            return self._load(intern)

    def _load(self, intern: dict[bytes, Common]) -> Optional[Learned]:
        if self._place is None:
            return None
        for _ in range(2):  # a damaged one is made anew
            try:
                database = self._open(self._place)
                with database:  # one state of both tables, whatever other workers write meanwhile
                    database.execute("BEGIN")
                    learned = self._read(database, intern)
                with contextlib.suppress(sqlite3.OperationalError), database:  # another worker may be writing
                    database.execute(_DELETE_UNUSED)
                return learned
            except sqlite3.OperationalError as error:
                self._give_up(error)
                return None
            except (sqlite3.Error, ValueError, TypeError, KeyError, AttributeError):
                self._close()
                for name in (self._place, f"{self._place}-wal", f"{self._place}-shm"):
                    with contextlib.suppress(OSError):
                        os.unlink(name)
            except OSError as error:
                self._give_up(error)
                return None
        return None

    def write(self, gone: Iterable[str], come: Iterable[StoredFile], unreadable: Mapping[str, Stamp]) -> None:
        """Keep what changed."""
        with self._lock:
            self._write(gone, come, unreadable)

    def _write(self, gone: Iterable[str], come: Iterable[StoredFile], unreadable: Mapping[str, Stamp]) -> None:
        if self._database is None:
            return
        rows = [
            (
                os.fsencode(file.path),
                *attrs.astuple(file.stamp),
                file.sop,
                _id(file.common),
                file.own,
                _pixels(file.pixels),
            )
            for file in come
        ]
        rows += [
            (os.fsencode(path), *attrs.astuple(stamp), None, None, None, None) for path, stamp in unreadable.items()
        ]
        common = {_id(file.common): file.common.packed for file in come}
        try:
            with self._database as database:
                database.executemany("DELETE FROM files WHERE path = ?", [(os.fsencode(path),) for path in gone])
                database.executemany("INSERT OR IGNORE INTO common VALUES (?, ?)", common.items())
                database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        except (sqlite3.Error, OverflowError) as error:
            self._give_up(error)

    def close(self) -> None:
        """Keep no more."""
        with self._lock:
            self._place = None
            self._close()

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _give_up(self, error: Exception) -> None:
        log.warn("the folder's index is not kept for the next start: {reason}", reason=str(error))
        self._close()

    def _open(self, place: Path) -> sqlite3.Connection:
        place.parent.parent.mkdir(parents=True, exist_ok=True)
        place.parent.mkdir(mode=0o700, exist_ok=True)
        status = os.stat(place.parent)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise PermissionError(f"{place.parent} is not this user's alone")
        _sweep(place.parent)
        os.close(os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        os.utime(place)
        database = self._database = sqlite3.connect(place, check_same_thread=False, timeout=10.0)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise ValueError("another version's")
        database.executescript(_TABLES)
        database.execute(f"PRAGMA user_version={_VERSION}")
        return database

    def _read(self, database: sqlite3.Connection, intern: dict[bytes, Common]) -> Optional[Learned]:
        common = {
            key: intern.setdefault(packed, Common.unpack(packed))
            for key, packed in database.execute("SELECT id, packed FROM common")
        }
        files: dict[str, StoredFile] = {}
        unreadable: dict[str, Stamp] = {}
        elements: dict[Optional[str], Optional[PixelElement]] = {None: None}
        for raw, device, inode, size, modified, sop, key, own, pixels in database.execute("SELECT * FROM files"):
            path, stamp = os.fsdecode(raw), Stamp(device, inode, size, modified)
            if sop is None:
                unreadable[path] = stamp
                continue
            if pixels not in elements:
                elements[pixels] = PixelElement(*json.loads(pixels))
            files[path] = StoredFile(path, stamp, sop, common[key], own, elements[pixels])
        return Learned(files, unreadable) if files or unreadable else None


def _id(common: Common) -> bytes:
    return hashlib.blake2b(common.packed, digest_size=16).digest()


def _pixels(element: Optional[PixelElement]) -> Optional[str]:
    return None if element is None else json.dumps(attrs.astuple(element))


def _sweep(folder: Path) -> None:
    """Remove what belongs to folders that are no longer served."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
