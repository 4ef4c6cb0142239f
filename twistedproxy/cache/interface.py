"""What every cache offers. Providers: Redis protocol, in-process memory (of 0 bytes for ``--cache none``).

The cache holds *entries*: the bytes of an instance's frames, metadata and pictures, each with a short name. An
unavailable server raises no error: a failed read is a miss, a failed write has no effect, and both are counted.
Invalidation is exact: each entry carries the *fence* under which it was written, a digest of the generation numbers of
its root, study, series and instance. Invalidating a scope ends its generation, which hides all entries below it at once,
from every worker and host, at a cost that does not depend on their number; an entry that a late writer stores under the
old fence is never read. A generation that the server has evicted counts as ended.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import Optional, Protocol, Union

import attrs

from twistedproxy.cache.address import SharedAddress
from twistedproxy.dicom.resource import Instance, Scope

Fence = bytes

Value = Union[bytes, tuple[bytes, ...]]
"""An entry that is written: its bytes, or the pieces of them, where it is large."""

FRAME = b"F"
"""How names of frames begin: the number follows, in hexadecimal."""


def frame_names(first: int, last: int) -> list[bytes]:
    """The names of frames *first* to *last* (from 1)."""
    return [b"F%x" % number for number in range(first, last + 1)]


def number_of(name: bytes) -> int:
    """The frame whose name this is."""
    return int(name[1:], 16)


LARGE = 4 << 20
"""Bytes of an entry that is written and read in slices, and not copied for the sake of what stands before a frame: of
one of 300 MB each copy stops the reactor for 0.1 to 0.5 s."""


def pieces(value: Value) -> tuple[bytes, ...]:
    """What the bytes of an entry are put together from."""
    return value if isinstance(value, tuple) else (value,)


def whole(value: Value) -> bytes:
    """The bytes of an entry. Where it has several pieces and is large, other threads run meanwhile."""
    return b"".join(value) if isinstance(value, tuple) else value


def size_of(value: Value) -> int:
    """How many bytes that are."""
    return sum(map(len, pieces(value)))


EntryNow = tuple[Union[bytes, memoryview], Optional[bytes]]
"""The bytes of an entry, and the `content_digest` of its last piece where that is known."""


LASTING = (b"load", b"whole", b"follow")
"""How names of claims begin that a cache does not drop for want of room before they end: leases
(`twistedproxy.cache.lease`), and marks of what was loaded."""


class CacheUnavailable(Exception):
    """The server could not be asked, did not answer in time, or refused. The message is fit for a log."""


@attrs.frozen
class Reading:
    """What one round trip found. *fence* is None where the cache could not be asked: nothing can be written then. *ended*:
    whether there are others whose time has ended, and which may go on (`Cache.prolong`)."""

    fence: Optional[Fence]
    entries: Mapping[bytes, bytes]
    ended: bool = False


@attrs.frozen
class Head:
    """How an entry begins, and how many bytes it has in all."""

    start: bytes
    size: int


@attrs.frozen
class Heads:
    """What `Cache.heads` found. *fence* as in `Reading`."""

    fence: Optional[Fence]
    entries: Mapping[bytes, Head]


@attrs.frozen
class Held:
    """A part of the frames of an instance: those of them that are *cached*, those that are *claimed*, and the name after which the
    next part begins; None: there is none."""

    cached: Sequence[int]
    claimed: Sequence[int]
    after: Optional[bytes] = None


class PlainCache:
    """A cache that drops entries when their time ends: none goes on. It finds entries by their names alone."""

    keeps_ended = False
    capacity: Optional[int] = None

    async def prolong(self, instance: Instance, fence: Fence, seconds: float, since: float) -> None:
        """See `Cache`."""

    def invalidated(self, scope: Scope) -> None:
        """See `Cache`: nothing of generations is remembered."""

    def changes(self) -> Optional[Hashable]:
        """See `Cache`: others write, too."""
        return None

    async def held(self, instance: Instance, frames: int, after: bytes = b"") -> Held:
        """See `Cache`."""
        first = number_of(after) + 1 if after else 1
        names = frame_names(first, min(frames, first + HELD_AT_ONCE - 1))
        cached = await self.present(instance, names)
        missing = [name for name in names if name not in cached]
        claimed = await self.claimed(instance, missing) if missing else set()
        last = names[-1] if names and number_of(names[-1]) < frames else None
        return Held([number_of(name) for name in cached], [number_of(name) for name in claimed], last)

    async def present(self, instance: Instance, names: Sequence[bytes]) -> set[bytes]:
        """See `Cache`."""
        raise NotImplementedError

    async def claimed(self, instance: Instance, names: Sequence[bytes]) -> set[bytes]:
        """Those of *names* that anybody has claimed."""
        raise NotImplementedError


HELD_AT_ONCE = 250
"""Frames of one part of `Cache.held` where entries are found by their names: half a millisecond."""


class Cache(Protocol):
    """Entries below instances, and claims."""

    shared: bool
    """Whether other processes see the same entries."""

    keeps_ended: bool
    """Whether `prolong` does anything."""

    reads_now: bool
    """Whether `read_now` finds anything."""

    capacity: Optional[int]
    """Bytes that entries may have together; None where that is not known, or before the cache has started."""

    address: Optional[SharedAddress]
    """Where other processes reach the same entries, once the cache has started; None where they can't."""

    async def get_many(self, instance: Instance, names: Sequence[bytes]) -> Reading:
        """Read all of *names* in one round trip; missing ones are left out. No names: just the fence."""

    def read_now(self, instance: Instance, names: Sequence[bytes]) -> Optional[tuple[Fence, list[EntryNow]]]:
        """The present fence and the entries *names*, where reading all of them takes no waiting; None where it does, or one is
        missing. Their bytes may change with the next call."""

    async def present(self, instance: Instance, names: Sequence[bytes]) -> set[bytes]:
        """Those of *names* that `get_many` would find, without their bytes. None where the cache can't be asked."""

    def changes(self) -> Optional[Hashable]:
        """What is another value once any process has written, removed or claimed anything, or invalidated it: 2 us. None where that is
        not known."""

    async def held(self, instance: Instance, frames: int, after: bytes = b"") -> Held:
        """A part of frames 1 to *frames*, beginning after the name *after*: those that `get_many` would find, and those that anybody has
        claimed. This is no use of
        them, as far as the cache can tell the difference. No frames where the cache can't be asked."""

    async def heads(self, instance: Instance, names: Sequence[bytes], length: int) -> Heads:
        """The first *length* bytes (all of a shorter one) and the sizes of the entries that `get_many` would find."""

    async def put_many(
        self, instance: Instance, fence: Optional[Fence], entries: Mapping[bytes, Value], seconds: Optional[float]
    ) -> bool:
        """Write entries that last *seconds* (None: no expiry), pipelined. Whether the server took all of them.
        A *fence* that is None or has ended writes nothing that could be seen."""

    async def remove(self, instance: Instance, names: Collection[bytes]) -> bool:
        """Take entries back; whether the server did."""

    async def prolong(self, instance: Instance, fence: Fence, seconds: float, since: float) -> None:
        """Have all entries under *fence* that were written for *seconds* after *since* (seconds since the epoch) last as long again
        from now, those too whose time has ended: the instance is still what it was then. A cache that drops what has ended does
        nothing."""

    async def claim(self, instance: Instance, names: Sequence[bytes], token: bytes, seconds: float) -> set[bytes]:
        """Claim names for *token*, each set only if absent; return those won. A claim is no entry: `get_many` never sees it."""

    async def renew_claims(self, instance: Instance, names: Collection[bytes], token: bytes, seconds: float) -> bool:
        """Prolong what *token* claimed, and only that. Whether that is all of *names*; False where the cache can't be asked."""

    async def unclaim(self, instance: Instance, names: Collection[bytes], token: bytes) -> None:
        """Give back what *token* claimed, and only that."""

    async def claim_left(self, instance: Instance, name: bytes) -> Optional[float]:
        """Seconds until the claim on *name* ends by itself. None where it is free, or the cache can't be asked."""

    async def invalidate(self, scope: Scope) -> None:
        """End the generation of *scope*. Raises `CacheUnavailable` if the server did not confirm it."""

    def invalidated(self, scope: Scope) -> None:
        """Another process of this host has invalidated *scope*, or tried to: what is remembered of its generations is asked for
        again."""

    async def ping(self) -> None:
        """Return if the cache works: takes writes, and gives them back. Else raise `CacheUnavailable` with the reason."""

    async def status(self) -> dict[str, object]:
        """Facts for ``/status.json``: provider, connected, used and maximal bytes, evicted entries."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...
