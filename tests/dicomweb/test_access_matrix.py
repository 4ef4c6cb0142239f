"""Who may see what: two callers, every proof, every resource of an instance, before and after the right ends."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from twisted.internet.threads import deferToThread

from tests.clients import Answer, client
from tests.dicomweb.support import ALICE, ProxyCase, token
from tests.running import Proxy
from tests.slides import slide
from tests.stores.dialects import STANDARD
from tests.waiting import wait_until
from twistedproxy.origin.http import limiter

OCTETS = {"Accept": "application/octet-stream"}
PNG = {"Accept": "image/png"}
SERIES, STUDY = "the series' metadata", "the study's metadata"
RESOURCES: dict[str, dict[str, str]] = {
    "": {"Accept": 'multipart/related; type="application/dicom"'},
    "/metadata": {},
    "/metadata?downsample=2": {},
    "/bulkdata/7FE00010": {},
    SERIES: {},
    STUDY: {},
    "/frames/1": {},
    "/frames/1,2": {},
    "/frames/2": OCTETS,
    "/frames/1?downsample=2": {},
    "/frames/1/rendered": PNG,
    "/rendered": {},
    "/rendered?viewport=16,16": PNG,
    "/thumbnail": PNG,
    "/prefetch": {},
}
SHORT = "studies/{}/instances/{}/frames/1"
PROOFS = ("a frame", "metadata", "a renewal")
ENDINGS = ("in time", "by metadata", "by the object")
GRANT_SECONDS = 600.0


class AccessMatrixTests(ProxyCase):
    """ALICE may read all and has filled the cache; BOB's right begins and ends; EVE never had one."""

    timeout = 120

    async def begin(self, hot_memory: int) -> None:
        """A proxy whose cache and hot responses hold all that ALICE may see."""
        self.hold_slides()
        self.patch(limiter, "PACE", 0.0)  # of those who are refused, as most are here
        self.running = await self.proxy(self.origin, hot_memory=hot_memory, grant_ttl=GRANT_SECONDS)
        self.url = self.running.url
        await self.fill()

    async def fill(self) -> None:
        """Have all cached, by every worker."""
        for _ in range(3):
            await self.assert_all(ALICE, 200)

    def hold_slides(self) -> None:
        """A store of two slides."""
        self.origin = self.store(STANDARD, slide(self.mktemp(), 2, 4, 64), slide(self.mktemp(), 1, 2, 32))
        self.other = next(sop for sop in self.origin.instances if sop != self.slide.sop)
        self.origin.allow(token(ALICE))

    async def ask(self, caller: dict[str, str], resource: str) -> Answer:
        """What *caller* gets."""
        path = f"/{self.slide.resource}{resource}"
        if resource == SHORT:
            path = f"/studies/{self.slide.study}/instances/{self.slide.sop}/frames/1"
        elif resource in (SERIES, STUDY):
            parts = self.slide.resource.split("/")
            path = "/" + "/".join([*parts[: 4 if resource == SERIES else 2], "metadata"])
        headers = {**caller, **RESOURCES.get(resource, {})}
        # A connection for each request, so that any worker may answer it.
        return await client(self, f"{self.url}/dicomweb", headers, persistent=False).get(path)

    async def assert_all(self, caller: dict[str, str], status: int) -> None:
        """Every resource answers *caller* with *status*: a refusal is the store's own, and nothing else."""
        for resource in RESOURCES:
            answer = await self.ask(caller, resource)
            right = 404 if resource == "/prefetch" and status == 200 else status  # no load is known
            self.assertEqual(answer.status, right, (resource, answer.body[:200]))
            if status == 403:
                self.assertEqual(answer.json(), {"errorMessage": "not for you"}, resource)
        # A search that finds nothing is 404.
        answer = await self.ask(caller, SHORT)
        self.assertEqual(answer.status == 200, status == 200, answer.body[:200])

    async def prove(self, caller: dict[str, str], proof: str) -> None:
        """Have the store prove the right of *caller*."""
        await self.ask(caller, "/metadata" if proof == "metadata" else "/frames/8")
        if proof == "a renewal":
            proxy = self.running
            proxy.wall.now += 0.8 * GRANT_SECONDS
            await self.ask(caller, "/frames/1")
            grants = proxy.components.access.grants._grants
            await wait_until(lambda: max(one.expires for one in grants.values()) > proxy.wall.now + GRANT_SECONDS / 2)

    async def end(self, caller: dict[str, str], ending: str) -> None:
        """Have the right of *caller* end, who is refused from now on."""
        self.origin.allow(token(caller), self.other)
        if ending == "in time":
            self.running.wall.now += GRANT_SECONDS + 1
        else:
            resource = "/metadata" if ending == "by metadata" else ""
            fresh = {**caller, "Cache-Control": "no-cache"}  # not what the store gave them a while ago
            self.assertEqual((await self.ask(fresh, resource)).status, 403)

    async def matrix(self, proofs: Sequence[str], endings: Sequence[str], before: bool = True) -> None:
        """Each proof with each ending. *before*: with each, also what BOB gets before his right begins."""
        eve = {"Authorization": "Bearer eve-77f0a1b2c3"}
        self.origin.allow(token(eve), self.other)
        for number, (proof, ending) in enumerate(itertools.product(proofs, endings)):
            bob = {"Authorization": f"Bearer bob-{number}-1b2c3d4e5f"}
            self.origin.allow(token(bob), self.other)
            if before:
                await self.assert_all(bob, 403)
            self.origin.allow(token(bob))
            await self.prove(bob, proof)
            for _ in range(2):
                await self.assert_all(bob, 200)
            await self.end(bob, ending)
            await self.assert_all(bob, 403)
        await self.assert_all(eve, 403)

    async def test_ordinary(self) -> None:
        """From the cache: no byte too many."""
        await self.begin(0)
        await self.matrix(PROOFS, ENDINGS)

    async def test_hot(self) -> None:
        """From hot responses: no byte too many."""
        await self.begin(1 << 24)
        await self.matrix(PROOFS, ENDINGS)

    async def test_two_workers(self) -> None:
        """From any of two workers, whose clocks no test moves: no byte too many."""
        self.hold_slides()
        proxy = Proxy("--origin", self.origin.url, "--workers", "2", "--cache-memory", "64M", "--prefetch", "off")
        self.addCleanup(proxy.remove)
        self.addCleanup(deferToThread, proxy.stop)
        await deferToThread(proxy.wait_until_ready)
        self.url = proxy.url
        await self.fill()
        await self.matrix(PROOFS[:2], ENDINGS[1:], before=False)  # refused callers are held to a pace: EVE will do
