"""The digest of an answer's content, which its ETag follows from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

DIGEST_BYTES = 16


def content_digest(chunks: Iterable[bytes]) -> bytes:
    """`DIGEST_BYTES` bytes that follow from the bytes of *chunks*, however they are cut (BLAKE2b, RFC 7693).

    Linear; about 1 ms for each MB.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for chunk in chunks:
        digest.update(chunk)
    return digest.digest()
