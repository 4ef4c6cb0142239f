"""The real process: how it starts, ends, fails to start, and what it takes to pass much through."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.clients import RawConnection
from tests.rendering.test_own_profiles import profile_folder
from tests.running import TREE, Child, MemoryWatch, Proxy
from tests.stores.faults import Stall
from tests.stores.http_server import Seen
from tests.stores.simulated import SimulatedStore
from tests.waiting import wait_until, within
from twistedproxy.imaging.icc import profile_of

BIG = b"/dicomweb/studies/1.2/series/1.2/instances/1.2/bulkdata/big"
MIB = 1 << 20
MAX_GROWTH = 64 * MIB


def started_with(folder: str, code: str) -> dict[str, str]:
    """The environment of a Python that runs *code*, which is put into *folder*, before all else."""
    path = Path(folder).absolute()
    path.mkdir()
    (path / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(path), str(TREE)])}


class ProcessCase(TestCase):
    """A store in this process and proxies in others."""

    timeout = 120

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.store = SimulatedStore(reactor).start()

    async def tearDown(self) -> None:
        await self.store.stop()

    async def started(self, *options: str) -> Proxy:
        """A proxy in front of the store."""
        proxy = await Proxy.started(
            "--origin", self.store.url, "--log-format", "json", *(options or ("--cache", "memory"))
        )
        self.addCleanup(deferToThread, proxy.remove)
        return proxy

    async def connected(self, proxy: Proxy) -> RawConnection:
        connection = await RawConnection.open(proxy.port)
        self.addCleanup(lambda: connection.lost or connection.transport.abortConnection())
        return connection

    async def ended(self, proxy: Proxy) -> int:
        """How *proxy* ended."""
        return await within(deferToThread(proxy.process.wait))

    def assertClean(self, proxy: Proxy) -> None:
        """Nothing of it lives on, and it complained of nothing."""
        self.assertEqual([], proxy.strays())
        for word in ("Traceback", "Unhandled"):
            self.assertNotIn(word, proxy.output())
        self.assertEqual([], list(proxy.folder.glob("*cache*")))


class StartTests(ProcessCase):
    """A start that goes well."""

    async def test_announced(self) -> None:
        """One process says where to go, and nothing of what cannot be reached from elsewhere."""
        proxy = await self.started()
        await wait_until(lambda: proxy.logged("mount"), "an event")
        (mount,) = proxy.logged("mount")
        self.assertEqual((f"{proxy.url}/dicomweb", self.store.url), (mount["base"], mount["origin"]))
        self.assertEqual([f"{proxy.url}/"], [event["url"] for event in proxy.logged("page")])
        self.assertEqual([], proxy.logged("pages_exposed"))


class StopTests(ProcessCase):
    """SIGTERM."""

    async def test_idle(self) -> None:
        """An idle proxy ends at once, twice told or not, and its loader child and its cache's folder with it."""
        proxy = await self.started("--cache", "local?size=64M", "--stop-deadline", "60")
        idle = await self.connected(proxy)
        self.assertGreater(len(proxy.family()), 1)
        proxy.send(signal.SIGTERM)
        proxy.send(signal.SIGTERM)
        self.assertEqual(-signal.SIGTERM, await self.ended(proxy))
        await idle.end()
        self.assertClean(proxy)

    async def test_running_answer(self) -> None:
        """20 MB that a slow client reads arrive whole; meanwhile nobody new gets in, and the idle are sent away."""
        size = 20 * MIB
        proxy = await self.started()
        idle, slow = await self.connected(proxy), await self.connected(proxy)
        slow.send(b"GET %s?size=%d HTTP/1.1\r\nHost: a\r\n\r\n" % (BIG, size))
        await slow.until(b"\r\n\r\n")
        slow.pause()
        proxy.send(signal.SIGTERM)
        await idle.end()
        with self.assertRaises(OSError):
            socket.create_connection(("127.0.0.1", proxy.port)).close()
        proxy.send(signal.SIGTERM)
        self.assertTrue(proxy.running())
        slow.resume()
        await slow.end()
        head, _, body = bytes(slow.received).partition(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 200"))
        self.assertEqual(size, len(body))
        self.assertEqual(-signal.SIGTERM, await self.ended(proxy))
        self.assertClean(proxy)

    async def test_deadline(self) -> None:
        """Who does not read is cut at the deadline, and the proxy ends."""
        proxy = await self.started("--cache", "memory", "--stop-deadline", "1")
        deaf = await self.connected(proxy)
        deaf.send(b"GET %s?size=%d HTTP/1.1\r\nHost: a\r\n\r\n" % (BIG, 200 * MIB))
        await deaf.until(b"\r\n\r\n")
        deaf.pause()
        proxy.send(signal.SIGTERM)
        self.assertEqual(-signal.SIGTERM, await self.ended(proxy))
        self.assertEqual([1], [event["cut"] for event in proxy.logged("connections_cut")])
        self.assertClean(proxy)

    async def test_while_starting(self) -> None:
        """Stopped at any moment of its start, it leaves nothing and complains of nothing."""
        marks = ("reactor class", "caching frames in", "starting on")
        for mark in marks:
            proxy = Proxy("--origin", self.store.url)
            self.addCleanup(deferToThread, proxy.remove)
            await wait_until(lambda: mark in proxy.output(), mark)  # noqa: B023
            proxy.family()
            proxy.send(signal.SIGTERM)
            proxy.send(signal.SIGTERM)
            self.assertEqual(-signal.SIGTERM, await self.ended(proxy))
            self.assertClean(proxy)


class FailedStartTests(ProcessCase):
    """A start that fails."""

    async def failed(self, *options: str) -> str:
        """The last line of a proxy that cannot start with *options*."""
        proxy = Proxy("--origin", self.store.url, *options)
        self.addCleanup(deferToThread, proxy.remove)
        self.assertEqual(1, await self.ended(proxy))
        self.assertClean(proxy)
        return proxy.output().splitlines()[-1]

    async def test_port_taken(self) -> None:
        """A port that is taken is named in the last line, with any cache."""
        for cache in ("memory", "local?size=64M"):
            line = await self.failed("--cache", cache, "--listen", f"tcp:{self.store.port}:interface=127.0.0.1")
            self.assertIn("twistedproxy could not start", line)
            self.assertIn(f"127.0.0.1:{self.store.port}", line)

    async def test_no_place_for_a_socket(self) -> None:
        """So is a socket's folder that does not exist."""
        line = await self.failed("--cache", "memory", "--listen", "unix:/nonexistent/socket")
        self.assertIn("twistedproxy could not start", line)
        self.assertIn("cannot listen on unix:/nonexistent/socket: no such folder: /nonexistent", line)

    async def test_no_place_for_the_log(self) -> None:
        """A log file that cannot be opened is named in the one line that there is."""
        twistd = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile="]
        child = Child([*twistd, "--logfile=/nonexistent/log", "twistedproxy", "--origin", self.store.url])
        self.addCleanup(deferToThread, child.remove)
        self.assertEqual(1, await within(deferToThread(child.process.wait)))
        said = "twistedproxy could not start: --logfile: No such file or directory: /nonexistent/log\n"
        self.assertEqual(child.output(), said)

    async def test_old_twisted(self) -> None:
        """A Twisted that is too old is named in one line, before anything of it is missed."""
        environment = started_with(
            self.mktemp(), "from importlib import metadata\nmetadata.version = lambda name: '22.4.0'"
        )
        proxy = Proxy("--origin", self.store.url, environment=environment)
        self.addCleanup(deferToThread, proxy.remove)
        self.assertEqual(1, await self.ended(proxy))
        said = "twistedproxy could not start: it needs Twisted 26.10 or newer, and this is Twisted 22.4.0\n"
        self.assertEqual(proxy.output(), said)

    async def test_profiles(self) -> None:
        """A file that is no ICC profile, or one of CMYK values, ends the start with a line that names it."""
        wrong = profile_of("srgb").replace(b"RGB ", b"CMYK", 1)
        for name, profile in (("text", b"no profile"), ("cmyk", wrong), ("cut", profile_of("srgb")[:400])):
            folder = profile_folder(self.mktemp(), {name: profile})
            line = await self.failed("--cache", "memory", "--icc-profiles", folder)
            self.assertIn(f"could not start: --icc-profiles: {folder}: {name} ", line)

    async def test_pid_file(self) -> None:
        """A start that failed leaves no pid file that would be in the way of the next."""
        listen = f"tcp:{self.store.port}:interface=127.0.0.1"
        options = ["--origin", self.store.url, "--cache", "memory", "--listen", listen]
        twistd = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=proxy.pid"]
        child = Child([*twistd, "twistedproxy", *options])
        self.addCleanup(deferToThread, child.remove)
        await wait_until(lambda: (child.folder / "proxy.pid").exists() or not child.running(), "it starts")
        self.assertEqual(1, await within(deferToThread(child.process.wait)))
        self.assertIn("could not start", child.output())
        self.assertFalse((child.folder / "proxy.pid").exists())


class ClockTests(ProcessCase):
    """A machine whose clock is set back."""

    async def test_deadlines(self) -> None:
        """Deadlines that run then are kept: of a store that does not answer, and of a client that does not ask."""
        folder = self.mktemp()
        back = "import os, time\nnow, flag = time.time, os.path.dirname(__file__) + '/set back'\n"
        back += "time.time = lambda: now() - 3600 * os.path.exists(flag)\n"
        environment = started_with(folder, back)
        options = ("--cache", "memory", "--origin-timeout", "3", "--client-timeout", "3")
        proxy = await Proxy.started("--origin", self.store.url, *options, environment=environment)
        self.addCleanup(deferToThread, proxy.remove)
        self.store.fail(Stall(), times=None)
        silent, asking = await self.connected(proxy), await self.connected(proxy)
        silent.send(b"GET /dicomweb/stud")
        asking.send(b"GET /dicomweb/studies HTTP/1.1\r\nHost: a\r\n\r\n")
        await wait_until(lambda: self.store.requests, "the store is asked")
        os.mkdir(f"{folder}/set back")
        await within(asking.until(b"504 Gateway"))
        await within(silent.end())
        self.assertClean(proxy)


class MemoryTests(ProcessCase):
    """What passes through does not stay."""

    SIZE = 192 * MIB

    async def test_down(self) -> None:
        """A large answer takes no more memory than a small one, at full speed."""
        proxy = await self.started()
        with MemoryWatch(proxy.pid) as watch:
            read = await deferToThread(_download, proxy.port, self.SIZE)
        self.assertEqual(self.SIZE, read)
        self.assertLess(watch.growth, MAX_GROWTH)

    async def test_up(self) -> None:
        """Nor does a large upload."""
        proxy = await self.started()
        with MemoryWatch(proxy.pid) as watch:
            status = await deferToThread(_upload, proxy.port, self.SIZE)
        self.assertTrue(status.startswith(b"HTTP/1.1 200"), status)
        self.assertEqual(self.SIZE, self.store.requests[-1].body_bytes)
        self.assertLess(watch.growth, MAX_GROWTH)

    async def test_up_to_a_slow_store(self) -> None:
        """Also where the store takes its time and the client does not."""
        proxy = await self.started()
        waits: list[Seen] = []
        gate = self.store.hold(lambda seen: not waits.append(seen))  # type: ignore[func-returns-value]
        with MemoryWatch(proxy.pid) as watch:
            uploading = deferToThread(_upload, proxy.port, self.SIZE)
            await gate.reached()
            before = -1

            def stands_still() -> bool:
                nonlocal before
                stands, before = before == waits[0].body_bytes > 0, waits[0].body_bytes
                return stands

            await wait_until(stands_still, "the client waits")
            gate.release()
            await uploading
        self.assertLess(watch.growth, MAX_GROWTH)


def _download(port: int, size: int) -> int:
    """Read an answer of *size* bytes; how many came."""
    buffer, read = bytearray(MIB), 0
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(b"GET %s?size=%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % (BIG, size))
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(1)
        while count := client.recv_into(buffer):
            read += count
    return read


def _upload(port: int, size: int) -> bytes:
    """Send *size* bytes as something to be stored; the beginning of the answer."""
    piece = bytes(MIB)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(b"POST /dicomweb/studies HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // MIB):
            client.sendall(piece)
        return client.recv(100)
