"""A store that gives metadata and pixels by separate permissions, in front of which only pixels prove a right to pixels."""

from __future__ import annotations

from typing import Any

from tests.dicomweb.support import ALICE, MALLORY, ProxyCase, RunningProxy, token
from tests.stores.dialects import STANDARD
from tests.stores.faults import Answer
from tests.stores.http_server import Seen
from tests.waiting import wait_until


class PixelsCase(ProxyCase):
    """ALICE may read all, MALLORY only metadata."""

    async def started(self, **settings: Any) -> RunningProxy:
        self.origin = self.store(STANDARD)
        for who in (ALICE, MALLORY):
            self.origin.allow(token(who))
        self.origin.fail(Answer(403, (), b"no pixels for you"), self._of_pixels, times=None)
        return await self.proxy(self.origin, **settings)

    def _of_pixels(self, seen: Seen) -> bool:
        whose = seen.header("Authorization") == MALLORY["Authorization"]
        return whose and not seen.path.endswith("/metadata") and "?" not in seen.line

    async def mallory_sees(self, proxy: RunningProxy, metadata: str) -> tuple[int, int]:
        """The statuses that MALLORY gets of that metadata, and then of a frame that ALICE has had."""
        frame = await proxy.client(ALICE).frames(self.slide.resource, [1])
        self.assertEqual(frame.frames(), self.stored[:1])
        mallory = proxy.client(MALLORY)
        first = await mallory.get(metadata)
        second = await mallory.frames(self.slide.resource, [1])
        if second.status == 403:
            self.assertEqual(second.body, b"no pixels for you")
        return first.status, second.status

    @property
    def all_metadata(self) -> list[str]:
        study, series = f"/studies/{self.slide.study}", f"/studies/{self.slide.study}/series/{self.slide.series}"
        return [f"{path}/metadata" for path in (f"/{self.slide.resource}", series, study)]


class ProofTests(PixelsCase):
    """What is shown to whom."""

    async def test_no_metadata_prove_it(self) -> None:
        """Neither the metadata of an instance, nor those of a series or study let a caller see a cached frame."""
        proxy = await self.started(proof="pixels")
        for metadata in self.all_metadata:
            self.assertEqual(await self.mallory_sees(proxy, metadata), (200, 403), metadata)
        for path in ("frames/1/rendered", "rendered", "thumbnail", "prefetch"):
            self.assertEqual((await proxy.client(MALLORY).get(f"/{self.slide.resource}/{path}")).status, 403, path)
        series = self.all_metadata[1].replace("metadata", "prefetch")
        self.assertEqual((await proxy.client(MALLORY).request("POST", series)).status, 403)

    async def test_metadata_prove_it_else(self) -> None:
        """Without the option they do: the store above is one of which that would be wrong."""
        proxy = await self.started()
        self.assertEqual(await self.mallory_sees(proxy, self.all_metadata[0]), (200, 200))

    async def test_facts(self) -> None:
        """Metadata that pass are the facts: for a frame, then, no metadata are asked for, but its first frame."""
        proxy = await self.started(proof="pixels")
        alice = proxy.client(ALICE)
        await alice.get(self.all_metadata[0])
        self.assertEqual(len(proxy.components.access.grants), 0)
        self.assertEqual((await alice.frames(self.slide.resource, [2])).frames(), self.stored[1:2])
        self.assertEqual(self.origin.lines("/metadata"), [f"GET {self.all_metadata[0]}"])
        self.assertEqual([line.rpartition("/")[2] for line in self.origin.lines("/frames/")], ["1", "2"])

    async def test_prefetch(self) -> None:
        """Who gets a frame has the rest loaded, and renewals ask for frames."""
        proxy = await self.started(proof="pixels", prefetch=True, prefetch_min_frames=2)
        alice = proxy.client(ALICE)
        await alice.frames(self.slide.resource, [1])
        await proxy.components.scheduler.drain()
        asked = len(self.origin.requests)
        proxy.wall.now += 500
        self.assertEqual((await alice.frames(self.slide.resource, range(1, 7))).frames(), self.stored)
        await wait_until(lambda: len(self.origin.requests) > asked, "the grant is renewed")
        lines = [line for line in self.origin.lines()[asked:] if self.slide.sop in line]
        self.assertEqual([line.rpartition("/")[2] for line in lines], ["1"])

    async def test_what_others_have_proved(self) -> None:
        """A grant that was proved otherwise and that a cache keeps counts for nothing: the key of callers is another."""
        keys = set()
        for proof in ("metadata", "pixels"):
            proxy = await self.proxy(self.store(STANDARD), proof=proof, secret=b"s" * 32)
            keys.add(proxy.components._credentials.secret)
        self.assertEqual(len(keys), 2)
