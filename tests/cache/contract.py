"""What every cache that keeps entries does: run against each provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Optional

import attrs
from twisted.internet.defer import Deferred, gatherResults

from tests.cache.support import A
from twistedproxy.cache.interface import LARGE, Cache, Head, Value
from twistedproxy.cache.keys import instance_keys
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.frames.entries import frame_name

SAME_SERIES = attrs.evolve(A, sop="1.2.3.4.6")
SAME_STUDY = attrs.evolve(A, series="1.2.3.5")
SAME_ROOT = attrs.evolve(A, study="1.2.4")
SAME_ORIGIN = attrs.evolve(A, root="/projects/p")
ELSEWHERE = attrs.evolve(A, origin="http://other/dicom-web")
ALL = (A, SAME_SERIES, SAME_STUDY, SAME_ROOT, SAME_ORIGIN, ELSEWHERE)


class CacheContract:
    """A mixin for trial's TestCase, whose setUp makes *cache*."""

    cache: Cache
    assertEqual: Any
    assertTrue: Any
    assertFalse: Any
    assertIsNone: Any
    assertNotEqual: Any
    assertIn: Any
    assertNotIn: Any
    assertRaises: Any

    async def pass_time(self, condition: Callable[[], Any]) -> None:
        """Let a little time pass, until *condition*."""
        raise NotImplementedError

    async def lose(self, key: bytes) -> None:
        """Let the cache lose *key*, as by eviction."""
        raise NotImplementedError

    async def put(self, instance: Instance, entries: Mapping[bytes, Value], seconds: float = 60.0) -> None:
        reading = await self.cache.get_many(instance, [])
        self.assertTrue(await self.cache.put_many(instance, reading.fence, entries, seconds))

    async def get(self, instance: Instance, *names: bytes) -> dict[bytes, bytes]:
        return dict((await self.cache.get_many(instance, names)).entries)

    async def test_absent_entries_are_left_out_and_the_fence_is_told(self) -> None:
        """A reader of nothing gets the fence it needs to write."""
        reading = await self.cache.get_many(A, [b"1", b"2"])
        self.assertEqual(reading.entries, {})
        self.assertEqual(len(reading.fence or b""), 8)
        self.assertEqual((await self.cache.get_many(A, [])).fence, reading.fence)

    async def test_entries_come_back_as_they_were_put(self) -> None:
        """Names and values of any bytes survive, also those that look like numbers or like the protocol."""
        entries = {
            b"": b"empty name",
            b"empty": b"",
            b"}{": b"123",
            b"\x00\xff\r\n": b"-1.5",
            b"1": b"$-1\r\n*3\r\n",
            b"2": bytes(range(256)) * 300,
            b"12": b"\xff" * 3,
        }
        await self.put(A, entries)
        self.assertEqual(await self.get(A, *entries), entries)

    async def test_only_what_was_asked_for_is_read(self) -> None:
        """Of present and missing names the present ones come."""
        await self.put(A, {b"1": b"one", b"2": b"two"})
        self.assertEqual(await self.get(A, b"2", b"3", b"2"), {b"2": b"two"})

    async def test_instances_do_not_mix(self) -> None:
        """The same name below instances that differ in one part is as many entries."""
        for number, instance in enumerate(ALL):
            await self.put(instance, {b"1": b"%d" % number})
        found = [await self.get(instance, b"1") for instance in ALL]
        self.assertEqual(found, [{b"1": b"%d" % number} for number in range(len(ALL))])

    async def test_an_entry_is_replaced(self) -> None:
        """The last put counts."""
        await self.put(A, {b"1": b"old"})
        await self.put(A, {b"1": b"new"})
        self.assertEqual(await self.get(A, b"1"), {b"1": b"new"})

    async def test_many_entries_at_once(self) -> None:
        """More than one command holds are put and read all the same."""
        entries = {b"%d" % number: b"%d" % number * 1000 for number in range(700)}
        await self.put(A, entries)
        self.assertEqual(await self.get(A, *entries), entries)

    async def test_what_is_present_is_told_without_its_bytes(self) -> None:
        """Entries of today's fence are present; claims, absent and forgotten ones are not."""
        await self.put(A, {b"1": b"x" * 1000, b"2": b""})
        await self.cache.claim(A, [b"3"], b"token", 60.0)
        self.assertEqual(await self.cache.present(A, [b"1", b"2", b"3", b"4"]), {b"1", b"2"})
        await self.cache.invalidate(A.scope)
        self.assertEqual(await self.cache.present(A, [b"1", b"2"]), set())
        await self.cache.get_many(A, [])
        self.assertEqual(await self.cache.present(A, [b"1", b"2"]), set())

    async def held(self, instance: Instance, frames: int) -> tuple[list[int], list[int]]:
        """All frames that are cached, and that are claimed, of so many."""
        cached: list[int] = []
        claimed: list[int] = []
        after: Optional[bytes] = b""
        while after is not None:
            part = await self.cache.held(instance, frames, after)
            cached += part.cached
            claimed += part.claimed
            after = part.after
        self.assertEqual((len(cached), len(claimed)), (len(set(cached)), len(set(claimed))))
        return sorted(cached), sorted(claimed)

    async def test_which_frames_are_held(self) -> None:
        """Of any number of frames all that are cached or claimed are told: of that instance alone, under its fence, up to the last
        frame that it has."""
        numbers = [*range(1, 1200), 1500, 3999, 4000]
        await self.put(A, {frame_name(number): b"x" for number in (*numbers, 4001)} | {b"G1": b"", b"E1": b""})
        await self.put(SAME_SERIES, {frame_name(2): b"x"})
        await self.cache.claim(A, [frame_name(number) for number in (1300, 2500, 5000)], b"me", 60.0)
        await self.cache.claim(SAME_SERIES, [frame_name(1)], b"me", 60.0)
        self.assertEqual(await self.held(A, 4000), (numbers, [1300, 2500]))
        self.assertEqual(await self.held(SAME_SERIES, 3), ([2], [1]))
        self.assertEqual(await self.held(SAME_STUDY, 3), ([], []))
        await self.cache.unclaim(SAME_SERIES, [frame_name(1)], b"me")
        await self.cache.invalidate(A.scope)
        await self.cache.get_many(A, [])
        await self.put(A, {frame_name(7): b"x"})
        self.assertEqual(await self.held(A, 4000), ([7], [1300, 2500]))
        self.assertEqual(await self.held(SAME_SERIES, 3), ([2], []))

    async def test_claims_that_have_ended_are_not_held(self) -> None:
        """A claim ends by itself, also where nobody gives it back."""
        await self.cache.claim(A, [frame_name(1)], b"me", 0.05)
        await self.cache.claim(A, [frame_name(2)], b"me", 60.0)

        async def ended() -> bool:
            return await self.cache.claim_left(A, frame_name(1)) is None

        await self.pass_time(ended)
        self.assertEqual(await self.held(A, 2), ([], [2]))

    async def test_changes_are_seen(self) -> None:
        """Where the cache can tell, what was told before is not told again once something was written, claimed or forgotten."""
        await self.put(A, {b"F1": b"x"})
        seen = [self.cache.changes()]
        if seen == [None]:
            return
        self.assertEqual(self.cache.changes(), seen[0])
        await self.get(A, b"F1", b"F2")
        self.assertEqual(self.cache.changes(), seen[0])
        for change in (
            self.put(A, {b"F2": b"x"}),
            self.cache.claim(A, [b"F3"], b"me", 60.0),
            self.cache.unclaim(A, [b"F3"], b"me"),
            self.cache.remove(A, [b"F1"]),
            self.cache.invalidate(A.scope),
        ):
            await change
            self.assertNotIn(self.cache.changes(), seen)
            seen.append(self.cache.changes())

    async def test_how_entries_begin_is_told_with_their_sizes(self) -> None:
        """Of long entries the first bytes come, of short ones all; what readers would not find has no head."""
        await self.put(A, {b"1": b"one" + b"x" * 1000, b"2": b"two", b"3": b""})
        heads = await self.cache.heads(A, [b"1", b"4", b"3", b"2", b"1"], 4)
        self.assertEqual(heads.fence, (await self.cache.get_many(A, [])).fence)
        expected = {b"1": Head(b"onex", 1003), b"2": Head(b"two", 3), b"3": Head(b"", 0)}
        self.assertEqual(heads.entries, expected)
        await self.cache.invalidate(A.scope)
        self.assertEqual((await self.cache.heads(A, [b"1", b"2"], 4)).entries, {})
        await self.put(A, {b"2": b"two"})
        self.assertEqual((await self.cache.heads(A, [b"1", b"2"], 4)).entries, {b"2": expected[b"2"]})

    async def test_large_entries(self) -> None:
        """Large entries, whole or in pieces, are like others; who replaces one, or takes it back, leaves nothing of it to see."""
        large = bytes(range(256)) * (LARGE // 200)
        await self.put(A, {b"1": large, b"2": (b"head", large), b"3": b"small"})
        whole = {b"1": large, b"2": b"head" + large, b"3": b"small"}
        self.assertEqual(await self.get(A, b"1", b"2", b"3"), whole)
        heads = (await self.cache.heads(A, [b"1", b"2", b"3"], 6)).entries
        self.assertEqual(heads, {name: Head(value[:6], len(value)) for name, value in whole.items()})
        self.assertEqual(await self.cache.present(A, list(whole)), set(whole))
        await self.put(A, {b"1": (large, b"tail"), b"2": b"small now"})
        self.assertEqual(await self.get(A, b"1", b"2"), {b"1": large + b"tail", b"2": b"small now"})
        await self.cache.remove(A, [b"1"])
        self.assertEqual(await self.get(A, b"1"), {})
        await self.put(A, {b"1": large})
        await self.cache.invalidate(A.scope)
        self.assertEqual(await self.get(A, b"1"), {})

    async def test_entries_are_taken_back(self) -> None:
        """A removed entry is gone, its neighbour stays."""
        await self.put(A, {b"1": b"one", b"2": b"two"})
        self.assertTrue(await self.cache.remove(A, [b"1", b"9"]))
        self.assertTrue(await self.cache.remove(A, []))
        self.assertEqual(await self.get(A, b"1", b"2"), {b"2": b"two"})

    async def test_entries_expire(self) -> None:
        """After its time an entry is gone; one without a time stays."""
        fence = (await self.cache.get_many(A, [])).fence
        await self.cache.put_many(A, fence, {b"1": b"one"}, 0.3)
        await self.cache.put_many(A, fence, {b"2": b"two"}, None)
        self.assertEqual(await self.get(A, b"1", b"2"), {b"1": b"one", b"2": b"two"})

        async def gone() -> bool:
            return await self.get(A, b"1", b"2") == {b"2": b"two"}

        await self.pass_time(gone)

    async def test_invalidation_ends_what_lies_below_and_nothing_else(self) -> None:
        """Each scope takes its own with it, below all paths of the store's host."""
        whole = A.scope
        for scope, left in (
            (whole, (SAME_SERIES, SAME_STUDY, SAME_ROOT, ELSEWHERE)),
            (attrs.evolve(whole, sop=None), (SAME_STUDY, SAME_ROOT, ELSEWHERE)),
            (attrs.evolve(whole, sop=None, series=None), (SAME_ROOT, ELSEWHERE)),
            (Scope(A.origin, A.root), (ELSEWHERE,)),
        ):
            for instance in ALL:
                await self.put(instance, {b"1": b"one"})
            await self.cache.invalidate(scope)
            found = tuple([instance for instance in ALL if await self.get(instance, b"1")])
            self.assertEqual(found, left, scope)

    async def test_invalidation_ends_what_is_kept_of_the_whole(self) -> None:
        """A changed instance is part of its series and study, a changed series of its study; others are not touched."""
        series, study, other = A.of_series, A.of_study, SAME_STUDY.of_series
        kept = (series, study, other, SAME_ROOT.of_study)
        whole = A.scope
        for scope, left in (
            (whole, (other, SAME_ROOT.of_study)),
            (attrs.evolve(whole, sop=None), (other, SAME_ROOT.of_study)),
            (attrs.evolve(whole, sop=None, series=None), (SAME_ROOT.of_study,)),
        ):
            for instance in kept:
                await self.put(instance, {b"1": b"one"})
            await self.cache.invalidate(scope)
            found = tuple([instance for instance in kept if await self.get(instance, b"1")])
            self.assertEqual(found, left, scope)

    async def test_invalidation_a_level_without_the_one_above_is_an_error(self) -> None:
        """A scope with a gap would invalidate nothing."""
        for scope in (Scope("o", "", None, "1.2", None), Scope("o", "", "1", None, "1.2")):
            with self.assertRaises(ValueError):
                await self.cache.invalidate(scope)

    async def test_a_late_writer_is_not_seen(self) -> None:
        """What is written under a fence from before an invalidation is never read, not even after it was read as missing."""
        for scope in (A.scope, Scope(A.origin, A.root)):
            old = (await self.cache.get_many(A, [b"1"])).fence
            await self.cache.invalidate(scope)
            await self.cache.put_many(A, old, {b"1": b"stale"}, 60.0)
            self.assertEqual(await self.get(A, b"1"), {})
            await self.cache.put_many(A, old, {b"1": b"stale"}, 60.0)
            self.assertEqual(await self.get(A, b"1"), {})
            await self.put(A, {b"1": b"fresh"})
            self.assertEqual(await self.get(A, b"1"), {b"1": b"fresh"})

    async def test_nothing_is_written_without_a_fence(self) -> None:
        """A reader that could not ask cannot write."""
        self.assertFalse(await self.cache.put_many(A, None, {b"1": b"one"}, 60.0))
        self.assertEqual(await self.get(A, b"1"), {})

    async def test_a_lost_generation_counts_as_ended(self) -> None:
        """Whichever generation is evicted, the entries below are gone, and so is what late writers write."""
        for key in instance_keys(A).generations:
            await self.put(A, {b"1": b"one"})
            old = (await self.cache.get_many(A, [])).fence
            await self.lose(key)
            reading = await self.cache.get_many(A, [b"1"])
            self.assertEqual(reading.entries, {})
            self.assertNotEqual(reading.fence, old)
            await self.cache.put_many(A, old, {b"1": b"stale"}, 60.0)
            self.assertEqual(await self.get(A, b"1"), {})

    async def test_racers_agree_on_a_fence(self) -> None:
        """Readers that all find no generation can read what any of them writes."""
        readings = await gatherResults([Deferred.fromCoroutine(self.cache.get_many(A, [b"1"])) for _ in range(20)])
        self.assertEqual(len({reading.fence for reading in readings}), 1)

    async def test_a_claim_is_won_once(self) -> None:
        """Of two claimants each name goes to the first."""
        self.assertEqual(await self.cache.claim(A, [b"1", b"2"], b"me", 60.0), {b"1", b"2"})
        self.assertEqual(await self.cache.claim(A, [b"2", b"3"], b"you", 60.0), {b"3"})
        self.assertEqual(await self.cache.claim(SAME_SERIES, [b"1"], b"you", 60.0), {b"1"})
        self.assertEqual(await self.cache.claim(A, [], b"you", 60.0), set())

    async def test_a_claim_is_no_entry(self) -> None:
        """Readers see no claims, and claimants no entries."""
        await self.cache.claim(A, [b"1"], b"me", 60.0)
        self.assertEqual(await self.get(A, b"1"), {})
        await self.put(A, {b"2": b"two"})
        self.assertEqual(await self.cache.claim(A, [b"2"], b"me", 60.0), {b"2"})

    async def test_only_the_holder_gives_a_claim_back(self) -> None:
        """Another's token changes nothing."""
        await self.cache.claim(A, [b"1", b"2"], b"me", 60.0)
        await self.cache.unclaim(A, [b"1", b"2"], b"you")
        self.assertEqual(await self.cache.claim(A, [b"1"], b"you", 60.0), set())
        await self.cache.unclaim(A, [b"1"], b"me")
        self.assertEqual(await self.cache.claim(A, [b"1", b"2"], b"you", 60.0), {b"1"})

    async def test_claims_expire_unless_their_holder_renews_them(self) -> None:
        """Renewed claims live on; those renewed by another don't."""
        await self.cache.claim(A, [b"1", b"2"], b"me", 0.3)
        await self.cache.renew_claims(A, [b"1"], b"me", 60.0)
        await self.cache.renew_claims(A, [b"2"], b"you", 60.0)
        won: set[bytes] = set()

        async def free() -> bool:
            won.update(await self.cache.claim(A, [b"1", b"2"], b"you", 60.0))
            return bool(won)

        await self.pass_time(free)
        self.assertEqual(won, {b"2"})

    async def test_the_time_left_of_a_claim(self) -> None:
        """The time left of a claim is known as long as it is held; a free name has none."""
        self.assertIsNone(await self.cache.claim_left(A, b"1"))
        await self.cache.claim(A, [b"1"], b"me", 60.0)
        left = await self.cache.claim_left(A, b"1")
        assert left is not None
        self.assertTrue(55.0 < left <= 60.0, left)
        self.assertIsNone(await self.cache.claim_left(A, b"2"))
        await self.cache.unclaim(A, [b"1"], b"me")
        self.assertIsNone(await self.cache.claim_left(A, b"1"))

    async def test_invalidation_leaves_claims(self) -> None:
        """They belong to those who work, not to what is cached."""
        await self.cache.claim(A, [b"1"], b"me", 60.0)
        await self.cache.invalidate(A.scope)
        self.assertEqual(await self.cache.claim(A, [b"1"], b"you", 60.0), set())

    async def test_status_tells_what_is_used(self) -> None:
        """The facts that the status page shows are there, as numbers."""
        before = await self.cache.status()
        await self.put(A, {b"1": b"x" * 1_000_000})
        after = await self.cache.status()
        self.assertEqual(after["connected"], True)
        self.assertEqual(after["evicted"], 0)
        self.assertTrue(after["used_bytes"] >= before["used_bytes"] + 1_000_000, (before, after))  # type: ignore[operator]
        self.assertTrue(after["max_bytes"] > 1_000_000)  # type: ignore[operator]
        await self.cache.ping()
