"""Room for answers: who gets it, who waits, who is sent away."""

from __future__ import annotations

from typing import Optional

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.system.memory_budget import SMALL, WAIT_SECONDS, AnswerMemory, NoRoom, Reservation

LARGE = 4 * SMALL


class AnswerMemoryTests(SynchronousTestCase):
    """Room for two and a half large answers."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.memory = AnswerMemory(self.clock, 2 * LARGE + LARGE // 2)

    def take(self, size: int = LARGE) -> tuple[Reservation, Deferred[None]]:
        """An answer that wants *size* bytes."""
        held = self.memory.hold()
        return held, Deferred.fromCoroutine(held.take(size))

    def taken(self, size: int = LARGE) -> Reservation:
        """The same, where there is room."""
        held, taking = self.take(size)
        self.successResultOf(taking)
        return held

    def test_small(self) -> None:
        """Small answers count for nothing, even where there is no room."""
        self.taken(10 * LARGE)
        for _ in range(100):
            self.taken(SMALL).set(SMALL)
        self.assertEqual(self.memory.used, 10 * LARGE)

    def test_given_back(self) -> None:
        """What is given back is there for others, also when an answer fails."""
        with self.assertRaises(KeyError), self.taken():
            raise KeyError
        self.assertEqual(self.memory.used, 0)

    def test_in_turn(self) -> None:
        """Who finds no room waits for it in turn: one who wants less does not overtake."""
        first, _second = self.taken(), self.taken()
        third, waits = self.take()
        _fourth, waits_too = self.take(2 * SMALL)
        self.assertNoResult(waits)
        self.assertNoResult(waits_too)
        self.assertEqual(self.memory.waiting, 2)
        first.set(0)
        self.successResultOf(waits)
        self.assertEqual(third.size, LARGE)
        self.successResultOf(waits_too)
        self.assertEqual((self.memory.used, self.memory.waiting), (2 * LARGE + 2 * SMALL, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_too_late(self) -> None:
        """Who waits too long is sent away, and makes room for a smaller one behind."""
        self.taken(), self.taken()
        _, waits = self.take()
        self.clock.advance(1)
        _, smaller = self.take(2 * SMALL)
        self.clock.advance(WAIT_SECONDS - 1)
        self.failureResultOf(waits, NoRoom)
        self.successResultOf(smaller)

    def test_crowd(self) -> None:
        """No more than so many wait."""
        self.memory.max_waiting = 2
        self.taken(10 * LARGE)
        waiting = [self.take()[1] for _ in range(2)]
        self.failureResultOf(self.take()[1], NoRoom)
        for one in waiting:
            self.assertNoResult(one)

    def test_leaves(self) -> None:
        """Who leaves while waiting takes nothing, and lets a smaller one behind have its turn."""
        self.taken(), self.taken()
        _, waits = self.take()
        _, smaller = self.take(2 * SMALL)
        waits.cancel()
        self.failureResultOf(waits, CancelledError)
        self.successResultOf(smaller)
        self.assertEqual((self.memory.used, self.memory.waiting), (2 * LARGE + 2 * SMALL, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_larger_than_all(self) -> None:
        """What is larger than all there is waits until it is alone."""
        first = self.taken()
        _, waits = self.take(10 * LARGE)
        self.assertNoResult(waits)
        first.set(0)
        self.successResultOf(waits)

    def test_turns_out_otherwise(self) -> None:
        """An answer is counted as what it is once that is known; those who come later wait for that."""
        held = self.taken()
        held.set(3 * LARGE)
        _, waits = self.take()
        self.assertNoResult(waits)
        held.set(SMALL)
        self.successResultOf(waits)
        self.assertEqual(self.memory.used, LARGE)


class ReadTests(SynchronousTestCase):
    """Answers whose size is known once they are read."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.memory = AnswerMemory(self.clock, 2 * LARGE + LARGE // 2)
        self.read = 0

    def reading(self, size: int, held: Optional[Reservation] = None) -> Deferred[bytes]:
        """An answer of *size* bytes is read."""

        async def read() -> bytes:
            self.read += 1
            return bytes(size)

        return Deferred.fromCoroutine((held or self.memory.hold()).read(read, len))

    def test_fits(self) -> None:
        """What there is room for is counted, and read once."""
        self.successResultOf(self.reading(LARGE))
        self.assertEqual((self.memory.used, self.read), (LARGE, 1))

    def test_small(self) -> None:
        """A small one needs no room."""
        self.memory.hold().set(3 * LARGE)
        self.successResultOf(self.reading(SMALL))
        self.assertEqual(self.memory.used, 3 * LARGE)

    def test_no_room(self) -> None:
        """What there is no room for is not held while it waits, and read again then."""
        other = self.memory.hold()
        other.set(2 * LARGE)
        answer = self.reading(LARGE)
        self.assertNoResult(answer)
        self.assertEqual((self.memory.used, self.read), (2 * LARGE, 1))
        other.set(0)
        self.assertEqual(len(self.successResultOf(answer)), LARGE)
        self.assertEqual((self.memory.used, self.read), (LARGE, 2))

    def test_larger_than_was_taken(self) -> None:
        """An answer that turns out larger than the room that was taken for it gives that back before it waits for more."""
        held, other = self.memory.hold(), self.memory.hold()
        other.set(LARGE)
        self.successResultOf(Deferred.fromCoroutine(held.take(LARGE)))
        answer = self.reading(2 * LARGE, held)
        self.assertNoResult(answer)
        self.assertEqual(self.memory.used, LARGE)
        other.set(0)
        self.successResultOf(answer)
        self.assertEqual(self.memory.used, 2 * LARGE)

    def test_in_turn(self) -> None:
        """It does not overtake those who wait already."""
        other = self.memory.hold()
        other.set(LARGE)
        self.assertNoResult(Deferred.fromCoroutine(self.memory.hold().take(2 * LARGE)))
        self.assertNoResult(self.reading(LARGE))

    def test_too_late(self) -> None:
        """It does not wait for ever."""
        self.memory.hold().set(3 * LARGE)
        answer = self.reading(LARGE)
        self.clock.advance(WAIT_SECONDS)
        self.failureResultOf(answer, NoRoom)
