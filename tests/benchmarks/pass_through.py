"""2 GB down and up through the proxy: how fast, and how much memory it takes.

Run: ``python -m tests.benchmarks.pass_through``; more options of the proxy after ``--``.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from tests.benchmarks.measuring import TIMEOUT, Fetcher, end_in_order, stopped_at_the_end, store_and_proxy, table
from tests.running import MemoryWatch, Proxy
from tests.stores.holdings import big_pieces
from tests.stores.replies import PIECE

LIMIT = 64 << 20  # bytes by which the proxy's resident memory may grow
PATH = "/dicomweb/studies/1.2/series/1.2/instances/1.2/bulkdata/big"


def download(proxy: Proxy, size: int) -> None:
    """Read *size* bytes and check the number at the start of each piece."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=TIMEOUT)
    connection.request("GET", f"{PATH}?size={size}")
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status} {answer.read(300)!r}")
    for number in range(-(-size // PIECE)):
        piece = answer.read(PIECE)
        if len(piece) != min(PIECE, size - number * PIECE) or int.from_bytes(piece[:8], "big") != number:
            raise RuntimeError(f"piece {number} came wrong")
    if answer.read(1):
        raise RuntimeError("more came than was asked for")
    connection.close()


def upload(proxy: Proxy, size: int) -> None:
    """Send *size* bytes as an instance to be stored."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=TIMEOUT)
    headers = {
        "Content-Type": 'multipart/related; type="application/dicom"; boundary=none',
        "Content-Length": str(size),
    }

    def body() -> Iterator[bytes]:
        yield from big_pieces(size)

    connection.request("POST", "/dicomweb/studies", body(), headers)
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status} {answer.read(300)!r}")
    answer.read()
    connection.close()


def received(store_url: str) -> int:
    """Bytes of the last request's body that the store saw."""
    parts = urlsplit(store_url)
    seen: Any = json.loads(Fetcher(f"http://{parts.netloc}").get("_control/requests").body)
    return int(seen[-1]["body"])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.pass_through", description=__doc__)
    parser.add_argument("--size", type=int, default=2 << 30, help="bytes each way")
    parser.add_argument("proxy", nargs="*", help="more options of the proxy, after --")
    options = parser.parse_args(arguments)
    end_in_order()
    with stopped_at_the_end() as children:
        url, proxy = store_and_proxy(children, [], *options.proxy)
        return run(proxy, url, options.size)


def run(proxy: Proxy, store_url: str, size: int) -> int:
    """Both ways. 1 if memory grew by more than the limit or bytes were lost, else 0."""
    download(proxy, PIECE)  # what is loaded or built once does not count
    rows: list[list[object]] = []
    growths = []
    for name, move in (("down", download), ("up", upload)):
        start = time.perf_counter()
        with MemoryWatch(proxy.pid) as watch:
            move(proxy, size)
        seconds = time.perf_counter() - start
        growths.append(watch.growth)
        before, growth = f"{watch.before / 2**20:.0f}", f"{watch.growth / 2**20:.1f}"
        rows.append([name, f"{size / 2**20:,.0f}", f"{seconds:.1f}", f"{size / 2**20 / seconds:,.0f}", before, growth])
    print(table(["", "MiB", "s", "MiB/s", "RSS before, MiB", "growth, MiB"], rows))
    lost = size - received(store_url)
    if lost:
        print(f"\n{lost} bytes of the upload did not arrive")
    return int(max(growths) > LIMIT or lost != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
