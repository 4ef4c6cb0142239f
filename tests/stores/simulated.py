"""A DICOMweb store that does what a test tells it, on a real loopback socket.

- It records every request, in order, when its head has come: `requests`.
- It answers as one of the known stores would (`tests.stores.dialects`), fails as a test wants
  (`fail`, with the values of `tests.stores.faults`), and waits where a test wants (`hold`): no test needs to sleep.
- It shares no code with the proxy.

As a process of its own, for benchmarks: ``python -m tests.stores.simulated --help``.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Optional, Union

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tests.stores.dialects import DIALECTS, STANDARD, Dialect
from tests.stores.faults import Cut, Fault, Reset, Slow, Stall
from tests.stores.gates import Gate, Match, matcher
from tests.stores.holdings import Holdings
from tests.stores.http_server import Exchange, HTTPServer, Seen
from tests.stores.instances import StoredInstance
from tests.stores.replies import PIECE, Reply, json_reply

SHARED_PIECE = 1 << 15
"""Bytes of one answer that pass before those of another have their turn."""

REASONS = {200: "OK", 204: "No Content", 206: "Partial Content", 302: "Found", 401: "Unauthorized", 404: "Not Found"}


@attrs.define(eq=False)
class _Script:
    fault: Fault
    matches: Callable[[Seen], bool]
    times: Optional[int]


@attrs.define(eq=False)
class Line:
    """One bandwidth for all answers: pieces pass one after the other, in the order in which they come.

    *burst*: seconds that may be made up for when timers came late, or one connection would never fill the line.
    """

    bytes_per_second: float
    burst: float = 0.01
    _free: float = 0.0

    def pause(self, size: int, now: float) -> float:
        """Seconds from *now* until a piece of *size* bytes that comes now has passed."""
        self._free = max(self._free, now - self.burst) + size / self.bytes_per_second
        return max(0.0, self._free - now)


class SimulatedStore(Holdings):
    """One store. *reactor* keeps time and listens; *latency*: seconds before each answer;
    *bytes_per_second*: of each answer's body, None for as fast as it goes; *shared_bytes_per_second*: of all bodies
    together, whose pieces take turns, as on one line."""

    def __init__(
        self,
        reactor: Any,
        dialect: Dialect = STANDARD,
        instances: Iterable[StoredInstance | Path | str] = (),
        latency: float = 0.0,
        bytes_per_second: Optional[float] = None,
        shared_bytes_per_second: Optional[float] = None,
    ) -> None:
        super().__init__(dialect, instances)
        self.latency = latency
        self.bytes_per_second = bytes_per_second
        self.line = None if shared_bytes_per_second is None else Line(shared_bytes_per_second)
        self.requests: list[Seen] = []
        self.port, self._host = 0, "127.0.0.1"
        self.factory = HTTPServer(self._handle, reactor.seconds, lambda call: reactor.callLater(0, call))
        self._reactor = reactor
        self._listening: Any = None
        self._gates: list[Gate] = []
        self._scripts: list[_Script] = []
        self._watchers: list[tuple[Callable[[Seen], bool], int, Deferred[None]]] = []

    # How a test sets it up.

    def start(self, port: int = 0, interface: str = "127.0.0.1") -> SimulatedStore:
        """Listen on the loopback interface, or another one of this machine's own."""
        self._listening = self._reactor.listenTCP(port, self.factory, interface=interface, backlog=1024)
        self.port, self._host = self._listening.getHost().port, interface
        self.url = f"{self.server}{self.dialect.root}"
        return self

    async def stop(self) -> None:
        """Stop listening and cut every connection."""
        listening, self._listening = self._listening, None
        if listening is not None:
            await listening.stopListening()
        await self.factory.close_all()

    @property
    def server(self) -> str:
        """Scheme, host and port."""
        return f"http://{self._host}:{self.port}"

    def fail(self, fault: Fault, match: Match = "", times: Optional[int] = 1) -> None:
        """Answer the next *times* requests (None: all) that match so. *match*: part of the path, or a function."""
        self._scripts.append(_Script(fault, matcher(match), times))

    def heal(self) -> None:
        """Forget all faults."""
        self._scripts.clear()

    def hold(self, match: Match = "", after: Optional[int] = None) -> Gate:
        """Let matching requests wait, before anything is answered or after *after* bytes of the answer's body."""
        gate = Gate(matcher(match), after)
        self._gates.append(gate)
        return gate

    # What a test looks at.

    def seen(self, match: Match = "") -> list[Seen]:
        """The requests so far that match, in order."""
        return list(filter(matcher(match), self.requests))

    def lines(self, match: Match = "") -> list[str]:
        """Their methods, paths and queries, the root left out of the path."""
        return [seen.line.replace(self.dialect.root, "", 1) for seen in self.seen(match)]

    def totals(self) -> dict[str, Any]:
        """How many requests came so far, by the last word of their paths that is no number, and how many bytes of bodies
        were sent."""
        kinds = Counter(_kind(seen.path) for seen in self.requests)
        return {"requests": kinds, "bytes": sum(seen.sent for seen in self.requests)}

    async def requested(self, match: Match = "", count: int = 1) -> None:
        """Return once *count* matching requests have come."""
        if len(self.seen(match)) < count:
            arrival: Deferred[None] = Deferred()
            self._watchers.append((matcher(match), count, arrival))
            await arrival

    # One request.

    async def _handle(self, exchange: Exchange) -> None:
        seen = exchange.seen
        if seen.path.startswith("/_control/"):
            reply = json_reply(self.totals()) if seen.path == "/_control/totals" else self._control()
            await self._send(exchange, reply, None)
            return
        self.requests.append(seen)
        self._notify()
        for gate in self._gates:
            if gate.after is None and gate.matches(seen):
                await gate.wait(seen)
        if self.latency:
            await deferLater(self._reactor, self.latency)
        fault = self._next_fault(seen)
        if isinstance(fault, Cut) and fault.after is None:
            await self._cut(exchange, fault)
            return
        reply = await self.reply(exchange)
        if fault is not None:
            reply = fault.change(reply)
        reply.flatten()
        await self._send(exchange, reply, fault)

    def _notify(self) -> None:
        ready = [watch for watch in self._watchers if len(self.seen(watch[0])) >= watch[1]]
        self._watchers = [watch for watch in self._watchers if watch not in ready]
        for _match, _count, arrival in ready:
            arrival.callback(None)

    def _next_fault(self, seen: Seen) -> Optional[Fault]:
        for script in self._scripts:
            if script.matches(seen):
                if script.times is not None:
                    script.times -= 1
                    if not script.times:
                        self._scripts.remove(script)
                return script.fault
        return None

    async def _cut(self, exchange: Exchange, fault: Cut) -> None:
        if isinstance(fault, Stall):
            await Deferred[None]()  # the connection's end cancels it
        elif isinstance(fault, Reset):
            exchange.reset()
        else:
            exchange.close()

    async def _send(self, exchange: Exchange, reply: Reply, fault: Optional[Fault]) -> None:
        seen = exchange.seen
        seen.status = reply.status
        await exchange.write(self._head(exchange, reply))
        stops = self._stops(seen, fault)
        for piece in self._paced(reply, fault):
            if self.line is not None:
                await deferLater(self._reactor, self.line.pause(len(piece), self._reactor.seconds()))
            while stops and seen.sent + len(piece) >= stops[0][0]:
                place, stop = stops.pop(0)
                before, piece = piece[: place - seen.sent], piece[place - seen.sent :]
                await self._write(exchange, before, reply)
                if isinstance(stop, Gate):
                    await stop.wait(seen)
                else:
                    await self._cut(exchange, stop)
                    return
            await self._write(exchange, piece, reply)
            pause = self._pause(len(piece), fault)
            if pause:
                await deferLater(self._reactor, pause)
        if reply.framing == "chunked":
            await exchange.write(b"0\r\n\r\n")

    def _head(self, exchange: Exchange, reply: Reply) -> bytes:
        headers = list(reply.headers)
        if reply.status not in (204, 304):
            if reply.framing == "chunked":
                headers.append(("Transfer-Encoding", "chunked"))
            elif reply.framing == "close":
                headers.append(("Connection", "close"))
                exchange.close_after = True
            else:
                headers.append(("Content-Length", str(reply.content_length())))
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        return f"HTTP/1.1 {reply.status} {REASONS.get(reply.status, 'Whatever')}\r\n{lines}\r\n".encode("latin-1")

    def _stops(self, seen: Seen, fault: Optional[Fault]) -> list[tuple[int, Union[Gate, Cut]]]:
        stops: list[tuple[int, Union[Gate, Cut]]] = [
            (gate.after, gate) for gate in self._gates if gate.after is not None and gate.matches(seen)
        ]
        if isinstance(fault, Cut) and fault.after is not None:
            stops.append((fault.after, fault))
        return sorted(stops, key=lambda stop: stop[0])

    def _paced(self, reply: Reply, fault: Optional[Fault]) -> Iterator[bytes]:
        size = PIECE
        if isinstance(fault, Slow):
            size = fault.piece
        elif self.bytes_per_second is not None:
            size = max(1, min(PIECE, int(self.bytes_per_second / 20)))
        elif self.line is not None:
            size = SHARED_PIECE
        for piece in reply.content():
            for start in range(0, len(piece), size):
                yield piece[start : start + size]

    def _pause(self, size: int, fault: Optional[Fault]) -> float:
        rate = fault.bytes_per_second if isinstance(fault, Slow) else self.bytes_per_second
        return size / rate if rate else 0.0

    async def _write(self, exchange: Exchange, piece: bytes, reply: Reply) -> None:
        if not piece:
            return
        framed = b"%x\r\n%s\r\n" % (len(piece), piece) if reply.framing == "chunked" else piece
        await exchange.write(framed)
        exchange.seen.sent += len(piece)

    def _control(self) -> Reply:
        lines = [{"line": seen.line, "body": seen.body_bytes, "status": seen.status} for seen in self.requests]
        return json_reply(lines)


def _kind(path: str) -> str:
    """What a path asks for: "frames", "metadata", "series" (all of one)."""
    return next(step for step in reversed(path.split("/")) if not step.replace(".", "").replace(",", "").isdigit())


def main(arguments: list[str]) -> None:
    """Serve until killed; the first line printed is the DICOMweb root's URL."""
    parser = argparse.ArgumentParser(prog="python -m tests.stores.simulated", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--interface", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--dialect", choices=sorted(DIALECTS), default="standard")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--bytes-per-second", type=float, default=None, help="of each answer's body")
    parser.add_argument("--shared-bytes-per-second", type=float, default=None, help="of all answers' bodies together")
    parser.add_argument("files", nargs="*", help="DICOM files to hold")
    options = parser.parse_args(arguments)
    from twisted.internet import reactor

    store = SimulatedStore(
        reactor,
        DIALECTS[options.dialect],
        options.files,
        options.latency,
        options.bytes_per_second,
        options.shared_bytes_per_second,
    ).start(options.port, options.interface)
    print(store.url, flush=True)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1:])
