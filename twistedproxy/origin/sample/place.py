"""The folder that holds the sample slide, made once and kept. Blocking.

- A folder is complete or it is not there under its name: it is made beside and renamed. Two that are made at once both succeed,
  and one result stays.
- It is complete if its files have the digests in a list beside them; a damaged one is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

LIST = ".files.json"  # begins with a dot: no scan takes it for an instance
_UNFINISHED = ".sample-"
STALE_SECONDS = 3600.0  # making it takes seconds: the process that began has ended


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
    for path in folder.parent.glob(f"{_UNFINISHED}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
    unfinished = folder.parent / f"{_UNFINISHED}{secrets.token_hex(8)}"
    unfinished.mkdir(mode=0o700)
    try:
        write(unfinished)
        listed = {path.name: _digest(path) for path in sorted(unfinished.iterdir())}
        (unfinished / LIST).write_text(json.dumps(listed))
        for _ in range(3):  # another process may put its own there in between
            if not is_complete(folder):
                shutil.rmtree(folder, ignore_errors=True)
                with suppress(OSError):
                    os.rename(unfinished, folder)
        if not is_complete(folder):
            raise OSError(f"{folder} could not be replaced")
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
