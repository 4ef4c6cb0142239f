"""Who goes first at a store: the caller, then a display load, then a block load; a whole instance beside them."""

from __future__ import annotations

from twisted.internet.defer import Deferred, gatherResults

from tests.origin.http.test_origin import ANYONE, StoreTestCase
from tests.waiting import within
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.origin.interface import Priority
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
