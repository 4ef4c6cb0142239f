"""What the benchmarks share: a plain HTTP client without any cleverness, percentiles, Markdown tables."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Optional
from urllib.parse import urlsplit

import attrs

from tests.cache.support import find_server
from tests.clients import split_multipart
from tests.running import Child, Proxy, Store, free_port, pinned

AS_STORED = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
DECOMPRESSED = 'multipart/related; type="application/octet-stream"'
AS_JPEG = 'multipart/related; type="image/jpeg"'
TIMEOUT = 600.0  # seconds; some stores take minutes
LOOK_SECONDS = (
    0.25  # between two looks whether a prefetch still runs: a look takes the proxy 1 ms, in which others wait
)


@attrs.frozen
class Fetched:
    """One answer and how long it took, in seconds, to its last byte; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    def frames(self) -> list[bytes]:
        """The parts of a multipart answer."""
        if self.status != 200:
            raise RuntimeError(f"{self.status}: {self.body[:300]!r}")
        return [part.body for part in split_multipart(self.headers["content-type"], self.body)]


class Fetcher:
    """Requests below *url*, one after the other, on one connection as long as the server keeps it."""

    def __init__(self, url: str, seconds: float = TIMEOUT) -> None:
        parts = urlsplit(url)
        self._root = parts.path.rstrip("/")
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)

    def get(self, path: str, headers: Optional[Mapping[str, str]] = None) -> Fetched:
        """GET; asked once more on a fresh connection if the server had closed the kept one."""
        start = time.perf_counter()
        try:
            return self._get(path, headers or {}, start)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            self._connection.close()
            return self._get(path, headers or {}, time.perf_counter())

    def _get(self, path: str, headers: Mapping[str, str], start: float) -> Fetched:
        self._connection.request("GET", f"{self._root}/{path}", headers=dict(headers))
        answer = self._connection.getresponse()
        body = answer.read()
        seconds = time.perf_counter() - start
        return Fetched(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body, seconds)

    def frames(self, resource: str, numbers: Sequence[int], accept: str = AS_STORED) -> Fetched:
        """Frames of an instance."""
        return self.get(f"{resource}/frames/{','.join(map(str, numbers))}", {"Accept": accept})

    def close(self) -> None:
        self._connection.close()


def end_in_order() -> None:
    """Make SIGTERM raise SystemExit, so that what was started is stopped and what was written is removed."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))


@contextlib.contextmanager
def stopped_at_the_end() -> Iterator[list[Child]]:
    """A list for the processes that are started: at the end they are stopped and what they left is removed, the last
    one first."""
    children: list[Child] = []
    try:
        yield children
    finally:
        for child in reversed(children):
            child.stop()
            child.remove()


def wait_until_quiet(url: str, seconds: float) -> None:
    """Wait until no prefetch runs in the proxy at *url*. Raises RuntimeError after so many *seconds*."""
    deadline = time.perf_counter() + seconds
    while json.load(urllib.request.urlopen(f"{url}/status.json", timeout=TIMEOUT))["jobs"]["running"]:
        if time.perf_counter() > deadline:
            raise RuntimeError("a prefetch never ended")
        time.sleep(LOOK_SECONDS)


def store_and_proxy(
    children: list[Child],
    paths: Sequence[Path],
    *options: str,
    store_core: Optional[int] = None,
    core: Optional[int] = None,
) -> tuple[str, Proxy]:
    """Start a store that has the files at *paths*, and a proxy with *options* in front of it; both are added to *children*.
    The store's URL, and the proxy, which is ready."""
    store = Store(*map(str, paths), core=store_core)
    children.append(store)
    url = store.wait_until_ready()
    proxy = Proxy("--origin", url, *options, core=core)
    children.append(proxy)
    return url, proxy.wait_until_ready()


class RedisServer(Child):
    """A server on *core* that speaks the Redis protocol and keeps nothing on the disk. Raises RuntimeError where none is installed."""

    def __init__(self, *options: str, core: Optional[int] = None) -> None:
        server = find_server()
        if server is None:
            raise RuntimeError("redis-server or valkey-server is needed")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        where = ("--port", str(self.port), "--bind", "127.0.0.1", "--save", "")
        super().__init__(pinned([server, *where, *options], core))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least *share* (0 to 1) of *values* do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)]


def milliseconds(values: Sequence[float]) -> list[str]:
    """p50 and p95 of seconds, as milliseconds."""
    return [_three_digits(percentile(values, share) * 1000) for share in (0.5, 0.95)]


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first to the right."""
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def alternating(rounds: int, *contenders: Callable[[], float]) -> list[list[float]]:
    """Results of each contender, measured in turns so that what disturbs the machine disturbs all."""
    results: list[list[float]] = [[] for _ in contenders]
    for turn in range(rounds):
        order = list(enumerate(contenders))
        for place, measure in order if turn % 2 == 0 else reversed(order):
            results[place].append(measure())
    return results


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
