"""Where whole instances are loaded: in this process, or in a child that has the CPU to itself.

A loader is told everything that it must know in one `LoadTask`; it writes to the cache only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Optional, Protocol

import attrs
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.dicom.address import Instance
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.origin.interface import Caller, Origin
from twistedproxy.prefetch.instance_load import InstanceLoad, Loaded
from twistedproxy.prefetch.jobs import Progress
from twistedproxy.prefetch.provisional import ProvisionalFrames

TURN_SECONDS = 0.004
"""How long a load in this process works before it lets the reactor turn: others wait no longer than this."""


@attrs.frozen
class LoadTask:
    """A whole-instance load: what to load, on whose behalf, and the *fence* and *seconds* to write under."""

    origin: Origin = attrs.field(repr=False)
    instance: Instance
    caller: Caller
    metadata: InstanceMetadata
    fence: Fence
    seconds: Optional[float]


class Loader(Protocol):
    """Loads whole instances."""

    async def load(self, task: LoadTask, progress: Progress) -> Loaded:
        """Load one. Cancellable: what was written is then removed, as after every failure.

        Raises `LoadFailed` (`Withdrawn` once anything was written) and the errors of
        `twistedproxy.origin.errors`.
        """


@attrs.frozen
class InProcessLoader:
    """Loads on the reactor, in short turns."""

    cache: Cache
    clock: IReactorTime

    async def load(self, task: LoadTask, progress: Progress) -> Loaded:
        stream = await task.origin.stored_instance(task.instance, task.caller)
        frames = ProvisionalFrames(self.cache, task.instance, task.fence, task.seconds, progress)
        return await InstanceLoad(frames, task.metadata, self.clock, turns(self.clock)).run(stream)


def turns(clock: IReactorTime, seconds: float = TURN_SECONDS) -> Callable[[], Optional[Awaitable[None]]]:
    """A function that now and then returns something to wait for: when *seconds* have passed since the reactor turned."""
    began = clock.seconds()

    async def turn() -> None:
        nonlocal began
        await deferLater(clock, 0)
        began = clock.seconds()

    return lambda: turn() if clock.seconds() - began >= seconds else None
