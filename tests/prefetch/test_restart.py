"""Proxies that are started again with the folder that their local cache has kept: what is there then, and for whom."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread

from tests.cache.support import until
from tests.clients import Answer, client
from tests.prefetch.real import HALF, SIDE, TOKEN, RealCase, absolute
from tests.running import Proxy
from tests.slides import slide
from tests.waiting import wait_until, within
from twistedproxy.cache.local.folder import boot_id

HIT = "twistedproxy; hit"
LOADS = ("--block-pixels", "256", "--prefetch-min-frames", "2", "--display-min-frames", str(1 << 20))
CPU = ("--whole-instance-max-cpu", "100", "--whole-instance-max-memory", "100")


class RestartCase(RealCase):
    """A store, and proxies one after the other in front of it, which share a folder."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.held = self.store(SIDE)

    async def started(self, *options: str) -> Proxy:
        """The next proxy."""
        cache = f"local:{self.folder}?size=64M"
        origin = ("--origin", f"/dicomweb={self.held.url}")
        proxy = await Proxy.started("--log-format", "json", *origin, "--cache", cache, *options)
        self.addCleanup(proxy.remove)
        return proxy

    async def get(self, proxy: Proxy, resource: str, *numbers: int) -> Answer:
        """Get frames."""
        asking = client(self, f"{proxy.url}/dicomweb", {"Authorization": f"Bearer {TOKEN}"}, persistent=False)
        answer = await within(asking.frames(resource, numbers))
        self.assertEqual(answer.status, 200, answer.body[:200])
        return answer

    def asked(self) -> list[str]:
        """What the store was asked for since this was called last."""
        lines = self.held.lines()
        self.held.requests.clear()
        return ["frames" if "/frames/" in line else "metadata" if "/metadata" in line else line for line in lines]

    async def kill(self, proxy: Proxy) -> None:
        """Kill it with all its children, at once."""
        for process in proxy.family():
            process.kill()
        await deferToThread(proxy.kill)
        await wait_until(lambda: not proxy.strays(), "the end of all processes")


class LoadTests(RestartCase):
    """Whole instances."""

    async def test_killed_in_mid_load(self) -> None:
        """What was loaded half when all were killed is gone, and is fetched anew; what was loaded to its end stays."""
        if not boot_id():
            self.skipTest("whether the machine was up all the time is not known here: the index is not believed")
        other = slide(self.mktemp(), 4, 4)
        self.held.add(other.path)
        proxy = await self.started(*LOADS, *CPU)
        await wait_until(lambda: len(proxy.family()) > 1, "a child")
        gate = self.held.hold(lambda seen: seen.path.endswith(self.slide.sop), after=HALF)
        await self.get(proxy, other.resource, 1)
        await wait_until(lambda: self.ended(proxy, other.sop), "the end of the first load")
        self.assertEqual(self.ended(proxy, other.sop)[0]["result"], "done")
        await self.get(proxy, self.slide.resource, 1)
        await within(gate.reached())
        await self.loaded(proxy, 100)
        self.held.requests.clear()
        answer = await self.get(proxy, self.slide.resource, 2, 50)
        self.assertEqual((answer.headers["cache-status"], self.asked()), (HIT, []))
        await self.kill(proxy)
        gate.release()
        self.held.requests.clear()

        again = await self.started("--prefetch", "off")
        self.assertEqual(again.logged("cache_rebuilding"), [])
        numbers = range(2, 51)
        answer = await self.get(again, self.slide.resource, *numbers)
        self.assertEqual(answer.frames(), [self.frames[number - 1] for number in numbers])
        self.assertEqual(answer.headers["cache-status"], "twistedproxy; fwd=uri-miss; stored")
        self.assertIn("frames", self.asked())
        stored = other.stored_frames()
        answer = await self.get(again, other.resource, *range(1, len(stored) + 1))
        self.assertEqual((answer.frames(), answer.headers["cache-status"]), (stored, HIT))
        self.assertEqual(self.asked(), ["metadata"])

    @staticmethod
    def ended(proxy: Proxy, sop: str) -> list[dict[str, Any]]:
        """The whole-instance loads of an instance that have ended."""
        return [job for job in proxy.logged("job_ended") if job["kind"] == "whole" and job["instance"].endswith(sop)]

    async def loaded(self, proxy: Proxy, count: int) -> None:
        """Return once the running load has brought more than *count* frames."""
        asking = client(self, proxy.url)

        async def enough() -> bool:
            jobs = (await asking.get("/status.json")).json()["jobs"]["running"]
            return any(job["frames"] > count for job in jobs)

        await until(enough, "a load in its middle")


class SecretTests(RestartCase):
    """Grants."""

    def setUp(self) -> None:
        super().setUp()
        self.secret = absolute(self.mktemp())
        self.write_secret()

    def write_secret(self) -> None:
        """A new secret."""
        Path(self.secret).write_text(secrets.token_hex(32))
        Path(self.secret).chmod(0o600)

    async def next(self) -> Proxy:
        """The next proxy, with the secret file."""
        return await self.started("--prefetch", "off", "--secret-file", self.secret)

    async def test_first_request(self) -> None:
        """After a restart the first request for a frame is a hit: with the same secret the store is asked for nothing, with
        another one for the grant alone: by a frame, for the facts are known."""
        proxy = await self.next()
        first = await self.get(proxy, self.slide.resource, 3)
        await self.get(proxy, self.slide.resource, 3, 3)  # a list waits for the metadata, which are the grant
        self.assertEqual(self.asked().count("frames"), 1)
        for end in (self.stop, self.kill):
            await end(proxy)
            proxy = await self.next()
            answer = await self.get(proxy, self.slide.resource, 3)
            self.assertEqual((answer.body, answer.headers["cache-status"]), (first.body, HIT))
            self.assertEqual(answer.headers["etag"], first.headers["etag"])
            self.assertEqual(self.asked(), [])
        for again in (self.next, lambda: self.started("--prefetch", "off")):
            await self.stop(proxy)
            self.write_secret()
            proxy = await again()
            answer = await self.get(proxy, self.slide.resource, 3)
            self.assertEqual((answer.body, answer.headers["cache-status"]), (first.body, HIT))
            self.assertEqual(self.asked(), ["frames"])

    async def test_others(self) -> None:
        """A grant that was kept is its caller's alone."""
        proxy = await self.next()
        await self.get(proxy, self.slide.resource, 3, 3)
        await self.stop(proxy)
        proxy = await self.next()
        for token, status in (("another", 401), (TOKEN, 200)):
            self.held.requests.clear()
            asking = client(self, f"{proxy.url}/dicomweb", {"Authorization": f"Bearer {token}"})
            self.assertEqual((await within(asking.frames(self.slide.resource, [3]))).status, status)
        self.assertEqual(self.asked(), [])

    async def stop(self, proxy: Proxy) -> None:
        """Stop it in order."""
        await deferToThread(proxy.stop)
