"""Instances of one frame, such as the slices of a stack, loaded in the name of a caller.

- They are read as callers read them, behind all of those at the origin: one that a caller asks for meanwhile is waited for, and
  not asked for twice.
- What is in the cache is left alone, and what another worker loads, too.
"""

from __future__ import annotations

import enum
from typing import Union

import attrs

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.entries import expected
from twistedproxy.frames.read_through import FrameAnswer, FrameReader, FrameRequest
from twistedproxy.origin.interface import Caller, Origin, Priority
from twistedproxy.prefetch.ahead.claims import claimed

SIDE_BY_SIDE = 12
LANES_BYTES = 32 << 20
"""Slices that are loaded at once, and their bytes, at most."""

OF_THIS_ONE = frozenset({400, 403, 404, 406, 410, 415})
"""How an origin refuses one slice; any other refusal concerns them all."""


class NotRead(enum.Enum):
    """Why a slice was left alone."""

    PRESENT = "present"
    CLAIMED = "claimed"


def lanes(largest: InstanceMetadata) -> int:
    """How many slices are loaded side by side, of which this is the *largest*."""
    return max(1, min(SIDE_BY_SIDE, LANES_BYTES // expected(largest)))


@attrs.frozen(eq=False)
class SliceLoader:
    """Loads slices, for one worker."""

    reader: FrameReader

    async def load(self, origin: Origin, instance: Instance, caller: Caller) -> Union[FrameAnswer, NotRead]:
        """Load the frame of *instance*. Raises as `FrameReader.read` does."""
        async with claimed(self.reader.cache, instance, [1]) as (mine, lost):
            if not mine:
                return NotRead.CLAIMED if lost else NotRead.PRESENT
            return await self.read(origin, instance, caller)

    async def read(self, origin: Origin, instance: Instance, caller: Caller) -> FrameAnswer:
        """The same, whoever else loads it."""
        await origin.ready(caller)  # first: who asks for it joins what does not wait for a slot
        one = FrameRequest(origin, instance, (1,), caller, prefetch=False, priority=Priority.BLOCK)
        return await self.reader.read(one)
