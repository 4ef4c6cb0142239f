"""Messages between a process and its child, over pipes: how they look on the way.

A message is four bytes of length, a JSON object of that length, and byte strings ("blobs"), whose lengths stand in the
object under ``blobs``. What is said with them is in `twistedproxy.processes.channel`; this module imports no Twisted, for
children without a reactor (5 MB each).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Generator, Sequence
from io import BytesIO
from typing import Any

import attrs

CONTROL_IN, CONTROL_OUT, FIRST_SOCKET = 3, 4, 5
"""A child's descriptors: messages from its parent, messages to it, and the first of the parent's listening sockets."""

MAX_HEAD = 64 << 20
"""Bytes of the JSON object: 100,000 frames with their positions take some 6 MB, metrics of a worker 100 kB."""

MAX_BLOBS = 4 << 30
"""Bytes of one message's byte strings: whole pictures of the largest size that settings allow."""

_LENGTH = struct.Struct("!I")


class BadMessage(ValueError):
    """Not a message, or one beyond the limits."""


@attrs.frozen
class Message:
    """*head*: JSON. *blobs*: byte strings, in an order that *head* explains."""

    head: Any
    blobs: Sequence[bytes] = ()

    def packed(self) -> list[bytes]:
        """The message as it goes over the pipe, in pieces that were not copied. Raises `BadMessage`."""
        lengths = list(map(len, self.blobs))
        try:
            head = json.dumps({**self.head, "blobs": lengths}, separators=(",", ":")).encode("ascii")
        except (TypeError, ValueError) as error:
            raise BadMessage(f"cannot be sent as JSON: {error}") from None
        if len(head) > MAX_HEAD:
            raise BadMessage(f"{len(head)} bytes are too many for one message")
        return [_LENGTH.pack(len(head)), head, *self.blobs]


class MessageReader:
    """Feed it what comes, in any pieces. Blobs are put together as they come: at the end of one of many MB there is
    nothing left to do that takes long."""

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
        """Yields the length of the next part, and is sent that part."""
        while True:
            (length,) = _LENGTH.unpack((yield _LENGTH.size))
            if length > MAX_HEAD:
                raise BadMessage("a message's head is too long")
            head, lengths = _read_head((yield length))
            blobs = [b""] * len(lengths)
            for place, size in enumerate(lengths):
                blobs[place] = yield size
            self._messages.append(Message(head, blobs))


def _read_head(data: bytes) -> tuple[dict[str, Any], list[int]]:
    try:
        head = json.loads(data)
        lengths = head.pop("blobs")
        possible = all(isinstance(length, int) and length >= 0 for length in lengths)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadMessage("a message's head cannot be read") from error
    if not possible or sum(lengths) > MAX_BLOBS:
        raise BadMessage("a message's blobs have impossible lengths")
    return head, lengths
