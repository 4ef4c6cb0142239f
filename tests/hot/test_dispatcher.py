"""Hot responses of a whole worker: given, counted and logged, ended by all that ends a right or an instance."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from tests.clients import RawConnection
from tests.dicomweb.support import STORED, ProxyCase
from tests.frames.support import INSTANCE, JPEG, frames
from tests.hot.support import ALICE, BEGAN, FRAMES, MALLORY, OF_ONE_ANSWER, HotProxy, request
from tests.server.wire import Wire
from tests.waiting import wait_until
from twistedproxy.dicom.resource import Scope
from twistedproxy.frames.entries import frame_name, pack_frames
from twistedproxy.hot.responses import CHECK_SECONDS, TAKEN_BACK_SECONDS
from twistedproxy.origin.errors import OriginRefused
from twistedproxy.settings import MIB
from twistedproxy.system.memory_budget import UNTAKEN

MANY = 2000  # requests: their answers are far more than the kernel's buffers hold


class WorkerTests(SynchronousTestCase):
    """One worker, in memory."""

    def setUp(self) -> None:
        self.proxy = HotProxy(self, 64 * MIB, grant_ttl=600.0)
        self.assertEqual("miss", self.proxy.get(1).outcome)

    def test_second_is_hot(self) -> None:
        """What was answered once is hot, and says that it came from the cache."""
        reply = self.proxy.get(1)
        self.assertEqual((200, "hot"), (reply.status, reply.outcome))
        self.assertIn(b"\r\nCache-Status: twistedproxy; hit\r\n", reply.head)
        self.assertIn(b"frame 1", reply.body)

    def test_head_and_304(self) -> None:
        """HEAD has no body, and who has the answer already gets a 304 without the fields that tell of a body."""
        first = self.proxy.get(1)
        head = self.proxy.get(1, method="HEAD")
        heads = [OF_ONE_ANSWER.sub(b"", reply.head) for reply in (first, head)]
        self.assertEqual((heads[0], b"", "hot"), (heads[1], head.body, head.outcome))
        (tag,) = re.findall(rb"ETag: (\S+)", first.head)
        unchanged = self.proxy.get(1, more=f"If-None-Match: {tag.decode()}\r\n")
        self.assertEqual((304, b"", "hot"), (unchanged.status, unchanged.body, unchanged.outcome))
        self.assertIn(b"ETag: " + tag, unchanged.head)
        self.assertNotIn(b"\r\nContent-", unchanged.head)

    def test_no_room(self) -> None:
        """An answer that a socket does not take at once goes the ordinary way where clients leave too much untaken."""
        self.proxy.components._hot.small = 0
        with self.proxy.components.answer_memory.hold() as held:
            held.set(1 << 40)
            self.assertEqual((200, "hit"), _seen(self.proxy.get(1)))
        self.assertEqual((200, "hot"), _seen(self.proxy.get(1)))

    def test_untaken(self) -> None:
        """What a client has not taken counts until it has, or is gone."""
        memory = self.proxy.components.answer_memory
        for end in (Wire.read_all, Wire.leave):
            wire = self.proxy.connect()
            self.proxy.ask(request(1), wire)
            wire.read_nothing()
            wire.read_nothing()
            self.assertEqual(memory.used, UNTAKEN)
            end(wire)
            self.assertEqual(memory.used, 0)

    def test_stalled(self) -> None:
        """A client that takes nothing is cut sooner where others wait for the memory that its answer holds."""
        memory = self.proxy.components.answer_memory
        self.proxy.components.connections.start()
        wire = self.proxy.connect()
        self.proxy.ask(request(1), wire)
        wire.read_nothing()
        self.proxy.clock.pump([0.5] * 24)
        self.assertFalse(wire.cut)
        waiting = Deferred.fromCoroutine(memory.take(1 << 40))
        self.proxy.clock.pump([0.5, 0.5])
        self.assertTrue(wire.cut)
        self.successResultOf(waiting)

    def test_range(self) -> None:
        """Parts of frames are answered the ordinary way."""
        reply = self.proxy.get(1, more="Range: bytes=0-3\r\n")
        self.assertEqual((206, "hit"), (reply.status, reply.outcome))

    def test_other_callers(self) -> None:
        """Another caller is asked about first; whom the origin refuses gets the refusal, however hot the answer is."""
        for _again in range(2):
            self.assertEqual(403, self.proxy.get(1, authorization=MALLORY).status)
        self.assertEqual((200, "hit"), _seen(self.proxy.get(1, authorization="Bearer bob")))
        self.assertEqual((200, "hot"), _seen(self.proxy.get(1, authorization="Bearer bob")))

    def test_revoked(self) -> None:
        """A caller whom the origin has denied meanwhile is refused at the next request."""
        caller = next(iter(self.proxy.components.access.grants._grants))[0]
        self.proxy.store.failure = None
        self.proxy.components.revoke(caller, INSTANCE)
        self.assertEqual("hit", self.proxy.get(1).outcome)
        self.assertEqual("hot", self.proxy.get(1).outcome)

    def test_grant_ends(self) -> None:
        """When the grant ends, and the origin says no, the next request is refused."""
        self.proxy.store.refusal = OriginRefused(500, (), b"not just now")
        self.proxy.clock.advance(599.0)
        self.assertEqual("hit", self.proxy.get(1).outcome)
        self.assertEqual("hit", self.proxy.get(1).outcome)  # a grant that is mostly spent
        self.proxy.clock.advance(1.0)
        asked = len(self.proxy.store.asked_for("metadata"))
        self.proxy.get(1)
        self.assertEqual(asked + 1, len(self.proxy.store.asked_for("metadata")))

    def test_forgotten_here(self) -> None:
        """After a STOW or a DELETE through this worker or a sibling, the next request asks the origin."""
        self.successResultOf(ensureDeferred(self.proxy.components.invalidation.invalidate(INSTANCE.scope)))
        self.assertEqual("miss", self.proxy.get(1).outcome)
        self.assertEqual("hot", self.proxy.get(1).outcome)
        self.proxy.components.invalidation.apply(Scope(INSTANCE.origin, "", INSTANCE.study), cache_invalidated=True)
        self.assertNotEqual("hot", self.proxy.get(1).outcome)

    def test_cache_that_cannot_be_told(self) -> None:
        """While the cache cannot be told to forget, nothing is hot, for nothing can be known."""
        self.proxy.components.invalidation.apply(INSTANCE.scope, cache_invalidated=False)
        for _again in range(3):
            self.assertNotEqual("hot", self.proxy.get(1).outcome)

    def test_forgotten_by_another_host(self) -> None:
        """Another host that forgets tells the cache only: that is felt within five seconds."""
        self.successResultOf(ensureDeferred(self.proxy.components.cache.invalidate(INSTANCE.scope)))
        self.proxy.clock.advance(CHECK_SECONDS + 0.01)
        self.assertLess(CHECK_SECONDS + 0.01, 5.0)
        self.assertEqual("miss", self.proxy.get(1).outcome)

    def test_checked_again(self) -> None:
        """Any answer of an instance checks it for all its answers."""
        self.proxy.get(2)
        self.proxy.clock.advance(CHECK_SECONDS + 0.01)
        self.assertEqual("hit", self.proxy.get(1).outcome)
        self.assertEqual("hot", self.proxy.get(2).outcome)

    def test_expiry(self) -> None:
        """A hot answer ends with the first of its frames in the cache, and no answer prolongs a frame's time."""
        self.proxy = HotProxy(self, 64 * MIB, grant_ttl=600.0, frame_ttl=100.0)
        outcome = self.outcome
        self.assertEqual(("miss", "hot"), (outcome(1), outcome(1)))
        self.proxy.clock.advance(50.0)
        self.assertEqual(("miss", "hit", "hot", "hot"), (outcome(2), outcome("1,2"), outcome("1,2"), outcome(1)))
        self.proxy.clock.advance(48.0)
        self.assertEqual(("miss", "hot", "hot", "hot"), (outcome(3), outcome(2), outcome(1), outcome("1,2")))
        self.proxy.clock.advance(1.75)
        self.assertEqual(("hot", "hot", "hot"), (outcome(1), outcome("1,2"), outcome(2)))
        self.proxy.clock.advance(0.25)
        self.assertEqual(("hot", "miss", "hit"), (outcome(2), outcome(1), outcome("1,2")))
        self.assertEqual(("hot", "hot", "hot"), (outcome(2), outcome(1), outcome("1,2")))

    def test_expiry_of_pictures(self) -> None:
        """So does a frame that is given as its own picture."""
        self.proxy = HotProxy(self, 64 * MIB, grant_ttl=600.0, frame_ttl=100.0, render_workers=1)
        asked = "1/rendered"
        self.assertEqual("miss", self.outcome(asked, accept="image/jpeg"))
        self.proxy.clock.advance(98.0)
        self.assertEqual("hit", self.outcome(1))
        self.assertEqual("hot", self.outcome(asked, accept="image/jpeg"))
        self.proxy.clock.advance(2.0)
        self.assertEqual("miss", self.outcome(asked, accept="image/jpeg"))

    def test_short_time(self) -> None:
        """Frames that are in the cache for less than a second are hot for as long."""
        self.proxy = HotProxy(self, 64 * MIB, grant_ttl=600.0, frame_ttl=0.5)
        self.assertEqual(("miss", "hot"), (self.outcome(1), self.outcome(1)))
        self.proxy.clock.advance(0.25)
        self.assertEqual("hot", self.outcome(1))
        self.proxy.clock.advance(0.25)
        self.assertEqual("miss", self.outcome(1))

    def test_taken_back(self) -> None:
        """Frames that a load took back, because it turned out wrong, are hot for a minute at most; others stay."""
        cache = self.proxy.components.cache
        packed = pack_frames([frames(3)[0].data], JPEG, BEGAN + 3600.0, prefetched=True)
        fence = self.now(cache.get_many(INSTANCE, [])).fence
        self.now(cache.put_many(INSTANCE, fence, {frame_name(3): packed[0]}, 3600.0))
        self.assertEqual(("hit", "hot"), (self.outcome(3), self.outcome(3)))
        self.now(cache.remove(INSTANCE, [frame_name(1), frame_name(3)]))
        self.proxy.clock.advance(TAKEN_BACK_SECONDS - 0.25)
        self.assertEqual(("miss", "hot"), (self.outcome(2), self.outcome(3)))
        self.proxy.clock.advance(0.25)
        self.assertEqual(("miss", "hot"), (self.outcome(3), self.outcome(1)))

    def outcome(self, asked: object, **more: str) -> str:
        """What the log says of one request."""
        return self.proxy.get(asked, **more).outcome

    def now(self, coroutine: Any) -> Any:
        """The result of what does not wait."""
        return self.successResultOf(ensureDeferred(coroutine))

    def test_pages(self) -> None:
        """Each page's origin has its own answer."""
        self.proxy = HotProxy(self, 64 * MIB, cors_origin=("https://a.test", "https://b.test"))
        for page in ("https://a.test", "https://b.test"):
            more = f"Origin: {page}\r\n"
            self.assertNotEqual("hot", self.proxy.get(1, more=more).outcome)
            reply = self.proxy.get(1, more=more)
            self.assertEqual("hot", reply.outcome)
            self.assertIn(f"Access-Control-Allow-Origin: {page}".encode(), reply.head)
        self.assertNotIn(b"Allow-Origin", self.proxy.get(1).head)

    def test_what_is_not_kept(self) -> None:
        """Errors, parts of frames, answers to HEAD and to fields that came twice are not kept."""
        for sent in [
            request(101),
            request(2, method="HEAD"),
            request(3, more="Range: bytes=0-1\r\n"),
            request(4, more="Accept: image/jpeg\r\n"),
            request(5, more="Origin: https://a.test\r\nOrigin: https://b.test\r\n"),
            request(6, more="Connection: close\r\n"),
        ]:
            before = len(self.proxy.hot)
            self.proxy.ask(sent)
            self.assertEqual(before, len(self.proxy.hot))

    def test_counted_and_logged(self) -> None:
        """A hot response is counted and logged like another, under an outcome of its own."""
        self.proxy.access_lines()
        before = self.proxy.counted()
        body = self.proxy.get(1).body
        after = self.proxy.counted()
        changed = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
        expected = {"requests frames GET 2xx": 1, "request_seconds frames hit": 1, "client_bytes out": len(body)}
        self.assertEqual(expected, changed)
        (line,) = self.proxy._log.lines
        self.assertRegex(line, rf" 192.168.1.1 GET {FRAMES}1 200 {len(body)} \d\.\d{{4}} hot\n$")

    def test_client_behind_a_trusted_proxy(self) -> None:
        """The log names the client that a trusted proxy names."""
        self.proxy = HotProxy(self, 64 * MIB, trusted_proxy=(ipaddress.ip_network("192.168.1.0/24"),))
        for _again in range(2):
            self.proxy.get(1, more="X-Forwarded-For: 203.0.113.9\r\n")
            (line,) = self.proxy._log.lines
            self.assertIn(" 203.0.113.9 GET ", line)
        self.assertIn(" hot", line)

    def test_stopping(self) -> None:
        """While the proxy stops, a connection ends with its answer, as the ordinary way ends it."""
        wire = self.proxy.connect()
        self.proxy.components.connections.closing = True
        self.assertEqual("hit", self.proxy.ask(request(1), wire).outcome)
        self.assertTrue(wire.gone)

    def test_idle_deadline(self) -> None:
        """A connection on which hot responses went out is kept as long as another."""
        wire = self.proxy.connect()
        self.proxy.clock.advance(1.0)
        self.assertEqual("hot", self.proxy.ask(request(1), wire).outcome)
        self.assertEqual(self.proxy.components.connections.idle_deadline(), wire.protocol._channel.read_deadline)

    def test_off(self) -> None:
        """Without memory for it, nothing is hot."""
        self.proxy = HotProxy(self, 0)
        for _again in range(3):
            outcome = self.proxy.get(1).outcome
        self.assertEqual("hit", outcome)


class SocketTests(ProxyCase):
    """Real connections."""

    async def test_slow_reader(self) -> None:
        """A client that asks on and on and reads late gets every byte in order, and is not read from meanwhile."""
        running = await self.proxy(self.store(), hot_memory=64 * MIB)
        running.components._hot.cached = None
        asking = self.asking("1,2,3,4,5,6")
        connection = await self.connected(running.port)
        connection.send(asking)
        whole = await connection.until(b"--\r\n")
        connection.received.clear()
        connection.send(asking)
        whole = await connection.until(b"--\r\n")
        self.assertIn(b"; hit\r\n", whole)
        connection.received.clear()
        connection.pause()
        for _one in range(MANY):
            connection.send(asking)
            await _turn()
        self.assertLess(_hot_answers(running.components), MANY)
        connection.resume()
        await wait_until(lambda: len(connection.received) == MANY * len(whole))
        self.assertEqual(MANY, bytes(connection.received).count(whole.partition(b"\r\n\r\n")[2]))
        self.assertGreater(_hot_answers(running.components), 1)

    async def test_client_leaves(self) -> None:
        """A client that leaves in the middle of hot responses leaves nothing behind."""
        running = await self.proxy(self.store(), hot_memory=64 * MIB)
        for _again in range(5):
            connection = await self.connected(running.port)
            connection.send(self.asking("1"))
            await connection.until(b"--\r\n")
            connection.pause()
            for _one in range(5):
                connection.send(self.asking("1"))
                await _turn()
            connection.transport.abortConnection()
        await wait_until(lambda: not len(running.components.connections))

    def asking(self, frames: str) -> bytes:
        """A request for frames of the slide."""
        path = f"/dicomweb/{self.slide.resource}/frames/{frames}"
        fields = f"Host: a\r\nAuthorization: {ALICE}\r\nAccept: {STORED}\r\n"
        return f"GET {path} HTTP/1.1\r\n{fields}\r\n".encode()

    async def connected(self, port: int) -> RawConnection:
        """A connection that ends with the test."""
        connection = await RawConnection.open(port)
        self.addCleanup(connection.close)
        return connection


async def _turn() -> None:
    """Let the reactor come round, so that what was sent is read by itself."""
    from twisted.internet import reactor

    for _turn in range(3):
        await deferLater(reactor, 0)  # type: ignore[arg-type]


def _hot_answers(components: Any) -> int:
    rows = components.metrics.snapshot()["request_seconds"]
    return int(sum(sum(numbers[:-1]) for (_route, cache), numbers in rows if cache == "hot"))


def _seen(reply: Any) -> tuple[int, str]:
    return reply.status, reply.outcome
