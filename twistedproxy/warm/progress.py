"""Tells of loads: a bar on a terminal, plain lines elsewhere, and what went wrong in any case."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any, Optional, TextIO

import attrs
from tqdm import tqdm

from twistedproxy.system.log_json import printable
from twistedproxy.warm.client import Job
from twistedproxy.warm.targets import Found

LINE_SECONDS = 5.0
"""Between two plain lines about one that is still loading: logs are read by people."""

_BAR = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} frames [{elapsed}<{remaining}{postfix}]"


@attrs.define(eq=False)
class Progress:
    """What of *instances* is loaded. *out*: for what was done; *errors*: for what went wrong, and the bar.

    Frames are counted over all instances; of those whose number nobody said, once their load begins.
    """

    out: TextIO
    errors: TextIO
    quiet: bool
    seconds: Callable[[], float]
    _totals: dict[str, int] = attrs.field(factory=dict)
    _jobs: dict[str, Job] = attrs.field(factory=dict)
    _bar: Optional[Any] = None
    _began: float = 0.0
    _told: float = 0.0

    def begin(self, instances: list[Found]) -> None:
        """Loading begins."""
        self._began = self._told = self.seconds()
        self._totals = {one.url: one.frames or 0 for one in instances}
        if not self.quiet and self.errors.isatty():
            tqdm.monitor_interval = 0  # no thread is needed: jobs tell of themselves often enough
            size = shutil.get_terminal_size()  # tqdm draws nothing on a terminal that claims to have no size
            wanted = self._frames_wanted()
            self._bar = tqdm(total=wanted, file=self.errors, bar_format=_BAR, ncols=size.columns, nrows=size.lines)

    def update(self, instance: Found, job: Job) -> None:
        """A job goes on."""
        self._jobs[instance.url] = job
        self._totals[instance.url] = int(job["total"])
        if self._bar is not None:
            self._bar.total = self._frames_wanted()
            self._bar.set_postfix_str(f"{self._rate():.1f} MB/s", refresh=False)
            self._bar.update(self._frames_done() - self._bar.n)
        elif not self.quiet and self.seconds() - self._told >= LINE_SECONDS:
            self._told = self.seconds()
            self._line(self._so_far())

    def loaded(self, instance: Found, job: Job) -> None:
        """One is loaded."""
        self.update(instance, job)
        size, seconds = job["bytes"] / 1e6, job["seconds"]
        rate = f", {size / seconds:.1f} MB/s" if seconds else ""
        self._line(f"{instance.sop}: {job['frames']:,} frames, {size:.1f} MB in {seconds:.1f} s{rate}")

    def left_out(self, instance: Found, why: str) -> None:
        """One need not, or cannot sensibly, be loaded."""
        self._forget(instance)
        self._line(f"{instance.sop}: {why}")

    def failed(self, name: str, why: str, instance: Optional[Found] = None) -> None:
        """Something went wrong: said even where nothing else is."""
        if instance is not None:
            self._forget(instance)
        self._write(f"{name}: {why}", self.errors)

    def end(self, loaded: int, left_out: int, failed: int) -> None:
        """All is done."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        size, seconds = self._bytes() / 1e6, self.seconds() - self._began
        parts = [f"{loaded} loaded", f"{left_out} left out" * bool(left_out), f"{failed} failed" * bool(failed)]
        frames = f"{self._frames_done():,} frames, {size:.1f} MB in {seconds:.1f} s"
        self._line(f"{', '.join(filter(None, parts))}: {frames}")

    def _forget(self, instance: Found) -> None:
        self._totals.pop(instance.url, None)
        self._jobs.pop(instance.url, None)
        if self._bar is not None:
            self._bar.total = self._frames_wanted()
            self._bar.refresh()

    def _line(self, text: str) -> None:
        if not self.quiet:
            self._write(text, self.out)

    def _write(self, text: str, file: TextIO) -> None:
        text = printable(text)  # the proxy's and the store's words, perhaps
        if self._bar is not None:
            self._bar.write(text, file=file)  # above the bar
        else:
            print(text, file=file, flush=True)

    def _frames_done(self) -> int:
        return sum(int(job["frames"]) for job in self._jobs.values())

    def _frames_wanted(self) -> int:
        return sum(self._totals.values())

    def _bytes(self) -> int:
        return sum(int(job["bytes"]) for job in self._jobs.values())

    def _rate(self) -> float:
        """MB/s since the beginning."""
        return self._bytes() / 1e6 / max(self.seconds() - self._began, 1e-3)

    def _so_far(self) -> str:
        done, wanted = self._frames_done(), self._frames_wanted()
        text = f"{done:,} of {wanted:,} frames"
        if not done:
            return text
        left = (self.seconds() - self._began) * (wanted - done) / done
        return f"{text}, {self._rate():.1f} MB/s, {left:.0f} s left"
