"""All open connections of the listeners: their deadlines, and their orderly end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Optional

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from twistedproxy.deferreds import Waiters
from twistedproxy.system.memory_budget import UNTAKEN, AnswerMemory

if TYPE_CHECKING:
    from twistedproxy.server.channel import ProxyChannel

NEVER = float("inf")
"""The deadline of a wait that is not under way."""

IDLE_SECONDS = 75.0
"""How long a connection may stay open between requests (seconds); as nginx's keepalive_timeout."""

LINGER_SECONDS = 5.0
"""How long the unread rest of a request may keep arriving after the answer (seconds); as nginx's lingering_timeout."""

SWEEP_SECONDS = 0.5
"""How often connections are looked over for passed deadlines: one pass over 5,000 takes about 1 ms."""

STALLED_SECONDS = 10.0
"""How long a client may take nothing of its answer while others wait for the memory that it holds (seconds)."""

CUT_SECONDS = 1.0
"""How long aborted connections may take to end (seconds): the reactor needs one turn."""


HotAnswer = Callable[["ProxyChannel", bytes], bool]
"""Answers what came on a channel before it is parsed; whether that was possible."""


class Connections:
    """The open connections. Each wait for a client has *client_timeout* seconds; *hot* answers known requests. *memory*: where
    what clients have not taken is counted."""

    def __init__(
        self,
        clock: IReactorTime,
        client_timeout: float,
        hot: Optional[HotAnswer] = None,
        memory: Optional[AnswerMemory] = None,
    ) -> None:
        self.hot = hot
        self._memory = memory
        self.closing = False
        self.seconds: Callable[[], float] = clock.seconds
        self._client_timeout = client_timeout
        self._idle_seconds = IDLE_SECONDS
        self._open: set[ProxyChannel] = set()
        self._clock = clock
        self._sweeper = LoopingCall(self._sweep)
        self._sweeper.clock = clock
        self._emptied: Waiters[None] = Waiters()

    def __len__(self) -> int:
        return len(self._open)

    def start(self) -> None:
        """Begin to watch deadlines."""
        self._sweeper.start(SWEEP_SECONDS, now=False)

    def deadline(self) -> float:
        """When a wait that begins now must be over."""
        return self.seconds() + self._client_timeout

    def idle_deadline(self) -> float:
        """When the next request must have begun."""
        return self.seconds() + self._idle_seconds

    def linger_deadline(self) -> float:
        """When a connection that only swallows must be gone."""
        return self.seconds() + LINGER_SECONDS

    def add(self, connection: ProxyChannel) -> None:
        """Watch a new connection."""
        self._open.add(connection)

    def discard(self, connection: ProxyChannel) -> None:
        """Watch a connection no longer: it has ended."""
        self._open.discard(connection)
        if not self._open:
            self._emptied.fire()

    def behind(self, behind: bool) -> None:
        """Whether a client has not taken what was written: this counts as memory for answers."""
        if self._memory is not None:
            self._memory.change(UNTAKEN if behind else -UNTAKEN)

    def _sweep(self) -> None:
        now = self.seconds()
        taken_by = now
        if self._memory is not None and self._memory.waiting:
            taken_by += max(0.0, self._client_timeout - STALLED_SECONDS)
        for one in [one for one in self._open if one.read_deadline < now or one.write_deadline < taken_by]:
            one.expired(now)

    async def drain(self, deadline: float, idle_seconds: float = 0.0) -> int:
        """Let each connection finish what it has received, for *deadline* seconds at most; then cut the rest.

        With *idle_seconds* clients that keep connections between requests lose none: their next answer, if it comes within
        that time, carries ``Connection: close``. Returns how many were cut.
        """
        self.closing = True
        self._idle_seconds = idle_seconds
        for connection in list(self._open):
            connection.close_soon(idle_seconds > 0)
        await self._gone_within(deadline + idle_seconds)
        cut = list(self._open)
        for connection in cut:
            connection.abort()
        await self._gone_within(CUT_SECONDS)
        if self._sweeper.running:
            self._sweeper.stop()
        return len(cut)

    async def _gone_within(self, seconds: float) -> None:
        if self._open:
            await self._emptied.wait().addTimeout(seconds, self._clock, lambda *_: None)
