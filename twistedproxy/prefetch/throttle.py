"""How fast a whole instance is loaded: as fast as it comes, or with rests while callers want much.

Measured on two CPUs, beside loads without a pause and with the store on the same machine, callers of cached frames at
the 99th percentile: without rests 2.0 to 4.8 times what they wait otherwise, with them 1.1 to 1.7 times. 87 MB then
take 1 to 3.4 s instead of 0.25 s.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Optional

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from twistedproxy.system.demand import Demand, DemandLevel

REST_SECONDS = {DemandLevel.LITTLE: 0.0, DemandLevel.SOME: 0.001, DemandLevel.MUCH: 0.002}
"""The rest after each chunk: 64 kB at most from a store, 512 kB from a file."""

ENOUGH_CPUS = 4.0
"""One each for the proxy, the cache server and the loader, and one for the kernel's work: then nobody is in the way."""

BATCH_BYTES = 512 * 1024
"""Frames that go to the cache together."""

SMALL_BATCH_BYTES = 64 * 1024
"""The same where callers' reads must get in between."""


def rest_seconds(demand: Demand) -> float:
    """The rest that loads take now."""
    return 0.0 if demand.cpus >= ENOUGH_CPUS else REST_SECONDS[demand.level]


@attrs.define(eq=False)
class Pace:
    """The pace of all loads of a loader child. *rest*: seconds after each chunk."""

    clock: IReactorTime
    rest: float = 0.0

    def breathe(self) -> Optional[Awaitable[None]]:
        """What to wait for after a chunk."""
        return deferLater(self.clock, self.rest) if self.rest else None

    def batch_bytes(self) -> int:
        """How many bytes of frames go to the cache together."""
        return SMALL_BATCH_BYTES if self.rest else BATCH_BYTES
