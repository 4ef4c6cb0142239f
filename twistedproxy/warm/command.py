"""``twistedproxy warm``: has series and instances loaded, reports on it, and exits with 1 if anything failed."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional, TextIO

import attrs
from tqdm import tqdm
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater, react
from twisted.python import usage
from twisted.web.client import Agent

from twistedproxy.system.log_json import printable
from twistedproxy.system.tuning import use_monotonic_clock
from twistedproxy.warm.client import Job, Trouble, Warmer
from twistedproxy.warm.options import Found, WarmOptions, WarmTarget

CONNECT_SECONDS = 10.0
WAIT_SECONDS = 2.0  # before the next request to a busy proxy, if its response does not give a time

LOADED_LATELY = "loaded-lately"
RUNNING = "running"
_LATELY = "was loaded recently, or is being loaded; use --again to load it again"

COUNTED = ("loaded", "present", "skipped", "failed")  # instances, in a job of a series
LINE_SECONDS = 5.0  # between two plain lines: logs are read by people
_BAR = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} frames [{elapsed}<{remaining}{postfix}]"


@attrs.define(eq=False)
class ProgressReport:
    """A bar on a terminal, plain lines elsewhere, and errors in any case. *out*: for what was done; *errors*: for what failed, and
    the bar. *counts*: of instances that are loaded, were present, are skipped, failed.

    Frames are counted over all loads, those of each once it has begun.
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

    def begin(self) -> None:
        """Loading begins."""
        self._began = self._last_line = self.seconds()
        if not self.quiet and self.errors.isatty():
            tqdm.monitor_interval = 0  # no thread is needed: jobs report often enough
            size = shutil.get_terminal_size()  # tqdm draws nothing on a terminal that claims to have no size
            self._bar = tqdm(total=0, file=self.errors, bar_format=_BAR, ncols=size.columns, nrows=size.lines)

    def update(self, wanted: Found, job: Job) -> None:
        """A job continues."""
        self._jobs[wanted.url] = job
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

    def ended(self, wanted: Found, job: Job) -> None:
        """A job has come to its end, well or not: that of an instance, or of a series, some of which may be loaded."""
        done, of_series = job["result"] == "done", "instances" in job
        why = f"{job['result']}: {job['reason']}"
        if not of_series and not done:
            self.failed(wanted.url, why)
            return
        counts = {key: job[key] for key in COUNTED} if of_series else {"loaded": 1}
        self.counts.update(counts)
        self.update(wanted, job)
        for one in job.get("not_loaded", ()):
            self._not_loaded(f"{wanted.root}/{one['instance']}", one["result"], one["reason"])
        if not done:
            self.counts["failed"] += not counts["failed"]
            self._write(f"{wanted.url}: {why}", self.errors)
        size, seconds = job["bytes"] / 1e6, job["seconds"]
        rate = f", {size / seconds:.1f} MB/s" if seconds else ""
        parts = [f"{number:,} {key}" for key, number in counts.items() if of_series and (number or key == "loaded")]
        parts.append(f"{job['frames']:,} frames, {size:.1f} MB in {seconds:.1f} s{rate}")
        self._print(f"{wanted.uid}: {', '.join(parts)}")

    def _not_loaded(self, url: str, result: str, reason: str) -> None:
        if result == "failed":
            self._write(f"{url}: failed: {reason}", self.errors)
        else:
            self._print(f"{url}: {result}: {reason}")

    def left_out(self, wanted: Found, why: str) -> None:
        """An instance need not be loaded."""
        self.counts["skipped"] += 1
        self._drop(wanted.url)
        self._print(f"{wanted.uid}: {why}")

    def failed(self, url: str, why: object) -> None:
        """The load of what is at *url*, or the search below it, failed: printed even if nothing else is."""
        self.counts["failed"] += 1
        self._drop(url)
        self._write(f"{url}: {why}", self.errors)

    def end(self) -> None:
        """All is done."""
        if self._bar is not None:
            self._bar.close()
        counts = [f", {self.counts[key]} {key}" for key in COUNTED[1:] if self.counts[key]]
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


@attrs.frozen
class Warming:
    """One run of the command."""

    warmer: Warmer
    progress: ProgressReport
    options: WarmOptions

    async def run(self) -> int:
        """Load all; the exit code."""
        wanted: dict[str, Found] = {}
        for target in self.options.targets:
            for found in await self._found(target):
                wanted.setdefault(found.url, found)
        self.progress.begin()
        loads = [one for one in wanted.values() if not any(other.holds(one) for other in wanted.values())]
        work = iter(loads)
        await gatherResults([Deferred.fromCoroutine(self._lane(work)) for _ in range(self.options["jobs"])])
        self.progress.end()
        return 1 if self.progress.counts["failed"] else 0

    async def _found(self, target: WarmTarget) -> list[Found]:
        """What of *target* is to be loaded."""
        try:
            found = await self.warmer.loads(target)
        except Trouble as trouble:
            self.progress.failed(target.url, trouble)
            return []
        if not found:
            self.progress.failed(target.url, "no series found")
        return found

    async def _lane(self, work: Iterator[Found]) -> None:
        for wanted in work:
            try:
                job = await self._patiently(wanted)
            except Trouble as trouble:
                if trouble.status == 409 and trouble.reason == LOADED_LATELY:
                    wait = "" if trouble.retry_after is None else f", or wait {trouble.retry_after:g} s"
                    self.progress.left_out(wanted, f"{_LATELY}{wait}")
                else:
                    self.progress.failed(wanted.url, trouble)
            else:
                self.progress.ended(wanted, job)

    async def _patiently(self, wanted: Found) -> Job:
        """Have it loaded; repeat the request while the proxy is busy or another worker of it loads that, as long as patience lasts."""
        clock = self.warmer.clock
        give_up = clock.seconds() + self.options["patience"]
        while True:
            try:
                again = bool(self.options["again"])
                return await self.warmer.load(wanted, again, lambda job: self.progress.update(wanted, job))
            except Trouble as trouble:
                wait = trouble.retry_after or WAIT_SECONDS
                if (trouble.status != 503 and trouble.reason != RUNNING) or clock.seconds() + wait > give_up:
                    raise
            await deferLater(clock, wait)


async def warm(reactor: Any, options: WarmOptions, out: TextIO, errors: TextIO) -> int:
    """Carry out *options*; the exit code."""
    # A connection for each request: one that is kept may be closed by the proxy when the next POST is on its way.
    agent = Agent(reactor, connectTimeout=CONNECT_SECONDS)
    progress = ProgressReport(out, errors, bool(options["quiet"]), reactor.seconds)
    return await Warming(Warmer(agent, reactor, options.headers), progress, options).run()


def main(arguments: Sequence[str] | None = None) -> None:
    """``twistedproxy warm``, and the console script twistedproxy-warm."""
    options = WarmOptions()
    try:
        options.parseOptions(sys.argv[1:] if arguments is None else list(arguments))
    except usage.UsageError as error:
        sys.stderr.write(f"twistedproxy warm: {error} (help: twistedproxy warm --help)\n")
        sys.exit(2)

    async def run(reactor: Any) -> None:
        use_monotonic_clock(reactor)
        sys.exit(await warm(reactor, options, sys.stdout, sys.stderr))

    react(lambda reactor: Deferred.fromCoroutine(run(reactor)))
