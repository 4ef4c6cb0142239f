"""What is done now and then while a process uses a local cache: marks are written, and what is gone is given back."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from twisted.internet.task import LoopingCall

from twistedproxy.cache.local import segments
from twistedproxy.cache.local.operations import ERRORS, Operations
from twistedproxy.cache.local.reading import Readings
from twistedproxy.cache.local.segments import Place

LOOK_SECONDS = 1.0
"""How often segments that are gone are closed, and marks written."""

CHECK_SECONDS = 10.0
"""How often what killed readers held is given back."""


class Upkeep:
    """Looks after *folder*, where *readings* are from."""

    def __init__(self, reactor: Any, operations: Operations, folder: Path, readings: Readings) -> None:
        self._reactor = reactor
        self._operations = operations
        self._folder = folder
        self._readings = readings
        self._looking = LoopingCall(self.look)
        self._looking.clock = reactor
        self._to_close: list[int] = []
        self._checked = 0.0

    def start(self) -> None:
        """Look from now on."""
        self._looking.start(LOOK_SECONDS, now=False)

    def stop(self) -> None:
        """Look no more."""
        if self._looking.running:
            self._looking.stop()

    async def look(self) -> None:
        """Write marks, and close the files of segments that are gone. What is closed was forgotten at the last look: no thread
        reads it any more."""
        asked_for = self._readings.take_asked_for()
        closing, self._to_close = self._to_close, []
        try:
            living = await self._operations.in_frames(self._tidy, asked_for, closing)
        except ERRORS as error:
            self._operations.failed("maintenance", error)
            return
        self._to_close = self._readings.store.reader.forget(living)
        self._readings.living(living)

    def _tidy(self, asked_for: Iterable[Place], closing: Iterable[int]) -> list[int]:
        segments.mark(self._folder, asked_for)
        _close(closing)
        if self._reactor.seconds() - self._checked >= CHECK_SECONDS:
            self._checked = self._reactor.seconds()
            self._readings.store.index.check_readers()
            self._readings.facts.check_readers()
        return list(self._readings.store.index.segments())

    def close(self) -> None:
        """Close what was to be closed at the next look, once nothing reads any more."""
        closing, self._to_close = self._to_close, []
        _close(closing)


def _close(files: Iterable[int]) -> None:
    for file in files:
        os.close(file)
