"""A map from bytes to bytes that never holds more than it may.

Rules kept here:
- ``used`` is the sum of the sizes of what is held: keys, values and `ITEM_OVERHEAD` each, after every operation.
- What was read or written longest ago goes first.
- Time is an argument: the caller reads the clock.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Optional

import attrs

# An item's bookkeeping in CPython 3.11, 64 bit: two bytes headers (66), the item (64), its size and expiry (56), and a
# place in an OrderedDict (its node and hash table about 160), rounded up.
ITEM_OVERHEAD = 360


@attrs.define(eq=False)
class _Item:
    value: bytes
    expires: Optional[float]
    size: int


class LruStore:
    """At most *max_bytes* of keys and values; ``evicted`` counts what had to go before its time, ``changes`` what came and went."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0
        self.evicted = 0
        self.changes = 0
        self._items: OrderedDict[bytes, _Item] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: bytes, now: float) -> Optional[bytes]:
        """The value of *key*, unless it expired, as the most recently used."""
        item = self._items.get(key)
        if item is None:
            return None
        if item.expires is not None and item.expires <= now:
            self.delete(key)
            return None
        self._items.move_to_end(key)
        return item.value

    def peek(self, key: bytes, now: float) -> Optional[bytes]:
        """The same, and its place is left as it is."""
        item = self._items.get(key)
        return None if item is None or (item.expires is not None and item.expires <= now) else item.value

    def put(self, key: bytes, value: bytes, now: float, seconds: Optional[float]) -> bool:
        """Hold *value* for *seconds* (None: no expiry). False, and *key* is gone, where it alone is too large."""
        self.delete(key)
        size = len(key) + len(value) + ITEM_OVERHEAD
        if size > self.max_bytes:
            return False
        self._items[key] = _Item(value, None if seconds is None else now + seconds, size)
        self.used += size
        self.changes += 1
        self._shrink(now)
        return True

    def put_if_absent(self, key: bytes, value: bytes, now: float, seconds: Optional[float]) -> bool:
        """`put` unless *key* is held; whether it was put."""
        return self.get(key, now) is None and self.put(key, value, now, seconds)

    def prolong(self, key: bytes, now: float, seconds: float) -> None:
        """Let *key*, if it is held, expire *seconds* from now."""
        item = self._items.get(key)
        if item is not None:
            item.expires = now + seconds

    def left(self, key: bytes, now: float) -> Optional[float]:
        """Seconds that *key* still has; None where it is not held, or does not expire."""
        item = self._items.get(key)
        if item is None or item.expires is None or item.expires <= now:
            return None
        return item.expires - now

    def delete(self, key: bytes) -> None:
        """Drop *key* if it is held."""
        item = self._items.pop(key, None)
        if item is not None:
            self.used -= item.size
            self.changes += 1

    def clear(self) -> None:
        """Drop everything."""
        self._items.clear()
        self.used = 0

    def _shrink(self, now: float) -> None:
        while self.used > self.max_bytes:
            _, item = self._items.popitem(last=False)
            self.used -= item.size
            self.changes += 1
            if item.expires is None or item.expires > now:
                self.evicted += 1
