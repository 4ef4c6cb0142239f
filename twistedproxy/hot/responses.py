"""Hot responses: whole answers in one worker's memory, found before a request is parsed in full.

- An answer is given only to a caller whose grant for that very instance holds now; the grant is looked up each time.
- It goes with its instance: what is invalidated, or has another fence than before, takes its answers with it. What was
  last asked of the cache more than `CHECK_SECONDS` ago is answered the ordinary way, which asks again.
- It ends when the first of what it was made of ends in the cache, and no hit prolongs it. That moment is by the
  clock of the process that wrote the entry; from then on the time that is left counts.
- The bytes that are kept are bounded: keys, heads and bookkeeping counted; least recently used goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Optional, Protocol

import attrs

from twistedproxy.cache.interface import Fence
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.frames.access import Access
from twistedproxy.frames.invalidation import Ticket, covers
from twistedproxy.origin.interface import Caller

CHECK_SECONDS = 2.0
"""How old the knowledge of an instance's fence may be, besides what the cache itself adds: another host's STOW is felt within 5 s."""

TAKEN_BACK_SECONDS = 60.0
"""How long an answer of frames that were loaded before anybody asked is kept at most; then the cache is asked again. A
load that turns out wrong takes its frames back, and does that in the cache only: the instance keeps its fence."""

OVERHEAD = 900
"""Bytes that one answer takes besides its own: objects, hash tables, what allocators round up."""

INSTANCE_BYTES = 1500
"""Bytes that one instance takes besides its answers: its UIDs, objects, hash tables."""

MAX_ANSWER = 256 * 1024
"""Bytes of an answer that is kept: a larger one is written in pieces, at the pace of its client."""

SHARE = 16
"""One part in so many of all bytes is for instances, and one is the most that a single answer may take."""


Key = tuple[bytes, bytes, bytes]
"""Request target, Accept, Origin: as they came, empty where they did not."""


class Source(Protocol):
    """What an answer was made of. *fence*: that of the cache when it was read. *prefetched*: frames that were loaded
    before anybody asked. *expires*: when the first of all ends in the cache, in seconds since the epoch."""

    @property
    def fence(self) -> Optional[Fence]: ...
    @property
    def prefetched(self) -> Collection[int]: ...
    @property
    def expires(self) -> float: ...


@attrs.define(eq=False)
class _Known:
    """What is known of an instance: the fence of its answers, until when that may be relied on, their keys."""

    instance: Instance
    fence: Fence
    checked_until: float
    keys: set[Key] = attrs.Factory(set)


@attrs.frozen(eq=False)
class HotAnswer:
    """One answer with status 200. *head*: its fields but Server and Date, and the blank line."""

    of: _Known
    route: str
    etag: bytes
    head: bytes
    body: bytes
    kept: float
    expires: float
    size: int

    @property
    def pieces(self) -> tuple[bytes, ...]:
        """What the body is put together from."""
        return (self.body,)

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return len(self.body)


class HotResponses:
    """The answers of one worker. *max_bytes*: 0 keeps none. *clock*: seconds; where it is set back, answers
    from before count no more."""

    def __init__(self, max_bytes: int, access: Access, clock: Callable[[], float]) -> None:
        self._max_instances = max_bytes // SHARE // INSTANCE_BYTES
        self._max_bytes = max_bytes - max_bytes // SHARE
        self.max_answer = min(self._max_bytes // SHARE, MAX_ANSWER)
        self._access = access
        self._clock = clock
        self._answers: OrderedDict[Key, HotAnswer] = OrderedDict()
        self._known: OrderedDict[Instance, _Known] = OrderedDict()
        self._invalidations = 0
        self.used = 0

    def __len__(self) -> int:
        return len(self._answers)

    # Finding.

    def find(self, key: Key, caller: Caller) -> Optional[HotAnswer]:
        """The answer of *key*, if it may be given to *caller* now without asking anybody."""
        answer = self._answers.get(key)
        if answer is None:
            return None
        now = self._clock()
        if not answer.kept <= now < answer.expires:
            self._drop(key)
            return None
        if not now <= answer.of.checked_until <= now + CHECK_SECONDS or not self._granted(answer.of, caller):
            return None
        self._answers.move_to_end(key)
        return answer

    def _granted(self, of: _Known, caller: Caller) -> bool:
        """Whether *caller* holds a grant that needs no renewal yet."""
        grant = self._access.known_for_long(caller, of.instance)
        return grant is not None and grant.fence == of.fence

    # Keeping.

    def ticket(self) -> Ticket:
        """See `FenceWatch`: what was read before an invalidation is not used after it."""
        return self._invalidations, self._clock()

    def checked(self, instance: Instance, fence: Optional[Fence], ticket: Ticket) -> None:
        """See `FenceWatch`."""
        invalidations, asked = ticket
        if fence is None or invalidations != self._invalidations:
            return
        known = self._known.get(instance)
        if known is not None and known.fence != fence:
            self._forget(instance)
            known = None
        if known is None:
            known = self._known[instance] = _Known(instance, fence, asked)
        until = asked + CHECK_SECONDS
        if not until <= known.checked_until <= self._clock() + CHECK_SECONDS:
            known.checked_until = until
        self._known.move_to_end(instance)
        if len(self._known) > self._max_instances:
            self._forget(next(iter(self._known)))

    def keep(
        self,
        key: Key,
        instance: Instance,
        source: Source,
        route: str,
        etag: bytes,
        head: bytes,
        body: bytes,
    ) -> None:
        """Keep an answer until its *source* ends, if the instance still has that fence."""
        of = self._known.get(instance)
        seconds = source.expires - self._access.wall_clock()
        if source.prefetched:
            seconds = min(seconds, TAKEN_BACK_SECONDS)
        size = len(head) + len(body) + len(etag) + sum(map(len, key)) + OVERHEAD
        if of is None or of.fence != source.fence or size > self.max_answer or not seconds > 0:
            return
        if key in self._answers:
            self._drop(key)
        now = self._clock()
        self._answers[key] = HotAnswer(of, route, etag, head, body, now, now + seconds, size)
        of.keys.add(key)
        self.used += size
        while self.used > self._max_bytes:
            self._drop(next(iter(self._answers)))

    def invalidate(self, scope: Scope) -> None:
        """Give no answer of *scope* any more, and free what they took."""
        self._invalidations += 1
        for instance in [instance for instance in self._known if covers(scope, instance)]:
            self._forget(instance)

    def _forget(self, instance: Instance) -> None:
        for key in list(self._known.pop(instance).keys):
            self._drop(key)

    def _drop(self, key: Key) -> None:
        answer = self._answers.pop(key)
        answer.of.keys.discard(key)
        self.used -= answer.size
