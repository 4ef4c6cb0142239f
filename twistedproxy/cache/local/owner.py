"""Prepares the folder of a local cache for all processes of one proxy, and leaves it in order: what the proxy, or the parent of
several workers, has to do."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Optional

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.cache.address import LocalAddress, SharedFolder
from twistedproxy.cache.interface import FRAME
from twistedproxy.cache.keys import LOADING
from twistedproxy.cache.local import folder as folders
from twistedproxy.cache.local import segments
from twistedproxy.cache.local.facts import NAME as FACTS
from twistedproxy.cache.local.facts import Facts, facts_size, name_of
from twistedproxy.cache.local.generations import Generations
from twistedproxy.cache.local.index import EntryIndex

MODULE = "twistedproxy.cache.local.mend"

MAX_PRIVATE = 16 << 30
"""Bytes of a private folder of no stated size, at most. Else half of what is free."""

MIN_SIZE = 64 << 20
"""Bytes of a folder of no stated size, at least."""

STEADY_SECONDS = 60.0
"""After which a start counts as one that went well."""


class FolderOwner:
    """The folder that *address* names."""

    log = Logger()

    def __init__(self, reactor: Any, address: LocalAddress) -> None:
        self._reactor = reactor
        self._wanted = address
        self._lock = -1
        self._path = Path()
        self._rebuilding: Optional[_Task] = None
        self._steady: Any = None
        self._stated: Deferred[None] = succeed(None)
        self.address: Optional[SharedFolder] = None

    async def start(self) -> SharedFolder:
        """Prepare the folder. Raises OSError."""
        try:
            rebuild = await self._prepare()
        except BaseException:
            await self.stop()
            raise
        assert self.address is not None
        self.log.info(
            "caching frames in {folder}, at most {size} bytes",
            folder=self.address.folder,
            size=self.address.size,
            event="cache_opened",
        )
        if rebuild:
            self._rebuild()
        if self._wanted.folder is not None:
            self._steady = self._reactor.callLater(STEADY_SECONDS, self._started_well)
        return self.address

    async def _prepare(self) -> bool:
        """Lock the folder and bring it in order; whether its index has to be made anew."""
        kept = self._wanted.folder is not None
        if self._wanted.folder is None:
            self._path, self._lock = await deferToThread(folders.make_private)
        else:
            self._path = Path(self._wanted.folder)
            self._lock = await deferToThread(folders.take, self._path)
        await deferToThread(folders.wait_for_members, self._path)
        state = folders.read_state(self._path)
        self.address = SharedFolder(str(self._path.resolve()), self._wanted.size or default_size(self._path, not kept))
        size = facts_size(self.address.size)
        well = kept and await deferToThread(folders.is_kept_well, self._path, state)
        if well and state is not None and state.checksums is None:
            well = await self._is_sound()
        rebuild = await deferToThread(self._bring_in_order, well, state, size)
        starts = 0 if state is None or state.checksums is not None or rebuild else state.unclean_starts + 1
        await deferToThread(folders.write_state, self._path, None, starts, rebuild)
        return rebuild

    async def _is_sound(self) -> bool:
        sound = (await self._mend("check").done)[0]
        if not sound:
            self.log.warn(
                "the index of the cache in {folder} is damaged; it is made anew",
                folder=str(self._path),
                event="cache_damaged",
            )
        return sound

    def _bring_in_order(self, well: bool, state: Optional[folders.State], size: int) -> bool:
        """Make what is missing, and leave out what is not known to be right; whether the index has to be made anew."""
        path = self._path
        try:
            if state is None or state.version != folders.VERSION:
                raise OSError("nothing of this version")
            journal = Generations(path)
        except OSError as error:
            if segments.segment_numbers(path):
                self.log.warn(
                    "the cache in {folder} can't be used and is emptied: {reason}", folder=str(path), reason=str(error)
                )
            folders.empty(path, size)
            return False
        try:
            journal.compact()
        finally:
            journal.close()
        numbers = segments.segment_numbers(path)
        if well and (path / FACTS).stat().st_size == size:
            _settle(path, size, numbers)
            return False
        Facts.create(path, size)
        EntryIndex.remove(path)
        index = EntryIndex(path)
        index.begin_anew({number: segments.segment_path(path, number).stat().st_size for number in numbers})
        index.close()
        return bool(numbers)

    def _rebuild(self) -> None:
        self.log.info("making the index of the cache anew", event="cache_rebuilding")
        self._rebuilding = self._mend("rebuild")
        self._rebuilding.done.addCallback(self._rebuilt)

    def _rebuilt(self, result: tuple[bool, str]) -> None:
        good, said = result
        if self._lock < 0:
            return
        if not good:
            self.log.error("the index was not made anew: {reason}", reason=said, event="cache_not_rebuilt")
            return
        self._rebuilding = None
        self.log.info("the index of the cache was made anew: {entries} entries", entries=said, event="cache_rebuilt")
        self._write_state()

    def _mend(self, task: str) -> _Task:
        assert self.address is not None
        process = _Task()
        arguments = [sys.executable, "-m", MODULE, task, self.address.folder, str(self.address.size)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._reactor.spawnProcess(process, sys.executable, arguments, environment)
        return process

    def _started_well(self) -> None:
        self._steady = None
        if self._rebuilding is None:
            self._write_state()

    def _write_state(self) -> None:
        # One after the other: both would write the same new file.
        self._stated.addCallback(lambda _: deferToThread(folders.write_state, self._path, None, 0))
        self._stated.addErrback(
            lambda failure: self.log.failure("the state of the cache folder could not be written", failure)
        )

    async def stop(self) -> None:
        """Leave the folder in order, once no other process uses it; remove it where it is private."""
        if self._steady is not None:
            self._steady.cancel()
            self._steady = None
        lock, self._lock = self._lock, -1
        await self._stated
        if self._rebuilding is not None:
            await self._rebuilding.end()
        if lock >= 0:
            await deferToThread(self._leave, lock)

    def _leave(self, lock: int) -> None:
        try:
            if self._wanted.folder is None:
                shutil.rmtree(self._path, ignore_errors=True)
            elif self.address is not None and self._rebuilding is None:
                folders.wait_for_members(self._path)
                folders.write_state(self._path, folders.checksums(self._path), 0)
        except OSError as error:
            self.log.warn("the cache folder was not left in order: {reason}", reason=str(error))
        finally:
            os.close(lock)


class _Task(ProcessProtocol):
    """A process that does one thing. *done*: whether it did, and the end of what it said."""

    def __init__(self) -> None:
        self.done: Deferred[tuple[bool, str]] = Deferred()
        self._said = b""

    def outReceived(self, data: bytes) -> None:
        self._said = (self._said + data)[-500:]

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        self.done.callback((reason.check(ProcessDone) is not None, self._said.decode("utf-8", "replace").strip()))

    async def end(self) -> None:
        """Kill it, and wait until it is gone."""
        if not self.done.called and self.transport is not None:
            with contextlib.suppress(ProcessExitedAlready):
                self.transport.signalProcess("KILL")
        await self.done


def default_size(path: Path, private: bool) -> int:
    """Half of what is free in the file system of *path*, with what the cache has there already."""
    space = os.statvfs(path)
    own = sum(segments.segment_path(path, number).stat().st_size for number in segments.segment_numbers(path))
    half = (space.f_bavail * space.f_frsize + own) // 2
    return max(MIN_SIZE, min(half, MAX_PRIVATE) if private else half)


def _settle(path: Path, size: int, numbers: list[int]) -> None:
    """Drop the claims of those who are gone, take back what they had loaded half, and forget files that nothing leads to."""
    facts, index = Facts(path, size, time.time), EntryIndex(path)
    for key in facts.begin_anew():
        if name_of(key) == LOADING and key.startswith(b"e"):
            index.remove_all(index.under(key[: -len(LOADING)] + FRAME))
            facts.remove([key])
    known = index.segments()
    for number in set(numbers).difference(known):
        segments.drop(path, number)
    for number in set(known).difference(numbers):
        index.end(number)
    facts.close()
    index.close()
