"""Who goes first at a store: the caller, then a display load, then a block load; a whole instance beside them."""

from __future__ import annotations

from twisted.internet.defer import Deferred, gatherResults

from tests.origin.http.test_origin import ANYONE, StoreTestCase
from tests.stores import faults
from tests.waiting import within
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.origin.errors import OriginRefused
from twistedproxy.origin.interface import Caller, OriginRequest, Priority
from twistedproxy.streams import read_all


class PriorityTests(StoreTestCase):
    """One request at a time."""

    async def test_order(self) -> None:
        """Of requests that wait, the one of the highest priority is sent first, whenever it came."""
        self.begin(origin_concurrency=1)
        metadata = InstanceMetadata(12, transfer_syntax=self.slide.transfer_syntax)
        await self.frames([12])  # from now on it is known how to ask
        gate = self.store.hold("/frames/1")
        order = [(1, Priority.CALLER), (2, Priority.BLOCK), (3, Priority.DISPLAY), (4, Priority.CALLER)]
        asking = [
            Deferred.fromCoroutine(self.origin.frames(self.instance, [number], ANYONE, metadata, priority))
            for number, priority in order
        ]
        await gate.reached()
        whole = await within(self.origin.stored_instance(self.instance, ANYONE))
        self.assertGreater(len(await within(read_all(whole, 1 << 30))), 0)
        gate.release()
        await within(gatherResults(asking))
        sent = [line.rpartition("/")[2] for line in self.store.lines("/frames/")]
        self.assertEqual(sent, ["12", "1", "4", "3", "2"])

    async def test_strangers(self) -> None:
        """Requests of callers who were refused, passed-on ones too, go after those of one who may read, whenever they came."""
        self.begin(origin_concurrency=1)
        metadata = InstanceMetadata(12, transfer_syntax=self.slide.transfer_syntax)
        rightful, stranger = _caller("rightful"), _caller("stranger")
        await self.origin.metadata(self.instance, rightful)
        self.store.fail(faults.Answer(401), "/metadata", times=None)
        asking = Deferred.fromCoroutine(self.origin.metadata(self.instance, stranger))
        await self.assertFailure(asking, OriginRefused)
        gate = self.store.hold("/frames/1")
        first = Deferred.fromCoroutine(self.origin.frames(self.instance, [1], rightful, metadata))
        await gate.reached()
        path = self.instance.path.encode("ascii")
        search = OriginRequest(b"GET", b"/studies", b"limit=7", stranger.headers, caller=stranger)
        refused = Deferred.fromCoroutine(self.origin.metadata(self.instance, stranger))
        others = [
            Deferred.fromCoroutine(self.origin.forward(search)),
            Deferred.fromCoroutine(self.origin.forward(OriginRequest(b"GET", b"/" + path, caller=rightful))),
        ]
        gate.release()
        await within(first)
        await within(self.assertFailure(refused, OriginRefused))
        for response in await within(gatherResults(list(reversed(others)))):
            await within(read_all(response.body, 1 << 30))
        sent = [line.partition(" ")[2].rpartition("/")[2] for line in self.store.lines()]
        self.assertEqual(sent[-4:], ["1", self.instance.sop, "metadata", "studies?limit=7"])


def _caller(name: str) -> Caller:
    return Caller(name.encode(), ((b"Authorization", name.encode()),))
