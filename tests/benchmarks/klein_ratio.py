"""What a cached frame through the proxy costs beside a bare Klein route, in one run.

Each server has one processor core, the client another one. Measured in turns; medians; a ratio.
Run: ``python -m tests.benchmarks.klein_ratio``; more options of the proxy after ``--``.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests import slides
from tests.benchmarks.load import Load, load
from tests.benchmarks.measuring import (
    AS_STORED,
    Fetcher,
    alternating,
    end_in_order,
    median,
    stopped_at_the_end,
    store_and_proxy,
    table,
)
from tests.running import Child, Proxy, free_port, pinned

LIMIT = 1.67  # bare Klein routes: at least 0.6 of its requests a second


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.klein_ratio", description=__doc__)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement")
    parser.add_argument("--frames", type=int, default=64, help="how many different frames are asked for in turn")
    parser.add_argument("proxy", nargs="*", help="more options of the proxy, after --")
    options = parser.parse_args(arguments)
    end_in_order()
    with stopped_at_the_end() as children:
        with tempfile.TemporaryDirectory() as folder:
            return run(Path(folder), children, options)


def run(folder: Path, children: list[Child], options: Any) -> int:
    """Start the servers, warm the cache, measure. 1 if the ratio is over the limit, else 0."""
    cores = sorted(os.sched_getaffinity(0))
    server_core, client_core = cores[0], cores[-1]
    made = slides.slide(folder / "slide.dcm", 10, 10)
    _, proxy = store_and_proxy(children, [made.path], *options.proxy, store_core=client_core, core=server_core)
    paths = [f"/dicomweb/{made.resource}/frames/{number}" for number in range(1, min(options.frames, made.frames) + 1)]
    size = warm(proxy, paths)
    port = free_port()
    bare = Child(pinned([sys.executable, "-m", "tests.benchmarks.bare_klein", str(port), str(size)], server_core))
    children.append(bare)
    answered(bare, port, paths[0])

    def ask(url: str) -> Load:
        return load(url, paths, {"Accept": AS_STORED}, options.connections, options.seconds, client_core)

    loads: dict[str, list[Load]] = {"bare Klein route": [], "cached frame through the proxy": []}

    def measure(name: str, url: str) -> float:
        loads[name].append(ask(url))
        return loads[name][-1].per_second

    names = list(loads)
    bare_rates, proxy_rates = alternating(
        options.rounds,
        lambda: measure(names[0], f"http://127.0.0.1:{port}"),
        lambda: measure(names[1], proxy.url),
    )
    rows = [
        [
            name,
            f"{median(rates):,.0f}",
            f"{min(rates):,.0f} - {max(rates):,.0f}",
            p99(loads[name]),
            failures(loads[name]),
        ]
        for name, rates in zip(names, (bare_rates, proxy_rates), strict=True)
    ]
    print(f"{options.connections} connections, {size:,} bytes an answer, {len(paths)} frames in turn\n")
    print(table(["", "requests/s, median", "range", "p99 ms", "failed"], rows))
    ratio = median(bare_rates) / median(proxy_rates)
    print(f"\na cached frame costs {ratio:.2f} bare Klein routes (at most {LIMIT})")
    return int(ratio > LIMIT or any(load.failed for loads_ in loads.values() for load in loads_))


def warm(proxy: Proxy, paths: list[str]) -> int:
    """Ask for each path twice; the size of the last answer in bytes. Raises RuntimeError if it was no hit."""
    fetcher = Fetcher(proxy.url)
    for _again in range(2):
        for path in paths:
            answer = fetcher.get(path[1:], {"Accept": AS_STORED})
            if answer.status != 200:
                raise RuntimeError(f"{path}: {answer.status} {answer.body[:300]!r}")
    fetcher.close()
    if "hit" not in answer.headers.get("cache-status", ""):
        raise RuntimeError(f"not from the cache: {answer.headers}")
    return len(answer.body)


def answered(child: Child, port: int, path: str) -> None:
    """Block until the bare route answers."""
    while child.running():
        try:
            fetcher = Fetcher(f"http://127.0.0.1:{port}")
            status = fetcher.get(path[1:]).status
            fetcher.close()
        except OSError:
            time.sleep(0.02)
            continue
        if status != 200:
            raise RuntimeError(f"the bare route answers {status}: {child.output()}")
        return
    raise RuntimeError(child.output())


def p99(loads: list[Load]) -> str:
    values = [load.p99 for load in loads if load.p99 is not None]
    return f"{median(values):.2f}" if values else "-"


def failures(loads: list[Load]) -> int:
    return sum(load.failed for load in loads)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
