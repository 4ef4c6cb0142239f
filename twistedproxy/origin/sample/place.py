"""The folder that holds the sample slide, made once and kept. Blocking.

- A folder is complete or it is not there under its name: it is made beside and renamed. Two who make it at
  once both succeed, and one result stays.
- Whether it is complete is told by a list of its files' sizes and digests; a damaged one is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

LIST = ".files.json"  # begins with a dot: no scan takes it for an instance
_UNFINISHED = ".sample-"
STALE_SECONDS = 3600.0  # nobody takes an hour to make it: whoever began is gone


def cache_folder(environment: Mapping[str, str], version: int) -> Path:
    """Where the slide is kept (XDG Base Directory Specification)."""
    configured = environment.get("XDG_CACHE_HOME", "")
    base = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    return base / "twistedproxy" / f"sample-{version}"


def is_writable(folder: Path) -> bool:
    """Whether *folder* can be made, and what it lies in exists after this."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder.parent, os.W_OK | os.X_OK)


def is_complete(folder: Path) -> bool:
    """Whether *folder* holds all that was once made, unchanged."""
    try:
        listed = json.loads((folder / LIST).read_text())
        return bool(listed) and all(_digest(folder / name) == digest for name, digest in listed.items())
    except (OSError, ValueError, AttributeError):
        return False


def make(folder: Path, write: Callable[[Path], None]) -> None:
    """Have *write* fill a new folder, and give it its place. Raises what *write* raises, `OSError`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    unfinished = folder.parent / f"{_UNFINISHED}{secrets.token_hex(8)}"
    unfinished.mkdir(mode=0o700)
    try:
        write(unfinished)
        listed = {path.name: _digest(path) for path in sorted(unfinished.iterdir())}
        (unfinished / LIST).write_text(json.dumps(listed))
        _put_in_place(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _put_in_place(made: Path, folder: Path) -> None:
    for _ in range(3):  # somebody else may put theirs there in between
        try:
            os.rename(made, folder)
            return
        except OSError:
            if is_complete(folder):
                return
            if not folder.exists():
                raise
        aside = folder.parent / f"{_UNFINISHED}{secrets.token_hex(8)}"
        os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)
    raise OSError(f"{folder} could not be replaced")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _sweep(base: Path) -> None:
    """Remove what was begun by someone who is gone."""
    for path in base.glob(f"{_UNFINISHED}*"):
        try:
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue  # gone
