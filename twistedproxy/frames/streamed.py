"""A long list of frames, piece by piece: memory holds two pieces, however long the list is.

- One piece is being sent while the next is read; nothing is read further ahead.
- Each piece is one reading of the cache and, where that lacks some, one fetch of those, shared as all fetches are.
- All pieces are of one generation of the instance: who forgets it meanwhile ends the answer.
- What was told of sizes is kept, or the answer breaks off.

Which answers are read whole and which in pieces, and that there is memory for either before anything is read.

- One frame, and a list that is short whatever its frames are like, is read as ever: in one round trip.
- Of a longer list, and of a frame that may be large, the cache is asked for sizes first. Small frames make a short list all
  the same.
- A long list begins when all that can be known of it beforehand is in order: the grant, that each number exists, the sum
  of the sizes that are known, and the first piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Optional, Union

import attrs
from twisted.internet.defer import Deferred

from twistedproxy.dicom.frame import Frame
from twistedproxy.frames.entries import Sizes, cached_sizes, expected, most
from twistedproxy.frames.grants import Grant
from twistedproxy.frames.read_through import HUGE, AnswerTooLarge, FrameAnswer, FrameReader, Wanted
from twistedproxy.system.memory_budget import Held

SURELY_SHORT = 32 << 20
"""Bytes of pixels in a list that is read whole without more ado: about 3 MB as lossy frames. 170 frames of 256 x 256."""

MAYBE_LARGE = 8 << 20
"""Bytes of pixels in one frame whose size the cache is asked for before it is read: 1,672 x 1,672 in color."""

SHORT = 8 << 20
"""Bytes of a list that is read whole: it has a length and a validator then."""

ATTEMPTS = 2
"""How often a list is begun, where the instance was changed while its first piece was read."""


def bytes_of(frames: Sequence[Frame]) -> int:
    """Bytes of *frames* together."""
    return sum([len(frame.data) for frame in frames])


@attrs.define(eq=False)
class ListReader:
    """Reads lists of frames for callers, as long as they may be."""

    reader: FrameReader

    async def read(self, wanted: Wanted, held: Held) -> Union[FrameAnswer, FramePieces]:
        """Answer *wanted*: whole, or in pieces of which the first was read. *held* has what memory holds of it.

        Raises what `FrameReader.read` does, and `NoRoom`.
        """
        grant = self.reader.access.known(wanted.caller, wanted.instance)
        count = len(wanted.numbers)
        if grant is None:
            grant, _ = await self.reader.granted(wanted.origin, wanted.instance, wanted.caller, [])
        pixels = most(grant.metadata)
        if count > 1 and count * pixels > SURELY_SHORT:
            return await self._long(wanted, held)
        if count > 1:
            await held.take(count * expected(grant.metadata))
        elif pixels > MAYBE_LARGE:
            sizes = await cached_sizes(self.reader.cache, wanted.instance, wanted.numbers)
            guess = pixels if pixels > HUGE else expected(grant.metadata)  # of huge ones none may be larger than that
            await held.take(sizes.of.get(wanted.numbers[0], guess))
        return await self._whole(wanted, held)

    async def _whole(self, wanted: Wanted, held: Held) -> FrameAnswer:
        return await held.read(lambda: self.reader.read(wanted), lambda answer: bytes_of(answer.frames))

    async def _long(self, wanted: Wanted, held: Held) -> Union[FrameAnswer, FramePieces]:
        attempt = 1
        while True:
            grant, reading = await self.reader.granted(wanted.origin, wanted.instance, wanted.caller, [])
            self.reader.check(wanted, grant.metadata)
            numbers = () if wanted.fresh else tuple(dict.fromkeys(wanted.numbers))
            sizes = await cached_sizes(self.reader.cache, wanted.instance, numbers)
            if sizes.fence != reading.fence:  # forgotten in between, or the cache failed: nothing is known
                sizes = Sizes(reading.fence, {}, ())
            known = sum([sizes.of.get(number, 0) for number in wanted.numbers])
            if known > self.reader.max_answer:
                raise AnswerTooLarge(self.reader.too_large())
            missing = [number for number in wanted.numbers if number not in sizes.of]
            guess = known // (len(wanted.numbers) - len(missing)) if known else expected(grant.metadata)
            if known + guess * len(missing) <= SHORT:
                await held.take(known + guess * len(missing))
                return await self._whole(wanted, held)
            if not held.size:
                await held.take(2 * max(PIECE, guess, *sizes.of.values()))
            pieces = FramePieces(self.reader, wanted, grant, sizes, guess)
            try:
                await pieces.begin()
            except AnswerBroken:
                attempt += 1
                if attempt > ATTEMPTS:
                    raise
                continue
            self.reader.tell(wanted, pieces.answer)
            return pieces


PIECE = 2 << 20
"""Bytes of one piece: of 1, 2, 4 and 8 MB all were as fast within a few percent."""

PIECE_FRAMES = 128
"""Frames of one piece: what the cache is asked for at once, and a store by one request or some side by side."""


class AnswerBroken(Exception):
    """An answer that has begun cannot be ended as it was begun."""


@attrs.define(eq=False)
class FramePieces:
    """The frames of *wanted*, for a caller with *grant*. *sizes*: what is known beforehand; *guess*: bytes of any other
    frame."""

    reader: FrameReader
    wanted: Wanted
    grant: Grant
    sizes: Sizes
    guess: int
    answer: FrameAnswer = attrs.field(init=False)
    """What can be told once the first piece is there: one frame, and the counts of the whole list as they will be."""
    _at: int = attrs.field(init=False, default=0)
    _read: int = attrs.field(init=False, default=0)
    _others: list[int] = attrs.field(init=False, factory=list)
    _coming: Optional[Deferred[FrameAnswer]] = attrs.field(init=False, default=None)
    _first: Optional[FrameAnswer] = attrs.field(init=False, default=None)

    async def begin(self) -> None:
        """Have the first piece ready. Raises what `FrameReader.read` does, and `AnswerBroken`."""
        self._first = await self._load()
        fetched = len(set(self.wanted.numbers)) - len(self.sizes.of) - self._first.shared
        self.answer = attrs.evolve(
            self._first,
            frames=self._first.frames[:1],
            cached=len(self.sizes.of),
            fetched=max(0, fetched),
            prefetched=self.sizes.prefetched,
        )

    async def read(self) -> Sequence[Frame]:
        """The next piece; nothing once all were read. Raises as `begin`."""
        answer, self._first = self._first, None
        if answer is None:
            coming = self._coming or self._start()
            if coming is None:
                return ()
            answer = await coming
        self._coming = self._start()
        return answer.frames

    def close(self) -> None:
        """Read no more. Harmless when repeated."""
        self._at = len(self.wanted.numbers)
        coming, self._coming, self._first = self._coming, None, None
        if coming is not None:
            coming.addErrback(lambda _: None)
            coming.cancel()

    @property
    def frame_sizes(self) -> Optional[Sequence[int]]:
        """Bytes of all frames in the order asked for, where they are known."""
        sizes = [self.sizes.of.get(number) for number in self.wanted.numbers]
        return None if None in sizes else [size for size in sizes if size is not None]

    def _start(self) -> Optional[Deferred[FrameAnswer]]:
        return Deferred.fromCoroutine(self._load()) if self._at < len(self.wanted.numbers) else None

    async def _load(self) -> FrameAnswer:
        numbers = self._next()
        answer = await self.reader.more(attrs.evolve(self.wanted, numbers=numbers), self.grant, self.sizes.fence)
        if answer.fence != self.sizes.fence:
            raise AnswerBroken("the instance was changed")
        for number, frame in zip(numbers, answer.frames):
            size = len(frame.data)
            known = self.sizes.of.get(number)
            if known is None:
                self._others.append(size)
            elif known != size:
                raise AnswerBroken(f"frame {number} has {size} bytes and had {known}")
            self._read += size
        if self._read > self.reader.max_answer:
            raise AnswerTooLarge(self.reader.too_large())
        return answer

    def _next(self) -> tuple[int, ...]:
        """The numbers of the next piece."""
        guess = sum(self._others) // len(self._others) if self._others else self.guess
        left = self.wanted.numbers[self._at : self._at + PIECE_FRAMES]
        numbers = tuple(_fitting(left, (self.sizes.of.get(number, guess) for number in left)))
        self._at += len(numbers)
        return numbers


def _fitting(numbers: Sequence[int], sizes: Iterable[int]) -> Iterator[int]:
    """As many of *numbers* as have `PIECE` bytes together; at least one."""
    together = 0
    for number, size in zip(numbers, sizes):
        together += size
        if together > PIECE and together != size:
            return
        yield number
