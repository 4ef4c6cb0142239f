"""Frames cut out of a stored instance: some stores give a file whose frames they cannot tell apart.

Rules that this module keeps:

- The file is read to its end, for nothing that it gave is certain before; of what is not wanted, a little is kept.
- It is the instance that the metadata describe, or none of its frames counts.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Optional

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from twistedproxy.dicom.frame import Frame
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.part10 import BadPart10, Part10Stream
from twistedproxy.dicom.sniffing import may_be
from twistedproxy.origin.errors import OriginBadAnswer
from twistedproxy.origin.http.answers import as_stored, frame_uid
from twistedproxy.streams import ByteStream, StreamTooLong

KEPT = 16 << 20
"""Bytes of frames that nobody asked for and that are given all the same: they would need the whole file again."""


async def frames_in_file(
    stream: ByteStream, numbers: Collection[int], metadata: InstanceMetadata, limit: int, clock: IReactorTime
) -> dict[int, Frame]:
    """The frames *numbers* of the file in *stream*, which is closed then, and some others.

    *limit*: bytes of the file, and of its frames. Raises `StreamTooLong` beyond it, and `OriginBadAnswer`.
    """
    cut = _Cut(set(numbers), metadata, limit)
    try:
        size = 0
        while chunk := await stream.read():
            size += len(chunk)
            if size > limit:
                raise StreamTooLong(f"a file of more than {limit} bytes")
            for count, frames in enumerate(cut.parser.batches(chunk)):
                cut.take(frames)
                if count:  # a deflated file gives a lot for a little
                    await deferLater(clock, 0)
        cut.parser.finish()
    except BadPart10 as bad:
        raise OriginBadAnswer(f"the origin's file cannot be cut into frames: {bad}") from bad
    finally:
        stream.close()
    return cut.found


class _Cut:
    """What was found in a file so far."""

    def __init__(self, wanted: set[int], metadata: InstanceMetadata, limit: int) -> None:
        self.parser = Part10Stream()
        self.found: dict[int, Frame] = {}
        self._wanted = wanted
        self._metadata = metadata
        self._limit = self._left = limit
        self._spare = KEPT
        self._number = 0
        self._uid: Optional[str] = None

    def take(self, frames: list[bytes]) -> None:
        """The next *frames* of the file."""
        for data in frames:
            uid = self._uid = self._uid or self._checked()
            self._number += 1
            self._left -= len(data)
            if self._left < 0:
                raise StreamTooLong(f"frames of more than {self._limit} bytes")
            if data and not may_be(data, uid):
                raise OriginBadAnswer(f"a frame of the origin's file begins with {data[:16]!r}, as none in {uid} does")
            if self._number not in self._wanted:
                if self._spare < len(data):
                    continue
                self._spare -= len(data)
            self.found[self._number] = Frame(data, uid)

    def _checked(self) -> str:
        """The transfer syntax of the frames. Raises `OriginBadAnswer` where the file is another instance's."""
        found, uid, known = self.parser.metadata, self.parser.transfer_syntax, self._metadata.transfer_syntax
        assert found is not None and uid is not None, "there are frames only after they were read"
        if found.frames != self._metadata.frames:
            raise OriginBadAnswer(
                f"the origin's file has {found.frames} frames, its metadata say {self._metadata.frames}"
            )
        if known is not None and not as_stored(Frame(b"", frame_uid(uid)), known):
            raise OriginBadAnswer(f"the origin's file came as {uid}, stored it is {known}")
        return frame_uid(uid)
