"""Names of things in the cache, and the layout of an entry's value.

Rules kept here:
- A key is ``tp`` + kind + ``{digest}`` + name. Servers of the Redis protocol have keys of their own, made of the same digests
  (`twistedproxy.cache.redis.keys`).
- An instance's entries go by its `place`, through whichever mount it was asked for; its generations go by its `store`, so
  that an invalidation reaches it below all paths of a host.
- Entries, claims and generations are different kinds: none is ever mistaken for another.
- An entry's value is its stamp (the fence it was written under, 8 bytes) and then its bytes.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import struct
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Optional, cast

import attrs

from twistedproxy.cache.interface import Fence
from twistedproxy.dicom.resource import Instance, Scope

FENCE_LENGTH = 8  # bytes; a late writer's stamp passes by chance once in 2**64
DIGEST_LENGTH = 15  # bytes: 20 base64 characters without padding, 120 bits against made-up collisions
TOKEN_LENGTH = 12  # bytes of randomness in a generation
KNOWN_INSTANCES = 4096  # whose keys stay computed: about 1 kB each

_PERSON = b"twistedproxy"


@attrs.frozen
class InstanceKeys:
    """The beginnings of all keys below one instance, and its four generation keys (root first)."""

    entry: bytes
    claim: bytes
    generations: tuple[bytes, ...]

    def entries(self, names: Sequence[bytes]) -> list[bytes]:
        """Entry keys of *names*."""
        entry = self.entry
        return [entry + name for name in names]

    def claims(self, names: Sequence[bytes]) -> list[bytes]:
        """Claim keys of *names*."""
        return [self.claim + name for name in names]


@lru_cache(maxsize=KNOWN_INSTANCES)
def instance_keys(instance: Instance) -> InstanceKeys:
    """The keys of *instance*. Cached: a reader asks once for each frame."""
    tag = _tag((instance.place, *instance.uids))
    parts = (instance.store, *instance.uids)
    return InstanceKeys(
        entry=b"tpf" + tag,
        claim=b"tpc" + tag,
        generations=tuple(_generation(parts[:length]) for length in range(1, len(parts) + 1)),
    )


def scope_keys(scope: Scope) -> tuple[bytes, ...]:
    """The generation keys that end with *scope*: see `scope_parts`."""
    return tuple(_generation(parts) for parts in scope_parts(scope))


def scope_parts(scope: Scope) -> list[tuple[str, ...]]:
    """The store and UIDs of the generations that end with *scope*: its own, and those of what is kept of the series and the study that
    it lies in (`Instance.of_series`, `Instance.of_study`). ValueError where a level is named below one that is not."""
    levels = (scope.study, scope.series, scope.sop)
    named = [level for level in levels if level is not None]
    if levels[: len(named)] != tuple(named):
        raise ValueError(f"{scope!r} names a level without the one above it")
    around = [(*named[:above], *named[above - 1 : above] * (3 - above)) for above in range(1, len(named))]
    return [(scope.store, *uids) for uids in (named, *around)]


def new_generation() -> bytes:
    """A random generation: never equal to one that was before, also when the server forgot that one."""
    return secrets.token_bytes(TOKEN_LENGTH)


def fence_of(generations: Sequence[Optional[bytes]]) -> Optional[Fence]:
    """The fence of present *generations*, or None where one is missing."""
    digest = hashlib.blake2b(digest_size=FENCE_LENGTH)
    for generation in generations:
        if generation is None:
            return None
        digest.update(b"%d:%b" % (len(generation), generation))
    return digest.digest()


def unstamp(fence: Fence, stored: bytes) -> Optional[bytes]:
    """The entry in a stored value, or None where it was written under another fence."""
    return stored[FENCE_LENGTH:] if stored.startswith(fence) else None


EXPIRY = struct.Struct(">d")
"""How a frame's entry begins: when it ends (seconds since the epoch), or infinity."""

PREFETCHED = 0x80
"""Set in the byte after it, where the frame was loaded ahead of any request. That byte is the length of the UID that follows: of at most
64 characters."""


def frame_start(entry: bytes) -> int:
    """Where the bytes of the frame begin in its *entry*; past the end of one that is too short."""
    uid = EXPIRY.size + 1
    return uid + (entry[uid - 1] & ~PREFETCHED) if len(entry) >= uid else uid


def split_frame(entry: bytes) -> tuple[bytes, bytes]:
    """A frame's *entry* in the pieces in which it is written: what stands before the frame, and the frame, which is not copied."""
    start = frame_start(entry)
    return entry[:start], cast(bytes, memoryview(entry)[start:])


LOADING = b"l"
"""The entry that an instance has while it is loaded: its frames may yet turn out wrong."""


def is_fact(name: bytes) -> bool:
    """Whether an entry is of a kind that is small and often written: grants, metadata, proofs of descriptions and what revokes them
    (`twistedproxy.frames.entries`)."""
    return name[:1] in (b"d", b"g", b"m", b"q", b"t", LOADING)


def read_outcome(names: Sequence[bytes], found: Collection[bytes]) -> str:
    """``hit`` (all of *names*), ``partial`` or ``miss``."""
    if len(found) >= len(set(names)):
        return "hit"
    return "partial" if found else "miss"


def _generation(parts: Sequence[str]) -> bytes:
    return b"tpg" + _tag(parts)


def _tag(parts: Sequence[str]) -> bytes:
    return b"{" + digest_of(parts) + b"}"


def digest_of(parts: Sequence[str]) -> bytes:
    """20 characters of base64url that stand for *parts*."""
    digest = hashlib.blake2b(digest_size=DIGEST_LENGTH, person=_PERSON)
    for part in parts:
        raw = part.encode("utf-8", "surrogateescape")
        digest.update(b"%d:%b" % (len(raw), raw))  # with its length: ("ab", "c") is not ("a", "bc")
    return base64.urlsafe_b64encode(digest.digest())
