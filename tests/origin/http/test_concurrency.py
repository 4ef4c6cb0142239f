"""How many requests run at a store at once, with stores that are simulated on a clock."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Optional

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.origin.http.concurrency import ALONE, FLOOR, PROBE_SECONDS, START, Concurrency
from twistedproxy.origin.http.limiter import Limiter, Slot
from twistedproxy.origin.interface import Priority

MOST = 256
LATENCY = 0.08  # seconds
REFUSAL = 0.005  # seconds


class Store:
    """Answers after `latency` seconds, give or take an eighth. It works on *capacity* requests at a time, others queue;
    above *limit* at a time it refuses."""

    def __init__(self, clock: Clock, capacity: int = 10_000, limit: int = 10_000) -> None:
        self.latency = LATENCY
        self.answered = self.refused = self.running = self.most_running = 0
        self._clock = clock
        self._capacity = capacity
        self._limit = limit
        self._queue: deque[Callable[[bool], None]] = deque()
        self._random = random.Random(7)

    def ask(self, done: Callable[[bool], None]) -> None:
        """Call *done* with whether the request was served."""
        if self.running + len(self._queue) >= self._limit:
            self.refused += 1
            self._clock.callLater(REFUSAL, done, False)
            return
        self._queue.append(done)
        self._work()

    def _work(self) -> None:
        while self._queue and self.running < self._capacity:
            self.running += 1
            seconds = self.latency * self._random.uniform(0.875, 1.125)
            self._clock.callLater(seconds, self._served, self._queue.popleft())
        self.most_running = max(self.most_running, self.running + len(self._queue))

    def _served(self, done: Callable[[bool], None]) -> None:
        self.running -= 1
        self.answered += 1
        self._work()
        done(True)


class Readers:
    """*count* readers who ask *store* through *limiter*, each for one thing after the other, as long as they are `reading`."""

    def __init__(self, clock: Clock, limiter: Limiter, store: Store, count: int) -> None:
        self.reading = True
        self.slowest = 0.0
        self._clock = clock
        self._limiter = limiter
        self._store = store
        for number in range(count):
            self._next(b"%d" % number)

    def _next(self, name: bytes) -> None:
        if self.reading:
            began = self._clock.seconds()
            self._limiter.acquire(Priority.CALLER, name).addCallback(self._entered, name, began)

    def _entered(self, slot: Slot, name: bytes, began: float) -> None:
        sample = self._limiter.concurrency.sample()
        sample.sent()

        def done(served: bool) -> None:
            (sample.answered if served else sample.refused)()
            slot.release()
            self.slowest = max(self.slowest, self._clock.seconds() - began)
            self._clock.callLater(0 if served else 0.5, self._next, name)

        self._store.ask(done)


class ConcurrencyCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.limiter = Limiter(self.clock, MOST, wait_timeout=1000)

    def run_for(self, seconds: float) -> None:
        """Let *seconds* pass."""
        end = self.clock.seconds() + seconds
        while self.clock.calls and self.clock.calls[0].getTime() <= end:
            self.clock.advance(max(0.0, self.clock.calls[0].getTime() - self.clock.seconds()))
        self.clock.advance(end - self.clock.seconds())

    def answers(self, store: Store, seconds: float) -> float:
        """Answers a second during the next *seconds*."""
        before = store.answered
        self.run_for(seconds)
        return (store.answered - before) / seconds

    def slots(self, limiter: Optional[Limiter] = None) -> int:
        """The size, probes apart."""
        slots = (limiter or self.limiter).status()["slots"]
        assert isinstance(slots, int)
        return slots

    def minimum(self) -> float:
        """The minimum latency in seconds."""
        minimum = self.limiter.status()["minimum_latency_seconds"]
        assert isinstance(minimum, float)
        return minimum


class GrowthTests(ConcurrencyCase):
    """A store without a limit."""

    def test_many_readers(self) -> None:
        """With 80 ms of latency, three seconds bring all slots that 100 readers need, and no more."""
        store = Store(self.clock)
        Readers(self.clock, self.limiter, store, 100)
        self.run_for(3)
        self.assertTrue(100 <= self.slots() <= 110, self.slots())
        self.assertGreater(self.answers(store, 5), 0.97 * 100 / LATENCY)
        self.assertLess(abs(self.minimum() - LATENCY), LATENCY / 8)

    def test_upper_bound(self) -> None:
        """More slots than the option allows there never are."""
        self.limiter = Limiter(self.clock, 30, wait_timeout=1000)
        store = Store(self.clock)
        Readers(self.clock, self.limiter, store, 100)
        self.run_for(5)
        self.assertEqual((self.slots(), store.most_running), (30, 30))

    def test_small_upper_bound(self) -> None:
        """With few slots there is nothing to find out: all of them can always be used."""
        self.limiter = Limiter(self.clock, FLOOR, wait_timeout=1000)
        store = Store(self.clock)
        Readers(self.clock, self.limiter, store, 10)
        for _ in range(30):
            self.run_for(1)
            self.assertEqual(self.limiter.size, FLOOR)

    def test_without_demand(self) -> None:
        """Where no request waits there are no more slots, however quick the answers."""
        Readers(self.clock, self.limiter, Store(self.clock), START)
        self.run_for(5)
        self.assertEqual(self.slots(), START)

    def test_after_idleness(self) -> None:
        """An hour without requests is no latency, and what was found before it holds: from the first request on all slots are
        there."""
        store = Store(self.clock)
        readers = Readers(self.clock, self.limiter, store, 100)
        self.run_for(5)
        readers.reading = False
        self.run_for(3603)
        slots = self.slots()
        Readers(self.clock, self.limiter, store, 150)
        self.assertEqual(store.running, slots)
        self.run_for(LATENCY)
        self.assertGreaterEqual(self.limiter.size, slots)
        self.assertGreater(self.answers(store, 2), 0.95 * slots / LATENCY)
        self.assertLess(self.minimum(), 1.2 * LATENCY)

    def test_noisy_latency(self) -> None:
        """Of answers that take between a quarter and four times the usual time the slots become as many as are needed, too."""
        store = Store(self.clock)
        noise = random.Random(3)

        class Noisy(Store):
            latency = property(lambda _: LATENCY * noise.lognormvariate(0, 0.7), lambda *_: None)  # type: ignore[assignment]

        store = Noisy(self.clock)
        Readers(self.clock, self.limiter, store, 50)
        self.run_for(10)
        for _ in range(10):
            self.run_for(1)
            self.assertGreaterEqual(self.slots(), 30)


class LimitTests(ConcurrencyCase):
    """Stores with a limit."""

    def test_hard_capacity(self) -> None:
        """A store that works on eight requests at a time gets somewhat more than eight, and is never idle."""
        store = Store(self.clock, capacity=8)
        Readers(self.clock, self.limiter, store, 50)
        self.run_for(3)
        store.most_running = 0
        rate = self.answers(store, 40)
        self.assertLessEqual(store.most_running, 2 * 8)
        self.assertGreater(rate, 0.95 * 8 / LATENCY)
        self.assertTrue(8 <= self.slots() <= 14, self.slots())
        self.assertLess(self.minimum(), 1.2 * LATENCY)

    def test_capacity_that_shrinks(self) -> None:
        """Of a store that had no limit and has one now, only little more is asked within half a minute."""
        store = Store(self.clock)
        Readers(self.clock, self.limiter, store, 100)
        self.run_for(5)
        store._capacity = 20
        self.run_for(30)
        self.assertTrue(20 <= self.slots() <= 40, self.slots())

    def test_refusals(self) -> None:
        """A store that refuses more than 30 at a time gets nearly 30, and refuses fewer than one request in a hundred."""
        store = Store(self.clock, limit=30)
        Readers(self.clock, self.limiter, store, 100)
        self.run_for(10)
        store.refused = 0
        self.assertGreater(self.answers(store, 30), 0.7 * 30 / LATENCY)
        self.assertLess(store.refused, 0.01 * store.answered)
        self.assertTrue(0.6 * 30 <= self.slots() <= 34, self.slots())

    def test_one_overload_is_one_reason(self) -> None:
        """However many of the requests that were running are refused, the size shrinks once."""
        samples = [self.limiter.concurrency.sample() for _ in range(20)]
        for sample in samples:
            sample.refused()
        self.assertEqual(self.slots(), 15)
        self.limiter.concurrency.sample().refused()
        self.assertEqual(self.slots(), 11)

    def test_one_thing(self) -> None:
        """Something that is refused again and again among many good answers is no overload."""
        for _ in range(10):
            for _ in range(ALONE):
                self.limiter.concurrency.sample().answered()
            self.limiter.concurrency.sample().refused()
        self.assertEqual(self.slots(), 20)
        self.limiter.concurrency.sample().refused()
        self.assertEqual(self.slots(), 15)

    def test_probe_ends(self) -> None:
        """A probe ends also where nothing that is measured follows."""
        concurrency = self.limiter.concurrency
        concurrency._probe()
        self.assertEqual(concurrency.size, 10)
        self.clock.advance(PROBE_SECONDS)
        self.assertEqual(concurrency.size, 20)

    def test_floor(self) -> None:
        """A few slots are left when everything is refused, and the size grows again afterwards."""
        store = Store(self.clock, limit=0)
        Readers(self.clock, self.limiter, store, 50)
        self.run_for(60)
        self.assertEqual(self.slots(), FLOOR)
        store._limit = 10_000
        self.run_for(15)
        self.assertGreaterEqual(self.slots(), 50)

    def test_several_processes(self) -> None:
        """Four limiters at one store, as four workers have, do not take each other's load for the store's latency."""
        store = Store(self.clock, capacity=40)
        limiters = [self.limiter, *(Limiter(self.clock, MOST, wait_timeout=1000) for _ in range(3))]
        for limiter in limiters:
            Readers(self.clock, limiter, store, 40)
        self.run_for(22)
        sizes = [self.slots(limiter) for limiter in limiters]
        self.assertTrue(40 <= sum(sizes) <= 90, sizes)
        self.assertGreater(min(sizes), FLOOR)
        self.assertLess(self.minimum(), 1.7 * LATENCY)


class ChangeTests(ConcurrencyCase):
    """A store whose latency changes by itself."""

    def test_slow_minute(self) -> None:
        """While a store takes twice as long, the size shrinks once, and is back before the minute is over; what was a minimum
        before is one again afterwards."""
        store = Store(self.clock)
        Readers(self.clock, self.limiter, store, 50)
        self.run_for(5)
        store.latency = 2 * LATENCY
        sizes = []
        for _ in range(60):
            self.run_for(1)
            sizes.append(self.slots())
        self.assertGreaterEqual(min(sizes), 25)
        self.assertLess(sizes[1], 50)
        self.assertGreaterEqual(min(sizes[15:]), 50)
        self.assertLess(abs(self.minimum() - 2 * LATENCY), LATENCY / 4)
        store.latency = LATENCY
        self.run_for(3)
        self.assertLess(abs(self.minimum() - LATENCY), LATENCY / 8)
        self.assertGreater(self.answers(store, 5), 0.95 * 50 / LATENCY)

    def test_pause(self) -> None:
        """A store that stands still for a second has its slots back a few seconds later."""
        store = Store(self.clock)
        Readers(self.clock, self.limiter, store, 50)
        self.run_for(5)
        store.latency = 1.0
        self.run_for(1)
        store.latency = LATENCY
        self.run_for(5)
        self.assertGreaterEqual(self.slots(), 50)


class MeasurementTests(SynchronousTestCase):
    """One round, by hand."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.load = (START, 1)
        self.grown = 0
        self.concurrency = Concurrency(self.clock, MOST, lambda: self.load, partial(setattr, self, "grown", 1))

    def round(self, seconds: float) -> None:
        """As many requests as there are slots, which take *seconds*."""
        samples = [self.concurrency.sample() for _ in range(max(16, self.concurrency.size))]
        for sample in samples:
            sample.sent()
        self.clock.advance(seconds)
        for sample in samples:
            sample.answered()

    def test_first_rounds(self) -> None:
        """After the first round there is one with half of the slots; then the size may grow, and waiting requests are sent."""
        self.round(0.1)
        self.assertEqual(self.concurrency.size, START // 2)
        self.round(0.08)
        self.assertEqual((self.concurrency.size, self.grown), (START, 1))
        self.round(0.08)
        self.assertEqual(self.concurrency.size, START + 4)

    def test_connecting(self) -> None:
        """The time that it takes to connect is not part of a request's latency."""
        sample = self.concurrency.sample()
        self.clock.advance(3)
        self.assertEqual(sample.sent(), None)
        self.assertEqual(sample._sent, 3)

    def test_light_load(self) -> None:
        """Requests of a store that has little to do are not measured: they say nothing about many."""
        self.load = (START // 2 - 1, 0)
        self.round(0.1)
        self.round(0.1)
        self.assertEqual(self.concurrency.status(), {"slots": START, "minimum_latency_seconds": None})

    def test_earlier_requests(self) -> None:
        """Requests of an earlier round do not count in a later one: they met another load."""
        late = [self.concurrency.sample() for _ in range(30)]
        for sample in late:
            sample.sent()
        self.round(0.1)
        self.clock.advance(60)
        for sample in late:
            sample.answered()
        self.round(0.08)
        self.assertLess(self.concurrency.status()["minimum_latency_seconds"], 0.1)  # type: ignore[arg-type]
