"""Callers of cached frames, at the pace of viewers or without a pause, and how long they wait.

A caller at a pace asks when its requests are due, at random moments around so many a second, on the connections that a
browser opens. A request's time runs from when it was due: what waits behind a late answer waits, too (leaving that out is
known as coordinated omission). The process that asks goes before all others where it may: viewers have computers of their
own, and what it waits for a processor here is not the server's.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Optional
from urllib.parse import urlsplit

import attrs

from tests.benchmarks.load import Load, load
from tests.benchmarks.measuring import median, percentile
from tests.running import pinned, python_environment, tied

BROWSER = 6  # connections that browsers open to one host
SOON = 0.05  # seconds until the first request
PRIORITY = 5  # of SCHED_RR; any goes before what has none


@attrs.frozen
class Caller:
    """Who asks on *connections*: *per_second* times, or (None) without a pause on each."""

    name: str
    connections: int
    per_second: Optional[float] = None

    def ask(
        self, url: str, paths: Sequence[str], headers: Mapping[str, str], seconds: int, core: Optional[int] = None
    ) -> Load:
        """Ask *url* for *paths* in turn."""
        if self.per_second is None:
            return load(url, paths, headers, self.connections, seconds, core)
        work = [url, paths, dict(headers), self.connections, self.per_second, seconds]
        command = tied(pinned([sys.executable, "-m", "tests.benchmarks.callers"], core))
        environment = python_environment()
        output = subprocess.run(
            command, input=json.dumps(work).encode(), check=True, capture_output=True, env=environment
        )
        rate, p99, failed = json.loads(output.stdout)
        return Load(rate, p99, failed)


CALLERS = (
    Caller("a viewer, 50 a second", BROWSER, 50),
    Caller("four viewers, 200 a second", BROWSER, 200),
    Caller("twenty viewers, 1,000 a second", BROWSER, 1000),
    Caller("6 connections without a pause", BROWSER),
    Caller("1 connection without a pause", 1),
)


def of_all(loads: Sequence[Load]) -> float:
    """The median of p99, in milliseconds. Raises RuntimeError where an answer was no 200."""
    if any(one.failed or one.p99 is None for one in loads):
        raise RuntimeError(f"answers were no 200, or nothing was measured: {loads}")
    return median([one.p99 or 0.0 for one in loads])


@attrs.define(eq=False)
class _Connection:
    """One that keeps its request's time. *due*: when that was to be sent."""

    socket: socket.socket
    due: float = 0.0
    answer: bytearray = attrs.Factory(bytearray)
    size: int = 0

    def send(self, request: bytes, due: float) -> None:
        self.due, self.size = due, 0
        self.answer.clear()
        self.socket.sendall(request)

    def complete(self) -> bool:
        """Take what came; whether that was all."""
        came = self.socket.recv(1 << 20)
        if not came:
            raise ConnectionError("the server closed the connection")
        self.answer += came
        if not self.size and (end := self.answer.find(b"\r\n\r\n")) >= 0:
            length = self.answer[:end].lower().partition(b"content-length:")[2].split(b"\r\n")[0]
            self.size = end + 4 + int(length)
        return bool(self.size) and len(self.answer) >= self.size


def paced(
    url: str, paths: Sequence[str], headers: Mapping[str, str], connections: int, per_second: float, seconds: float
) -> tuple[list[float], int]:
    """Seconds that each request took, from when it was due, and how many answers were no 200."""
    parts = urlsplit(url)
    fields = "".join(f"{name}: {value}\r\n" for name, value in {"Host": parts.netloc, **headers}.items())
    requests = deque(f"GET {path} HTTP/1.1\r\n{fields}\r\n".encode() for path in paths)
    address = parts.hostname or "", parts.port or 80
    free = [_Connection(socket.create_connection(address)) for _ in range(connections)]
    asked = selectors.SelectSelector()  # epoll counts in milliseconds
    due = _moments(per_second, seconds)
    taken: list[float] = []
    failed = 0
    while due or len(free) < connections:
        while due and free and due[0] <= time.perf_counter():
            one = free.pop()
            one.send(requests[0], due.popleft())
            requests.rotate(-1)
            asked.register(one.socket, selectors.EVENT_READ, one)
        wait = max(0.0, due[0] - time.perf_counter()) if due and free else None
        for key, _ in asked.select(wait):
            one = key.data
            if one.complete():
                taken.append(time.perf_counter() - one.due)
                failed += not one.answer.startswith(b"HTTP/1.1 200 ")
                asked.unregister(one.socket)
                free.append(one)
    for one in free:
        one.socket.close()
    return taken, failed


def _moments(per_second: float, seconds: float) -> deque[float]:
    """When requests are due: the same moments each time."""
    chance = random.Random(1)
    moment, moments = time.perf_counter() + SOON, deque[float]()
    end = moment + seconds
    while (moment := moment + chance.expovariate(per_second)) < end:
        moments.append(moment)
    return moments


def main() -> None:
    """Do what standard input says, and print answers a second, p99 in milliseconds, and failures, as JSON."""
    work: list[Any] = json.load(sys.stdin)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))
    gc.disable()
    taken, failed = paced(*work)
    print(json.dumps([len(taken) / work[-1], percentile(taken, 0.99) * 1000, failed]))


if __name__ == "__main__":
    main()
