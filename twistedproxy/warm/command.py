"""``twistedproxy warm``: finds the instances, has them loaded, reports on it, and exits with 1 if anything failed."""

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
_LATELY = "was loaded recently, or is being loaded; use --again to load it again"
# Reasons against a load that lie in the instance: below a series or study they are no failure.
OF_THE_INSTANCE = frozenset({"syntax-not-supported", "frame-size-unknown", "packed-frames", "too-few-frames", "sparse"})

LINE_SECONDS = 5.0  # between two plain lines: logs are read by people
_BAR = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} frames [{elapsed}<{remaining}{postfix}]"


@attrs.define(eq=False)
class ProgressReport:
    """A bar on a terminal, plain lines elsewhere, and errors in any case. *out*: for what was done; *errors*: for what failed, and the bar. *counts*: of instances loaded, skipped, failed.

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


@attrs.frozen
class Warming:
    """One run of the command."""

    warmer: Warmer
    progress: ProgressReport
    options: WarmOptions

    async def run(self) -> int:
        """Load all; the exit code."""
        instances: dict[str, tuple[WarmTarget, Found]] = {}
        for target in self.options.targets:
            for found in await self._instances(target):
                instances.setdefault(found.url, (target, found))
        self.progress.begin([found for _, found in instances.values()])
        work = iter(instances.values())
        await gatherResults([Deferred.fromCoroutine(self._lane(work)) for _ in range(self.options["jobs"])])
        self.progress.end()
        return 1 if self.progress.counts["failed"] else 0

    async def _instances(self, target: WarmTarget) -> list[Found]:
        """What of *target* is to be loaded."""
        try:
            found = await self.warmer.instances(target)
        except Trouble as trouble:
            self.progress.failed(target.url, trouble)
            return []
        if not found:
            self.progress.failed(target.url, "no instances found")
        for one in found:
            if one.frames is not None and one.frames < 2:
                self.progress.left_out(one, "not a multi-frame instance")
        return [one for one in found if one.frames is None or one.frames > 1]

    async def _lane(self, work: Iterator[tuple[WarmTarget, Found]]) -> None:
        for target, instance in work:
            try:
                job = await self._patiently(instance)
            except Trouble as trouble:
                refused = trouble.reason if trouble.status == 409 else ""
                if refused == LOADED_LATELY:
                    wait = "" if trouble.retry_after is None else f", or wait {trouble.retry_after:g} s"
                    self.progress.left_out(instance, f"{_LATELY}{wait}")
                elif refused in OF_THE_INSTANCE and target.sop is None:
                    self.progress.left_out(instance, trouble.detail)
                else:
                    self.progress.failed(instance.url, trouble)
            else:
                if job["result"] == "done":
                    self.progress.loaded(instance, job)
                else:
                    self.progress.failed(instance.url, f"{job['result']}: {job['reason']}")

    async def _patiently(self, instance: Found) -> Job:
        """Load *instance*; repeat the request while the proxy is busy, as long as patience lasts."""
        clock = self.warmer.clock
        give_up = clock.seconds() + self.options["patience"]
        while True:
            try:
                again = bool(self.options["again"])
                return await self.warmer.load(instance, again, lambda job: self.progress.update(instance, job))
            except Trouble as trouble:
                wait = trouble.retry_after or WAIT_SECONDS
                if trouble.status != 503 or clock.seconds() + wait > give_up:
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
