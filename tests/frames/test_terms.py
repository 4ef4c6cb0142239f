"""Frames in a local cache whose time has ended: what the origin says to the next reader decides whether they go on."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults

from tests.frames.support import ALICE, INSTANCE, MALLORY
from tests.frames.terms import BOB, NOON, TERM, TTL, TermCase
from tests.waiting import wait_until
from twistedproxy.frames.entries import frame_name
from twistedproxy.origin.errors import OriginBusy, OriginRefused, OriginTimeout, OriginUnreachable


class SameTests(TermCase):
    """The origin still has the same instance."""

    async def test_go_on(self) -> None:
        """Frames go on for term after term; each costs one request for metadata, with the reader's own headers."""
        await self.get(1, 2)
        self.asked()
        for reader in (ALICE, BOB, ALICE):
            self.now += TERM + 1
            self.origin.version += 1
            self.origin.headers.clear()
            self.assertEqual(await self.present(1, 2), set())
            self.assertEqual(await self.get(1, 2, caller=reader), [1, 1])
            self.assertEqual(self.asked(), ["metadata"])
            self.assertEqual(self.origin.headers, [reader.headers])
            self.now += TTL / 2
            self.assertEqual(await self.get(2, 1, caller=reader), [1, 1])
            self.now += TERM - TTL / 2 - 1
            self.assertEqual(await self.present(1, 2), {frame_name(1), frame_name(2)})
        self.assertEqual(self.invalidated, [])

    async def test_those_that_ended_long_before(self) -> None:
        """All frames of the instance go on that are there yet, also those that ended long before; no others do."""
        self.reader = self.worker(self.cache, ttl=10 * TERM)
        await self.get(1)
        self.now += TERM - 600
        await self.get(2)
        self.now += TERM + 1
        self.asked()
        self.assertEqual(await self.get(2), [1])
        self.origin.version = 2
        self.assertEqual(await self.get(1), [1])
        self.assertEqual(self.asked(), ["metadata"])
        self.assertEqual(await self.get(3), [2])
        self.assertEqual(self.asked(), ["frames"])

    async def test_with_a_grant(self) -> None:
        """Who still has a grant asks too: it says nothing of the instance's present state."""
        self.reader = self.worker(self.cache, ttl=10 * TERM)
        await self.get(1)
        self.now += TERM + 1
        self.asked()
        self.assertEqual(await self.get(1), [1])
        self.assertEqual(self.asked(), ["metadata"])
        self.now += TERM - 1
        self.assertEqual(await self.get(1), [1])
        self.assertEqual(self.asked(), [])

    async def test_renewals(self) -> None:
        """A grant that is renewed by metadata begins another term; not one that is renewed by a frame, which tells of the right
        alone."""
        for frames, what, left in ((100, "metadata", {frame_name(1)}), (101, "frames", set())):
            await self.cache.invalidate(INSTANCE.scope)
            self.origin.metadata_value = attrs.evolve(NOON, frames=frames)
            await self.get(1)
            grant = self.reader.access.known(ALICE, INSTANCE)
            self.now += 0.8 * TTL
            self.asked()
            await self.get(1)
            self.assertEqual(self.asked(), [what])
            await wait_until(lambda: self.reader.access.known(ALICE, INSTANCE) is not grant, "a new grant")  # noqa: B023
            self.now += TERM - 0.8 * TTL + 1
            self.assertEqual(await self.present(1), left)

    async def test_other_instances(self) -> None:
        """What goes on is the instance alone that was asked for."""
        other = attrs.evolve(INSTANCE, sop="1.2.3.4.5")
        fence = (await self.cache.get_many(other, [])).fence
        self.assertTrue(await self.cache.put_many(other, fence, {frame_name(1): b"other"}, TERM))
        await self.get(1)
        self.now += TERM + 1
        await self.get(1)
        self.assertEqual(await self.cache.present(other, [frame_name(1)]), set())

    async def test_several_at_once(self) -> None:
        """Readers who come together make one request for each credential, and none for a frame."""
        await self.get(1, 2, 3)
        self.now += TERM + 1
        self.asked()
        self.origin.headers.clear()
        self.origin.answer = Deferred()
        readers = [(1, ALICE), (2, ALICE), (3, BOB), (1, ALICE), (1, BOB)]
        reading = [ensureDeferred(self.get(number, caller=who)) for number, who in readers]
        self.origin.answer.callback(None)
        self.assertEqual(await gatherResults(reading), [[1]] * len(readers))
        self.assertEqual(sorted(map(repr, self.origin.headers)), sorted(map(repr, [ALICE.headers, BOB.headers])))
        self.assertNotIn("frames", self.asked())

    async def test_facts_that_are_not_said(self) -> None:
        """A store that does not say to one caller when the instance was made has not replaced it."""
        await self.get(1)
        self.now += TERM + 1
        self.origin.metadata_value = attrs.evolve(NOON, created="", transfer_syntax=None)
        self.assertEqual(await self.get(1, caller=BOB), [1])
        self.assertEqual(self.invalidated, [])


class ReplacedTests(TermCase):
    """The origin has another instance now."""

    async def assert_replaced(self) -> None:
        """No old frame is given again, to whoever asks, now or later."""
        self.assertEqual(self.invalidated, [INSTANCE.scope])
        self.assertEqual(len(self.logged("instance_replaced")), 1)
        for who in (BOB, ALICE, BOB):
            self.assertEqual(await self.get(1, 2, 3, caller=who), [2, 2, 2])
        self.now += TERM + 1
        self.asked()
        self.assertEqual(await self.get(1, 2, 3), [2, 2, 2])
        self.assertEqual(self.asked(), ["metadata"])

    async def replaced(self, **facts: Any) -> None:
        """An instance ends while another one, with these *facts*, takes its place."""
        await self.get(1, 2)
        self.now += 10
        await self.get(3, caller=BOB)
        self.now += TERM + 1
        self.replace(**facts)
        self.asked()
        self.assertEqual(await self.get(2), [2])
        self.assertEqual(self.asked(), ["metadata", "frames"])
        await self.assert_replaced()

    async def test_rows(self) -> None:
        """Frames of another size."""
        await self.replaced(rows=512)

    async def test_frames(self) -> None:
        """Another number of frames."""
        await self.replaced(frames=99)

    async def test_creation(self) -> None:
        """All the same, but for when it was made."""
        await self.replaced(created="20260102 120000")

    async def test_before_the_end(self) -> None:
        """A caller to whom the origin shows something else before the end ends nothing, but nothing goes on longer either."""
        await self.get(1, 2, 3)
        self.now += 10
        self.replace(created="20260102 120000")
        self.assertEqual(await self.get(1, caller=BOB), [1])
        self.assertEqual(self.invalidated, [])
        self.now += TERM - 10 + 1
        for _again in range(3):
            self.assertEqual(await self.get(1, 2, 3, caller=BOB), [2, 2, 2])
            self.now += TERM + 1
        self.assertEqual(self.invalidated, [INSTANCE.scope])

    async def test_several_at_once(self) -> None:
        """Of readers who come together the first one's answer ends the old frames; what came since is not thrown away."""
        await self.get(1, 2, 3)
        self.now += TERM + 1
        self.replace(rows=512)
        self.origin.answer = Deferred()
        self.asked()
        reading = [ensureDeferred(self.get(1, caller=who)) for who in (ALICE, BOB, ALICE)]
        answer, self.origin.answer = self.origin.answer, None
        answer.callback(None)
        self.assertEqual(await gatherResults(reading), [[2]] * 3)
        self.assertEqual(self.invalidated, [INSTANCE.scope])
        await self.assert_replaced()

    async def test_late(self) -> None:
        """An answer of the new instance that comes late invalidates nothing that was fetched of it meanwhile."""
        await self.get(1, 2, 3)
        self.now += TERM + 1
        self.replace(rows=512)
        self.origin.answer = gate = Deferred()
        late = ensureDeferred(self.get(1, caller=BOB))
        self.origin.answer = None
        self.assertEqual(await self.get(1, 2, 3), [2, 2, 2])
        self.asked()
        gate.callback(None)
        self.assertEqual(await late, [2])
        self.assertEqual(await self.get(1, 2, 3), [2, 2, 2])
        self.assertEqual(self.invalidated, [INSTANCE.scope])
        self.asked()
        self.assertEqual(await self.get(1, 2, 3), [2, 2, 2])
        self.assertEqual(self.asked(), [])

    async def test_nothing_known(self) -> None:
        """Frames whose facts have gone cannot be compared: they end."""
        await self.get(1)
        await self.cache.remove(INSTANCE, [b"d", b"m"])
        self.now += TERM + 1
        self.origin.version = 2
        self.assertEqual(await self.get(1), [2])
        self.assertEqual(self.invalidated, [INSTANCE.scope])

    async def test_forgotten(self) -> None:
        """Once the table of facts has forgotten what the instance was, frames of before never go on: those written since do."""
        for again in (self.get, self.granted):
            await self.get(1, 2)
            await self.cache.remove(INSTANCE, [b"d", b"m"])
            if again == self.granted:
                self.cache.facts._drop_all()
            self.replace(rows=self.origin.metadata_value.rows + 1)
            self.now += TERM + 1
            await again(3)
            new = self.origin.version
            for _ in range(3):
                self.assertEqual(await self.get(1, 2, 3), [new] * 3)
                self.now += TERM + 1
            self.asked()
            self.assertEqual(await self.get(1, 2, 3), [new] * 3)
            self.assertEqual(self.asked(), ["metadata"])

    async def granted(self, *_numbers: int) -> None:
        """Win a grant before any frame is looked for, as requests of several frames do."""
        await self.reader.granted(self.origin, INSTANCE, ALICE)  # type: ignore[arg-type]


class NotAnsweredTests(TermCase):
    """The origin does not say whether it is still the same instance."""

    async def test_down(self) -> None:
        """Nothing is given, with the error that a miss has; once the origin is back, all goes on without a fetch."""
        await self.get(1)
        self.now += TERM + 1
        for down in (
            OriginUnreachable("down"),
            OriginBusy("later"),
            OriginTimeout("slow"),
            OriginRefused(500, (), b""),
        ):
            self.origin.refusal = down
            for number in (1, 2):
                with self.assertRaises(type(down)) as caught:
                    await self.get(number)
                self.assertIs(caught.exception, down)
        self.origin.refusal = None
        self.asked()
        self.assertEqual(await self.get(1), [1])
        self.assertEqual(self.asked(), ["metadata"])
        self.assertEqual(self.invalidated, [])

    async def test_refused(self) -> None:
        """Who may not read the instance gets the origin's refusal, and changes nothing for others."""
        await self.get(1, 2)
        self.now += TERM + 1
        for status in (401, 403):
            self.origin.refusal = OriginRefused(status, (), b"no")
            for who in (MALLORY, ALICE):
                self.origin.readers.add(MALLORY.credential)
                with self.assertRaises(OriginRefused) as caught:
                    await self.get(1, caller=who)
                self.assertEqual(caught.exception.status, status)
                self.assertEqual(await self.present(1, 2), set())
        self.origin.refusal = None
        self.asked()
        self.assertEqual(await self.get(1, 2), [1, 1])
        self.assertEqual(self.asked(), ["metadata"])
        self.assertEqual(self.invalidated, [])
