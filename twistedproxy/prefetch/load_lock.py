"""The lock of an instance in the cache: of all workers and hosts, one loads it. And the mark that it was loaded.

- The lock is a lease: whoever dies while loading is succeeded within seconds.
- A holder that lost its lock, as one that was suspended does, goes on: to end would be to take frames back, and with them those of
  its successor, who has invalidated the instance. What it writes under its own fence is seen by nobody.
- The mark is set at the end of a load that succeeded.
- The fence is part of both names: what was invalidated may be loaded anew at once.
"""

from __future__ import annotations

from typing import Optional

from twisted.internet.interfaces import IReactorTime

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.cache.keys import LOADING
from twistedproxy.cache.lease import LEASE_SECONDS, Lease
from twistedproxy.dicom.resource import Instance
from twistedproxy.prefetch.jobs import NotStarted, Refusal

LOCK = b"load"
MARK = b"whole"


def load_lock(cache: Cache, clock: IReactorTime, instance: Instance, fence: Fence) -> Lease:
    """The lock of *instance*."""
    return Lease(cache, clock, instance, LOCK + fence)


async def take(lock: Lease, fence: Fence, again: bool) -> Optional[NotStarted]:
    """Take *lock*, for an instance that was not loaded lately (*again*: even if it was); None, or why it was not taken.

    What was not taken for the sake of the mark is given back with the end of the ``async with``.
    """
    left = None if again else await loaded_for(lock.cache, lock.instance, fence)
    if left is None and not await lock.take():
        left = await lock.left() or LEASE_SECONDS
        text = f"another worker or host loads the instance; retry in {left:.0f} s"
        return NotStarted(409, Refusal.RUNNING.value, text, left)
    if left is None and not again:  # it may have ended a moment ago
        left = await loaded_for(lock.cache, lock.instance, fence)
    if left is None:
        return None
    text = f"the instance was loaded recently; retry in {left:.0f} s, or add ?again=1"
    return NotStarted(409, Refusal.LOADED_LATELY.value, text, left)


async def mark_loaded(lock: Lease, fence: Fence, seconds: float) -> None:
    """Note for *seconds* that the instance of *lock* was loaded."""
    await lock.cache.claim(lock.instance, [MARK + fence], lock.token, seconds)


async def loaded_for(cache: Cache, instance: Instance, fence: Fence) -> Optional[float]:
    """For how many seconds more *instance* counts as loaded lately; None where it does not, or that is not known."""
    return await cache.claim_left(instance, MARK + fence)


async def is_half_loaded(cache: Cache, instance: Instance, fence: Fence) -> bool:
    """Whether there are frames of a load that has not come to its end. To be asked by the holder of the lock: the one who began
    that load is dead then, or has lost its lock, and its frames were never checked as a whole."""
    reading = await cache.get_many(instance, [LOADING])
    return reading.fence == fence and LOADING in reading.entries
