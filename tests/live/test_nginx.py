"""deploy/nginx.conf, run: a real nginx in front of a whole proxy, browsers' protocols in front of that.

Only places are changed in it: ports, files, and the user, where the tests have no right to them.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest

from tests.benchmarks import nginx
from tests.cache.certificates import certificate
from tests.clients import split_multipart
from tests.dicomweb.support import ProxyCase, RunningProxy
from tests.running import Child, free_port
from tests.waiting import wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
STORED = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'


def deployed(name: str) -> str:
    """A file that operators copy."""
    if not DEPLOY.exists():
        raise SkipTest("the tests are run without their tree")
    return (DEPLOY / name).read_text("utf-8")


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    """*text* with each of *pairs* changed; each must be there."""
    for old, new in pairs:
        if old not in text:
            raise AssertionError(f"{old!r} is not in it")
        text = text.replace(old, new)
    return text


def _curl_knows_http2() -> bool:
    curl = shutil.which("curl")
    return curl is not None and "HTTP2" in subprocess.run([curl, "-V"], capture_output=True, text=True).stdout


class Terminator(Child):
    """nginx with its configuration, in front of a unix socket at *path*, or of *upstream*, text in place of that block."""

    def __init__(self, folder: Path, path: str, upstream: str = "") -> None:
        self.folder_, self.port, self.plain_port = folder, free_port(), free_port()
        certificate(folder, "localhost")
        temporary = "".join(
            f"    {name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = deployed("nginx.conf")
        [block] = re.findall(r"    upstream twistedproxy \{.*?\n    \}\n", text, re.DOTALL)
        text = replaced(
            text,
            (block, upstream or replaced(block, ("unix:/run/twistedproxy/http.sock", f"unix:{path}"))),
            ("user www-data;\n", "daemon off;\n" + ("user root;\n" if os.getuid() == 0 else "")),
            ("worker_processes auto;", "worker_processes 1;"),
            ("worker_rlimit_nofile 65536;\n", ""),
            ("/var/log/nginx/error.log", f"{folder}/error"),
            ("pid /run/nginx.pid;", f"pid {folder}/pid;"),
            ("worker_connections 16384;", "worker_connections 512;"),
            ("http {\n", "http {\n" + temporary),
            ("listen 80;", f"listen 127.0.0.1:{self.plain_port};"),
            ("listen 443 ssl http2;", f"listen 127.0.0.1:{self.port} ssl http2;"),
            ("server_name pacs.example;", "server_name localhost;"),
            ("/etc/ssl/pacs.example/fullchain.pem", f"{folder}/cert.pem"),
            ("/etc/ssl/pacs.example/key.pem", f"{folder}/key.pem"),
        )
        (folder / "nginx.conf").write_text(text)
        super().__init__([str(nginx._program()), "-p", str(folder), "-c", str(folder / "nginx.conf")])

    def wait_until_ready(self) -> None:
        """Block until it listens."""
        self.wait_until_it_listens(self.port)

    def curl(self, path: str, *options: str) -> tuple[dict[str, str], bytes]:
        """What curl gets over HTTP/2: headers (``:version`` and ``:status`` among them) and body."""
        with tempfile.TemporaryDirectory() as folder:
            command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--http2"]
            command += ["--cacert", str(self.folder_ / "cert.pem"), "--dump-header", f"{folder}/head"]
            command += ["--output", f"{folder}/body", *options, f"https://localhost:{self.port}{path}"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
            if done.returncode:
                raise RuntimeError(done.stderr)
            first, *lines = (Path(folder) / "head").read_text().splitlines()
            version, status = first.split()[:2]
            pairs = (line.partition(":") for line in lines if line)
            headers = {name.lower(): value.strip() for name, _, value in pairs}
            body = Path(folder) / "body"  # which curl does not make for a 304
            return {":version": version, ":status": status, **headers}, body.read_bytes() if body.exists() else b""


class NginxTests(ProxyCase):
    """nginx, the proxy on a unix socket, a store."""

    running: RunningProxy
    nginx: Terminator

    def setUp(self) -> None:
        if not nginx.installed():
            raise SkipTest("nginx is not installed")

    async def begin(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="nginx-"))
        self.addCleanup(shutil.rmtree, folder, True)
        path = f"{folder}/http.sock"
        self.origin = self.store()
        self.running = await self.proxy(
            self.origin,
            listen=(f"unix:{path}:mode=660:backlog=4096",),
            trusted_proxy=(ip_network("127.0.0.1"),),
            hot_memory=1 << 20,
        )
        self.nginx = Terminator(folder, path)
        self.addCleanup(self.nginx.remove)
        await deferToThread(self.nginx.wait_until_ready)

    async def curl(self, path: str, *options: str) -> tuple[dict[str, str], bytes]:
        if not await deferToThread(_curl_knows_http2):
            raise SkipTest("no curl with HTTP/2 is installed")
        return await deferToThread(self.nginx.curl, path, *options)

    async def test_http2(self) -> None:
        """Metadata, compressed by the proxy, name the place that the browser knows; frames come byte for byte, and the
        proxy's headers with them; nginx keeps few connections with the proxy."""
        await self.begin()
        head, body = await self.curl(f"/dicomweb/{self.slide.resource}/metadata", "-H", "Accept-Encoding: gzip")
        self.assertEqual((head[":version"], head[":status"], head["content-encoding"]), ("HTTP/2", "200", "gzip"))
        url = f"https://localhost:{self.nginx.port}/dicomweb/{self.slide.resource}"
        self.assertIn(f'"{url}"'.encode(), gzip.decompress(body))
        accept = ("-H", f"Accept: {STORED}")
        for _ in range(8):
            head, body = await self.curl(f"/dicomweb/{self.slide.resource}/frames/2,1", *accept)
        self.assertEqual(head["cache-status"], "twistedproxy; hit")
        self.assertEqual(
            [part.body for part in split_multipart(head["content-type"], body)], [self.stored[1], self.stored[0]]
        )
        tag = ("-H", f"If-None-Match: {head['etag']}")
        head, _ = await self.curl(f"/dicomweb/{self.slide.resource}/frames/2,1", *accept, *tag)
        self.assertEqual(head[":status"], "304")
        self.assertLessEqual(len(self.running.components.connections), 2)

    async def test_claims(self) -> None:
        """What a browser claims of itself changes nothing."""
        await self.begin()
        claims = ("X-Forwarded-Host: evil.test", "X-Forwarded-Prefix: /evil", "Forwarded: host=evil.test")
        options = [option for claim in claims for option in ("-H", claim)]
        head, body = await self.curl(f"/dicomweb/{self.slide.resource}/metadata", *options)
        self.assertEqual(head[":status"], "200")
        self.assertNotIn(b"evil", body)
        self.assertIn(f"https://localhost:{self.nginx.port}/dicomweb/".encode(), body)

    async def test_hidden(self) -> None:
        """The pages that name instances are not to be had, and plain HTTP leads to TLS."""
        await self.begin()
        for path in ("/metrics", "/status.json"):
            self.assertEqual((await self.curl(path))[0][":status"], "404")
        self.assertEqual((await self.curl("/readyz"))[0][":status"], "200")

        def ask() -> bytes:
            with socket.create_connection(("127.0.0.1", self.nginx.plain_port), 20) as connection:
                connection.sendall(b"GET /dicomweb/studies?a=b HTTP/1.0\r\nHost: localhost\r\n\r\n")
                return b"".join(iter(lambda: connection.recv(4096), b""))

        answer = await deferToThread(ask)
        self.assertIn(b" 308 ", answer)
        self.assertIn(b"Location: https://localhost/dicomweb/studies?a=b\r\n", answer)

    async def test_upload(self) -> None:
        """A STOW is on its way to the store before the browser has sent all of it."""
        await self.begin()
        size = 8 << 20

        def open_and_send() -> Any:
            context = ssl.create_default_context(cafile=str(self.nginx.folder_ / "cert.pem"))
            raw = socket.create_connection(("localhost", self.nginx.port), 20)
            connection = context.wrap_socket(raw, server_hostname="localhost")
            head = f"POST /dicomweb/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n"
            connection.sendall(
                f"{head}Content-Type: multipart/related; boundary=none\r\n\r\n".encode() + bytes(size // 2)
            )
            return connection

        connection = await deferToThread(open_and_send)
        self.addCleanup(connection.close)
        await wait_until(self.at_store, "the store saw a part of it")

        def send_rest() -> bytes:
            connection.sendall(bytes(size // 2))
            return bytes(connection.recv(4096))

        self.assertIn(b"HTTP/1.1 200", await deferToThread(send_rest))

    def at_store(self) -> bool:
        """Whether the store has got a megabyte of an upload."""
        return any(seen.method == "POST" and seen.body_bytes > 1 << 20 for seen in self.origin.requests)

    async def test_load(self) -> None:
        """Many streams at once get whole answers."""
        if shutil.which("h2load") is None:
            raise SkipTest("h2load is not installed")
        await self.begin()
        path = f"/dicomweb/{self.slide.resource}/frames/1"
        command = ["h2load", "-n", "400", "-c", "4", "-m", "32", "-H", f"accept: {STORED}"]
        run = await deferToThread(
            subprocess.run, [*command, f"https://localhost:{self.nginx.port}{path}"], capture_output=True, text=True
        )
        self.assertIn("400 succeeded, 0 failed, 0 errored, 0 timeout", run.stdout)
        self.assertIn("Application protocol: h2", run.stdout)
