"""Three proxies, each in a network namespace of its own, on one cluster of six servers, behind a balancer, before a slow store.

Twelve readers read four slides; Markdown tables say what comes of it: of one proxy with a cache of its own, of three by round robin and
by a hash of the instance, with and without a near cache. Then a master of the cluster, and a proxy that loads a slide, are killed.
Run as root (for the namespaces): ``python -m tests.benchmarks.hosts``. Needs Debian's redis-server, haproxy, iproute2. Ends with 1 if a
frame came wrong, or an answer failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import attrs

from tests.benchmarks.measuring import end_in_order, stopped_at_the_end, table
from tests.benchmarks.model.series import SLIDES, Series, pyramid
from tests.benchmarks.reader_model import STAGGER
from tests.benchmarks.reader_replay import NEVER_BUSY, Totals, cpu_seconds, make
from tests.benchmarks.readers import Item, Outcome, Reader
from tests.benchmarks.replaying import Held, Network
from tests.benchmarks.viewing import reading
from tests.cache.redis.cluster_servers import ClusterNode, RunningCluster
from tests.running import Child, Proxy, Store

SLIDE_COUNT, READERS, HOSTS = 4, 12, 3
HERE = "10.77.0.1"
BALANCED = 8000
PORT = 8080
NODE_MILLISECONDS = 5000  # cluster-node-timeout
NEAR = ("--near-cache", "1G")
BALANCER = """
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 180s
frontend viewers
  bind {here}:{port}
  http-request set-var(txn.share) 'path,regsub("^(.*/instances/[0-9.]+).*","\\1")'
  use_backend unready if {{ nbsrv(proxies) eq 0 }}
  default_backend proxies
backend unready
  balance {balance}
{servers}
backend proxies
  balance {balance}
  option httpchk GET /healthz
  default-server check inter 1s fall 2 rise 1
  retries 3
  option redispatch 1
  retry-on conn-failure empty-response
{servers}
"""
BALANCES = {"round robin": "roundrobin", "hash": "hash var(txn.share)\n  hash-type consistent"}


def own_network() -> None:
    """Go on in a network of our own, with a bridge for the hosts in it."""
    if os.environ.get("OWN_NETWORK") != "yes":
        os.execvpe(
            "unshare", ["unshare", "--net", sys.executable, "-m", "tests.benchmarks.hosts", *sys.argv[1:]],
            {**os.environ, "OWN_NETWORK": "yes"},
        )  # fmt: skip
    for command in (
        "link set lo up",
        "link add bridge0 type bridge",
        f"addr add {HERE}/24 dev bridge0",
        "link set bridge0 up",
    ):
        subprocess.run(["ip", *command.split()], check=True)


class Host(Proxy):
    """A proxy in a network namespace of its own, which ends with it."""

    _next = itertools.count(2).__next__

    def __init__(self, *options: str) -> None:
        self.address = f"10.77.0.{self._next()}"  # of none before: neighbours know those by other MAC addresses
        super().__init__("--listen", f"tcp:{PORT}", *options)
        _until(lambda: os.readlink(f"/proc/{self.pid}/ns/net") != os.readlink("/proc/self/ns/net"), 10.0)
        name = f"host{os.urandom(3).hex()}"
        subprocess.run(
            ["ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid)], check=True
        )
        subprocess.run(["ip", "link", "set", name, "master", "bridge0", "up"], check=True)

    def start(self, command: Sequence[str], environment: Optional[Mapping[str, str]] = None) -> None:
        up = f"ip addr add {self.address}/24 dev eth0 && ip link set eth0 up && ip link set lo up"
        wait = "until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done"
        super().start(["unshare", "--net", "sh", "-c", f'{wait}; {up} && exec "$@"', "sh", *command], environment)

    @property
    def url(self) -> str:
        return f"http://{self.address}:{PORT}"


class Balancer(Child):
    """HAProxy in front of *hosts*."""

    def __init__(self, hosts: Sequence[Host], balance: str) -> None:
        servers = "\n".join(f"  server {n} {host.address}:{PORT}" for n, host in enumerate(hosts))
        text = BALANCER.format(here=HERE, port=BALANCED, balance=BALANCES[balance], servers=servers)
        with tempfile.NamedTemporaryFile("w", suffix=".cfg", delete=False) as file:
            file.write(text)
        super().__init__(["haproxy", "-db", "-f", file.name])
        self.configuration = Path(file.name)

    def remove(self) -> None:
        super().remove()
        self.configuration.unlink(missing_ok=True)


def page(url: str) -> tuple[int, Any]:
    """Status and content of a page of JSON; 0 where there is none."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10.0) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, None
    except OSError:
        return 0, None


@attrs.frozen
class Bench:
    """What all cases have in common."""

    store: str
    cluster: RunningCluster
    secret: str
    held: Mapping[Item, Held]
    series: Sequence[Series]
    moves: int

    def readers(self, network: Network, seed: int) -> list[Reader]:
        """Three of each slide."""
        paths = [reading(seed + 1000 * n, self.series[n % SLIDE_COUNT].levels, self.moves) for n in range(READERS)]
        return [Reader(f"r{n}", path, network, network.ask, n * STAGGER).begin() for n, path in enumerate(paths)]

    def hosts(self, count: int, *options: str) -> list[Host]:
        given = ("--origin", self.store, "--secret-file", self.secret, *NEVER_BUSY, *options)
        return [Host(*given) for _ in range(count)]

    def shared(self) -> tuple[str, ...]:
        return ("--cache", self.cluster.address.where)


@attrs.frozen
class Ran:
    """*hits*: share of tiles from the cache; *near*: of frames read by the proxies, those read in their own files."""

    outcome: Outcome
    cpu: float
    near: Optional[float] = None

    @property
    def hits(self) -> float:
        return sum(tile.hit for tile in self.outcome.tiles) / max(1, len(self.outcome.tiles))

    def row(self, name: str, one: Ran) -> list[str]:
        outcome, tiles = self.outcome, len(self.outcome.tiles)
        return [
            name, f"{outcome.waited:.1%}", f"{self.hits:.1%}", f"{outcome.read / 1e6:,.0f}",
            f"{outcome.read / max(1.0, one.outcome.read):.2f}", "" if self.near is None else f"{self.near:.0%}",
            f"{self.cpu / tiles * 1000:.2f}", str(outcome.wrong),
        ]  # fmt: skip


HEADS = (
    "", "over 50 ms", "from the cache", "MB from the store", "times one proxy", "frames read without the network",
    "CPU ms a tile", "wrong or failed",
)  # fmt: skip


def follow(bench: Bench, hosts: Sequence[Host], seed: int, meanwhile: Sequence[tuple[float, Any]] = ()) -> Ran:
    """All readers through the balancer. *meanwhile*: seconds, and what to do then."""
    network = Network(f"http://{HERE}:{BALANCED}/dicomweb", bench.held)
    before, cpu = Totals.of(bench.store), sum(map(cpu_seconds, hosts))
    readers, began = bench.readers(network, seed), network.now()
    for seconds, call in meanwhile:
        network.later(seconds, call)
    network.run(until=lambda: all(reader.finished for reader in readers))
    took = network.now() - began
    network.close()
    outcome = Outcome.of(
        readers, Totals.of(bench.store).since(before).sent, lambda _: bench.series[0].frame_bytes, took
    )
    return Ran(outcome, sum(map(cpu_seconds, hosts)) - cpu, _near(hosts))


def _near(hosts: Sequence[Host]) -> Optional[float]:
    told = [page(f"{host.url}/status.json")[1] for host in hosts if host.running()]
    parts = [one["cache"]["near"] for one in told if one and "near" in one["cache"]]
    here, there = (sum(one[f"entries_from_{name}"] for one in parts) for name in ("here", "shared"))
    return here / (here + there) if here + there else None


def run(bench: Bench, count: int, balance: str, options: Sequence[str], seed: int, **more: Any) -> Ran:
    """One case, with an empty cache."""
    for node in bench.cluster.nodes:
        bench.cluster.cli(node, "flushall")
    with stopped_at_the_end() as children:
        hosts = bench.hosts(count, *options)
        children.extend(hosts)
        for host in hosts:
            host.wait_until_ready()
        children.append(Balancer(hosts, balance))
        _until(lambda: page(f"http://{HERE}:{BALANCED}/readyz")[0] == 200, 20.0)
        meanwhile = more["meanwhile"](hosts) if more else ()
        return follow(bench, hosts, seed, meanwhile)


def rows(bench: Bench, seed: int) -> Iterator[list[str]]:
    one = run(bench, 1, "hash", (), seed)
    yield one.row("one proxy, local cache", one)
    yield run(bench, 1, "hash", bench.shared(), seed).row("one proxy, cluster", one)
    for balance in BALANCES:
        for name, near in (("", ()), (", near cache", NEAR)):
            ran = run(bench, HOSTS, balance, (*bench.shared(), *near), seed)
            yield ran.row(f"{HOSTS} proxies, {balance}{name}", one)


def _until(condition: Any, seconds: float) -> float:
    """Wait for it; how long it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() > began + seconds:
            raise RuntimeError("it did not happen in time")
        time.sleep(0.05)
    return time.monotonic() - began


def master_killed(bench: Bench, seed: int) -> list[str]:
    """A master dies while all read: how long until every proxy can write to every master."""
    died: list[float] = []
    killed: list[ClusterNode] = []

    def meanwhile(hosts: Sequence[Host]) -> Sequence[tuple[float, Any]]:
        def kill() -> None:
            node = next(one for one in bench.cluster.nodes if "master" in bench.cluster.cli(one, "role").splitlines())
            node.kill()
            killed.append(node)
            died.append(time.monotonic())

        def look() -> None:
            if len(died) == 1 and all(page(f"{host.url}/readyz")[0] == 200 for host in hosts):
                died.append(time.monotonic())

        return [(10.0, kill), *((12.0 + 0.5 * n, look) for n in range(60))]

    ran = run(bench, HOSTS, "hash", bench.shared(), seed, meanwhile=meanwhile)
    for node in killed:
        node.again()
    whole = f"{died[1] - died[0]:.1f} s" if len(died) == 2 else "not whole"
    return ["a master killed", whole, f"{ran.outcome.waited:.1%}", f"{ran.hits:.1%}", str(ran.outcome.wrong)]


def proxy_killed(bench: Bench, seed: int) -> list[str]:
    """A proxy dies while it loads a slide: how long until another has taken the load over."""
    for node in bench.cluster.nodes:
        bench.cluster.cli(node, "flushall")
    largest = bench.held[bench.series[0].levels[0].name, 1].path.partition("/frames/")[0]
    with stopped_at_the_end() as children:
        hosts = bench.hosts(2, *bench.shared())
        children.extend(hosts)
        for host in hosts:
            host.wait_until_ready()
        wanted = [f"{host.url}/dicomweb/{largest}/prefetch" for host in hosts]
        _post(wanted[0])
        _until(lambda: _running(hosts[0]), 20.0)
        hosts[0].kill()
        seconds = _until(lambda: _post(wanted[1]) in (200, 201, 202) and _running(hosts[1]), 60.0)
        return ["a proxy killed in mid-load", f"{seconds:.1f} s", "", "", ""]


def _post(url: str) -> int:
    request = urllib.request.Request(url, method="POST", headers={"Authorization": "Bearer r0"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10.0) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code


def _running(host: Host) -> bool:
    _, status = page(f"{host.url}/status.json")
    return any(job["kind"] == "whole" and job["frames"] for job in status["jobs"]["running"])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.hosts", description=__doc__)
    parser.add_argument("--slide", choices=sorted(SLIDES), default="halved")
    parser.add_argument("--moves", type=int, default=40, help="of each reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--latency", type=float, default=0.08, help="of the store, in seconds")
    parser.add_argument("--bandwidth", type=float, default=200.0, help="MB/s of the store, for all answers together")
    parser.add_argument("--only", choices=("readers", "deaths"))
    options = parser.parse_args(arguments)
    end_in_order()
    own_network()
    series = [pyramid(f"p{number}", *SLIDES[options.slide]) for number in range(SLIDE_COUNT)]
    with tempfile.TemporaryDirectory() as folder, stopped_at_the_end() as children:
        paths, held = make(Path(folder), series)
        pace = ("--latency", str(options.latency), "--shared-bytes-per-second", str(options.bandwidth * 1e6))
        children.append(store := Store("--interface", HERE, *pace, *map(str, paths)))
        own = (
            "--bind",
            HERE,
            "--protected-mode",
            "no",
            "--cluster-node-timeout",
            str(NODE_MILLISECONDS),
            "--maxmemory",
            "256mb",
        )
        cluster = RunningCluster(own, ("-h", HERE), host=HERE)
        children.extend(cluster.nodes)
        cluster.form()
        secret = Path(folder) / "secret"
        secret.write_bytes(os.urandom(32))
        secret.chmod(0o600)
        bench = Bench(store.wait_until_ready(120.0), cluster, str(secret), held, series, options.moves)
        size = series[0].size / 1e6
        print(f"{READERS} readers, {SLIDE_COUNT} slides of {size:,.0f} MB, {options.bandwidth:.0f} MB/s\n")
        if options.only != "deaths":
            print(table(list(HEADS), rows(bench, options.seed)), flush=True)
        if options.only != "readers":
            heads = ["", "whole again after", "over 50 ms", "from the cache", "wrong or failed"]
            print("\n" + table(heads, [master_killed(bench, options.seed), proxy_killed(bench, options.seed)]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
