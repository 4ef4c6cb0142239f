"""deploy/redis.conf and redis-users.acl, run: a Redis server with TLS and one login, and a whole proxy that uses it.

Only places are changed in them.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase

from tests import slides
from tests.cache.certificates import certificate
from tests.cache.support import any_server
from tests.clients import Client, client
from tests.live.test_nginx import deployed, replaced
from tests.running import READY_SECONDS, Child, Proxy, Store, free_port


class OwnRedisTests(TestCase):
    """A cache of one's own."""

    timeout = 90

    def start_redis(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="redis-"))
        self.addCleanup(shutil.rmtree, self.folder, True)
        certificate(self.folder, "localhost")
        self.port = free_port()
        (self.folder / "users.acl").write_text(deployed("redis-users.acl"))
        text = replaced(
            deployed("redis.conf"),
            ("bind 10.0.0.5", "bind 127.0.0.1"),
            ("tls-port 6380", f"tls-port {self.port}"),
            ("/etc/redis/ca.pem", f"{self.folder}/cert.pem"),
            ("/etc/redis/", f"{self.folder}/"),
        )
        (self.folder / "redis.conf").write_text(text)
        self.redis = Child([any_server(), str(self.folder / "redis.conf")])
        self.addCleanup(self.redis.remove)

    def wait_for_redis(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while "Ready to accept connections" not in self.redis.output():
            if not self.redis.running() or time.monotonic() > deadline:
                if "TLS" in self.redis.output():
                    raise SkipTest("this server knows no TLS")
                raise RuntimeError(self.redis.output()[-2000:])
            time.sleep(0.02)

    async def test_everything(self) -> None:
        """Frames are cached, instances loaded whole and ahead of their readers, and forgotten, with the rights that the login has."""
        self.start_redis()
        await deferToThread(self.wait_for_redis)
        environment = {
            "SSL_CERT_FILE": str(self.folder / "cert.pem"),
            "TWISTEDPROXY_CACHE": f"rediss://twistedproxy:a-long-random-password@localhost:{self.port}/0",
        }
        for name, kind, size in (("a", "whole", "8000"), ("b", "ahead", "256")):
            made = slides.slide(self.folder / f"{name}.dcm", 10, 10, 64)
            store = Store(str(made.path))
            self.addCleanup(store.remove)
            url = await deferToThread(store.wait_until_ready)
            more = ("--hot-memory", "0", "--workers", "2", "--whole-instance-max-cpu", "100", "--block-pixels", size)
            more += ("--whole-instance", "on" if kind == "whole" else "off")
            proxy = await Proxy.started("--origin", url, *more, environment=environment)
            self.addCleanup(proxy.remove)
            ask = client(self, f"{proxy.url}/dicomweb")
            await ask.frames(made.resource, [1])
            await self.load(client(self, proxy.url), kind)
            count = 100 if kind == "whole" else 4
            answer = await ask.frames(made.resource, range(1, count + 1))
            self.assertEqual(answer.headers["cache-status"], "twistedproxy; hit")
            self.assertEqual(answer.frames(), made.stored_frames()[:count])
            deleted = await ask.request("DELETE", f"/{made.resource}")
            self.assertLess(deleted.status, 300)
            self.assertEqual((await ask.frames(made.resource, [1])).status, 404)
            proxy.stop()
            for word in ("NOPERM", "WRONGPASS", "NOAUTH", "ACL", "the server answered"):
                self.assertNotIn(word, proxy.output())

    async def load(self, root: Client, kind: str) -> None:
        """Return once an instance was loaded."""
        while True:  # the test's deadline ends it
            status = (await root.get("/status.json")).json()
            self.assertEqual((status["cache"]["connected"], status["cache"]["policy"]), (True, "allkeys-lru"))
            results = [job["result"] for job in status["jobs"]["ended"] if job["kind"] == kind]
            if results:
                break
            await deferToThread(time.sleep, 0.05)
        self.assertEqual(results, ["done"])
