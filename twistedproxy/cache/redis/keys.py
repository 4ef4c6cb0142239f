"""Names of things on servers of the Redis protocol: spread over the nodes of a cluster, and the same on a single server.

Rules kept here:
- A key is ``tp2`` + kind + ``{tag}`` + name. Only the tag decides on the hash slot, and with it on the node (Redis Cluster
  specification, "Hash tags"). No tag has a ``}``, so the first one is the tag's own whatever bytes a name holds.
- The frames of an instance go by blocks of 16: the 10,000 of a slide lie evenly on all nodes, and those of one screen on few
  (blocks of 64 lie unevenly). The block is part of the tag. All else that is kept of an instance goes with its first block.
- The generations of a study, of all its series and instances have one tag: a reader finds them with one command, and an
  invalidation ends them with one node. The root's generation has its own.
- A command that names several keys names only such with one tag.

2 is the version of this layout: what others wrote is not seen.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable, Sequence
from functools import lru_cache

import attrs

from twistedproxy.cache.interface import FRAME
from twistedproxy.cache.keys import KNOWN_INSTANCES, digest_of, scope_parts
from twistedproxy.dicom.resource import Instance, Scope

SLOTS = 16384
"""Hash slots of a cluster."""

OURS = b"tp*"
"""The pattern of all keys, of all layouts."""


_ENTRY = b"tp2f{"
"""How keys of entries begin."""


def slot_of(key: bytes) -> int:
    """The hash slot of *key*, of any kind: CRC-16/XMODEM of its tag, or of the whole key."""
    start = key.find(b"{") + 1
    end = key.find(b"}", start) if start else 0
    return crc_hqx(key[start:end] if end > start else key, 0) % SLOTS


def block_of(name: bytes) -> bytes:
    """The block of an entry or claim: of a frame its number without the last hexadecimal digit, of all else the first."""
    return name[1:-1] if name[:1] == FRAME else b""


@attrs.frozen
class RedisKeys:
    """The beginnings of all keys below one instance, and its four generation keys (root first)."""

    _entry: bytes
    _claim: bytes
    generations: tuple[bytes, ...]

    def entry(self, name: bytes) -> bytes:
        """The key of one entry."""
        return self.entries((name,))[0]

    def entries(self, names: Iterable[bytes]) -> list[bytes]:
        """Entry keys of *names*."""
        start, first = self._entry, self._entry + b"}"
        return [start + name[1:-1] + b"}" + name if name[:1] == FRAME else first + name for name in names]

    def claims(self, names: Iterable[bytes]) -> list[bytes]:
        """Claim keys of *names*."""
        start = self._claim
        return [b"%b%b}%b" % (start, block_of(name), name) for name in names]


def entry_name(key: bytes) -> bytes:
    """The name of the entry whose key this is; empty for a key of another kind."""
    return key.partition(b"}")[2] if key.startswith(_ENTRY) else b""


@lru_cache(maxsize=KNOWN_INSTANCES)
def redis_keys(instance: Instance) -> RedisKeys:
    """The keys of *instance*. Cached: a reader asks once for each frame."""
    digest = digest_of((instance.place, *instance.uids))
    parts = (instance.store, *instance.uids)
    generations = tuple(_generation(parts[:length]) for length in range(1, len(parts) + 1))
    return RedisKeys(_ENTRY + digest, b"tp2c{" + digest, generations)


def ended_keys(scope: Scope) -> list[bytes]:
    """The generation keys that end with *scope*. ValueError where a level is named below one that is not."""
    return [_generation(parts) for parts in scope_parts(scope)]


def own_key(kind: bytes, tag: int) -> bytes:
    """A key of a server's own: a mark (``r``), a probe (``p``)."""
    return b"tp2%b{%d}" % (kind, tag)


def by_tag(keys: Iterable[bytes]) -> list[list[bytes]]:
    """*keys* in lists that one command may name."""
    groups: dict[bytes, list[bytes]] = {}
    for key in keys:
        groups.setdefault(key[: key.index(b"}")], []).append(key)
    return list(groups.values())


def _generation(parts: Sequence[str]) -> bytes:
    start = b"tp2g{%b}" % digest_of(parts[:2])
    return start + digest_of(parts) if len(parts) > 2 else start
