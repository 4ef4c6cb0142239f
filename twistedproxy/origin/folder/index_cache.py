"""What was learned of a folder's files, kept for the next start in the user's cache folder.

- It names patients: its folder is the user's own, and only the user may read the file.
- It is a cache: one that cannot be written, was damaged, or is of another version of the proxy is done without.
- Several workers write the same things into it; SQLite keeps them apart. All methods block, and one waits for another:
  a database that is closed while another thread reads it ends the process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

from twisted.logger import Logger

from twistedproxy.dicom.metadata import FIELD_TYPES
from twistedproxy.origin.folder.instance_file import (
    Common,
    Known,
    LeftOut,
    PixelElement,
    Stamp,
    StoredFile,
    shared_pixels,
)
from twistedproxy.origin.folder.json_model import INSTANCE_TAGS, SERIES_TAGS, STUDY_TAGS

STALE_SECONDS = 180 * 24 * 3600.0
"""Files of folders that were not served for so long are removed."""
_FORMAT = 2, sorted(FIELD_TYPES), sorted(int(tag, 16) for tag in STUDY_TAGS + SERIES_TAGS + INSTANCE_TAGS)
_VERSION = zlib.crc32(repr(_FORMAT).encode()) >> 1
_TABLES = """
CREATE TABLE IF NOT EXISTS common (id BLOB PRIMARY KEY, packed BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, device INTEGER, inode INTEGER, size INTEGER, modified INTEGER,
    sop TEXT, common BLOB, own BLOB, pixels TEXT) WITHOUT ROWID;
"""
_DELETE_UNUSED = "DELETE FROM common WHERE id NOT IN (SELECT common FROM files WHERE common IS NOT NULL)"
log = Logger()


def user_cache(environment: Mapping[str, str]) -> Path:
    """The package's folder in the user's cache (XDG Base Directory Specification)."""
    configured = environment.get("XDG_CACHE_HOME", "")
    base = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    return base / "twistedproxy"


class IndexCache:
    """What is kept of *folder* in the user's cache."""

    def __init__(self, environment: Mapping[str, str], folder: str) -> None:
        name = hashlib.blake2b(os.fsencode(os.path.realpath(folder)), digest_size=16).hexdigest()
        self.place = user_cache(environment) / "folders" / f"{name}.sqlite"
        self._database: Optional[sqlite3.Connection] = None
        self._closed = False
        self._lock = threading.Lock()

    def load(self) -> Optional[Known]:
        """What was learned before; None where nothing was."""
        with self._lock:
            for _ in range(0 if self._closed else 2):  # a damaged one is made anew
                try:
                    database = self._open()
                    with database:  # one state of both tables, whatever other workers write meanwhile
                        database.execute("BEGIN")
                        known = self._read(database)
                    with contextlib.suppress(sqlite3.OperationalError), database:  # another worker may be writing
                        database.execute(_DELETE_UNUSED)
                    return known or None
                except (sqlite3.OperationalError, OSError) as error:
                    self._give_up(error)
                    return None
                except (sqlite3.Error, ValueError, TypeError, KeyError, AttributeError):
                    self._disconnect()
                    for suffix in ("", "-wal", "-shm"):
                        with contextlib.suppress(OSError):
                            os.unlink(f"{self.place}{suffix}")
        return None

    def write(self, changed: Known) -> None:
        """Keep what is known now of files."""
        files = [known for known in changed.values() if isinstance(known, StoredFile)]
        rows: list[tuple[object, ...]] = [
            (os.fsencode(file.path), *file.stamp, file.sop, _id(file.common), file.own, json.dumps(file.pixels))
            for file in files
        ]
        left_out = [(path, known.stamp) for path, known in changed.items() if isinstance(known, LeftOut)]
        rows += [(os.fsencode(path), *stamp, None, None, None, None) for path, stamp in left_out]
        common = {_id(file.common): file.common.packed for file in files}
        with self._lock:
            if self._database is None:
                return
            try:
                with self._database as database:
                    database.executemany("DELETE FROM files WHERE path = ?", [(os.fsencode(path),) for path in changed])
                    database.executemany("INSERT OR IGNORE INTO common VALUES (?, ?)", common.items())
                    database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            except (sqlite3.Error, OverflowError) as error:
                self._give_up(error)

    def close(self) -> None:
        """Keep no more."""
        with self._lock:
            self._closed = True
            self._disconnect()

    def _disconnect(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _give_up(self, error: Exception) -> None:
        log.warn("the index of the folder cannot be saved for the next start: {reason}", reason=str(error))
        self._disconnect()

    def _open(self) -> sqlite3.Connection:
        folder = self.place.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = os.stat(folder)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise PermissionError(f"{folder} must belong to this user and be closed to others")
        for path in folder.iterdir():  # of folders that are no longer served
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()
        os.close(os.open(self.place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        os.utime(self.place)
        database = self._database = sqlite3.connect(self.place, check_same_thread=False, timeout=10.0)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise ValueError("it was written by another version")
        database.executescript(_TABLES)
        database.execute(f"PRAGMA user_version={_VERSION}")
        return database

    def _read(self, database: sqlite3.Connection) -> Known:
        rows = database.execute("SELECT id, packed FROM common")
        common = {key: Common.unpack(packed) for key, packed in rows}
        known: Known = {}
        for raw, device, inode, size, modified, sop, key, own, pixels in database.execute("SELECT * FROM files"):
            path, stamp = os.fsdecode(raw), Stamp(device, inode, size, modified)
            if sop is None:
                known[path] = LeftOut(stamp)
            else:
                known[path] = StoredFile(path, stamp, sop, common[key], own, _pixels(pixels))
        return known


def _id(common: Common) -> bytes:
    return hashlib.blake2b(common.packed, digest_size=16).digest()


@functools.lru_cache
def _pixels(text: str) -> Optional[PixelElement]:
    values = json.loads(text)
    return values and shared_pixels(*values)
