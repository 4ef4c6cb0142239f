"""Who may send a request to an origin, and when."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.origin.errors import OriginBusy
from twistedproxy.origin.http.limiter import Limiter, Slot
from twistedproxy.origin.interface import Priority

CALLER, UNKNOWN = Priority.CALLER, Priority.UNKNOWN
DISPLAY, BLOCK, WHOLE = Priority.DISPLAY, Priority.BLOCK, Priority.WHOLE


class LimiterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.limiter = Limiter(self.clock, 2, wait_timeout=100, max_waiting=5)
        self.order: list[str] = []

    def enter(self, name: str, priority: Priority = CALLER) -> Deferred[Slot]:
        waiter = self.limiter.acquire(priority)

        def entered(slot: Slot) -> Slot:
            self.order.append(name)
            return slot

        return waiter.addCallback(entered)

    def test_at_most_concurrency(self) -> None:
        """The third request waits until one of two has ended."""
        first = self.successResultOf(self.enter("a"))
        self.successResultOf(self.enter("b"))
        third = self.enter("c")
        self.assertNoResult(third)
        first.release()
        self.successResultOf(third)

    def test_release_twice(self) -> None:
        """A slot given back twice is one slot."""
        first = self.successResultOf(self.enter("a"))
        self.successResultOf(self.enter("b"))
        waiting = [self.enter("c"), self.enter("d")]
        first.release()
        first.release()
        self.successResultOf(waiting[0])
        self.assertNoResult(waiting[1])

    def test_priority_order(self) -> None:
        """Callers go first, then display loads, then block loads, each in the order they came."""
        slots = [self.successResultOf(self.enter("x")), self.successResultOf(self.enter("y"))]
        for name, priority in (("b1", BLOCK), ("d1", DISPLAY), ("c1", CALLER), ("d2", DISPLAY), ("c2", CALLER)):
            self.enter(name, priority).addCallback(slots.append)
        while slots:
            slots.pop(0).release()
        self.assertEqual(self.order, ["x", "y", "c1", "c2", "d1", "d2", "b1"])

    def test_background_leaves_room(self) -> None:
        """Prefetch leaves the last slots to callers."""
        self.successResultOf(self.enter("d", DISPLAY))
        second = self.enter("b", BLOCK)
        self.assertNoResult(second)
        self.successResultOf(self.enter("c", CALLER))

    def test_concurrency_one(self) -> None:
        """With a single slot prefetch may use it too."""
        limiter = Limiter(self.clock, 1, wait_timeout=100)
        self.successResultOf(limiter.acquire(BLOCK)).release()
        self.successResultOf(limiter.acquire(CALLER))

    def test_whole_has_its_own(self) -> None:
        """Two whole-instance loads neither wait for other requests nor make them wait; a third waits for them."""
        self.successResultOf(self.enter("a"))
        whole = self.successResultOf(self.enter("w1", WHOLE))
        self.successResultOf(self.enter("w2", WHOLE))
        self.successResultOf(self.enter("b"))
        third = self.enter("w3", WHOLE)
        self.assertNoResult(third)
        whole.release()
        self.successResultOf(third)

    def test_cancelled_wait(self) -> None:
        """A waiter that leaves gives up its place and takes no slot with it."""
        first = self.successResultOf(self.enter("a"))
        self.successResultOf(self.enter("b"))
        leaving, staying = self.enter("c"), self.enter("d")
        leaving.cancel()
        self.failureResultOf(leaving, CancelledError)
        first.release()
        self.successResultOf(staying)

    def test_bounded_queue(self) -> None:
        """When the queue is full the next one is told so at once."""
        for name in "abcdefg":
            self.enter(name)
        self.assertRaises(OriginBusy, self.limiter.acquire, CALLER)

    def test_wait_has_a_deadline(self) -> None:
        """Who waits too long gets OriginBusy, and its place is free."""
        self.enter("a")
        self.enter("b")
        waiter = self.enter("c")
        self.clock.advance(101)
        self.failureResultOf(waiter, OriginBusy)
        self.assertEqual(self.limiter.status()["waiting"], 0)

    def test_lent_slot(self) -> None:
        """A long transfer lends its slot out, and at its end gives nothing back twice."""
        long = self.successResultOf(self.enter("a"))
        self.successResultOf(self.enter("b"))
        third, fourth = self.enter("c"), self.enter("d")
        self.assertTrue(long.lend())
        self.successResultOf(third)
        long.release()
        self.assertNoResult(fourth)

    def test_lending_is_bounded(self) -> None:
        """No more transfers may be long than there are slots."""
        lent = 0
        for _ in range(4):
            waiter = self.limiter.acquire(CALLER)
            if waiter.called:
                lent += self.successResultOf(waiter).lend()
        self.assertEqual(lent, 2)

    def test_many_that_fail_at_once(self) -> None:
        """Two thousand requests that end as soon as they begin don't recurse."""
        limiter = Limiter(self.clock, 1, wait_timeout=100)
        first = self.successResultOf(limiter.acquire(CALLER))
        done: list[None] = []
        for _ in range(2000):
            limiter.acquire(CALLER).addCallback(lambda slot: done.append(slot.release()))
        first.release()
        self.assertEqual(len(done), 2000)

    def test_more_slots(self) -> None:
        """When the size grows, requests that wait are sent at once, not with the next one's end."""
        limiter = Limiter(self.clock, 64, wait_timeout=100)
        for _ in range(30):
            limiter.acquire(CALLER)
        for _ in range(3):  # rounds: the first, a probe, and one that grows
            samples = [limiter.concurrency.sample() for _ in range(20)]
            for sample in samples:
                sample.sent()
            for sample in samples:
                sample.answered()
        self.assertEqual((limiter.size, limiter.status()["running"]), (24, 24))

    def test_close(self) -> None:
        """Closing ends all waits."""
        self.enter("a")
        self.enter("b")
        waiter = self.enter("c")
        self.limiter.close()
        self.failureResultOf(waiter, OriginBusy)


class SharesTests(SynchronousTestCase):
    """Eight slots, and callers who want more of them."""

    def setUp(self) -> None:
        self.limiter = Limiter(Clock(), 8, wait_timeout=100, max_waiting=40)
        self.running: list[tuple[str, Slot]] = []

    def ask(self, name: str, priority: Priority = CALLER, first: bool = False) -> Deferred[None]:
        """A request of the caller *name*."""
        waiter = self.limiter.acquire(priority, name.encode(), first)
        return waiter.addCallback(lambda slot: self.running.append((name, slot)))

    def next_ones(self, count: int) -> list[str]:
        """Who goes next, one after the other, as those who run longest end."""
        names = []
        for _ in range(count):
            self.running.pop(0)[1].release()
            names.append(self.running[-1][0])
        return names

    def names(self) -> list[str]:
        return [name for name, _ in self.running]

    def test_turns(self) -> None:
        """However many requests one caller has waiting, the next one is another's."""
        for name in ["a"] * 16 + ["b", "b", "c"]:
            self.ask(name)
        self.assertEqual(self.next_ones(6), ["a", "b", "c", "a", "b", "a"])

    def test_strangers_leave_room(self) -> None:
        """Strangers have half of the slots, and a caller who may read something finds one free at once."""
        for number in range(20):
            self.ask(f"stranger {number}", UNKNOWN)
        self.assertEqual(len(self.running), 4)
        self.successResultOf(self.ask("known"))

    def test_strangers_and_loads_leave_room(self) -> None:
        """Strangers and prefetch together leave slots to callers who may read something."""
        for number in range(20):
            self.ask(f"stranger {number}", UNKNOWN)
            self.ask("load", BLOCK)
        self.assertEqual(len(self.running), 6)
        self.successResultOf(self.ask("known"))

    def test_known_go_first(self) -> None:
        """Of four turns strangers have one while others wait, so that neither kind starves."""
        for _ in range(20):
            self.ask("known")
        for _ in range(10):
            self.ask("stranger", UNKNOWN)
        self.assertEqual(self.next_ones(8), [*["known"] * 3, "stranger", *["known"] * 3, "stranger"])

    def test_newcomer(self) -> None:
        """A newcomer's request goes before those of a crowd that the origin has refused."""
        for number in range(20):
            self.ask(f"refused {number}", UNKNOWN)
        self.ask("newcomer", UNKNOWN, first=True)
        self.assertEqual(self.next_ones(2), ["newcomer", "refused 4"])

    def test_strangers_fill_half_of_the_queue(self) -> None:
        """When strangers have filled their half of the queue, the one who would wait longest makes room for the next."""
        waiting = [self.ask(f"stranger {number}", UNKNOWN) for number in range(24)]
        newcomer = self.ask("newcomer", UNKNOWN, first=True)
        self.failureResultOf(waiting[-1], OriginBusy)
        self.assertEqual(self.next_ones(1), ["newcomer"])
        self.successResultOf(newcomer)
        self.successResultOf(self.ask("known"))

    def test_shares_follow_the_size(self) -> None:
        """Where a store takes fewer requests than at first, the shares of the slots are smaller, and so is the number of those
        that are lent."""
        self.limiter = Limiter(Clock(), 64, wait_timeout=100, max_waiting=400)
        for _ in range(3):
            self.limiter.concurrency.sample().refused()
        self.assertEqual(self.limiter.size, 8)
        for number in range(20):
            self.ask(f"stranger {number}", UNKNOWN)
        self.assertEqual(len(self.running), 4)
        for _ in range(20):
            self.ask("load", BLOCK)
        self.assertEqual(len(self.running), 6)
        for _ in range(20):
            self.ask("known")
        self.assertEqual(len(self.running), 8)
        for _ in range(12):
            self.running.pop(0)[1].lend()
        self.assertEqual(self.limiter.lent, 8)

    def test_one_slot(self) -> None:
        """With a single slot everybody has turns."""
        self.limiter = Limiter(Clock(), 1, wait_timeout=100)
        for name in ("stranger", "another"):
            self.ask(name, UNKNOWN)
        for _ in range(4):
            self.ask("known")
        self.assertEqual(self.next_ones(5), ["known", "known", "known", "another", "known"])
