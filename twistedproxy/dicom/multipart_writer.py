"""Writing multipart/related bodies, in the form that all known clients read.

Rules that this file keeps:

- A body that is made whole: the same parts give the same bytes, boundary included: ETag and Range depend on it.
- Letter case, quotes and line ends are those of the answer's specification: some clients compare strings.
- The parts' bytes are not copied.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Sequence

import attrs

from twistedproxy.dicom.resource import validate_uid

DIGEST_BYTES = 16
_MEDIA_TYPE = re.compile(r"[a-z0-9.+-]+/[a-z0-9.+-]+")


@attrs.frozen
class MultipartBody:
    """A body that is ready to send: *chunks* in order, *length* bytes together.

    *digest*: 32 hexadecimal digits that follow from the parts alone: equal digests, equal bodies.
    """

    content_type: bytes
    chunks: list[bytes]
    length: int
    digest: str


@functools.lru_cache(maxsize=256)
def part_content_type(media_type: str, transfer_syntax: str | None) -> str:
    """The Content-Type of one frame: ``image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50``, the UID unquoted.

    Raises ValueError for what must not stand in a header.
    """
    if not _MEDIA_TYPE.fullmatch(media_type):
        raise ValueError(f"{media_type[:80]!r} is not a media type")
    return media_type if transfer_syntax is None else f"{media_type}; transfer-syntax={validate_uid(transfer_syntax)}"


def build(
    parts: Sequence[bytes], media_type: str, transfer_syntax: str | None, digest: str | None = None
) -> MultipartBody:
    """Make one body of *parts*, all of one type. Raises ValueError for no parts or a bad type.

    *digest*: what `parts_digest` has made of them already.
    """
    if not parts:
        raise ValueError("a multipart body must have a part")
    digest = digest or parts_digest(parts, media_type, transfer_syntax)
    # The parts are not searched for the boundary: a part that holds it would hold 128 bits of a
    # cryptographic digest of itself, which can neither be made nor happen.
    form = MultipartForm.of(media_type, transfer_syntax, digest)
    chunks: list[bytes] = []
    for part in parts:
        chunks += (form.head(len(part), not chunks), part)
    chunks.append(form.end)
    return MultipartBody(form.content_type, chunks, sum(map(len, chunks)), digest)


@attrs.frozen
class MultipartForm:
    """All of a body but its parts' bytes, for writing these one after the other."""

    content_type: bytes
    end: bytes
    _head: str

    @classmethod
    def of(cls, media_type: str, transfer_syntax: str | None, boundary: str) -> MultipartForm:
        """The form of a body with *boundary*, which must not stand in any part. Raises ValueError for a bad type."""
        part_type = part_content_type(media_type, transfer_syntax)
        syntax = "" if transfer_syntax is None else f"; transfer-syntax={transfer_syntax}"
        content_type = f'multipart/related; type="{media_type}"{syntax}; boundary={boundary}'
        head = f"\r\n--{boundary}\r\nContent-Type: {part_type}\r\nContent-Length: "
        return cls(content_type.encode("ascii"), f"\r\n--{boundary}--\r\n".encode("ascii"), head)

    def head(self, size: int, first: bool) -> bytes:
        """What stands before a part of *size* bytes."""
        return f"{self._head[2:] if first else self._head}{size}\r\n\r\n".encode("ascii")

    def length(self, sizes: Sequence[int]) -> int:
        """The bytes of a whole body whose parts have *sizes*."""
        digits = sum([len(str(size)) for size in sizes])
        return sum(sizes) + digits + len(sizes) * (len(self._head) + 4) - 2 + len(self.end)


def content_digest(chunks: Iterable[bytes]) -> bytes:
    """`DIGEST_BYTES` bytes that follow from the bytes of *chunks*, however they are cut (BLAKE2b, RFC 7693).

    Linear; about 1 ms for each MB.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for chunk in chunks:
        digest.update(chunk)
    return digest.digest()


def parts_digest(parts: Sequence[bytes], media_type: str, transfer_syntax: str | None) -> str:
    """32 hexadecimal digits that follow from the parts and their type.

    BLAKE2b: 1.1 ms for 100 parts of 15 kB here, on any processor; SHA-256 takes 0.7 ms with instructions
    of its own and several times as long without.
    """
    part_type = part_content_type(media_type, transfer_syntax)
    digest = hashlib.blake2b(f"{part_type} {[len(part) for part in parts]}".encode("ascii"), digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
