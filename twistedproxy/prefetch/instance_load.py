"""A stored instance, cut into frames as it arrives, and into the cache with them.

- Every frame is served from the cache long before the last byte has come; memory stays flat whatever the size.
- Frames are provisional until the stream has ended as it must: when it doesn't, all that were written are removed.
- The cache sets the pace: at most `BATCHES` batches wait for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Optional

import attrs
from twisted.internet.defer import Deferred

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.dicom.address import Instance
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.part10 import Part10Stream
from twistedproxy.frames.entries import frame_name, pack_frames
from twistedproxy.prefetch.jobs import Progress
from twistedproxy.streams import ByteStream

BATCH_BYTES = 512 * 1024
"""Frames that go to the cache together."""

BATCHES = 4
"""Batches on their way to the cache at once: the origin's next bytes come meanwhile."""


class LoadFailed(Exception):
    """A whole-instance load was given up, and what it wrote was removed. The text says why, and holds no secrets."""


@attrs.frozen
class Loaded:
    """What a load brought. *transfer_syntax* is the stored file's own."""

    frames: int
    bytes: int
    transfer_syntax: str


@attrs.define(eq=False)
class InstanceLoad:
    """One load of *instance*, written under *fence* for *seconds* (None: no expiry).

    *expected*: what the metadata said of it. *breathe* is awaited after each chunk, so that others get their turn.
    """

    cache: Cache
    instance: Instance
    fence: Fence
    seconds: Optional[float]
    expected: InstanceMetadata
    progress: Progress
    breathe: Callable[[], Optional[Awaitable[None]]] = lambda: None
    _written: int = 0
    _bytes: int = 0
    _batches: deque[Deferred[bool]] = attrs.field(factory=deque)

    async def run(self, stream: ByteStream) -> Loaded:
        """Load all of *stream*, and close it. Raises `LoadFailed`, and what broke the stream."""
        parser = Part10Stream()
        try:
            await self._load(stream, parser)
            parser.finish()
            self._check(parser)
        except BaseException as error:
            await self._take_back()
            if isinstance(error, ValueError):  # the file is not what it should be
                raise LoadFailed(str(error)) from error
            raise
        finally:
            stream.close()
        assert parser.transfer_syntax is not None
        return Loaded(self._written, self._bytes, parser.transfer_syntax)

    async def _load(self, stream: ByteStream, parser: Part10Stream) -> None:
        pending: list[bytes] = []
        size = 0
        while chunk := await stream.read():
            for frames in parser.batches(chunk):
                pending += frames
                size += sum(map(len, frames))
                if size >= BATCH_BYTES:
                    await self._write(pending, size, parser)
                    pending, size = [], 0
            breath = self.breathe()
            if breath is not None:
                await breath
        if pending:
            await self._write(pending, size, parser)
        while self._batches:
            await self._settled()

    async def _write(self, frames: list[bytes], size: int, parser: Part10Stream) -> None:
        if self._written == 0:
            self._check(parser)
        first = self._written + 1
        if self._written + len(frames) > self.expected.frames:
            raise LoadFailed(f"the file has more than the {self.expected.frames} frames that its metadata say")
        assert parser.transfer_syntax is not None
        entries = dict(
            zip(
                map(frame_name, range(first, first + len(frames))),
                pack_frames(frames, parser.transfer_syntax, prefetched=True),
            )
        )
        self._written += len(frames)
        self._bytes += size
        writing = self.cache.put_many(self.instance, self.fence, entries, self.seconds)
        self._batches.append(Deferred.fromCoroutine(writing))  # type: ignore[arg-type]
        while len(self._batches) >= BATCHES or (self._batches and self._batches[0].called):
            await self._settled()

    async def _settled(self) -> None:
        """Wait for the oldest batch."""
        if not await self._batches.popleft():
            raise LoadFailed("the cache did not take the frames")
        self.progress(self._written, self._bytes)

    def _check(self, parser: Part10Stream) -> None:
        """Whether the file is of the instance that the metadata describe."""
        found = parser.metadata
        if found is None:
            return
        if found.frames != self.expected.frames:
            raise LoadFailed(f"the file has {found.frames} frames, its metadata say {self.expected.frames}")
        known = self.expected.transfer_syntax
        if known is not None and parser.transfer_syntax != known:
            raise LoadFailed(f"the file came as {parser.transfer_syntax}, stored it is {known}")

    async def _take_back(self) -> None:
        """Remove every frame that was written, once all writes have come to their end."""
        while self._batches:
            batch = self._batches.popleft()
            batch.addErrback(lambda _: False)
            await batch
        if self._written:
            names = [frame_name(number) for number in range(1, self._written + 1)]
            await self.cache.remove(self.instance, names)
