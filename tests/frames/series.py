"""A store in memory that has a series."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Optional

import attrs
from twisted.internet.defer import Deferred

from tests.frames.support import ALICE, INSTANCE, MALLORY, MemoryOrigin
from tests.series.support import slice_json
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.origin.errors import OriginRefused
from twistedproxy.origin.interface import Caller, Headers, OriginRequest, OriginResponse
from twistedproxy.streams import BytesStream

SLICE = InstanceMetadata(frames=1, rows=512, columns=512, transfer_syntax="1.2.840.10008.1.2.4.50")
JSON: Headers = ((b"Content-Type", b"application/dicom+json"),)


def slice_of(number: int) -> Instance:
    """A slice of the series."""
    return attrs.evolve(INSTANCE, sop=f"1.2.3.{number}")


@attrs.define(eq=False)
class SeriesOrigin(MemoryOrigin):
    """Shows each caller the *shown* slices of a series. *status*, *headers*, *length*, *answer*: of series metadata; *waiting*: what
    they wait for. *forbidden*: slices that it gives nobody."""

    readers: set[bytes] = attrs.Factory(lambda: {ALICE.credential, MALLORY.credential})
    metadata_value: InstanceMetadata = SLICE
    shown: dict[bytes, Sequence[int]] = attrs.Factory(dict)
    status: int = 200
    headers: Headers = JSON
    length: Optional[int] = None
    answer: Optional[bytes] = None
    framed: bool = True
    waiting: Optional[Deferred[None]] = None
    forbidden: set[str] = attrs.Factory(set)
    loaded: list[str] = attrs.Factory(list)

    def metadata_of(self, caller: Caller) -> bytes:
        numbers = self.shown.get(caller.credential, ())
        return json.dumps([slice_json(f"1.2.3.{number}", number, number * 1.5) for number in numbers]).encode()

    async def metadata(self, instance: Instance, caller: Caller) -> InstanceMetadata:
        if instance.sop in self.forbidden:
            self.asked.append(("metadata", caller.credential))
            raise OriginRefused(403, (), b"no")
        return await super().metadata(instance, caller)

    async def forward(self, request: OriginRequest) -> OriginResponse:
        self.asked.append(("series", request.caller.credential))
        if self.waiting is not None:
            await self.waiting
        body = self.metadata_of(request.caller) if self.answer is None else self.answer
        return OriginResponse(self.status, self.headers, BytesStream(body), self.length, lambda: self.framed)

    async def frames(self, instance: Instance, *arguments: Any, **more: Any) -> Any:
        self.loaded.append(instance.sop)
        if instance.sop in self.forbidden:
            self.asked.append(("frames", (1,)))
            raise OriginRefused(403, (), b"no")
        return await super().frames(instance, *arguments, **more)

    def frames_per_request(self, _instance: Instance) -> int:
        return 1
