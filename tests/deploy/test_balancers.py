"""deploy/nginx-several.conf and haproxy.cfg, run: real balancers in front of three real proxies and a store.

Only places are changed in them: ports, files, users, and how often HAProxy asks whether a proxy is ready.
"""

from __future__ import annotations

import csv
import http.client
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Union

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest

from tests.benchmarks import nginx
from tests.cache.certificates import certificate
from tests.clients import Answer
from tests.dicomweb.support import ProxyCase, RunningProxy
from tests.live.test_nginx import Terminator, deployed, replaced
from tests.running import Child, Proxy, free_port
from tests.slides import Made, slide
from tests.stores.dialects import STANDARD
from tests.stores.simulated import SimulatedStore
from tests.waiting import wait_until

LIGHT = ("--cache=memory", "--cache-memory=64M", "--render-workers=0", "--prefetch=off", "--log-format=json")
TRUSTED = "--trusted-proxy=127.0.0.1"
STORED = {"Accept": 'multipart/related; type="application/octet-stream"; transfer-syntax=*'}
CLAIMS = {"X-Forwarded-Host": "evil.test", "X-Forwarded-Prefix": "/evil", "Forwarded": "host=evil.test"}
SERIES = tuple(f"2.25.{number}" for number in range(11, 23))  # that all fall to one of three is out of the question
UPLOAD = 8 << 20  # bytes
# A line, comments, and what may stand in its place.
ALTERNATIVE = re.compile(r"^( +)[^\s#].*\n(?: +# .*\n)+ +#(?! )(.*)$", re.MULTILINE)


def with_alternative(text: str) -> str:
    """*text* with the line that it offers in place of another."""
    text, count = ALTERNATIVE.subn(r"\1\2", text)
    assert count == 1, count
    return text


def named(text: str, ports: Sequence[int]) -> str:
    """*text* with its proxies at *ports* of this host."""
    return replaced(text, *((f"proxy{one}.example:8080", f"127.0.0.1:{port}") for one, port in enumerate(ports, 1)))


class Nginx(Terminator):
    """nginx in front of proxies at *ports*; its configuration is checked first."""

    def __init__(self, folder: Path, ports: Sequence[int], by_series: bool) -> None:
        text = deployed("nginx-several.conf")
        super().__init__(folder, "", named(with_alternative(text) if by_series else text, ports))


class Haproxy(Child):
    """HAProxy in front of proxies at *ports*; its configuration is checked first."""

    def __init__(self, folder: Path, ports: Sequence[int], by_series: bool) -> None:
        self.folder_, self.port = folder, free_port()
        certificate(folder, "localhost")
        (folder / "both.pem").write_bytes((folder / "cert.pem").read_bytes() + (folder / "key.pem").read_bytes())
        text = deployed("haproxy.cfg")
        text = replaced(
            named(with_alternative(text) if by_series else text, ports),
            ("    user haproxy\n    group haproxy\n", ""),
            ("    log /dev/log local0 warning\n", f"    stats socket {folder}/admin\n"),
            ("maxconn 16384", "maxconn 256"),
            ("    bind :80\n", ""),
            ("bind :443 ", f"bind 127.0.0.1:{self.port} "),
            ("/etc/ssl/pacs.example/haproxy.pem", f"{folder}/both.pem"),
            ("inter 2s", "inter 50ms"),
        )
        (folder / "haproxy.cfg").write_text(text)
        program = [str(haproxy_program()), "-f", str(folder / "haproxy.cfg")]
        checked = subprocess.run([*program, "-c"], capture_output=True, text=True)
        assert checked.returncode == 0 and "WARNING" not in checked.stderr, checked
        super().__init__([*program, "-db"])

    def wait_until_ready(self) -> None:
        """Block until it listens."""
        self.wait_until_it_listens(self.port)

    def ready(self) -> int:
        """How many proxies it takes for ready; -1 where it does not answer yet."""
        with socket.socket(socket.AF_UNIX) as connection:
            if connection.connect_ex(f"{self.folder_}/admin"):
                return -1
            connection.sendall(b"show stat\n")
            text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        rows = csv.DictReader(text.removeprefix("# ").splitlines())
        return sum(row["pxname"] == "proxies" and row["svname"] != "BACKEND" and row["status"] == "UP" for row in rows)


def haproxy_program() -> str | None:
    """Where HAProxy is, if there is one."""
    return shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")


Balancer = Union[Nginx, Haproxy]


class BalancerCase(ProxyCase):
    """A balancer, three proxies, a store."""

    kind: Any
    noticed: Any
    origin: SimulatedStore
    slides: list[Made]

    def hold(self) -> None:
        """A store with two instances in each of a few series."""
        self.slides = [
            slide(self.mktemp(), 1, 1, 32, study="2.25.1", series=series, sop=f"{series}.{number}")
            for series in SERIES
            for number in (1, 2)
        ]
        self.origin = self.store(STANDARD, *self.slides)

    async def balancer(self, ports: Sequence[int], by_series: bool = False) -> Balancer:
        """A balancer in front of proxies at *ports* that listens."""
        folder = Path(tempfile.mkdtemp(prefix="balancer-"))
        self.addCleanup(shutil.rmtree, folder, True)
        balancer: Balancer = self.kind(folder, ports, by_series)
        self.addCleanup(balancer.remove)
        await deferToThread(balancer.wait_until_ready)
        return balancer

    @staticmethod
    def connection(balancer: Balancer) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=str(balancer.folder_ / "cert.pem"))
        return http.client.HTTPSConnection("localhost", balancer.port, timeout=30, context=context)

    async def ask(self, balancer: Balancer, path: str, headers: Mapping[str, str] = STORED) -> Answer:
        """GET *path*, on a connection of its own."""

        def ask() -> Answer:
            connection = self.connection(balancer)
            try:
                connection.request("GET", path, headers=dict(headers))
                answer = connection.getresponse()
                return Answer(
                    answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
                )
            finally:
                connection.close()

        return await deferToThread(ask)

    async def frames(self, balancer: Balancer, times: int = 1) -> None:
        """Request each instance's frame, so many times: all answers are whole."""
        for made in self.slides * times:
            answer = await self.ask(balancer, f"/dicomweb/{made.resource}/frames/1")
            self.assertEqual((200, made.stored_frames()), (answer.status, answer.frames()), made.resource)


class SharesCase(BalancerCase):
    """Which proxy is asked."""

    proxies: list[Proxy]

    async def begin(self) -> list[int]:
        """Start store and proxies; the proxies' ports."""
        self.hold()
        options = (*LIGHT, TRUSTED, "--origin", self.origin.url)
        self.proxies = []
        for _ in range(3):
            self.proxies.append(await Proxy.started(*options))
            self.addCleanup(self.proxies[-1].remove)
        return [proxy.port for proxy in self.proxies]

    def shares(self, depth: int, since: Sequence[int] = (0, 0, 0)) -> dict[str, set[int]]:
        """The proxies that were asked for frames after their first so many, by the first *depth* UIDs of the path."""
        found = defaultdict(set)
        for number, (proxy, first) in enumerate(zip(self.proxies, since, strict=True)):
            for path in self._paths(proxy)[first:]:
                found["/".join(path.split("/")[: 2 + 2 * depth])].add(number)
        return found

    @staticmethod
    def _paths(proxy: Proxy) -> list[str]:
        """What it was asked for and answered, frames only: HAProxy asks for /readyz all the time."""
        return [fields["path"] for fields in proxy.logged("access") if "/frames/" in fields["path"]]

    async def asked(self, balancer: Balancer, times: int = 1) -> None:
        """Request each frame so many times, and wait until the proxies have logged it: after the answer's end."""
        expected = sum(self.places()) + times * len(self.slides)
        await self.frames(balancer, times)
        await wait_until(lambda: sum(self.places()) >= expected, "the access lines")

    def places(self) -> list[int]:
        """How many frames each proxy was asked for."""
        return [len(self._paths(proxy)) for proxy in self.proxies]


class RequestsCase(BalancerCase):
    """What becomes of a request on its way."""

    running: RunningProxy

    async def begin(self, missing: int = 2) -> Balancer:
        """A balancer in front of one proxy, by as many of its three names as are not *missing*."""
        self.hold()
        self.running = await self.proxy(self.origin, trusted_proxy=(ip_network("127.0.0.1"),))
        there = 3 - missing
        balancer = await self.balancer([self.running.port] * there + [free_port() for _ in range(missing)])
        await self.noticed(balancer, there)
        return balancer

    def at_store(self) -> bool:
        """Whether a megabyte of an upload is there."""
        return any(seen.method == "POST" and seen.body_bytes > 1 << 20 for seen in self.origin.requests)


class SharesContract:
    """What holds of each balancer; a mixin for `SharesCase`."""

    begin: Any
    balancer: Any
    noticed: Any
    asked: Any
    shares: Any
    places: Any
    proxies: list[Proxy]
    slides: list[Made]
    assertEqual: Any
    assertGreater: Any
    assertLessEqual: Any

    async def test_shares(self) -> None:
        """Each instance has one proxy. One that stops, and one that is killed, are replaced without a failed answer, and
        the others keep what is theirs."""
        balancer = await self.balancer(await self.begin())
        await self.asked(balancer, 2)
        shares, there = self.shares(3), {0, 1, 2}
        self.assertEqual((len(self.slides), {1}), (len(shares), set(map(len, shares.values()))), shares)
        self.assertGreater(len(set.union(*shares.values())), 1)
        for end in (Proxy.stop, Proxy.kill):
            leaving = min(set.union(*shares.values()))
            there.remove(leaving)
            since = self.places()
            await deferToThread(end, self.proxies[leaving])
            await self.asked(balancer)
            before, shares = shares, self.shares(3, since)
            self.assertLessEqual(set.union(*shares.values()), there)
            kept = {instance for instance, proxies in before.items() if proxies != {leaving}}
            self.assertEqual({name: before[name] for name in kept}, {name: shares[name] for name in kept})
            await self.noticed(balancer, len(there))

    async def test_series(self) -> None:
        """With the other line each series has one proxy, and there is more than one."""
        balancer = await self.balancer(await self.begin(), by_series=True)
        await self.asked(balancer)
        shares = self.shares(2)
        self.assertEqual((len(SERIES), {1}), (len(shares), set(map(len, shares.values()))), shares)
        self.assertGreater(len(set.union(*shares.values())), 1)


class RequestsContract:
    """What holds of each balancer; a mixin for `RequestsCase`."""

    begin: Any
    hold: Any
    balancer: Any
    ask: Any
    connection: Any
    at_store: Any
    addCleanup: Any
    origin: SimulatedStore
    slides: list[Made]
    assertEqual: Any
    assertIn: Any
    assertNotIn: Any

    async def test_claims(self) -> None:
        """URLs name the place that the browser knows, whatever the browser claims of it; pages that name instances are
        not public."""
        balancer = await self.begin()
        for headers in ({}, CLAIMS):
            answer = await self.ask(balancer, f"/dicomweb/{self.slides[0].resource}/metadata", headers)
            self.assertEqual(200, answer.status)
            self.assertIn(f'"https://localhost:{balancer.port}/dicomweb/'.encode(), answer.body)
            self.assertNotIn(b"evil", answer.body)
        statuses = [(await self.ask(balancer, path)).status for path in ("/metrics", "/status.json", "/readyz")]
        self.assertEqual([404, 404, 200], statuses)

    async def test_headers(self) -> None:
        """A proxy gets the balancer's word on where a request came from, and its name for the request; not the client's."""
        self.hold()
        balancer = await self.balancer([self.origin.port] * 3)
        for _ in range(2):
            await self.ask(balancer, "/dicom-web/studies", {**CLAIMS, "X-Request-Id": "mine", "X-Forwarded-For": "::1"})
        requests = [dict(seen.headers) for seen in self.origin.requests if seen.path.endswith("/studies")]
        first, second = ({name.lower(): value for name, value in headers.items()} for headers in requests)
        forwarded = {name: value for name, value in first.items() if "forwarded" in name}
        host = f"localhost:{balancer.port}"
        self.assertEqual(
            {"x-forwarded-for": "127.0.0.1", "x-forwarded-proto": "https", "x-forwarded-host": host}, forwarded
        )
        self.assertEqual(3, len({"mine", first["x-request-id"], second["x-request-id"]}))

    async def test_upload(self) -> None:
        """An upload is on its way to the store before the browser has sent all of it; that proxies are missing matters
        to no upload, and to no search."""
        balancer = await self.begin()
        for _ in range(6):
            self.assertEqual(200, (await self.ask(balancer, "/dicomweb/studies", {})).status)
        connection = self.connection(balancer)
        self.addCleanup(connection.close)

        def send_half() -> None:
            connection.putrequest("POST", "/dicomweb/studies")
            connection.putheader("Content-Type", "multipart/related; boundary=none")
            connection.putheader("Content-Length", str(UPLOAD))
            connection.endheaders(bytes(UPLOAD // 2))

        await deferToThread(send_half)
        await wait_until(self.at_store, "a megabyte at the store")

        def send_rest() -> int:
            connection.send(bytes(UPLOAD // 2))
            return connection.getresponse().status

        self.assertEqual(200, await deferToThread(send_rest))


class OfNginx:
    """nginx."""

    kind = Nginx

    def setUp(self) -> None:
        """Skip where it is missing."""
        if not nginx.installed():
            raise SkipTest("nginx is not installed")

    async def noticed(self, _balancer: Nginx, _there: int) -> None:
        """It goes through all of them until one answers."""


class OfHaproxy:
    """HAProxy."""

    kind = Haproxy

    def setUp(self) -> None:
        """Skip where it is missing."""
        if haproxy_program() is None:
            raise SkipTest("HAProxy is not installed")

    async def noticed(self, balancer: Haproxy, there: int) -> None:
        """Wait until it takes as many proxies for ready as are *there*: before, it may send a request to and fro between two
        that are missing."""
        await wait_until(lambda: balancer.ready() == there, "its checks")


class NginxSharesTests(OfNginx, SharesContract, SharesCase):
    """nginx."""


class NginxRequestsTests(OfNginx, RequestsContract, RequestsCase):
    """nginx."""


class HaproxySharesTests(OfHaproxy, SharesContract, SharesCase):
    """HAProxy."""


class HaproxyRequestsTests(OfHaproxy, RequestsContract, RequestsCase):
    """HAProxy."""

    async def test_store_out_of_reach(self) -> None:
        """Where no proxy is ready, because the store is out of reach for all, what is cached is answered."""
        balancer = await self.begin(missing=0)
        await self.frames(balancer)
        await self.running.settled()
        await self.origin.stop()
        await self.noticed(balancer, 0)
        await self.frames(balancer)
