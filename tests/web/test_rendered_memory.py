"""Pictures that are held until clients have taken them are counted as what they are."""

from __future__ import annotations

from tests.slides import slide
from tests.stores.dialects import STANDARD
from tests.web.support import ProxyCase
from twistedproxy.frames import answer_memory
from twistedproxy.frames.answer_memory import AnswerMemory


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

        self.patch(answer_memory, "SMALL", 0)
        self.patch(AnswerMemory, "change", noted)
        for query, accept in (("/rendered", "image/png"), ("?downsample=2", "*/*"), ("", "image/jxl")):
            changes.clear()
            accept = f'multipart/related; type="{accept}"'
            answer = await proxy.client().get(f"/{self.slide.resource}/frames/1,2{query}", {"Accept": accept})
            self.assertIn(sum(map(len, answer.frames())), changes, query)
            self.assertEqual(proxy.rooms.answer_memory.used, 0)
