"""Gates: where requests of the simulated store wait until a test lets them go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional, Union

import attrs
from twisted.internet.defer import Deferred

from tests.stores.http_server import Seen

Match = Union[str, Callable[[Seen], bool]]
"""Which requests are meant: those with this text in their path, or those for which this is true."""


def matcher(match: Match) -> Callable[[Seen], bool]:
    """*match* as a function."""
    return match if callable(match) else lambda seen: match in seen.path


@attrs.define(eq=False)
class Gate:
    """Where matching requests wait until the test lets them go. *after*: body bytes that go out before."""

    matches: Callable[[Seen], bool]
    after: Optional[int] = None
    waiting: list[Seen] = attrs.field(factory=list)
    open: bool = False
    _deferreds: list[Deferred[None]] = attrs.field(factory=list)
    _watchers: list[tuple[int, Deferred[None]]] = attrs.field(factory=list)

    async def reached(self, count: int = 1) -> None:
        """Return once *count* requests wait here, or have."""
        if len(self.waiting) < count:
            arrival: Deferred[None] = Deferred()
            self._watchers.append((count, arrival))
            await arrival

    def release(self, count: Optional[int] = None) -> None:
        """Let the first *count* waiting requests go; None: all, and whoever comes later too."""
        if count is None:
            self.open = True
        going, self._deferreds = self._deferreds[:count], self._deferreds[len(self._deferreds[:count]) :]
        for deferred in going:
            deferred.callback(None)

    async def wait(self, seen: Seen) -> None:
        """A request came here."""
        if self.open:
            return
        deferred: Deferred[None] = Deferred(lambda gone: self._deferreds.remove(gone))
        self._deferreds.append(deferred)
        self.waiting.append(seen)
        ready = [watcher for count, watcher in self._watchers if count <= len(self.waiting)]
        self._watchers = [(count, watcher) for count, watcher in self._watchers if count > len(self.waiting)]
        for watcher in ready:
            watcher.callback(None)
        await deferred
