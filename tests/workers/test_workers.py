"""Whole proxies of two workers: kills, reloads, ends, what they share, and what they forget together."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import psutil
from twisted.internet.threads import deferToThread

from tests.cache.certificates import certificate
from tests.clients import client
from tests.dicomweb.support import ALICE, token
from tests.running import Proxy, free_port
from tests.waiting import wait_until, within
from tests.workers.support import Caller, Load, WorkersCase, counters, over_tcp, over_tls, over_unix

GONE_SECONDS = 10.0  # after which nothing may be left of a parent that was killed


class LoadTests(WorkersCase):
    """A proxy with all kinds of listeners, under load all the time."""

    async def test_load(self) -> None:
        """A worker is killed, all are reloaded, and while they are again, all are stopped.

        Of the killed one the open connections fail and no others. The reload loses no request: connections end
        between requests, new ones find a worker, counters never go back, a new certificate is read. All lines of the
        log are whole. Nothing is left at the end.
        """
        keys = [made_certificate(self.mktemp()) for _ in range(2)]
        install(keys[0], Path("."))
        self.secure = free_port()
        proxy = await self.proxy(
            *("--log-format", "json", "--listen", "unix:socket:mode=660"),
            *("--listen", f"ssl:{self.secure}:privateKey={os.getcwd()}/key.pem:certKey={os.getcwd()}/cert.pem"),
        )
        await self.all_kinds_answer(proxy, keys[0])
        load = Load(self, proxy, self.frame_path, self.frame)
        try:
            await self.kill_one(proxy, load)
            install(keys[1], Path("."))
            await self.reload(proxy, load)
        finally:
            await load.stop()
        await self.all_kinds_answer(proxy, keys[1])
        await self.stop_while_reloading(proxy)

    async def all_kinds_answer(self, proxy: Proxy, keys: Path) -> None:
        """Every listener answers, whichever worker accepts."""

        def ask() -> None:
            path = proxy.folder / "socket"
            for answer in (over_tcp(proxy.port), over_tls(self.secure, keys / "cert.pem"), over_unix(path)):
                self.assertTrue(answer.startswith(b"HTTP/1.1 200"), answer)
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o660)

        for _ in range(4):
            await within(deferToThread(ask))

    async def kill_one(self, proxy: Proxy, load: Load) -> None:
        pids = await self.workers(proxy)
        callers = await self.callers(proxy, pids, each=3)
        load.keep([caller for of_one in callers.values() for caller in of_one])
        await load.more(100)
        killed = next(iter(pids))
        os.kill(killed, signal.SIGKILL)
        await wait_until(lambda: len(load.lost) == len(callers[killed]), "its connections fail")
        load.open(1)
        await self.workers(proxy, but=killed)
        await load.more(100)
        self.assertEqual([pid for pid, _ in load.lost], [killed] * len(callers[killed]))
        self.assertEqual(len(proxy.logged("worker_ended")), 1)
        load.lost.clear()

    async def reload(self, proxy: Proxy, load: Load) -> None:
        asking = client(self, proxy.url, persistent=False)
        pids, ends = await self.workers(proxy), load.ends
        seen = [counters((await asking.get("/metrics")).body.decode())]
        proxy.send(signal.SIGHUP)
        while not proxy.logged("reloaded"):
            seen.append(counters((await asking.get("/metrics")).body.decode()))
            await load.more(20)
        await load.more(50)
        self.assertEqual(([], []), (load.lost, load.wrong))
        self.assertGreater(load.ends, ends, "connections were ended in order")
        self.assertFalse(pids & await self.workers(proxy))
        for before, now in pairwise(seen):
            self.assertEqual([], [name for name in before if now.get(name, 0) < before[name]])
        answered = sum(number for name, number in seen[0].items() if name.startswith("twistedproxy_requests_total"))
        self.assertGreater(answered, 200)

    async def stop_while_reloading(self, proxy: Proxy) -> None:
        proxy.send(signal.SIGHUP)
        proxy.send(signal.SIGTERM)
        self.assertEqual(-signal.SIGTERM, await self.ended(proxy))
        self.assertFalse((proxy.folder / "socket").exists())
        self.assert_no_complaints(proxy)
        for line in proxy.output().splitlines():
            self.assertIsInstance(json.loads(line), dict)


def made_certificate(path: str) -> Path:
    """A new folder with a certificate."""
    folder = Path(path).resolve()
    folder.mkdir()
    certificate(folder, "proxy.test")
    return folder


def install(source: Path, target: Path) -> None:
    """Put a certificate where the proxy looks for it."""
    for name in ("key.pem", "cert.pem"):
        (target / name).write_bytes((source / name).read_bytes())


def children_of(pids: Iterable[int], package: str) -> set[int]:
    """The living children of the processes *pids* that run a module of *package*."""
    found = set()
    for child in (child for pid in pids for child in psutil.Process(pid).children()):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if any(f"twistedproxy.{package}." in argument for argument in child.cmdline()):
                found.add(child.pid)
    return found


class FamilyTests(WorkersCase):
    """Who depends on whom."""

    async def test_family(self) -> None:
        """A worker whose loader is killed starts another. When the parent is killed, all end soon: workers, their
        loaders and renderers, the cache server."""
        proxy = await self.proxy("--prefetch", "on")
        pids = await self.workers(proxy)
        await wait_until(lambda: len(children_of(pids, "prefetch")) == 2, "two loaders")
        killed = children_of(pids, "prefetch").pop()
        os.kill(killed, signal.SIGKILL)
        await wait_until(lambda: len(children_of(pids, "prefetch") - {killed}) == 2, "another loader")
        await wait_until(lambda: len(children_of(pids, "rendering")) == 2, "two renderers")
        answer = await client(self, proxy.url, ALICE).get(f"{self.frame_path}/rendered", {"Accept": "image/png"})
        self.assertEqual(answer.status, 200)
        # A renderer that cannot start in time beside busy processes is started again when it is needed.
        everybody = "parent, cache, two workers, a spare, two loaders, a renderer or more"
        await wait_until(lambda: len(proxy.family()) >= 8, everybody)
        await deferToThread(proxy.kill)
        await wait_until(lambda: not proxy.strays(), "all are gone", GONE_SECONDS)


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

    @staticmethod
    async def first_is_kept(caller: Caller) -> None:
        """Wait until the cache has taken what the first answer is made of: a grant, metadata and, later than the answer
        itself, the frame."""
        taken = 'twistedproxy_cache_operation_seconds_count{operation="put_many",outcome="ok"}'
        while counters((await caller.ask("/metrics")).body.decode()).get(taken, 0.0) < 3:
            pass  # each look takes its time, and the test's deadline ends it

    async def all_know(self, *callers: Caller) -> None:
        """All workers have the frame at hand."""
        for caller in callers * 3:
            reply = await caller.ask(self.frame_path)
            self.assertEqual((reply.status, self.frame in reply.body), (200, True))
            await self.first_is_kept(caller)

    async def numbers_add_up(self, *callers: Caller) -> None:
        shown = [counters((await caller.ask("/metrics")).body.decode()) for caller in callers]
        answered = 'twistedproxy_requests_total{method="GET",route="frames",status="2xx"}'
        self.assertEqual([numbers[answered] for numbers in shown], [6.0, 6.0])
        cached = 'twistedproxy_request_seconds_count{cache="hit",route="frames"}'
        self.assertGreaterEqual(shown[0][cached], 2.0, "both had it at hand")

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
        self.assertEqual([other.pid], [event["pid"] for event in proxy.logged("invalidation_unconfirmed")])
        await self.workers(proxy, but=other.pid)
