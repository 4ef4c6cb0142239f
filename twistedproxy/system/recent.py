"""What was found out a short while ago, and need not be tried again yet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Recent(Generic[K]):
    """Keys that are remembered for *seconds* of a clock; of more than *most*, the oldest go first."""

    def __init__(self, seconds: float, most: int = 10_000) -> None:
        self._seconds = seconds
        self._most = most
        self._until: OrderedDict[K, float] = OrderedDict()

    def add(self, key: K, now: float) -> None:
        """Remember *key* from *now* on."""
        self._until.pop(key, None)
        self._until[key] = now + self._seconds
        if len(self._until) > self._most:
            self._until.popitem(last=False)

    def has(self, key: K, now: float) -> bool:
        """Whether *key* was added, and its time is not over."""
        return self._until.get(key, now) > now

    def discard(self, key: K) -> None:
        """Forget *key*, if it was there."""
        self._until.pop(key, None)
