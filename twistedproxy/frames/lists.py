"""Which answers are read whole and which in pieces, and that there is memory for either before anything is read.

- One frame, and a list that is short whatever its frames are like, is read as ever: in one round trip.
- Of a longer list, and of a frame that may be large, the cache is asked for sizes first. Small frames make a short list all
  the same.
- A long list begins when all that can be known of it beforehand is in order: the grant, that each number exists, the sum
  of the sizes that are known, and the first piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import attrs

from twistedproxy.dicom.frame import Frame
from twistedproxy.frames.answer_memory import Held
from twistedproxy.frames.pieces import PIECE, AnswerBroken, FramePieces
from twistedproxy.frames.reader import HUGE, AnswerTooLarge, FrameAnswer, FrameReader, Wanted
from twistedproxy.frames.sizes import Sizes, cached_sizes, expected, most

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
