"""The cache on real servers: one on a socket, one over TCP with a login, one over TLS, sentinels."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import attrs
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.endpoints import serverFromString
from twisted.logger import LogEvent, globalLogPublisher
from twisted.protocols.portforward import ProxyFactory
from twisted.trial.unittest import TestCase

from tests.cache.certificates import certificate
from tests.cache.contract import CacheContract
from tests.cache.support import A, RunningServer, any_server, ask, installed_reactor, until
from tests.running import free_port
from twistedproxy.cache.address import Login, RedisAddress, SentinelAddress, UnixAddress
from twistedproxy.cache.interface import LARGE, Cache, CacheUnavailable
from twistedproxy.cache.redis import cache as redis
from twistedproxy.cache.redis import connection, large
from twistedproxy.cache.redis import server as servers
from twistedproxy.cache.redis.cache import RedisCache, redis_cache
from twistedproxy.cache.redis.keys import redis_keys
from twistedproxy.cache.redis.pipeline import Patience
from twistedproxy.dicom.resource import Instance


class Servers(TestCase):
    """Makes caches and servers, and ends them."""

    async def server(self, *arguments: str, configuration: str = "") -> RunningServer:
        server = RunningServer(any_server(), *arguments, configuration=configuration)
        await server.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(server.stop()))
        return server

    async def open(self, address: Any, **more: Any) -> RedisCache:
        cache = redis_cache(installed_reactor(), address, **more)
        self.opened = [*getattr(self, "opened", ()), cache]
        self.addCleanup(lambda: Deferred.fromCoroutine(cache.stop()))
        await cache.start()
        return cache

    def logged(self) -> list[str]:
        """All that is logged from now on, with every field."""
        lines: list[str] = []

        def observe(event: LogEvent) -> None:
            lines.append(repr(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        return lines


async def put(cache: Cache, entries: dict[bytes, bytes], seconds: Optional[float] = 60.0) -> bool:
    """Put entries below `A` under the present fence."""
    return await cache.put_many(A, (await cache.get_many(A, [])).fence, entries, seconds)


class RedisContractTests(CacheContract, Servers):
    """The shared suite, on a server that evicts when it is full."""

    async def setUp(self) -> None:
        self.server_process = await self.server("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
        self.cache = await self.open(UnixAddress(self.server_process.socket))

    async def pass_time(self, condition: Callable[[], Any]) -> None:
        await until(condition)

    def generations(self, instance: Instance) -> tuple[bytes, ...]:
        return redis_keys(instance).generations

    async def lose(self, key: bytes) -> None:
        self.assertEqual(await ask(self.server_process.socket, b"DEL", key), 1)


class GatheringTests(Servers):
    """Reads of one reactor turn."""

    async def setUp(self) -> None:
        self.path = (await self.server()).socket
        self.redis = await self.open(UnixAddress(self.path))

    async def mgets(self) -> int:
        info = (await ask(self.path, b"INFO", b"commandstats")).decode()
        line = next((line for line in info.splitlines() if line.startswith("cmdstat_mget:")), "calls=0,")
        return int(line.partition("calls=")[2].partition(",")[0])

    async def test_readers_of_one_turn_share_a_round_trip(self) -> None:
        """Fifty readers make one MGET, and each gets its own entry."""
        instances = [attrs.evolve(A, sop=f"1.{number}") for number in range(10)]
        for instance in instances:
            fence = (await self.redis.get_many(instance, [])).fence
            await self.redis.put_many(instance, fence, {b"%d" % n: instance.sop.encode() for n in range(5)}, 60.0)
        before = await self.mgets()
        reads = [(one, b"%d" % n) for one in instances for n in range(5)]
        readings = await gatherResults(
            [Deferred.fromCoroutine(self.redis.get_many(one, [name])) for one, name in reads]
        )
        self.assertEqual([dict(reading.entries) for reading in readings], [{n: i.sop.encode()} for i, n in reads])
        self.assertEqual(await self.mgets() - before, 1)

    async def test_a_long_list_is_cut(self) -> None:
        """No single MGET asks for too much: a thousand names take several."""
        await put(self.redis, {b"%d" % number: b"x" for number in range(1000)})
        before = await self.mgets()
        reading = await self.redis.get_many(A, [b"%d" % number for number in range(1000)])
        self.assertEqual(len(reading.entries), 1000)
        self.assertEqual(await self.mgets() - before, 8)

    async def test_a_reader_that_leaves_ends_only_its_own_wait(self) -> None:
        """Before or after the turn's end, the others get their entries."""
        await put(self.redis, {b"1": b"one"})
        for turns in (0, 1):
            reads = [Deferred.fromCoroutine(self.redis.get_many(A, [b"1"])) for _ in range(4)]
            if turns:
                await turn()
            reads[1].cancel()
            await self.assertFailure(reads[1], CancelledError)
            for read in (reads[0], reads[2], reads[3]):
                self.assertEqual((await read).entries, {b"1": b"one"})

    async def test_a_writer_that_leaves_does_not_shift_the_replies(self) -> None:
        """What is asked after an abandoned command gets its own answer."""
        claim = Deferred.fromCoroutine(self.redis.claim(A, [b"1", b"2", b"3"], b"me", 60.0))
        claim.cancel()
        await self.assertFailure(claim, CancelledError)
        self.assertEqual(await self.redis.claim(A, [b"3", b"4"], b"you", 60.0), {b"4"})


async def turn() -> None:
    """Let the reactor run once."""
    done: Deferred[None] = Deferred()
    installed_reactor().callLater(0, done.callback, None)
    await done


class TroubleTests(Servers):
    """Servers that die, stall, are full or say no."""

    async def test_a_server_killed_under_use_costs_no_answer(self) -> None:
        """Reading and writing go on without an error, and hits resume once it is started again."""
        server = await self.server()
        cache = await self.open(UnixAddress(server.socket))
        outcomes: list[bool] = []
        over = False

        async def use() -> None:
            while not over:
                await put(cache, {b"1": b"one"})
                outcomes.append(b"1" in (await cache.get_many(A, [b"1"])).entries)
                await turn()

        users = gatherResults([Deferred.fromCoroutine(use()) for _ in range(5)])
        await until(lambda: sum(outcomes) > 100)
        await server.kill()
        await until(lambda: False in outcomes[-5:])
        await server.start()
        await until(lambda: all(outcomes[-100:]))
        over = True
        await users

    async def test_a_server_that_comes_back_from_a_snapshot_is_empty(self) -> None:
        """What was forgotten or taken back after a snapshot does not come back with it; nor does anything else, for no
        worker need have been there to know. What is written then stays."""
        server = await self.server()
        cache = await self.open(UnixAddress(server.socket))
        other, third = (attrs.evolve(A, study=study) for study in ("9.1", "9.2"))
        for instance in (A, other, third):
            fence = (await cache.get_many(instance, [])).fence
            self.assertTrue(await cache.put_many(instance, fence, {b"1": b"old"}, 60.0))
        self.assertEqual(await ask(server.socket, b"SAVE"), b"OK")
        await cache.invalidate(A.scope)
        await cache.remove(other, [b"1"])
        self.assertTrue(await put(cache, {b"1": b"new"}))
        old_fence = (await cache.get_many(A, [])).fence
        await server.kill()
        await server.start()
        self.assertTrue(await cache.wait_up(10.0))
        self.assertGreater(await ask(server.socket, b"DBSIZE"), 0)
        for instance in (A, other, third):
            self.assertEqual((await cache.get_many(instance, [b"1"])).entries, {})
            self.assertEqual(await cache.present(instance, [b"1"]), set())
            self.assertEqual((await cache.heads(instance, [b"1"], 9)).entries, {})
        await cache.put_many(A, old_fence, {b"1": b"late"}, 60.0)
        self.assertEqual((await cache.get_many(A, [b"1"])).entries, {})
        self.assertTrue(await put(cache, {b"1": b"one"}))
        again = await self.open(UnixAddress(server.socket))
        self.assertEqual((await again.get_many(A, [b"1"])).entries, {b"1": b"one"})

    async def test_a_server_that_does_not_tell_its_run(self) -> None:
        """Without the right to INFO all works, but for what depends on it."""
        server = await self.server("--rename-command", "INFO", "")
        cache = await self.open(UnixAddress(server.socket))
        self.assertTrue(await put(cache, {b"1": b"one"}))
        self.assertEqual((await cache.get_many(A, [b"1"])).entries, {b"1": b"one"})

    async def test_while_a_server_is_down_nobody_waits(self) -> None:
        """Every operation fails at once, none raises but invalidate and ping, and all of it works again with the server."""
        folder = Path(tempfile.mkdtemp(prefix="cache-test-"))
        self.addCleanup(shutil.rmtree, folder)
        self.patch(redis, "START_SECONDS", 0.1)
        cache = await self.open(UnixAddress(str(folder / "socket")))
        began = installed_reactor().seconds()
        for _ in range(200):
            reading = await cache.get_many(A, [b"1"])
            self.assertEqual((reading.fence, reading.entries), (None, {}))
            self.assertFalse(await cache.put_many(A, b"12345678", {b"1": b"one"}, 60.0))
            self.assertEqual(await cache.claim(A, [b"1"], b"me", 60.0), set())
            self.assertIsNone(await cache.claim_left(A, b"1"))
            await cache.unclaim(A, [b"1"], b"me")
            await cache.renew_claims(A, [b"1"], b"me", 1.0)
            await cache.remove(A, [b"1"])
        self.assertTrue(installed_reactor().seconds() - began < servers.READ_PATIENCE.silence)
        for call in (cache.invalidate(A.scope), cache.ping()):
            with self.assertRaises(CacheUnavailable):
                await call
        status = await cache.status()
        self.assertEqual(status["connected"], False)
        self.assertIn("cannot connect", str(status["reason"]))

        server = RunningServer(any_server(), "--unixsocket", str(folder / "socket"))
        server.socket = str(folder / "socket")
        await server.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(server.stop()))
        await until(lambda: put(cache, {b"1": b"one"}))
        self.assertEqual((await cache.get_many(A, [b"1"])).entries, {b"1": b"one"})

    async def test_a_server_that_stalls_is_a_miss_after_the_deadline(self) -> None:
        """Who waited gets a miss in time, who comes later one at once; when the server goes on, so does the cache."""
        self.patch(servers, "READ_PATIENCE", Patience(0.2, 1.0))
        self.patch(servers, "WRITE_PATIENCE", Patience(0.2, 1.0))
        server = await self.server()
        cache = await self.open(UnixAddress(server.socket))
        await put(cache, {b"1": b"one"})
        server.signal(signal.SIGSTOP)
        clock = installed_reactor().seconds
        began = clock()
        reading = await cache.get_many(A, [b"1"])
        self.assertIsNone(reading.fence)
        self.assertTrue(0.2 <= clock() - began < 1.5, clock() - began)
        began = clock()
        for _ in range(100):
            await cache.get_many(A, [b"1"])
        self.assertTrue(clock() - began < 0.2, clock() - began)
        server.signal(signal.SIGCONT)

        async def hit() -> bool:
            return (await cache.get_many(A, [b"1"])).entries == {b"1": b"one"}

        await until(hit)

    async def test_a_full_server_refuses_and_is_read_all_the_same(self) -> None:
        """Without eviction a put is False, an invalidation still works, and the log has one line, not one for each."""
        server = await self.server("--maxmemory", "4mb", "--maxmemory-policy", "noeviction")
        cache = await self.open(UnixAddress(server.socket))
        await put(cache, {b"1": b"one"})
        lines = self.logged()
        full = [await put(cache, {b"x%d" % number: b"x" * 500_000}) for number in range(20)]
        self.assertFalse(any(full[10:]), full)
        self.assertEqual((await cache.get_many(A, [b"1"])).entries, {b"1": b"one"})
        self.assertEqual(sum("OOM" in line for line in lines), 1)
        await cache.invalidate(A.scope)
        self.assertEqual((await cache.get_many(A, [b"1"])).entries, {})

    async def test_a_large_entry_that_is_not_whole_is_a_miss(self) -> None:
        """What was evicted of a large entry, or did not fit, makes a miss of it."""
        server = await self.server()
        cache = await self.open(UnixAddress(server.socket))
        await put(cache, {b"1": bytes(3 * LARGE)})
        self.assertEqual(list((await cache.get_many(A, [b"1"])).entries), [b"1"])
        entry = redis_keys(A).entry(b"1")
        (place,) = [key for key in await ask(server.socket, b"KEYS", b"*") if key.startswith(entry) and key != entry]
        await ask(server.socket, b"DEL", place)
        self.assertEqual((await cache.get_many(A, [b"1"])).entries, {})
        await ask(server.socket, b"CONFIG", b"SET", b"maxmemory", b"4mb", b"maxmemory-policy", b"noeviction")
        self.assertFalse(await put(cache, {b"2": bytes(3 * LARGE)}))
        self.assertEqual(await cache.present(A, [b"2"]), set())

    async def test_few_large_entries_are_read_at_once(self) -> None:
        """However many readers there are: they may find that there is no memory for what they read."""
        server = await self.server()
        cache = await self.open(UnixAddress(server.socket))
        value = bytes(3 * LARGE)
        await put(cache, {b"1": value})
        assert isinstance(cache._servers, servers.Server)
        reads, running, most = cache._servers.reads, 0, 0
        send = reads.send

        def counted(wire: bytes, count: int) -> Deferred[list[object]]:
            nonlocal running, most
            running += 1
            most = max(most, running)

            def ended(replies: list[object]) -> list[object]:
                nonlocal running
                running -= 1
                return replies

            return send(wire, count).addCallback(ended)

        self.patch(reads, "send", counted)
        readings = await gatherResults([Deferred.fromCoroutine(cache.get_many(A, [b"1"])) for _ in range(6)])
        self.assertEqual([reading.entries for reading in readings], [{b"1": value}] * 6)
        self.assertEqual(most, large.READS)

    async def test_a_replica_takes_no_writes(self) -> None:
        """A put is False, and an invalidation that failed is an error."""
        server = await self.server()
        cache = await self.open(UnixAddress(server.socket))
        fence = (await cache.get_many(A, [])).fence
        await ask(server.socket, b"REPLICAOF", b"127.0.0.1", b"1")
        self.assertFalse(await cache.put_many(A, fence, {b"1": b"one"}, 60.0))
        with self.assertRaises(CacheUnavailable):
            await cache.invalidate(A.scope)

    async def test_values_of_others_are_misses(self) -> None:
        """Keys that hold another type, or something short, are no entries, and are written over."""
        server = await self.server()
        cache = await self.open(UnixAddress(server.socket))
        fence = (await cache.get_many(A, [])).fence
        await ask(server.socket, b"RPUSH", redis_keys(A).entry(b"1"), b"x")
        await ask(server.socket, b"SET", redis_keys(A).entry(b"2"), b"x")
        self.assertEqual((await cache.get_many(A, [b"1", b"2"])).entries, {})
        self.assertTrue(await cache.put_many(A, fence, {b"1": b"one"}, 60.0))
        self.assertEqual((await cache.get_many(A, [b"1"])).entries, {b"1": b"one"})

    async def test_what_waits_to_be_written_is_bounded(self) -> None:
        """A server that takes nothing is not written to without end: puts beyond the bound are False at once."""
        self.patch(connection, "MAX_OUTSTANDING_BYTES", 3 * 2**20)
        server = await self.server()
        cache = await self.open(UnixAddress(server.socket))
        fence = (await cache.get_many(A, [])).fence
        server.signal(signal.SIGSTOP)
        puts = [
            Deferred.fromCoroutine(cache.put_many(A, fence, {b"%d" % number: b"x" * 2**20}, 60.0))
            for number in range(10)
        ]
        self.assertEqual([one.called for one in puts], [False] * 2 + [True] * 8)
        server.signal(signal.SIGCONT)
        self.assertEqual(await gatherResults(puts), [True] * 2 + [False] * 8)


class AddressTests(Servers):
    """Servers with a login, another database, TLS, sentinels."""

    async def test_a_login_and_a_database(self) -> None:
        """They are used; a wrong password is a cache that is down, in no log, and works once the server accepts it."""
        port = free_port()
        server = await self.server("--port", str(port), "--bind", "127.0.0.1")
        await ask(server.socket, b"CONFIG", b"SET", b"requirepass", b"other-secret")
        self.patch(redis, "START_SECONDS", 0.3)
        lines = self.logged()
        cache = await self.open(RedisAddress("127.0.0.1", port, 3, False, Login(None, "right-secret")))
        self.assertIsNone((await cache.get_many(A, [])).fence)
        status = await cache.status()
        self.assertIn("refused", str(status["reason"]))
        await ask(server.socket, b"CONFIG", b"SET", b"requirepass", b"right-secret", password=b"other-secret")
        await until(lambda: put(cache, {b"1": b"one"}))
        keyspace = await ask(server.socket, b"INFO", b"keyspace", password=b"right-secret")
        self.assertIn(b"db3:keys=5", keyspace)
        self.assertNotIn("secret", "".join(lines) + repr(await cache.status()))

    async def test_a_refusal_is_said_once(self) -> None:
        """While a server refuses us, pauses grow, and the log has one line; one more when it takes us."""
        port = free_port()
        server = await self.server("--port", str(port), "--bind", "127.0.0.1")
        await ask(server.socket, b"CONFIG", b"SET", b"requirepass", b"other-secret")
        self.patch(redis, "START_SECONDS", 0.1)
        delays: list[float] = []
        retry_delay = connection._Factory.retryDelay

        def recorded(factory: Any, attempt: int) -> float:
            delays.append(retry_delay(factory, attempt))
            return delays[-1]

        self.patch(connection._Factory, "retryDelay", recorded)
        self.patch(connection._Factory, "jitter", 0.0)
        lines = self.logged()
        cache = await self.open(RedisAddress("127.0.0.1", port, login=Login(None, "right-secret")))
        await until(lambda: len(delays) >= 6)
        self.assertFalse(await put(cache, {b"1": b"one"}))
        self.assertEqual(sorted(delays)[:6:2], sorted(delays)[1:6:2])  # of each connection
        self.assertGreater(sorted(delays)[4], 4 * delays[0])
        said = [line for line in lines if "cache" in line and "Scheduling" not in line]
        self.assertEqual(len(said), 1, said)
        self.assertIn("the server refused the connection: WRONGPASS", said[0])
        await ask(server.socket, b"CONFIG", b"SET", b"requirepass", b"right-secret", password=b"other-secret")
        await until(lambda: put(cache, {b"1": b"one"}))
        said = [line for line in lines if "cache" in line and "Scheduling" not in line]
        self.assertEqual([("unavailable" in line, "available" in line) for line in said], [(True, True), (False, True)])

    async def test_a_server_that_repeats_the_password_is_not_quoted(self) -> None:
        """One without AUTH names what it was sent in its error."""
        port = free_port()
        await self.server("--port", str(port), "--bind", "127.0.0.1", "--rename-command", "AUTH", "")
        self.patch(redis, "START_SECONDS", 0.1)
        lines = self.logged()
        cache = await self.open(RedisAddress("127.0.0.1", port, login=Login(None, "right-secret")))
        self.assertIn("unknown command", str((await cache.status())["reason"]))
        self.assertNotIn("secret", "".join(lines) + repr(await cache.status()))

    async def test_tls_is_verified(self) -> None:
        """A server whose certificate was signed by one we trust is used; any other, or another name, is not."""
        folder = tempfile.mkdtemp(prefix="cache-test-")
        self.addCleanup(shutil.rmtree, folder)
        trusted = certificate(Path(folder), "localhost")
        port = await self.behind_tls(Path(folder))
        self.patch(redis, "START_SECONDS", 1.0)
        good = await self.open(RedisAddress("localhost", port, tls=True), trust_root=trusted)
        self.assertTrue(await put(good, {b"1": b"one"}))
        for name, more in (("localhost", {}), ("127.0.0.1", {"trust_root": trusted})):
            bad = await self.open(RedisAddress(name, port, tls=True), **more)
            self.assertIsNone((await bad.get_many(A, [b"1"])).fence, name)

    async def behind_tls(self, folder: Path) -> int:
        """The port of a server behind TLS, with the certificate in *folder*; the servers of some packages have none."""
        inner = free_port()
        await self.server("--port", str(inner), "--bind", "127.0.0.1")
        files = f"privateKey={folder}/key.pem:certKey={folder}/cert.pem"
        endpoint = serverFromString(installed_reactor(), f"ssl:0:interface=127.0.0.1:{files}")
        listening = await endpoint.listen(ProxyFactory("127.0.0.1", inner))
        self.addCleanup(listening.stopListening)
        return int(listening.getHost().port)

    async def test_sentinels_name_the_master(self) -> None:
        """The cache goes where they say."""
        port, sentinel_port = free_port(), free_port()
        await self.server("--port", str(port), "--bind", "127.0.0.1")
        own = f"port {sentinel_port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {port} 1\n"
        await self.server("--sentinel", configuration=own)
        cache = await self.open(SentinelAddress((("127.0.0.1", sentinel_port),), "main"))
        await until(lambda: put(cache, {b"1": b"one"}))
        self.assertEqual((await cache.get_many(A, [b"1"])).entries, {b"1": b"one"})
