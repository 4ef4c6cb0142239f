"""How fast a whole instance comes into the cache, beside reading it and beside writing it; in how much memory;
and what other callers notice of it.

A simulated store (and Orthanc, where it is installed), a Redis server and a proxy run as processes of their own.
Run: ``python -m tests.benchmarks.instance_load``; more options of the proxy after ``--``.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Optional
from urllib.parse import urlsplit

from tests import slides
from tests.benchmarks.callers import CALLERS, Caller, of_all
from tests.benchmarks.measuring import (
    AS_STORED,
    LOOK_SECONDS,
    TIMEOUT,
    Fetcher,
    end_in_order,
    median,
    table,
    wait_until_quiet,
)
from tests.cache.support import find_server
from tests.running import Child, Proxy, Store
from tests.slides import Made
from tests.stores import orthanc
from twistedproxy.cache.keys import instance_keys
from twistedproxy.cache.local.facts import NAME as FACTS
from twistedproxy.cache.local.facts import Facts
from twistedproxy.cache.local.generations import Generations
from twistedproxy.cache.local.index import EntryIndex
from twistedproxy.cache.local.reading import keys_of
from twistedproxy.cache.redis import pipeline
from twistedproxy.cache.redis.keys import ended_keys, redis_keys
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.entries import frame_name

ACCEPT_INSTANCE = 'multipart/related; type="application/dicom"; transfer-syntax=*'
WAIT_SECONDS = 60.0
BATCH = 200  # SETs written as one piece
TIMES = 3  # raw SETs that a load may take longer than reading
ANSWER_SECONDS = 0.05  # a store that takes longer for one frame is not what a load is measured by
SLOW = 20_000_000  # bytes a second of the slowed store
OTHER = "2.25.1111"  # the instance that others look at meanwhile
MOST_TIMES = 2.0  # that they may wait longer beside loads
SECONDS = 3  # that they ask
SETTLING = 0.2  # seconds until a load is under way
MIB = 1 << 20
LOCAL_SIZE = "4G"


class LocalFolder:
    """The folder of a local cache, looked into from here."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="local-"))
        self.path.chmod(0o700)

    def open(self) -> None:
        """Look into it: the proxy has prepared it."""
        self.index, self.generations = EntryIndex(self.path), Generations(self.path)
        self.facts = Facts(self.path, (self.path / FACTS).stat().st_size, time.time)

    def has(self, instance: Instance, name: bytes) -> bool:
        """Whether an entry is there, and not invalidated."""
        (entry,) = self.index.find(keys_of(instance, [name]))
        fence = self.generations.fence(instance_keys(instance).generations)
        return entry is not None and entry.fence >= int.from_bytes(fence, "big")

    def forget(self, instance: Instance, frames: int) -> None:
        """Remove frames, and all claims. (An invalidation waits for the disk, and has others wait who write to it.)"""
        self.index.remove_all(keys_of(instance, [frame_name(number) for number in range(1, frames + 1)]))
        self.facts.begin_anew()

    def remove(self) -> None:
        """Delete it; the proxy has ended."""
        shutil.rmtree(self.path, ignore_errors=True)


class Redis(Child):
    """A server with a connection to it."""

    def __init__(self, *options: str) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="redis-"))
        self.path = str(self.place / "socket")
        server = find_server()
        if server is None:
            raise SystemExit("redis-server or valkey-server is needed")
        super().__init__([server, "--port", "0", "--unixsocket", self.path, "--save", "", *options])
        deadline = time.monotonic() + WAIT_SECONDS
        while not Path(self.path).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(self.path)
        self._stream = self._socket.makefile("rb")

    def ask(self, *arguments: bytes) -> bytes:
        """The first line of the answer to one command; for answers of one line."""
        self._socket.sendall(pipeline.command(*arguments))
        return self._stream.readline()

    def set_all(self, entries: Sequence[tuple[bytes, bytes]]) -> float:
        """Seconds that raw SETs take, in pieces of `BATCH`, each answered before the next is sent."""
        start = time.perf_counter()
        for first in range(0, len(entries), BATCH):
            part = entries[first : first + BATCH]
            self._socket.sendall(b"".join(pipeline.set_entries(b"", part, None)))
            for _ in part:
                self._stream.readline()
        return time.perf_counter() - start

    def remove(self) -> None:
        super().remove()
        shutil.rmtree(self.place, ignore_errors=True)


class Bench:
    """One instance at one store, a proxy and its cache."""

    patience = 0.002
    """Seconds between two looks whether a frame is in the cache: what is measured may be so much too long."""

    def __init__(
        self, store_url: str, made: Made, redis: Redis, proxy: Proxy, local: Optional[LocalFolder] = None
    ) -> None:
        self.made, self.redis, self.proxy, self.local = made, redis, proxy, local
        self.direct = urlsplit(store_url)
        self.instance = Instance(store_url, "", made.study, made.series, made.sop)
        self._fetcher = Fetcher(f"{proxy.url}/dicomweb")

    def read_and_drop(self) -> float:
        """Seconds to read the stored instance from the store."""
        connection = http.client.HTTPConnection(self.direct.hostname or "", self.direct.port, timeout=TIMEOUT)
        start = time.perf_counter()
        path = f"{self.direct.path}/{self.made.resource}"
        connection.request("GET", path, headers={"Accept": ACCEPT_INSTANCE})
        answer = connection.getresponse()
        while answer.read(512 * 1024):
            pass
        connection.close()
        return time.perf_counter() - start

    def raw_sets(self, frames: Sequence[bytes]) -> float:
        """Seconds to write *frames* under keys like ours."""
        return self.redis.set_all([(b"raw{bench}" + frame_name(n), frame) for n, frame in enumerate(frames)])

    def has(self, number: int) -> bool:
        if self.local is not None:
            return self.local.has(self.instance, frame_name(number))
        return self.redis.ask(b"EXISTS", redis_keys(self.instance).entry(frame_name(number))) == b":1\r\n"

    def forget(self, everything: bool = True) -> None:
        """Let the cache forget the instance, its lock included."""
        if self.local is not None:
            self.local.forget(self.instance, self.made.frames)
            return
        if everything:
            self.redis.ask(b"FLUSHALL")
            return
        self.redis.ask(b"DEL", *ended_keys(self.instance.scope))
        names = map(frame_name, (1, self.made.frames))
        self.redis.ask(b"DEL", *redis_keys(self.instance).entries(names))

    def trigger(self) -> None:
        answer = self._fetcher.frames(self.made.resource, [1], AS_STORED)
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {answer.body[:300]!r}")

    def load(self) -> tuple[float, float]:
        """Seconds from the triggering request to the last frame in the cache, and of these to the request's answer:
        the store's time for the metadata and one frame."""
        start = time.perf_counter()
        self.trigger()
        answered = time.perf_counter()
        self.wait_for(self.made.frames)
        took = time.perf_counter() - start
        self.wait_until_quiet()  # what is forgotten under a load would be the load's end
        return took, answered - start

    def wait_until_quiet(self) -> None:
        """Wait until no prefetch runs."""
        wait_until_quiet(self.proxy.url, WAIT_SECONDS)

    def wait_for(self, number: int) -> None:
        deadline = time.perf_counter() + WAIT_SECONDS
        while not self.has(number):
            if time.perf_counter() > deadline:
                raise RuntimeError(f"frame {number} never came into the cache: {self.proxy.output()[-2000:]}")
            time.sleep(self.patience)

    def compare(self, frames: Sequence[bytes]) -> int:
        """How many frames differ, through the proxy, from *frames*."""
        wrong = 0
        for first in range(0, len(frames), 400):
            numbers = range(first + 1, min(first + 400, len(frames)) + 1)
            got = self._fetcher.frames(self.made.resource, list(numbers)).frames()
            wrong += sum(a != b for a, b in zip(got, frames[first : first + 400], strict=True))
        return wrong

    def child_peak(self) -> int:
        """Bytes of memory that the loader child had at most."""
        for process in self.proxy.family():
            if "twistedproxy.prefetch.loader_main" in process.cmdline():
                found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
                return int(found[1]) * 1024 if found else 0
        raise RuntimeError("the proxy has no child")


def started(stack: ExitStack, child: Any) -> Any:
    stack.callback(child.remove)
    return child


def bench(stack: ExitStack, store_url: str, made: Made, options: Any, *redis_options: str) -> Bench:
    redis = started(stack, Redis(*redis_options))
    local = started(stack, LocalFolder()) if options.local else None
    cache = f"unix:{redis.path}" if local is None else f"local:{local.path}?size={LOCAL_SIZE}"
    more = ["--origin", f"/dicomweb={store_url}", "--cache", cache, "--whole-instance-max-cpu", "100"]
    more += ["--hot-memory", "0"]  # an answer from memory triggers nothing
    proxy = started(stack, Proxy(*more, *options.proxy, core=options.core)).wait_until_ready()
    if local is not None:
        local.open()
    return Bench(store_url, made, redis, proxy, local)


def simulated(stack: ExitStack, *paths: Path | str) -> str:
    return str(started(stack, Store(*map(str, paths))).wait_until_ready())


def speed(name: str, one: Bench, frames: Sequence[bytes], rounds: int) -> tuple[list[object], bool]:
    """A row: medians, and whether they are within the limit."""
    reading, writing, loading, answering = [], [], [], []
    one.load()  # once, so that nothing is done for the first time
    wrong = one.compare(frames)
    for _ in range(rounds):
        one.forget()
        reading.append(one.read_and_drop())
        writing.append(one.raw_sets(frames))
        one.forget()
        time.sleep(0.2)  # what was freed is being freed in the server's background
        took, answered = one.load()
        loading.append(took)
        answering.append(answered)
    read, write, took, answered = map(median, (reading, writing, loading, answering))
    limit = answered + read + TIMES * write if answered > ANSWER_SECONDS else read + TIMES * write
    figures = [f"{seconds:.3f}" for seconds in (read, write, answered, took, limit)]
    return [name, *figures, f"{took / limit:.2f}", wrong], took <= limit and not wrong


def first_frames(stack: ExitStack, made: Made, options: Any) -> float:
    """The share of an instance's time at `SLOW` bytes a second after which a frame of it is in the cache."""
    slowed = started(stack, Store("--bytes-per-second", str(SLOW), str(made.path))).wait_until_ready()
    one = bench(stack, str(slowed), made, options)
    one.trigger()
    start = time.perf_counter()
    one.wait_for(2)
    share = (time.perf_counter() - start) / (made.path.stat().st_size / SLOW)
    return share


def large(path: Path, size: int) -> Made:
    """A file of about *size* bytes, written without holding it: native frames, all with the same pixels."""
    small = slides.slide(path, 1, 100, encoding="raw")
    frame = small.stored_frames()[0]
    rows = max(1, size // len(frame) // 100)
    empty = slides.slide(path, 1, 1, encoding="raw", extra={"NumberOfFrames": rows * 100}, total_rows=rows * 256,
                         total_columns=25_600)  # fmt: skip
    content = path.read_bytes()
    place = content.rindex(b"\xe0\x7f\x10\x00OB\x00\x00")
    with path.open("wb") as file:
        file.write(content[: place + 8] + (rows * 100 * len(frame)).to_bytes(4, "little"))
        for _ in range(rows * 100):
            file.write(frame)
    return Made(path, empty.study, empty.series, empty.sop, rows * 100, 256, 256, empty.encoding)


def others(stack: ExitStack, folder: Path, made: Made, options: Any) -> Iterator[tuple[Caller, float, float, float]]:
    """Each kind of caller, its milliseconds at the 99th percentile of cached frames without a load and beside loads, in
    turns, and the seconds that a load takes then."""
    looked_at = slides.slide(folder / "other.dcm", 3, 3, sop=OTHER)  # fewer frames than are prefetched
    store = started(stack, Store(str(made.path), str(looked_at.path)))
    url = str(store.wait_until_ready())
    with contextlib.suppress(OSError, AttributeError):  # a store has a computer of its own: see `callers`
        os.sched_setscheduler(store.pid, os.SCHED_IDLE, os.sched_param(0))
    one = bench(stack, url, made, options)
    Fetcher(f"{one.proxy.url}/dicomweb").frames(looked_at.resource, range(1, 10))
    paths = [f"/dicomweb/{looked_at.resource}/frames/{number}" for number in range(1, 10)]
    one.patience = LOOK_SECONDS
    for caller in CALLERS:
        quiet, beside, took = [], [], []
        for _ in range(options.rounds):
            quiet.append(caller.ask(one.proxy.url, paths, {"Accept": "image/jpeg"}, SECONDS, options.core))
            with loads(one, took):
                beside.append(caller.ask(one.proxy.url, paths, {"Accept": "image/jpeg"}, SECONDS, options.core))
        yield caller, of_all(quiet), of_all(beside), median(took)


@contextmanager
def loads(one: Bench, took: list[float]) -> Iterator[None]:
    """Have the instance loaded again and again, without a pause. *took*: the seconds of each load."""
    over = threading.Event()

    def keep_loading() -> None:
        while not over.is_set():
            one.forget(everything=False)
            took.append(one.load()[0])

    thread = threading.Thread(target=keep_loading)
    thread.start()
    time.sleep(SETTLING)
    try:
        yield
    finally:
        over.set()
        thread.join()


def report(folder: Path, options: Any) -> Iterator[bool]:
    made = slides.slide(folder / "slide.dcm", options.side, options.side)
    frames = made.stored_frames()
    size = made.path.stat().st_size
    print(f"{made.frames} frames, {size / 1e6:.0f} MB; medians of {options.rounds}, in seconds", flush=True)
    rows = []
    with ExitStack() as stack:
        one = bench(stack, simulated(stack, made.path), made, options)
        row, good = speed("simulated store", one, frames, options.rounds)
        rows.append(row)
        yield good
        peak = one.child_peak()
    if orthanc.available() and not options.no_orthanc:
        with ExitStack() as stack:
            store = orthanc.Orthanc().start()
            stack.callback(store.stop)
            store.store(made.path)
            row, good = speed("Orthanc", bench(stack, store.url, made, options), frames, options.rounds)
            rows.append(row)
            yield good
    heads = [
        "store",
        "read and drop",
        "raw SETs",
        "to the answer",
        "to the last frame",
        "limit",
        "of it",
        "wrong frames",
    ]
    print(table(heads, rows), flush=True)
    with ExitStack() as stack:
        share = first_frames(stack, made, options)
        print(f"store at {SLOW / 1e6:.0f} MB/s: frame 2 in the cache after {share:.1%} of the time", flush=True)
        yield share < 0.1
    with ExitStack() as stack:
        rows = []
        for caller, quiet, beside, took in others(stack, folder, made, options):
            times = beside / quiet
            rows.append([caller.name, *(f"{value:.2f}" for value in (quiet, beside, times, took))])
            yield times <= MOST_TIMES
    print(table(["cached frames of another", "p99 ms", "beside loads", "times", "a load takes s"], rows), flush=True)
    if options.large:
        made = large(folder / "large.dcm", int(options.large * 1e9))
        size = made.path.stat().st_size
        with ExitStack() as stack:
            bounded = ("--maxmemory", str(512 * MIB), "--maxmemory-policy", "allkeys-lru")
            one = bench(stack, simulated(stack, made.path), made, options, *bounded)
            took, _ = one.load()
            most = one.child_peak()
        print(f"child's peak memory: {peak / MIB:.0f} MiB; with {size / 1e9:.1f} GB {most / MIB:.0f} MiB "
              f"({size / took / 1e6:.0f} MB/s)", flush=True)  # fmt: skip
        yield most < 100 * MIB and abs(most - peak) < 10 * MIB


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.instance_load", description=__doc__)
    parser.add_argument("--side", type=int, default=100, help="frames along the side of the slide")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", type=float, default=2.0, help="GB of the large instance; 0: none")
    parser.add_argument("--core", type=int, default=None, help="processor core of the proxy, its child and wrk")
    parser.add_argument("--local", action="store_true", help="into a local cache; else into Redis")
    parser.add_argument("--no-orthanc", action="store_true")
    parser.add_argument("proxy", nargs="*", help="more options of the proxy")
    options = parser.parse_args()
    end_in_order()
    with tempfile.TemporaryDirectory() as folder:
        good = list(report(Path(folder), options))
    print("all within their limits" if all(good) else "not within all limits")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
