"""What callers of cached frames notice while pictures are made as fast as the machine lets them.

Callers of several kinds ask for cached frames: hot ones, and ones from Redis. Meanwhile others ask for pictures that have
to be made anew each time, more of them at once than there are rendering children. In turns; medians.
Run: ``python -m tests.benchmarks.render_load``; more options of the proxy after ``--``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import psutil

from tests import slides
from tests.benchmarks.callers import CALLERS, Caller, of_all
from tests.benchmarks.measuring import Fetcher, RedisServer, end_in_order, stopped_at_the_end, store_and_proxy, table
from tests.running import Proxy
from twistedproxy.system.tuning import lower_priority

MOST = 5.0  # times the milliseconds at the 99th percentile without rendering
ASKING = 8  # for pictures at once
PICTURE = "rendered?viewport=1500,1500&disable_caching=true"  # of the whole instance: little to ask, much to do
JPEG = {"Accept": "image/jpeg"}
SETTLING = 1.0  # seconds until the children are at work


class Pictures:
    """Callers that ask for pictures without a pause. *made*: how many they got."""

    def __init__(self, url: str, resource: str) -> None:
        self.url, self.resource = url, resource
        self.made = 0
        self.refused: Optional[int] = None
        self._over = threading.Event()

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """Ask for as long as this lasts."""
        self._over.clear()
        threads = [threading.Thread(target=self._ask) for _ in range(ASKING)]
        for thread in threads:
            thread.start()
        try:
            time.sleep(SETTLING)
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def _ask(self) -> None:
        lower_priority()  # of this thread: others' computers are not the server's, and take what is left of it here
        fetcher = Fetcher(self.url)
        while not self._over.is_set():
            status = fetcher.get(f"{self.resource}/{PICTURE}").status
            if status == 200:
                self.made += 1
            else:
                self.refused = status
        fetcher.close()


def measure(name: str, folder: Path, options: Any, *more: str) -> Iterator[tuple[list[object], float]]:
    """Rows, one for each kind of caller, and how many times longer the slowest hundredth of cached frames takes while
    pictures are made."""
    looked_at = slides.slide(folder / f"{name}.dcm", 8, 8)
    with stopped_at_the_end() as children:
        redis = RedisServer()
        children.append(redis)
        _, proxy = store_and_proxy(children, [looked_at.path], "--cache", redis.url, *more, *options.proxy)
        paths = [f"/dicomweb/{looked_at.resource}/frames/{number}" for number in range(1, 10)]
        warm(f"{proxy.url}/dicomweb", looked_at.resource)
        pictures = Pictures(f"{proxy.url}/dicomweb", looked_at.resource)
        for caller in CALLERS:
            slow, rates = beside_pictures(caller, proxy, paths, pictures, options)
            times = slow[1] / slow[0]
            figures = [f"{value:.2f}" for value in (*slow, times)]
            yield [f"{name}: {caller.name}", *figures, *rates], times


def beside_pictures(
    caller: Caller, proxy: Proxy, paths: Sequence[str], pictures: Pictures, options: Any
) -> tuple[list[float], list[str]]:
    """Milliseconds at the 99th percentile without and beside pictures; pictures a second, and processors used for them."""
    quiet, busy = [], []
    used = made = 0.0
    for _ in range(options.rounds):
        quiet.append(caller.ask(proxy.url, paths, JPEG, options.seconds))
        with pictures.wanted():
            before, begun, pictures.made = time.perf_counter(), rendering_seconds(proxy), 0
            busy.append(caller.ask(proxy.url, paths, JPEG, options.seconds))
            took = time.perf_counter() - before
            used += (rendering_seconds(proxy) - begun) / took
            made += pictures.made / took
    if pictures.refused:
        raise RuntimeError(f"a picture was answered with {pictures.refused}")
    return [of_all(quiet), of_all(busy)], [f"{made / options.rounds:.0f}", f"{used / options.rounds:.2f}"]


def warm(url: str, resource: str) -> None:
    """Have the frames in the cache, the frequent ones hot, and the rendering children running."""
    fetcher = Fetcher(url)
    for number in [*range(1, 65)] * 2:
        fetcher.get(f"{resource}/frames/{number}", JPEG)
    for _ in range(4):
        fetcher.get(f"{resource}/{PICTURE}")
    fetcher.close()


def rendering_seconds(proxy: Proxy) -> float:
    """What the rendering children have used of the processors."""
    used = 0.0
    for process in proxy.family():
        try:
            if "twistedproxy.rendering.child" in process.cmdline():
                times = process.cpu_times()
                used += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return used


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.render_load", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement")
    parser.add_argument("proxy", nargs="*", help="more options of the proxy, after --")
    options = parser.parse_args()
    end_in_order()
    with tempfile.TemporaryDirectory() as folder:
        measured = [
            *measure("hot", Path(folder), options),
            *measure("Redis", Path(folder), options, "--hot-memory", "0"),
        ]
    heads = ["cached frames", "p99 ms", "while rendering", "times", "pictures/s", "cores used"]
    print(table(heads, [row for row, _ in measured]))
    worst = max(times for _, times in measured)
    print(f"\nat most {worst:.1f} times (limit {MOST})")
    return int(worst > MOST)


if __name__ == "__main__":
    sys.exit(main())
