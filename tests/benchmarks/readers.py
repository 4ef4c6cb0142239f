"""A reader who follows a path of `tests.benchmarks.viewing`, and what came of it: the same for the model and for real servers.

Rules:
- six tiles at a time, as browsers open connections to one host; a tile's time runs from when it is sent, a screen's from its
  first tile to its last;
- nothing here reads a clock: `Clock` is the model's or the real one;
- why a tile waited is said once, by `cause`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Optional, Protocol

import attrs

from tests.benchmarks.measuring import percentile
from tests.benchmarks.viewing import Screen

CONNECTIONS = 6  # that browsers open to one HTTP/1.1 server
WAITED = 0.05  # seconds; a tile that takes longer is seen to come

FIRST = "first screen"
AHEAD = "ahead of the load"
ZOOM = "zoom"
JUMP = "jump"
SOON = "load nearly there"
CAUSES = (FIRST, AHEAD, ZOOM, JUMP, SOON)

Item = tuple[str, int]
"""Name of an instance, and the number of a frame."""


class Clock(Protocol):
    """Seconds, and calls later on."""

    def now(self) -> float: ...
    def later(self, seconds: float, call: Callable[[], None]) -> None: ...


@attrs.frozen
class Answer:
    """How a tile came. *hit*: from the cache. *soon*: a load was about to bring it (None: not known,
    then it counts so where at least half of its screen's tiles were hits). *wrong*: not as stored."""

    hit: bool = False
    soon: Optional[bool] = None
    wrong: bool = False


Done = Callable[[Answer], None]

Ask = Callable[[str, Item, Done], None]
"""Asks for one tile as the reader of that name, and calls back."""


@attrs.frozen
class Tile:
    """One tile that came after so many *seconds*. *cause*: why it waited; None if it did not."""

    seconds: float
    hit: bool
    cause: Optional[str]


@attrs.define(eq=False)
class _Running:
    """A screen whose tiles are being asked for."""

    screen: Screen
    started: float
    left: int
    tiles: list[tuple[float, Answer]] = attrs.Factory(list)


def _queue(screens: Iterable[Screen]) -> deque[Screen]:
    return deque(screens)


@attrs.define(eq=False)
class Reader:
    """Follows *screens* from *start* (seconds) on. *finished* once they are all complete."""

    name: str
    screens: deque[Screen] = attrs.field(converter=_queue)
    clock: Clock
    ask: Ask
    start: float = 0.0
    tiles: list[Tile] = attrs.Factory(list)
    durations: list[float] = attrs.Factory(list)
    wrong: int = 0
    wanted: set[Item] = attrs.Factory(set)
    _waiting: deque[tuple[_Running, Item]] = attrs.Factory(deque)
    _open: int = 0
    _screens_open: int = 0

    def begin(self) -> Reader:
        self.clock.later(self.start, self._move)
        return self

    @property
    def finished(self) -> bool:
        return not self.screens and not self._screens_open

    def _move(self) -> None:
        """Look at the next screen."""
        if not self.screens:
            return
        screen = self.screens.popleft()
        running = _Running(screen, self.clock.now(), len(screen.frames))
        self._screens_open += 1
        self._waiting.extend((running, (screen.level.name, number)) for number in screen.frames)
        if not screen.waits:
            self.clock.later(screen.dwell, self._move)
        if not running.left:
            self._complete(running)
        self._send()

    def _send(self) -> None:
        while self._waiting and self._open < CONNECTIONS:
            running, item = self._waiting.popleft()
            self._open += 1
            self.wanted.add(item)
            self.ask(self.name, item, _Answered(self, running, self.clock.now()))

    def came(self, running: _Running, sent: float, answer: Answer) -> None:
        """One tile is there."""
        self._open -= 1
        self.wrong += answer.wrong
        running.tiles.append((self.clock.now() - sent, answer))
        running.left -= 1
        if not running.left:
            self._complete(running)
        self._send()

    def _complete(self, running: _Running) -> None:
        self._screens_open -= 1
        near = 2 * sum(answer.hit for _, answer in running.tiles) >= len(running.tiles)
        for seconds, answer in running.tiles:
            soon = near if answer.soon is None else answer.soon
            why = cause(running.screen, soon) if seconds > WAITED else None
            self.tiles.append(Tile(seconds, answer.hit, why))
        if running.tiles:
            self.durations.append(self.clock.now() - running.started)
        if running.screen.waits:
            self.clock.later(running.screen.dwell, self._move)


@attrs.frozen
class _Answered:
    """Takes the answer to one tile to its reader."""

    reader: Reader
    running: _Running
    sent: float

    def __call__(self, answer: Answer) -> None:
        self.reader.came(self.running, self.sent, answer)


def cause(screen: Screen, soon: bool) -> str:
    """Why a tile of *screen* waited. *soon*: a load was about to bring it."""
    if screen.first:
        return FIRST
    if soon:
        return SOON
    if screen.move in ("zoom", "overview"):
        return ZOOM
    return JUMP if screen.move in ("jump", "return") else AHEAD


@attrs.frozen
class Outcome:
    """What came of some readings. Bytes are of frames: *read* from the store, *useful* to somebody, each counted once."""

    tiles: list[Tile]
    screens: list[float]
    read: float = 0
    useful: float = 0
    wrong: int = 0
    shares: Sequence[float] = ()
    """Of tiles that waited, of each reader."""
    seconds: float = 0.0
    """From the beginning of the first reading to the end of the last."""

    @classmethod
    def of(
        cls, readers: Iterable[Reader], read: float, size: Callable[[Item], int], seconds: float = 0.0
    ) -> Outcome:  # fmt: skip
        readers = list(readers)
        wanted = set[Item]().union(*(reader.wanted for reader in readers))
        shares = [sum(tile.cause is not None for tile in one.tiles) / max(1, len(one.tiles)) for one in readers]
        return cls(
            [tile for reader in readers for tile in reader.tiles],
            [seconds for reader in readers for seconds in reader.durations],
            read,
            sum(map(size, wanted)),
            sum(reader.wrong for reader in readers),
            shares,
            seconds,
        )

    @classmethod
    def pooled(cls, outcomes: Sequence[Outcome]) -> Outcome:
        """All of *outcomes* together."""
        return cls(
            [tile for one in outcomes for tile in one.tiles],
            [seconds for one in outcomes for seconds in one.screens],
            sum(one.read for one in outcomes),
            sum(one.useful for one in outcomes),
            sum(one.wrong for one in outcomes),
            [share for one in outcomes for share in one.shares],
            sum(one.seconds for one in outcomes),
        )

    @property
    def waited(self) -> float:
        """Share of the tiles that took longer than 50 ms."""
        return sum(tile.cause is not None for tile in self.tiles) / max(1, len(self.tiles))

    def row(self, runs: int = 1) -> list[str]:
        """Cells below `HEADS`; bytes are those of one run of *runs*."""
        causes = Counter(tile.cause for tile in self.tiles)
        return [
            f"{self.waited:.1%}",
            *(f"{causes[one] / max(1, len(self.tiles)):.1%}" for one in CAUSES),
            *(f"{percentile(self.screens or [0.0], share) * 1000:,.0f}" for share in (0.5, 0.95)),
            f"{self.read / runs / 1e6:,.0f}",
            f"{self.read / max(1, self.useful):.1f}",
        ]


HEADS = ("over 50 ms", *CAUSES, "screen p50 ms", "p95 ms", "MB read", "for each useful")
