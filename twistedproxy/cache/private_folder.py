"""The private folder of an embedded server's socket.

Rules kept here:
- A folder is 0700, ours, and locked (flock) by the proxy for as long as that lives; the kernel drops the lock with
  the process, whatever way it ends.
- It gets its name only once it is locked, so that a sweep never meets one that is just being made.
- A sweep removes folders of that name that belong to this user and are not locked, and nothing else.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Optional

import attrs

PREFIX = "twistedproxy-cache-"
SOCKET = "socket"
MAX_SOCKET_PATH = 103  # bytes: sun_path has 104 on BSD and macOS, 108 on Linux, the last one zero


@attrs.frozen
class PrivateFolder:
    """A locked folder."""

    path: Path
    _lock: int

    @property
    def socket(self) -> Path:
        """Where the server listens."""
        return self.path / SOCKET

    def remove(self) -> None:
        """Delete the folder, and give its lock back. To be called once."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def base_folder() -> Path:
    """Where private folders go: the user's runtime folder (XDG Base Directory Specification), else the one for temporary files."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.access(runtime, os.W_OK | os.X_OK):
        return Path(runtime)
    return Path(tempfile.gettempdir())


def make_folder(base: Optional[Path] = None) -> PrivateFolder:
    """Make a private folder below *base*. OSError where that can't be, or its socket's path would be too long."""
    base = base_folder() if base is None else base
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=base))
    path = base / (PREFIX + new.name.removeprefix(".new-"))
    lock = -1
    try:
        if len(os.fsencode(path / SOCKET)) > MAX_SOCKET_PATH:
            raise OSError(f"{path / SOCKET} is too long for a unix socket")
        lock = os.open(new, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        new.rename(path)
    except BaseException:
        if lock >= 0:
            os.close(lock)
        shutil.rmtree(new, ignore_errors=True)
        raise
    return PrivateFolder(path, lock)


def sweep(base: Optional[Path] = None) -> list[Path]:
    """Remove the folders of proxies that are gone; which ones."""
    base = base_folder() if base is None else base
    return [path for path in sorted(base.glob(PREFIX + "*")) if _remove_stale(path)]


def _remove_stale(path: Path) -> bool:
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False  # no folder, or not ours to open, or gone
    try:
        facts = os.fstat(lock)
        if facts.st_uid != os.geteuid() or not stat.S_ISDIR(facts.st_mode):
            return False
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
        return not path.exists()
    except OSError:
        return False  # a proxy is using it
    finally:
        os.close(lock)
