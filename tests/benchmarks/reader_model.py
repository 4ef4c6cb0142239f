"""Prefetch rules compared on a model: readers with paths made up from seeds, the proxy, a slow store. Nothing is started.

Prints a Markdown table for each slide and bandwidth, with a row for each rule set: tiles that took more than 50 ms, by cause;
screens, from their first tile asked for to their last byte; bytes read from the store, in each run and for each byte of a
frame that somebody asked for. Run: ``python -m tests.benchmarks.reader_model``. Tune with ``--seeds tuning``, then judge
with the others, which is the default.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import attrs

from tests.benchmarks.measuring import table
from tests.benchmarks.model.policies import PYRAMID, STACK, SWEEPS
from tests.benchmarks.model.proxy import HOP, Policy, Proxy
from tests.benchmarks.model.series import SLIDES, Series, places, pyramid, stack
from tests.benchmarks.model.store import Events, SharedLine, Store
from tests.benchmarks.readers import HEADS, Answer, Ask, Clock, Done, Item, Outcome, Reader
from tests.benchmarks.viewing import reading, scroll

SEEDS = {"tuning": (101, 102, 103), "judging": (1, 2, 3)}
KINDS = ("pyramid", "two-readers", "stack")
APART = 5.0  # seconds between the second reader of a slide and the first
STAGGER = 0.7  # seconds between readers of slides of their own


@attrs.frozen
class Case:
    """One kind of reading: what is held, who reads it. *slide*: of `SLIDES`; *readers*: on series of their own."""

    kind: str
    slide: str = "small"
    readers: int = 1
    moves: int = 80

    def series(self) -> list[Series]:
        """The series of one run, one for each reader, or one for both."""
        count = 1 if self.kind == "two-readers" else self.readers
        if self.kind == "stack":
            return [stack(f"s{number}") for number in range(count)]
        return [pyramid(f"p{number}", *SLIDES[self.slide]) for number in range(count)]

    def followed(self, series: Sequence[Series], seed: int, clock: Clock, ask: Ask) -> list[Reader]:
        """The readers, about to begin."""
        if self.kind == "stack":
            paths = [scroll(seed + 1000 * n, one.levels, 4 * self.moves) for n, one in enumerate(series)]
        elif self.kind == "two-readers":
            paths = [reading(seed + 1000 * n, series[0].levels, self.moves) for n in range(2)]
        else:
            paths = [reading(seed + 1000 * n, one.levels, self.moves) for n, one in enumerate(series)]
        apart = APART if self.kind == "two-readers" else STAGGER
        return [Reader(f"r{n}", path, clock, ask, n * apart).begin() for n, path in enumerate(paths)]

    def title(self, bandwidth: float) -> str:
        size = self.series()[0].size / 1e6
        many = "" if self.readers == 1 else f", {self.readers} readers on slides of their own"
        what = self.kind if self.kind == "stack" else f"{self.kind}, {self.slide}"
        return f"{what}, {size:,.0f} MB, {bandwidth:.0f} MB/s{many}"


def run(case: Case, policy: Policy, seed: int, latency: float, bandwidth: float, capacity: float) -> Outcome:
    """One run through a proxy with *policy*. Seconds, bytes a second, bytes."""
    events = Events()
    store = Store(events, SharedLine(events, bandwidth), latency)
    series = case.series()
    held = places(series)
    proxy = Proxy(events, store, held, policy, capacity)
    readers = case.followed(series, seed, events, proxy.ask)
    return _outcome(events, store, readers, series)


def run_direct(case: Case, seed: int, latency: float, bandwidth: float) -> Outcome:
    """One run with nothing between readers and store."""
    events = Events()
    store = Store(events, SharedLine(events, bandwidth), latency)
    series = case.series()
    size = series[0].frame_bytes

    def ask(_reader: str, _item: Item, done: Done) -> None:
        store.request(size, lambda: done(Answer(soon=False)))

    return _outcome(events, store, case.followed(series, seed, events, ask), series)


def _outcome(events: Events, store: Store, readers: Sequence[Reader], series: Sequence[Series]) -> Outcome:
    events.run(until=lambda: all(reader.finished for reader in readers))
    return Outcome.of(readers, store.sent, lambda _: series[0].frame_bytes)


def rows(case: Case, policies: Sequence[Policy], options: argparse.Namespace, bandwidth: float) -> Iterator[list[str]]:
    """Of one table."""
    given = (options.latency, bandwidth * 1e6)
    direct = [run_direct(case, seed, *given) for seed in options.seeds]
    yield ["no proxy", *Outcome.pooled(direct).row(len(direct))]
    for policy in policies:
        outcomes = [run(case, policy, seed, *given, options.cache * 1e6) for seed in options.seeds]
        yield [policy.name, *Outcome.pooled(outcomes).row(len(outcomes))]


def cases(options: argparse.Namespace) -> Iterator[Case]:
    for kind in options.kind:
        slides = ["small"] if kind == "stack" else options.slides
        for slide in slides:
            yield Case(kind, slide, options.readers, options.moves)


def seeds(text: str) -> tuple[int, ...]:
    """Seeds by name, or numbers."""
    return SEEDS.get(text) or tuple(map(int, text.split(",")))


def swept(text: str) -> list[Policy]:
    """``ring=2,4,8``: a rule set for each value."""
    name, _, values = text.partition("=")
    return [SWEEPS[name](int(value)) for value in values.split(",")]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.reader_model", description=__doc__)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=["pyramid", "stack"])
    parser.add_argument("--slides", nargs="+", choices=sorted(SLIDES), default=["small", "large"])
    parser.add_argument("--bandwidth", nargs="+", type=float, default=[20.0, 50.0, 200.0], help="MB/s, of the store")
    parser.add_argument("--latency", type=float, default=0.08, help="of the store, in seconds")
    parser.add_argument("--cache", type=float, default=float("inf"), help="MB")
    parser.add_argument("--readers", type=int, default=1, help="each on a slide of its own")
    parser.add_argument("--moves", type=int, default=80, help="of each reader; a stack's are four times as many")
    parser.add_argument("--seeds", type=seeds, default=SEEDS["judging"], help="tuning, judging, or numbers: 1,2,3")
    parser.add_argument("--sweep", type=swept, help="only these: NAME=VALUE,..., of " + ", ".join(SWEEPS))
    options = parser.parse_args(arguments)
    print(f"store: {options.latency * 1000:.0f} ms; proxy: {HOP * 1000:.0f} ms; seeds {options.seeds}")
    for case in cases(options):
        policies = options.sweep or (STACK if case.kind == "stack" else PYRAMID)
        for bandwidth in options.bandwidth:
            print(f"\n{case.title(bandwidth)}\n")
            print(table(["", *HEADS], rows(case, policies, options, bandwidth)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
