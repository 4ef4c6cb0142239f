"""Whole proxies of two workers: kills, reloads, ends, what they share, and what they forget together."""

from __future__ import annotations

import json
import os
import signal

import psutil
from twisted.internet.threads import deferToThread

from tests.clients import client
from tests.processes import Proxy
from tests.waiting import wait_until, within
from tests.web.support import ALICE, token
from tests.workers.support import Caller, Load, WorkersCase, counters

GONE_SECONDS = 10.0  # after which nothing may be left of a parent that was killed


class KilledTests(WorkersCase):
    """kill -9."""

    async def test_worker(self) -> None:
        """Of a worker that is killed under load the open connections fail and no others; another one takes its place."""
        proxy = await self.proxy()
        pids = await self.workers(proxy)
        callers = await self.callers(proxy, pids, each=4)
        load = Load(self, proxy, self.frame_path, self.frame)
        load.keep([caller for of_one in callers.values() for caller in of_one])
        await load.more(200)
        killed = next(iter(pids))
        os.kill(killed, signal.SIGKILL)
        await wait_until(lambda: len(load.lost) == len(callers[killed]), "its connections fail")
        load.open(2)
        await self.workers(proxy, but=killed)
        await load.more(200)
        await load.stop()
        self.assertEqual({pid for pid, _ in load.lost}, {killed})
        self.assertEqual(len(load.lost), len(callers[killed]))
        self.assertEqual([], load.wrong)
        self.assertEqual(proxy.output().count("a worker ended after"), 1)
        self.assertNotIn("Traceback", proxy.output())

    async def test_family(self) -> None:
        """A worker whose loader is killed starts another. When the parent is killed, all end soon: workers, their
        loaders and renderers, the cache server."""
        proxy = await self.proxy("--prefetch", "on")
        pids = await self.workers(proxy)
        loaders = lambda: {child.pid for pid in pids for child in psutil.Process(pid).children()}  # noqa: E731
        await wait_until(lambda: len(loaders()) == 2, "two loaders")
        killed = loaders().pop()
        os.kill(killed, signal.SIGKILL)
        await wait_until(lambda: len(loaders() - {killed}) == 2, "another loader")
        answer = await client(self, proxy.url, ALICE).get(f"{self.frame_path}/rendered", {"Accept": "image/png"})
        self.assertEqual(answer.status, 200)
        self.assertEqual(len(proxy.family()), 7, "parent, cache, two workers, two loaders, a renderer")
        await deferToThread(proxy.kill)
        await wait_until(lambda: not proxy.strays(), "all are gone", GONE_SECONDS)


class ReloadTests(WorkersCase):
    """SIGHUP."""

    async def test_under_load(self) -> None:
        """Under load no request is lost: connections end between requests, new ones find a worker, nothing is
        counted twice or forgotten, all lines of the log are whole; SIGTERM in the midst of the next one ends all."""
        proxy = await self.proxy("--log-format", "json")
        first = await self.workers(proxy)
        asking = client(self, proxy.url, persistent=False)
        callers = await self.callers(proxy, first, each=3)
        load = Load(self, proxy, self.frame_path, self.frame)
        load.keep([caller for of_one in callers.values() for caller in of_one])
        load.open(2)
        await load.more(200)
        before = counters((await asking.get("/metrics")).body.decode())
        proxy.send(signal.SIGHUP)
        seen = []
        while proxy.output().count("all workers were replaced") < 1:
            seen.append(counters((await asking.get("/metrics")).body.decode()))
            await load.more(20)
        await load.more(100)
        await load.stop()
        self.assertEqual([], load.lost)
        self.assertEqual([], load.wrong)
        self.assertGreaterEqual(load.ends, sum(map(len, callers.values())), "each connection came to its end")
        for now in seen:
            self.assertEqual([], [name for name in before if now.get(name, 0) < before[name]])
            before = now
        asked = sum(before[name] for name in before if name.startswith("twistedproxy_requests_total"))
        self.assertGreater(asked, 200)
        self.assertFalse(first & await self.workers(proxy))
        proxy.send(signal.SIGHUP)
        proxy.send(signal.SIGTERM)
        self.assertEqual(-signal.SIGTERM, await self.ended(proxy))
        self.assert_no_complaints(proxy)
        for line in proxy.output().splitlines():
            self.assertIsInstance(json.loads(line), dict)

    async def test_one_process(self) -> None:
        """A proxy without workers says that there is nothing to reload, and lives on."""
        proxy = await self.proxy(workers=1)
        proxy.send(signal.SIGHUP)
        await wait_until(lambda: "nothing is reloaded" in proxy.output(), "a line in the log")
        self.assertEqual((await client(self, proxy.url).get("/healthz")).status, 200)


class SharedTests(WorkersCase):
    """What all workers have in common."""

    async def test_shared(self) -> None:
        """A grant and a frame that one worker has fetched serve the other, and numbers add up wherever asked. Who is
        refused by one, is refused by the other with the very next request; what one is made to forget, the other has
        forgotten; one that hangs meanwhile is killed."""
        self.store.allow(token(ALICE))
        proxy = await self.proxy()
        pids = await self.workers(proxy)
        [[one, *_], [other, *_]] = (await self.callers(proxy, pids)).values()
        await self.all_know(one, other)
        self.assertEqual(len(self.store.lines("metadata")), 1)
        self.assertEqual(len(self.store.lines("/frames/")), 1)
        await self.numbers_add_up(one, other)
        await self.refused_together(one, other)
        await self.all_know(one, other)
        await self.forgotten_together(one, other)
        await self.all_know(other, one)
        await self.killed_where_it_hangs(one, other, proxy)

    async def all_know(self, *callers: Caller) -> None:
        """All workers have the frame at hand."""
        for caller in callers * 3:
            reply = await caller.ask(self.frame_path)
            self.assertEqual((reply.status, self.frame in reply.body), (200, True))

    async def numbers_add_up(self, *callers: Caller) -> None:
        shown = [counters((await caller.ask("/metrics")).body.decode()) for caller in callers]
        answered = 'twistedproxy_requests_total{method="GET",route="frames",status="2xx"}'
        self.assertEqual([numbers[answered] for numbers in shown], [6.0, 6.0])
        hot = 'twistedproxy_request_seconds_count{cache="hot",route="frames"}'
        self.assertGreaterEqual(shown[0][hot], 2.0, "both had it at hand")

    async def refused_together(self, one: Caller, other: Caller) -> None:
        self.store.tokens = {"somebody-else": None}
        self.assertEqual((await one.ask(self.frame_path[:-1] + "2")).status, 401)
        self.assertEqual((await other.ask(self.frame_path)).status, 401)
        self.store.allow(token(ALICE))

    async def forgotten_together(self, one: Caller, other: Caller) -> None:
        instance = self.frame_path.partition("/frames")[0]
        self.assertEqual((await one.ask(instance, "DELETE")).status, 204)
        self.assertEqual((await other.ask(self.frame_path)).status, 404)
        self.assertEqual((await one.ask(self.frame_path)).status, 404)
        self.store.add(self.slide.path)

    async def killed_where_it_hangs(self, one: Caller, other: Caller, proxy: Proxy) -> None:
        assert other.pid is not None
        os.kill(other.pid, signal.SIGSTOP)
        instance = self.frame_path.partition("/frames")[0]
        self.assertEqual((await one.ask(instance, "DELETE")).status, 204)
        await within(other.connection.end())
        self.assertIn(f"worker {other.pid} does not forget", proxy.output())
        await self.workers(proxy, but=other.pid)
