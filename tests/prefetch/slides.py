"""A store in memory that has a slide: a pyramid in one series."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import attrs
from twisted.internet.defer import Deferred

from tests.frames.series import JSON
from tests.frames.support import INSTANCE
from tests.prefetch.support import HeldOrigin
from tests.series.support import level_json
from twistedproxy.dicom.json_events import ArrayEvents
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import Frame
from twistedproxy.origin.errors import OriginRefused
from twistedproxy.origin.interface import Caller, OriginRequest, OriginResponse, Priority
from twistedproxy.series.members import SeriesParser
from twistedproxy.streams import BytesStream

SIDES = {1: 128, 2: 40, 3: 8, 4: 2}
"""Tiles a side of each level, by the last part of its SOP Instance UID; a level is named by that here."""
OVERVIEW = 5


def level(number: int) -> Instance:
    """The instance of a level."""
    return attrs.evolve(INSTANCE, sop=f"1.2.3.{number}")


def _levels() -> list[dict[str, Any]]:
    levels = [level_json(f"1.2.3.{n}", n, side * 256, side * 256, side * side) for n, side in SIDES.items()]
    kind = ["ORIGINAL", "PRIMARY", "OVERVIEW"]
    return [*levels, level_json(f"1.2.3.{OVERVIEW}", OVERVIEW, 256, 256, 1, _00080008=kind)]


def _facts() -> dict[str, InstanceMetadata]:
    parser = SeriesParser(INSTANCE.study, INSTANCE.series)
    assert isinstance(parser, ArrayEvents)
    parser.feed(json.dumps(_levels()).encode())
    return {sop: member.metadata for sop, member in parser.close().items()}


FACTS = _facts()


@attrs.define(eq=False)
class SlideOrigin(HeldOrigin):
    """*loaded*: by level, the frames that were asked for. *series_asked*: who asked for the series' metadata. *hidden*: levels that
    nobody is shown. *refused*: whose frames are not given. *gate*: what callers' own requests wait for."""

    per_request: int = 10
    loaded: dict[str, list[int]] = attrs.Factory(dict)
    series_asked: list[bytes] = attrs.Factory(list)
    hidden: set[str] = attrs.Factory(set)
    refused: set[str] = attrs.Factory(set)
    whole_series: bool = True
    gate: Optional[Deferred[None]] = None

    async def metadata(self, instance: Instance, caller: Caller) -> InstanceMetadata:
        self.metadata_asked += 1
        if instance.sop in self.hidden:
            raise OriginRefused(403, (), b"no")
        return attrs.evolve(FACTS[instance.sop], transfer_syntax=self.syntax)

    async def forward(self, request: OriginRequest) -> OriginResponse:
        self.series_asked.append(request.caller.credential)
        levels = [one for one in _levels() if one["00080018"]["Value"][0] not in self.hidden]
        body = json.dumps(levels if self.whole_series else []).encode()
        return OriginResponse(200, JSON, BytesStream(body), len(body))

    async def frames(
        self,
        instance: Instance,
        numbers: Sequence[int],
        caller: Caller,
        metadata: InstanceMetadata,
        priority: Priority = Priority.CALLER,
        limit: Optional[int] = None,
    ) -> Mapping[int, Frame]:
        self.loaded.setdefault(instance.sop, []).extend(numbers)
        if instance.sop in self.refused and priority is not Priority.CALLER:
            raise OriginRefused(403, (), b"no")
        if self.gate is not None and priority is Priority.CALLER:
            await self.gate
        return await super().frames(instance, numbers, caller, metadata, priority, limit)

    async def ready(self, caller: Caller) -> None:
        """There is no limit."""
