"""Lists of frames that are too long to be held: what is read when, and what ends them."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.frames.support import ALICE, INSTANCE, MALLORY, METADATA, ReadingParts, frame, frames
from twistedproxy.cache.memory import MemoryCache
from twistedproxy.dicom.transfer_syntaxes import Frame
from twistedproxy.frames.entries import frame_name, pack_frame
from twistedproxy.frames.read_through import AnswerTooLarge, FrameAnswer, FrameRequest, NoSuchFrame
from twistedproxy.frames.streamed import AnswerBroken, FramePieces, ListReader
from twistedproxy.origin.errors import OriginRefused, OriginUnreachable
from twistedproxy.origin.interface import Caller
from twistedproxy.system.memory_budget import AnswerMemory, Reservation


class ListCase(SynchronousTestCase):
    """Pieces of two frames, each of which has 7 bytes. All lists are long."""

    piece = 15

    def setUp(self) -> None:
        self.parts = ReadingParts()
        self.origin = self.parts.origin
        self.use(1 << 20)

    def use(self, max_answer: int) -> None:
        """Another worker, with that limit."""
        self.reader = self.parts.reader(max_answer)
        self.lists = ListReader(self.reader, 0, self.piece)
        self.memory = AnswerMemory(self.parts.clock, 1 << 20)
        self.held = self.memory.hold()
        self.told: list[FrameAnswer] = []
        self.reader.answered = lambda _wanted, answer: self.told.append(answer)

    def ask(self, *numbers: int, caller: Caller = ALICE) -> Deferred[Any]:
        """Ask for frames."""
        wanted = FrameRequest(self.origin, INSTANCE, numbers, caller)  # type: ignore[arg-type]
        return Deferred.fromCoroutine(self.lists.read(wanted, self.held))

    def long(self, *numbers: int) -> FramePieces:
        """The same, where the answer is in pieces."""
        answer = self.successResultOf(self.ask(*numbers))
        self.assertIsInstance(answer, FramePieces)
        return answer  # type: ignore[no-any-return]

    def cache(self, *numbers: int) -> None:
        """Have frames in the cache."""
        for number in numbers:
            self.successResultOf(self.ask(number))
        self.origin.asked.clear()
        self.told.clear()

    def next(self, answer: FramePieces) -> list[Frame]:
        """The next piece."""
        return list(self.successResultOf(Deferred.fromCoroutine(answer.read())))

    def rest(self, answer: FramePieces) -> list[Frame]:
        """All that is left."""
        got: list[Frame] = []
        while piece := self.next(answer):
            got += piece
        return got


class ShortTests(ListCase):
    """Lists that are read whole."""

    def test_memory(self) -> None:
        """What is held of it is counted as what it is."""
        self.cache(1, 2)
        self.memory.small = 0
        self.lists.long = 1 << 30  # more than it is expected to be
        self.successResultOf(self.ask(2, 1))
        self.assertEqual((self.held.size, self.memory.used), (14, 14))

    def test_one_waits_for_room(self) -> None:
        """A single frame that is larger than there is room for is not held while it waits."""
        self.cache(1)
        self.memory.small = 0
        other = self.memory.hold()
        other.set(1 << 20)
        asking = self.ask(1)
        self.assertNoResult(asking)
        self.assertEqual(self.held.size, 0)
        other.set(0)
        self.assertEqual(self.successResultOf(asking).frames, frames(1))
        self.assertEqual(self.held.size, 7)

    def test_one_that_may_be_large(self) -> None:
        """A single frame that may be large is not read before there is room for what it probably has."""
        self.origin.metadata_value = attrs.evolve(METADATA, rows=4000, columns=4000)
        self.memory.hold().set(1 << 20)
        self.assertNoResult(self.ask(1))
        self.assertEqual(self.told, [])
        self.assertEqual(self.origin.asked_for("frames"), [])

    def test_nothing_asked_where_it_is_surely_short(self) -> None:
        """A list that is short whatever its frames are is read at once."""
        self.lists.long = 1 << 30
        self.assertEqual(self.successResultOf(self.ask(*range(1, 30))).frames, frames(*range(1, 30)))


class LongTests(ListCase):
    """Lists in pieces."""

    def test_from_the_origin(self) -> None:
        """All frames come in their order, repeats included, and nobody asks further ahead than one piece."""
        metadata = attrs.evolve(METADATA, rows=5, columns=6)  # 30 pixels: 7 bytes
        self.origin.metadata_value = metadata
        numbers = (9, 1, 2, 9, 3, 4, 5)
        answer = self.long(*numbers)
        self.assertEqual(self.origin.asked_for("frames"), [(9, 1)])
        self.assertEqual(self.next(answer), frames(9, 1))
        self.assertEqual(self.origin.asked_for("frames"), [(9, 1), (2,)])
        self.assertEqual(self.rest(answer), frames(2, 9, 3, 4, 5))
        self.assertEqual(self.origin.asked_for("frames"), [(9, 1), (2,), (3, 4), (5,)])

    def test_from_the_cache(self) -> None:
        """Where all is cached the origin gets no request."""
        self.cache(1, 2, 3)
        answer = self.long(3, 1, 2, 3)
        self.assertEqual(self.rest(answer), frames(3, 1, 2, 3))
        self.assertEqual((answer.answer.cached, answer.answer.fetched), (4, 0))
        self.assertEqual(self.origin.asked, [])

    def test_partly_cached(self) -> None:
        """What is missing is fetched piece by piece; prefetch gets one report, of the whole list, before the first byte: the
        rest is taken to be like the first piece."""
        self.origin.metadata_value = attrs.evolve(METADATA, rows=5, columns=6)  # 30 pixels: 7 bytes
        self.cache(2, 3, 6)
        answer = self.long(1, 2, 3, 4, 5, 6)
        [told] = self.told
        self.assertEqual((told.fetched, told.frames[0].transfer_syntax), (3, frame(1).transfer_syntax))
        self.assertEqual(self.rest(answer), frames(1, 2, 3, 4, 5, 6))
        self.assertEqual(self.origin.asked_for("frames"), [(1,), (4,), (5,)])
        self.assertEqual(len(self.told), 1)
        self.assertEqual((answer.answer.cached, answer.answer.fetched), (3, 3))

    def test_kept(self) -> None:
        """What was fetched is cached, whole lists of it."""
        self.assertEqual(self.rest(self.long(1, 2, 3, 4)), frames(1, 2, 3, 4))
        self.origin.asked.clear()
        self.assertEqual(self.rest(self.long(1, 2, 3, 4)), frames(1, 2, 3, 4))
        self.assertEqual(self.origin.asked, [])

    def test_without_a_cache(self) -> None:
        """A list comes in pieces where nothing is cached, too."""
        self.parts.cache = MemoryCache(Clock(), 0)
        self.use(1 << 20)
        self.assertEqual(self.rest(self.long(1, 2, 3, 4, 5)), frames(1, 2, 3, 4, 5))

    def test_evicted(self) -> None:
        """A frame that the cache lost meanwhile comes from the origin."""
        self.cache(1, 2, 3, 4, 5, 6)
        answer = self.long(1, 2, 3, 4, 5, 6)
        self.successResultOf(Deferred.fromCoroutine(self.parts.cache.remove(INSTANCE, [frame_name(6)])))
        self.assertEqual(self.rest(answer), frames(1, 2, 3, 4, 5, 6))
        self.assertEqual(self.origin.asked_for("frames"), [(6,)])

    def test_shared(self) -> None:
        """Two who want the same long list at once fetch it once."""
        self.cache(99)
        self.origin.gate = Deferred()
        asked = [self.ask(1, 2, 3, 4, 5) for _ in range(2)]
        self.origin.gate.callback(None)
        for one in asked:
            self.assertEqual(self.rest(self.successResultOf(one)), frames(1, 2, 3, 4, 5))
        self.assertEqual(len([number for asked in self.origin.asked_for("frames") for number in asked]), 5)  # type: ignore[attr-defined]

    def test_small_ones_first(self) -> None:
        """After frames that are small for their pixels, as those of a slide's margin, pieces do not grow without bound: the
        next frames may be larger."""
        self.origin.metadata_value = attrs.evolve(METADATA, rows=40, columns=40)  # 1,600 pixels: 400 bytes
        self.lists.piece = 400
        answer = self.long(*range(1, 51))
        self.assertEqual(self.rest(answer), frames(*range(1, 51)))
        self.assertEqual([len(asked) for asked in self.origin.asked_for("frames")][:3], [1, 4, 4])  # type: ignore[arg-type]


class RefusedTests(ListCase):
    """What keeps a list from beginning."""

    def test_denied(self) -> None:
        """Without a grant nothing is read."""
        self.cache(1, 2, 3, 4)
        refused = self.failureResultOf(self.ask(1, 2, 3, 4, caller=MALLORY), OriginRefused)
        self.assertEqual(refused.value.status, 403)
        self.assertEqual(self.origin.asked, [("metadata", MALLORY.credential)])

    def test_past_the_end(self) -> None:
        """A number past the end, the last of a long list, is refused before anything is read."""
        self.failureResultOf(self.ask(1, 2, 3, 4, 5, 101), NoSuchFrame)
        self.assertEqual(self.origin.asked_for("frames"), [])

    def _reads_nothing(self, get_many: Any) -> Any:
        def read(instance: Any, names: Any) -> Any:
            self.assertEqual([name for name in names if name == frame_name(1)], [])
            return get_many(instance, names)

        return read

    def test_too_large_to_be_read_whole(self) -> None:
        """Who reads a list whole, for pictures, is refused before it is read, too."""
        self.cache(1, 2, 3, 4)
        self.use(27)
        self.successResultOf(self.ask(1))
        self.parts.cache.get_many = self._reads_nothing(self.parts.cache.get_many)  # type: ignore[method-assign]
        wanted = FrameRequest(self.origin, INSTANCE, (1, 2, 3, 4), ALICE)  # type: ignore[arg-type]
        self.failureResultOf(Deferred.fromCoroutine(self.reader.read(wanted)), AnswerTooLarge)

    def test_turns_out_too_large(self) -> None:
        """What turns out too large is refused as soon as it does."""
        self.use(30)
        self.origin.metadata_value = attrs.evolve(METADATA, rows=5, columns=6)
        answer = self.long(1, 2, 3, 4, 5, 6, 7)
        self.assertEqual(self.next(answer), frames(1, 2))
        self.assertEqual(self.next(answer), frames(3, 4))
        self.failureResultOf(Deferred.fromCoroutine(answer.read()), AnswerTooLarge)
        self.assertNotIn((7,), self.origin.asked_for("frames"))

    def test_origin_fails_first(self) -> None:
        """The origin's failure to give the first piece is raised before there is an answer."""
        self.cache(99)
        self.origin.failure = OriginUnreachable("down")
        self.failureResultOf(self.ask(1, 2, 3, 4, 5), OriginUnreachable)

    def test_memory(self) -> None:
        """Two pieces are counted, not the list, and a list waits for room like all else."""
        self.lists.piece = 2 << 20
        self.successResultOf(Deferred.fromCoroutine(Reservation(self.memory).take(100 << 20)))
        waits = self.ask(*range(1, 50))
        self.assertNoResult(waits)
        self.memory.change(-(100 << 20))
        self.assertIsInstance(self.successResultOf(waits), FramePieces)
        self.assertEqual((self.held.size, self.memory.used), (4 << 20, 4 << 20))


class BrokenTests(ListCase):
    """What ends a list that has begun."""

    def test_changed(self) -> None:
        """Frames of two generations never stand in one answer."""
        self.cache(1, 2, 3, 4, 5, 6)
        answer = self.long(1, 2, 3, 4, 5, 6)
        self.next(answer)
        self.successResultOf(Deferred.fromCoroutine(self.parts.cache.invalidate(INSTANCE.scope)))
        self.next(answer)  # was read before
        self.failureResultOf(Deferred.fromCoroutine(answer.read()), AnswerBroken)

    def test_changed_before(self) -> None:
        """What is cached of another generation than the caller's grant is for is not given under that grant."""
        self.cache(1, 2, 3, 4)
        self.successResultOf(Deferred.fromCoroutine(self.parts.cache.invalidate(INSTANCE.scope)))
        reading = self.successResultOf(Deferred.fromCoroutine(self.parts.cache.get_many(INSTANCE, [])))
        secret = {frame_name(number): pack_frame(frame(9), 2e9) for number in (1, 2, 3, 4)}
        put = self.parts.cache.put_many(INSTANCE, reading.fence, secret, 60.0)
        self.successResultOf(Deferred.fromCoroutine(put))
        self.origin.readers.clear()
        self.failureResultOf(self.ask(1, 2, 3, 4), OriginRefused)

    def test_revoked(self) -> None:
        """A caller whose grant ended meanwhile gets nothing more without another."""
        self.cache(1, 2, 3, 4, 5, 6)
        answer = self.long(1, 2, 3, 4, 5, 6)
        self.next(answer)  # the next one is read
        self.origin.readers.clear()
        self.successResultOf(Deferred.fromCoroutine(self.reader.access.revoke(ALICE, INSTANCE)))
        self.next(answer)
        self.failureResultOf(Deferred.fromCoroutine(answer.read()), OriginRefused)

    def test_being_changed(self) -> None:
        """An instance that is about to be forgotten gives nothing more from the cache."""
        self.cache(1, 2, 3, 4, 5, 6)
        answer = self.long(1, 2, 3, 4, 5, 6)
        self.next(answer)
        self.reader.invalidation.pending[INSTANCE.scope] = None
        self.next(answer)
        self.failureResultOf(Deferred.fromCoroutine(answer.read()), AnswerBroken)

    def test_was_being_changed(self) -> None:
        """Nor does it after that: what the origin gave meanwhile may be of another generation."""
        self.cache(1, 2, 3, 4, 5, 6)
        answer = self.long(1, 2, 3, 4, 5, 6)
        self.next(answer)
        self.reader.invalidation.pending[INSTANCE.scope] = None
        self.origin.gate = Deferred()
        self.next(answer)
        self.reader.invalidation.pending.clear()
        self.origin.gate.callback(None)
        self.failureResultOf(Deferred.fromCoroutine(answer.read()), AnswerBroken)

    def test_closed(self) -> None:
        """Nobody who left is fetched for, and nothing more is read."""
        answer = self.long(*range(1, 10))
        self.origin.gate = Deferred()
        self.next(answer)
        answer.close()
        self.assertEqual(self.origin.cancelled, 1)
        self.assertEqual(self.next(answer), [])
