"""A rendering child that does what tests tell it: ``python -m tests.rendering.stub_child``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from twistedproxy.processes.messages import CONTROL_IN, CONTROL_OUT, Message, MessageReader


def main() -> None:
    """Serve until the pipe ends."""
    print("a library prints something", file=sys.stderr, flush=True)
    notes: list[bytes] = []
    reader = MessageReader()
    while data := os.read(CONTROL_IN, 1 << 16):
        for message in reader.feed(data):
            _answer(message, notes)


def _answer(message: Message, notes: list[bytes]) -> None:
    what, number = message.head["call"], message.head["id"]
    if what == "crash":
        os.abort()
    if what == "hang":
        time.sleep(3600)
    if what == "slow":
        time.sleep(message.head["with"]["seconds"])
    if what == "garbage":
        _write([b"\xff" * (1 << 20)])
        return
    if what == "fail":
        _write(Message({"answer": number, "error": "no", "kind": "BadImage"}).packed())
        return
    notes += message.blobs if what == "note" else []
    blobs = notes if what == "notes" else message.blobs
    _write(Message({"answer": number, "value": {"pid": os.getpid()}}, list(blobs)).packed())


def _write(pieces: Sequence[bytes]) -> None:
    with open(CONTROL_OUT, "wb", closefd=False) as target:
        target.write(b"".join(pieces))


if __name__ == "__main__":
    main()
