"""What a store's answer holds: frames, an instance's file. All or `OriginBadAnswer`.

Rules that this module keeps:

- Frames count only when the closing delimiter and exactly the number of parts asked for were seen; a single part only
  when its length or its chunks show that it is whole. Where these show it, a delimiter at the very end will close, too.
- A frame's bytes must be what its label says: a codestream begins as such, native frames have the size of the image.
  What is only labelled so (a page, a problem in JSON, a part of a frame) is no frame.
- A frame's transfer syntax is what its part says; else the instance's, if the bytes can be in it; else what the bytes show.
- Parts come in the order that was asked for, or in the one that their Content-Locations name.
- A frame's bytes stay as they came, a pad byte at their end included.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import AsyncIterator, Sequence
from typing import Optional
from urllib.parse import urljoin, urlsplit

from twistedproxy.dicom.media_types import MediaType
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.multipart import (
    BadMultipart,
    End,
    MultipartParser,
    Part,
    PartCollector,
    PartData,
    PartStart,
)
from twistedproxy.dicom.resource import InvalidUID, validate_uid
from twistedproxy.dicom.sniffing import SNIFFED_BYTES, sniff
from twistedproxy.dicom.transfer_syntaxes import (
    ENCAPSULATED_UNCOMPRESSED,
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    OCTET_STREAM,
    Frame,
    canonical_media_type,
    frame_uid,
    is_native,
    may_be,
    media_type_of,
    uids_of,
)
from twistedproxy.origin import interface
from twistedproxy.origin.errors import NotAsStored, OriginBadAnswer
from twistedproxy.origin.interface import OriginResponse, first
from twistedproxy.streams import ByteStream, Gathered, StreamTooLong, YieldedStream

PART_OVERHEAD = 1024  # bytes of delimiter and headers that a part may add to the limit: stores send about 200
_ONE_FRAME = re.compile(r"/frames/([0-9]{1,10})/?$")  # frame numbers are IS: at most 2 ** 31 - 1 (PS3.5 section 6.2)
DICOM_TYPES = frozenset({"application/dicom", OCTET_STREAM})


class Budget:
    """Bytes that the answers to one call may still have, together."""

    def __init__(self, limit: Optional[int], frames: int) -> None:
        self._limit = math.inf if limit is None else limit
        self._left = self._limit + PART_OVERHEAD * (frames + 1)

    def spend(self, count: int) -> None:
        """Count bytes that came. Raises `StreamTooLong` once there are too many."""
        self._left -= count
        if self._left < 0:
            raise StreamTooLong(f"more than {self._limit} bytes")

    def check(self, frames: Sequence[Frame]) -> None:
        """The frames themselves, without what surrounded them."""
        if sum(len(frame.data) for frame in frames) > self._limit:
            raise StreamTooLong(f"more than {self._limit} bytes")


def content_type(answer: OriginResponse) -> MediaType:
    """The Content-Type of an answer. Raises `OriginBadAnswer` if there is none, or if the answer is partial."""
    if first(answer.headers, b"content-range") is not None:
        raise OriginBadAnswer("the origin's response has a Content-Range: it is partial")
    media_type = interface.media_type_of(answer.headers)
    if media_type is None:
        raise OriginBadAnswer("the origin's response has no valid Content-Type")
    return media_type


class TooFewFrames(OriginBadAnswer):
    """The answer is whole, and has fewer frames than were asked for."""


async def read_frames(
    answer: OriginResponse, target: str, numbers: Sequence[int], metadata: InstanceMetadata, budget: Budget
) -> dict[int, Frame]:
    """The frames of an answer to a request of *target* for *numbers*. *metadata*: what is known of the instance."""
    count, frames, locations = len(numbers), [], []
    try:
        media_type = content_type(answer)
        async for part in _parts(answer, media_type, count, budget):
            frames.append(_frame(part, media_type, metadata))
            locations.append(part.headers.get("content-location", ""))
    except BadMultipart as bad:
        raise OriginBadAnswer(f"the origin's multipart response is malformed: {bad}") from bad
    finally:
        answer.body.close()
    if len(frames) > count:
        raise OriginBadAnswer(f"the origin sent more than the {count} requested frames")
    if len(frames) < count:
        raise TooFewFrames(f"the origin sent {len(frames)} of {count} frames")
    return dict(zip(_numbered(locations, target, numbers), frames))


async def _parts(answer: OriginResponse, outer: MediaType, count: int, budget: Budget) -> AsyncIterator[Part]:
    """The parts of an answer as they come; an answer that is not multipart is one part itself."""
    if outer.is_multipart:
        # One part more than asked for is enough to know that the answer is wrong.
        collector = PartCollector(outer.boundary, count + 1)
        while chunk := await answer.body.read():
            budget.spend(len(chunk))
            for part in collector.feed(chunk):
                yield part
        for part in collector.close(answer.framed()):
            yield part
        return
    _frame_type(outer.part_type)  # a page for people need not be read
    gathered = Gathered()
    async for chunk in _framed(answer):
        budget.spend(len(chunk))
        gathered.add(chunk)
    data = gathered.whole()
    if not data:
        raise OriginBadAnswer("the origin sent an empty frame")
    location = first(answer.headers, b"content-location") or b""
    yield Part({"content-location": location.decode("latin-1")}, data)


def _numbered(locations: Sequence[str], target: str, numbers: Sequence[int]) -> Sequence[int]:
    """The numbers of the frames whose parts have these Content-Locations (RFC 9110 section 8.7): *numbers*, or those in the
    order that they say. Raises `OriginBadAnswer` where they say that the frames are others."""
    said = [_number_in(location, target) for location in locations]
    if all(one is None or one == number for one, number in zip(said, numbers)):
        return numbers
    found = [one for one in said if one is not None]
    if len(found) < len(said) or sorted(found) != sorted(numbers):
        listed = ", ".join("none" if one is None else str(one) for one in said)
        raise OriginBadAnswer(
            f"the origin was asked for the frames {', '.join(map(str, numbers))}; Content-Location of its parts: {listed}"
        )
    return found


def _number_in(location: str, target: str) -> Optional[int]:
    """The frame that a Content-Location names, None where it names none: a list, bulk data, something of the store's own."""
    if not location:
        return None
    try:
        match = _ONE_FRAME.search(urlsplit(urljoin(target, location)).path)
    except ValueError:
        return None
    return int(match.group(1)) if match else None


def _frame(part: Part, outer: MediaType, metadata: InstanceMetadata) -> Frame:
    """The frame in a *part* of an answer of type *outer*. Raises `OriginBadAnswer`."""
    stored, data = metadata.transfer_syntax, part.data
    kind, uid = _label(part.headers.get("content-type", ""), outer.part_type, outer.transfer_syntax, stored)
    if data:
        uid = uid or _shown(data, kind, stored)
        _check(data, uid, metadata)
        return Frame(data, uid)
    # A tile that was never scanned may be stored as a frame without a byte; all else that is empty is a failure.
    uid = uid or stored
    if uid is None or is_native(uid) or not metadata.is_tiled:
        raise OriginBadAnswer("the origin sent an empty frame")
    return Frame(b"", _uid(uid))


def _check(data: bytes, uid: str, metadata: InstanceMetadata) -> None:
    """Whether *data* can be a frame in transfer syntax *uid*."""
    if not may_be(data, uid):
        raise OriginBadAnswer(f"the origin sent {data[:20]!r}… for a frame in {uid}, which is not {media_type_of(uid)}")
    native, stored = is_native(uid), metadata.transfer_syntax
    if native and stored is not None and not is_native(stored):
        return  # it is not as stored, whatever its length, and another dialect may bring what is
    lengths = metadata.native_lengths if native or uid == ENCAPSULATED_UNCOMPRESSED else ()
    if lengths and len(data) not in lengths:
        raise OriginBadAnswer(f"the origin sent a frame of {len(data)} bytes in {uid}; expected {min(lengths)}")


@functools.lru_cache(maxsize=64)
def _label(
    said: str, outer_type: Optional[str], outer_syntax: Optional[str], stored: Optional[str]
) -> tuple[str, Optional[str]]:
    """The type of a part that bears the type *said*, and the transfer syntax that its frame is labelled with, as far as the
    part, the answer around it or the instance, *stored* in one, say that. Nearly all parts say the same."""
    part_type, part_syntax = outer_type, None
    if (media_type := Part({"content-type": said}, b"").media_type) is not None:
        part_type, part_syntax = media_type.part_type, media_type.transfer_syntax
    kind = _frame_type(part_type)
    uid = next((uid for uid in (part_syntax, outer_syntax) if uid and uid != "*"), None)
    if uid is None and stored is not None and media_type_of(stored) == kind:
        uid = frame_uid(stored)
    return kind, None if uid is None else _uid(uid)


def _shown(data: bytes, kind: str, stored: Optional[str]) -> str:
    """The transfer syntax that a frame's bytes show, where it is not stated."""
    shown = sniff(data[:SNIFFED_BYTES])
    if shown is not None:
        return stored if stored is not None and media_type_of(stored) == media_type_of(shown) else shown
    if kind == OCTET_STREAM:
        return EXPLICIT_VR_LITTLE_ENDIAN  # not stored so, or not known: bytes without a signature are native ones
    if kind.startswith("video/"):
        raise NotAsStored("the origin sent a video instead of a frame")
    raise OriginBadAnswer("the origin does not state the transfer syntax of its frames")


def _uid(uid: str) -> str:
    try:
        # A frame labelled as big endian, against PS3.18 section 8.7.3, is so.
        return validate_uid(uid if uid == EXPLICIT_VR_BIG_ENDIAN else frame_uid(uid))
    except InvalidUID as bad:
        raise OriginBadAnswer(f"the origin sent a frame with an invalid transfer syntax: {bad}") from bad


def _frame_type(kind: Optional[str]) -> str:
    """The canonical name of *kind*, the type of a frame's part. Raises `OriginBadAnswer` if frames have no such type."""
    if kind in (None, "", "*/*", "application/*", "image/*"):
        return OCTET_STREAM
    kind = canonical_media_type(str(kind))
    if not uids_of(kind):
        raise OriginBadAnswer(f"the origin sent {kind[:80]} instead of frames")
    return kind


def instance_file(answer: OriginResponse) -> ByteStream:
    """The DICOM file in an answer, unwrapped as it comes; `read` raises `OriginBadAnswer` at the end of what is not whole."""
    media_type = content_type(answer)
    kind = media_type.part_type and canonical_media_type(media_type.part_type)
    if kind is not None and kind not in ("*/*", *DICOM_TYPES):
        raise OriginBadAnswer(f"the origin sent {kind[:80]} instead of a DICOM file")
    if kind is None and not media_type.is_multipart:
        raise OriginBadAnswer("the origin did not send a DICOM file")
    chunks = _only_part(answer, media_type.boundary) if media_type.is_multipart else _framed(answer)
    return YieldedStream(chunks, answer.body)


async def _framed(answer: OriginResponse) -> AsyncIterator[bytes]:
    """The bytes of an answer that shows where it ends."""
    while chunk := await answer.body.read():
        yield chunk
    if not answer.framed():
        raise OriginBadAnswer("the origin's response has neither a length nor chunks")


async def _only_part(answer: OriginResponse, boundary: Optional[bytes]) -> AsyncIterator[bytes]:
    """The bytes of the only part of an answer."""
    chunk, parts = b"more", 0
    try:
        parser = MultipartParser(boundary)
        while chunk:
            chunk = await answer.body.read()
            for event in parser.feed(chunk) if chunk else parser.close(answer.framed()):
                if isinstance(event, PartData):
                    yield event.data
                elif isinstance(event, PartStart):
                    parts += 1
                    _check_file(Part(event.headers, b"").media_type, parts)
                elif isinstance(event, End) and not parts:
                    raise OriginBadAnswer("the origin's response holds no instance")
    except BadMultipart as bad:
        raise OriginBadAnswer(f"the origin's instance is incomplete: {bad}") from bad
    finally:
        answer.body.close()


def _check_file(media_type: Optional[MediaType], parts: int) -> None:
    if parts > 1:
        raise OriginBadAnswer("the origin sent more than one instance")
    if media_type is not None and canonical_media_type(media_type.type) not in DICOM_TYPES:
        raise OriginBadAnswer(f"the origin sent {media_type.type[:80]} instead of a DICOM file")
