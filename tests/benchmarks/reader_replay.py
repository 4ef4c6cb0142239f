"""The paths of `tests.benchmarks.reader_model`, before a real store that is slow, directly and through the real proxy.

Prints a Markdown table as the model's, with the proxy's CPU time (its children's with it) for each answered frame. Of a stack
it also prints how long it takes to get all slices on six connections, for the first caller and for another, which requests
the store sees, and how much of a steady scroll comes from the cache. Run: ``python -m tests.benchmarks.reader_replay``; more
options of the proxy after ``--``. Ends with 1 if a frame came wrong.

A tile that waited counts as "load nearly there" if at least half of its screen's tiles came from the cache.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Optional
from urllib.parse import urlsplit

import attrs

from tests import slides
from tests.benchmarks.measuring import Fetcher, end_in_order, stopped_at_the_end, table
from tests.benchmarks.model.series import SLICES, SLIDES, Series
from tests.benchmarks.reader_model import KINDS, Case, seeds
from tests.benchmarks.readers import HEADS, Item, Outcome, Reader
from tests.benchmarks.replaying import Held, Network
from tests.benchmarks.viewing import Screen
from tests.running import Child, Proxy, Store

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
SLICE_SIDE = 512  # pixels, of 16 bits
SCROLL_PACE = 20.0  # slices a second
SCROLL_BEGINS = 5  # slices until direction and pace can be known
# The machine may be busy with other things: that must not make whole-instance loads into block loads.
NEVER_BUSY = ("--whole-instance-max-cpu", "100", "--whole-instance-max-memory", "100")


@attrs.frozen
class Totals:
    """What the store was asked for so far, by kind, and the bytes of bodies that it sent."""

    requests: Mapping[str, int]
    sent: float

    @classmethod
    def of(cls, url: str) -> Totals:
        parts = urlsplit(url)
        fetcher = Fetcher(f"http://{parts.netloc}")
        totals: Any = json.loads(fetcher.get("_control/totals").body)
        fetcher.close()
        return cls(totals["requests"], totals["bytes"])

    def since(self, before: Totals) -> Totals:
        new = {kind: count - before.requests.get(kind, 0) for kind, count in self.requests.items()}
        return Totals({kind: count for kind, count in new.items() if count}, self.sent - before.sent)

    def __str__(self) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.requests.items())) or "none"


@attrs.frozen
class Measured:
    """One or several runs. *cpu*: seconds of the proxy and its children."""

    outcome: Outcome
    cpu: Optional[float] = None

    def row(self, name: str, runs: int) -> list[str]:
        frames = max(1, len(self.outcome.tiles))
        cpu = "" if self.cpu is None else f"{self.cpu / frames * 1000:.2f}"
        shares, rate = self.outcome.shares, len(self.outcome.tiles) / max(0.001, self.outcome.seconds)
        return [name, *self.outcome.row(runs), cpu, f"{median(shares):.1%}", f"{max(shares):.1%}", f"{rate:,.0f}"]


def cpu_seconds(child: Child) -> float:
    """CPU time of a process, its children, and theirs, whether they live or have ended."""
    times = [process.cpu_times() for process in child.family()]
    return float(sum(one.user + one.system + one.children_user + one.children_system for one in times))


def make(folder: Path, series: Sequence[Series]) -> tuple[list[Path], dict[Item, Held]]:
    """Files of what the model only counts."""
    paths: list[Path] = []
    held: dict[Item, Held] = {}
    for number, one in enumerate(series):
        uids: dict[str, Any] = {
            "study": f"1.2.826.0.1.3680043.9.{number}.1",
            "series": f"1.2.826.0.1.3680043.9.{number}.2",
        }
        for place, level in enumerate(one.levels):
            path = folder / f"{number}-{place}.dcm"
            if one.stack:
                position = {"InstanceNumber": str(place + 1), "ImagePositionPatient": ["0", "0", str(place)]}
                orientation = {"ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"]}
                made = slides.multi_frame(
                    path, 1, SLICE_SIDE, SLICE_SIDE, "raw-16", sop_class=CT_CLASS, modality="CT",
                    extra={**position, **orientation}, **uids,
                )  # fmt: skip
            else:
                made = slides.slide(path, level.rows, level.columns, **uids)
            paths.append(path)
            for frame, data in enumerate(made.stored_frames(), 1):
                held[level.name, frame] = Held(f"{made.resource}/frames/{frame}", zlib.crc32(data))
    return paths, held


@attrs.frozen
class Bench:
    """A store that runs, what it holds, and how proxies are started before it."""

    store_url: str
    held: Mapping[Item, Held]
    proxy_options: Sequence[str]
    log: bool = False

    def follow(self, url: str, case: Case, series: Sequence[Series], seed: int) -> Outcome:
        """One run of a case before *url*."""
        network = Network(url, self.held)
        before = Totals.of(self.store_url)
        readers, began = case.followed(series, seed, network, network.ask), network.now()
        network.run(until=lambda: all(reader.finished for reader in readers))
        seconds = network.now() - began
        network.close()
        sent = Totals.of(self.store_url).since(before).sent
        return Outcome.of(readers, sent, lambda _: series[0].frame_bytes, seconds)

    def through_proxy(self, case: Case, series: Sequence[Series], seed: int) -> Measured:
        """The same through a proxy with an empty cache."""
        with self.proxy() as (proxy, url):
            before = cpu_seconds(proxy)
            outcome = self.follow(url, case, series, seed)
            return Measured(outcome, cpu_seconds(proxy) - before)

    def proxy(self) -> _Started:
        return _Started(self)


class _Started:
    """A proxy for as long as this is open, and its DICOMweb root."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._proxy = Proxy("--origin", bench.store_url, *NEVER_BUSY, *bench.proxy_options)

    def __enter__(self) -> tuple[Proxy, str]:
        self._proxy.wait_until_ready()
        return self._proxy, f"{self._proxy.url}/dicomweb"

    def __exit__(self, *_error: object) -> None:
        self._proxy.stop()
        if self._bench.log:
            print(self._proxy.output(), file=sys.stderr)
        self._proxy.remove()


def rows(bench: Bench, case: Case, series: Sequence[Series], chosen: Sequence[int]) -> Iterator[list[str]]:
    """Of the table; the last is the proxy's."""
    direct = [bench.follow(bench.store_url, case, series, seed) for seed in chosen]
    yield Measured(Outcome.pooled(direct)).row("no proxy", len(chosen))
    runs = [bench.through_proxy(case, series, seed) for seed in chosen]
    outcome = Outcome.pooled([run.outcome for run in runs])
    yield Measured(outcome, sum(run.cpu or 0.0 for run in runs)).row("the proxy", len(chosen))
    if outcome.wrong:
        raise RuntimeError(f"{outcome.wrong} frames came wrong")


def every_slice(bench: Bench, url: str, series: Series, caller: str, dwell: float = 0.0) -> tuple[float, str, Reader]:
    """All slices once, in their order; seconds, what the store was asked for, the reader."""
    network = Network(url, bench.held)
    path = [Screen(level, (1,), dwell, "forwards", not n, waits=False) for n, level in enumerate(series.levels)]
    before = Totals.of(bench.store_url)
    reader = Reader(caller, path, network, network.ask).begin()
    started = network.now()
    network.run(until=lambda: reader.finished)
    seconds = network.now() - started
    network.close()
    return seconds, str(Totals.of(bench.store_url).since(before)), reader


def stack_rows(bench: Bench, series: Series) -> Iterator[list[str]]:
    """First and second pass, and a steady scroll."""
    direct, asked, _ = every_slice(bench, bench.store_url, series, "first")
    yield ["no proxy", f"{direct:.2f}", "1.00", "", "", asked]
    with bench.proxy() as (_, url):
        for name, caller in (("first caller", "first"), ("another, all cached", "other"), ("the same again", "other")):
            seconds, asked, reader = every_slice(bench, url, series, caller)
            yield [name, f"{seconds:.2f}", f"{seconds / direct:.2f}", *_shares(reader, 0), asked]
    with bench.proxy() as (_, url):
        seconds, asked, reader = every_slice(bench, url, series, "first", 1 / SCROLL_PACE)
        yield [f"scroll, {SCROLL_PACE:.0f} a second", f"{seconds:.2f}", "", *_shares(reader, SCROLL_BEGINS), asked]


def _shares(reader: Reader, begin: int) -> list[str]:
    """Of the tiles from *begin* on: from the cache, over 50 ms."""
    tiles = reader.tiles[begin:]
    hits, waits = sum(tile.hit for tile in tiles), sum(tile.cause is not None for tile in tiles)
    return [f"{hits / len(tiles):.0%}", f"{waits / len(tiles):.0%}"]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.reader_replay", description=__doc__)
    parser.add_argument("--kind", choices=KINDS, default="pyramid")
    parser.add_argument("--slide", choices=sorted(SLIDES), default="small")
    parser.add_argument("--readers", type=int, default=1, help="each on a slide of its own")
    parser.add_argument("--workers", type=int, default=1, help="of the proxy")
    parser.add_argument("--moves", type=int, default=80, help="of each reader; a stack's are four times as many")
    parser.add_argument("--seeds", type=seeds, default=(1,), help="tuning, judging, or numbers: 1,2,3")
    parser.add_argument("--latency", type=float, default=0.08, help="of the store, in seconds")
    parser.add_argument("--bandwidth", type=float, default=50.0, help="MB/s of the store, for all answers together")
    parser.add_argument("--log", action="store_true", help="print what proxies logged")
    parser.add_argument("proxy", nargs="*", help="more options of the proxy, after --")
    options = parser.parse_args(arguments)
    end_in_order()
    case = Case(options.kind, options.slide, options.readers, options.moves)
    series = case.series()
    with tempfile.TemporaryDirectory() as folder, stopped_at_the_end() as children:
        paths, held = make(Path(folder), series)
        pace = ("--latency", str(options.latency), "--shared-bytes-per-second", str(options.bandwidth * 1e6))
        children.append(store := Store(*pace, *map(str, paths)))
        workers = [] if options.workers == 1 else ["--workers", str(options.workers)]
        bench = Bench(store.wait_until_ready(120.0), held, [*workers, *options.proxy], options.log)
        print(f"{case.title(options.bandwidth)}, {options.latency * 1000:.0f} ms; seeds {options.seeds}\n")
        print(
            table(
                ["", *HEADS, "CPU ms a frame", "median reader", "worst reader", "tiles/s"],
                rows(bench, case, series, options.seeds),
            )
        )
        if case.kind == "stack":
            heads = [
                f"{SLICES} slices",
                "seconds",
                "of direct",
                "from the cache",
                "over 50 ms",
                "requests at the store",
            ]
            print("\n" + table(heads, stack_rows(bench, series[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
