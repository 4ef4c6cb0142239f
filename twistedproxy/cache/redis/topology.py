"""Which node of a cluster has which hash slots, as a node tells it: pure.

Source: Redis documentation, CLUSTER SHARDS (from Redis 7) and CLUSTER SLOTS.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Optional

import attrs

from twistedproxy.cache.redis.keys import SLOTS, own_key, slot_of
from twistedproxy.cache.redis.pipeline import command

Place = tuple[str, int]
"""Host and port of a node."""

Ranges = tuple[tuple[int, int], ...]
"""First and last slots."""

Topology = dict[Place, Ranges]
"""The masters, those that have no slots too, where they are told of."""

_DIGITS = re.compile("[0-9]{1,5}")

SHARDS = command(b"CLUSTER", b"SHARDS")
SLOTS_COMMAND = command(b"CLUSTER", b"SLOTS")


class NoTopology(ValueError):
    """What a node answered is no list of slots."""


def parse_shards(reply: object, asked: str, tls: bool) -> Topology:
    """The answer to CLUSTER SHARDS of the node at the host *asked*. Raises `NoTopology`."""
    topology: Topology = {}
    try:
        for shard in map(_pairs, _listed(reply)):
            numbers = list(map(_slot, _listed(shard[b"slots"])))
            for node in map(_pairs, _listed(shard[b"nodes"])):
                if node[b"role"] == b"master" and node.get(b"health", b"online") == b"online":
                    port = node.get(b"tls-port" if tls else b"port") or node[b"port" if tls else b"tls-port"]
                    place = _host(node.get(b"endpoint") or node.get(b"ip"), asked), _number(port)
                    topology[place] = tuple(zip(numbers[::2], numbers[1::2]))
    except (KeyError, TypeError, ValueError) as error:
        raise NoTopology(f"CLUSTER SHARDS: {error!r}") from None
    return topology


def parse_slots(reply: object, asked: str) -> Topology:
    """The answer to CLUSTER SLOTS: the first node of each range is its master. Raises `NoTopology`."""
    ranges: dict[Place, list[tuple[int, int]]] = {}
    try:
        for first, last, master, *_ in map(_listed, _listed(reply)):
            host, port = _listed(master)[:2]
            ranges.setdefault((_host(host, asked), _number(port)), []).append((_slot(first), _slot(last)))
    except (TypeError, ValueError) as error:
        raise NoTopology(f"CLUSTER SLOTS: {error!r}") from None
    return {place: tuple(held) for place, held in ranges.items()}


@attrs.frozen
class Redirection:
    """``MOVED`` or ``ASK`` (*asking*): the place where *slot* is, or is moving to."""

    slot: int
    place: Place
    asking: bool

    @classmethod
    def of(cls, error: object, asked: str) -> Optional[Redirection]:
        """What *error*, an answer of the node at the host *asked*, says; None for any other."""
        words = str(error).split() if isinstance(error, Exception) else []
        if len(words) < 3 or words[0] not in ("MOVED", "ASK") or not _DIGITS.fullmatch(words[1]):
            return None
        host, _, port = words[2].rpartition(":")
        if not _DIGITS.fullmatch(port) or int(words[1]) >= SLOTS:
            return None
        return cls(int(words[1]), (host or asked, int(port)), words[0] == "ASK")


def own_keys(kind: bytes, ranges: Ranges, most: int) -> list[bytes]:
    """The first *most* of the keys of a kind that a node with these slots has: the same for all who ask."""
    found: list[bytes] = []
    held = frozenset(slot for first, last in ranges for slot in range(first, last + 1))
    for tag in range(32 * SLOTS if held else 0):
        key = own_key(kind, tag)
        if slot_of(key) in held:
            found.append(key)
            if len(found) == most:
                break
    return found


def in_ranges(key: bytes, ranges: Ranges) -> bool:
    """Whether a node with these slots has *key*."""
    slot = slot_of(key)
    return any(first <= slot <= last for first, last in ranges)


def uncovered(ranges: Iterable[Ranges]) -> int:
    """How many slots are no node's."""
    return SLOTS - sum(last - first + 1 for held in ranges for first, last in held)


def _listed(reply: object) -> list[object]:
    if not isinstance(reply, list):
        raise TypeError(str(reply))
    return reply


def _pairs(reply: object) -> dict[object, object]:
    listed = _listed(reply)
    return dict(zip(listed[::2], listed[1::2]))


def _number(value: object) -> int:
    if not isinstance(value, (int, bytes)):
        raise TypeError(repr(value))
    return int(value)


def _slot(value: object) -> int:
    number = _number(value)
    if not 0 <= number < SLOTS:
        raise ValueError(f"there is no slot {number}")
    return number


def _host(value: object, asked: str) -> str:
    """A node that does not know how it is reached, or may not say it, is reached as the one that was asked was."""
    host = value.decode() if isinstance(value, bytes) else ""
    return asked if host in ("", "?") else host
