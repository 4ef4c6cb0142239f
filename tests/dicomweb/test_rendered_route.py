"""Pictures of frames where nothing is rendered here: they pass through, uncached, with the caller's own credentials."""

from __future__ import annotations

from tests.clients import Client
from tests.dicomweb.support import ALICE, MALLORY, ProxyCase, RunningProxy, token
from tests.slides import slide
from tests.stores import faults
from tests.stores.dialects import STANDARD
from tests.stores.simulated import SimulatedStore

PNG = (("Content-Type", "image/png"),)


class RenderedCase(ProxyCase):
    """A proxy without rendering workers in front of a store with one slide."""

    async def started(self, encoding: str = "raw") -> tuple[SimulatedStore, Client]:
        """The store, and a client of the proxy."""
        store = self.store(STANDARD, slide(self.mktemp(), 2, 3, 64, encoding=encoding))
        self.path = f"/{self.slide.resource}/frames/1/rendered"
        self.running: RunningProxy = await self.proxy(store, render_workers=0)
        return store, self.running.client()

    async def test_every_time(self) -> None:
        """Each request is the store's to answer, as it came: query, Accept and path."""
        store, client = await self.started("jpeg")
        short = f"/studies/{self.slide.study}/instances/{self.slide.sop}/frames/1/rendered"
        paths = [self.path, self.path, f"{self.path}?window=1,2,linear", f"{self.path}?disable_caching=true", short]
        for number, path in enumerate(paths):
            store.fail(faults.Answer(200, PNG, b"picture %d" % number), "/rendered")
            answer = await client.get(path, {"Accept": "image/png"})
            self.assertEqual((answer.status, answer.body), (200, b"picture %d" % number))
            self.assertEqual(answer.headers["content-type"], "image/png")
            self.assertEqual(answer.headers["cache-status"], "twistedproxy; fwd=bypass")
        self.assertEqual(store.lines(), [f"GET {path}" for path in paths])

    async def test_refusal(self) -> None:
        """The store's refusal goes back as it came."""
        store, client = await self.started()
        store.fail(faults.Answer(406, (("Content-Type", "text/plain"),), b"no codec"), "/rendered")
        refused = await client.get(self.path)
        self.assertEqual(
            (refused.status, refused.headers["content-type"], refused.body), (406, "text/plain", b"no codec")
        )
        self.assertEqual((await client.get(self.path)).status, 200)

    async def test_access(self) -> None:
        """The store decides on each request: no caller gets a picture that another one was given."""
        store, _ = await self.started()
        store.allow(token(ALICE))
        store.allow(token(MALLORY), "1.2.3")
        self.assertEqual((await self.running.client(ALICE).get(self.path)).status, 200)
        self.assertEqual((await self.running.client(MALLORY).get(self.path)).status, 403)
        self.assertEqual((await self.running.client().get(self.path)).status, 401)
        self.assertEqual(len(store.lines("/rendered")), 3)
