"""Entries of the cache below an instance: their names, their layout, the sizes of frames, and digests of answers.

Rules:
- The first byte of a name is the kind, so that kinds never meet: a frame, the metadata, a grant, a rendered picture, an
  answer that describes instances.
- It stands for the layout, too: a change of the layout changes the name, so that no version reads, or counts as loaded,
  what another one wrote.
- Frames, and pictures that were rendered here, hold the time at which they end in the cache, by the writer's clock. On a host
  whose clock is behind, what is kept elsewhere outlives its entry by as much, and by no more than the time that entries have:
  hosts that share a cache keep their clocks together, as grants need it, too.
- Digests of large answers are made in a thread (hashlib releases the GIL; 1 ms for each MB).
"""

from __future__ import annotations

import functools
import hashlib
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Optional, cast

import attrs
from twisted.internet.threads import deferToThread

from twistedproxy.cache.interface import LARGE, Cache, Value
from twistedproxy.cache.keys import EXPIRY, PREFETCHED, frame_start
from twistedproxy.dicom.json_events import BadMetadata
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.multipart_writer import DIGEST_BYTES, content_digest
from twistedproxy.dicom.resource import MAX_UID_LENGTH, Instance, validate_uid
from twistedproxy.dicom.transfer_syntaxes import Frame, lookup
from twistedproxy.origin.interface import Caller, Headers
from twistedproxy.series.members import Member, pack_members, unpack_members

AT_ONCE = 8 << 20
"""Bytes of frames that are digested in the reactor's thread: 10 ms. Handing work to a thread costs 0.1 ms and a turn, and
makes lists of 100 frames a fifth slower."""


async def digests_of(contents: Sequence[bytes]) -> list[bytes]:
    """The `content_digest` of each frame or picture."""
    if sum(map(len, contents)) <= AT_ONCE:
        return _digests(contents)
    return await deferToThread(_digests, contents)


def _digests(contents: Sequence[bytes]) -> list[bytes]:
    return [content_digest([content]) for content in contents]


METADATA = b"m"


REFERENCE = b"d"
"""The name of the metadata that an instance had when the first of it was cached, and of when that was."""


def pack_reference(now: float, metadata: InstanceMetadata) -> bytes:
    """The time (8 bytes, seconds since the epoch), the metadata."""
    return EXPIRY.pack(now) + metadata.to_bytes()


def unpack_reference(value: bytes) -> Optional[tuple[float, InstanceMetadata]]:
    """What `pack_reference` packed; None for anything else."""
    try:
        return float(EXPIRY.unpack_from(value)[0]), InstanceMetadata.from_bytes(value[EXPIRY.size :])
    except (struct.error, BadMetadata):
        return None


class BadEntry(ValueError):
    """The bytes of an entry are not what this version writes."""


def frame_name(number: int) -> bytes:
    """The name of frame *number* (from 1): 2 to 5 bytes. (``f``: frames without their expiry.)"""
    return b"F%x" % number


def grant_name(caller: Caller) -> bytes:
    """The name of a caller's grant. It holds the keyed digest of the credential, never the credential."""
    return b"g" + caller.credential


def rendered_name(what: bytes) -> bytes:
    """The name of a rendered answer; *what* is all that it depends on (resource, query, media type)."""
    return b"R" + hashlib.blake2b(what, digest_size=16).digest()


def series_name(caller: Caller) -> bytes:
    """The name of what the origin answered a caller who asked for a series: below `Instance.of_series`."""
    return b"s" + caller.credential


def pack_series(expires: float, members: Iterable[Member]) -> bytes:
    """When the proof ends (8 bytes, seconds since the epoch), and the instances that were named."""
    return EXPIRY.pack(expires) + pack_members(members)


def unpack_series(value: bytes) -> Optional[tuple[float, Mapping[str, Member]]]:
    """What `pack_series` packed; None for anything else."""
    try:
        return float(EXPIRY.unpack_from(value)[0]), unpack_members(value[EXPIRY.size :])
    except (struct.error, BadMetadata):
        return None


AFTER_EXPIRY = _LENGTH = EXPIRY.size
_UID = _LENGTH + 1
"""Where a frame's entry has the length of the UID, and the UID."""


def expiry(now: float, seconds: Optional[float]) -> float:
    """When an entry ends that is written *now*, or later, for *seconds*; infinity where that is None.

    To be taken before the entry is written: then it never says later than the cache does.
    """
    return math.inf if seconds is None else now + seconds


def pack_frame(frame: Frame, expires: float, prefetched: bool = False) -> Value:
    """The expiry (8 bytes), one length byte, the transfer syntax UID, the frame's bytes. *expires*: see `expiry`."""
    return pack_frames([frame.data], frame.transfer_syntax, expires, prefetched)[0]


def pack_frames(frames: Sequence[bytes], transfer_syntax: str, expires: float, prefetched: bool = False) -> list[Value]:
    """Many frames of one instance, like `pack_frame`. Raises ValueError for what is no UID."""
    uid = validate_uid(transfer_syntax).encode("ascii")  # of a longer one the length would be read wrongly
    head = b"%s%c%s" % (EXPIRY.pack(expires), len(uid) | (PREFETCHED if prefetched else 0), uid)
    return [(head, frame) for frame in frames]


def expires_of(value: bytes) -> float:
    """When a frame's entry ends, as its writer saw it: seconds since the epoch, or infinity."""
    if len(value) < EXPIRY.size:
        raise BadEntry("an entry is too short for its expiry")
    return float(EXPIRY.unpack_from(value)[0])


def was_prefetched(value: bytes) -> bool:
    """Whether a frame's entry was written ahead of any request."""
    return len(value) > _LENGTH and value[_LENGTH] >= PREFETCHED


def unpack_frame(value: bytes) -> Frame:
    """The frame that `pack_frame` packed. That of a large one is a view of *value*: not copied."""
    end = frame_start(value)
    if len(value) < end:
        raise BadEntry("a frame's entry is too short")
    return Frame(_rest(value, end), _uid(value[_UID:end]))


def frame_heads(transfer_syntax: str) -> tuple[bytes, bytes, int]:
    """What entries of frames in a transfer syntax have from `AFTER_EXPIRY` on: those that were asked for, those that were loaded ahead
    of any request; and where the bytes of the frame begin."""
    uid = transfer_syntax.encode("ascii")
    return b"%c%b" % (len(uid), uid), b"%c%b" % (len(uid) | PREFETCHED, uid), _UID + len(uid)


def _rest(value: bytes, start: int) -> bytes:
    return value[start:] if len(value) <= LARGE else cast(bytes, memoryview(value)[start:])


@functools.lru_cache(maxsize=256)  # there are some sixty transfer syntaxes
def _uid(raw: bytes) -> str:
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        raise BadEntry("a frame's entry names no transfer syntax") from None


PICTURE_HEAD = EXPIRY.size + DIGEST_BYTES
"""Bytes that a picture's entry has besides those of the picture."""


def pack_picture(picture: bytes, digest: bytes, expires: float) -> Value:
    """The expiry (8 bytes), the `content_digest` (16 bytes), the bytes of a picture that was made here. *expires*: see
    `expiry`. Raises ValueError for what is no digest."""
    if len(digest) != DIGEST_BYTES:  # the picture would be read from a wrong place
        raise ValueError("a picture's digest has another length")
    return EXPIRY.pack(expires) + digest, picture


def unpack_picture(value: bytes) -> tuple[bytes, bytes, float]:
    """The picture that `pack_picture` packed (that of a large entry is a view of *value*), its digest, and when it ends.
    Raises `BadEntry`."""
    if len(value) < PICTURE_HEAD:
        raise BadEntry("a picture's entry is too short")
    return _rest(value, PICTURE_HEAD), value[EXPIRY.size : PICTURE_HEAD], expires_of(value)


def pack_grant(expires: float) -> bytes:
    """*expires*: seconds since the epoch, so that hosts can share it."""
    return EXPIRY.pack(expires)


def unpack_grant(value: bytes) -> Optional[float]:
    """When the grant ends, in seconds since the epoch; None for bytes that are no grant."""
    return float(EXPIRY.unpack(value)[0]) if len(value) == EXPIRY.size else None


def content_name(digest: bytes) -> bytes:
    """The name of what a store answered that has this `content_digest`: one for all callers who got the same."""
    return b"D" + digest


def description_name(caller: Caller, url: bytes) -> bytes:
    """The name of the proof that the store gave *caller* a description. *url*: what it was asked for."""
    return b"q" + caller.credential + hashlib.blake2b(url, digest_size=16).digest()


def token_name(caller: Caller) -> bytes:
    """The name of a caller's token: a description is proved only while the token is the one that its proof names. Removing it
    revokes all of the caller's proofs below an instance at once, those too that are about to be written."""
    return b"t" + caller.credential


TOKEN_LENGTH = 8
_PROOF = struct.Struct(f"!d{TOKEN_LENGTH}s{DIGEST_BYTES}s")


@attrs.frozen
class DescriptionProof:
    """That the store gave a caller what has this `content_digest`, with these *headers*. It *expires* at a time in seconds since
    the epoch, and counts only beside the *token* that it names."""

    expires: float
    token: bytes
    digest: bytes
    headers: Headers

    def pack(self) -> bytes:
        """The expiry (8 bytes), the token (8), the digest (16), the headers, one a line."""
        lines = b"\n".join(name + b":" + value for name, value in self.headers)
        return _PROOF.pack(self.expires, self.token, self.digest) + lines

    @classmethod
    def unpack(cls, packed: bytes) -> Optional[DescriptionProof]:
        """What `pack` packed; None for anything else."""
        try:
            expires, token, digest = _PROOF.unpack_from(packed)
        except struct.error:
            return None
        fields = [line.partition(b":") for line in packed[_PROOF.size :].split(b"\n") if line]
        return cls(expires, token, digest, tuple((name, value) for name, _, value in fields))


COMPRESSED = 4
"""How many times smaller than its pixels a compressed frame is taken to be. Lossless ones are 2 to 3 times, lossy ones 8
to 20."""

UNKNOWN = 1 << 20
"""Bytes that a frame is taken to have of which nothing is known."""

LARGE_FRAME = 8 << 20
"""Bytes of pixels in one frame that is not read before there is memory for it: 1,672 x 1,672 in color."""

HUGE = 64 << 20
"""Bytes of frames of which a few would be all memory."""

MAX_FRAME = 512 << 20
"""Bytes of one frame requested alone: what the Redis protocol takes as one value."""


def frame_head(transfer_syntax: Optional[str]) -> int:
    """Bytes that a frame's entry has besides the frame; at most, where its transfer syntax is not known."""
    return _UID + (len(transfer_syntax) if transfer_syntax is not None else MAX_UID_LENGTH)


async def cached_bytes(cache: Cache, instance: Instance, names: Sequence[bytes], head: int) -> int:
    """Bytes of the entries *names* together, as often as each is named, less *head* bytes of each; without reading them."""
    heads = (await cache.heads(instance, list(dict.fromkeys(names)), 0)).entries
    return sum([heads[name].size - head for name in names if name in heads])


def most(metadata: InstanceMetadata) -> int:
    """Bytes that a frame hardly ever exceeds: those of its pixels."""
    return metadata.frame_length or metadata.rows * metadata.columns or UNKNOWN


def expected(metadata: InstanceMetadata) -> int:
    """Bytes that a frame probably has at most."""
    syntax = lookup(metadata.transfer_syntax)
    return most(metadata) if syntax is None or not syntax.encapsulated else max(1, most(metadata) // COMPRESSED)
