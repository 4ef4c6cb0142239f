"""Frames of a slide from Orthanc, asked directly and through the proxy.

Prints a Markdown table of latencies; then asks for every frame of four files through the proxy, compares each with
pydicom's bytes, and asks again while it counts what Orthanc sees. Run: ``python -m tests.benchmarks.orthanc_latency``.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests import slides
from tests.benchmarks.measuring import AS_JPEG, AS_STORED, DECOMPRESSED, Fetcher, end_in_order, milliseconds, table
from tests.running import Proxy
from tests.slides import Made
from tests.stores.orthanc import Orthanc

LIST = 100  # frames a request where whole files are compared
CALLERS = 4  # requests at once there


def make_files(folder: Path, side: int) -> list[tuple[str, Made]]:
    """The four files: JPEG slide of *side* x *side* frames, JPEG 2000 slide, uncompressed slide, ultrasound loop."""
    return [
        ("JPEG slide", slides.slide(folder / "jpeg.dcm", side, side)),
        ("JPEG 2000 slide", slides.slide(folder / "jpeg2000.dcm", 20, 20, encoding="jpeg2000")),
        ("uncompressed slide", slides.slide(folder / "raw.dcm", 12, 12, encoding="raw")),
        ("ultrasound loop", slides.loop(folder / "loop.dcm", 120, 480, 640, encoding="jpeg-gray")),
    ]


def timed(fetcher: Fetcher, made: Made, numbers: Sequence[int], accept: str = AS_STORED) -> list[float]:
    """Seconds of one request per frame. Raises RuntimeError on an answer that is none."""
    seconds = []
    for number in numbers:
        answer = fetcher.frames(made.resource, [number], accept)
        if answer.status != 200:
            raise RuntimeError(f"frame {number}: {answer.status} {answer.body[:300]!r}")
        seconds.append(answer.seconds)
    return seconds


def latencies(orthanc: Orthanc, proxy: Proxy, made: Made, options: Any) -> Iterator[list[object]]:
    """Rows of the table."""
    chosen = random.Random(1).sample(range(2, made.frames + 1), options.samples * 2)
    half = options.samples
    direct, through = Fetcher(orthanc.url), Fetcher(f"{proxy.url}/dicomweb")

    def row(name: str, run: Callable[[], list[float]]) -> list[object]:
        seconds = run()
        return [name, len(seconds), *milliseconds(seconds)]

    yield row("Orthanc, as stored", lambda: timed(direct, made, chosen[:half]))
    slow = max(0, options.slow_samples)
    if slow:
        yield row("Orthanc, application/octet-stream", lambda: timed(direct, made, chosen[: 3 * slow], DECOMPRESSED))
        yield row("Orthanc, image/jpeg", lambda: timed(direct, made, chosen[:slow], AS_JPEG))
    yield row("proxy, first frame of a slide", lambda: timed(through, made, [1]))
    yield row("proxy, cold", lambda: timed(through, made, chosen[half:]))
    yield row("proxy, warm", lambda: timed(through, made, chosen[half:] * 5))


def compare(proxy: Proxy, made: Made) -> int:
    """How many frames differ, through the proxy, from pydicom's."""
    expected = made.stored_frames()

    def wrong(start: int) -> int:
        numbers = list(range(start, min(start + LIST, made.frames + 1)))
        fetcher = Fetcher(f"{proxy.url}/dicomweb")
        got = fetcher.frames(made.resource, numbers).frames()
        fetcher.close()
        pairs = zip(numbers, got, strict=True)
        return sum(frame != expected[number - 1] for number, frame in pairs)

    callers = ThreadPoolExecutor(CALLERS)
    try:
        return sum(callers.map(wrong, range(1, made.frames + 1, LIST)))
    finally:
        callers.shutdown(wait=False, cancel_futures=True)  # when this is ended early, its requests break with the proxy


def settle(proxy: Proxy, made: Made, seconds: float) -> None:
    """Ask for one frame, so that what the proxy loads by itself begins, and wait until it is done."""
    fetcher = Fetcher(proxy.url)
    fetcher.get(f"dicomweb/{made.resource}/frames/1", {"Accept": AS_STORED})
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and json.loads(fetcher.get("status.json").body)["jobs"]["running"]:
        time.sleep(0.05)
    fetcher.close()


def compared(
    orthanc: Orthanc, proxy: Proxy, files: Sequence[tuple[str, Made]], settling: float
) -> Iterator[list[object]]:
    """Rows of the second table: each file asked for twice, whole."""
    for name, made in files:
        if settling:
            settle(proxy, made, settling)
        row: list[object] = [name, f"{made.frames:,}"]
        for _again in range(2):
            before, start = len(orthanc.requests("/frames/")), time.perf_counter()
            row += [compare(proxy, made), len(orthanc.requests("/frames/")) - before]
            row.append(f"{time.perf_counter() - start:.1f}")
            print(*row, file=sys.stderr, flush=True)  # a large file takes minutes
        yield row


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.orthanc_latency", description=__doc__)
    parser.add_argument("--side", type=int, default=100, help="of the JPEG slide's grid, in frames")
    parser.add_argument("--samples", type=int, default=40, help="requests in each row")
    parser.add_argument(
        "--slow-samples", type=int, default=1, help="image/jpeg requests (40 s each), a third of octet-stream ones"
    )
    parser.add_argument(
        "--settle", type=float, default=0, help="seconds to wait for running loads before each comparison"
    )
    parser.add_argument("--no-compare", action="store_true", help="leave the comparison out")
    parser.add_argument("proxy", nargs="*", help="more options of the proxy, after --")
    options = parser.parse_args(arguments)
    end_in_order()
    orthanc = Orthanc().start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            return run(orthanc, make_files(Path(folder), options.side), options)
    finally:
        orthanc.stop()


def run(orthanc: Orthanc, files: Sequence[tuple[str, Made]], options: Any) -> int:
    """Store the files, measure, compare. 1 if a frame differed or was asked for again, else 0."""
    orthanc.store(*(made.path for _name, made in files))
    size = files[0][1].path.stat().st_size / 1e6
    proxy = Proxy("--origin", orthanc.url, *options.proxy)
    try:
        proxy.wait_until_ready()
        print(f"{files[0][1].frames:,} JPEG frames, {size:.0f} MB; one request at a time\n")
        print(table(["a frame from", "requests", "p50 ms", "p95 ms"], latencies(orthanc, proxy, files[0][1], options)))
        if options.no_compare:
            return 0
        rows = list(compared(orthanc, proxy, files, options.settle))
    finally:
        proxy.stop()
        proxy.remove()
    heads = ["through the proxy", "frames", "differ", "Orthanc saw", "s", "again: differ", "Orthanc saw", "s"]
    print("\n" + table(heads, rows))
    return 1 if any(row[2] or row[5] or row[6] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
