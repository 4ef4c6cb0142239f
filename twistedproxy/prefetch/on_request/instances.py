"""Loads of whole instances that a caller asks for by name."""

from __future__ import annotations

import attrs

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.frames.read_through import FrameReader, FrameRequest
from twistedproxy.origin.errors import DENIALS, OriginRefused
from twistedproxy.prefetch.jobs import Job
from twistedproxy.prefetch.scheduler import Scheduler


@attrs.frozen(eq=False)
class LoadsByHand:
    """Starts them, for callers with a grant."""

    scheduler: Scheduler

    @property
    def reader(self) -> FrameReader:
        """That of the worker."""
        return self.scheduler.reader

    async def start(self, wanted: FrameRequest, again: bool) -> Job:
        """Start a load of *wanted*'s instance; *again*: even if it was loaded lately. The load that runs already, where one does.

        Raises `NotStarted`, and the errors of `twistedproxy.origin.errors`.
        """
        grant, reading = await self.reader.granted(wanted.origin, wanted.instance, wanted.caller, [])
        metadata = await self._with_syntax(wanted, grant.metadata)
        return await self.scheduler.by_hand(wanted, metadata, reading.fence, again)

    async def _with_syntax(self, wanted: FrameRequest, metadata: InstanceMetadata) -> InstanceMetadata:
        """The metadata with the transfer syntax, which some stores send with frames only."""
        if metadata.transfer_syntax is not None or not (metadata.rows and metadata.columns):
            return metadata
        try:
            answer = await self.reader.read(attrs.evolve(wanted, numbers=(1,), prefetch=False))
        except OriginRefused as refused:
            if refused.status in DENIALS:
                raise
            return metadata  # a store that cannot separate such frames: the file has it
        return attrs.evolve(metadata, transfer_syntax=answer.frames[0].transfer_syntax)
