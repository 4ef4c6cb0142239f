"""Frames cut out of a stored instance: some stores give a file whose frames they cannot tell apart.

Rules that this module keeps:

- The file is read to its end, for nothing that it gave is certain before; of what is not wanted, a little is kept.
- It is the instance that the metadata describe, or none of its frames counts.
- One file is read once at a time for one caller: who comes later and wants frames that have not passed yet joins.
- Who leaves ends that wait only; the read goes on for others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from typing import Any, Optional

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from twistedproxy.dicom.frame import Frame
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.part10.stream import BadPart10, Part10Stream
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.sniffing import may_be
from twistedproxy.dicom.transfer_syntaxes import frame_uid, is_as_stored
from twistedproxy.origin.errors import OriginBadAnswer
from twistedproxy.origin.interface import Caller
from twistedproxy.streams import ByteStream, StreamTooLong

KEPT = 16 << 20
"""Bytes of frames that nobody asked for and that are given all the same: they would need the whole file again."""


class NoHelp(OriginBadAnswer):
    """The file came, and none of its frames can be told to be the instance's."""


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
        while (read := self._running.get(key)) is not None and not read.cut.may_still_want(numbers):
            await read.wait(failing=False)
        if read is None:
            cut = _Cut(instance.uids, metadata, self._limit)
            read = self._running[key] = _Read(cut)
            cut.wanted.update(numbers)
            waiter = read.wait()
            read.begin(cut.run(open_file, self._clock), lambda: self._running.pop(key, None))
            return await waiter
        read.cut.wanted.update(numbers)
        return await read.wait()


class _Read:
    """One read under way, and those who wait for it."""

    def __init__(self, cut: _Cut) -> None:
        self.cut = cut
        self._waiters: dict[Deferred[Mapping[int, Frame]], bool] = {}
        self._reading: Optional[Deferred[None]] = None

    def begin(self, work: Coroutine[Any, Any, None], ended: Callable[[], object]) -> None:
        self._reading = Deferred.fromCoroutine(work)
        self._reading.addBoth(self._end, ended)

    def wait(self, failing: bool = True) -> Deferred[Mapping[int, Frame]]:
        """The frames, once the read has ended. *failing*: whether its failure is the waiter's, too."""
        waiter: Deferred[Mapping[int, Frame]] = Deferred(self._leave)
        self._waiters[waiter] = failing
        return waiter

    def _leave(self, waiter: Deferred[Mapping[int, Frame]]) -> None:
        self._waiters.pop(waiter, None)
        if not any(self._waiters.values()) and self._reading is not None:
            self._reading.cancel()

    def _end(self, result: Optional[Failure], ended: Callable[[], object]) -> None:
        ended()
        waiters, self._waiters = self._waiters, {}
        for waiter, failing in waiters.items():
            if waiter.called:
                continue
            if failing and isinstance(result, Failure):
                waiter.errback(result)
            else:
                waiter.callback(self.cut.found)


class _Cut:
    """What was found in a file so far."""

    def __init__(self, uids: tuple[str, str, str], metadata: InstanceMetadata, limit: int) -> None:
        self.wanted: set[int] = set()
        self.found: dict[int, Frame] = {}
        self._parser = Part10Stream()
        self._uids = uids
        self._metadata = metadata
        self._limit = self._left = limit
        self._spare = KEPT
        self._number = 0
        self._uid: Optional[str] = None

    def may_still_want(self, numbers: Collection[int]) -> bool:
        """Whether all of *numbers* were kept, or are still to come."""
        return all(number > self._number or number in self.found for number in numbers)

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
            # What does not even say which instance it is may be a page, and the next answer the file.
            wrong = NoHelp if self._parser.uids == self._uids else OriginBadAnswer
            raise wrong(f"the origin's file cannot be cut into frames: {bad}") from bad
        finally:
            stream.close()

    def _take(self, frames: list[bytes]) -> None:
        for data in frames:
            uid = self._uid = self._uid or self._checked()
            self._number += 1
            self._left -= len(data)
            if self._left < 0:
                raise StreamTooLong(f"frames of more than {self._limit} bytes")
            if data and not may_be(data, uid):
                raise NoHelp(f"a frame of the origin's file begins with {data[:16]!r}, as none in {uid} does")
            if self._number not in self.wanted:
                if self._spare < len(data):
                    continue
                self._spare -= len(data)
            self.found[self._number] = Frame(data, uid)

    def _checked(self) -> str:
        """The transfer syntax of the frames. Raises `OriginBadAnswer` where the file is another instance's."""
        found, uid, known = self._parser.metadata, self._parser.transfer_syntax, self._metadata.transfer_syntax
        assert found is not None and uid is not None, "there are frames only after they were read"
        if self._parser.uids != self._uids:
            raise NoHelp("the origin's file is not of the instance that was asked for")
        if found.frames != self._metadata.frames:
            raise NoHelp(f"the origin's file has {found.frames} frames, its metadata say {self._metadata.frames}")
        if known is not None and not is_as_stored(uid, known):
            raise NoHelp(f"the origin's file came as {uid}, stored it is {known}")
        return frame_uid(uid)
