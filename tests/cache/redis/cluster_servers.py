"""A cluster of real servers: six nodes on the loopback interface, three of them replicas."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import time
from collections.abc import Sequence
from typing import Any, Optional

import attrs
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest

from tests.cache.support import any_server, ask, until
from tests.running import Child, free_port, pinned
from twistedproxy.cache.address import ClusterAddress, Login

MASTERS = 3
NODES = 6
NODE_TIMEOUT = 1.0  # seconds until a node that does not answer counts as failed
READY_SECONDS = 20.0


class ClusterNode(Child):
    """One node. It can be killed and started again, with what it had on the disk."""

    def __init__(self, options: Sequence[str] = (), core: Optional[int] = None, tls: bool = False) -> None:
        self.port, self.bus = free_port(), free_port()
        self._options, self._core, self._tls = options, core, tls
        super().__init__(self._command())
        self.socket = str(self.folder / "socket")

    def _command(self) -> list[str]:
        own = f"{'--port 0 --tls-port' if self._tls else '--port'} {self.port} --cluster-port {self.bus} --bind 127.0.0.1 --unixsocket socket --save"
        size = "--maxmemory 64mb --maxmemory-policy allkeys-lru --repl-diskless-sync-delay 0"
        cluster = f"--cluster-enabled yes --cluster-node-timeout {int(NODE_TIMEOUT * 1000)}"
        part = "--cluster-require-full-coverage no"  # else all nodes refuse all while one has failed
        words = f"{size} {cluster} {part} {own}".split()
        return pinned([any_server(), *words, "", *self._options], self._core)

    def again(self) -> None:
        """Start it again, in the same folder."""
        self.start(self._command())

    async def ask(self, *arguments: bytes) -> Any:
        """What it answers."""
        return await ask(self.socket, *arguments)

    async def is_master(self) -> bool:
        return bool(self.running() and (await self.ask(b"ROLE"))[0] == b"master")


class RunningCluster:
    """Six nodes, which are to be formed to a cluster. *options*: more of each server's; *cli*: of redis-cli; *host*: where they
    listen, if *options* say so."""

    def __init__(
        self,
        options: Sequence[str] = (),
        cli: Sequence[str] = (),
        core: Optional[int] = None,
        tls: bool = False,
        host: str = "127.0.0.1",
    ) -> None:
        if shutil.which("redis-cli") is None:
            raise SkipTest("no redis-cli")
        self.nodes = [ClusterNode(options, core, tls) for _ in range(NODES)]
        self._cli = list(cli)
        self.host = host

    def form(self) -> RunningCluster:
        """Make a cluster of them. Blocks."""
        self._wait("nodes", lambda: all("Ready to accept" in node.output() for node in self.nodes))
        places = [f"{self.host}:{node.port}" for node in self.nodes]
        self.manage("create", *places, "--cluster-replicas", str(NODES // MASTERS - 1), "--cluster-yes")
        self._wait("cluster", self._whole)
        return self

    def _whole(self) -> bool:
        info = [self.cli(node, "cluster", "info") + self.cli(node, "role") for node in self.nodes]
        masters = [one for one in info if "master" in one.splitlines()]
        return (
            all("cluster_state:ok" in one for one in info)
            and len(masters) == MASTERS
            and all("connected" in one.splitlines() or self.host in one for one in info)
        )

    def cli(self, node: ClusterNode, *arguments: str) -> str:
        """What redis-cli prints. Blocks."""
        command = ["redis-cli", *self._cli, "-p", str(node.port), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=READY_SECONDS).stdout

    def manage(self, *arguments: str) -> str:
        """What ``redis-cli --cluster`` prints. Blocks. Raises AssertionError where it fails."""
        command = ["redis-cli", *self._cli, "--cluster", *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def _wait(self, what: str, condition: Any) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"no {what}: " + "\n".join(node.output()[-500:] for node in self.nodes))
            time.sleep(0.02)

    @property
    def address(self) -> ClusterAddress:
        """How to reach it."""
        return ClusterAddress(tuple((self.host, node.port) for node in self.nodes))

    def secured(self, login: Login) -> ClusterAddress:
        """How to reach it over TLS."""
        return attrs.evolve(self.address, tls=True, login=login)

    async def masters(self) -> list[ClusterNode]:
        return [node for node in self.nodes if await node.is_master()]

    async def empty(self) -> None:
        """Remove all keys."""
        for node in await self.masters():
            await node.ask(b"FLUSHALL")

    async def owner(self, slot: int) -> ClusterNode:
        """The master of a slot."""
        for first, last, master, *_ in await (await self.masters())[0].ask(b"CLUSTER", b"SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == master[1])
        raise AssertionError(f"slot {slot} is no master's")

    async def healthy(self) -> None:
        """Wait until every slot has a master, and every master a replica that follows it."""

        async def is_healthy() -> bool:
            following, maps = 0, []
            for node in self.nodes:
                if not node.running() or b"cluster_state:ok" not in await node.ask(b"CLUSTER", b"INFO"):
                    return False
                slots = await node.ask(b"CLUSTER", b"SLOTS")
                maps.append(sorted((first, last, master[1]) for first, last, master, *_ in slots))
                role = await node.ask(b"ROLE")
                following += role[0] == b"slave" and role[3] == b"connected"
            return following == NODES - MASTERS and all(one == maps[0] for one in maps)

        await until(is_healthy, "a whole cluster")

    def remove(self) -> None:
        for node in self.nodes:
            node.remove()


_shared: list[RunningCluster] = []


async def shared_cluster() -> RunningCluster:
    """The cluster that the tests of this process share, emptied: who breaks it mends it."""
    if not _shared:
        cluster = RunningCluster()
        atexit.register(cluster.remove)
        await deferToThread(cluster.form)
        _shared.append(cluster)
    await _shared[0].healthy()
    await _shared[0].empty()
    return _shared[0]
