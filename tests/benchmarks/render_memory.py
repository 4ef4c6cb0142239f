"""Memory of pictures of whole instances: the most that the proxy and its rendering child take, for ever larger slides.

One picture of each slide in a fresh proxy, of one size and then of a larger one. What a picture takes must not grow with
the slide, only with the picture: with its pixels in the child, with its encoded bytes in the proxy. Run: ``python -m tests.benchmarks.render_memory``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import psutil

from tests import slides
from tests.benchmarks.measuring import Fetched, Fetcher, end_in_order, stopped_at_the_end, table
from tests.running import Child, Proxy

MIB = 1 << 20
TILE = 256
GRIDS = (12, 48, 157)  # frames along a side: 3,072 to 40,192 pixels
SIDES = (1000, 8000)  # pixels of the picture; the larger one is as large as --render-max-pixels allows
MOST_OF_PIXELS = 3.0  # times the bytes of the picture's pixels that a child takes, beyond what it has when idle
MOST_OF_PICTURE = (
    6.0  # times the bytes of the encoded picture that the proxy takes, beyond what the smallest one took it
)
ROOM = 48 * MIB  # for what both need besides: a batch of frames and the next, codecs
MODULE = "twistedproxy.rendering.child"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.render_memory", description=__doc__)
    parser.add_argument("--grids", type=int, nargs="+", default=GRIDS, help="frames along a side of each slide")
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, help="pixels along a side of each picture")
    parser.add_argument("--encoding", default="jpeg", help="of the frames")
    options = parser.parse_args(arguments)
    end_in_order()
    wrong, rows, least = 0, [], 0
    with tempfile.TemporaryDirectory() as folder:
        for grid in options.grids:
            made = slides.slide(Path(folder) / "slide.dcm", grid, grid, TILE, options.encoding)
            for side in options.sides:
                proxy, child, idle, answer = measured(folder, made.resource, side)
                pixels, size = side * side * 3, len(answer.body)
                least = least or proxy
                wrong += child - idle > MOST_OF_PIXELS * pixels + ROOM
                wrong += proxy - least > MOST_OF_PICTURE * size + ROOM
                figures = (pixels, size, proxy, child, idle)
                rows.append(
                    [
                        f"{grid * TILE:,}",
                        f"{side:,}",
                        *(f"{figure / MIB:,.0f}" for figure in figures),
                        f"{answer.seconds:.1f}",
                    ]
                )
    heads = ["slide, pixels a side", "picture", "its RGB, MiB", "encoded", "proxy", "child", "idle child", "seconds"]
    print(table(heads, rows))
    return int(wrong > 0)


def measured(folder: str, resource: str, side: int) -> tuple[int, int, int, Fetched]:
    """The most resident bytes of a proxy and of its rendering child, those of the idle child, and the answer."""
    with stopped_at_the_end() as children:
        largest = ("--render-max-whole-frames", "100000")
        options = ("--cache-memory", "64M", "--hot-memory", "0", "--render-workers", "1", *largest)
        proxy = Proxy("--origin", f"file:{folder}", *options)
        children.append(proxy)
        proxy.wait_until_ready()
        fetcher = Fetcher(proxy.url)
        small = fetcher.get(f"dicomweb/{resource}/frames/1/rendered?viewport=9,9")
        idle = peak(renderer(proxy))
        answer = fetcher.get(f"dicomweb/{resource}/rendered?viewport={side},{side}")
        fetcher.close()
        if (small.status, answer.status) != (200, 200):
            raise RuntimeError(f"{answer.status}: {answer.body[:300]!r}")
        return peak(proxy.pid), peak(renderer(proxy)), idle, answer


def renderer(proxy: Child) -> int:
    """The rendering child of *proxy*."""
    return next(
        process.pid for process in psutil.Process(proxy.pid).children() if MODULE in process.cmdline()
    )  # fmt: skip


def peak(pid: int) -> int:
    """The most resident bytes that a process ever had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
