"""A running load of a series or study: how many of its instances are loaded, and which are not."""

from __future__ import annotations

from collections import Counter

import attrs

from twistedproxy.origin.errors import OriginError, OriginRefused
from twistedproxy.prefetch.ahead.slices import OF_THIS_ONE
from twistedproxy.prefetch.jobs import Job, LoadFailed

MAX_NAMED = 20
"""Instances that are named of those that are skipped, and of those that failed."""

MAX_IN_A_ROW = 12
"""Failures of the store after which a job ends."""


@attrs.define(eq=False)
class SeriesJob(Job):
    """A load of a series or study. *instances*: of which it is known that they belong to it; *counts*: those that are ``loaded``,
    were ``present``, are ``skipped`` because nothing can be loaded of them, or ``failed``. *not_loaded*: the first of the latter
    two, with what became of them and reasons. *by_others*: frames that whole-instance loads brought, which count them."""

    instances: int = 0
    counts: Counter[str] = attrs.field(init=False, factory=Counter)
    not_loaded: list[dict[str, str]] = attrs.field(init=False, factory=list)
    by_others: int = 0
    _in_a_row: int = attrs.field(init=False, default=0)

    @property
    def kept(self) -> int:
        """See `Job.kept`."""
        return self.frames - self.by_others

    def fields(self, now: float) -> dict[str, object]:
        """See `Job.fields`; with the instances, and at the end those that are missing."""
        counts = {name: self.counts[name] for name in ("loaded", "present", "skipped", "failed")}
        more = {} if self.result is None else {"not_loaded": self.not_loaded}
        return {**super().fields(now), "instances": self.instances, **counts, **more}

    def done(self, how: str) -> None:
        """An instance is ``loaded``, or was ``present``."""
        self.counts[how] += 1
        self._in_a_row = 0
        self.moved.fire()

    def left(self, path: str, how: str, reason: str, of_the_store: bool = False) -> None:
        """The instance (or series) at *path* is ``skipped`` or ``failed``, and why. Raises `LoadFailed` after too many failures *of the store*."""
        self.counts[how] += 1
        if self.counts[how] <= MAX_NAMED:
            self.not_loaded.append({"instance": path, "result": how, "reason": reason})
        self._in_a_row += of_the_store
        if self._in_a_row >= MAX_IN_A_ROW:
            raise LoadFailed(f"{self._in_a_row} instances in a row could not be loaded, the last one because: {reason}")

    def failed(self, path: str, error: Exception) -> None:
        """The same, with what was raised."""
        own = isinstance(error, OriginRefused) and error.status in OF_THIS_ONE
        self.left(path, "failed", str(error) or type(error).__name__, isinstance(error, OriginError) and not own)
