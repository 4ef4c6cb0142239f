"""The proxy beside what could stand in its place, in one run: requests a second, waiting, processor time, memory.

Every server has one processor core, all the same one, and is measured alone on it; wrk has another, and so has the
origin, an nginx with everything in its cache. Measured in turns, medians of the rounds. All answer the same frames with the same bytes, which is checked; the credential is sent to all.
Processor time and memory are of all processes of a server, the cache's too. Where others use the machine, look at the
processor's time: it hardly depends on them.
Run: ``python -m tests.benchmarks.side_by_side``; a quick look: ``--seconds 1 --rounds 1 --connections 32``; options of
the proxies after ``--``.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs

from tests import slides
from tests.benchmarks import contenders, nginx, wrk
from tests.benchmarks.contenders import HOT, KLEIN, NAMES, NGINX, PROXIES, Contender, Field
from tests.benchmarks.measuring import AS_STORED, Fetched, Fetcher, end_in_order, median, stopped_at_the_end, table
from tests.running import Child, Store

HEADERS = {"Accept": AS_STORED, "Authorization": "Bearer c41f0a9b5d"}
CONNECTIONS = (1, 32, 500)
LISTS = (1, 3, 10, 30, 100)
IDLE = (0, 1, 100, 1_000, 5_000)
BUSY = 32  # connections that ask while others idle or lists grow

# What is to be seen: (contender, the one beside it, at 32 connections, at least that share of its requests a second).
AIMS = ((HOT, NGINX, 0.4), (contenders.CACHED, KLEIN, 0.6))
P99_AIM = 3.0  # times nginx's, of what is hot


@attrs.frozen
class Measured:
    """One run of one contender. *cpu*: microseconds a request; *memory*: bytes afterwards."""

    ran: wrk.Ran
    cpu: float
    memory: int


@attrs.define
class Bench:
    """What is measured with: *frames* of the slide in turn, *seconds* each, wrk on *core*."""

    made: slides.Made
    frames: int
    seconds: int
    core: int

    def resources(self, per_list: int = 1) -> list[str]:
        """What is asked for in turn: lists of *per_list* frames that begin everywhere."""
        count = self.made.frames
        lists = [[(first + step) % count + 1 for step in range(per_list)] for first in range(min(self.frames, count))]
        return [f"{self.made.resource}/frames/{','.join(map(str, numbers))}" for numbers in lists]

    def measure(self, contender: Contender, connections: int, per_list: int = 1) -> Measured:
        resources = self.resources(per_list)
        length = sum(contender.length(one, HEADERS) for one in resources) / len(resources)
        paths = [contender.path(one) for one in resources]
        before = contender.cpu()
        ran = wrk.run(contender.address, paths, HEADERS, connections, self.seconds, self.core, length)
        return Measured(ran, (contender.cpu() - before) / ran.requests * 1e6, contender.memory())


def middle(runs: Sequence[Measured]) -> Measured:
    """The medians, each of its own."""
    ran = wrk.Ran(
        *(median([getattr(run.ran, field.name) for run in runs]) for field in attrs.fields(wrk.Ran))  # type: ignore[arg-type]
    )
    return Measured(ran, median([run.cpu for run in runs]), int(median([run.memory for run in runs])))


def side_by_side(bench: Bench, running: Sequence[Contender], options: Any) -> dict[tuple[str, int], Measured]:
    """Every contender at every number of connections, in turns; tells the table."""
    runs: dict[tuple[str, int], list[Measured]] = {}
    for turn in range(options.rounds):
        for connections in options.connections:
            for contender in running if turn % 2 == 0 else reversed(running):
                measured = bench.measure(contender, connections)
                runs.setdefault((contender.name, connections), []).append(measured)
                if options.verbose:
                    print(contender.name, connections, measured, file=sys.stderr, flush=True)
    medians = {key: middle(found) for key, found in runs.items()}
    for connections in options.connections:
        print(f"\n{connections} connection{'s' if connections > 1 else ''}:\n")
        rows = [_row(one.name, medians[one.name, connections]) for one in running]
        print(table(["", "requests/s", "p50 ms", "p99 ms", "CPU µs/request", "memory MB"], rows), flush=True)
    return medians


def _row(name: str, measured: Measured) -> list[object]:
    ran = measured.ran
    return [
        name,
        f"{ran.per_second:,.0f}",
        f"{ran.p50:.2f}",
        f"{ran.p99:.2f}",
        f"{measured.cpu:,.1f}",
        f"{measured.memory / 1e6:,.0f}",
    ]


def lists(bench: Bench, running: Sequence[Contender], options: Any) -> None:
    """How cost grows with the frames of one request."""
    proxies = [one for one in running if one.name in PROXIES]
    rows = []
    for per_list in options.lists:
        row: list[object] = [f"{per_list} frame{'s' if per_list > 1 else ''}"]
        for contender in proxies:
            for one in bench.resources(per_list):
                contender.warm(one, HEADERS)
            found = middle([bench.measure(contender, BUSY, per_list) for _ in range(options.rounds)])
            row += [f"{found.ran.per_second:,.0f}", f"{found.cpu:,.0f}", f"{found.cpu / per_list:,.1f}"]
        rows.append(row)
    heads = [f"{one.name.removeprefix('the proxy, ')}: {what}" for one in proxies for what in _LIST_COLUMNS]
    print(f"\nLists, {BUSY} connections:\n\n{table(['one request for', *heads], rows)}", flush=True)


_LIST_COLUMNS = ("requests/s", "CPU µs/request", "CPU µs/frame")


def idle(bench: Bench, running: Sequence[Contender], options: Any) -> None:
    """How cost grows with connections that wait between two requests."""
    proxies = [one for one in running if one.name in PROXIES[:2]]
    rows = []
    for count in options.idle:
        row: list[object] = [f"{count:,}"]
        for contender in proxies:
            found = middle([_beside_idle(bench, contender, count) for _ in range(options.rounds)])
            row += [
                f"{found.ran.per_second:,.0f}", f"{found.ran.p99:.2f}", f"{found.cpu:,.1f}", f"{found.memory / 1e6:,.0f}"
            ]  # fmt: skip
        rows.append(row)
    heads = [f"{one.name.removeprefix('the proxy, ')}: {what}" for one in proxies for what in _IDLE_COLUMNS]
    print(f"\nIdle connections beside {BUSY} busy ones:\n\n{table(['idle', *heads], rows)}", flush=True)


_IDLE_COLUMNS = ("requests/s", "p99 ms", "CPU µs/request", "memory MB")


def _beside_idle(bench: Bench, contender: Contender, count: int) -> Measured:
    """A run while *count* connections are open, each of which was answered once and is kept."""
    host, port = contender.address.removeprefix("http://").split(":")
    request = f"GET {contender.path(bench.resources()[0])} HTTP/1.1\r\nHost: {host}\r\n"
    request += "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items()) + "\r\n"
    length = contender.length(bench.resources()[0], HEADERS)
    with ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection((host, int(port)), 30))
            connection.sendall(request.encode("ascii"))
            left = length - 64  # its head may be a word shorter
            while left > 0:
                came = connection.recv(65536)
                if not came:
                    raise RuntimeError("an idle connection was closed")
                left -= len(came)
        return bench.measure(contender, BUSY)


def aims(medians: dict[tuple[str, int], Measured]) -> bool:
    """Tell what is reached of what is to be seen; whether all of it is."""
    reached = True
    for name, beside, share in AIMS:
        ours, theirs = medians.get((name, BUSY)), medians.get((beside, BUSY))
        if ours is None or theirs is None:
            continue
        ratio = ours.ran.per_second / theirs.ran.per_second
        print(f"\n{name}: {ratio:.2f} times the requests a second of {beside} (aim: at least {share})")
        reached &= ratio >= share
        if name == HOT:
            slower = ours.ran.p99 / theirs.ran.p99
            print(f"\n{name}: {slower:.1f} times the p99 of {beside} (aim: at most {P99_AIM})")
            reached &= slower <= P99_AIM
    return reached


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.side_by_side", description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="contenders with this in their name; repeatable")
    parser.add_argument("--connections", type=_numbers, default=CONNECTIONS, help="1,32,500")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement")
    parser.add_argument("--frames", type=int, default=64, help="how many different frames are asked for in turn")
    parser.add_argument("--lists", type=_numbers, default=LISTS, help="frames in one request; empty: left out")
    parser.add_argument("--idle", type=_numbers, default=IDLE, help="idle connections; empty: left out")
    parser.add_argument("--verbose", action="store_true", help="each run, as it ends")
    parser.add_argument("proxy", nargs="*", help="more options of the proxies, after --")
    options = parser.parse_args(arguments)
    chosen = [name for name in NAMES if not options.only or any(part in name for part in options.only)]
    if not wrk.installed() or not nginx.installed():
        print("nginx and wrk are needed: apt install nginx wrk", file=sys.stderr)
        return 2
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # the servers inherit it
    end_in_order()
    with stopped_at_the_end() as children:
        with tempfile.TemporaryDirectory() as folder:
            return run(Path(folder), children, chosen, options)


def run(folder: Path, children: list[Child], chosen: Sequence[str], options: Any) -> int:
    """Start, warm, measure, tell. 1 if an aim is missed, else 0."""
    cores = sorted(os.sched_getaffinity(0))
    made = slides.slide(folder / "slide.dcm", 10, 10)
    store = Store(str(made.path), core=cores[-1])
    children.append(store)
    store_url = store.wait_until_ready()
    bench = Bench(made, options.frames, options.seconds, cores[-1])
    asked = [_asked(store_url, one) for one in bench.resources()]
    size = sum(len(answer.body) for answer in asked) // len(asked)
    field = Field(store_url, cores[0], cores[-1], tuple(options.proxy), children.append)
    running = [field.start(name, size) for name in chosen]
    for contender in running:
        bodies = [contender.warm(one, HEADERS) for one in bench.resources()]
        if contender.name not in (contenders.LEAF, KLEIN):
            check(contender, bodies, [answer.frames()[0] for answer in asked])
    print(f"{len(asked)} frames in turn, {size:,} bytes an answer; {options.rounds} rounds of {options.seconds} s")
    medians = side_by_side(bench, running, options)
    reached = aims(medians)
    if options.lists:
        lists(bench, running, options)
    if options.idle:
        idle(bench, running, options)
    return 0 if reached else 1


def _asked(url: str, one: str) -> Fetched:
    fetcher = Fetcher(url)
    answer = fetcher.get(one, HEADERS)
    fetcher.close()
    return answer


def check(contender: Contender, bodies: Sequence[bytes], expected: Sequence[bytes]) -> None:
    """Raise RuntimeError unless each body holds its frame."""
    if any(frame not in body for body, frame in zip(bodies, expected, strict=True)):
        raise RuntimeError(f"{contender.name}: another frame came")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
