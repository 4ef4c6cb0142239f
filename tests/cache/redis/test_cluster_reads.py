"""Generations that are kept, and what nodes tell, by a clock and as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.cache.address import ClusterAddress
from twistedproxy.cache.interface import CacheUnavailable
from twistedproxy.cache.redis.cluster_reads import FRESH_SECONDS, LAST_SECONDS, ClusterReads, KeptGenerations
from twistedproxy.cache.redis.deletions import Deletions
from twistedproxy.cache.redis.keys import SLOTS
from twistedproxy.cache.redis.nodes import LOOK_SECONDS, Nodes
from twistedproxy.cache.redis.server import Values
from twistedproxy.cache.redis.topology import NoTopology, Redirection, parse_shards, parse_slots


class KeptGenerationTests(SynchronousTestCase):
    """How often they are read, and how long they count."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.asked: list[Deferred[Values]] = []
        self.kept = KeptGenerations(self.clock, self.read)

    def read(self, keys: Sequence[bytes]) -> Deferred[Values]:
        self.asked.append(Deferred())
        return self.asked[-1]

    def get(self) -> Deferred[Any]:
        return Deferred.fromCoroutine(self.kept.get([b"root"])).addCallback(lambda values: values[0])

    def learn(self, value: bytes) -> None:
        self.get()
        self.asked[-1].callback([value])

    def test_read_once_in_a_while(self) -> None:
        """Requests of ten seconds read it every second, and wait for the first reading only."""
        first = [self.get() for _ in range(10)]
        self.assertEqual(len(self.asked), 1)
        self.asked[0].callback([b"one"])
        self.assertEqual([self.successResultOf(one) for one in first], [b"one"] * 10)
        for _ in range(40):
            self.clock.advance(0.25)
            self.assertEqual(self.successResultOf(self.get()), b"one")
            if not self.asked[-1].called:
                self.asked[-1].callback([b"one"])
        self.assertEqual(len(self.asked), 1 + 10 / FRESH_SECONDS)

    def test_what_another_host_ends_is_noticed(self) -> None:
        """With the first reading after it has stopped being fresh."""
        self.learn(b"one")
        self.clock.advance(FRESH_SECONDS)
        self.assertEqual(self.successResultOf(self.get()), b"one")
        self.asked[-1].callback([b"two"])
        self.assertEqual(self.successResultOf(self.get()), b"two")

    def test_what_this_host_ends_is_noticed_at_once(self) -> None:
        """Also where an answer from before is on its way: that is not kept."""
        self.learn(b"one")
        self.kept.forget([b"root"])
        late = self.get()
        self.assertNoResult(late)
        self.kept.forget([b"root"])
        self.failureResultOf(late, CacheUnavailable)
        self.asked[-1].callback([b"one"])
        again = self.get()
        self.assertNoResult(again)
        self.asked[-1].callback([b"two"])
        self.assertEqual(self.successResultOf(again), b"two")

    def test_without_its_node(self) -> None:
        """It counts for as long as a failover takes, not longer."""
        self.learn(b"one")
        self.clock.advance(FRESH_SECONDS)
        self.assertEqual(self.successResultOf(self.get()), b"one")
        self.asked[-1].callback([CacheUnavailable("down")])
        self.assertEqual(self.successResultOf(self.get()), b"one")
        self.asked[-1].errback(CacheUnavailable("down"))
        self.clock.advance(LAST_SECONDS - FRESH_SECONDS)
        late = self.get()
        self.asked[-1].callback([CacheUnavailable("down")])
        self.failureResultOf(late, CacheUnavailable)

    def test_only_what_is_old_is_read(self) -> None:
        """Another study's generations are read without the root's, and nothing is read twice at the same time."""
        asked: list[list[bytes]] = []

        def read(keys: Sequence[bytes]) -> Deferred[Values]:
            asked.append(list(keys))
            return self.read(keys)

        self.kept.read = read
        self.learn(b"one")
        waits = [Deferred.fromCoroutine(self.kept.get([b"root", name])) for name in (b"a", b"b", b"a")]
        self.assertEqual(asked, [[b"root"], [b"a"], [b"b"]])
        self.asked[1].callback([b"x"])
        self.asked[2].callback([None])
        self.assertEqual([self.successResultOf(one) for one in waits], [[b"one", b"x"], [b"one", None], [b"one", b"x"]])

    def test_one_that_is_missing_is_asked_for_each_time(self) -> None:
        """Somebody begins it."""
        self.get()
        self.asked[-1].callback([None])
        self.assertNoResult(self.get())


class NodeLink:
    """A connection to a node. *sent*: what was sent, and who waits for the replies."""

    def __init__(self) -> None:
        self.sent: list[Deferred[Any]] = []

    def send(self, wire: bytes, count: int) -> Deferred[Any]:
        self.sent.append(Deferred())
        return self.sent[-1]


class ClusterReadTests(SynchronousTestCase):
    """Reads that are gathered."""

    def setUp(self) -> None:
        self.clock, self.link = Clock(), NodeLink()
        self.error: Exception = ZeroDivisionError("ours")
        link: Any = self.link
        self.reads = ClusterReads(self.clock, lambda _: link, self.redirect)

    async def redirect(self, key: bytes, wire: bytes, error: object) -> object:
        raise self.error

    def test_a_redirection_that_fails(self) -> None:
        """Whatever goes wrong on the way to another node, the reader hears of it: it does not wait for ever."""
        reading = self.reads.read([b"one"])
        self.clock.advance(0)
        self.link.sent[0].callback([ValueError("MOVED 1 127.0.0.1:1")])
        (value,) = self.successResultOf(reading)
        self.assertIsInstance(value, CacheUnavailable)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_stopped(self) -> None:
        """So does one whose read was not sent yet when all stops."""
        reading = self.reads.read([b"one", b"two"])
        self.reads.stop()
        self.assertEqual([type(value) for value in self.successResultOf(reading)], [CacheUnavailable] * 2)
        self.assertEqual((self.link.sent, self.clock.getDelayedCalls()), ([], []))


class NameTests(SynchronousTestCase):
    """Names of nodes."""

    def test_one_that_no_certificate_can_have(self) -> None:
        """It is said of which node that is; the others are used, and nothing is logged twice a second."""
        clock, events = Clock(), list[LogEvent]()
        observer: Any = events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        nodes = Nodes(clock, ClusterAddress((("node_1", 7000),), tls=True), Deletions(clock), None)
        nodes.start()
        for _ in range(20):
            clock.advance(LOOK_SECONDS)
        self.assertIn("node_1", nodes.trouble)
        nodes._adopt({("node_1", 7000): ((0, SLOTS - 1),)})
        self.assertEqual((nodes.missing(), nodes.up), (SLOTS, False))
        self.successResultOf(Deferred.fromCoroutine(nodes.stop()))
        reasons = [str(event["reason"]) for event in events if event.get("event") == "unavailable"]
        self.assertEqual((len(reasons), "node_1" in reasons[0]), (1, True))


class TopologyTests(SynchronousTestCase):
    """What nodes answer."""

    def test_shards(self) -> None:
        """Masters that are online, those without slots too; the port by what is spoken, the host as it is to be reached."""

        def node(role: bytes, host: bytes, health: bytes = b"online") -> list[object]:
            fields: dict[bytes, object] = {
                b"id": b"x",
                b"port": 7000,
                b"tls-port": 7001,
                b"ip": b"10.0.0.1",
                b"endpoint": host,
            }
            fields |= {b"role": role, b"replication-offset": 1, b"health": health}
            return [item for pair in fields.items() for item in pair]

        reply: list[object] = [
            [b"slots", [0, 5, 7, 9], b"nodes", [node(b"replica", b"b"), node(b"master", b"a")]],
            [b"slots", [10, 16383], b"nodes", [node(b"master", b"c", b"fail"), node(b"master", b"?")]],
            [b"slots", [], b"nodes", [node(b"master", b"d")]],
        ]
        expected = {("a", 7000): ((0, 5), (7, 9)), ("asked", 7000): ((10, 16383),), ("d", 7000): ()}
        self.assertEqual(parse_shards(reply, "asked", tls=False), expected)
        self.assertIn(("a", 7001), parse_shards(reply, "asked", tls=True))

    def test_slots(self) -> None:
        """The first node of a range is its master; who does not know its own address is where it was asked."""
        reply: list[object] = [
            [0, 5, [b"a", 1, b"id", []], [b"b", 2, b"id", []]],
            [6, 9, [b"a", 1, b"id", []]],
            [10, 16383, [None, 3, b"id"]],
        ]
        self.assertEqual(parse_slots(reply, "asked"), {("a", 1): ((0, 5), (6, 9)), ("asked", 3): ((10, 16383),)})

    def test_what_is_no_map(self) -> None:
        """Errors, and anything else."""
        for reply in (
            Exception("ERR unknown command"),
            b"x",
            [[0, 1]],
            [[b"slots", [0, 1]]],
            [[0, b"x", [b"a", 1]]],
            [1],
            [[0, 16384, [b"a", 1]]],
            [[-1, 5, [b"a", 1]]],
            [[b"slots", [0, 1 << 40], b"nodes", [[b"role", b"master", b"ip", b"a", b"port", 1]]]],
        ):
            with self.assertRaises(NoTopology):
                parse_slots(reply, "asked")
            with self.assertRaises(NoTopology):
                parse_shards(reply, "asked", tls=False)

    def test_redirections(self) -> None:
        """Where to; a server that leaves the host out is where it was asked."""
        for text, expected in (
            ("MOVED 3999 127.0.0.1:6381", Redirection(3999, ("127.0.0.1", 6381), False)),
            ("ASK 3999 ::1:6381", Redirection(3999, ("::1", 6381), True)),
            ("MOVED 3999 :6381", Redirection(3999, ("asked", 6381), False)),
            ("MOVED 99999 a:1", None),
            ("MOVED 1 a", None),
            ("MOVED \N{SUPERSCRIPT TWO} a:1", None),
            ("MOVED 1 a:" + 5000 * "1", None),
            ("ERR MOVED", None),
        ):
            self.assertEqual(Redirection.of(Exception(text), "asked"), expected)
        self.assertIsNone(Redirection.of(b"MOVED 3999 127.0.0.1:6381", "asked"))
