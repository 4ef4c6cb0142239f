"""What is known of one watched instance, and what this worker loads, put together as the JSON that clients get."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Optional

import attrs

from twistedproxy.cache.interface import Fence
from twistedproxy.dicom.resource import Instance
from twistedproxy.page.runs import Run, Runs, merged, minus, runs_of
from twistedproxy.prefetch.jobs import Job

TICK = 0.2
"""Seconds between two updates of one instance."""

BLIND_SECONDS = 2.0
"""How often the cache is looked through that does not tell of changes, while nothing of the instance is loaded here."""

BUSY_SECONDS = 2.0
"""How long after a load it is looked through as often as during the load."""

ANYWAY_SECONDS = 30.0
"""How often it is looked through whatever it tells: the time of entries ends without a change."""

NOTHING: tuple[Runs, Runs] = ((), ())


@attrs.define(eq=False)
class Survey:
    """What is known of an *instance* of so many *frames*. *version*: 0 until it was looked at, then greater with each change of *text*,
    the JSON of it, which is true under *fence* (None: the cache can't be asked)."""

    instance: Instance
    frames: int
    watchers: int = 0
    version: int = 0
    text: bytes = b""
    fence: Optional[Fence] = None
    _cached: Runs = ()
    _claimed: Runs = ()
    _shown: tuple[Runs, Runs] = NOTHING
    _new: bool = False
    _sign: Optional[Hashable] = None
    _looked: float = -math.inf
    _active: float = -math.inf

    def is_due(self, sign: Optional[Hashable], now: float) -> bool:
        """Whether it is time to look through the cache, which tells *sign* of its changes."""
        age = now - self._looked
        if sign is None:
            return age >= (TICK if now - self._active < BUSY_SECONDS else BLIND_SECONDS)
        return age >= (TICK if sign != self._sign else ANYWAY_SECONDS)

    def found(
        self, fence: Optional[Fence], cached: Runs, claimed: Runs, sign: Optional[Hashable], now: float
    ) -> None:  # fmt: skip
        """The cache was looked through."""
        self.fence, self._cached, self._claimed, self._new = fence, cached, claimed, True
        self._sign, self._looked = sign, now

    def compose(self, loads: Loading, now: float) -> bool:
        """Put it together with what this worker loads; whether that is something new."""
        asked, waiting = loads.of(self.instance, self.fence)
        if asked or waiting:
            self._active = now
        if math.isinf(self._looked):
            return False
        loading = tuple(minus(asked, self._cached))
        claimed = tuple(minus(minus(merged([*waiting, *self._claimed]), self._cached), loading))
        if not self._new and self._shown == (loading, claimed):
            return False
        self._shown, self._new = (loading, claimed), False
        runs = {"frames": self.frames, "cached": self._cached, "loading": loading, "claimed": claimed}
        before, self.text = self.text, json.dumps(runs, separators=(",", ":")).encode("ascii")
        return self.text != before

    @property
    def shows_loads(self) -> bool:
        """Whether anything of it is being loaded, or claimed by this worker, as far as *text* says."""
        return self.watchers > 0 and self._shown != NOTHING


@attrs.frozen
class Loading:
    """What this worker loads at one moment, by instances: frames that the origin is *asked* for, those that are *waiting*, and loads of
    *whole* instances."""

    asked: Mapping[Instance, Collection[int]]
    waiting: Mapping[Instance, Collection[int]]
    whole: Mapping[Instance, Job]

    def of(self, instance: Instance, fence: Optional[Fence]) -> tuple[Sequence[Run], Sequence[Run]]:
        """Frames that the origin is asked for, and others that are to be loaded."""
        asked, waiting = runs_of(self.asked.get(instance, ())), runs_of(self.waiting.get(instance, ()))
        job = self.whole.get(instance)
        if job is not None and job.fence == fence and job.frames < job.total:
            left = (job.frames + 1, job.total)
            if job.waits:
                waiting = merged([*waiting, left])
            else:
                asked = merged([*asked, left])
        return asked, waiting
