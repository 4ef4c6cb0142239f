"""The names and the layout of what is kept below an instance in the cache.

One byte tells the kind, so that kinds never meet: a frame, the metadata, a grant, a rendered answer.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Optional

from twistedproxy.dicom.address import validate_uid
from twistedproxy.dicom.frame import Frame
from twistedproxy.origin.interface import Caller

METADATA = b"m"

_EXPIRY = struct.Struct("!d")


class BadEntry(ValueError):
    """The bytes of an entry are not what this version writes."""


def frame_name(number: int) -> bytes:
    """The name of frame *number* (from 1): 2 to 5 bytes."""
    return b"f%x" % number


def grant_name(caller: Caller) -> bytes:
    """The name of a caller's grant. It holds the keyed digest of the credential, never the credential."""
    return b"g" + caller.credential


def rendered_name(what: bytes) -> bytes:
    """The name of a rendered answer; *what* is all that it depends on (resource, query, media type)."""
    return b"r" + hashlib.blake2b(what, digest_size=16).digest()


_PREFETCHED = 0x80
"""Set in the first byte of a frame that was loaded before anybody asked. A UID has at most 64 characters."""


def pack_frame(frame: Frame) -> bytes:
    """One length byte, the transfer syntax UID, the frame's bytes."""
    return pack_frames([frame.data], frame.transfer_syntax)[0]


def pack_frames(frames: Sequence[bytes], transfer_syntax: str, prefetched: bool = False) -> list[bytes]:
    """Many frames of one instance, like `pack_frame`. Raises ValueError for what is no UID."""
    uid = validate_uid(transfer_syntax).encode("ascii")  # of a longer one the length would be read wrongly
    head = b"%c%s" % (len(uid) | (_PREFETCHED if prefetched else 0), uid)
    return [head + frame for frame in frames]


def was_prefetched(value: bytes) -> bool:
    """Whether a frame's entry was written before anybody asked for it."""
    return bool(value) and value[0] >= _PREFETCHED


def unpack_frame(value: bytes) -> Frame:
    """The frame that `pack_frame` packed."""
    end = 1 + (value[0] & ~_PREFETCHED) if value else 1
    if len(value) < end:
        raise BadEntry("a frame's entry is too short")
    return Frame(value[end:], _uid(value[1:end]))


_uids: dict[bytes, str] = {}


def _uid(raw: bytes) -> str:
    uid = _uids.get(raw)
    if uid is None:
        try:
            uid = raw.decode("ascii")
        except UnicodeDecodeError:
            raise BadEntry("a frame's entry names no transfer syntax") from None
        if len(_uids) < 256:  # there are some sixty transfer syntaxes
            _uids[raw] = uid
    return uid


def pack_grant(expires: float) -> bytes:
    """*expires*: seconds since the epoch, so that hosts can share it."""
    return _EXPIRY.pack(expires)


def unpack_grant(value: bytes) -> Optional[float]:
    """When the grant ends, in seconds since the epoch; None for bytes that are no grant."""
    return float(_EXPIRY.unpack(value)[0]) if len(value) == _EXPIRY.size else None
