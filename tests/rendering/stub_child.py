"""A rendering child that does what tests tell it: ``python -m tests.rendering.stub_child``."""

from __future__ import annotations

import os
import sys
import time

from twistedproxy.rendering.messages import Message, read_message


def main() -> None:
    """Serve until standard input ends."""
    print("a library prints something", file=sys.stderr, flush=True)
    _write(Message({"ready": True}))
    notes: list[bytes] = []
    while (message := read_message(sys.stdin.buffer.read)) is not None:
        what = message.head["op"]
        if what == "crash":
            os.abort()
        if what == "hang":
            time.sleep(3600)
        if what == "slow":
            time.sleep(message.head["seconds"])
        if what == "garbage":
            sys.stdout.buffer.write(b"\xff" * (1 << 20))
            sys.stdout.buffer.flush()
            continue
        if what == "fail":
            _write(Message({"error": {"kind": "BadImage", "text": "no"}}))
            continue
        notes += message.blobs if what == "note" else []
        answer = notes if what == "notes" else message.blobs
        _write(Message({"pid": os.getpid()}, list(answer)))


def _write(message: Message) -> None:
    sys.stdout.buffer.write(b"".join(message.packed()))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
