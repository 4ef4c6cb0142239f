"""One viewer's session (see `tests.benchmarks.viewing`) over a slide in a slow store: direct, through nginx's cache,
through the proxy without prefetch, and with it.

Prints a Markdown table: seconds from asking for a tile to its last byte; tiles that took more than 20 ms; screens, from
their first tile asked for to their last byte; and, of the tiles that are asked for after the first screen of an
instance, how many came from the cache. Run: ``python -m tests.benchmarks.viewer_replay``; more options of the
prefetching proxy after ``--``. With ``--kind`` it is `tests.benchmarks.reader_replay`: other paths, several readers, one
bandwidth for all. Ends with 1 if that last share is below 90 % with prefetch, or a tile came wrong.
"""

from __future__ import annotations

import argparse
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional, Union

import attrs

from tests import slides
from tests.benchmarks import nginx, reader_replay
from tests.benchmarks.measuring import AS_STORED, Fetcher, end_in_order, percentile, table
from tests.benchmarks.viewing import Level, Screen, session
from tests.running import Child, Proxy, Store
from tests.slides import Made

CONNECTIONS = 6  # that browsers open to one HTTP/1.1 server
WAITED = 0.02  # seconds; a tile that takes longer is seen to come
GOAL = 0.9
LEVELS = ((1, 100), (4, 25), (16, 7))  # scale, tiles each way

HEADS = ["tiles through", "p50 ms", "p95 ms", "p99 ms", "waited", "screen p50 ms", "screen p95 ms", "from the cache"]


@attrs.frozen
class Tile:
    """One answered tile."""

    seconds: float
    cached: bool
    first: bool
    """Whether it belongs to the first screen of its instance."""


@attrs.frozen
class Replay:
    """What came of a session. *screens*: seconds of each that asked for anything. *wrong*: tiles that came wrong."""

    tiles: list[Tile]
    screens: list[float]
    wrong: int

    @property
    def share(self) -> float:
        """Of the tiles after the first screens, those from the cache."""
        later = [tile for tile in self.tiles if not tile.first]
        return sum(tile.cached for tile in later) / max(1, len(later))

    def row(self, name: str) -> list[object]:
        """Of the table."""
        seconds = [tile.seconds for tile in self.tiles]
        waited = sum(one > WAITED for one in seconds) / len(seconds)
        return [
            name,
            *(f"{percentile(seconds, share) * 1000:.1f}" for share in (0.5, 0.95, 0.99)),
            f"{waited:.1%}",
            *(f"{percentile(self.screens, share) * 1000:.0f}" for share in (0.5, 0.95)),
            f"{self.share:.1%}",
        ]


class Browser:
    """Asks for tiles, six at a time, each on a connection of its own that it keeps."""

    def __init__(self, url: str, made: dict[str, Made], stored: dict[str, list[bytes]]) -> None:
        self._made = made
        self._stored = stored
        self._fetchers: queue.SimpleQueue[Fetcher] = queue.SimpleQueue()
        for _ in range(CONNECTIONS):
            self._fetchers.put(Fetcher(url))
        self._pool = ThreadPoolExecutor(CONNECTIONS)
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self._wrong = 0

    def replay(self, screens: Sequence[Screen]) -> Replay:
        """All of a session, in its own time."""
        tiles: list[Tile] = []
        durations = []
        for screen in screens:
            first = screen.level.name not in self._seen
            self._seen.add(screen.level.name)
            start = time.perf_counter()
            answers = self._pool.map(lambda number, s=screen, f=first: self._tile(s, number, f), screen.frames)
            tiles += answers
            if screen.frames:
                durations.append(time.perf_counter() - start)
            time.sleep(screen.dwell)
        return Replay(tiles, durations, self._wrong)

    def _tile(self, screen: Screen, number: int, first: bool) -> Tile:
        fetcher = self._fetchers.get()
        try:
            answer = fetcher.frames(self._made[screen.level.name].resource, [number], AS_STORED)
        finally:
            self._fetchers.put(fetcher)
        if answer.frames() != [self._stored[screen.level.name][number - 1]]:
            with self._lock:
                self._wrong += 1
        said = answer.headers.get("cache-status", "") + answer.headers.get("x-cache", "")
        return Tile(answer.seconds, "; hit" in said or said == "HIT", first)

    def close(self) -> None:
        self._pool.shutdown()
        while not self._fetchers.empty():
            self._fetchers.get().close()


def pyramid(folder: Path) -> dict[str, Made]:
    """The levels of a slide, by name."""
    study, series = "1.2.826.0.1.3680043.9.1", "1.2.826.0.1.3680043.9.2"
    return {
        f"1:{scale}": slides.slide(folder / f"{scale}.dcm", side, side, study=study, series=series)
        for scale, side in LEVELS
    }


Server = Union[Store, nginx.Nginx, Proxy]


def contenders(
    store: Store, store_url: str, more: Sequence[str]
) -> Iterator[tuple[str, Callable[[], tuple[Any, str]]]]:
    """Names, and functions that start a server and give it with its URL."""
    yield "nothing between", lambda: (None, store_url)
    if nginx.installed():

        def start_nginx() -> tuple[Any, str]:
            server = nginx.Nginx(store_url).wait_until_ready()
            return server, server.url

        yield "nginx, proxy_cache", start_nginx
    # The machine may be busy with other things: that must not make whole-instance loads into block loads.
    options = ["--whole-instance-max-cpu", "100", "--whole-instance-max-memory", "100", *more]

    def start_proxy(*options: str) -> tuple[Any, str]:
        proxy = Proxy("--origin", store_url, *options).wait_until_ready()
        return proxy, f"{proxy.url}/dicomweb"

    yield "the proxy, prefetch off", lambda: start_proxy("--prefetch", "off")
    yield "the proxy", lambda: start_proxy(*options)


def replay_all(store: Store, store_url: str, made: dict[str, Made], options: Any) -> dict[str, Replay]:
    """The same session through each contender, each with an empty cache."""
    stored = {name: one.stored_frames() for name, one in made.items()}
    levels = [Level(f"1:{scale}", scale, side, side) for scale, side in LEVELS]
    screens = list(session(options.seed, levels, options.moves))
    replays = {}
    for name, start in contenders(store, store_url, options.proxy):
        if options.only and options.only not in name:
            continue
        server: Optional[Child] = None
        try:
            server, url = start()
            browser = Browser(url, made, stored)
            replays[name] = browser.replay(screens)
            browser.close()
            print(*replays[name].row(name), file=sys.stderr, flush=True)  # each takes a minute
        finally:
            if server is not None:
                server.stop()
                if options.log:
                    print(server.output(), file=sys.stderr)
                server.remove()
    return replays


def main(arguments: list[str]) -> int:
    if any(argument.startswith("--kind") for argument in arguments):
        return reader_replay.main(arguments)
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.viewer_replay", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--moves", type=int, default=80, help="pans and zooms")
    parser.add_argument("--latency", type=float, default=0.08, help="of the store, in seconds")
    parser.add_argument("--bytes-per-second", type=float, default=20e6, help="of each answer of the store")
    parser.add_argument("--only", default="", help="contenders with this in their name")
    parser.add_argument("--log", action="store_true", help="print what the servers logged")
    parser.add_argument("proxy", nargs="*", help="more options of the prefetching proxy, after --")
    options = parser.parse_args(arguments)
    end_in_order()
    with tempfile.TemporaryDirectory() as folder:
        made = pyramid(Path(folder))
        pace = ["--latency", str(options.latency), "--bytes-per-second", str(options.bytes_per_second)]
        store = Store(*pace, *(str(one.path) for one in made.values()))
        try:
            return run(store, made, options)
        finally:
            store.stop()
            store.remove()


def run(store: Store, made: dict[str, Made], options: Any) -> int:
    """Replay and tell."""
    replays = replay_all(store, store.wait_until_ready(), made, options)
    tiles = max(len(replay.tiles) for replay in replays.values())
    size = sum(one.path.stat().st_size for one in made.values()) / 1e6
    pace = f"{options.latency * 1000:.0f} ms before and {options.bytes_per_second / 1e6:.0f} MB/s in each answer"
    print(
        f"{tiles:,} tiles of a slide of {size:.0f} MB, six at a time, from a store with {pace}; seed {options.seed}\n"
    )
    print(table(HEADS, (replay.row(name) for name, replay in replays.items())))
    wrong = sum(replay.wrong for replay in replays.values())
    if wrong:
        print(f"\n{wrong} tiles came wrong")
    reached = all(replay.share >= GOAL for name, replay in replays.items() if name == "the proxy")
    return 0 if reached and not wrong else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
