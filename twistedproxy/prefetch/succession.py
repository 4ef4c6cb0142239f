"""What becomes of a load whose worker or host dies: whoever wanted the instance too looks after it.

Of an instance that another loads, frames come to the cache long before the load ends, and are given to callers. If it never ends,
they were never checked as a whole: there may be no other reason to load the instance, for all of its frames may be there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from twistedproxy.cache.interface import Cache
from twistedproxy.deferreds import Background
from twistedproxy.dicom.resource import Instance
from twistedproxy.prefetch.load_lock import is_half_loaded, load_lock, loaded_for
from twistedproxy.prefetch.plan import Plan
from twistedproxy.prefetch.runner import Occasion

LOOK_SECONDS = 4.0
"""Pause between two looks. With the time of a lease: what a dead one began is begun anew within 15 s."""

MORE_LOOKS = 10
"""After one that found no load and nothing that is left of one: a cache that cannot be asked looks like that, and it may have died with
the host that loaded. A failover takes some 15 s."""

MAX_WATCHED = 1000
"""Instances that one worker looks after."""


@attrs.define(eq=False)
class Succession:
    """The loads of others that one worker looks after. *start* begins what was left half done anew."""

    cache: Cache
    clock: IReactorTime
    background: Background
    start: Callable[[Occasion, Plan], Awaitable[None]]
    _watched: dict[Instance, IDelayedCall] = attrs.field(init=False, factory=dict)

    def watch(self, occasion: Occasion, decided: Plan, looks: int = MORE_LOOKS) -> None:
        """Another loads the instance of *occasion* as was *decided*: look after it until that has ended. *looks*: that may find nothing."""
        instance = occasion.instance
        if instance in self._watched or len(self._watched) >= MAX_WATCHED or self.background.stopped:
            return

        def look() -> None:
            del self._watched[instance]
            self.background.run(self._look(occasion, decided, looks))

        self._watched[instance] = self.clock.callLater(LOOK_SECONDS, look)

    async def _look(self, occasion: Occasion, decided: Plan, looks: int) -> None:
        instance, fence = occasion.instance, occasion.fence
        if await load_lock(self.cache, self.clock, instance, fence).left() is not None:
            self.watch(occasion, decided)
        elif await is_half_loaded(self.cache, instance, fence):
            await self.start(occasion, decided)
        elif looks and await loaded_for(self.cache, instance, fence) is None:
            self.watch(occasion, decided, looks - 1)

    def stop(self) -> None:
        """Look after nothing any more."""
        while self._watched:
            self._watched.popitem()[1].cancel()
