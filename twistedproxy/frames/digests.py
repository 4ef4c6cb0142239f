"""Digests of answers, made so that nobody else waits for them: those of large ones in a thread.

hashlib lets other threads run while it works; a millisecond for each MB. A single picture brings its own along: the child that
made the one made the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from twisted.internet.threads import deferToThread

from twistedproxy.dicom.multipart_writer import MultipartBody, build, parts_digest
from twistedproxy.digest import content_digest

AT_ONCE = 8 << 20
"""Bytes of frames that are digested in the reactor's thread: 10 ms. To hand work to a thread costs 0.1 ms and a turn,
and lists of 100 frames come a fifth slower."""


async def digest_of(content: bytes) -> bytes:
    """The `content_digest` of one frame or picture."""
    if len(content) <= AT_ONCE:
        return content_digest([content])
    return await deferToThread(content_digest, [content])


async def multipart_of(parts: Sequence[bytes], media_type: str, transfer_syntax: Optional[str]) -> MultipartBody:
    """The body that `build` makes of *parts*."""
    digest = None
    if sum(map(len, parts)) > AT_ONCE:
        digest = await deferToThread(parts_digest, parts, media_type, transfer_syntax)
    return build(parts, media_type, transfer_syntax, digest)
