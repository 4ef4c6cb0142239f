"""A worker that does what a file says, for tests of its parent: ``python -m tests.workers.fake_worker``.

The file is `MOOD` in the current folder; it is read at the start. It holds one of
``good``, ``refuses``, ``dies``, ``crashes later``, ``babbles``, ``chatters`` (more than a pipe holds), ``stays`` (when
it is told to end).
It imports nothing that is not needed: tests start dozens of it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from twistedproxy.workers.peer import CallFailed, Peer

MOOD = "fake-worker-mood"
CONTROL_IN, CONTROL_OUT = 3, 4
CHATTER_LINES = 256  # of 1 kB; a pipe holds 64


class FakeWorker:
    """Answers no requests."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._mood = ""
        self.peer = Peer({"start": self.start, "ping": self.ping, "drain": self.drain}, lambda: os._exit(0))

    async def start(self, settings: str) -> list[dict[str, Any]]:
        self._mood = Path(MOOD).read_text()  # noqa: ASYNC240 - a few bytes, and nobody waits
        if self._mood == "refuses":
            raise CallFailed("the origin has gone fishing")
        if self._mood == "dies":
            print("Fatal: out of cheese", file=sys.stderr, flush=True)
            os._exit(3)
        if self._mood == "babbles":
            os.write(CONTROL_OUT, b"\0\0\0\5hello")
            await self.peer.call("join")
        if self._mood == "chatters":
            for descriptor in (1, 2):
                for _ in range(CHATTER_LINES):
                    os.write(descriptor, b"x" * 1023 + b"\n")
        await self.peer.call("join")
        if self._mood == "crashes later":
            self._reactor.callLater(0.01, os._exit, 4)
        return [{"prefix": "/dicomweb", "origin": "fake:", "examples": ["studies"]}]

    async def ping(self) -> None:
        pass

    async def drain(self, idle_seconds: float) -> None:
        if self._mood != "stays":
            self._reactor.stop()


def main() -> None:
    from twisted.internet import reactor, stdio

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stdio.StandardIO(FakeWorker(reactor).peer, stdin=CONTROL_IN, stdout=CONTROL_OUT)  # type: ignore[call-arg]
    reactor.run(installSignalHandlers=False)  # type: ignore[attr-defined,call-arg]


if __name__ == "__main__":
    main()
