"""Whether hot responses keep to their memory: a worker's resident bytes while far more answers come by than it may keep.

Run: ``python -m tests.benchmarks.hot_memory``.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import psutil

from tests import slides
from tests.benchmarks.measuring import AS_STORED, Fetcher, end_in_order, stopped_at_the_end, store_and_proxy, table
from tests.running import Proxy

ALLOWED = 1.25  # of --hot-memory
MIB = 1 << 20
LOOKS = 8  # at the worker's memory, on the way
LONGEST = 12  # frames in one answer: some 100 kB


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.hot_memory", description=__doc__)
    parser.add_argument("--hot-memory", type=int, default=64, help="MiB")
    parser.add_argument("--churn", type=int, default=1024, help="MiB of answers that come by")
    options = parser.parse_args(arguments)
    end_in_order()
    with stopped_at_the_end() as children:
        with tempfile.TemporaryDirectory() as folder:
            made = slides.slide(Path(folder) / "slide.dcm", 10, 10)
            _, proxy = store_and_proxy(children, [made.path], "--hot-memory", f"{options.hot_memory}M")
            return run(proxy, f"dicomweb/{made.resource}/frames/", options.hot_memory * MIB, options.churn * MIB)


def run(proxy: Proxy, below: str, hot_memory: int, churn: int) -> int:
    """Ask for ever new lists of frames until *churn* bytes have come; 1 if the worker grew by more than it may."""
    fetcher, worker = Fetcher(proxy.url), psutil.Process(proxy.pid)
    for number in range(1, 101):
        fetcher.get(f"{below}{number}", {"Accept": AS_STORED})
    began = most = worker.memory_info().rss
    chance, came, rows = random.Random(1), 0, []
    for look in range(1, LOOKS + 1):
        while came < churn * look / LOOKS:
            numbers = chance.choices(range(1, 101), k=chance.randint(1, LONGEST))
            came += len(fetcher.get(below + ",".join(map(str, numbers)), {"Accept": AS_STORED}).body)
        now = worker.memory_info().rss
        most = max(most, now)
        rows.append([f"{came / MIB:,.0f}", f"{now / MIB:,.1f}", f"{(now - began) / MIB:+,.1f}"])
    fetcher.close()
    print(f"--hot-memory {hot_memory // MIB}M, the worker began at {began / MIB:,.1f} MiB\n")
    print(table(["MiB that came by", "MiB resident", "more than at first"], rows))
    limit = hot_memory * ALLOWED
    print(f"\nat most {(most - began) / MIB:+,.1f} MiB; allowed are {limit / MIB:,.1f}")
    return int(most - began > limit)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
