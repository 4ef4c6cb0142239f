"""A study is opened: a slide with Slim, and a CT of 200 slices with OHIF (`tests.benchmarks.viewers`); directly at a store that
takes 80 ms for each answer, and through a proxy that has opened another study before: for the first time, again by the same
caller, and by another one.

Prints a Markdown table for each study and store: seconds until the last frame is there, and of the frames alone; how many
requests reached the store, those of loads among them, by kind; and how many frames and profiles came wrong.
Run: ``python -m tests.benchmarks.opening``; more options of the proxy after ``--``. Ends with 1 if anything came wrong, or a
mark of the project was missed. Read the ratios, not the seconds: direct requests are of the same run, sent in the same way.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional
from urllib.parse import urlsplit

import attrs

from tests.benchmarks.measuring import Fetcher, end_in_order, median, table, wait_until_quiet
from tests.benchmarks.reader_replay import Bench
from tests.benchmarks.viewers import FIRST, Seconds, Study, Viewer, open_slide, open_stack, slide, stack
from tests.running import Store
from tests.stores.orthanc import Orthanc

STORES = ("standard", "dcm4chee", "google", "orthanc")
QUIET_SECONDS = 120.0
KINDS = ("searches", "metadata", "bulk data", "frames", "objects")
NAMES = ("directly", "the proxy, first time", "again, the same caller", "another caller")
HEADS = ["s", "of direct", "mark", f"{FIRST} frames s", "all frames s", "of direct", *KINDS, "wrong"]


@attrs.frozen
class Marks:
    """The most that an opening of each of `NAMES` may take, of direct; and how many *requests* besides searches may reach the store
    when another caller opens what is cached."""

    times: Sequence[Optional[float]] = (None,) * len(NAMES)
    requests: Optional[int] = None


@attrs.frozen
class Case:
    """Two studies, the second a small one, of a kind; how such are opened, and what the project wants of that."""

    name: str
    make: Callable[[Path], tuple[Study, Study]]
    open: Callable[[Viewer, Study], Seconds]
    marks: Marks


CASES = {
    "slide": Case(
        "Slim opens a slide",
        lambda folder: (slide(folder, 1), slide(folder, 2, ((4, 5), (16, 2)))),
        open_slide,
        Marks((None, 0.7, 0.25, 0.6)),
    ),
    "stack": Case(
        "OHIF opens a CT",
        lambda folder: (stack(folder, 1), stack(folder, 2, 9)),
        open_stack,
        Marks((None, 0.7, None, 0.15), 3),
    ),
}


def kind(target: str) -> str:
    """What a request's target asks for."""
    steps = target.partition("?")[0].split("/")
    if steps[-1] in ("studies", "series", "instances"):
        return "searches"
    words = {"frames": "frames", "bulkdata": "bulk data", "bulk": "bulk data", "metadata": "metadata"}
    return next((words[step] for step in reversed(steps) if step in words), "objects")


@attrs.frozen
class Opened:
    """One opening. *requests*: that reached the store because of it, by kind, until loads had ended."""

    seconds: Seconds
    requests: Mapping[str, int]
    wrong: int


def rows(rounds: Sequence[Sequence[Opened]], marks: Marks) -> Iterator[list[str]]:
    """Of the table: of each of `NAMES` the medians of all rounds, and the most requests of any."""

    def middle(place: int, field: str) -> float:
        return median([getattr(opened[place].seconds, field) for opened in rounds])

    for place, name in enumerate(NAMES):
        requests = {one: max(opened[place].requests.get(one, 0) for opened in rounds) for one in KINDS}
        total, frames = (middle(place, field) / middle(0, field) for field in ("total", "frames"))
        most, allowed = marks.times[place], marks.requests if place == len(NAMES) - 1 else None
        reached = (most is None or total <= most) and (
            allowed is None or sum(requests.values()) - requests["searches"] <= allowed
        )
        mark = ["" if most is None else f"{most:.2f}", "" if allowed is None else f"{allowed} requests"]
        seconds, first, last = (f"{middle(place, field):.2f}" for field in ("total", "first", "frames"))
        wrong = sum(opened[place].wrong for opened in rounds)
        yield [
            name, seconds, f"{total:.2f}", ", ".join(filter(None, [*mark, "" if reached else "missed"])), first, last,
            f"{frames:.2f}", *(str(requests[one]) for one in KINDS), str(wrong),
        ]  # fmt: skip


@attrs.frozen
class Measured:
    """A store that runs. *asked*: the targets of all requests that it has had."""

    bench: Bench
    asked: Callable[[], list[str]]

    def once(self, case: Case, study: Study, other: Study) -> Iterator[Opened]:
        """The study opened in each of the ways that `NAMES` says."""
        yield self._open(case, study, self.bench.store_url, "first", None)
        with self.bench.proxy() as (proxy, url):
            for caller, opened in (("early", other), ("first", study), ("first", study), ("other", study)):
                result = self._open(case, opened, url, caller, proxy.url)
                if opened is study:
                    yield result

    def _open(self, case: Case, study: Study, url: str, caller: str, proxy_url: Optional[str]) -> Opened:
        before = len(self.asked())
        with contextlib.closing(Viewer(url, caller, as_stored=proxy_url is not None)) as viewer:
            seconds = case.open(viewer, study)
            if proxy_url is not None:
                wait_until_quiet(proxy_url, QUIET_SECONDS)
            return Opened(seconds, Counter(map(kind, self.asked()[before:])), viewer.wrong())


@contextlib.contextmanager
def started(name: str, files: Sequence[Path], options: Any) -> Iterator[Measured]:
    """A simulated store of that dialect, or Orthanc itself, that holds *files*."""
    if name == "Orthanc":
        orthanc = Orthanc().start()
        try:
            orthanc.store(*files)
            bench = Bench(orthanc.url, {}, options.proxy, options.log)
            yield Measured(bench, lambda: [path for _, path in orthanc.requests()])
        finally:
            orthanc.stop()
        return
    store = Store("--dialect", name, "--latency", str(options.latency), *map(str, files))
    try:
        url = store.wait_until_ready(120.0)
        control = Fetcher("http://" + urlsplit(url).netloc)
        bench = Bench(url, {}, options.proxy, options.log)
        yield Measured(bench, lambda: [one["line"] for one in json.loads(control.get("_control/requests").body)])
        control.close()
    finally:
        store.stop()
        store.remove()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.opening", description=__doc__)
    parser.add_argument("--case", choices=sorted(CASES), action="append", help="default: both")
    parser.add_argument("--store", choices=STORES, action="append", help="dialect of the simulated store; default: all")
    parser.add_argument("--orthanc", action="store_true", help="before Orthanc itself, for which there are no marks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.08, help="of the simulated store, in seconds")
    parser.add_argument("--log", action="store_true", help="print what proxies logged")
    parser.add_argument("proxy", nargs="*", help="more options of the proxy, after --")
    options = parser.parse_args(arguments)
    end_in_order()
    failed = False
    for case in (CASES[name] for name in options.case or CASES):
        with tempfile.TemporaryDirectory() as folder:
            study, other = case.make(Path(folder))
            for name in ["Orthanc"] if options.orthanc else options.store or STORES:
                with started(name, [*study.files, *other.files], options) as measured:
                    rounds = [list(measured.once(case, study, other)) for _ in range(options.rounds)]
                lines = list(rows(rounds, Marks() if options.orthanc else case.marks))
                print(f"\n{table([f'{case.name}: {name}', *HEADS], lines)}", flush=True)
                failed = failed or any("missed" in line[3] or line[-1] != "0" for line in lines)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
