"""Tests with a local cache in a folder of their own."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Optional

from twisted.internet.defer import ensureDeferred
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import TestCase

from tests.cache.members import SECONDS, Member, instance
from tests.cache.support import installed_reactor
from tests.waiting import wait_until
from twistedproxy.cache.address import LocalAddress
from twistedproxy.cache.local.cache import LocalCache
from twistedproxy.cache.local.segments import segment_path
from twistedproxy.dicom.resource import Instance

SIZE = 64 << 20


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that are the same each time."""
    return random.Random(seed).randbytes(size)


def an_hour_ago() -> float:
    """A clock for entries that are old enough to be known to be right."""
    return time.time() - 3600.0


class FolderCase(TestCase):
    """Opens caches and starts processes in `folder`, which does not exist yet; all end with the test."""

    timeout = 120

    def setUp(self) -> None:
        self.folder = self.another()
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def another(self) -> Path:
        """The path of another folder that does not exist yet."""
        return Path(self.mktemp()).absolute()

    async def open(
        self, size: int = SIZE, folder: Optional[Path] = None, wall_clock: Callable[[], float] = time.time
    ) -> LocalCache:
        """A proxy's cache in a folder that is kept."""
        cache = LocalCache(installed_reactor(), LocalAddress(str(folder or self.folder), size), wall_clock=wall_clock)
        self.addCleanup(lambda: ensureDeferred(cache.stop()))
        await cache.start()
        return cache

    async def member(self, size: int = SIZE, own: bool = False) -> Member:
        """Another process with the same folder."""
        member = Member(installed_reactor(), str(self.folder), size, own)
        self.addCleanup(lambda: ensureDeferred(member.kill()))
        return await member.started()

    def logged(self, event: str) -> list[LogEvent]:
        """The events of that name."""
        return [one for one in self.events if one.get("event") == event]

    async def rebuilt(self) -> None:
        """Return once the index was made anew."""
        await wait_until(lambda: self.logged("cache_rebuilt"), "a new index")

    def segment(self, number: int = 1) -> Path:
        """The file of a segment."""
        return segment_path(self.folder, number)

    def files_size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.folder.iterdir())


async def put(
    cache: LocalCache, entries: Mapping[bytes, bytes], number: int = 1, seconds: Optional[float] = SECONDS
) -> bool:
    """Write entries under the present fence."""
    one = instance(number)
    return await cache.put_many(one, (await cache.get_many(one, [])).fence, entries, seconds)


async def get(cache: LocalCache, *names: bytes, number: int = 1) -> dict[bytes, bytes]:
    """Read entries."""
    one: Instance = instance(number)
    return dict((await cache.get_many(one, names)).entries)
