"""Thousands of idle connections, and hundreds that send one byte a second: whether others wait for them.

Run: ``python -m tests.benchmarks.idle``; more options of the proxy after ``--``. The limit of open files must be above
the number of connections, here and in the proxy (``ulimit -n``).
"""

from __future__ import annotations

import argparse
import selectors
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack

from tests.benchmarks.load import load
from tests.benchmarks.measuring import Fetcher, end_in_order, stopped_at_the_end, store_and_proxy, table
from tests.running import Proxy

SLOWER = 1.5  # times: what 5,000 and 200 others may cost in requests a second
LATE = 2.0  # seconds after the deadline in which a slow one must be gone
HEADERS = {"Accept": 'multipart/related; type="application/octet-stream"; transfer-syntax=*'}


class SlowSenders:
    """*count* connections on each of which a request's head comes at one byte a second, from a thread."""

    def __init__(self, port: int, count: int) -> None:
        self.ended: list[float] = []
        self._began: dict[socket.socket, float] = {}
        self._over = threading.Event()
        self._selector = selectors.DefaultSelector()
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", port), 30)
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ)
            self._began[connection] = time.monotonic()
            connection.send(b"G")
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        head = b"ET /healthz HTTP/1.1\r\nHost: slow\r\nX-Slow: " + b"x" * 8000
        for turn in range(len(head)):
            begun = time.monotonic()
            for connection in list(self._began):
                try:
                    connection.send(head[turn : turn + 1])
                except OSError:
                    self._end(connection)
            while not self._over.is_set() and (left := begun + 1 - time.monotonic()) > 0:
                for key, _ in self._selector.select(min(left, 0.2)):
                    if isinstance(key.fileobj, socket.socket):
                        self._end(key.fileobj)
            if self._over.is_set() or not self._began:
                return

    def _end(self, connection: socket.socket) -> None:
        self.ended.append(time.monotonic() - self._began.pop(connection))
        self._selector.unregister(connection)
        connection.close()

    def wait(self, seconds: float) -> int:
        """Wait until all were dropped, for *seconds* at most. How many were not."""
        self._thread.join(seconds)
        self._over.set()
        self._thread.join()
        left = len(self._began)
        for connection in self._began:
            connection.close()
        return left


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.idle", description=__doc__)
    parser.add_argument("--idle", type=int, default=5000)
    parser.add_argument("--slow", type=int, default=200)
    parser.add_argument("--client-timeout", type=float, default=10.0, help="the proxy's deadline for a request's head")
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement")
    parser.add_argument("proxy", nargs="*", help="more options of the proxy, after --")
    options = parser.parse_args(arguments)
    end_in_order()
    with stopped_at_the_end() as children:
        _, proxy = store_and_proxy(children, [], "--client-timeout", str(options.client_timeout), *options.proxy)
        return run(proxy, options)


def run(proxy: Proxy, options: argparse.Namespace) -> int:
    """1 if others waited, or the slow ones were not dropped, else 0."""
    rows: list[list[object]] = []

    def measure(what: str) -> float:
        found = load(proxy.url, ["/healthz"], HEADERS, seconds=options.seconds)
        start = time.perf_counter()
        Fetcher(proxy.url).get("healthz")
        alone = (time.perf_counter() - start) * 1e3
        p99 = "-" if found.p99 is None else f"{found.p99:.1f}"
        rows.append([what, f"{found.per_second:,.0f}", p99, f"{alone:.1f}", found.failed, f"{proxy.rss() / 1e6:,.0f}"])
        return found.per_second

    measure("(to warm up)")
    before = measure("nobody else")
    with ExitStack() as stack:
        for _ in range(options.idle):
            stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), 30))
        measure(f"{options.idle:,} idle")
        slow = SlowSenders(proxy.port, options.slow)
        beside = measure(f"{options.idle:,} idle, {options.slow:,} slow")
        left = slow.wait(options.client_timeout + LATE)
    print(table(["beside", "requests/s", "p99, ms", "a new one, ms", "failed", "memory, MB"], rows[1:]))
    ended = sorted(slow.ended)
    if ended:
        print(f"\n{len(ended)} slow ones were dropped {ended[0]:.1f} to {ended[-1]:.1f} s after they began")
    print(f"{left} slow ones were not dropped within {options.client_timeout + LATE:g} s")
    return int(left != 0 or before > beside * SLOWER or any(row[4] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
