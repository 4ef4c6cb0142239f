"""A worker on a local cache, and an origin that may replace its instance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

import attrs
from twisted.internet.defer import Deferred

from tests.cache.folders import FolderCase
from tests.cache.support import installed_reactor
from tests.frames.support import ALICE, INSTANCE, JPEG, METADATA, MemoryOrigin
from tests.waiting import wait_until
from twistedproxy.cache.local.cache import LocalCache
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.dicom.transfer_syntaxes import Frame
from twistedproxy.frames.access import Access
from twistedproxy.frames.entries import frame_name
from twistedproxy.frames.invalidation import Invalidation
from twistedproxy.frames.read_through import FrameReader, FrameRequest
from twistedproxy.origin.interface import Caller

BEGAN = 1_000_000.0
TTL = 600.0
TERM = 3600.0
BOB = Caller(b"bob", ((b"Authorization", b"Bearer bob"),))
NOON = attrs.evolve(METADATA, created="20260101 120000")


@attrs.define(eq=False)
class ReplacedOrigin(MemoryOrigin):
    """Has frames of *version*. *answer*: what metadata wait for; *headers*: of the callers who asked for them."""

    version: int = 1
    answer: Optional[Deferred[None]] = None
    headers: list[object] = attrs.Factory(list)

    async def metadata(self, instance: Instance, caller: Caller) -> InstanceMetadata:
        self.headers.append(caller.headers)
        if self.answer is not None:
            await self.answer
        return await super().metadata(instance, caller)

    async def frames(self, *arguments: Any, **more: Any) -> Mapping[int, Frame]:
        version = self.version
        found = await super().frames(*arguments, **more)
        return {number: Frame(b"%d of version %d" % (number, version), JPEG) for number in found}


class TermCase(FolderCase):
    """One worker on a local cache; all clocks are `now`."""

    async def setUp(self) -> None:
        super().setUp()
        self.now = BEGAN
        self.invalidated: list[Scope] = []
        self.origin = ReplacedOrigin(metadata_value=NOON)
        self.origin.readers.add(BOB.credential)
        self.cache = await self.open(wall_clock=lambda: self.now)
        self.reader = self.worker(self.cache)

    def worker(self, cache: LocalCache, ttl: float = TTL) -> FrameReader:
        """The reader of a worker, as a proxy has it."""
        access = Access(cache, lambda: self.now, ttl, TERM)
        invalidation = Invalidation(cache, access.grants, installed_reactor())
        invalidation.also.append(self.invalidated.append)
        access.changed = invalidation.invalidate
        return FrameReader(cache, access, invalidation, TERM, 1 << 20)

    async def get(self, *numbers: int, caller: Caller = ALICE) -> list[int]:
        """Of which version the frames are that *caller* gets, once what was fetched is written."""
        wanted = FrameRequest(self.origin, INSTANCE, numbers, caller)  # type: ignore[arg-type]
        answer = await self.reader.read(wanted)
        found = [frame.data.partition(b" of version ") for frame in answer.frames]
        self.assertEqual([int(number) for number, _, _ in found], list(numbers))
        await wait_until(lambda: not self.cache.readings.writing, "the end of writing")
        return [int(version) for _, _, version in found]

    async def present(self, *numbers: int) -> set[bytes]:
        """Which frames the cache would give."""
        return await self.cache.present(INSTANCE, [frame_name(number) for number in numbers])

    def replace(self, **facts: Any) -> None:
        """The origin has another instance of the same UIDs."""
        self.origin.version += 1
        self.origin.metadata_value = attrs.evolve(self.origin.metadata_value, **facts)

    def asked(self) -> list[str]:
        """What the origin was asked for since this was called last."""
        asked = [what for what, _ in self.origin.asked]
        self.origin.asked.clear()
        return asked
