"""The folder of a local cache, and who may use it.

Rules:
- It is ours, 0700, and no symbolic link; its files are 0600. One proxy uses it at a time: the one that holds its lock, for as
  long as that lives. Workers and loaders hold another lock; the next proxy waits until they have gone.
- A private folder has a name of its own in the folder for temporary files and ends with the proxy. One that a killed proxy left is
  removed by the next one.
- In a folder that is kept, the index is believed only where nothing can have changed it: after an orderly stop, by its checksum;
  after a proxy was killed, as long as the machine has been up since. Else it is made anew, from the segments.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import tempfile
import time
import zlib
from pathlib import Path
from typing import Optional

import attrs

from twistedproxy.cache.local import facts, index, segments
from twistedproxy.cache.local.generations import Generations

PREFIX = "twistedproxy-cache-"
STATE = "state.json"
MEMBERS = "members"
VERSION = 1
"""Of all layouts: a folder of another one is emptied."""

MEMBERS_SECONDS = 10.0
"""How long workers and loaders of a proxy that was killed may take to end. They take 3 s."""

CHECKED_FILES = (index.NAME, facts.NAME)
_READ = 1 << 20


def make_private(base: Optional[Path] = None) -> tuple[Path, int]:
    """A new private folder below *base* (default: for temporary files), and the file that holds its lock. Raises OSError."""
    base = Path(tempfile.gettempdir()) if base is None else base
    sweep(base)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=base))
    path = base / (PREFIX + new.name.removeprefix(".new-"))
    try:
        lock = _locked(new)
        new.rename(path)  # it gets its name once it is locked: no sweep meets one that is just being made
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return path, lock


def sweep(base: Path) -> None:
    """Remove the private folders of proxies that are gone."""
    for path in sorted(base.glob(PREFIX + "*")):
        try:
            lock = _locked(path)
        except OSError:
            continue  # no folder of ours, or in use
        try:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def take(path: Path) -> int:
    """Lock the folder at *path*, made if there is none; the file that holds the lock. Raises OSError that says what is wrong."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    try:
        return _locked(path)
    except BlockingIOError:
        raise OSError(f"the cache folder {path} is in use by another proxy") from None


def _locked(path: Path) -> int:
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        raise OSError(f"{path} is no folder, or a symbolic link to one") from None
    try:
        found = os.fstat(lock)
        if found.st_uid != os.geteuid():
            raise OSError(f"the folder {path} belongs to another user (uid {found.st_uid})")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise OSError(f"the folder {path} is open to others (mode {stat.S_IMODE(found.st_mode):o}); it must be 700")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(lock)
        raise
    return lock


def join(path: Path) -> int:
    """Be among those that use the folder at *path*, until the file that this returns is closed. Raises OSError."""
    file = os.open(path / MEMBERS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def wait_for_members(path: Path) -> None:
    """Wait until no process uses the folder at *path*. Raises OSError where one goes on."""
    file = os.open(path / MEMBERS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + MEMBERS_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > until:
                    raise OSError(f"processes of an earlier proxy are still using the cache folder {path}") from None
                time.sleep(0.1)
    finally:
        os.close(file)


@attrs.frozen
class State:
    """What the last proxy left in a folder."""

    version: int
    boot: str
    index_inode: int
    checksums: Optional[dict[str, int]] = None
    """Of `CHECKED_FILES`, after an orderly stop."""
    unclean_starts: int = 0
    """How often in a row the proxy ended without a stop soon after it had started."""


def boot_id() -> str:
    """Names the time since the machine was started; empty where that is not known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def read_state(path: Path) -> Optional[State]:
    """What the last proxy left; None where that can't be read."""
    try:
        return State(**json.loads((path / STATE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_state(path: Path, checksums: Optional[dict[str, int]], unclean_starts: int, rebuilding: bool = False) -> None:
    """Leave word for the next proxy; on the disk when this returns. *rebuilding*: the index is not to be believed."""
    inode = 0 if rebuilding else _inode(path / index.NAME)
    state = State(VERSION, boot_id(), inode, checksums, unclean_starts)
    new = path / (STATE + ".new")
    with open(new, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump(attrs.asdict(state), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path / STATE)


def checksums(path: Path) -> dict[str, int]:
    """The CRC-32 of each of `CHECKED_FILES`. Reads them all: 1 GB takes a second."""
    return {name: _checksum(path / name) for name in CHECKED_FILES}


def _checksum(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(_READ):
            crc = zlib.crc32(piece, crc)
    return crc


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def empty(path: Path, facts_size: int) -> None:
    """Remove all that a cache keeps in the folder at *path*, and make what a new one needs."""
    for number in segments.segment_numbers(path):
        segments.drop(path, number)
    index.EntryIndex.remove(path)
    index.EntryIndex(path).close()  # it has its inode before the state is written
    Generations.create(path)
    facts.Facts.create(path, facts_size)


def is_kept_well(path: Path, state: Optional[State]) -> bool:
    """Whether index and facts can be believed as they are."""
    if state is None or state.index_inode != _inode(path / index.NAME):
        return False  # nothing, or a copy of a folder
    if state.checksums is not None:
        try:
            return state.checksums == checksums(path)
        except OSError:
            return False
    return state.boot == boot_id() != "" and state.unclean_starts < 2
