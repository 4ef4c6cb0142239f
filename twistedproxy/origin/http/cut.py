"""Frames cut out of a stored instance: some stores give a file whose frames they cannot separate.

Rules that this module keeps:

- The file is read to its end, for nothing that it gave is certain before; a few frames that were not requested are kept.
- It is the instance that the metadata describe, or none of its frames counts.
- One file is read once at a time for one caller: a later request joins, and begins another read where its frames had passed.
- A request that is cancelled ends its own wait only; the read goes on for others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Union

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from twistedproxy.deferreds import Waiters
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.part10.stream import BadPart10, Part10Stream
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import Frame
from twistedproxy.origin.errors import OriginBadAnswer
from twistedproxy.origin.interface import Caller
from twistedproxy.streams import ByteStream, StreamTooLong

KEPT = 16 << 20
"""Bytes of frames that were not requested and are returned all the same: they would need the whole file again."""


class NoHelp(OriginBadAnswer):
    """The file came, and none of its frames is known to be the instance's."""


Open = Callable[[], Awaitable[ByteStream]]


class FileReads:
    """Reads files for callers. *limit*: bytes of one file, and of its frames."""

    def __init__(self, clock: IReactorTime, limit: int) -> None:
        self._clock = clock
        self._limit = limit
        self._running: dict[tuple[Instance, bytes], _Read] = {}

    async def frames(
        self, instance: Instance, caller: Caller, numbers: Collection[int], metadata: InstanceMetadata, open_file: Open
    ) -> Mapping[int, Frame]:
        """The frames *numbers* of *instance* out of the file that *open_file* opens for *caller*, and some others.

        Raises `StreamTooLong`, and the errors of `twistedproxy.origin.errors`.
        """
        key = (instance, caller.credential)
        while (read := self._running.get(key)) is not None:
            await read.wait(numbers)
            if read.found.keys() >= set(numbers):
                return read.found
        read = self._running[key] = _Read(Part10Stream(expected=(instance.uids, metadata)), self._limit)
        waiter = read.wait(numbers)
        read.reading = Deferred.fromCoroutine(read.run(open_file, self._clock))
        read.reading.addBoth(self._end, key, read)
        await waiter
        return read.found

    def _end(self, result: Union[Failure, None], key: tuple[Instance, bytes], read: _Read) -> None:
        del self._running[key]
        read.waiters.fire(result)


class _Read:
    """One read under way, what was found so far, and the requests that wait for it."""

    def __init__(self, parser: Part10Stream, limit: int) -> None:
        self.found: dict[int, Frame] = {}
        self._parser = parser
        self._limit = self._left = limit
        self._wanted: set[int] = set()
        self._spare = KEPT
        self.waiters: Waiters[None] = Waiters(self._give_up)
        self.reading: Deferred[None] = Deferred()

    def wait(self, numbers: Collection[int]) -> Deferred[None]:
        """Fires once the read has ended. *numbers* are kept if they have not passed yet."""
        self._wanted.update(numbers)
        return self.waiters.wait()

    def _give_up(self) -> None:
        self.reading.cancel()

    async def run(self, open_file: Open, clock: IReactorTime) -> None:
        """Read the file to its end. Raises `StreamTooLong`, `OriginBadAnswer`, and what opening it raises."""
        stream = await open_file()
        size = 0
        try:
            while chunk := await stream.read():
                size += len(chunk)
                if size > self._limit:
                    raise StreamTooLong(f"a file of more than {self._limit} bytes")
                for count, frames in enumerate(self._parser.batches(chunk)):
                    self._take(frames)
                    if count:  # a deflated file gives a lot for a little
                        await deferLater(clock, 0)
            self._parser.finish()
        except BadPart10 as bad:
            # Without a UID it may have been a page, and the next response the file.
            wrong = NoHelp if self._parser.uids[2] else OriginBadAnswer
            raise wrong(f"the origin's file cannot be cut into frames: {bad}") from bad
        finally:
            stream.close()

    def _take(self, frames: list[bytes]) -> None:
        first = self._parser.frames_given - len(frames) + 1
        for number, data in enumerate(frames, first):
            self._left -= len(data)
            if self._left < 0:
                raise StreamTooLong(f"frames of more than {self._limit} bytes")
            if number not in self._wanted:
                if self._spare < len(data):
                    continue
                self._spare -= len(data)
            self.found[number] = Frame(data, self._parser.frame_syntax)
