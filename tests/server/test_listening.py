"""Listening sockets that workers share, of every kind, and proxies that are started as services are."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import sys
from typing import Any

import psutil
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.running import Child, free_port, listens
from tests.waiting import wait_until, within
from tests.workers.support import MEMORY, NO_PREFETCH, WorkersCase, over_tcp, over_unix
from twistedproxy.server.listening import bind, listen_on

TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")

LAUNCHER = """
import os, socket, sys
port, *command = sys.argv[1:]
with socket.create_server(("127.0.0.1", int(port))) as listening:
    if listening.fileno() != 3:
        os.dup2(listening.fileno(), 3)
    os.set_inheritable(3, True)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="http")
    os.execv(command[0], command)
"""


class Hello(Protocol):
    """Says which worker it is of."""

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self.factory.name)  # type: ignore[union-attr]
        self.transport.loseConnection()


class AdoptTests(TestCase):
    """A parent's port, and ports of two workers on it, all in this process."""

    async def shared(self, description: str) -> tuple[Any, list[Any]]:
        from twisted.internet import reactor

        parent: Any = await bind(reactor, description)
        ports: list[Any] = []
        for name in (b"one", b"two"):
            factory = Factory.forProtocol(Hello)
            factory.name = name  # type: ignore[attr-defined]
            ports.append(await listen_on(reactor, description, os.dup(parent.fileno()), factory))
        for port in (parent, *ports):
            self.addCleanup(lambda port: port.connected and port.stopListening(), port)
        return parent, ports

    def heard(self, address: Any) -> bytes:
        with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as connection:
            connection.settimeout(20)
            connection.connect(address)
            return connection.recv(10)

    async def test_tcp(self) -> None:
        """One worker that stops leaves the socket to the other; when all have stopped nobody answers."""
        parent, [one, two] = await self.shared("tcp:0:interface=127.0.0.1")
        address = ("127.0.0.1", parent.getHost().port)
        await one.stopListening()
        for _ in range(5):
            self.assertEqual(await deferToThread(self.heard, address), b"two")
        await parent.stopListening()
        self.assertEqual(await deferToThread(self.heard, address), b"two")
        await two.stopListening()
        with self.assertRaises(ConnectionRefusedError):
            self.heard(address)

    async def test_burst(self) -> None:
        """Hundreds of clients may come while nobody accepts, and none of them has to try again; a description may
        say otherwise."""
        parent, ports = await self.shared("tcp:0:interface=127.0.0.1")
        for port in ports:
            port.stopReading()
        address = ("127.0.0.1", parent.getHost().port)
        clients = [socket.socket() for _ in range(300)]
        try:
            for client in clients:
                client.settimeout(0.5)  # the second try would come after 1 s
                client.connect(address)
        finally:
            for client in clients:
                client.close()
        few, _ = await self.shared("tcp:0:interface=127.0.0.1:backlog=1")
        with contextlib.ExitStack() as stack, self.assertRaises(TimeoutError):
            for _ in range(20):
                stack.enter_context(socket.create_connection(("127.0.0.1", few.getHost().port), 0.2))

    async def test_unix(self) -> None:
        """A socket's file keeps its mode, and its place until the parent stops, whatever becomes of workers."""
        path = "shared-socket"  # in trial's folder: absolute, it might be too long for a socket
        parent, [one, two] = await self.shared(f"unix:{path}:mode=600")
        await one.stopListening()
        self.assertEqual(await deferToThread(self.heard, path), b"two")
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        await two.stopListening()
        self.assertIn(path, os.listdir("."))
        await parent.stopListening()
        self.assertNotIn(path, os.listdir("."))


class ServiceTests(WorkersCase):
    """As a service manager starts it."""

    def command(self, port: int, workers: int, endpoint: str, *twistd: str) -> list[str]:
        """What a service manager runs with a socket at *port*, as far as the proxy can tell."""
        options = [
            "--origin",
            self.store.url,
            *MEMORY,
            *NO_PREFETCH,
            "--log-format",
            "json",
            "--workers",
            str(workers),
            "--listen",
            endpoint,
        ]
        return [sys.executable, "-c", LAUNCHER, str(port), *TWISTD, *twistd, "twistedproxy", *options]

    async def test_one_process(self) -> None:
        """A socket of systemd's, by its number, for one process; SIGHUP replaces nothing there, and does no harm."""
        port = free_port()
        child = Child(self.command(port, 1, "systemd:domain=INET:index=0", "-n", "--pidfile="))
        self.addCleanup(deferToThread, child.remove)
        await wait_until(lambda: listens(port) or not child.running(), "the launcher listens")
        self.assertIn(b"200 OK", await within(deferToThread(over_tcp, port)), child.output())
        child.send(signal.SIGHUP)
        await wait_until(lambda: child.logged("reload_ignored"), "an event")
        self.assertIn(b"200 OK", await within(deferToThread(over_tcp, port)))
        child.send(signal.SIGTERM)
        self.assertEqual(-signal.SIGTERM, await self.ended(child))
        self.assert_no_complaints(child)

    async def test_daemon(self) -> None:
        """A daemon of two workers, on a socket of systemd's, one of its own, and one for administrators alone: log,
        pid file and socket are where the command line says, seen from where it was started; all ends with SIGTERM and
        leaves none of them."""
        port, admin = free_port(), free_port()
        where = ["--logfile=proxy.log", "--pidfile=proxy.pid", "--rundir=/"]
        command = self.command(port, 2, "systemd:domain=INET:name=http", *where)
        started = Child([*command, "--listen", "unix:socket", "--admin-listen", f"tcp:{admin}:interface=127.0.0.1"])
        self.addCleanup(deferToThread, started.remove)
        self.assertEqual(0, await self.ended(started), started.output())
        files = {name: started.folder / name for name in ("proxy.log", "proxy.pid", "socket")}
        log = files["proxy.log"].read_text
        daemon = int(files["proxy.pid"].read_text())
        self.addCleanup(end_daemon, daemon)
        await wait_until(lambda: "workers are ready" in log(), "workers")
        family = psutil.Process(daemon).children(recursive=True)
        self.assertGreaterEqual(len(family), 3)
        self.assertIn(b"200 OK", await within(deferToThread(over_tcp, port)))
        self.assertIn(b"200 OK", await within(deferToThread(over_unix, files["socket"])))
        self.assertIn(b" 404 ", await within(deferToThread(over_tcp, port, "/metrics")))
        self.assertIn(b" 200 ", await within(deferToThread(over_tcp, admin, "/metrics")))
        await wait_until(lambda: log().count("GET /healthz 200") == 2, "lines of workers")
        os.kill(daemon, signal.SIGTERM)
        await wait_until(lambda: not files["proxy.pid"].exists(), "its end")
        await wait_until(lambda: not any(process.is_running() for process in family), "the end of all")
        self.assertFalse(files["socket"].exists())
        self.assertIn("Server Shut Down", log())
        self.assertNotIn("Traceback", log())


def end_daemon(pid: int) -> None:
    """Kill a daemon that a test that failed has left."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
