"""Conditional and range requests (RFC 9110 sections 13 and 14) on answers whose bytes are known.

Rules kept here:
- a tag is strong and follows from the content type and the bytes alone, so every worker makes the same one;
- a header that cannot be read is treated as absent, as RFC 9110 asks; nothing here makes a 400.
"""

from __future__ import annotations

import hashlib
import re

import attrs

from twistedproxy.server.problems import range_not_satisfiable

_TAG = re.compile(rb'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')  # entity-tag, RFC 9110 section 8.8.3
_RANGE = re.compile(rb"[ \t]*bytes[ \t]*=[ \t]*([0-9]*)[ \t]*-[ \t]*([0-9]*)[ \t]*", re.IGNORECASE)
MAX_DIGITS = 4000  # of a position: int() refuses 4,300, and all of them lie past the end of everything


def entity_tag(content_type: bytes, digest: bytes) -> bytes:
    """The strong ETag, with its quotes, of an answer whose content has this `content_digest`."""
    return b'"%s"' % hashlib.blake2b(content_type, key=digest, digest_size=16).hexdigest().encode("ascii")


def matches_none(if_none_match: bytes | None, etag: bytes) -> bool:
    """Whether If-None-Match (lines joined by commas) names *etag* or is ``*``: then GET and HEAD get a 304.

    The comparison is weak (RFC 9110 section 13.1.2).
    """
    if if_none_match is None:
        return False
    if if_none_match == etag or if_none_match.strip() == b"*":
        return True
    return etag in _TAG.findall(if_none_match)


@attrs.frozen
class ByteRange:
    """A satisfiable range of *size* bytes: ``content[start:stop]``."""

    start: int
    stop: int
    size: int

    @property
    def content_range(self) -> bytes:
        """The Content-Range header of the 206 (RFC 9110 section 14.4)."""
        return b"bytes %d-%d/%d" % (self.start, self.stop - 1, self.size)


def requested_range(range_: bytes | None, if_range: bytes | None, etag: bytes, size: int) -> ByteRange | None:
    """The range to answer with 206, or None for the whole answer with 200.

    Whole: no Range, other units, several ranges (RFC 9110 section 14.2 lets a server ignore them), malformed ones,
    and an If-Range that is not exactly *etag* (a date never is: answers have no Last-Modified).
    Raises `Problem` 416 for a range that lies past the end.
    """
    if range_ is None or (if_range is not None and if_range.strip() != etag):
        return None
    match = _RANGE.fullmatch(range_)
    if match is None:
        return None
    first, last = (int(digits.lstrip(b"0")[:MAX_DIGITS] or 0) if digits else None for digits in match.groups())
    if first is None:
        if last is None:
            return None
        first, last = max(0, size - last) if last else size, None  # the last bytes; all where there are fewer
    if last is not None and last < first:
        return None
    if first >= size:
        raise range_not_satisfiable(size)
    return ByteRange(first, size if last is None else min(last + 1, size), size)
