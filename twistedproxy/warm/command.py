"""``twistedproxy-warm``: finds the instances, has them loaded, tells of it, and ends with 1 if anything failed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater, react
from twisted.python import usage

from twistedproxy.processes.child import use_monotonic_clock
from twistedproxy.warm.client import Refused, Trouble, Warmer
from twistedproxy.warm.options import Options
from twistedproxy.warm.progress import Progress
from twistedproxy.warm.targets import Found, Target

CONNECT_SECONDS = 10.0
WAIT_SECONDS = 2.0
"""Before a busy proxy is asked again, where it doesn't say itself."""

LOADED_LATELY = "loaded-lately"

OF_THE_INSTANCE = frozenset({"syntax-not-supported", "frame-size-unknown", "packed-frames", "too-few-frames", "sparse"})
"""Reasons against a load that lie in the instance: below a series or study they are no failure."""


@attrs.define(eq=False)
class Warming:
    """One run of the command. Counts what became of the instances."""

    warmer: Warmer
    progress: Progress
    options: Options
    loaded: int = 0
    left_out: int = 0
    failed: int = 0

    async def run(self) -> int:
        """Load all; the exit code."""
        instances: dict[str, tuple[Target, Found]] = {}
        for target in self.options.targets:
            for found in await self._instances(target):
                instances.setdefault(found.url, (target, found))
        self.progress.begin([found for _, found in instances.values()])
        work = iter(list(instances.values()))
        await gatherResults([Deferred.fromCoroutine(self._lane(work)) for _ in range(self.options["jobs"])])
        self.progress.end(self.loaded, self.left_out, self.failed)
        return 1 if self.failed else 0

    async def _instances(self, target: Target) -> list[Found]:
        """What of *target* is to be loaded."""
        try:
            found = await self.warmer.instances(target)
        except Trouble as trouble:
            self._fail(target.url, trouble)
            return []
        if not found:
            self._fail(target.url, Trouble("nothing was found there"))
        for one in found:
            if one.frames is not None and one.frames < 2:
                self._leave_out(one, "no multi-frame")
        return [one for one in found if one.frames is None or one.frames > 1]

    async def _lane(self, work: Iterator[tuple[Target, Found]]) -> None:
        for target, instance in work:
            await self._one(target, instance)

    async def _one(self, target: Target, instance: Found) -> None:
        try:
            job = await self._patiently(instance)
        except Refused as refused:
            if refused.status == 409 and refused.reason == LOADED_LATELY:
                self._leave_out(instance, _lately(refused.retry_after))
            elif refused.status == 409 and refused.reason in OF_THE_INSTANCE and target.sop is None:
                self._leave_out(instance, refused.detail)
            else:
                self._fail(instance.url, refused, instance)
        except Trouble as trouble:
            self._fail(instance.url, trouble, instance)
        else:
            if job["result"] == "done":
                self.loaded += 1
                self.progress.loaded(instance, job)
            else:
                self._fail(instance.url, Trouble(f"{job['result']}: {job['reason']}"), instance)

    async def _patiently(self, instance: Found) -> dict[str, Any]:
        """Load *instance*; ask again while the proxy is busy, as long as patience lasts."""
        clock = self.warmer.clock
        give_up = clock.seconds() + self.options["patience"]
        while True:
            try:
                return await self.warmer.load(
                    instance, bool(self.options["again"]), lambda job: self.progress.update(instance, job)
                )
            except Refused as refused:
                wait = refused.retry_after or WAIT_SECONDS
                if refused.status != 503 or clock.seconds() + wait > give_up:
                    raise
            await deferLater(clock, wait)

    def _leave_out(self, instance: Found, why: str) -> None:
        self.left_out += 1
        self.progress.left_out(instance, why)

    def _fail(self, name: str, trouble: Trouble, instance: Found | None = None) -> None:
        self.failed += 1
        self.progress.failed(name, str(trouble), instance)


def _lately(seconds: float | None) -> str:
    when = "" if seconds is None else f", without it that goes in {seconds:g} s"
    return f"was loaded a short while ago, or is being loaded; --again loads it again{when}"


async def warm(reactor: Any, options: Options, out: TextIO, errors: TextIO) -> int:
    """Carry out *options*; the exit code."""
    from twisted.web.client import Agent, HTTPConnectionPool

    pool = HTTPConnectionPool(reactor)
    pool.maxPersistentPerHost = options["jobs"]
    pool.retryAutomatically = False
    agent = Agent(reactor, connectTimeout=CONNECT_SECONDS, pool=pool)
    progress = Progress(out, errors, bool(options["quiet"]), reactor.seconds)
    try:
        return await Warming(Warmer(agent, reactor, options.headers), progress, options).run()
    finally:
        await pool.closeCachedConnections()


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script."""
    options = Options()
    try:
        options.parseOptions(sys.argv[1:] if arguments is None else list(arguments))
    except usage.UsageError as error:
        sys.stderr.write(f"twistedproxy-warm: {error}\n")
        sys.exit(2)

    async def run(reactor: Any) -> None:
        use_monotonic_clock(reactor)
        sys.exit(await warm(reactor, options, sys.stdout, sys.stderr))

    react(lambda reactor: Deferred.fromCoroutine(run(reactor)))
