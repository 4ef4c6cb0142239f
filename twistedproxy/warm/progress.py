"""Progress of loads: a bar on a terminal, plain lines elsewhere, and errors in any case."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from typing import Any, Optional, TextIO

import attrs
from tqdm import tqdm

from twistedproxy.system.log_json import printable
from twistedproxy.warm.client import Job
from twistedproxy.warm.options import Found

LINE_SECONDS = 5.0  # between two plain lines: logs are read by people
_BAR = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} frames [{elapsed}<{remaining}{postfix}]"


@attrs.define(eq=False)
class ProgressReport:
    """*out*: for what was done; *errors*: for what failed, and the bar. *counts*: of instances loaded, skipped, failed.

    Frames are counted over all instances; those of an instance whose number is not known, once its load begins.
    """

    out: TextIO
    errors: TextIO
    quiet: bool
    seconds: Callable[[], float]
    counts: Counter[str] = attrs.field(factory=Counter)
    _jobs: dict[str, Job] = attrs.field(factory=dict)
    _bar: Optional[Any] = None
    _began: float = 0.0
    _last_line: float = 0.0

    def begin(self, instances: list[Found]) -> None:
        """Loading begins."""
        self._began = self._last_line = self.seconds()
        self._jobs = {one.url: {"total": one.frames or 0, "frames": 0, "bytes": 0} for one in instances}
        if not self.quiet and self.errors.isatty():
            tqdm.monitor_interval = 0  # no thread is needed: jobs report often enough
            size = shutil.get_terminal_size()  # tqdm draws nothing on a terminal that claims to have no size
            total = self._sum("total")
            self._bar = tqdm(total=total, file=self.errors, bar_format=_BAR, ncols=size.columns, nrows=size.lines)

    def update(self, instance: Found, job: Job) -> None:
        """A job continues."""
        self._jobs[instance.url] = job
        now = self.seconds()
        if self._bar is None and (self.quiet or now - self._last_line < LINE_SECONDS):
            return
        done, total, seconds = self._sum("frames"), self._sum("total"), now - self._began
        rate = f"{self._sum('bytes') / 1e6 / max(seconds, 1e-3):.1f} MB/s"
        if self._bar is not None:
            self._bar.total = total
            self._bar.set_postfix_str(rate, refresh=False)
            self._bar.update(done - self._bar.n)
        else:
            self._last_line = now
            left = f", {rate}, {seconds * (total - done) / done:.0f} s left" if done else ""
            self._print(f"{done:,} of {total:,} frames{left}")

    def loaded(self, instance: Found, job: Job) -> None:
        """An instance is loaded."""
        self.counts["loaded"] += 1
        self.update(instance, job)
        size, seconds = job["bytes"] / 1e6, job["seconds"]
        rate = f", {size / seconds:.1f} MB/s" if seconds else ""
        self._print(f"{instance.sop}: {job['frames']:,} frames, {size:.1f} MB in {seconds:.1f} s{rate}")

    def left_out(self, instance: Found, why: str) -> None:
        """An instance need not, or cannot sensibly, be loaded."""
        self.counts["skipped"] += 1
        self._drop(instance.url)
        self._print(f"{instance.sop}: {why}")

    def failed(self, url: str, why: object) -> None:
        """An instance, or the search below *url*, failed: printed even if nothing else is."""
        self.counts["failed"] += 1
        self._drop(url)
        self._write(f"{url}: {why}", self.errors)

    def end(self) -> None:
        """All is done."""
        if self._bar is not None:
            self._bar.close()
        counts = [f", {self.counts[key]} {key}" for key in ("skipped", "failed") if self.counts[key]]
        size, seconds = self._sum("bytes") / 1e6, self.seconds() - self._began
        frames = f"{self._sum('frames'):,} frames, {size:.1f} MB in {seconds:.1f} s"
        self._print(f"{self.counts['loaded']} loaded{''.join(counts)}: {frames}")

    def _drop(self, url: str) -> None:
        if self._jobs.pop(url, None) and self._bar is not None:
            self._bar.total = self._sum("total")
            self._bar.refresh()

    def _print(self, text: str) -> None:
        if not self.quiet:
            self._write(text, self.out)

    def _write(self, text: str, file: TextIO) -> None:
        tqdm.write(printable(text), file=file)  # above the bar; without what a server could do to a terminal
        file.flush()

    def _sum(self, field: str) -> int:
        return sum(int(job[field]) for job in self._jobs.values())
