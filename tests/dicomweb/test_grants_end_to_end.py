"""Two callers, one of whom the origin refuses: nothing of what the other cached reaches that one, from anywhere."""

from __future__ import annotations

import io
from typing import Any

import attrs
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import LogEvent, eventAsText

from tests.cache.support import RunningServer, any_server, ask
from tests.clients import Answer
from tests.dicomweb.support import ALICE, MALLORY, ProxyCase, RunningProxy, logged, token
from tests.slides import slide
from tests.stores import faults
from tests.stores.dialects import NO_SYNTAX, STANDARD
from tests.waiting import wait_until
from twistedproxy.cache.address import UnixAddress
from twistedproxy.system.log_json import json_line

SECRET = b"a key that both proxies have, of 32 bytes or more"
HIT = "twistedproxy; hit"
STOW = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=stow'}


class GrantCase(ProxyCase):
    """A store that ALICE may read, and MALLORY only another instance of."""

    async def started(self, **settings: Any) -> RunningProxy:
        """A proxy in front of it."""
        self.origin = self.store(STANDARD, slide(self.mktemp(), 2, 3, 64), slide(self.mktemp(), 1, 2, 32))
        self.origin.allow(token(ALICE))
        self.other = next(one for one in self.origin.instances.values() if one.sop != self.slide.sop)
        self.origin.allow(token(MALLORY), self.other.sop)
        return await self.proxy(self.origin, **settings)

    async def frame(self, proxy: RunningProxy, who: dict[str, str], number: int = 1, resource: str = "") -> Answer:
        """One frame, asked for by *who*."""
        return await proxy.client(who).frames(resource or self.slide.resource, [number])

    def assert_refused(self, answer: Answer) -> None:
        """The origin's own refusal, and no byte of a frame."""
        self.assertEqual((answer.status, answer.json()), (403, {"errorMessage": "not for you"}))
        self.assertNotIn("max-age", answer.headers.get("cache-control", ""))


class OneProxyTests(GrantCase):
    """In one worker."""

    async def test_refused(self) -> None:
        """The refused one gets the origin's refusal, also for what is cached, by every way to a frame."""
        proxy = await self.started()
        self.assertEqual((await self.frame(proxy, ALICE)).frames(), self.stored[:1])
        for path in ("frames/1", "frames/1/rendered", "frames/1?accept=image/jpeg", "frames/1?x=1", "metadata"):
            self.assert_refused(await proxy.client(MALLORY).get(f"/{self.slide.resource}/{path}"))
        self.assertEqual((await self.frame(proxy, {})).status, 401)
        self.assertEqual(len(self.origin.lines("/frames/1")), 2, "with ?x=1 the origin's own answer is asked for")

    async def test_token_in_the_query(self) -> None:
        """A token in the query goes along with all that is asked of the origin, makes the caller, and stays out of the
        cache's names, hot responses and the log."""
        self.origin = self.store()
        proxy = await self.proxy(self.origin, hot_memory=1 << 24, render_workers=1)
        secret = "access_token=s3cr%33t"
        self.origin.fail(faults.Answer(401), lambda seen: secret not in seen.query, None)
        instance = f"/{self.slide.resource}"
        short = f"/studies/{self.slide.study}/instances/{self.slide.sop}/frames/2"
        anyone = proxy.client()
        with logged() as events:
            for path in (
                f"{instance}/frames/1?",
                f"{instance}/metadata?",
                f"{instance}/frames/1?downsample=2&",
                f"{instance}/rendered?viewport=20,20&",
                f"{instance}/frames/1/rendered?accept=image/png&",
                f"{instance}/thumbnail?",
                f"{short}?",
                f"{instance}/bulkdata/7FE00010?",
            ):
                for _ in range(3):
                    answer = await anyone.get(path + secret)
                    self.assertEqual(answer.status, 200, (path, answer.body[:100]))
                self.assertNotIn("s3cr", str(answer.headers))
                self.assertEqual((await anyone.get(path[:-1])).status, 401, path)
                self.assertEqual((await anyone.get(path + "access_token=other")).status, 401, path)
        self.assertEqual(len(proxy.components.hot_responses), 0)
        self.assertNotIn("s3cr", repr(events))
        self.assertNotIn(b"s3cr", b"".join(proxy.components.cache._store._items))  # type: ignore[attr-defined]

    async def test_a_grant_is_for_one_instance(self) -> None:
        """Who may read one instance may not read another; nor the same frames under made-up places."""
        proxy = await self.started()
        await self.frame(proxy, ALICE)
        self.assertEqual((await self.frame(proxy, MALLORY, 1, self.other.resource)).status, 200)
        self.assert_refused(await self.frame(proxy, MALLORY))
        crossed = f"studies/{self.other.study}/series/{self.other.series}/instances/{self.slide.sop}"
        self.assertEqual((await self.frame(proxy, MALLORY, 1, crossed)).status, 404)

    async def test_short_path(self) -> None:
        """The short path leads nobody around their grants."""
        proxy = await self.started()
        short = f"studies/{self.slide.study}/instances/{self.slide.sop}"
        self.assertEqual((await self.frame(proxy, ALICE, 1, short)).status, 200)
        self.assertEqual((await self.frame(proxy, MALLORY, 1, short)).status, 404)

    async def test_no_joining_without_a_grant(self) -> None:
        """A fetch under way is joined by nobody who holds no grant."""
        proxy = await self.started()
        hers = lambda seen: "/frames/1" in seen.path and token(ALICE) in seen.header("Authorization")  # noqa: E731
        gate = self.origin.hold(hers)
        asked = Deferred.fromCoroutine(self.frame(proxy, ALICE))
        await gate.reached()
        self.assert_refused(await self.frame(proxy, MALLORY))
        gate.release()
        self.assertEqual((await asked).frames(), self.stored[:1])

    async def test_expiry(self) -> None:
        """After the grant's end the origin is asked again; what it says then holds."""
        proxy = await self.started()
        await self.frame(proxy, ALICE)
        proxy.wall.now += 601
        self.assertEqual((await self.frame(proxy, ALICE)).headers["cache-status"], HIT)
        self.assertEqual(len(self.origin.lines("/metadata")), 2)
        self.origin.allow(token(ALICE), self.other.sop)
        self.assertEqual((await self.frame(proxy, ALICE)).headers["cache-status"], HIT)
        proxy.wall.now += 601
        self.assert_refused(await self.frame(proxy, ALICE))

    async def test_a_refusal_ends_a_grant(self) -> None:
        """Once the origin refuses a caller a frame, it gets none from the cache either."""
        proxy = await self.started()
        await self.frame(proxy, ALICE)
        self.origin.allow(token(ALICE), self.other.sop)
        self.assert_refused(await self.frame(proxy, ALICE, 2))
        self.assert_refused(await self.frame(proxy, ALICE, 1))

    async def test_a_refusal_in_passing_ends_a_grant(self) -> None:
        """Once the origin refuses a caller the metadata, the very next request for a frame is refused, hot ones too."""
        proxy = await self.started(hot_memory=1 << 24)
        for _ in range(3):
            await self.frame(proxy, ALICE)
        self.origin.allow(token(ALICE), self.other.sop)
        self.assertEqual((await self.frame(proxy, ALICE)).status, 200)
        self.assertEqual((await proxy.client(ALICE).get(f"/{self.slide.resource}/metadata")).status, 403)
        self.assert_refused(await self.frame(proxy, ALICE))

    async def test_renewal(self) -> None:
        """A grant in use is renewed in the background; the one who asked does not wait for it."""
        proxy = await self.started()
        await self.frame(proxy, ALICE)
        proxy.wall.now += 500
        gate = self.origin.hold("/metadata")
        self.assertEqual((await self.frame(proxy, ALICE)).headers["cache-status"], HIT)
        await gate.reached()
        self.assertEqual((await self.frame(proxy, ALICE)).headers["cache-status"], HIT)
        gate.release()
        (key,) = proxy.components.access.grants._grants
        await wait_until(lambda: proxy.components.access.grants._grants[key].expires > proxy.wall.now + 500)
        proxy.wall.now += 300
        self.assertEqual((await self.frame(proxy, ALICE)).headers["cache-status"], HIT)
        self.assertEqual(len(gate.waiting), 1)
        self.assertEqual(len(self.origin.lines("/metadata")), 2)

    async def test_failed_renewals_are_not_repeated(self) -> None:
        """A viewer at work does not ask for a renewal with every frame while its grant runs out."""
        proxy = await self.started()
        await self.frame(proxy, ALICE)
        self.origin.fail(faults.Answer(500), "/metadata", None)
        proxy.wall.now += 500
        for _ in range(5):
            self.assertEqual((await self.frame(proxy, ALICE)).headers["cache-status"], HIT)
        await self.origin.requested("/metadata", 2)
        await self.frame(proxy, ALICE)
        self.assertEqual(len(self.origin.lines("/metadata")), 2)

    async def test_denied_renewal(self) -> None:
        """A renewal that the origin denies ends the right to what is cached, hot or not; a search that it still answers
        does not prolong it."""
        proxy = await self.started(hot_memory=1 << 24)
        for _ in range(3):
            await self.frame(proxy, ALICE)
        self.origin.fail(faults.Answer(403), lambda seen: "SOPInstanceUID" not in seen.query, None)
        proxy.wall.now += 500
        self.assertEqual((await self.frame(proxy, ALICE)).status, 200)
        await wait_until(lambda: not len(proxy.components.access.grants))
        self.assertEqual((await self.frame(proxy, ALICE)).status, 403)

    async def test_others_after_a_refused_fetch(self) -> None:
        """When the one who fetches is refused meanwhile, the others share one new fetch, and get the frame."""
        proxy = await self.started()
        others = [{"Authorization": f"Bearer other-{n}-0a1b2c3d4e"} for n in range(2)]
        for who in (ALICE, *others):
            self.origin.allow(token(who))
            await self.frame(proxy, who, 6)
        gate = self.origin.hold("/frames/1")
        first = Deferred.fromCoroutine(self.frame(proxy, ALICE))
        await gate.reached()
        waiting = [Deferred.fromCoroutine(self.frame(proxy, who)) for who in others for _ in range(10)]
        fetches = proxy.components.reader._flights._flights
        await wait_until(lambda: [len(fetch._waiters._waiting) for fetch in fetches.values()] == [21])
        self.origin.allow(token(ALICE), self.other.sop)
        gate.release()
        self.assert_refused(await first)
        for answer in await gatherResults(waiting):
            self.assertEqual(answer.frames(), self.stored[:1])
        self.assertEqual(len(self.origin.lines("/frames/1")), 2)

    async def test_forgotten_after_delete_and_stow(self) -> None:
        """A DELETE takes frames and grants with it, a STOW puts others in their place: nobody sees the old ones."""
        proxy = await self.started()
        await self.frame(proxy, ALICE)
        twin = slide(self.mktemp(), 2, 3, 32, study=self.slide.study, series=self.slide.series, sop=self.slide.sop)
        client = proxy.client(ALICE)
        self.assertEqual((await client.request("DELETE", f"/{self.slide.resource}")).status, 204)
        self.assertEqual((await self.frame(proxy, ALICE)).status, 404)
        part = b"--stow\r\nContent-Type: application/dicom\r\n\r\n" + twin.path.read_bytes() + b"\r\n--stow--\r\n"
        self.assertEqual((await client.request("POST", "/studies", STOW, part)).status, 200)
        self.assertEqual((await self.frame(proxy, ALICE)).frames(), twin.stored_frames()[:1])
        self.assert_refused(await self.frame(proxy, MALLORY))


class SharedCacheTests(GrantCase):
    """Several proxies, one after the other and side by side, on one cache server."""

    async def server(self) -> UnixAddress:
        """A private server."""
        self.redis = RunningServer(any_server())
        await self.redis.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.redis.stop()))
        return UnixAddress(self.redis.socket)

    async def test_restart_and_second_proxy(self) -> None:
        """Neither a proxy that was started again nor a second one gives the refused caller anything; the one with
        the grant need not ask the origin again."""
        cache = await self.server()
        first = await self.started(cache=cache, secret=SECRET)
        await self.frame(first, ALICE)
        await wait_until(lambda: not first.components.reader._flights.under_way())
        await first.components.stop()
        for _ in range(2):
            proxy = await self.proxy(self.origin, cache=cache, secret=SECRET)
            self.assert_refused(await self.frame(proxy, MALLORY))
            self.assertEqual((await self.frame(proxy, ALICE)).headers["cache-status"], HIT)
        self.assertEqual(len([seen for seen in self.origin.seen("/metadata") if seen.status == 200]), 1)

    async def test_another_key(self) -> None:
        """A proxy with another key finds no grant there, and asks the origin; the frames are there."""
        cache = await self.server()
        await self.frame(await self.started(cache=cache, secret=SECRET), ALICE)
        proxy = await self.proxy(self.origin, cache=cache, secret=b"x" * 32)
        self.assert_refused(await self.frame(proxy, MALLORY))
        self.assertEqual((await self.frame(proxy, ALICE)).headers["cache-status"], HIT)
        self.assertEqual(len([seen for seen in self.origin.seen("/metadata") if seen.status == 200]), 2)

    async def test_revoked_everywhere(self) -> None:
        """What is refused at one proxy ends the grant that others would find in the cache."""
        cache = await self.server()
        first = await self.started(cache=cache, secret=SECRET)
        await self.frame(first, ALICE)
        self.origin.allow(token(ALICE), self.other.sop)
        self.assert_refused(await self.frame(first, ALICE, 2))
        second = await self.proxy(self.origin, cache=cache, secret=SECRET)
        self.assert_refused(await self.frame(second, ALICE))

    async def test_forgotten_at_the_other_proxy(self) -> None:
        """A DELETE through one proxy is seen by the other's next request."""
        cache = await self.server()
        first = await self.started(cache=cache, secret=SECRET)
        second = await self.proxy(self.origin, cache=cache, secret=SECRET)
        for proxy in (first, second):
            await self.frame(proxy, ALICE)
        await first.client(ALICE).request("DELETE", f"/{self.slide.resource}")
        self.assertEqual((await self.frame(second, ALICE)).status, 404)

    async def test_no_secrets(self) -> None:
        """No token, no cookie is in any key, value or dump of the cache, nor in any line of the log."""
        cache = await self.server()
        with logged() as events:
            proxy = await self.started(cache=cache, secret=SECRET)
            self.origin.dialect = attrs.evolve(NO_SYNTAX)
            for who in (ALICE, MALLORY, {**ALICE, "Cookie": "session=cookie-55aa77"}):
                for path in ("metadata", "frames/1", "frames/1,2", "frames/1/rendered?x=1", "frames/99"):
                    await proxy.client(who).get(f"/{self.slide.resource}/{path}")
                await proxy.client(who).get("/instances")
            self.origin.fail(faults.HalfMultipart(), "/frames/5")
            await self.frame(proxy, ALICE, 5)
            await self.frame(proxy, ALICE, 4, "studies/1/series/2/instances/3")
            proxy.wall.now += 500
            await self.frame(proxy, ALICE)
            await wait_until(lambda: not proxy.components.reader._flights.under_way())
        kept = await self._everything_kept()
        self.assertGreater(len(kept), 2000)
        self.assertIn(self.stored[0], kept)
        lines = "".join(map(self._lines, events))
        self.assertIn("/frames/1", lines)
        for secret in (token(ALICE), token(MALLORY), "cookie-55aa77", "Bearer", SECRET.decode()):
            self.assertNotIn(secret.encode(), kept)
            self.assertNotIn(secret, lines)

    async def _everything_kept(self) -> bytes:
        """All keys and values, and the server's dump."""
        keys = await ask(self.redis.socket, b"KEYS", b"*")
        values = [await ask(self.redis.socket, b"GET", key) for key in keys]
        await ask(self.redis.socket, b"CONFIG", b"SET", b"rdbcompression", b"no")
        await ask(self.redis.socket, b"SAVE")
        dump = (self.redis.folder / "dump.rdb").read_bytes()
        return b"\n".join([*keys, *values, dump])

    @staticmethod
    def _lines(event: LogEvent) -> str:
        out = io.StringIO()
        out.write(json_line(event))
        out.write(eventAsText(event))
        return out.getvalue()
