"""How many bytes frames have, before any of them is read: told by the cache, or guessed from the metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Optional

import attrs

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.dicom.address import Instance
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.transfer_syntaxes import lookup
from twistedproxy.frames.entries import BadEntry, frame_name, unpack_frame, was_prefetched

HEAD = 128
"""Bytes of an entry that hold all that stands before the frame: an expiry, a UID of at most 64 characters."""

COMPRESSED = 4
"""How many times smaller than its pixels a compressed frame is taken to be. Lossless ones are 2 to 3 times, lossy ones 8
to 20."""

UNKNOWN = 1 << 20
"""Bytes that a frame is taken to have of which nothing is known."""


@attrs.frozen
class Sizes:
    """What the cache holds of an instance. *of*: bytes of each frame by number; *prefetched*: those of them that were
    loaded before anybody asked."""

    fence: Optional[Fence]
    of: Mapping[int, int]
    prefetched: Sequence[int]


async def cached_sizes(cache: Cache, instance: Instance, numbers: Sequence[int]) -> Sizes:
    """Ask the cache for the sizes of frames *numbers*."""
    names = {number: frame_name(number) for number in numbers}
    heads = await cache.heads(instance, list(names.values()), HEAD)
    sizes, prefetched = {}, []
    for number, name in names.items():
        head = heads.entries.get(name)
        if head is None:
            continue
        try:
            before = len(head.start) - len(unpack_frame(head.start).data)
        except BadEntry:
            continue
        sizes[number] = head.size - before
        if was_prefetched(head.start):
            prefetched.append(number)
    return Sizes(heads.fence, sizes, prefetched)


def most(metadata: InstanceMetadata) -> int:
    """Bytes that a frame hardly ever exceeds: those of its pixels."""
    return metadata.frame_length or metadata.rows * metadata.columns or UNKNOWN


def expected(metadata: InstanceMetadata) -> int:
    """Bytes that a frame probably has at most."""
    syntax = lookup(metadata.transfer_syntax) if metadata.transfer_syntax is not None else None
    return most(metadata) if syntax is None or not syntax.encapsulated else max(1, most(metadata) // COMPRESSED)
