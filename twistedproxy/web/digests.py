"""Digests of answers, made so that nobody else waits for them: those of large ones in a thread.

hashlib lets other threads run while it works; a millisecond for each MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from twisted.internet.threads import deferToThread

from twistedproxy.dicom.multipart_writer import MultipartBody, build, parts_digest
from twistedproxy.web.conditional import entity_tag

AT_ONCE = 8 << 20
"""Bytes of frames that are digested in the reactor's thread: 10 ms. To hand work to a thread costs 0.1 ms and a turn,
and lists of 100 frames come a fifth slower."""

PICTURE_AT_ONCE = 256 << 10
"""The same of a picture, 0.3 ms: larger ones are few, and take long to be made."""


async def tag_of(content_type: bytes, chunks: Sequence[bytes], at_once: int) -> bytes:
    """The `entity_tag` of an answer; of more than *at_once* bytes it is made in a thread."""
    if sum(map(len, chunks)) <= at_once:
        return entity_tag(content_type, chunks)
    return await deferToThread(entity_tag, content_type, chunks)


async def multipart_of(parts: Sequence[bytes], media_type: str, transfer_syntax: Optional[str]) -> MultipartBody:
    """The body that `build` makes of *parts*."""
    digest = None
    if sum(map(len, parts)) > AT_ONCE:
        digest = await deferToThread(parts_digest, parts, media_type, transfer_syntax)
    return build(parts, media_type, transfer_syntax, digest)
