"""The servers that are measured side by side: each answers the same frames of one slide with the same bytes."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import attrs
import psutil

from tests.benchmarks import nginx
from tests.benchmarks.measuring import Fetcher, RedisServer
from tests.running import READY_SECONDS, Child, Proxy, free_port, pinned

NGINX = "nginx, proxy_cache"
NGINX_CREDENTIAL = "nginx, credential in its key"
LEAF = "Twisted leaf resource"
KLEIN = "bare Klein route"
HOT = "the proxy, hot"
LOCAL = "the proxy, from the local cache"
CACHED = "the proxy, from Redis"
CACHED_ELSEWHERE = "the proxy, from Redis on the other core"
ORIGIN = "the proxy, from the origin"
NAMES = (NGINX, NGINX_CREDENTIAL, LEAF, KLEIN, HOT, LOCAL, CACHED, CACHED_ELSEWHERE, ORIGIN)
PROXIES = (HOT, LOCAL, CACHED, ORIGIN)


@attrs.define
class Contender:
    """A server that runs. *url*: what stands before a path of DICOMweb."""

    name: str
    child: Child
    url: str

    @property
    def address(self) -> str:
        """Scheme, host and port."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    def path(self, resource: str) -> str:
        """The request target of a DICOMweb resource."""
        return f"{urlsplit(self.url).path}/{resource}"

    def cpu(self) -> float:
        """Processor seconds that it and all its children have used."""
        return sum(sum(process.cpu_times()[:2]) for process in self.child.family())

    def memory(self) -> int:
        """Bytes of it and its children, shared ones by shares where the system tells."""
        return sum(_memory(process) for process in self.child.family())

    def warm(self, resource: str, headers: Mapping[str, str]) -> bytes:
        """Ask twice; the last body. Raises RuntimeError if that was no 200."""
        fetcher = Fetcher(self.url)
        for _again in range(2):
            answer = fetcher.get(resource, headers)
            if answer.status != 200:
                raise RuntimeError(f"{self.name}: {answer.status} {answer.body[:300]!r}")
        fetcher.close()
        return answer.body

    def length(self, resource: str, headers: Mapping[str, str]) -> int:
        """Bytes of a whole answer, its head included."""
        parts = urlsplit(self.address)
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        with socket.create_connection((parts.hostname, parts.port), READY_SECONDS) as connection:
            request = f"GET {self.path(resource)} HTTP/1.1\r\nHost: {parts.netloc}\r\n{fields}\r\n"
            connection.sendall(request.encode("ascii"))
            received = b""
            while b"\r\n\r\n" not in received:
                received += connection.recv(65536)
            head = received.partition(b"\r\n\r\n")[0].lower()
            return len(head) + 4 + int(head.partition(b"content-length:")[2].split()[0])


def _memory(process: psutil.Process) -> int:
    full = process.memory_full_info()
    return int(getattr(full, "pss", 0) or full.rss)


@attrs.define
class Field:
    """Starts servers on *server_core*; what they need besides runs on *client_core*. *more*: options of all proxies."""

    store_url: str
    server_core: int
    client_core: int
    more: tuple[str, ...]
    keep: Callable[[Child], None]

    def start(self, name: str, size: int) -> Contender:
        """A contender that is ready. *size*: bytes of the bodies of those that only have a constant one."""
        if name in (NGINX, NGINX_CREDENTIAL):
            key = nginx.KEY if name == NGINX else nginx.CREDENTIAL_KEY
            server = nginx.Nginx(self.store_url, key, self.server_core)
            self.keep(server)
            return Contender(name, server.wait_until_ready(), server.url)
        if name in (LEAF, KLEIN):
            return self._bare(name, "bare_leaf" if name == LEAF else "bare_klein", size)
        if name == ORIGIN:
            # An origin that costs next to nothing: nginx with everything in its cache.
            origin = nginx.Nginx(self.store_url, nginx.KEY, self.client_core)
            self.keep(origin)
            return self._proxy(name, origin.wait_until_ready().url, "--hot-memory", "0", "--cache", "none")
        if name == LOCAL:
            return self._proxy(name, self.store_url, "--hot-memory", "0")
        core = self.server_core if name == CACHED else self.client_core
        memory = [] if name == HOT else ["--hot-memory", "0"]
        redis = RedisServer(core=core)
        self.keep(redis)
        return self._proxy(name, self.store_url, "--cache", redis.url, *memory)

    def _proxy(self, name: str, origin: str, *options: str) -> Contender:
        port = free_port()  # Twisted's own backlog is 50, and many clients come at once
        listen = f"tcp:{port}:interface=127.0.0.1:backlog=4096"
        quiet = ["--prefetch", "off", "--render-workers", "0"]
        proxy = Proxy("--origin", origin, "--listen", listen, *quiet, *options, *self.more, core=self.server_core)
        self.keep(proxy)
        proxy.wait_until_ready()
        return Contender(name, proxy, f"http://127.0.0.1:{port}/dicomweb")

    def _bare(self, name: str, module: str, size: int) -> Contender:
        port = free_port()
        command = [sys.executable, "-m", f"tests.benchmarks.{module}", str(port), str(size)]
        child = Child(pinned(command, self.server_core))
        self.keep(child)
        child.wait_until_it_listens(port)
        return Contender(name, child, f"http://127.0.0.1:{port}/dicomweb")
