"""Metadata and bulk data from the cache: whose they are, what is kept, and what ends that. A whole proxy between real sockets."""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any, Optional

from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.logger import LogEvent

from tests.clients import Answer, Client, RawConnection
from tests.dicomweb.support import ALICE, MALLORY, ProxyCase, RunningProxy, logged, token
from tests.dicomweb.test_passthrough import STOW, stow_body
from tests.slides import slide
from tests.stores import faults
from tests.stores.dialects import NO_SYNTAX, STANDARD, Dialect
from tests.stores.simulated import SimulatedStore
from tests.waiting import wait_until
from twistedproxy import proxy
from twistedproxy.cache.address import LocalAddress, NoAddress
from twistedproxy.cache.interface import CacheUnavailable, Reading
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.dicomweb import description_answers
from twistedproxy.dicomweb.paths import ResourceKind
from twistedproxy.server import compression
from twistedproxy.system.memory_budget import Reservation

JSON = (("Content-Type", "application/dicom+json"),)
OCTETS = (("Content-Type", "application/octet-stream"),)
HIT = "twistedproxy; hit"
STORED = "twistedproxy; fwd=uri-miss; stored"
PASSED = "twistedproxy; fwd=bypass"
SECONDS = 600.0


class DescriptionCase(ProxyCase):
    """ALICE may read all of a store; MALLORY nothing, until a test lets her."""

    async def begin(self, dialect: Dialect = STANDARD, **settings: Any) -> None:
        self.origin: SimulatedStore = self.store(dialect)
        self.origin.allow(token(ALICE))
        self.running: RunningProxy = await self.proxy(self.origin, grant_ttl=SECONDS, **settings)
        self.alice: Client = self.running.client(ALICE)
        self.mallory: Client = self.running.client(MALLORY)
        steps = self.slide.resource.split("/")
        self.study, self.series = "/" + "/".join(steps[:2]), "/" + "/".join(steps[:4])
        self.instance = f"/{self.slide.resource}"
        self.metadata = f"{self.instance}/metadata"
        self.bulk = f"{self.instance}/bulkdata/7FE00010"
        self.all = (self.metadata, f"{self.series}/metadata", f"{self.study}/metadata", self.bulk)

    @property
    def asked(self) -> int:
        """How many requests the store has seen."""
        return len(self.origin.requests)

    def entries(self, kind: bytes) -> list[bytes]:
        """The keys of the entries in the cache whose names begin with *kind*."""
        cache: Any = self.running.components.cache
        return [key for key in cache._store._items if key.startswith(b"tpf") and key.partition(b"}")[2][:1] == kind]

    async def assert_kept(self, path: str, kept: bool = True, client: Optional[Client] = None) -> Answer:
        """The answer to *path*, and that it comes from the cache, or not."""
        before = self.asked
        answer = await (client or self.alice).get(path)
        self.assertEqual(self.asked - before, 0 if kept else 1, path)
        self.assertEqual(answer.headers["cache-status"] == HIT, kept, answer.headers)
        return answer

    async def raw(self, head: str) -> bytes:
        """What comes to a request of ALICE with this *head*, less the line that names her."""
        connection = await RawConnection.open(self.running.port)
        self.addCleanup(lambda: ensureDeferred(connection.close()))
        lines = f"{head}\r\nAuthorization: Bearer {token(ALICE)}\r\nConnection: close\r\n\r\n"
        connection.send(lines.encode())
        return await connection.end()


class ProofTests(DescriptionCase):
    """A caller's own answer opens what it gave, and nothing else does."""

    async def test_second_request(self) -> None:
        """What a caller was given comes from the cache, byte for byte, at every level, and is counted and logged."""
        await self.begin()
        for path in self.all:
            with logged() as events:
                first = await self.alice.get(path)
                again = await self.assert_kept(path)
            self.assertEqual((first.status, again.status, again.body), (200, 200, first.body), path)
            self.assertEqual(first.headers["cache-status"], STORED, path)
            same = ("content-type", "etag", "cache-control", "content-length")
            self.assertEqual([first.headers[name] for name in same], [again.headers[name] for name in same], path)
            self.assertEqual(again.headers["cache-control"], "private, no-cache")
            self.assertEqual(_outcomes(events), ["miss", "hit"], path)
        counted = self.running.components.metrics.render().decode()
        self.assertTrue('twistedproxy_request_seconds_count{cache="hit",route="other"} 4.0' in counted)

    async def test_behind_a_trusted_proxy(self) -> None:
        """What a reverse proxy in front says of the client is kept from the store, whose answers are kept; a search carries it."""
        await self.begin(trusted_proxy=(ip_network("127.0.0.0/8"),))
        for path, client in itertools.product(self.all, ("192.0.2.9", "192.0.2.10")):
            told = {"X-Forwarded-For": client, "Forwarded": f"for={client}", "X-Real-IP": client}
            answer = await self.alice.get(path, told)
            self.assertEqual(answer.headers["cache-status"], STORED if client == "192.0.2.9" else HIT, path)
            for name in told:
                self.assertEqual(self.origin.seen()[-1].header(name), "", (path, name))
        await self.alice.get("/studies", {"X-Forwarded-For": "192.0.2.9"})
        self.assertEqual(self.origin.seen()[-1].header("X-Forwarded-For"), "192.0.2.9")

    async def test_bytes_are_those_of_the_store(self) -> None:
        """From the cache comes what the store says, its URLs apart."""
        await self.begin()
        for path in self.all:
            await self.alice.get(path)
            direct = await _direct(self, self.origin).get(path)
            expected = direct.body.replace(self.origin.url.encode(), f"{self.running.url}/dicomweb".encode())
            self.assertEqual((await self.assert_kept(path)).body, expected, path)

    async def test_another_caller(self) -> None:
        """Another caller's first request goes to the store, whose refusal comes back; once it is given, the bytes are shared."""
        await self.begin()
        for path in self.all:
            await self.alice.get(path)
            self.assertEqual((await self.assert_kept(path, False, self.mallory)).status, 401, path)
        contents = len(self.entries(b"D"))
        self.origin.allow(token(MALLORY))
        for path in self.all:
            self.assertEqual((await self.assert_kept(path, False, self.mallory)).status, 200, path)
            await self.assert_kept(path, True, self.mallory)
        self.assertEqual(len(self.entries(b"D")), contents)
        self.assertEqual(len(self.entries(b"q")), 2 * len(self.all))

    async def test_different_answers(self) -> None:
        """Callers who are shown different things get each their own from the cache."""
        await self.begin()
        self.origin.allow(token(MALLORY))
        other = json.dumps([{"00100010": {"vr": "PN", "Value": [{"Alphabetic": "ANON"}]}}]).encode()
        first = await self.alice.get(self.metadata)
        self.origin.fail(faults.Answer(200, JSON, other), "/metadata")
        await self.mallory.get(self.metadata)
        self.assertIn(b"ANON", (await self.assert_kept(self.metadata, client=self.mallory)).body)
        self.assertEqual((await self.assert_kept(self.metadata)).body, first.body)

    async def test_frames_open_none(self) -> None:
        """A grant for frames opens no description that another caller's request left in the cache."""
        await self.begin()
        for path in self.all:
            await self.alice.get(path)
        self.origin.allow(token(MALLORY))
        self.assertEqual((await self.mallory.frames(self.slide.resource, [1])).status, 200)
        self.origin.tokens.pop(token(MALLORY))
        for path in self.all:
            self.assertEqual((await self.mallory.get(path)).status, 401, path)

    async def test_that_very_url(self) -> None:
        """Another path, form or query is another proof."""
        await self.begin()
        await self.alice.get(self.metadata)
        await self.assert_kept(f"{self.series}/metadata", False)
        await self.assert_kept(f"{self.metadata}?accept=application/json", False)
        before = self.asked
        await self.alice.get(self.metadata, {"Accept": "application/dicom+json"})
        self.assertEqual(self.asked - before, 1)
        await self.assert_kept(self.metadata)

    async def test_time(self) -> None:
        """A proof ends with the time of a grant, counted from when the store was asked, and a hit does not prolong it."""
        await self.begin()
        await self.alice.get(self.metadata)
        self.running.wall.now += 0.9 * SECONDS
        await self.assert_kept(self.metadata)
        self.running.wall.now += 0.2 * SECONDS
        await self.assert_kept(self.metadata, False)
        gate = self.origin.hold("/bulkdata")
        slow = ensureDeferred(self.alice.get(self.bulk))
        await gate.reached()
        self.running.wall.now += SECONDS
        gate.release()
        await slow
        await self.assert_kept(self.bulk, False)

    async def test_clock_set_back(self) -> None:
        """A clock that is set back does not make a proof last longer."""
        await self.begin()
        await self.alice.get(self.metadata)
        self.running.wall.now -= 3600
        await self.assert_kept(self.metadata, False)

    async def test_local_cache(self) -> None:
        """The default cache keeps them, too: small answers and large ones."""
        await self.begin(cache=LocalAddress(None, 64 << 20))
        self.origin.fail(faults.Answer(200, OCTETS, bytes(range(256)) * (6 << 12)), "/bulkdata")
        for path in self.all:
            first = await self.alice.get(path)
            self.assertEqual((await self.assert_kept(path)).body, first.body, path)
            await self.assert_kept(path, False, self.mallory)
        await self.alice.request("DELETE", self.study)
        for path in self.all:
            await self.assert_kept(path, False)

    async def test_grants(self) -> None:
        """The store's answer is a grant for the frames; the cache's renews none."""
        await self.begin()
        await self.alice.get(self.metadata)
        grants = self.running.components.access.grants._grants
        (before,) = [grant.expires for grant in grants.values()]
        self.running.wall.now += 10
        await self.assert_kept(self.metadata)
        self.assertEqual([grant.expires for grant in grants.values()], [before])

    async def test_other_worker(self) -> None:
        """Proofs are in the cache: another worker finds them."""
        await self.begin(secret=b"0123456789abcdef")
        for path in self.all:
            await self.alice.get(path)
        self.patch(proxy, "open_cache", lambda *_: self.running.components.cache)
        other = await self.proxy(self.origin, secret=b"0123456789abcdef")
        for path in self.all:
            found = await self.assert_kept(path, client=other.client(ALICE))
            self.assertNotIn(f":{self.running.port}/".encode(), found.body)
            await self.assert_kept(path, False, client=other.client(MALLORY))


class EndTests(DescriptionCase):
    """What ends the right, or the thing."""

    async def fill(self) -> None:
        """Have all in the cache for ALICE."""
        for path in self.all:
            await self.alice.get(path)
            await self.assert_kept(path)

    async def test_upload(self) -> None:
        """A STOW of one instance hides what is kept of it, of its series and of its study, and of nothing else."""
        await self.begin()
        other = slide(self.mktemp(), 1, 2, 32)
        self.origin.add(other.path)
        await self.fill()
        elsewhere = f"/{other.resource}/metadata"
        await self.alice.get(elsewhere)
        await self.alice.request("POST", "/studies", STOW, stow_body(self.slide.path.read_bytes()))
        for path in self.all:
            await self.assert_kept(path, False)
            await self.assert_kept(path)
        await self.assert_kept(elsewhere)

    async def test_deleted(self) -> None:
        """A DELETE does, of every level."""
        for level in ("instance", "series", "study"):
            await self.begin()
            await self.fill()
            self.assertEqual((await self.alice.request("DELETE", getattr(self, level))).status, 204)
            for path in self.all:
                self.assertEqual((await self.assert_kept(path, False)).status, 404, (level, path))

    async def test_under_way(self) -> None:
        """An answer that was under way when something changed is not kept."""
        await self.begin()
        for path, after in itertools.product(self.all, (None, 10)):
            gate = self.origin.hold(path, after=after)
            slow = ensureDeferred(self.alice.get(path, {"Cache-Control": "no-cache"}))
            await gate.reached()
            await self.running.components.invalidation.invalidate(self._scope())
            gate.release()
            self.assertEqual((await slow).status, 200)
            await self.assert_kept(path, False)

    async def test_between_two_readings(self) -> None:
        """What another caller was given after a change is not what a proof from before it opens."""
        await self.begin()
        await self.alice.get(self.metadata)
        cache = self.running.components.cache
        get_many = cache.get_many

        async def changing(instance: Instance, names: Sequence[bytes]) -> Reading:
            if names and names[0][:1] == b"D":
                body = (await get_many(instance, names)).entries[names[0]]
                await self.running.components.invalidation.invalidate(self._scope())
                now = await get_many(instance, [])
                await cache.put_many(instance, now.fence, {names[0]: body}, None)
            return await get_many(instance, names)

        self.patch(cache, "get_many", changing)
        await self.assert_kept(self.metadata, False)

    async def test_cache_not_reached_by_an_invalidation(self) -> None:
        """While the cache cannot be told of a change, nothing of the series and the study comes from it either."""
        await self.begin()
        await self.fill()

        async def unreachable(_scope: object) -> None:
            raise CacheUnavailable("down")

        self.patch(self.running.components.cache, "invalidate", unreachable)
        await self.running.components.invalidation.invalidate(self._scope())
        for path in self.all:
            await self.assert_kept(path, False)

    async def test_refused(self) -> None:
        """What the store refuses is proved no more: the instance's by 401, 403 and 404, with its series' and study's."""
        for status in (401, 403, 404):
            await self.begin()
            await self.fill()
            self.origin.fail(faults.Answer(status, (("X-Why", "so"),), b"why"), "/metadata")
            answer = await self.alice.get(self.metadata, {"Cache-Control": "no-cache"})
            self.assertEqual((answer.status, answer.body, answer.headers["x-why"]), (status, b"why", "so"))
            for path in self.all:
                await self.assert_kept(path, False)

    async def test_series_refused(self) -> None:
        """A refusal of a series or a study ends the caller's series and study answers; those of others stay."""
        await self.begin()
        self.origin.allow(token(MALLORY))
        for refused in self.all[1:3]:
            await self.fill()
            for path in self.all:
                await self.mallory.get(path)
            self.origin.fail(faults.Answer(403, (), b""), "/metadata")
            await self.alice.get(refused, {"Cache-Control": "no-cache"})
            for path in self.all[1:3]:
                await self.assert_kept(path, client=self.mallory)
                await self.assert_kept(path, False)

    async def test_missing_value(self) -> None:
        """A value that is missing ends its own proof alone."""
        await self.begin()
        await self.fill()
        self.origin.fail(faults.Answer(404, (), b""), "/bulkdata")
        await self.alice.get(self.bulk, {"Cache-Control": "no-cache"})
        await self.assert_kept(self.metadata)
        await self.assert_kept(self.bulk, False)

    async def test_frame_refused(self) -> None:
        """A refusal of a frame ends what describes its instance."""
        await self.begin()
        await self.fill()
        components = self.running.components
        self.origin.tokens[token(ALICE)] = {"1.2"}
        self.running.wall.now += 0.9 * SECONDS  # a grant in use is renewed
        await self.alice.frames(self.slide.resource, [1])
        await wait_until(lambda: not components.access.grants._grants, "revoked")
        await wait_until(lambda: len(self.origin.lines(self.metadata)) == 2, "asked for the renewal")
        self.assertEqual((await self.assert_kept(self.metadata, False)).status, 403)

    async def test_refused_while_an_answer_is_under_way(self) -> None:
        """An answer that had begun when another request of the caller was refused is no proof."""
        await self.begin()
        gate = self.origin.hold(self.metadata, after=10)
        slow = ensureDeferred(self.alice.get(self.metadata))
        await gate.reached()
        await wait_until(lambda: self.entries(b"t"), "token")
        self.origin.fail(faults.Answer(403, (), b""), self.bulk)
        self.assertEqual((await self.alice.get(self.bulk)).status, 403)
        gate.release()
        self.assertEqual((await slow).status, 200)
        await self.assert_kept(self.metadata, False)

    def _scope(self) -> Scope:
        """The slide, as an upload touches it."""
        return Scope(self.origin.url, "", self.slide.study, self.slide.series, self.slide.sop)


class KeptTests(DescriptionCase):
    """What is kept, and how it goes out."""

    async def test_not_kept(self) -> None:
        """Answers that are for one request, forbid it, depend on more, are coded or no such thing: each passes, and is asked again."""
        await self.begin()
        body = (await self.alice.get(f"{self.study}/metadata")).body
        for number, (fault, what) in enumerate(
            (
                (faults.Answer(200, (*JSON, ("Set-Cookie", "a=b")), body), "Set-Cookie"),
                (faults.Answer(200, (*JSON, ("Cache-Control", "private, no-store")), body), "no-store"),
                (faults.Answer(200, (*JSON, ("Cache-Control", "no-transform")), body), "no-transform"),
                (faults.Answer(200, (*JSON, ("Vary", "*")), body), "Vary: *"),
                (faults.Answer(200, (*JSON, ("Vary", "Accept, User-Agent")), body), "Vary: User-Agent"),
                (faults.Answer(203, JSON, body), "203"),
                (faults.Answer(200, (*JSON, ("Age", "7")), body), "Age"),
                (faults.Answer(200, (("Content-Type", "text/html"),), body), "a page"),
                (faults.Answer(200, JSON, b""), "nothing"),
                (faults.Answer(200, JSON, b"[]"), "no object"),
                (faults.Answer(200, JSON, body + b"<html>"), "a page behind it"),
                (faults.Answer(200, JSON, body, "close"), "unframed"),
            )
        ):
            path = f"{self.instance}/metadata?accept=*/*,x/{number}"
            self.origin.fail(fault, "/metadata")
            first = await self.alice.get(path)
            self.assertEqual(first.headers["cache-status"], PASSED, what)
            self.assertNotIn("etag", first.headers)
            await self.assert_kept(path, False)
            await self.assert_kept(path)  # a good one is

    async def test_bulk_not_kept(self) -> None:
        """The same of bulk data: coded unasked, a part, a page."""
        await self.begin()
        for number, headers in enumerate(
            (
                (*OCTETS, ("Content-Encoding", "br")),
                (*OCTETS, ("Content-Range", "bytes 0-2/9")),
                (("Content-Type", "text/html"),),
                (),
            )
        ):
            path = f"{self.bulk}?accept=x/{number}"
            self.origin.fail(faults.Answer(200, headers, b"abc"), "/bulkdata")
            answer = await self.alice.get(path, {"Accept-Encoding": "br"})
            self.assertEqual((answer.body, answer.headers["cache-status"]), (b"abc", PASSED), headers)
            self.assertEqual(self.origin.requests[-1].header("Accept-Encoding"), "identity")
            await self.assert_kept(path, False)
            await self.assert_kept(path)
        self.origin.fail(faults.Answer(200, OCTETS, b""), "/bulkdata", 2)
        for _ in range(2):
            self.assertEqual((await self.assert_kept(self.bulk, False)).headers["cache-status"], PASSED)

    async def test_broken_off(self) -> None:
        """An answer that breaks off is none, and is not kept."""
        await self.begin()
        self.origin.fail(faults.Close(after=20), "/metadata")
        self.assertEqual((await self.alice.get(self.metadata)).status, 502)
        await self.assert_kept(self.metadata, False)

    async def test_age_for_strangers(self) -> None:
        """Callers without credentials are all one: what a cache on the way gave them is theirs."""
        await self.begin()
        self.origin.tokens.clear()
        self.origin.fail(faults.Answer(200, (*OCTETS, ("Age", "7")), b"abc"), "/bulkdata")
        anyone = self.running.client()
        await anyone.get(self.bulk)
        self.assertNotIn("age", (await self.assert_kept(self.bulk, client=anyone)).headers)

    async def test_too_long(self) -> None:
        """A longer answer is not held: it is streamed, whether its length is told or not, and not kept."""
        self.patch(description_answers, "LIMITS", {ResourceKind.METADATA: 1 << 16, ResourceKind.BULKDATA: 1 << 16})
        await self.begin()
        for framing in ("length", "chunked"):
            path = f"{self.bulk}?accept=x/{framing}"
            body = bytes(range(256)) * 4096
            self.origin.fail(faults.Answer(200, OCTETS, body, framing), "/bulkdata")
            first = 100 if framing == "length" else len(body) - 10  # of one without a length, the bound is held
            gate = self.origin.hold("/bulkdata", after=first)
            connection = await RawConnection.open(self.running.port)
            head = f"GET /dicomweb{path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token(ALICE)}\r\n\r\n"
            connection.send(head.encode())
            if framing == "length":
                await connection.until(body[:100])
            else:
                await wait_until(lambda: len(connection.received) > len(body) - (1 << 18), "bytes")  # noqa: B023
            gate.release()
            await connection.until(body[-10:] + (b"\r\n0\r\n" if framing == "chunked" else b""))
            await connection.close()
            before = self.asked
            answer = await self.alice.get(path, {"If-None-Match": '"theirs"'})
            self.assertEqual((answer.status, self.asked - before), (200, 1))
            self.assertEqual(self.origin.requests[-1].header("If-None-Match"), '"theirs"')  # passes as it came
        await wait_until(lambda: not self.running.components.answer_memory.used, "memory")

    async def test_not_plain(self) -> None:
        """Requests that may move the store to another answer pass as they are, and prove nothing."""
        await self.begin()
        for path, headers in (
            (f"{self.metadata}?includefield=all", {}),
            (f"{self.bulk}?x=1", {}),
            (self.metadata, {"X-Api-Key": "k"}),
            (self.bulk, {"Range": "bytes=0-3"}),
            (self.metadata, {"Cache-Control": "no-store"}),
        ):
            for _ in range(2):
                before = self.asked
                answer = await self.alice.get(path, headers)
                self.assertEqual((self.asked - before, answer.headers["cache-status"]), (1, PASSED), path)
        self.assertEqual(self.entries(b"q"), [])
        for _ in range(2):
            before = self.asked
            await self.alice.request("HEAD", self.metadata)
            self.assertEqual(self.asked - before, 1)

    async def test_wanted_from_the_store(self) -> None:
        """A client that will not have a cached answer gets the store's, which replaces it."""
        await self.begin()
        await self.alice.get(self.metadata)
        body = json.dumps([{"00100020": {"vr": "LO", "Value": ["new"]}}]).encode()
        self.origin.fail(faults.Answer(200, JSON, body), "/metadata")
        fresh = await self.alice.get(self.metadata, {"Cache-Control": "no-cache"})
        self.assertEqual((fresh.body, fresh.headers["cache-status"]), (body, "twistedproxy; fwd=request; stored"))
        self.assertEqual((await self.assert_kept(self.metadata)).json()[0]["00100020"]["Value"], ["new"])

    async def test_transfer_syntax(self) -> None:
        """Where the store leaves out the transfer syntax, the cached answer has it like the first one, of a large instance too."""
        await self.begin(NO_SYNTAX)
        found = (await self.alice.get(f"{self.series}/metadata")).json()[0]
        found["52009230"] = {"vr": "SQ", "Value": [{"00189073": {"vr": "FD", "Value": [n]}} for n in range(9_000)]}
        for body, headers in ((None, {"Accept": "*/*"}), (json.dumps([found]).encode(), {})):
            if body is not None:
                self.origin.fail(faults.Answer(200, JSON, body), self.metadata)
            first = await self.alice.get(self.metadata, headers)
            again = await self.alice.get(self.metadata, headers)
            self.assertEqual(again.headers["cache-status"], HIT)
            self.assertEqual(first.json()[0]["00083002"]["Value"], ["1.2.840.10008.1.2.4.50"])
            self.assertEqual((again.body, again.headers["etag"]), (first.body, first.headers["etag"]))

    async def test_host(self) -> None:
        """URLs name the host that the present request names, not the one that filled the cache."""
        await self.begin()
        line = f"GET /dicomweb{self.metadata} HTTP/1.1\r\nHost: "
        evil = await self.raw(line + "evil.test")
        self.assertIn(b"http://evil.test/dicomweb/", evil)
        before = self.asked
        good = await self.raw(line + "good.test")
        self.assertEqual(self.asked, before)
        self.assertIn(b"http://good.test/dicomweb/", good)
        self.assertNotIn(b"evil", good)
        self.assertNotEqual(_tag(evil), _tag(good))

    async def test_downsampled(self) -> None:
        """A virtual instance's metadata are made of what is in the cache."""
        await self.begin(render_workers=1)
        whole = (await self.alice.get(self.metadata)).json()[0]
        smaller = (await self.assert_kept(f"{self.metadata}?downsample=2")).json()[0]
        self.assertEqual(smaller["00480006"]["Value"][0] * 2, whole["00480006"]["Value"][0])

    async def test_headers(self) -> None:
        """Of the store's headers those come back that say what the answer is; its validators do not."""
        await self.begin()
        fields = (("ETag", '"theirs"'), ("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT"), ("Expires", "0"))
        more = (("Content-Disposition", "inline"), ("Vary", "Accept, Authorization"), ("Cache-Control", "max-age=9"))
        self.origin.fail(faults.Answer(200, (*OCTETS, *fields, *more), b"abc"), "/bulkdata")
        first, again = await self.alice.get(self.bulk), await self.assert_kept(self.bulk)
        for answer in (first, again):
            self.assertEqual(answer.headers["content-disposition"], "inline")
            self.assertIn("Authorization", answer.headers["vary"])
            self.assertEqual(answer.headers["cache-control"], "private, no-cache")
            self.assertFalse({"last-modified", "expires"} & answer.headers.keys())
            self.assertNotEqual(answer.headers["etag"], '"theirs"')

    async def test_store_with_cross_origin_rules(self) -> None:
        """What a store lets pages of one web origin read is not what it lets those of another read."""
        await self.begin()

        def allowed(origin: str) -> faults.Answer:
            return faults.Answer(200, (*OCTETS, ("Access-Control-Allow-Origin", origin), ("Vary", "Origin")), b"abc")

        for origin in ("https://a.test", "https://b.test"):
            self.origin.fail(allowed(origin), "/bulkdata")
            for _ in range(2):
                answer = await self.alice.get(self.bulk, {"Origin": origin})
                self.assertEqual(answer.headers["access-control-allow-origin"], origin)
        self.assertEqual((answer.headers["cache-status"], self.asked), (HIT, 2))

    async def test_coded_by_the_store(self) -> None:
        """Metadata that a store codes unasked are kept as they are without the coding."""
        await self.begin()
        body = (await self.alice.get(f"{self.series}/metadata")).body
        coded = faults.Answer(200, (*JSON, ("Content-Encoding", "gzip")), gzip.compress(body))
        self.origin.fail(coded, "/metadata")
        self.assertEqual((await self.alice.get(self.metadata)).body, body)
        self.assertEqual((await self.assert_kept(self.metadata)).body, body)

    async def test_compressed(self) -> None:
        """What comes from the cache is compressed for clients that ask for it."""
        await self.begin()
        plain = await self.alice.get(self.metadata)
        packed = await self.alice.get(self.metadata, {"Accept-Encoding": "gzip"})
        self.assertEqual((packed.headers["content-encoding"], packed.headers["cache-status"]), ("gzip", HIT))
        self.assertEqual(gzip.decompress(packed.body), plain.body)

    async def test_compressed_once(self) -> None:
        """A large description is compressed once for all who see the same, and not for other hosts and callers who see another."""
        flushed: list[int] = []

        class Counted:
            def __init__(self) -> None:
                self._compressor = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)

            def compress(self, data: bytes) -> bytes:
                return self._compressor.compress(data)

            def flush(self) -> bytes:
                flushed.append(1)
                return self._compressor.flush()

        self.patch(compression, "COMPRESSORS", {**compression.COMPRESSORS, "gzip": Counted})
        await self.begin()
        self.origin.allow(token(MALLORY))
        found = (await self.mallory.get(f"{self.series}/metadata")).json()[0]
        found["52009230"] = {"vr": "SQ", "Value": [{"00189073": {"vr": "FD", "Value": [n]}} for n in range(9_000)]}
        self.origin.fail(faults.Answer(200, JSON, json.dumps([found]).encode()), self.metadata, 2)
        asked = {"Accept-Encoding": "gzip"}
        for client in (self.alice, self.mallory, self.alice, self.mallory):
            answer = await client.get(self.metadata, asked)
            self.assertEqual(json.loads(gzip.decompress(answer.body)), [found])
            self.assertEqual(answer.headers["content-encoding"], "gzip")
        self.assertEqual(len(flushed), 1)
        line = f"GET /dicomweb{self.metadata} HTTP/1.1\r\nAccept-Encoding: gzip\r\nHost: other.test"
        other = await self.raw(line)
        self.assertIn(b"http://other.test/", gzip.decompress(other.partition(b"\r\n\r\n")[2]))
        self.assertEqual(len(flushed), 2)
        self.origin.tokens.pop(token(MALLORY))
        self.running.wall.now += 2 * SECONDS
        self.assertEqual((await self.mallory.get(self.metadata, asked)).status, 401)

    async def test_no_cache(self) -> None:
        """Without a cache all passes as it came, searches side by side."""
        await self.begin(cache=NoAddress())
        for path in self.all:
            for _ in range(2):
                answer = await self.assert_kept(path, False)
                self.assertEqual((answer.status, answer.headers["cache-status"]), (200, PASSED))
                self.assertNotIn("etag", answer.headers)
        gate = self.origin.hold("/studies")
        both = [ensureDeferred(self.alice.get("/studies")) for _ in range(2)]
        await gate.reached(2)
        gate.release()
        await gatherResults(both)

    async def test_failing_cache(self) -> None:
        """A cache that cannot be read or written costs only speed."""
        await self.begin()

        async def unreadable(*_: object) -> Reading:
            return Reading(None, {})

        async def unwritable(*_: object) -> bool:
            return False

        for name, broken in (("put_many", unwritable), ("get_many", unreadable)):
            self.patch(self.running.components.cache, name, broken)
            for path in self.all:
                for _ in range(2):
                    answer = await self.assert_kept(path, False)
                    self.assertEqual(answer.status, 200)
                    self.assertNotIn("stored", answer.headers["cache-status"])
        await self.alice.get(self.metadata, {"If-None-Match": '"theirs"'})
        self.assertEqual(self.origin.requests[-1].header("If-None-Match"), '"theirs"')


class ConditionTests(DescriptionCase):
    """If-None-Match, answered here and only after the proof."""

    async def test_not_modified(self) -> None:
        """A client that has it is told so, without the store; a changed one is sent."""
        await self.begin()
        for path in self.all:
            tag = (await self.alice.get(path)).headers["etag"]
            before = self.asked
            answer = await self.alice.get(path, {"If-None-Match": tag})
            self.assertEqual((answer.status, answer.body, answer.headers["etag"]), (304, b"", tag), path)
            self.assertEqual((self.asked, answer.headers["cache-status"]), (before, HIT))
            other = await self.alice.get(path, {"If-None-Match": '"0"'})
            self.assertEqual(other.status, 200)

    async def test_not_for_the_store(self) -> None:
        """Our tags do not reach the store, which could take them for its own; its answer is compared here."""
        await self.begin()
        tag = (await self.alice.get(self.metadata)).headers["etag"]
        self.running.wall.now += 2 * SECONDS
        conditions = {"If-None-Match": tag, "If-Modified-Since": "Mon, 01 Jan 2035 00:00:00 GMT"}
        answer = await self.alice.get(self.metadata, conditions)
        seen = self.origin.requests[-1]
        self.assertEqual((seen.header("If-None-Match"), seen.header("If-Modified-Since")), ("", ""))
        self.assertEqual((answer.status, answer.headers["cache-status"]), (304, STORED))
        await self.assert_kept(self.metadata)

    async def test_only_after_the_proof(self) -> None:
        """A caller whom the store refuses is not told whether a tag is right."""
        await self.begin()
        tag = (await self.alice.get(self.metadata)).headers["etag"]
        self.assertEqual((await self.mallory.get(self.metadata, {"If-None-Match": tag})).status, 401)
        self.assertEqual((await self.mallory.get(self.metadata, {"If-None-Match": "*"})).status, 401)

    async def test_compressed(self) -> None:
        """A compressed answer has the weak tag, and so has the 304 to it: each names the same content."""
        await self.begin()
        strong = (await self.alice.get(self.metadata)).headers["etag"]
        packed = await self.alice.get(self.metadata, {"Accept-Encoding": "gzip"})
        self.assertEqual(packed.headers["etag"], f"W/{strong}")
        for tag in (strong, f"W/{strong}"):
            answer = await self.alice.get(self.metadata, {"Accept-Encoding": "gzip", "If-None-Match": tag})
            self.assertEqual((answer.status, answer.headers["etag"]), (304, f"W/{strong}"))


class FlightTests(DescriptionCase):
    """Equal requests of one caller that are under way."""

    async def test_one_request(self) -> None:
        """Five requests of one caller are one at the store; another caller's is another."""
        await self.begin()
        self.origin.allow(token(MALLORY))
        for path in self.all:
            gate = self.origin.hold(path)
            mine = [ensureDeferred(self.alice.get(path)) for _ in range(5)]
            other = ensureDeferred(self.mallory.get(path))
            await gate.reached(2)
            await self._wait_for_requests(6)
            gate.release()
            answers = await gatherResults([*mine, other])
            self.assertEqual({answer.body for answer in answers}, {answers[0].body})
            self.assertEqual(len(self.origin.seen(lambda seen, path=path: seen.path.endswith(path))), 2, path)
            states = sorted(answer.headers["cache-status"] for answer in answers[:5])
            self.assertEqual(states, [STORED, *[f"{STORED}; collapsed"] * 4])

    async def test_one_leaves(self) -> None:
        """The client that asked first may leave: the others get their answer, and it is kept."""
        await self.begin()
        gate = self.origin.hold(self.metadata)
        first = ensureDeferred(self.alice.get(self.metadata))
        await gate.reached()
        second = ensureDeferred(self.alice.get(self.metadata))
        await self._wait_for_requests(2)
        first.addErrback(lambda _: None).cancel()
        await self._wait_for_requests(1)
        gate.release()
        self.assertEqual((await second).status, 200)
        await self.assert_kept(self.metadata)
        await wait_until(lambda: not self.running.components.answer_memory.used, "memory")

    async def test_one_leaves_what_is_not_kept(self) -> None:
        """An answer for the one who left alone is given up; who waited asks the store."""
        self.patch(description_answers, "LIMITS", {ResourceKind.BULKDATA: 1 << 16})
        await self.begin()
        body = bytes(24 << 20)
        self.origin.fail(faults.Answer(200, OCTETS, body), "/bulkdata", 2)
        gate = self.origin.hold("/bulkdata")
        first = ensureDeferred(self.alice.get(self.bulk))
        await gate.reached()
        second = ensureDeferred(self.alice.get(self.bulk))
        await self._wait_for_requests(2)
        first.addErrback(lambda _: None).cancel()
        await self._wait_for_requests(1)
        gate.release()
        self.assertEqual(len((await second).body), len(body))
        await wait_until(lambda: self.origin.requests[0].aborted, "given up")

    async def test_refused(self) -> None:
        """Who waited for an answer that is refused asks in turn, and gets the store's own refusal."""
        await self.begin()
        self.origin.tokens[token(ALICE)] = {"1.2"}
        gate = self.origin.hold(self.metadata)
        both = [ensureDeferred(self.alice.get(self.metadata)) for _ in range(2)]
        await gate.reached()
        await self._wait_for_requests(2)
        gate.release()
        for answer in await gatherResults(both):
            self.assertEqual((answer.status, answer.json()), (403, {"errorMessage": "not for you"}))

    async def test_searches(self) -> None:
        """Searches of one caller share a flight, and nothing is kept of them."""
        await self.begin()
        self.origin.allow(token(MALLORY))
        path = "/studies?PatientID=*&limit=5"
        gate = self.origin.hold("/studies")
        mine = [ensureDeferred(self.alice.get(path)) for _ in range(3)]
        other = ensureDeferred(self.mallory.get(path))
        await gate.reached(2)
        await self._wait_for_requests(4)
        gate.release()
        answers = await gatherResults([*mine, other])
        self.assertEqual([answer.status for answer in answers], [200] * 4)
        self.assertEqual({answer.body for answer in answers}, {answers[0].body})
        self.assertEqual(self.asked, 2)
        self.assertFalse([answer for answer in answers if "etag" in answer.headers])
        self.assertEqual((await self.assert_kept(path, False)).headers["cache-status"], PASSED)
        self.assertEqual((self.entries(b"D"), self.entries(b"q")), ([], []))

    async def test_searches_after_a_change(self) -> None:
        """A search that begins after a change joins none from before."""
        await self.begin()
        gate = self.origin.hold(lambda seen: seen.path.endswith("/studies") and seen.method == "GET")
        before = ensureDeferred(self.alice.get("/studies"))
        await gate.reached()
        await self.alice.request("DELETE", self.study)
        after = ensureDeferred(self.alice.get("/studies"))
        await gate.reached(2)
        gate.release()
        await gatherResults([before, after])

    async def test_descriptions_after_a_change(self) -> None:
        """Neither does a request for metadata."""
        await self.begin()
        gate = self.origin.hold(self.metadata)
        before = ensureDeferred(self.alice.get(self.metadata))
        await gate.reached()
        await self.alice.request("POST", "/studies", STOW, stow_body(self.slide.path.read_bytes()))
        after = ensureDeferred(self.alice.get(self.metadata))
        await gate.reached(2)
        gate.release()
        await gatherResults([before, after])

    async def test_memory(self) -> None:
        """What is held of answers is counted while it is held, and given back."""
        await self.begin()
        body = bytes(1 << 20)
        memory = self.running.components.answer_memory
        for framing in ("length", "chunked"):
            self.origin.fail(faults.Answer(200, OCTETS, body, framing), "/bulkdata")
            gate = self.origin.hold("/bulkdata", after=len(body) - 10)
            slow = ensureDeferred(self.alice.get(f"{self.bulk}?accept={framing}"))
            await gate.reached()
            await wait_until(lambda: memory.used >= len(body) - 10, "counted")
            gate.release()
            await slow
            await wait_until(lambda: not memory.used, "given back")

    async def test_memory_of_those_who_wait(self) -> None:
        """Each who waited for the answer to another request waits for room, too: what is made of it is its own."""
        await self.begin()
        taken: list[int] = []
        take = Reservation.take

        async def noting(reservation: Reservation, size: int) -> None:
            taken.append(size)
            await take(reservation, size)

        self.patch(Reservation, "take", noting)
        body = bytes(1 << 20)
        self.origin.fail(faults.Answer(200, OCTETS, body), "/bulkdata")
        gate = self.origin.hold("/bulkdata")
        all_ = [ensureDeferred(self.alice.get(self.bulk)) for _ in range(3)]
        await gate.reached()
        await self._wait_for_requests(3)
        gate.release()
        for answer in await gatherResults(all_):
            self.assertEqual(answer.body, body)
        self.assertEqual(taken, [len(body), 2 * len(body), 2 * len(body)])

    async def _wait_for_requests(self, count: int) -> None:
        """Return once *count* requests are in flight at the proxy."""

        def in_flight() -> float:
            lines = self.running.components.metrics.render().decode().splitlines()
            return sum(
                float(line.rpartition(" ")[2]) for line in lines if line.startswith("twistedproxy_requests_in_f")
            )

        await wait_until(lambda: in_flight() == count, f"{count} requests")


def _direct(test: DescriptionCase, store: SimulatedStore) -> Client:
    from tests.clients import client

    return client(test, store.url, ALICE)


def _outcomes(events: list[LogEvent]) -> list[str]:
    return [event["cache"] for event in events if event.get("event") == "access"]


def _tag(answer: bytes) -> bytes:
    return answer.partition(b"ETag: ")[2].partition(b"\r\n")[0]
