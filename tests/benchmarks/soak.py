"""Mixed load for some minutes: whether memory, open files and keys that never expire stay within bounds.

Viewers who find their frames cached and who don't, metadata, pictures, STOW and DELETE, callers that come once, clients
that break off. A real proxy, a Redis server and the simulated store, each a process of its own.
Run: ``python -m tests.benchmarks.soak``; more options of the proxy after ``--``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import psutil

from tests import slides
from tests.benchmarks.measuring import (
    AS_STORED,
    Fetcher,
    RedisServer,
    end_in_order,
    stopped_at_the_end,
    store_and_proxy,
    table,
)
from tests.cache.support import find_server
from tests.running import Proxy
from tests.slides import Made
from twistedproxy.cache.redis.pipeline import command

MIB = 1 << 20
MORE_MEMORY = 16 * MIB  # of the proxy's own process, from the first third to the end, but for what new grants take
GRANT = 1500  # bytes; a worker remembers 100,000, then the least recently used go
MORE_FILES = 64
STOW_TYPE = 'multipart/related; type="application/dicom"; boundary=stow'
PAUSE = 0.01  # seconds between two requests of one caller: more would measure how fast they are
BREATH = 0.5  # seconds between two looks whether to end


@attrs.frozen
class Sample:
    """*memory* of the proxy, *children*: of its children, in bytes; *keys*, and those of them that never expire."""

    minute: float
    memory: int
    children: int
    files: int
    keys: int
    lasting: int
    grants: int
    requests: int

    def row(self) -> list[str]:
        memory = [f"{size / MIB:,.0f}" for size in (self.memory, self.children)]
        counts = [f"{count:,}" for count in (self.files, self.keys, self.lasting, self.grants, self.requests)]
        return [f"{self.minute:.1f}", *memory, *counts]


HEADS = ("minute", "proxy, MiB", "children, MiB", "open files", "keys", "without expiry", "grants", "requests")


class Callers:
    """Threads that ask, each in its own way, until `stop`."""

    def __init__(self, proxy: Proxy, kept: Made, moving: Made) -> None:
        self._proxy = proxy
        self._kept = f"dicomweb/{kept.resource}"
        self._moving = f"dicomweb/{moving.resource}"
        self._file = moving.path.read_bytes()
        self._frames = kept.frames
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.requests = 0
        self.unexpected: dict[str, int] = {}

    def start(self) -> None:
        ways: tuple[Callable[[], Iterator[int]], ...] = (
            self._hits,
            self._hits,
            self._metadata,
            self._pictures,
            self._changes,
            self._misses,
            self._strangers,
            self._broken,
        )
        for way in ways:
            self._threads.append(threading.Thread(target=self._run, args=(way,)))
            self._threads[-1].start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, way: Callable[[], Iterator[int]]) -> None:
        asked = way()
        while not self._over.wait(PAUSE):
            try:
                status = next(asked)
            except OSError as error:
                asked = way()
                status = -(error.errno or 1)
            self.requests += 1
            if status not in (0, 200, 204, 404, 409):
                key = f"{way.__name__.strip('_')}: {status}"
                self.unexpected[key] = self.unexpected.get(key, 0) + 1

    def _get(self, paths: Iterator[tuple[str, dict[str, str]]]) -> Iterator[int]:
        fetcher = Fetcher(self._proxy.url)
        try:
            for path, headers in paths:
                yield fetcher.get(path, headers).status
        finally:
            fetcher.close()

    def _frame(self) -> int:
        return random.randint(1, self._frames)

    def _hits(self) -> Iterator[int]:
        return self._get((f"{self._kept}/frames/{self._frame()}", {"Accept": AS_STORED}) for _ in itertools.count())

    def _metadata(self) -> Iterator[int]:
        return self._get((f"{self._kept}/metadata", {"Accept": "application/dicom+json"}) for _ in itertools.count())

    def _pictures(self) -> Iterator[int]:
        query = "viewport={0},{0}"
        return self._get(
            (f"{self._kept}/frames/{self._frame()}/rendered?{query.format(random.randint(16, 64))}", {})
            for _ in itertools.count()
        )

    def _misses(self) -> Iterator[int]:
        """Of the instance that comes and goes, so that what was cached of it never serves long."""
        return self._get((f"{self._moving}/frames/1", {"Accept": AS_STORED}) for _ in itertools.count())

    def _strangers(self) -> Iterator[int]:
        """Each comes once, and wins a grant."""
        return self._get(
            (f"{self._kept}/frames/1", {"Accept": AS_STORED, "Authorization": f"Bearer {random.random()}"})
            for _ in itertools.count()
        )

    def _changes(self) -> Iterator[int]:
        body = b"--stow\r\nContent-Type: application/dicom\r\n\r\n" + self._file + b"\r\n--stow--\r\n"
        head = f"POST /dicomweb/studies HTTP/1.1\r\nHost: soak\r\nContent-Type: {STOW_TYPE}\r\n"
        store = head.encode() + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        delete = f"DELETE /{self._moving} HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n\r\n".encode()
        for request in itertools.cycle((store, delete)):
            with socket.create_connection(("127.0.0.1", self._proxy.port), 30) as connection:
                connection.sendall(request)
                yield int(connection.makefile("rb").readline().split()[1])

    def _broken(self) -> Iterator[int]:
        """Half a request, or an answer that is not read to its end."""
        request = f"GET /{self._kept}/metadata HTTP/1.1\r\nHost: soak\r\n\r\n".encode()
        while True:
            for part in (request, request[: len(request) // 2], b"\x16\x03\x01\x02"):
                with socket.create_connection(("127.0.0.1", self._proxy.port), 30) as connection:
                    connection.sendall(part)
                yield 0


def sample(proxy: Proxy, redis: int, began: float, requests: int) -> Sample:
    """How things stand. *redis*: the port of the cache server."""
    process = psutil.Process(proxy.pid)
    children = sum(child.memory_info().rss for child in process.children(recursive=True))
    keys, lasting = _keys(redis)
    minute = (time.monotonic() - began) / 60
    fetcher = Fetcher(proxy.url)
    grants = json.loads(fetcher.get("status.json").body)["workers"][0]["grants"]
    fetcher.close()
    return Sample(minute, process.memory_info().rss, children, process.num_fds(), keys, lasting, grants, requests)


def _keys(port: int) -> tuple[int, int]:
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(command(b"INFO", b"keyspace"))
        answer = connection.makefile("rb")
        text = answer.read(int(answer.readline()[1:])).decode()
    counts = dict(
        field.split("=") for line in text.splitlines() if ":" in line for field in line.split(":")[1].split(",")
    )
    keys = int(counts.get("keys", 0))
    return keys, keys - int(counts.get("expires", 0))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("proxy", nargs="*", help="more options of the proxy, after --")
    options = parser.parse_args(arguments)
    end_in_order()
    if find_server() is None:
        print("there is no cache server")
        return 0
    with stopped_at_the_end() as children, tempfile.TemporaryDirectory() as folder:
        kept = slides.slide(Path(folder) / "kept.dcm", 12, 12, 64)
        moving = slides.slide(Path(folder) / "moving.dcm", 4, 5, 64)
        redis = RedisServer("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
        children.append(redis)
        more = ("--cache", redis.url, "--hot-memory", "16M", "--grant-ttl", "60", *options.proxy)
        _, proxy = store_and_proxy(children, [kept.path, moving.path], *more)
        return run(proxy, redis.port, kept, moving, options)


def run(proxy: Proxy, port: int, kept: Made, moving: Made, options: argparse.Namespace) -> int:
    """1 if memory, files or lasting keys grew beyond their bounds after the first third, or answers were wrong."""
    callers = Callers(proxy, kept, moving)
    callers.start()
    samples = []
    began = time.monotonic()
    try:
        for number in range(1, options.samples + 1):
            due = began + options.minutes * 60 * number / options.samples
            while proxy.running() and time.monotonic() < due:
                time.sleep(min(BREATH, max(0.0, due - time.monotonic())))
            samples.append(sample(proxy, port, began, callers.requests))
    finally:
        callers.stop()
    print(table(HEADS, [one.row() for one in samples]))
    first, last = samples[len(samples) // 3], samples[-1]
    memory = last.memory - first.memory - GRANT * (last.grants - first.grants)
    grown = memory, last.files - first.files, last.lasting - first.lasting
    print(f"\nafter the first third: {grown[0] / MIB:+,.0f} MiB besides grants, {grown[1]:+} files, {grown[2]:+} keys without expiry; "
          f"unexpected answers: {callers.unexpected or 'none'}")  # fmt: skip
    return int(grown[0] > MORE_MEMORY or grown[1] > MORE_FILES or grown[2] > 0 or bool(callers.unexpected))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
