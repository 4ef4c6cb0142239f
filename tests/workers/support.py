"""Proxies of several workers, connections whose worker is known, and clients that notice every lost request."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

import attrs
import psutil
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.clients import RawConnection, client
from tests.dicomweb.support import ALICE, STORED
from tests.running import Child, Proxy
from tests.slides import slide
from tests.stores.simulated import SimulatedStore
from tests.waiting import wait_until, within

MEMORY = ("--cache-memory", "64M", "--hot-memory", "64M")
NO_PREFETCH = ("--prefetch", "off")


@attrs.frozen
class Reply:
    """One answer. Header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes = attrs.field(repr=False)

    @property
    def last(self) -> bool:
        """Whether the connection ends after it."""
        return self.headers.get("connection", "").lower() == "close"


class Caller:
    """One connection that is kept, on which one request follows the other. EOFError where it ends too early."""

    def __init__(self, connection: RawConnection) -> None:
        self.connection = connection
        self.port: int = connection.transport.getHost().port
        self.pid: Optional[int] = None

    async def ask(self, path: str, method: str = "GET", headers: Optional[Mapping[str, str]] = None) -> Reply:
        """Send a request and wait for its whole answer."""
        more = {"Accept": STORED, **ALICE, **(headers or {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in more.items())
        received = self.connection.received
        del received[:]
        self.connection.send(f"{method} {path} HTTP/1.1\r\nHost: proxy\r\n{lines}\r\n".encode())
        head = (await self.connection.until(b"\r\n\r\n")).partition(b"\r\n\r\n")[0].decode("latin-1")
        status, _, fields = head.partition("\r\n")
        known = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in fields.split("\r\n"))
        }
        size = int(known.get("content-length", "0"))
        begin = len(head) + 4
        whole = lambda: len(received) >= begin + size or self.connection.lost  # noqa: E731
        await within(self.connection._when(whole))
        if len(received) < begin + size:
            raise EOFError(f"{len(received) - begin} of {size} bytes came")
        return Reply(int(status.split()[1]), known, bytes(received[begin : begin + size]))


def owner(pids: set[int], port: int) -> Optional[int]:
    """Which of the processes *pids* has accepted the connection that comes from *port*."""
    for pid in pids:
        try:
            found = psutil.Process(pid).net_connections("tcp")
        except psutil.NoSuchProcess:
            continue
        if any(one.raddr and one.raddr.port == port for one in found):
            return pid
    return None


class WorkersCase(TestCase):
    """A store in this process, with one slide, and proxies of two workers in others."""

    timeout = 120

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.slide = slide(self.mktemp(), 2, 2, 64)
        self.store = SimulatedStore(reactor, instances=[self.slide.path]).start()
        self.frame_path = f"/dicomweb/{self.slide.resource}/frames/1"
        self.frame = self.slide.stored_frames()[0]

    async def tearDown(self) -> None:  # type: ignore[override]
        await self.store.stop()

    async def proxy(self, *options: str, workers: int = 2) -> Proxy:
        """A proxy whose workers are all there."""
        proxy = await Proxy.started(
            *("--log-format", "json"),
            "--origin",
            self.store.url,
            *MEMORY,
            *NO_PREFETCH,
            "--workers",
            str(workers),
            *options,
        )
        self.addCleanup(deferToThread, proxy.remove)
        await self.workers(proxy, workers)
        return proxy

    async def workers(self, proxy: Proxy, count: int = 2, but: int = 0) -> set[int]:
        """The workers' pids, once there are *count*, *but* that one not among them."""
        asking = client(self, proxy.url, persistent=False)
        found: set[int] = set()

        async def look() -> None:
            nonlocal found
            status = await asking.get("/status.json")
            found = {worker["pid"] for worker in status.json()["workers"]}

        while len(found) != count or but in found:
            await within(look())
        return found

    async def caller(self, proxy: Proxy, pids: set[int] = frozenset()) -> Caller:  # type: ignore[assignment]
        """A connection, and whose it is if *pids* are given."""
        connection = await RawConnection.open(proxy.port)
        self.addCleanup(connection.close)
        found = Caller(connection)
        if pids:

            def owned() -> Optional[int]:
                found.pid = owner(pids, found.port)
                return found.pid

            await wait_until(owned, "somebody accepts")
        return found

    async def callers(self, proxy: Proxy, pids: set[int], each: int = 1) -> dict[int, list[Caller]]:
        """At least *each* connections to every one of the workers *pids*."""
        found: dict[int, list[Caller]] = {pid: [] for pid in pids}
        while any(len(of_one) < each for of_one in found.values()):
            one = await self.caller(proxy, pids)
            assert one.pid is not None
            found[one.pid].append(one)
        return found

    async def ended(self, child: Child) -> int:
        """How *child* ended."""
        return await within(deferToThread(child.process.wait))

    def assert_no_complaints(self, proxy: Child) -> None:
        """Nothing of it lives on, and it complained of nothing."""
        self.assertEqual([], proxy.strays())
        for word in ("Traceback", "Unhandled"):
            self.assertNotIn(word, proxy.output())


class Load:
    """Clients that ask and ask. *kept*: so many keep their connections, *fresh*: so many open one for each request.

    *answered* counts; *lost* are requests that got no whole answer, with the connection's worker where that is known.
    """

    def __init__(self, test: WorkersCase, proxy: Proxy, path: str, wanted: bytes) -> None:
        self._test = test
        self._proxy = proxy
        self._path = path
        self._wanted = wanted
        self._over = False
        self._running: list[Deferred[None]] = []
        self.answered = 0
        self.ends = 0
        self.lost: list[tuple[Optional[int], str]] = []
        self.wrong: list[Reply] = []
        self.refused = 0

    def keep(self, callers: list[Caller]) -> None:
        """Have *callers* ask all the time."""
        self._running += [Deferred.fromCoroutine(self._keep(caller)) for caller in callers]

    def open(self, count: int) -> None:
        """Have *count* clients ask all the time, with a connection for each request."""
        self._running += [Deferred.fromCoroutine(self._fresh()) for _ in range(count)]

    async def _ask(self, caller: Caller, headers: Optional[dict[str, str]] = None) -> bool:
        try:
            reply = await caller.ask(self._path, headers=headers)
        except EOFError as error:
            self.lost.append((caller.pid, str(error)))
            return False
        self.answered += 1
        if reply.status != 200 or self._wanted not in reply.body:
            self.wrong.append(reply)
        return not reply.last

    async def _keep(self, caller: Caller) -> None:
        while not self._over:
            if not await self._ask(caller):
                self.ends += 1
                caller = await self._test.caller(self._proxy)

    async def _fresh(self) -> None:
        while not self._over:
            try:
                caller = await self._test.caller(self._proxy)
            except Exception as error:
                self.refused += 1
                self.lost.append((None, repr(error)))
                continue
            await self._ask(caller, {"Connection": "close"})
            await within(caller.connection.end())

    async def more(self, count: int) -> None:
        """Wait for *count* more answers."""
        enough = self.answered + count
        await wait_until(lambda: self.answered >= enough, f"{count} more answers")

    async def stop(self) -> None:
        """Let all finish."""
        self._over = True
        for one in self._running:
            await within(one)


def exchange(connection: socket.socket, path: str = "/healthz") -> bytes:
    """What is answered to one request."""
    with connection:
        connection.settimeout(20)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def over_tcp(port: int, path: str = "/healthz") -> bytes:
    return exchange(socket.create_connection(("127.0.0.1", port), timeout=20), path)


def over_unix(address: Path) -> bytes:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(str(address))
    return exchange(connection)


def over_tls(port: int, trusted: Path) -> bytes:
    context = ssl.create_default_context(cafile=str(trusted))
    plain = socket.create_connection(("127.0.0.1", port), timeout=20)
    return exchange(context.wrap_socket(plain, server_hostname="proxy.test"))


_COUNTER = re.compile(r"^(twistedproxy_\w+?(?:_total|_count|_bucket|_sum)(?:\{.*\})?) (\S+)$", re.MULTILINE)


def counters(metrics: str) -> dict[str, float]:
    """All counters in Prometheus' text, histograms' numbers among them."""
    return {name: float(value) for name, value in _COUNTER.findall(metrics)}
