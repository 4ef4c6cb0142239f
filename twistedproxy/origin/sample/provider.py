"""The sample slide as an origin: the folder provider over files that are made on first use, by a child process.

- The folder that holds them is made once and kept. What reads and writes it blocks, and runs in threads.
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
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Optional

from twisted.internet.threads import deferToThread
from twisted.logger import Logger

from twistedproxy.origin.errors import OriginUnreachable
from twistedproxy.origin.folder.index_cache import user_cache
from twistedproxy.origin.folder.provider import Changed, FolderOrigin, nothing
from twistedproxy.origin.sample.slide import LEVELS, VERSION
from twistedproxy.processes.child import child_command, child_environment

URL = "sample:"
DEADLINE = 180.0  # seconds that making it may take; 3 to 6 are usual
LIST = ".files.json"  # begins with a dot: no scan takes it for an instance
_UNFINISHED = ".sample-"
STALE_SECONDS = 3600.0  # making it takes seconds: the process that began has ended

log = Logger()


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


def slide_folder(environment: Mapping[str, str]) -> Path:
    """Where the slide is kept."""
    return user_cache(environment) / f"sample-{VERSION}"


class SampleOrigin(FolderOrigin):
    """The `Origin` of ``sample:``.

    *environment*: where the user's cache is found; *command*: makes the slide, in the place of this package's.
    """

    def __init__(
        self,
        reactor: Any,
        environment: Optional[Mapping[str, str]] = None,
        command: Sequence[str] = (),
        changed: Changed = nothing,
    ) -> None:
        self._environment = os.environ if environment is None else environment
        super().__init__(URL, reactor, changed=changed, environment=self._environment)
        self._command = command or child_command("twistedproxy.origin.sample")
        self._temporary: Optional[str] = None

    def examples(self) -> tuple[str, ...]:
        """See `Origin.examples`: a search, a picture of the whole slide, and frames of all its levels."""
        pictures = tuple(f"{level.path}/frames/1/rendered" for level in LEVELS)
        base = LEVELS[0]
        middle = base.frames // 2 + base.columns // 2
        return ("studies", f"{base.path}/metadata", f"{base.path}/frames/{middle}", *pictures)

    async def stop(self) -> None:
        await super().stop()
        if self._temporary is not None:
            temporary, self._temporary = self._temporary, None
            await deferToThread(shutil.rmtree, temporary, ignore_errors=True)

    async def locate(self) -> str:
        """The folder with the slide. `OriginUnreachable` where it can be made nowhere."""
        folder = slide_folder(self._environment)
        if await deferToThread(is_complete, folder):
            return str(folder)
        try:
            return await self._make(folder)
        except OriginUnreachable as error:
            log.warn("the sample slide cannot be stored in {folder}: {reason}", folder=str(folder), reason=str(error))
        self._temporary = await deferToThread(tempfile.mkdtemp, prefix="twistedproxy-sample-")
        try:
            return await self._make(Path(self._temporary) / "slide")
        except OriginUnreachable:
            await self.stop()
            raise

    async def _make(self, folder: Path) -> str:
        log.info("creating the sample slide in {folder}; this takes a few seconds, once", folder=str(folder))
        started = self._reactor.seconds()
        process = _started([*self._command, str(folder)])
        try:
            _, errors = await deferToThread(process.communicate, timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            raise OriginUnreachable(f"the sample slide was not created within {DEADLINE:g} s") from None
        finally:
            process.kill()
        if process.returncode:
            reason = (
                errors.decode("utf-8", "replace").strip().rpartition("\n")[2] or f"exit status {process.returncode}"
            )
            raise OriginUnreachable(f"the sample slide could not be created: {reason}")
        log.info("created the sample slide in {seconds} s", seconds=round(self._reactor.seconds() - started, 1))
        return str(folder)


def _started(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=child_environment())
