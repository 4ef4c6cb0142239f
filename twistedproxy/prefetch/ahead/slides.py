"""Slides, loaded where their readers look: frames around, further in the direction of movement, and the same place of the
neighbouring levels. When a slide is opened, its small levels: with the first tile, or before, with an ICC profile. Frames that follow
each other, as in a loop or a stack, are loaded like those around.

- It goes by frames that the origin was asked for, and by those loaded ahead that are asked for for the first time: around others it
  has been done.
- What levels there are is told by the series' metadata, as answered to that caller.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Optional, TypeVar

import attrs
from twisted.internet.interfaces import IReactorTime

from twistedproxy.cache.interface import Fence
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.entries import expected
from twistedproxy.frames.read_through import FrameReader, FrameRequest
from twistedproxy.frames.series_answers import SeriesAnswers
from twistedproxy.origin.errors import OriginError
from twistedproxy.prefetch.ahead.frame_queues import FrameQueues
from twistedproxy.prefetch.ahead.surroundings import (
    MARGIN,
    Gaze,
    Reach,
    around,
    edge,
    ordered,
    same_place,
    tiled_fully,
)
from twistedproxy.prefetch.regions import FrameGrid, Tiling
from twistedproxy.prefetch.runner import Occasion
from twistedproxy.series.knowledge import Pyramid
from twistedproxy.series.members import Member

MAX_REMEMBERED = 1000
"""Callers and instances, or series, that are remembered."""

READING_SECONDS = 30.0
"""How long a slide counts as being read after a frame of it was asked for."""

LOOK_AGAIN = 0.75
"""Frames by which a caller moves before other levels are thought of again."""

MOST_PLACES = 64
"""Frames of one request around which others are loaded: a screen. Who asks for more at once is no viewer."""

MAX_SMALL = 16
"""Small levels of a slide that are loaded when it is opened: real ones have five. Metadata can name any number."""

MAX_OVERVIEWS = 4
"""The same of its overviews and thumbnails."""

_Key = tuple[bytes, Instance]
_T = TypeVar("_T")


@attrs.frozen
class Seen(Occasion):
    """Frames *numbers* of the instance were asked for. *missed*: the origin was asked. *dear*: a frame costs the origin about as much
    as all of the instance, which is loaded whole. *loaded*: all of it was."""

    numbers: Sequence[int] = ()
    missed: bool = False
    dear: bool = False
    loaded: bool = False

    @property
    def credential(self) -> bytes:
        """Whose request it was."""
        return self.wanted.caller.credential


@attrs.define(eq=False)
class _View:
    """Where a caller looks in one instance. *looked*: where the gaze was when other levels were thought of; *placed*: by the UIDs of
    those levels, and the plane, the places around which they were loaded."""

    gaze: Gaze
    looked: Optional[tuple[float, float, float]] = None
    placed: dict[tuple[str, int], tuple[float, float]] = attrs.Factory(dict)

    def has_moved(self) -> bool:
        """Whether it is time to think of other levels; then not again for a while."""
        at = self.gaze.plane, self.gaze.row, self.gaze.column
        if self.looked is not None and math.dist(self.looked, at) < LOOK_AGAIN:
            return False
        self.looked = at
        return True


@attrs.define(eq=False)
class LookAhead:
    """Looks ahead for one worker. *block_pixels*: levels that a square of so many pixels a side covers are small; *least_frames*: that
    are loaded whole; *load_level* begins that."""

    reader: FrameReader
    answers: SeriesAnswers
    queues: FrameQueues
    clock: IReactorTime
    block_pixels: int
    least_frames: int
    load_level: Callable[[FrameRequest, InstanceMetadata, Fence], Awaitable[None]]
    _views: OrderedDict[_Key, _View] = attrs.field(init=False, factory=OrderedDict)
    _opened: OrderedDict[_Key, tuple[Fence, Mapping[str, Pyramid]]] = attrs.field(init=False, factory=OrderedDict)
    _read: OrderedDict[Instance, float] = attrs.field(init=False, factory=OrderedDict)

    def around(self, seen: Seen) -> bool:
        """Load what lies around frames that were asked for. Whether it is time for `beyond`."""
        grid = ordered(seen.metadata)
        if grid is None:
            return False
        self._note_read(seen.instance.of_series)
        numbers = seen.numbers[:MOST_PLACES]
        key, places = (seen.credential, seen.instance), [grid.place(number) for number in numbers]
        view = self._views.get(key)
        if view is None:
            view = _kept(self._views, key, _View(Gaze.at(grid, numbers[0])))
        reaches = [view.gaze.move(*place) for place in places]
        if seen.metadata.frames >= self.least_frames and not seen.dear and not seen.loaded:
            self._load_around(attrs.evolve(seen, numbers=numbers), grid, reaches)
        return grid.tiling is Tiling.FULL and view.has_moved()

    def _note_read(self, series: Instance) -> None:
        """*series* is being read; those that are not any more are forgotten: `slides` looks at all."""
        now = self.clock.seconds()
        self._read[series] = now
        self._read.move_to_end(series)
        while next(iter(self._read.values())) <= now - READING_SECONDS:
            self._read.popitem(last=False)

    def _load_around(self, seen: Seen, grid: FrameGrid, reaches: Sequence[Reach]) -> None:
        queue = self.queues.of(seen.wanted, seen.fence, seen.frame_bytes)
        if seen.missed:
            queue.missed(seen.numbers, self.clock.seconds())
        for number, reach in zip(seen.numbers, reaches):
            if not queue.known.issuperset(edge(grid, number, reach)):
                self.queues.add(queue, seen.wanted, around(grid, *grid.place(number), reach))

    def slides(self, instance: Instance, credential: bytes, frames: int) -> int:
        """The frames of the slide that *instance*, which has so many, is a level of, times the slides of its store that are being read."""
        series, now = instance.of_series, self.clock.seconds()
        _, pyramids = self._opened.get((credential, series), (None, {}))
        pyramid = pyramids.get(instance.sop)
        read = [
            1
            for one, at in self._read.items()
            if one.place == series.place and one != series and at > now - READING_SECONDS
        ]
        return (pyramid.frames if pyramid is not None else frames) * (1 + len(read))

    async def opened(self, wanted: FrameRequest) -> None:
        """A caller reads an ICC profile or the like of *wanted*'s instance, as viewers do before the first tile: open its slide, if the
        origin has told that caller what it is."""
        await self._open(wanted, ask=False, own="")

    async def beyond(self, seen: Seen) -> None:
        """Load what lies at other levels."""
        pyramid = await self._open(seen.wanted, ask=True, own=seen.instance.sop)
        if pyramid is not None and not seen.dear:
            await self._load_beside(seen, pyramid)

    async def _open(self, wanted: FrameRequest, ask: bool, own: str) -> Optional[Pyramid]:
        """The slide of *wanted*'s instance, if it is of one; *ask*: whether the origin may be asked. Once, its small levels are loaded,
        the smallest first, but not the one with UID *own*, and its pictures."""
        series = await self.answers.find(wanted.origin, wanted.instance, wanted.caller, ask=ask)
        pyramid = None if series is None else series.pyramids.get(wanted.instance.sop)
        if series is None or pyramid is None:
            return None
        key = wanted.caller.credential, wanted.instance.of_series
        before, _ = self._opened.get(key, (None, None))
        _kept(self._opened, key, (series.fence, series.pyramids))
        if before != series.fence:
            await self._load_small(wanted, pyramid, own)
        return pyramid

    async def _load_small(self, wanted: FrameRequest, pyramid: Pyramid, own: str) -> None:
        small = [one for one in reversed(pyramid.levels) if self._is_small(one)][:MAX_SMALL]
        for level in (*small, *filter(self._is_small, pyramid.overviews[:MAX_OVERVIEWS])):
            if level.sop == own:
                continue
            of_level, fence = await self._granted(wanted, level)
            if fence is None:
                continue
            if level.metadata.frames >= self.least_frames:
                await self.load_level(of_level, level.metadata, fence)
            else:
                queue = self.queues.of(of_level, fence, expected(level.metadata))
                self.queues.add(queue, of_level, range(1, level.metadata.frames + 1))

    def _is_small(self, level: Member) -> bool:
        facts, side = level.metadata, self.block_pixels
        return 0 < facts.rows <= side and 0 < facts.columns <= side and FrameGrid.of(facts).is_within(side)

    async def _load_beside(self, seen: Seen, pyramid: Pyramid) -> None:
        view = self._views.get((seen.credential, seen.instance))
        for level in pyramid.beside(seen.instance.sop):
            grid = tiled_fully(level.metadata)
            if view is None or grid is None or self._is_small(level):  # small ones are loaded whole
                continue
            place = same_place(view.gaze, seen.metadata, level.metadata)
            plane = view.gaze.plane if view.gaze.plane * grid.rows * grid.columns < grid.frames else 0
            before = view.placed.get((level.sop, plane))
            if before is not None and max(abs(place[0] - before[0]), abs(place[1] - before[1])) <= MARGIN / 2:
                continue
            view.placed[level.sop, plane] = place
            wanted, fence = await self._granted(seen.wanted, level)
            if fence is not None:
                queue = self.queues.of(wanted, fence, seen.frame_bytes)
                numbers = around(grid, plane, *place, Reach(MARGIN, MARGIN, MARGIN, MARGIN))
                self.queues.add(queue, wanted, numbers, looked_at=False)

    async def _granted(self, wanted: FrameRequest, level: Member) -> tuple[FrameRequest, Optional[Fence]]:
        """A request for frames of *level* by the caller of *wanted*, and the level's fence; None where the caller may not read it, or
        nothing can be cached."""
        of_level = FrameRequest(wanted.origin, attrs.evolve(wanted.instance, sop=level.sop), (1,), wanted.caller)
        try:
            _, reading = await self.reader.granted(of_level.origin, of_level.instance, of_level.caller)
        except OriginError:
            return of_level, None
        return of_level, reading.fence


def _kept(table: OrderedDict[_Key, _T], key: _Key, value: _T) -> _T:
    """Remember *value* in *table*, in the place of what was not used for longest."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > MAX_REMEMBERED:
        table.popitem(last=False)
    return value
