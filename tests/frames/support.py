"""An origin in memory, whose answers wait for the test where it wants that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from twistedproxy.cache.memory import MemoryCache
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import Frame
from twistedproxy.frames.access import Access
from twistedproxy.frames.invalidation import Invalidation
from twistedproxy.frames.read_through import FrameReader
from twistedproxy.origin.errors import OriginRefused
from twistedproxy.origin.interface import Caller, Priority

JPEG = "1.2.840.10008.1.2.4.50"
INSTANCE = Instance("http://store.test/dicom-web", "", "1.2", "1.2.3", "1.2.3.4")
ALICE = Caller(b"alice", ((b"Authorization", b"Bearer alice"),))
MALLORY = Caller(b"mallory", ((b"Authorization", b"Bearer mallory"),))
METADATA = InstanceMetadata(frames=100, rows=256, columns=256, transfer_syntax=JPEG)


def frame(number: int) -> Frame:
    """Frame *number* of the instance, unlike all others."""
    return Frame(b"frame %d" % number, JPEG)


def frames(*numbers: int) -> list[Frame]:
    """Some of them."""
    return [frame(number) for number in numbers]


@attrs.define(eq=False)
class MemoryOrigin:
    """Lets *readers* read; notes what it was asked for. *priority*, *caller*: of the last request for frames. *gate*: what frame
    requests wait for. *failure*, *refusal*: what becomes of frames, and of metadata, for those who may read."""

    readers: set[bytes] = attrs.Factory(lambda: {ALICE.credential})
    metadata_value: InstanceMetadata = METADATA
    asked: list[tuple[str, object]] = attrs.Factory(list)
    priority: Optional[Priority] = None
    caller: Optional[Caller] = None
    gate: Optional[Deferred[None]] = None
    cancelled: int = 0
    failure: Optional[Exception] = None
    refusal: Optional[Exception] = None
    url: str = INSTANCE.origin

    def _check(self, caller: Caller) -> None:
        if caller.credential not in self.readers:
            raise OriginRefused(403, (), b"no")

    async def metadata(self, instance: Instance, caller: Caller) -> InstanceMetadata:
        self.asked.append(("metadata", caller.credential))
        self._check(caller)
        if self.refusal is not None:
            raise self.refusal
        return self.metadata_value

    async def frames(
        self,
        instance: Instance,
        numbers: Sequence[int],
        caller: Caller,
        metadata: InstanceMetadata,
        priority: Priority = Priority.CALLER,
        limit: Optional[int] = None,
    ) -> Mapping[int, Frame]:
        self.asked.append(("frames", tuple(numbers)))
        self.priority, self.caller = priority, caller
        if self.gate is not None:
            try:
                await self.gate
            except BaseException:
                self.cancelled += 1
                raise
        self._check(caller)
        if self.failure is not None:
            raise self.failure
        return {number: frame(number) for number in numbers}

    def gives_unknown(self, instance: Instance) -> bool:
        return False

    async def frame_of_unknown(self, instance: Instance, number: int, caller: Caller, limit: int) -> Frame:
        raise AssertionError("it was not to be asked so")

    async def ready(self, caller: Caller) -> None:
        """There is no limit."""

    def asked_for(self, what: str) -> list[object]:
        """What came of one kind of request."""
        return [detail for kind, detail in self.asked if kind == what]


@attrs.define(eq=False)
class ReadingParts:
    """A reader with all that it needs, in memory."""

    clock: Clock = attrs.Factory(Clock)
    origin: MemoryOrigin = attrs.Factory(MemoryOrigin)
    ttl: float = 600.0
    cache: MemoryCache = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.cache = MemoryCache(self.clock, 1 << 20)

    def reader(self, max_answer: int = 1 << 20) -> FrameReader:
        """A worker's reader: several share the cache, but nothing in memory."""
        access = Access(self.cache, self.clock.seconds, self.ttl)
        return FrameReader(self.cache, access, Invalidation(self.cache, access.grants, self.clock), 3600.0, max_answer)
