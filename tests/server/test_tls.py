"""TLS by the proxy itself: a real process, and clients that check its certificate."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase

from tests.cache.certificates import certificate
from tests.running import Proxy, free_port

STORED = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'


TRIES = 200
"""Looks at the certificate, a tenth of a second apart, until all workers should have been replaced."""


class TlsTests(TestCase):
    """``--listen ssl:``."""

    timeout = 60

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        certificate(self.folder, "localhost")

    async def start(self, *options: str, cache: str = "memory") -> Proxy:
        self.tls_port = free_port()
        files = f"privateKey={self.folder / 'key.pem'}:certKey={self.folder / 'cert.pem'}"
        listen = f"ssl:{self.tls_port}:interface=127.0.0.1:{files}"
        proxy = await Proxy.started("--origin", "sample:", "--cache", cache, "--listen", listen, *options)
        self.addCleanup(proxy.remove)
        return proxy

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.folder / "cert.pem"))

    async def test_client(self) -> None:
        """A client that verifies the certificate gets metadata that name https, and frames, cached and hot, over one
        connection, the same as without TLS."""
        proxy = await self.start()

        def ask() -> tuple[str, list[tuple[int, str, bytes]], bytes]:
            secure = http.client.HTTPSConnection("localhost", self.tls_port, timeout=20, context=self.context())
            secure.request("GET", "/dicomweb/instances")
            found = json.loads(secure.getresponse().read())
            place = found[0]["00081190"]["Value"][0]
            path = "/dicomweb/studies" + place.partition("/studies")[2] + "/frames/1"
            answers = []
            for _ in range(4):
                secure.request("GET", path, headers={"Accept": STORED})
                answer = secure.getresponse()
                answers.append((answer.status, answer.headers["Cache-Status"], answer.read()))
            secure.close()
            plain = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
            plain.request("GET", path, headers={"Accept": STORED})
            body = plain.getresponse().read()
            plain.close()
            return place, answers, body

        place, answers, plain = await deferToThread(ask)
        self.assertTrue(place.startswith(f"https://localhost:{self.tls_port}/dicomweb/studies/"), place)
        self.assertEqual({(status, body) for status, _, body in answers}, {(200, plain)})
        self.assertEqual(answers[-1][1], "twistedproxy; hit")

    async def test_protocols(self) -> None:
        """HTTP/1.1 is what is agreed on, whatever a client offers; TLS older than 1.2 is refused."""
        await self.start()

        def look() -> tuple[object, object]:
            context = self.context()
            context.set_alpn_protocols(["h2", "http/1.1"])
            with context.wrap_socket(
                socket.create_connection(("localhost", self.tls_port)), server_hostname="localhost"
            ) as new:
                agreed = new.selected_alpn_protocol()
            context = self.context()
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
            context.set_ciphers("ALL:@SECLEVEL=0")
            try:
                with context.wrap_socket(
                    socket.create_connection(("localhost", self.tls_port)), server_hostname="localhost"
                ) as old:
                    return agreed, old.version()
            except (ssl.SSLError, ConnectionError):
                return agreed, None

        self.assertEqual(await deferToThread(look), ("http/1.1", None))

    async def test_curl(self) -> None:
        """curl, which offers HTTP/2, gets its answer by HTTP/1.1."""
        if shutil.which("curl") is None:
            raise SkipTest("curl is not installed")
        await self.start()
        command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--cacert", str(self.folder / "cert.pem")]
        url = f"https://localhost:{self.tls_port}/readyz"
        run = await deferToThread(
            subprocess.run,
            [*command, "--write-out", " %{http_version} %{http_code}", url],
            capture_output=True,
            text=True,
        )
        self.assertTrue(run.stdout.endswith(" 1.1 200"), run.stdout + run.stderr)

    async def test_renewed(self) -> None:
        """A reload makes new connections see a renewed certificate."""
        proxy = await self.start("--workers", "2", cache="local?size=64M")

        def serial() -> object:
            with socket.create_connection(("localhost", self.tls_port), 20) as raw:
                context = ssl._create_unverified_context()
                with context.wrap_socket(raw, server_hostname="localhost") as connection:
                    return connection.getpeercert(binary_form=True)

        before = await deferToThread(serial)
        certificate(self.folder, "localhost")
        self.assertEqual(await deferToThread(serial), before)
        proxy.send(signal.SIGHUP)
        for _ in range(TRIES):
            if all([await deferToThread(serial) != before for _ in range(4)]):
                return
            await deferToThread(time.sleep, 0.1)
        self.fail("the old certificate is still shown: " + proxy.output()[-3000:])
