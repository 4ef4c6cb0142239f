"""What callers of cached frames wait at the 99th percentile while others watch coverage, quiet and during changes, beside while nobody
does.

The slide that is watched is the one whose frames are asked for. Changes: another slide's frames are written to the cache all the time,
so that there is always reason to look through it. Measured in turns; medians; ratios.
Run: ``python -m tests.benchmarks.watching``; more options of the proxy after ``--``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from tests import slides
from tests.benchmarks import wrk
from tests.benchmarks.measuring import AS_STORED, Fetcher, end_in_order, stopped_at_the_end, store_and_proxy, table
from tests.running import Child

MOST = 1.1  # times the milliseconds at the 99th percentile
HEADERS = {"Accept": AS_STORED, "Authorization": "Bearer c41f0a9b5d"}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.watching", description=__doc__)
    parser.add_argument("--streams", type=int, default=10)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement")
    parser.add_argument("--side", type=int, default=100, help="rows and columns of frames")
    parser.add_argument("proxy", nargs="*", help="more options of the proxy, after --")
    options = parser.parse_args(arguments)
    if not wrk.installed():
        print("there is no wrk")
        return 0
    end_in_order()
    with stopped_at_the_end() as children, tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), children, options)


def run(folder: Path, children: list[Child], options: argparse.Namespace) -> int:
    """1 if the ratio is over its limit, else 0."""
    cores = sorted(os.sched_getaffinity(0))
    made = [slides.slide(folder / f"{name}.dcm", options.side, options.side, study="1.2", series=f"1.{name}", sop=f"1.{name}.1")
            for name in (3, 4)]  # fmt: skip
    paths = [one.path for one in made]
    _, proxy = store_and_proxy(children, paths, *options.proxy, store_core=cores[-1], core=cores[0])
    watched, other = made
    fetcher = Fetcher(f"{proxy.url}/dicomweb")
    length = 0.0
    for number in [*range(1, watched.frames + 1)] * 2:
        length = len(fetcher.get(f"{watched.resource}/frames/{number}", HEADERS).body)
    asked = [f"/dicomweb/{watched.resource}/frames/{number}" for number in range(1, watched.frames + 1, 7)]
    found: dict[str, list[tuple[float, float, float]]] = {}

    def measure(name: str) -> None:
        before = cpu(proxy)
        ran = wrk.run(proxy.url, asked, HEADERS, options.connections, options.seconds, cores[-1], length + 400)
        each = (cpu(proxy) - before) / ran.requests * 1e6
        found.setdefault(name, []).append((ran.p99, ran.per_second, each))

    for _ in range(options.rounds):
        for changing in (False, True):
            kind = "changes" if changing else "quiet"
            with writing(proxy.url, other) if changing else contextlib.nullcontext():
                measure(f"{kind}, nobody watches")
                with watching(proxy.url, watched, options.streams):
                    measure(f"{kind}, {options.streams} watch")
    rows = [
        [name, *(f"{statistics.median(one[at] for one in all_):,.2f}" for at in range(3))]
        for name, all_ in found.items()
    ]
    print(table(["", "p99 ms", "requests/s", "CPU us a request"], rows))
    missed = False
    for kind in ("quiet", "changes"):
        alone, beside = found[f"{kind}, nobody watches"], found[f"{kind}, {options.streams} watch"]
        ratio = statistics.median(many[0] / none[0] for many, none in zip(beside, alone, strict=True))
        print(f"{kind}: {ratio:.2f} times the p99 of when nobody watches (at most {MOST})")
        missed = missed or ratio > MOST
    return int(missed)


def cpu(child: Child) -> float:
    """Seconds of the processor that *child* has used."""
    times = psutil.Process(child.pid).cpu_times()
    return times.user + times.system


@contextlib.contextmanager
def watching(url: str, made: slides.Made, streams: int) -> Iterator[None]:
    """So many streams, whose first object has come, and which are read."""
    parts = urlsplit(url)
    series = "/".join(made.resource.split("/")[:4])
    head = f"GET /dicomweb/{series}/coverage HTTP/1.1\r\nHost: p\r\nAccept: application/x-ndjson\r\n"
    head += f"Authorization: {HEADERS['Authorization']}\r\n\r\n"
    with contextlib.ExitStack() as opened:
        for _ in range(streams):
            one = opened.enter_context(socket.create_connection((parts.hostname or "", parts.port or 80)))
            one.sendall(head.encode())
            received = b""
            while b'"cached":[[' not in received:
                received += one.recv(1 << 16)
            threading.Thread(target=read_all, args=(one,), daemon=True).start()
        yield


def read_all(one: socket.socket) -> None:
    """Read until it is closed."""
    with contextlib.suppress(OSError):
        while one.recv(1 << 16):
            pass


@contextlib.contextmanager
def writing(url: str, made: slides.Made) -> Iterator[None]:
    """Meanwhile 20 frames a second of another slide come from the store, and go to the cache."""
    ended = threading.Event()

    def ask() -> None:
        fetcher, number = Fetcher(f"{url}/dicomweb"), 0
        while not ended.wait(0.05):
            number = number % made.frames + 1
            fetcher.get(f"{made.resource}/frames/{number}", {**HEADERS, "Cache-Control": "no-cache"})
            fetcher.get(
                f"{made.resource}/frames/{number}", {**HEADERS, "Authorization": f"Bearer {time.monotonic_ns()}"}
            )
        fetcher.close()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        ended.set()
        asking.join()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
