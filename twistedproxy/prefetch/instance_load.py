"""A stored instance, cut into frames as it arrives, and into the cache with them.

- Every frame is served from the cache long before the last byte has come; memory stays flat whatever the size.
- Frames are provisional until the stream has ended as it must: when it doesn't, all that were written are removed.
- A file whose frames do not begin as its transfer syntax wants it is not loaded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Optional

import attrs
from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.part10 import AnotherCodec, NotByFrame, Part10Stream
from twistedproxy.dicom.sniffing import may_be
from twistedproxy.dicom.transfer_syntaxes import lookup
from twistedproxy.prefetch.errors import LoadFailed, NotLoadable, Withdrawn
from twistedproxy.prefetch.pace import BATCH_BYTES
from twistedproxy.prefetch.provisional import ProvisionalFrames
from twistedproxy.streams import ByteStream

BATCH_SECONDS = 0.1
"""How long frames of a slow origin wait for others to go with."""


@attrs.frozen
class Loaded:
    """What a load brought. *transfer_syntax* is the stored file's own."""

    frames: int
    bytes: int
    transfer_syntax: str


@attrs.define(eq=False)
class InstanceLoad:
    """One load into *frames*, which are new. *expected*: what the metadata said of the instance.

    *breathe* is called after each chunk; what it returns is awaited, so that others get their turn. *batch_bytes*: of
    frames that go to the cache together.
    """

    frames: ProvisionalFrames
    expected: InstanceMetadata
    clock: IReactorTime
    breathe: Callable[[], Optional[Awaitable[None]]] = lambda: None
    batch_bytes: Callable[[], int] = lambda: BATCH_BYTES

    async def run(self, stream: ByteStream) -> Loaded:
        """Load all of *stream*, and close it.

        Raises `LoadFailed`, and what broke the stream; `Withdrawn` once anything was written.
        """
        parser = Part10Stream()
        try:
            await self._load(stream, parser)
            parser.finish()
        except CancelledError:
            stream.close()
            if not await self.frames.take_back():
                raise Withdrawn("stopped, and the cache could not be told") from None
            raise
        except Exception as error:
            stream.close()
            await self.frames.take_back()
            if self.frames.written:
                raise Withdrawn(str(error) or type(error).__name__) from error
            if isinstance(error, (NotByFrame, AnotherCodec)):
                raise NotLoadable(str(error)) from error
            if isinstance(error, ValueError):  # the file is not what it should be
                raise LoadFailed(str(error)) from error
            raise
        stream.close()
        return Loaded(self.frames.written, self.frames.size, _transfer_syntax(parser))

    async def _load(self, stream: ByteStream, parser: Part10Stream) -> None:
        pending: list[bytes] = []
        size, due = 0, 0.0
        while chunk := await stream.read():
            for frames in parser.batches(chunk):
                if not frames:
                    continue
                if not pending:
                    due = self.clock.seconds() + BATCH_SECONDS
                pending += frames
                size += sum(map(len, frames))
                if size >= self.batch_bytes() or self.clock.seconds() >= due:
                    await self._write(pending, size, parser)
                    pending, size = [], 0
            breath = self.breathe()
            if breath is not None:
                await breath
        if pending:
            await self._write(pending, size, parser)
        await self.frames.finish()

    async def _write(self, frames: list[bytes], size: int, parser: Part10Stream) -> None:
        if not self.frames.written:
            self._check(parser)
        uid = _frame_syntax(_transfer_syntax(parser))
        for frame in frames:
            if frame and not may_be(frame, uid):
                raise NotLoadable(f"a frame begins with {frame[:16]!r}, as none in {uid} does")
        await self.frames.write(frames, size, uid)

    def _check(self, parser: Part10Stream) -> None:
        """Whether the file is of the instance that the metadata describe."""
        found, known = parser.metadata, self.expected.transfer_syntax
        if found is None:
            return
        if parser.uids != self.frames.instance.uids:
            raise NotLoadable("the file is not of the instance that was asked for")
        if found.frames != self.expected.frames:
            raise NotLoadable(f"the file has {found.frames} frames, its metadata say {self.expected.frames}")
        syntax = _transfer_syntax(parser)
        if known is not None and not _alike(syntax, known):
            raise NotLoadable(f"the file came as {syntax}, stored it is {known}")


def _transfer_syntax(parser: Part10Stream) -> str:
    assert parser.transfer_syntax is not None, "there are frames only after it was read"
    return parser.transfer_syntax


def _frame_syntax(uid: str) -> str:
    """What a single frame of a file in *uid* is labelled with."""
    syntax = lookup(uid)
    return uid if syntax is None else syntax.frame_uid


def _alike(uid: str, other: str) -> bool:
    """Whether a file in *uid* may hold what is known as *other*: the known one may be a frame's, and stores
    say little endian of native frames whatever the file has (PS3.18 section 8.7.3.5.2)."""
    return _frame_syntax(uid) == _frame_syntax(other) or (_is_native(uid) and _is_native(other))


def _is_native(uid: str) -> bool:
    syntax = lookup(uid)
    return syntax is not None and not syntax.encapsulated
