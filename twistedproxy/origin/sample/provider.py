"""The sample slide as an origin: the folder provider over files that are made on first use."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from twistedproxy.origin.errors import OriginUnreachable
from twistedproxy.origin.folder.provider import FolderOrigin
from twistedproxy.origin.sample.maker import MakingFailed, run_maker
from twistedproxy.origin.sample.place import cache_folder, is_complete, is_writable
from twistedproxy.origin.sample.slide import LEVELS, VERSION, SampleLevel

URL = "sample:"
log = Logger()


class SampleOrigin(FolderOrigin):
    """The `Origin` of ``sample:``.

    *environment* tells where the user's cache is; *command*: what makes the slide, if not this package.
    """

    levels: tuple[SampleLevel, ...] = LEVELS
    """The instances, largest first; `SampleLevel.path` is what goes into a URL."""

    def __init__(
        self, reactor: Any, environment: Optional[Mapping[str, str]] = None, command: Sequence[str] = ()
    ) -> None:
        super().__init__(URL, reactor)
        self._environment = os.environ if environment is None else environment
        self._command = command
        self._temporary: Optional[str] = None

    def examples(self) -> tuple[str, ...]:
        """See `Origin.examples`: a search, a picture of the whole slide, and frames of all its levels."""
        pictures = tuple(f"{level.path}/frames/1/rendered" for level in self.levels)
        base = self.levels[0]
        middle = base.frames // 2 + base.columns // 2
        return ("studies", f"{base.path}/metadata", f"{base.path}/frames/{middle}", *pictures)

    async def stop(self) -> None:
        await super().stop()
        if self._temporary is not None:
            temporary, self._temporary = self._temporary, None
            await self._in_thread(lambda: shutil.rmtree(temporary, ignore_errors=True))

    async def locate(self) -> str:
        """The folder with the slide. `OriginUnreachable` where it can be made nowhere."""
        folder = cache_folder(self._environment, VERSION)
        if await self._in_thread(lambda: is_complete(folder)):
            return str(folder)
        if await self._in_thread(lambda: is_writable(folder)):
            try:
                return await self._make(folder)
            except (MakingFailed, DeferredTimeout) as error:
                log.warn("the sample slide cannot be kept in {folder}: {reason}", folder=str(folder), reason=str(error))
        self._temporary = await self._in_thread(lambda: tempfile.mkdtemp(prefix="twistedproxy-sample-"))
        try:
            return await self._make(Path(self._temporary) / "slide")
        except (MakingFailed, DeferredTimeout) as error:
            await self.stop()
            raise OriginUnreachable(f"the sample slide could not be made: {error}") from None

    async def _make(self, folder: Path) -> str:
        log.info("making the sample slide in {folder}; that takes some seconds, once", folder=str(folder))
        started = self._reactor.seconds()
        await run_maker(self._reactor, folder, self._command)
        log.info("the sample slide was made in {seconds} s", seconds=round(self._reactor.seconds() - started, 1))
        return str(folder)

    async def _in_thread(self, call: Any) -> Any:
        return await deferToThreadPool(self._reactor, self._reactor.getThreadPool(), call)
