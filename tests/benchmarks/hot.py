"""What a hot response, and any frame from the local cache, costs beside nginx's proxy_cache, in one run on the same core.

nginx and the proxy share one processor core, the client has another one. Measured in turns; medians; ratios. Where
others use the machine, look at the processor's time: it hardly depends on them.
Run: ``python -m tests.benchmarks.hot``; more options of the proxy after ``--``.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

from tests import slides
from tests.benchmarks import nginx
from tests.benchmarks.klein_ratio import failures, p99
from tests.benchmarks.load import Load, load
from tests.benchmarks.measuring import (
    AS_STORED,
    Fetcher,
    RedisServer,
    alternating,
    end_in_order,
    median,
    stopped_at_the_end,
    store_and_proxy,
    table,
)
from tests.cache.redis.cluster_servers import RunningCluster
from tests.cache.support import find_server
from tests.running import Child, Proxy, Store

LEAST = 0.4  # of nginx's requests a second, hot
MOST = 3.0  # times nginx's milliseconds at the 99th percentile, hot
LEAST_CACHED = 0.6  # of the requests a second that are answered hot
MOST_CACHED = 2.0  # times the milliseconds at the 99th percentile of those
MOST_CLUSTER = 1.15  # times the processor's time of a frame from one Redis server, from a cluster
HEADERS = {"Accept": AS_STORED, "Authorization": "Bearer c41f0a9b5d"}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.hot", description=__doc__)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each measurement")
    parser.add_argument("--frames", type=int, default=64, help="how many different frames are asked for hot")
    parser.add_argument(
        "--side", type=int, default=100, help="rows and columns of frames: all are asked for in turn, cached"
    )
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="measure frames from a Redis cluster beside such from one server, nothing else",
    )
    parser.add_argument("proxy", nargs="*", help="more options of the proxy, after --")
    options = parser.parse_args(arguments)
    if find_server() is None or not (options.cluster or nginx.installed()):
        print("there is no nginx to compare with, or no Redis server for hot answers")
        return 0
    end_in_order()
    with stopped_at_the_end() as children:
        with tempfile.TemporaryDirectory() as folder:
            return (run_cluster if options.cluster else run)(Path(folder), children, options)


def run(folder: Path, children: list[Child], options: Any) -> int:
    """Start the servers, warm them, measure. 1 if a figure is over its limit, else 0."""
    cores = sorted(os.sched_getaffinity(0))
    server_core, client_core = cores[0], cores[-1]
    made = slides.slide(folder / "slide.dcm", options.side, options.side)
    # With a cache that has to be waited for, answers are kept in the worker's own memory: those are the hot ones.
    redis = RedisServer(core=client_core)
    children.append(redis)
    hot = ("--cache", redis.url, *options.proxy)
    store_url, proxy = store_and_proxy(children, [made.path], *hot, store_core=client_core, core=server_core)
    cached = Proxy("--origin", store_url, "--hot-memory", "0", *options.proxy, core=server_core)
    mark = nginx.Nginx(store_url)
    for each in (cached, mark):
        children.append(each)
        each.wait_until_ready()
    for process in mark.family():
        psutil.Process(process.pid).cpu_affinity([server_core])
    below = f"{made.resource}/frames/"
    few, many = range(1, min(options.frames, made.frames) + 1), range(1, made.frames + 1)
    urls = {"nginx": mark.url, "hot": f"{proxy.url}/dicomweb", "cached": f"{cached.url}/dicomweb"}
    numbers = {"nginx": many, "hot": few, "cached": many}
    for name, url in urls.items():
        fetcher = Fetcher(url)
        for number in [*numbers[name]] * 2:
            answer = fetcher.get(f"{below}{number}", HEADERS)
        fetcher.close()
    loads: dict[str, list[Load]] = {name: [] for name in urls}

    servers: dict[str, Child] = {"nginx": mark, "hot": proxy, "cached": cached}
    costs: dict[str, list[float]] = {name: [] for name in urls}

    def measure(name: str) -> float:
        before = processor_seconds(servers[name])
        paths = [f"{Path('/') / urls[name].split('/', 3)[3]}/{below}{number}" for number in numbers[name]]
        origin = "/".join(urls[name].split("/")[:3])
        loads[name].append(load(origin, paths, HEADERS, options.connections, options.seconds, client_core))
        rate = loads[name][-1].per_second
        costs[name].append((processor_seconds(servers[name]) - before) / (rate * options.seconds) * 1e6)
        return rate

    measuring = [functools.partial(measure, name) for name in urls]
    rates = dict(zip(urls, alternating(options.rounds, *measuring), strict=True))
    print(
        f"{options.connections} connections, {len(answer.body):,} bytes an answer; {len(few)} frames in turn hot, {len(many)} cached\n"
    )
    rows = [
        [
            name,
            f"{median(rates[name]):,.0f}",
            f"{min(rates[name]):,.0f} - {max(rates[name]):,.0f}",
            p99(loads[name]),
            f"{median(costs[name]):.1f}",
            failures(loads[name]),
        ]
        for name in urls
    ]
    print(table(["", "requests/s, median", "range", "p99 ms", "CPU us a request", "failed"], rows))
    costs_ratio = median(costs["nginx"]) / median(costs["hot"])
    share = median([hot / most for hot, most in zip(rates["hot"], rates["nginx"], strict=True)])
    slower = median([hot.p99 / most.p99 for hot, most in zip(loads["hot"], loads["nginx"]) if hot.p99 and most.p99])
    print(f"\nhot: {share:.2f} of nginx's requests/s (at least {LEAST}), {slower:.1f} times its p99 (at most {MOST})")
    print(f"by the processor's time: {costs_ratio:.2f} of nginx's")
    of_hot = median([one / most for one, most in zip(rates["cached"], rates["hot"], strict=True)])
    p99_of_hot = median(
        [one.p99 / most.p99 for one, most in zip(loads["cached"], loads["hot"]) if one.p99 and most.p99]
    )
    print(
        f"cached: {of_hot:.2f} of the hot requests/s (at least {LEAST_CACHED}), {p99_of_hot:.1f} times their p99 "
        f"(at most {MOST_CACHED}); {median(rates['cached']) / median(rates['nginx']):.2f} of nginx's requests/s"
    )
    missed = share < LEAST or slower > MOST or of_hot < LEAST_CACHED or p99_of_hot > MOST_CACHED
    return int(missed or any(one.failed for all_ in loads.values() for one in all_))


def run_cluster(folder: Path, children: list[Child], options: Any) -> int:
    """Measure what frames from a cluster cost the proxy, beside such from a single server. 1 if that is over its limit, else 0."""
    cores = sorted(os.sched_getaffinity(0))
    server_core, client_core = cores[0], cores[-1]
    made = slides.slide(folder / "slide.dcm", options.side, options.side)
    redis, cluster = RedisServer(core=client_core), RunningCluster(core=client_core)
    children += [redis, *cluster.nodes]
    where = {"one server": redis.url, "cluster": cluster.form().address.where}
    store = Store(str(made.path), core=client_core)
    children.append(store)
    origin = store.wait_until_ready()
    proxies: dict[str, Proxy] = {}
    for name, cache in where.items():
        proxy = Proxy("--origin", origin, "--hot-memory", "0", "--cache", cache, *options.proxy, core=server_core)
        children.append(proxy)
        proxies[name] = proxy.wait_until_ready()
        fetcher = Fetcher(f"{proxy.url}/dicomweb")
        for number in [*range(1, made.frames + 1)] * 2:
            fetcher.get(f"{made.resource}/frames/{number}", HEADERS)
        fetcher.close()
    paths = [f"/dicomweb/{made.resource}/frames/{number}" for number in range(1, made.frames + 1)]
    costs: dict[str, list[float]] = {name: [] for name in where}
    loads: dict[str, list[Load]] = {name: [] for name in where}

    def measure(name: str) -> float:
        before = processor_seconds(proxies[name])
        one = load(proxies[name].url, paths, HEADERS, options.connections, options.seconds, client_core)
        loads[name].append(one)
        costs[name].append((processor_seconds(proxies[name]) - before) / (one.per_second * options.seconds) * 1e6)
        return one.per_second

    rates = dict(zip(where, alternating(options.rounds, *[functools.partial(measure, name) for name in where])))
    rows = [
        [name, f"{median(rates[name]):,.0f}", p99(loads[name]), f"{median(costs[name]):.1f}", failures(loads[name])]
        for name in where
    ]
    print(table(["frames from", "requests/s, median", "p99 ms", "CPU us a request", "failed"], rows))
    ratio = median([much / one for one, much in zip(*costs.values(), strict=True)])
    print(f"\ncluster: {ratio:.2f} times the processor's time of one server (at most {MOST_CLUSTER})")
    return int(ratio > MOST_CLUSTER or any(one.failed for all_ in loads.values() for one in all_))


def processor_seconds(child: Child) -> float:
    """What *child* and all its children have used of the processor so far."""
    times = [process.cpu_times() for process in child.family()]
    return sum(one.user + one.system for one in times)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
