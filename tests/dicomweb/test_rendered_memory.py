"""Pictures that are held until clients have taken them are counted as what they are."""

from __future__ import annotations

import attrs

from tests.dicomweb.support import ProxyCase
from tests.slides import slide
from tests.stores.dialects import STANDARD
from tests.stores.faults import Fault
from tests.stores.replies import Reply
from twistedproxy.cache.address import NoAddress
from twistedproxy.system.memory_budget import AnswerMemory, Reservation


class RenderedMemoryTests(ProxyCase):
    """Lists of pictures."""

    async def test_counted(self) -> None:
        """Room is taken before a list is made, corrected when it is made, and given back when it was sent."""
        store = self.store(STANDARD, slide(self.mktemp(), 2, 3, 64))
        proxy = await self.proxy(store)
        changes: list[int] = []
        change = AnswerMemory.change

        def noted(memory: AnswerMemory, by: int) -> None:
            change(memory, by)
            changes.append(memory.used)

        proxy.components.answer_memory.small = 0
        self.patch(AnswerMemory, "change", noted)
        for query, accept in (("/rendered", "image/png"), ("?downsample=2", "*/*"), ("", "image/jxl")):
            changes.clear()
            accept = f'multipart/related; type="{accept}"'
            answer = await proxy.client().get(f"/{self.slide.resource}/frames/1,2{query}", {"Accept": accept})
            self.assertIn(sum(map(len, answer.frames())), changes, query)
            self.assertEqual(proxy.components.answer_memory.used, 0)

    async def test_handed_on(self) -> None:
        """Metadata whose length the store does not say count as what they are once they are held, and until they are sent."""
        store = self.store()
        store.fail(_Unsized(), "/metadata", times=None)
        proxy = await self.proxy(store, cache=NoAddress())  # what may be kept is held whole
        length = len((await proxy.client().get(f"/{self.slide.resource}/metadata")).body)
        sizes: list[int] = []
        set_size = Reservation.set

        def noted(held: Reservation, size: int) -> None:
            set_size(held, size)
            sizes.append(proxy.components.answer_memory.used)

        proxy.components.answer_memory.small = 0
        self.patch(Reservation, "set", noted)
        await proxy.client().get(f"/{self.slide.resource}/metadata")
        held, end = sizes
        self.assertTrue(0 < held < 2 * length, held)
        self.assertEqual(end, 0)


class _Unsized(Fault):
    """An answer without a length."""

    def change(self, reply: Reply) -> Reply:
        return attrs.evolve(reply, framing="chunked")
