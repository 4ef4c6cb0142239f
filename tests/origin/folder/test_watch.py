"""When a folder is looked at. Time is a clock's; threads are run at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.slides import slide
from twistedproxy.origin.folder.watch import INTERVAL, MAX_SHARE, MIN_PAUSE, Watch


class AtOnce:
    """Threads that are none: each call takes *seconds* of the clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.seconds = 0.0
        self.calls = 0

    async def run(self, call: Callable[[], Any]) -> Any:
        self.calls += 1
        self.clock.rightNow += self.seconds  # no call of the clock is due meanwhile
        return call()

    run_long = run


class WatchTests(SynchronousTestCase):
    """Looks at a folder that nobody asked for, and those that somebody did."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.clock = Clock()
        self.threads = AtOnce(self.clock)
        self.watch = Watch(self.clock, str(self.folder), self.threads)  # type: ignore[arg-type]
        self.successResultOf(Deferred.fromCoroutine(self.watch.start()))

    def refresh(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.watch.refresh()))

    def test_again_and_again(self) -> None:
        """The folder is looked at after each interval."""
        slide(self.folder / "one.dcm", 1, 1, tile=16)
        self.assertEqual(self.watch.catalog.size, 0)
        self.clock.advance(INTERVAL)
        self.assertEqual(self.watch.catalog.size, 1)
        (self.folder / "one.dcm").unlink()
        self.clock.advance(INTERVAL)
        self.assertEqual(self.watch.catalog.size, 0)

    def test_slow_looks_are_seldom(self) -> None:
        """Where a look takes long, the next one waits until looking takes only its share of the time."""
        self.threads.seconds = 3.0
        self.clock.advance(INTERVAL)
        calls = self.threads.calls
        self.clock.advance(3.0 / MAX_SHARE - 0.1)
        self.assertEqual(self.threads.calls, calls)
        self.clock.advance(0.2)
        self.assertEqual(self.threads.calls, calls + 1)

    def test_asked_for(self) -> None:
        """A look can be asked for, but not right after another."""
        self.clock.advance(MIN_PAUSE)
        slide(self.folder / "one.dcm", 1, 1, tile=16)
        self.refresh()
        self.assertEqual(self.watch.catalog.size, 1)
        calls = self.threads.calls
        for _ in range(100):
            self.refresh()
        self.assertEqual(self.threads.calls, calls)

    def test_folder_gone_and_back(self) -> None:
        """Without its folder the index is empty; when it is back it is served again; it is told of once."""
        slide(self.folder / "one.dcm", 1, 1, tile=16)
        self.clock.advance(INTERVAL)
        aside = self.folder.with_name("aside")
        self.folder.rename(aside)
        for _ in range(3):
            self.clock.advance(INTERVAL)
        self.assertEqual(self.watch.catalog.size, 0)
        aside.rename(self.folder)
        self.clock.advance(INTERVAL)
        self.assertEqual(self.watch.catalog.size, 1)

    def test_stopped(self) -> None:
        """After the end nothing is left to happen."""
        self.successResultOf(Deferred.fromCoroutine(self.watch.stop()))
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.refresh()

    def test_changes_are_told(self) -> None:
        """Whoever keeps files open hears when files changed, and only then."""
        told: list[int] = []
        self.watch.on_change = lambda: told.append(self.watch.catalog.size)
        self.clock.advance(INTERVAL)
        slide(self.folder / "one.dcm", 1, 1, tile=16)
        self.clock.advance(INTERVAL)
        self.clock.advance(INTERVAL)
        self.assertEqual(told, [1])
