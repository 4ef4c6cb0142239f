"""The memory budget of answers in progress: bytes that clients have not taken yet, of all answers of a worker together.

Rules:
- an answer that needs more than is free waits for it, in turn, with a deadline, and in a queue with a bound;
- small answers never wait and are not counted: a socket takes them, and the number of connections bounds theirs;
- an answer that was read and turns out larger than what is free is dropped and read again once there is room (`Reservation.read`):
  waiting answers hold nothing;
- an answer larger than the whole budget is admitted when it is alone;
- a connection whose client has not taken what was written counts, too (`UNTAKEN`), also after the end of its answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

SMALL = 64 << 10
"""Bytes of an answer that is not counted: about what a socket takes at once."""

UNTAKEN = 256 << 10
"""Bytes that are counted for a connection whose client is behind: what is handed to one at once."""

MAX_WAITING = 256
"""Answers that may wait for room; beyond, callers get a 503."""

WAIT_SECONDS = 20.0
"""How long an answer waits for room (seconds): less than the timeouts of clients."""

RETRY_AFTER = 5
"""Retry-After of answers that found no room (seconds)."""


T = TypeVar("T")


class NoRoom(Exception):
    """There was no memory for an answer, not even after a while."""


@attrs.define(eq=False)
class AnswerMemory:
    """At most *max_bytes* of answers. *clock*: for the deadline of waiting answers. *small*: bytes of an answer that is not
    counted. *max_waiting*: answers."""

    clock: IReactorTime
    max_bytes: int
    small: int = SMALL
    max_waiting: int = MAX_WAITING
    used: int = attrs.field(init=False, default=0)
    _waiting: deque[tuple[int, Deferred[None]]] = attrs.field(init=False, factory=deque)

    @property
    def waiting(self) -> int:
        """How many wait for room."""
        return len(self._waiting)

    def has_room(self, size: int) -> bool:
        """Whether *size* bytes can be held now, and no other answer waits."""
        return not self._waiting and self._fits(size)

    def hold(self) -> Reservation:
        """What one answer holds: nothing yet."""
        return Reservation(self)

    async def take(self, size: int) -> None:
        """Count *size* bytes as soon as there is room. Raises `NoRoom`."""
        if self.has_room(size):
            self.used += size
            return
        if len(self._waiting) >= self.max_waiting:
            raise NoRoom("too many large responses are waiting")
        room: Deferred[None] = Deferred(self._leave)
        self._waiting.append((size, room))
        late = Failure(NoRoom("not enough memory for a response of this size now"))
        await room.addTimeout(WAIT_SECONDS, self.clock, onTimeoutCancel=lambda *_: late)

    def change(self, by: int) -> None:
        """Count *by* bytes more, or less, at once."""
        self.used += by
        while self._waiting and self._fits(self._waiting[0][0]):
            size, room = self._waiting.popleft()
            self.used += size
            room.callback(None)

    def _fits(self, size: int) -> bool:
        return not self.used or self.used + size <= self.max_bytes

    def _leave(self, room: Deferred[None]) -> None:
        self._waiting = deque(waiter for waiter in self._waiting if waiter[1] is not room)
        self.change(0)  # the next in the queue may be smaller


@attrs.define(eq=False)
class Reservation:
    """What one answer holds, as a context manager that gives it back."""

    memory: AnswerMemory
    size: int = 0

    async def take(self, size: int) -> None:
        """Wait until *size* bytes may be held. Raises `NoRoom`. Best before anything is held: an answer may block
        itself otherwise."""
        if size > self.memory.small:
            await self.memory.take(size)
            self.size += size

    async def read(self, read: Callable[[], Awaitable[T]], size: Callable[[T], int]) -> T:
        """What *read* gives, of *size* bytes, once there is room for that. Raises what *read* does, and `NoRoom`.

        What does not fit is dropped and read again: it is in the cache by then.
        """
        while True:
            answer = await read()
            wanted = size(answer)
            if wanted <= max(self.size, self.memory.small) or self.memory.has_room(wanted - self.size):
                self.set(wanted)
                return answer
            del answer
            self.set(0)
            await self.take(wanted)

    def set(self, size: int) -> None:
        """Correct the count to what is really held."""
        counted = size if size > self.memory.small else 0
        if counted != self.size:
            by, self.size = counted - self.size, counted
            self.memory.change(by)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_error: object) -> None:
        self.set(0)
