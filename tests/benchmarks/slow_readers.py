"""Many callers who slowly read large lists of frames: how much memory the proxy takes for them, how long others wait
meanwhile, and how fast one reader alone gets the same list.

Run: ``python -m tests.benchmarks.slow_readers``; more options of the proxy after ``--``.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests import slides
from tests.benchmarks.measuring import (
    AS_STORED,
    TIMEOUT,
    Fetcher,
    end_in_order,
    median,
    stopped_at_the_end,
    store_and_proxy,
    table,
)
from tests.running import MemoryWatch, Proxy

MIB = 1 << 20
SIDE = 1024  # pixels: a frame of 8 bits a pixel is a MiB
GROWTH = 10 * MIB  # that one reader may cost, however long its list is: some batches, and what allocators keep
LATE = 0.25  # seconds that somebody else may wait; what a busy machine adds is in it
LOOK = 0.02  # seconds between two looks at how long that is
PIECE = 64 * 1024


class SlowReader(threading.Thread):
    """Reads one answer at *rate* bytes a second, with little room for what it has not read yet."""

    def __init__(self, port: int, target: str, rate: float) -> None:
        super().__init__()
        self._rate = rate
        self._connection = socket.socket()
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE)
        self._connection.settimeout(TIMEOUT)
        self._connection.connect(("127.0.0.1", port))
        head = f"GET {target} HTTP/1.1\r\nHost: slow\r\nAccept: {AS_STORED}\r\nConnection: close\r\n\r\n"
        self._connection.sendall(head.encode("ascii"))
        self.start_line = b""
        self.size = 0

    def run(self) -> None:
        began = time.monotonic()
        with self._connection:
            while piece := self._connection.recv(PIECE):
                self.start_line = self.start_line or piece.partition(b"\r\n")[0]
                self.size += len(piece)
                ahead = self.size / self._rate - (time.monotonic() - began)
                if ahead > 0:
                    time.sleep(ahead)


class Bystander(threading.Thread):
    """Asks for something small all the time; `worst`: the longest that it waited, in seconds."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._fetcher = Fetcher(url)
        self._over = threading.Event()
        self.worst = 0.0

    def run(self) -> None:
        while not self._over.wait(LOOK):
            self.worst = max(self.worst, self._fetcher.get("healthz").seconds)
        self._fetcher.close()

    def stop(self) -> float:
        """The longest that it waited."""
        self._over.set()
        self.join()
        return self.worst


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.slow_readers", description=__doc__)
    parser.add_argument("--readers", type=int, default=10)
    parser.add_argument("--frames", type=int, default=200, help="of a MiB each, in every list")
    parser.add_argument("--rate", type=float, default=5, help="MB/s of each reader")
    parser.add_argument("--rounds", type=int, default=5, help="of one fast reader")
    parser.add_argument("proxy", nargs="*", help="more options of the proxy, after --")
    options = parser.parse_args(arguments)
    end_in_order()
    with stopped_at_the_end() as children, tempfile.TemporaryDirectory() as folder:
        made = slides.loop(Path(folder) / "loop.dcm", options.frames, SIDE, SIDE, "raw-gray")
        more = ("--cache-memory", f"{2 * options.frames + 64}M", "--prefetch", "off", *options.proxy)
        _, proxy = store_and_proxy(children, [made.path], *more)
        return run(proxy, f"dicomweb/{made.resource}/frames/", options)


def run(proxy: Proxy, below: str, options: argparse.Namespace) -> int:
    """1 if the readers cost more memory than they may, lost bytes, or kept somebody else waiting, else 0."""
    fetcher = Fetcher(proxy.url)
    for number in range(1, options.frames + 1):
        fetcher.get(f"{below}{number}", {"Accept": AS_STORED})
    target = below + ",".join(map(str, range(1, options.frames + 1)))
    rows = []
    seconds = []
    bystander = Bystander(proxy.url)
    bystander.start()
    with MemoryWatch(proxy.pid) as watch:
        for _round in range(options.rounds):
            answer = fetcher.get(target, {"Accept": AS_STORED})
            seconds.append(answer.seconds)
    fetcher.close()
    status, size = answer.status, len(answer.body)
    rows.append(_row("1, fast", size / MIB / median(seconds), watch, bystander.stop()))
    bystander = Bystander(proxy.url)
    bystander.start()
    began = time.monotonic()
    with MemoryWatch(proxy.pid) as watch:
        readers = [SlowReader(proxy.port, f"/{target}", options.rate * 1e6) for _ in range(options.readers)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
    slowly = size * options.readers / MIB / (time.monotonic() - began)
    late = bystander.stop()
    rows.append(_row(f"{options.readers}, slow", slowly, watch, late))
    print(table(["readers", "MiB/s", "RSS before, MiB", "growth, MiB", "another waits at most, ms"], rows))
    whole = [reader for reader in readers if reader.start_line.endswith(b" 200 OK") and reader.size > size]
    print(f"\n{len(whole)} of {len(readers)} slow readers had all of {size / MIB:,.0f} MiB; allowed: "
          f"{GROWTH * options.readers / MIB:,.0f} MiB, {LATE * 1e3:.0f} ms")  # fmt: skip
    short = status != 200 or len(whole) < len(readers)
    return int(short or watch.growth > GROWTH * options.readers or late > LATE)


def _row(who: str, rate: float, watch: MemoryWatch, late: float) -> list[str]:
    memory = [f"{watch.before / MIB:,.0f}", f"{watch.growth / MIB:,.0f}"]
    return [who, f"{rate:,.0f}", *memory, f"{late * 1e3:,.0f}"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
