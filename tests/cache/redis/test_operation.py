"""What operators see and do: probes, sharding proxies, logins that are renewed, a cluster with TLS and restricted logins."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.internet.threads import deferToThread
from twisted.protocols.portforward import ProxyFactory, ProxyServer
from twisted.trial.unittest import SkipTest

from tests.cache.certificates import certificate
from tests.cache.redis.cluster_servers import RunningCluster, shared_cluster
from tests.cache.redis.test_cache import Servers, put
from tests.cache.support import A, ask, installed_reactor, until
from tests.live.test_nginx import deployed
from tests.running import Child, free_port, listens
from twistedproxy.cache.address import Login, LoginFiles, RedisAddress, UnixAddress
from twistedproxy.cache.interface import Cache, CacheUnavailable
from twistedproxy.cache.redis import cache as redis
from twistedproxy.cache.redis.endpoint import PING


class ProbeTests(Servers):
    """Whether the cache works, as ``/readyz`` and the metrics have it."""

    async def test_a_server_that_takes_no_writes(self) -> None:
        """It is connected, and does not work: the reason is the server's own."""
        server = await self.server("--maxmemory-policy", "noeviction")
        cache = await self.open(UnixAddress(server.socket))
        await ask(server.socket, b"CONFIG", b"SET", b"maxmemory", b"1")
        with self.assertRaisesRegex(CacheUnavailable, "OOM"):
            await cache.ping()
        status = await cache.status()
        self.assertEqual((status["connected"], status["works"]), (True, False))
        self.assertIn("OOM", str(status["reason"]))
        await ask(server.socket, b"CONFIG", b"SET", b"maxmemory", b"0")
        await cache.ping()
        self.assertEqual((await cache.status())["works"], True)

    async def test_a_login_that_may_not_read(self) -> None:
        """Rights are among the reasons."""
        server = await self.server()
        cache = await self.open(UnixAddress(server.socket))
        await cache.ping()
        for rule in (b"-get", b"+get", b"-set"):
            await ask(server.socket, b"ACL", b"SETUSER", b"default", rule)
            if rule.startswith(b"-"):
                with self.assertRaisesRegex(CacheUnavailable, "NOPERM"):
                    await cache.ping()

    async def test_every_master_is_probed(self) -> None:
        """One of three that takes no writes is found."""
        cluster = await shared_cluster()
        cache = await self.open(cluster.address)
        await cache.ping()
        for node in await cluster.masters():
            await node.ask(b"CONFIG", b"SET", b"min-replicas-to-write", b"3")
            with self.assertRaisesRegex(CacheUnavailable, f"{node.port}.*NOREPLICAS"):
                await cache.ping()
            await node.ask(b"CONFIG", b"SET", b"min-replicas-to-write", b"0")
            await cache.ping()
        status = await cache.status()
        self.assertEqual((status["connected"], status["works"], len(status["nodes"])), (True, True, 3))  # type: ignore[arg-type]


class OlderClusterTests(Servers):
    """Redis before version 7."""

    async def test_one_that_knows_no_shards(self) -> None:
        """It is asked for its slots."""
        cluster = await shared_cluster()
        for rule in (b"-cluster|shards", b"+cluster|shards"):
            for node in cluster.nodes:
                await node.ask(b"ACL", b"SETUSER", b"default", rule)
            if rule.startswith(b"-"):
                cache = await self.open(cluster.address)
                self.assertTrue(await put(cache, {b"F%x" % number: b"x" for number in range(100)}))
                await cache.ping()


class ShardingServer(ProxyServer):  # type: ignore[misc]
    """Hangs up at commands that it does not know, as sharding proxies do; what came with one may stay unanswered."""

    def dataReceived(self, data: bytes) -> None:
        if b"INFO" in data or b"ROLE" in data or b"WAIT" in data:
            self.transport.loseConnection()
            return
        if data.startswith(PING):
            self.transport.write(b"+PONG\r\n")
            data = data.removeprefix(PING)
        super().dataReceived(data)


class ShardingProxyTests(Servers):
    """A proxy in front of servers, which knows no command but those that have keys."""

    async def works(self, cache: Cache) -> None:
        await until(lambda: put(cache, {b"1": b"one", b"F1f": b"two"}))
        self.assertEqual((await cache.get_many(A, [b"1", b"F1f"])).entries, {b"1": b"one", b"F1f": b"two"})
        names = [b"F%x" % number for number in range(40)]
        self.assertEqual(await cache.claim(A, names, b"me", 60.0), set(names))
        await cache.unclaim(A, names, b"me")
        self.assertEqual(await cache.claim(A, names, b"you", 60.0), set(names))
        status = await cache.status()
        self.assertEqual((status["connected"], status["works"]), (True, True))
        self.assertNotIn("used_bytes", status)
        await cache.invalidate(A.scope)
        self.assertEqual((await cache.get_many(A, [b"1", b"F1f"])).entries, {})
        await cache.ping()

    async def test_one_that_hangs_up(self) -> None:
        """It costs the figures, after two tries of each connection."""
        port = free_port()
        await self.server("--port", str(port), "--bind", "127.0.0.1")
        factory = ProxyFactory("127.0.0.1", port)
        factory.protocol = ShardingServer
        listening: IListeningPort = await serverFromString(installed_reactor(), "tcp:0:interface=127.0.0.1").listen(
            factory
        )
        self.addCleanup(listening.stopListening)
        await self.works(await self.open(RedisAddress("127.0.0.1", listening.getHost().port)))

    async def test_nutcracker(self) -> None:
        """The real one, with two servers; ``hash_tag`` keeps what belongs together on one."""
        binary = shutil.which("nutcracker")
        if binary is None:
            raise SkipTest("no nutcracker")
        ports = [free_port() for _ in range(2)]
        for port in ports:
            await self.server("--port", str(port), "--bind", "127.0.0.1")
        nutcracker = Child([binary, "--version"])
        self.addCleanup(nutcracker.remove)
        servers = "".join(f"    - 127.0.0.1:{port}:1\n" for port in ports)
        listen = 0

        def answers() -> bool:
            if nutcracker.running():
                return listens(listen)
            start()  # somebody else took one of the ports
            return False

        def start() -> None:
            nonlocal listen
            listen, stats = free_port(), free_port()
            lines = f"  listen: 127.0.0.1:{listen}\n  redis: true\n  hash_tag: '{{}}'\n  servers:\n{servers}"
            (nutcracker.folder / "conf.yml").write_text(f"pool:\n{lines}")
            nutcracker.start(
                [binary, "--conf-file", "conf.yml", "--stats-port", str(stats), "--stats-addr", "127.0.0.1"]
            )

        await until(answers, "nutcracker")
        await self.works(await self.open(RedisAddress("127.0.0.1", listen)))


class RenewedLoginTests(Servers):
    """User and password in files."""

    async def test_they_are_read_at_each_connect(self) -> None:
        """After the password was changed, in the file too, the next connection has the new one; neither is logged. A file that is
        missing or empty is named."""
        folder = Path(tempfile.mkdtemp(prefix="cache-test-"))
        self.addCleanup(shutil.rmtree, folder)
        user, password = folder / "user", folder / "password"
        user.write_text("me\n")
        password.write_text("first-secret\n")
        port = free_port()
        server = await self.server("--port", str(port), "--bind", "127.0.0.1")
        own = (b"ACL", b"SETUSER", b"me", b"on", b"~*", b"&*", b"+@all", b"resetpass")
        await ask(server.socket, *own, b">first-secret")
        lines = self.logged()
        self.patch(redis, "START_SECONDS", 2.0)
        cache = await self.open(RedisAddress("127.0.0.1", port, login=LoginFiles(str(user), str(password))))
        self.assertTrue(await put(cache, {b"1": b"one"}))
        await ask(server.socket, *own, b">other-secret")
        password.write_text("other-secret\n")
        await ask(server.socket, b"CLIENT", b"KILL", b"USER", b"me")
        await until(lambda: put(cache, {b"1": b"two"}))
        password.write_text("")
        await ask(server.socket, b"CLIENT", b"KILL", b"USER", b"me")

        async def named() -> bool:
            return f"{password} is empty" in str((await cache.status()).get("reason"))

        await until(named)
        password.unlink()
        await until(
            lambda: any(f"cannot read {password}" in line for line in lines) or self.reason(cache, "cannot read")
        )
        self.assertNotIn("secret", "".join(lines) + repr(await cache.status()) + repr(cache.address))

    async def reason(self, cache: Cache, words: str) -> bool:
        return words in str((await cache.status()).get("reason"))


class ClusterWithTlsTests(Servers):
    """deploy/redis-users.acl, on a cluster that speaks TLS only."""

    timeout = 60

    async def test_everything(self) -> None:
        """Frames are put, read, claimed, taken back and invalidated, large ones too, with the rights that the login has; a
        certificate of another authority is refused."""
        folder = Path(tempfile.mkdtemp(prefix="cache-test-"))
        self.addCleanup(shutil.rmtree, folder)
        trusted = certificate(folder, "127.0.0.1")
        cluster_users = (
            "user replica on >other-password -@all +psync +replconf +ping\nuser admin on nopass ~* &* +@all\n"
        )
        (folder / "users.acl").write_text(deployed("redis-users.acl") + cluster_users)
        files = (
            f"--tls-cert-file {folder}/cert.pem --tls-key-file {folder}/key.pem --tls-ca-cert-file {folder}/cert.pem"
        )
        tls = f"--tls-auth-clients no --tls-cluster yes --tls-replication yes --aclfile {folder}/users.acl"
        login = "--masteruser replica --masterauth other-password"
        cli = f"--tls --cacert {folder}/cert.pem --user admin --pass none --no-auth-warning".split()
        cluster = RunningCluster(f"{files} {tls} {login}".split(), cli, tls=True)
        self.addCleanup(cluster.remove)
        await deferToThread(cluster.form)
        lines = self.logged()
        cache = await self.open(cluster.secured(Login("twistedproxy", "a-long-random-password")), trust_root=trusted)
        entries = {b"F%x" % number: b"%d" % number for number in range(1, 200)} | {b"large": bytes(9 << 20)}
        self.assertTrue(await put(cache, entries))
        self.assertEqual(dict((await cache.get_many(A, list(entries))).entries), entries)
        self.assertEqual(len((await cache.heads(A, list(entries), 4)).entries), 200)
        names = list(entries)[:40]
        self.assertEqual(await cache.claim(A, names, b"me", 60.0), set(names))
        await cache.renew_claims(A, names, b"me", 60.0)
        await cache.unclaim(A, names, b"me")
        self.assertEqual(await cache.claim(A, names, b"you", 60.0), set(names))
        self.assertTrue(await cache.remove(A, names))
        await until(
            lambda: Deferred.fromCoroutine(cache.invalidate(A.scope)).addCallbacks(lambda _: True, lambda _: False)
        )
        self.assertEqual((await cache.get_many(A, list(entries))).entries, {})
        self.assertTrue(await put(cache, entries))
        self.assertEqual(dict((await cache.get_many(A, names)).entries), {name: entries[name] for name in names})
        await cache.ping()
        self.assertEqual((await cache.status())["works"], True)
        for word in ("NOPERM", "WRONGPASS", "NOAUTH", "a-long-random-password"):
            self.assertNotIn(word, "".join(lines))
        self.patch(redis, "START_SECONDS", 1.0)
        bad = await self.open(cluster.secured(Login("twistedproxy", "a-long-random-password")))
        self.assertIsNone((await bad.get_many(A, [])).fence)
