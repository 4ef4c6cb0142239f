"""What frames of a local cache cost that are on the disk only, and what others notice of it.

The proxy runs in a control group that has less memory than its cache has bytes, so that frames leave the page cache. A store
that takes 80 ms for an answer, one reader of random frames, and callers of a few frames that are asked for all the time.
Needs Linux, and root for the control group. Run: ``python -m tests.benchmarks.cold_reads``; more options of the proxy after ``--``.
Ends with 1 if the callers' 99th percentile is over its limit, or a frame from the disk not ten times as fast as the store.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import slides
from tests.benchmarks.callers import CALLERS, of_all
from tests.benchmarks.measuring import (
    AS_STORED,
    Fetcher,
    end_in_order,
    median,
    percentile,
    stopped_at_the_end,
    table,
    wait_until_quiet,
)
from tests.running import Child, Proxy, Store

LATENCY = 0.08  # seconds that the store takes
MOST = 5.0  # milliseconds at the 99th percentile of others
LEAST_FASTER = 10.0
PAUSE = 0.005  # seconds between two frames of a reader
SECONDS = 5
LOAD_SECONDS = 600.0  # that a slide takes at most to come into the cache
HEADERS = {"Accept": AS_STORED}
MIB = 1 << 20
GROUPS = Path("/sys/fs/cgroup")


@contextmanager
def limited(child: Child, size: int) -> Iterator[None]:
    """Let *child* and its children have *size* bytes of memory, the page cache of what they read and write included."""
    first = (GROUPS / "cgroup.controllers").exists()
    group = (GROUPS if first else GROUPS / "memory") / f"twistedproxy-benchmark-{child.pid}"
    group.mkdir()
    try:
        (group / ("memory.max" if first else "memory.limit_in_bytes")).write_text(str(size))
        for process in child.family():
            (group / "cgroup.procs").write_text(str(process.pid))
        yield
    finally:
        child.stop()
        while child.strays():
            time.sleep(0.1)
        group.rmdir()


class Reader:
    """Reads the frames *numbers* of an instance, one after the other, and notes how long each took."""

    def __init__(self, url: str, resource: str, numbers: Iterator[int]) -> None:
        self.seconds: list[float] = []
        self.failed = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(url, resource, numbers))

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def _read(self, url: str, resource: str, numbers: Iterator[int]) -> None:
        fetcher = Fetcher(url)
        while not self._over.is_set():
            answer = fetcher.get(f"{resource}/frames/{next(numbers)}", HEADERS)
            self.seconds.append(answer.seconds)
            self.failed += answer.status != 200
            time.sleep(PAUSE)
        fetcher.close()


def read_from_disk(proxy: Proxy) -> int:
    """How many bytes the kernel has read from the disk for *proxy* so far."""
    return sum(process.io_counters().read_bytes for process in proxy.family())


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.cold_reads", description=__doc__)
    parser.add_argument("--side", type=int, default=300, help="frames along the side of the slide")
    parser.add_argument("--memory", type=int, default=256, help="of the proxy, its children and their page cache (MiB)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("proxy", nargs="*", help="more options of the proxy")
    options = parser.parse_args(arguments)
    end_in_order()
    with stopped_at_the_end() as children, tempfile.TemporaryDirectory() as folder:
        made = slides.slide(Path(folder) / "slide.dcm", options.side, options.side)
        looked_at = slides.slide(Path(folder) / "other.dcm", 3, 3)
        cache = Path(folder) / "cache"
        more = ["--cache", f"local:{cache}?size=4G", "--whole-instance-max-cpu", "100"]
        store = Store("--latency", str(LATENCY), str(made.path), str(looked_at.path))
        children.append(store)
        proxy = Proxy("--origin", store.wait_until_ready(), *more, *options.proxy).wait_until_ready()
        children.append(proxy)
        with limited(proxy, options.memory * MIB):
            return run(proxy, made, looked_at, options.rounds)


def run(proxy: Proxy, made: slides.Made, looked_at: slides.Made, rounds: int) -> int:
    """Load both slides, and read. 1 if a figure is over its limit, else 0."""
    url = proxy.url
    fetcher = Fetcher(f"{url}/dicomweb", 600)
    fetcher.frames(looked_at.resource, range(1, looked_at.frames + 1))
    fetcher.frames(made.resource, [1])
    wait_until_quiet(url, LOAD_SECONDS)
    others = [f"/dicomweb/{looked_at.resource}/frames/{number}" for number in range(1, looked_at.frames + 1)]
    rows, good = [], True
    numbers = iter(random.Random(1).sample(range(1, made.frames + 1), made.frames))  # none twice
    for caller in CALLERS[1:3]:
        quiet, beside = [], []
        seconds: list[float] = []
        before = read_from_disk(proxy)
        for _ in range(rounds):
            quiet.append(caller.ask(url, others, HEADERS, SECONDS))
            with Reader(f"{url}/dicomweb", made.resource, numbers) as reader:
                beside.append(caller.ask(url, others, HEADERS, SECONDS))
            seconds += reader.seconds
            good = good and not reader.failed
        cold = read_from_disk(proxy) - before
        faster = LATENCY / median(seconds)
        good = good and of_all(beside) < MOST and faster >= LEAST_FASTER
        figures = of_all(quiet), of_all(beside), median(seconds) * 1e3, percentile(seconds, 0.99) * 1e3
        rows.append(
            [
                caller.name,
                *(f"{one:.2f}" for one in figures),
                len(seconds),
                f"{cold / len(seconds) / 1e3:.1f}",
                f"{faster:.0f}",
            ]
        )
    heads = [
        "others",
        "p99 ms",
        "beside cold reads",
        "a cold frame, p50 ms",
        "p99 ms",
        "frames",
        "kB from the disk, each",
        "times as fast as the store",
    ]
    print(table(heads, rows))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
