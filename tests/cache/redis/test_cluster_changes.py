"""A real cluster whose nodes die, come back, and hand slots to one another, while it is used."""

from __future__ import annotations

import signal

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from tests.cache.redis.cluster_servers import ClusterNode, shared_cluster
from tests.cache.redis.test_cache import Servers, turn
from tests.cache.support import A, installed_reactor, until
from tests.running import free_port
from twistedproxy.cache.address import ClusterAddress, UnixAddress
from twistedproxy.cache.interface import CacheUnavailable
from twistedproxy.cache.redis.cache import RedisCache
from twistedproxy.cache.redis.keys import ended_keys, redis_keys, slot_of
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.entries import frame_name
from twistedproxy.frames.grants import Grants
from twistedproxy.frames.invalidation import Invalidation

FRAMES = {frame_name(number): b"%d" % number for number in range(1, 1001)}
FIRST = frame_name(1)


async def fill(cache: RedisCache, instance: Instance = A) -> None:
    """Put all `FRAMES` of *instance*."""
    fence = (await cache.get_many(instance, [])).fence
    assert await cache.put_many(instance, fence, FRAMES, 600.0)


async def found(cache: RedisCache, instance: Instance = A) -> int:
    """How many of `FRAMES` there are. A wrong one fails."""
    entries = (await cache.get_many(instance, list(FRAMES))).entries
    assert entries.items() <= FRAMES.items()
    return len(entries)


class ChangingCluster(Servers):
    """Has a cluster and a cache on it."""

    timeout = 60

    async def setUp(self) -> None:
        self.cluster = await shared_cluster()
        self.cache = await self.open(self.cluster.address)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.mend()))

    async def mend(self) -> None:
        for node in self.cluster.nodes:
            if not node.running():
                node.again()
            node.send(signal.SIGCONT)
        await self.cluster.healthy()

    async def owner(self, key: bytes) -> ClusterNode:
        return await self.cluster.owner(slot_of(key))

    async def replica_of(self, node: ClusterNode) -> ClusterNode:
        _, _, replicas = await node.ask(b"ROLE")
        return next(one for one in self.cluster.nodes if one.port == int(replicas[0][1]))

    async def invalidated(self) -> bool:
        try:
            await self.cache.invalidate(A.scope)
        except CacheUnavailable:  # a replica that has just begun to follow may be late
            return False
        return True

    async def whole(self) -> bool:
        return await found(self.cache) == len(FRAMES)


class FailoverTests(ChangingCluster):
    """Masters that die."""

    async def test_a_master_that_dies_costs_its_share_for_seconds(self) -> None:
        """Reading never fails; what is on other nodes is found all the time, and all of it again once a replica has taken over."""
        await fill(self.cache)
        keys = redis_keys(A)
        needed = {slot_of(key) for key in keys.generations}
        owners = [await self.cluster.owner(slot) for slot in needed]
        dying = next((node for node in await self.cluster.masters() if node not in owners), None)
        spared = dying is not None
        dying = dying or owners[0]
        await until(self.replicated)
        dying.kill()
        counts = [await found(self.cache)]
        while counts[-1] < len(FRAMES):
            await turn()
            counts.append(await found(self.cache))
        if spared:
            self.assertGreater(min(counts), len(FRAMES) // 2)
        self.assertLess(min(counts), len(FRAMES))
        await until(lambda: self.cache.wait_up(1.0))
        await fill(self.cache)
        await self.cache.ping()

    async def replicated(self) -> bool:
        """Whether all replicas have all that their masters have."""
        for node in await self.cluster.masters():
            _, offset, replicas = await node.ask(b"ROLE")
            if int(replicas[0][2]) < int(offset):
                return False
        return True

    async def test_an_invalidation_that_no_replica_has_is_not_confirmed(self) -> None:
        """Its master dies, and the replica that takes over has what was ended: it is ended there as well, before its frames are read
        again, and the scope is pending until then."""
        await fill(self.cache)
        self.assertTrue(await self.whole())
        (ended, *_) = ended_keys(A.scope)
        master = await self.owner(ended)
        replica = await self.replica_of(master)
        await until(self.replicated)
        invalidation = Invalidation(self.cache, Grants(10), installed_reactor())
        self.addCleanup(invalidation.stop)
        replica.send(signal.SIGSTOP)
        await invalidation.invalidate(A.scope)
        self.assertEqual(list(invalidation.pending), [A.scope])
        master.kill()
        replica.send(signal.SIGCONT)
        await until(replica.is_master)
        await until(lambda: not invalidation.pending)
        self.assertEqual(await found(self.cache), 0)
        other = await self.open(self.cluster.address)
        self.assertEqual(await found(other), 0)

    async def test_what_was_ended_is_ended_again_by_who_ended_it(self) -> None:
        """Also where it had been confirmed, for there was no replica at that time; grants that were taken back as well."""
        await fill(self.cache)
        fence = (await self.cache.get_many(A, [])).fence
        await self.cache.put_many(A, fence, {b"grant": b"x"}, 600.0)
        keys = [*ended_keys(A.scope)[:1], *redis_keys(A).entries([b"grant"])]
        old = {key: await (await self.owner(key)).ask(b"GET", key) for key in keys}
        self.assertNotIn(None, old.values())
        self.assertTrue(await self.cache.remove(A, [b"grant"]))
        await until(self.invalidated)
        for key, value in old.items():  # as a replica that did not have it
            await (await self.owner(key)).ask(b"SET", key, value)
        for node in await self.cluster.masters():
            await node.ask(b"CLIENT", b"KILL", b"TYPE", b"normal", b"SKIPME", b"yes")

        async def ended() -> bool:
            return not any([await (await self.owner(key)).ask(b"EXISTS", key) for key in keys])

        await until(ended)
        self.assertEqual(await found(self.cache), 0)

    async def test_a_node_that_comes_back_from_a_snapshot_is_empty(self) -> None:
        """What was ended or taken back after the snapshot does not come back, for any worker; what other nodes have, stays."""
        await fill(self.cache)
        master = await self.owner(ended_keys(A.scope)[0])
        others = [attrs.evolve(A, study=f"9.{number}") for number in range(20)]
        other = [one for one in others if await self.owner(ended_keys(one.scope)[0]) is not master][0]
        await fill(self.cache, other)
        mine = [name for name in FRAMES if await self.owner(redis_keys(other).entry(name)) is master]
        replica = await self.replica_of(master)
        await replica.ask(b"CONFIG", b"SET", b"cluster-replica-no-failover", b"yes")
        self.assertEqual(await master.ask(b"SAVE"), b"OK")
        await until(self.invalidated)
        self.assertTrue(await self.cache.remove(other, mine[:1]))
        master.kill()
        master.again()
        await until(lambda: self.cache.wait_up(5.0))
        again = await self.open(self.cluster.address)
        for cache in (self.cache, again):
            self.assertEqual(await found(cache), 0)
            self.assertEqual(await found(cache, other), len(FRAMES) - len(mine))
        await replica.ask(b"CONFIG", b"SET", b"cluster-replica-no-failover", b"no")


class ReshardingTests(ChangingCluster):
    """Slots that move."""

    async def test_slots_move_under_load(self) -> None:
        """Reading and writing go on while redis-cli moves hundreds of slots; nothing is lost."""
        await fill(self.cache)
        giving, taking, _ = await self.cluster.masters()
        ids = [(await node.ask(b"CLUSTER", b"MYID")).decode() for node in (giving, taking)]
        over, readings, puts = False, [], []

        async def use() -> None:
            while not over:
                readings.append(await found(self.cache))
                fence = (await self.cache.get_many(A, [])).fence
                puts.append(await self.cache.put_many(A, fence, FRAMES, 600.0))

        using = Deferred.fromCoroutine(use())
        for way in (ids, ids[::-1]):
            place, more = (
                f"127.0.0.1:{giving.port}",
                ("--cluster-slots", "1000", "--cluster-yes", "--cluster-pipeline", "100"),
            )
            command = ("reshard", place, "--cluster-from", way[0], "--cluster-to", way[1], *more)
            await deferToThread(self.cluster.manage, *command)
            await self.cluster.healthy()
        over = True
        await using
        self.assertEqual(set(puts), {True})
        self.assertEqual(set(readings), {len(FRAMES)})
        self.assertGreater(len(readings), 5)
        await self.cache.ping()

    async def test_a_slot_on_its_way(self) -> None:
        """Of the frames of one block, some are here and some are there already: all are found, also after that, where all of the map
        is old; claims and invalidations work."""
        await fill(self.cache)
        names = [frame_name(number) for number in range(32, 48)]
        keys = redis_keys(A).entries(names)
        slot = b"%d" % slot_of(keys[0])
        giving = await self.owner(keys[0])
        taking = next(node for node in await self.cluster.masters() if node is not giving)
        for source, target in ((giving, taking), (taking, giving)):
            ids = [await node.ask(b"CLUSTER", b"MYID") for node in (source, target)]
            await target.ask(b"CLUSTER", b"SETSLOT", slot, b"IMPORTING", ids[0])
            await source.ask(b"CLUSTER", b"SETSLOT", slot, b"MIGRATING", ids[1])
            migrate = (b"MIGRATE", b"127.0.0.1", b"%d" % target.port, b"", b"0", b"5000", b"KEYS")
            self.assertEqual(await source.ask(*migrate, *keys[:8]), b"OK")
            reading = await self.cache.get_many(A, names)
            self.assertEqual(dict(reading.entries), {name: FRAMES[name] for name in names})
            self.assertEqual(await self.cache.present(A, names), set(names))
            self.assertEqual(await self.cache.claim(A, names, b"me", 60.0), set(names))
            self.assertEqual(await source.ask(*migrate, *keys[8:]), b"OK")
            claims = redis_keys(A).claims(names)
            self.assertIn(await source.ask(*migrate, *claims), (b"OK", b"NOKEY"))
            for node in (target, source, *self.cluster.nodes):
                if await node.is_master():
                    await node.ask(b"CLUSTER", b"SETSLOT", slot, b"NODE", ids[1])
            await self.cache.unclaim(A, names, b"me")
            reading = await self.cache.get_many(A, names)
            self.assertEqual(dict(reading.entries), {name: FRAMES[name] for name in names})

    async def test_generations_on_their_way(self) -> None:
        """An invalidation ends them wherever they are."""
        ended = ended_keys(A.scope)
        slot = b"%d" % slot_of(ended[0])
        giving = await self.owner(ended[0])
        taking = next(node for node in await self.cluster.masters() if node is not giving)
        ids = [await node.ask(b"CLUSTER", b"MYID") for node in (giving, taking)]
        for moved in (0, 1):
            await fill(self.cache)
            await taking.ask(b"CLUSTER", b"SETSLOT", slot, b"IMPORTING", ids[0])
            await giving.ask(b"CLUSTER", b"SETSLOT", slot, b"MIGRATING", ids[1])
            if moved:
                migrate = (b"MIGRATE", b"127.0.0.1", b"%d" % taking.port, b"", b"0", b"5000", b"KEYS")
                self.assertEqual(await giving.ask(*migrate, *redis_keys(A).generations[1:3]), b"OK")
            self.assertTrue(await self.whole())
            await until(self.invalidated)
            self.assertEqual(await found(self.cache), 0)
            for node in (taking, giving):
                for key in (*redis_keys(A).generations[1:], *ended):
                    await node.ask(b"ASKING")
                    await node.ask(b"DEL", key)
                await node.ask(b"CLUSTER", b"SETSLOT", slot, b"STABLE")

    async def test_users_of_a_changing_cluster_do_not_mix_replies(self) -> None:
        """Many readers at once, of frames on all nodes: each gets its own."""
        await fill(self.cache)
        names = list(FRAMES)[:200]
        readings = await gatherResults([Deferred.fromCoroutine(self.cache.get_many(A, [name])) for name in names])
        self.assertEqual([dict(one.entries) for one in readings], [{name: FRAMES[name]} for name in names])


class NotAClusterTests(Servers):
    """Addresses of the wrong kind."""

    async def test_a_server_that_is_no_cluster(self) -> None:
        """It is refused at the start."""
        port = free_port()
        await self.server("--port", str(port), "--bind", "127.0.0.1")
        with self.assertRaisesRegex(ValueError, "is no cluster.*use redis://"):
            await self.open(ClusterAddress((("127.0.0.1", port),)))

    async def test_a_node_that_is_given_as_a_server(self) -> None:
        """So is one of a cluster, which would take no read; and a cache that goes on without says so."""
        cluster = await shared_cluster()
        with self.assertRaisesRegex(ValueError, "node of a cluster.*redis-cluster://"):
            await self.open(UnixAddress(cluster.nodes[0].socket))
        cache = self.opened[-1]

        async def says_so() -> bool:
            return "redis-cluster://" in str((await cache.status())["reason"])

        await until(says_so)
