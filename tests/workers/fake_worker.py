"""A worker that does as it is ordered, for tests of its parent: ``python -m tests.workers.fake_worker``.

The order is what it is started with, one of ``good``, ``refuses``, ``dies``, ``crashes later``, ``babbles``, ``chatters``
(more than a pipe holds), ``stays`` (when it is to end).
It imports nothing that is not needed: tests start dozens of it.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from twistedproxy.processes.channel import CallError, Channel, connect_to_parent
from twistedproxy.processes.messages import CONTROL_OUT

CHATTER_LINES = 256  # of 1 kB; a pipe holds 64


class FakeWorker:
    """Answers no requests."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._order = ""
        self.channel = Channel({"start": self.start, "ping": self.ping, "drain": self.drain}, lambda: os._exit(0))

    async def start(self, order: bytes) -> list[dict[str, Any]]:
        self._order = order.decode()
        if self._order == "refuses":
            raise CallError("the origin has gone fishing")
        if self._order == "dies":
            print("Fatal: out of cheese", file=sys.stderr, flush=True)
            os._exit(3)
        if self._order == "babbles":
            os.write(CONTROL_OUT, b"\0\0\0\5hello")
            await self.channel.call("join")
        if self._order == "chatters":
            for descriptor in (1, 2):
                for _ in range(CHATTER_LINES):
                    os.write(descriptor, b"x" * 1023 + b"\n")
        await self.channel.call("join")
        if self._order == "crashes later":
            self._reactor.callLater(0.01, os._exit, 4)
        return [{"prefix": "/dicomweb", "origin": "fake:", "examples": ["studies"]}]

    async def ping(self) -> None:
        pass

    async def drain(self, idle_seconds: float) -> None:
        if self._order != "stays":
            self._reactor.stop()


def main() -> None:
    from twisted.internet import reactor

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connect_to_parent(FakeWorker(reactor).channel)
    reactor.run(installSignalHandlers=False)  # type: ignore[attr-defined,call-arg]


if __name__ == "__main__":
    main()
