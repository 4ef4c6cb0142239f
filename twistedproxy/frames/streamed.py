"""Lists of frames that are too long to be held, read piece by piece while they are sent.

Rules:
- One piece is sent while the next one is read, and nothing is read further ahead: memory holds two pieces.
- A piece is an answer of the read-through: one reading of the cache, one fetch of what that lacks, for a caller with a grant.
- All pieces are of one generation of the instance: its invalidation ends the answer.
- A list begins when all that can be known beforehand is in order: the grant, that each number exists, memory for two
  pieces, and the first piece. The sizes of later frames are not known then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional, Union

import attrs
from twisted.internet.defer import Deferred, succeed

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.transfer_syntaxes import Frame
from twistedproxy.frames.entries import HUGE, LARGE_FRAME, expected
from twistedproxy.frames.read_through import FrameAnswer, FrameReader, FrameRequest, size_of
from twistedproxy.frames.side_by_side import SideBySide
from twistedproxy.system.memory_budget import Reservation

LONG = 32 << 20
"""Bytes of pixels in a list that is read whole: about 3 MB as lossy frames. 170 frames of 256 x 256 in color."""

PIECE = 2 << 20
"""Bytes of one piece: of 1, 2, 4 and 8 MB all were as fast within a few percent."""

PIECE_FRAMES = 128
"""Frames of one piece: what the cache is asked for at once, and a store by one request or some side by side."""


SMALLER = 4
"""How many times smaller than expected the frames of a piece are taken to be at most: those before them may be empty."""


class AnswerBroken(Exception):
    """An answer that has begun cannot be completed as it was begun."""


@attrs.define(eq=False)
class ListReader:
    """Reads frames for callers, as long and large as they may be. *long*: bytes of pixels; *piece*: bytes."""

    reader: FrameReader
    long: int = LONG
    piece: int = PIECE
    side_by_side: SideBySide = attrs.field(init=False)

    @side_by_side.default
    def _side_by_side(self) -> SideBySide:
        return SideBySide(self.reader)

    async def read(self, request: FrameRequest, held: Reservation) -> Union[FrameAnswer, FramePieces]:
        """Answer *request*: whole, or in pieces of which the first was read. *held* has what memory holds of it.

        Raises what `FrameReader.read` does, and `NoRoom`.
        """
        grant = self.reader.access.known(request.caller, request.instance)
        if grant is None:
            alone = await held.read(
                lambda: self.side_by_side.read(request), lambda answer: answer.size if answer else 0
            )
            if alone is not None:
                return alone
            grant, _ = await self.reader.granted(request.origin, request.instance, request.caller)
        count, each = len(request.numbers), expected(grant.metadata)
        if count > 1 and count * grant.most > self.long:
            self.reader.check(request, grant.metadata)
            await held.take(2 * max(self.piece, each))
            pieces = FramePieces(self.reader, request, each, self.piece)
            await pieces.begin()
            return pieces
        if count > 1 or grant.most > LARGE_FRAME:
            await held.take(grant.most if grant.most > HUGE else count * each)  # none of those may be larger
        return await held.read(lambda: self.reader.read(request), size_of)


@attrs.define(eq=False)
class FramePieces:
    """The frames of *request*. *each*: bytes that one has, as far as the metadata show; *piece*: bytes of one piece."""

    reader: FrameReader
    request: FrameRequest
    each: int
    piece: int
    answer: FrameAnswer = attrs.field(init=False)
    """One frame of the first piece, and the counts of what was read so far."""
    _at: int = attrs.field(init=False, default=0)
    _bytes: int = attrs.field(init=False, default=0)
    _coming: Optional[Deferred[FrameAnswer]] = attrs.field(init=False, default=None)

    async def begin(self) -> None:
        """Have the first piece ready. Raises what `FrameReader.read` does."""
        first = await self._load()
        self.answer = attrs.evolve(first, frames=first.frames[:1])
        # The whole list, whose rest is taken to be like the first piece.
        missing = len(set(self.request.numbers)) * first.from_origin // (first.cached + first.from_origin)
        self.reader.report(self.request, attrs.evolve(self.answer, fetched=missing, shared=0), early=missing > 0)
        self._coming = succeed(first)

    async def read(self) -> Sequence[Frame]:
        """The next piece; nothing once all were read. Raises what `FrameReader.read` does, and `AnswerBroken`."""
        if self._coming is None:
            return ()
        piece = await self._coming
        self._coming = Deferred.fromCoroutine(self._more()) if self._at < len(self.request.numbers) else None
        return piece.frames

    def close(self) -> None:
        """Read no more. Harmless when repeated."""
        self._at = len(self.request.numbers)
        coming, self._coming = self._coming, None
        if coming is not None:
            coming.addErrback(lambda _: None)
            coming.cancel()

    async def _more(self) -> FrameAnswer:
        so_far, changing = self.answer, self.reader.invalidation.is_pending(self.request.instance)
        if changing and so_far.fence is not None:  # what comes from the origin now may be of another generation
            raise AnswerBroken("the instance is being changed")
        piece = await self._load()
        if not self._is_same(piece):
            raise AnswerBroken("the instance was changed")
        if piece.prefetched and not piece.from_origin:
            self.reader.report(self.request, piece)
        self.answer = attrs.evolve(
            so_far,
            cached=so_far.cached + piece.cached,
            fetched=so_far.fetched + piece.fetched,
            shared=so_far.shared + piece.shared,
        )
        return piece

    def _is_same(self, piece: FrameAnswer) -> bool:
        """Whether *piece* is of the instance as the first piece was, as far as the cache could tell."""
        fence = self.answer.fence
        if fence is None or piece.fence == fence:
            return True
        return piece.fence is None and not self.reader.invalidation.is_pending(self.request.instance)

    async def _load(self) -> FrameAnswer:
        # A slide's margin is a fraction of its tissue: frames are not taken to be much smaller than they can be.
        each = max(self._bytes // self._at, self.each // SMALLER) if self._at else self.each
        end = self._at + max(1, min(PIECE_FRAMES, self.piece // max(1, each)))
        numbers = self.request.numbers[self._at : end]
        piece = await self.reader.read(attrs.evolve(self.request, numbers=numbers, check=self._check, prefetch=False))
        self._at += len(numbers)
        self._bytes += piece.size
        if self._bytes > self.reader.max_answer:
            raise self.reader.too_large()
        return piece

    def _check(self, metadata: InstanceMetadata) -> None:
        self.reader.check(self.request, metadata)
