"""Whether a request's cost stays flat while the cache fills and callers come: processor time of a cached frame.

Frames: a real proxy and a cache server of its own, all on one core, with 1,000 to 1,000,000 entries besides. Grants: a
whole worker in this process, without sockets, that knows 1 to 100,000. Hot responses are asked for as well.
Run: ``python -m tests.benchmarks.growth``.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests import slides
from tests.benchmarks.hot import HEADERS, processor_seconds
from tests.benchmarks.load import load
from tests.benchmarks.measuring import (
    Fetcher,
    RedisServer,
    end_in_order,
    median,
    stopped_at_the_end,
    store_and_proxy,
    table,
)
from tests.cache.support import find_server
from tests.hot.support import ACCEPT, HotProxy, request
from twistedproxy.cache.redis.keys import redis_keys
from twistedproxy.cache.redis.pipeline import command
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.entries import frame_name
from twistedproxy.frames.grants import Grant
from twistedproxy.origin.interface import Caller
from twistedproxy.settings import MIB

MOST = 1.2  # times the cost at the beginning
FRAMES = (1_000, 10_000, 100_000, 1_000_000)
GRANTS = (1, 1_000, 100_000)
IN_INSTANCE = 1000  # entries below one instance
BATCH = 10_000


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.growth", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each measurement with sockets")
    options = parser.parse_args(arguments)
    end_in_order()
    grown = [_frames(options.rounds, options.seconds)]
    grown += [_grants(options.rounds, kind, hot) for kind, hot in (("from the cache", 0), ("hot", 64 * MIB))]
    return int(max(grown) > MOST)


def _show(what: str, costs: dict[int, list[float]]) -> float:
    """Print the medians; how many times the first the largest is."""
    medians = {size: median(values) for size, values in costs.items()}
    first = next(iter(medians.values()))
    rows = [[f"{size:,}", f"{cost:.1f}", f"{cost / first:.2f}"] for size, cost in medians.items()]
    print(f"\n{table([what, 'CPU us a request', 'of the first'], rows)}", flush=True)
    return max(medians.values()) / first


def _frames(rounds: int, seconds: int) -> float:
    if find_server() is None:
        print("there is no cache server to fill")
        return 1.0
    cores = sorted(os.sched_getaffinity(0))
    with stopped_at_the_end() as children:
        with tempfile.TemporaryDirectory() as folder:
            made = slides.slide(Path(folder) / "slide.dcm", 10, 10)
            redis = RedisServer(core=cores[0])
            children.append(redis)
            more = ("--cache", redis.url, "--hot-memory", "0")
            _, proxy = store_and_proxy(children, [made.path], *more, store_core=cores[-1], core=cores[0])
            paths = [f"/dicomweb/{made.resource}/frames/{number}" for number in range(1, 65)]
            fetcher = Fetcher(proxy.url)
            for path in paths * 2:
                fetcher.get(path[1:], HEADERS)
            fetcher.close()
            costs: dict[int, list[float]] = {}
            held = 0
            for size in FRAMES:
                _fill(redis.port, held, size)
                held = size
                for _round in range(rounds):
                    before = processor_seconds(proxy) + processor_seconds(redis)
                    rate = load(proxy.url, paths, HEADERS, 32, seconds, cores[-1]).per_second
                    spent = processor_seconds(proxy) + processor_seconds(redis) - before
                    costs.setdefault(size, []).append(spent / (rate * seconds) * 1e6)
            return _show("frames in the cache", costs)


def _fill(port: int, held: int, size: int) -> None:
    """Write small entries as the proxy names them, until there are *size*."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        answers = connection.makefile("rb")
        for start in range(held, size, BATCH):
            commands = [command(b"SET", key, b"x" * 100) for key in _keys(start, min(start + BATCH, size))]
            connection.sendall(b"".join(commands))
            for _one in commands:
                assert answers.readline() == b"+OK\r\n"


def _keys(start: int, stop: int) -> Iterator[bytes]:
    for number in range(start, stop):
        instance = Instance("http://store.test", "", "1.2", "1.2.3", f"1.2.3.{number // IN_INSTANCE}")
        yield redis_keys(instance).entry(frame_name(number % IN_INSTANCE + 1))


def _grants(rounds: int, kind: str, hot: int) -> float:
    proxy = HotProxy(_Patches(), hot)
    asking = [request(1, authorization=f"Bearer caller-{number}", accept=ACCEPT) for number in range(32)]
    costs: dict[int, list[float]] = {}
    wire = proxy.connect()
    for size in GRANTS:
        for data in asking[: min(size, len(asking))] * 2:
            proxy.ask(data, wire)
        grants = proxy.components.access.grants
        caller, instance = _first(proxy)
        known = grants.find(caller, instance, 0.0)
        assert known is not None
        for number in range(len(grants), size):
            grant = Grant(known.metadata, known.expires, known.fence)
            grants.add(Caller(b"%016d" % number), instance, grant)
        for data in asking[: min(size, len(asking))]:
            proxy.ask(data, wire)
        costs[size] = [_cost(proxy, asking[: min(size, len(asking))]) for _round in range(rounds * 3)]
    best = {size: [min(values)] for size, values in costs.items()}
    return _show(f"grants, {kind}", best)


def _first(proxy: HotProxy) -> tuple[Caller, Instance]:
    credential, instance = next(iter(proxy.components.access.grants._grants))
    return Caller(credential), instance


def _cost(proxy: HotProxy, asking: list[bytes]) -> float:
    """CPU microseconds of one request, of many in turn."""
    wire = proxy.connect()
    times = max(1, 640 // len(asking))
    began = time.process_time()
    for _again in range(times):
        wire.clear()
        for data in asking:
            wire.send(data)
    spent = time.process_time() - began
    proxy.access_lines()
    return spent / (times * len(asking)) * 1e6


class _Patches(SynchronousTestCase):
    """What `HotProxy` puts in the place of an origin stays there to the end of the process."""

    def runTest(self) -> None:
        """Nothing."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
