"""What a proxy and its rendering children say to each other, over pipes.

A message is a JSON object and some byte strings: four bytes of the object's length, the object, the byte strings one after
the other; their lengths stand in the object, under ``blobs``. AMP, which the loader children speak, takes 64 kB a value.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Generator, Mapping, Sequence
from io import BytesIO
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
    """Feed it what comes, in any pieces; it gives whole messages. Byte strings are put together as they come: at the end of one
    of many MB there is nothing left to do that takes long."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._parts = self._parse()
        self._missing = next(self._parts)  # bytes of the part that comes now
        self._part = BytesIO()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that *data* completes. Raises `BadMessage`, after which it must not be fed any more."""
        view = memoryview(data)
        while len(view) >= self._missing:
            self._part.write(view[: self._missing])
            view = view[self._missing :]
            part, self._part = self._part, BytesIO()
            self._missing = self._parts.send(part.getvalue())  # which makes no copy
        self._part.write(view)
        self._missing -= len(view)
        messages, self._messages = self._messages, []
        return messages

    def _parse(self) -> Generator[int, bytes, None]:
        """Says how long the next part is, and is sent it."""
        while True:
            (length,) = _LENGTH.unpack((yield _LENGTH.size))
            if length > MAX_HEADER:
                raise BadMessage("a message's head is too long")
            head, lengths = _read_head((yield length))
            blobs = [b""] * len(lengths)
            for place, size in enumerate(lengths):
                blobs[place] = yield size
            self._messages.append(Message(head, blobs))


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
