"""The cache in files of this host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

from tests.cache.contract import CacheContract
from tests.cache.support import installed_reactor, until
from twistedproxy.cache.address import SharedFolder
from twistedproxy.cache.local import folder
from twistedproxy.cache.local.cache import LocalCache
from twistedproxy.cache.local.facts import facts_size

SIZE = 64 << 20


class LocalContractTests(CacheContract, TestCase):
    """The shared suite."""

    async def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir(mode=0o700)
        folder.empty(self.folder, facts_size(SIZE))
        self.cache = LocalCache(installed_reactor(), SharedFolder(str(self.folder), SIZE))
        await self.cache.start()
        self.addCleanup(self.cache.stop)

    async def pass_time(self, condition: Callable[[], Any]) -> None:
        await until(condition)

    async def lose(self, key: bytes) -> None:
        self.cache.generations.invalidate(key)
