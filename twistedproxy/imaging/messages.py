"""What a proxy and its rendering children say to each other, over pipes.

A message is a JSON object and some byte strings: four bytes of the object's length, the object, the byte strings one after
the other; their lengths stand in the object, under ``blobs``. AMP, which the loader children speak, takes 64 kB a value.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs

MAX_HEADER = 16 << 20
"""Bytes of the JSON object: 100,000 frames with their places take some 6 MB."""

MAX_BLOBS = 4 << 30
"""Bytes of one message's byte strings: whole pictures of the largest size that settings allow."""

_LENGTH = struct.Struct("!I")


class BadMessage(ValueError):
    """What came is no message: the other side is not what it should be."""


@attrs.frozen
class Message:
    """*head*: JSON values. *blobs*: byte strings, in an order that *head* explains."""

    head: Mapping[str, Any]
    blobs: Sequence[bytes] = ()

    def packed(self) -> list[bytes]:
        """The message as it goes over the pipe, in pieces that were not copied."""
        head = json.dumps({**self.head, "blobs": list(map(len, self.blobs))}, separators=(",", ":")).encode("ascii")
        return [_LENGTH.pack(len(head)), head, *self.blobs]


class MessageReader:
    """Feed it what comes, in any pieces; it gives whole messages."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._head: dict[str, Any] | None = None
        self._lengths: list[int] = []
        self._needed = _LENGTH.size
        self._begun = False

    def feed(self, data: bytes) -> Iterator[Message]:
        """Raises `BadMessage`."""
        self._held += data
        while len(self._held) >= self._needed:
            if not self._begun:
                (self._needed,) = _LENGTH.unpack(self._take(_LENGTH.size))
                self._begun = True
                if self._needed > MAX_HEADER:
                    raise BadMessage("a message's head is too long")
            elif self._head is None:
                self._head, self._lengths = _read_head(self._take(self._needed))
                self._needed = sum(self._lengths)
            else:
                message = Message(self._head, self._blobs())
                self._head, self._begun, self._needed = None, False, _LENGTH.size
                yield message

    def _take(self, size: int) -> bytes:
        taken = bytes(memoryview(self._held)[:size])
        del self._held[:size]
        return taken

    def _blobs(self) -> list[bytes]:
        blobs, place = [], 0
        view = memoryview(self._held)
        for length in self._lengths:
            blobs.append(bytes(view[place : place + length]))
            place += length
        view.release()
        del self._held[:place]
        return blobs


def read_message(read: Callable[[int], bytes]) -> Message | None:
    """The next message from a blocking *read* (all of the bytes asked for, fewer at the end); None at the end."""
    start = read(_LENGTH.size)
    if len(start) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(start)
    if length > MAX_HEADER:
        raise BadMessage("a message's head is too long")
    packed = read(length)
    if len(packed) < length:
        return None
    head, lengths = _read_head(packed)
    blobs = [read(size) for size in lengths]
    if any(len(blob) < size for blob, size in zip(blobs, lengths)):
        return None
    return Message(head, blobs)


def _read_head(data: bytes) -> tuple[dict[str, Any], list[int]]:
    try:
        head = json.loads(data)
        lengths = head.pop("blobs")
        if not all(isinstance(length, int) and length >= 0 for length in lengths) or sum(lengths) > MAX_BLOBS:
            raise BadMessage("a message's byte strings have no possible lengths")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadMessage("a message's head cannot be read") from error
    return head, lengths
