"""``twistedproxy warm``: finds the instances, has them loaded, reports on it, and exits with 1 if anything failed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater, react
from twisted.python import usage
from twisted.web.client import Agent

from twistedproxy.system.tuning import use_monotonic_clock
from twistedproxy.warm.client import Job, Trouble, Warmer
from twistedproxy.warm.options import Found, WarmOptions, WarmTarget
from twistedproxy.warm.progress import ProgressReport

CONNECT_SECONDS = 10.0
WAIT_SECONDS = 2.0  # before the next request to a busy proxy, if its response does not give a time

LOADED_LATELY = "loaded-lately"
_LATELY = "was loaded recently, or is being loaded; use --again to load it again"
# Reasons against a load that lie in the instance: below a series or study they are no failure.
OF_THE_INSTANCE = frozenset({"syntax-not-supported", "frame-size-unknown", "packed-frames", "too-few-frames", "sparse"})


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
