"""A DICOMweb store that does what a test tells it, on a real loopback socket.

- It records every request, in order, when its head has come: `requests`.
- It answers as one of the known stores would (`tests.stores.dialects`), fails as a test wants
  (`fail`, with the values of `tests.stores.faults`), and waits where a test wants (`hold`): no test needs to sleep.
- It shares no code with the proxy.

As a process of its own, for benchmarks: ``python -m tests.stores.simulated --help``.
"""

from __future__ import annotations

import argparse
import base64
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Optional, Union

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from tests.stores.dialects import DIALECTS, STANDARD, Dialect
from tests.stores.faults import Cut, Fault, Reset, Slow, Stall
from tests.stores.http_server import Exchange, HTTPServer, Seen
from tests.stores.instances import StoredInstance, from_file, from_part10, search
from tests.stores.replies import PIECE, Part, Reply, error, json_reply

MAX_KEPT_UPLOAD = 128 << 20  # bytes; longer uploads are counted and thrown away
REASONS = {200: "OK", 204: "No Content", 206: "Partial Content", 302: "Found", 401: "Unauthorized", 404: "Not Found"}

Match = Union[str, Callable[[Seen], bool]]
Headers = list[tuple[str, str]]


def _matcher(match: Match) -> Callable[[Seen], bool]:
    return match if callable(match) else lambda seen: match in seen.path


@attrs.define(eq=False)
class Gate:
    """Where matching requests wait until the test lets them go. *after*: body bytes that go out before."""

    matches: Callable[[Seen], bool]
    after: Optional[int] = None
    waiting: list[Seen] = attrs.field(factory=list)
    open: bool = False
    _deferreds: list[Deferred[None]] = attrs.field(factory=list)
    _watchers: list[tuple[int, Deferred[None]]] = attrs.field(factory=list)

    async def reached(self, count: int = 1) -> None:
        """Return once *count* requests wait here, or have."""
        if len(self.waiting) < count:
            arrival: Deferred[None] = Deferred()
            self._watchers.append((count, arrival))
            await arrival

    def release(self, count: Optional[int] = None) -> None:
        """Let the first *count* waiting requests go; None: all, and whoever comes later too."""
        if count is None:
            self.open = True
        going, self._deferreds = self._deferreds[:count], self._deferreds[len(self._deferreds[:count]) :]
        for deferred in going:
            deferred.callback(None)

    async def wait(self, seen: Seen) -> None:
        """A request came here."""
        if self.open:
            return
        deferred: Deferred[None] = Deferred(lambda gone: self._deferreds.remove(gone))
        self._deferreds.append(deferred)
        self.waiting.append(seen)
        ready = [watcher for count, watcher in self._watchers if count <= len(self.waiting)]
        self._watchers = [(count, watcher) for count, watcher in self._watchers if count > len(self.waiting)]
        for watcher in ready:
            watcher.callback(None)
        await deferred


@attrs.define(eq=False)
class _Script:
    fault: Fault
    matches: Callable[[Seen], bool]
    times: Optional[int]


class SimulatedStore:
    """One store. *reactor* keeps time and listens; *latency*: seconds before each answer;
    *bytes_per_second*: of each answer's body, None for as fast as it goes."""

    def __init__(
        self,
        reactor: Any,
        dialect: Dialect = STANDARD,
        instances: Iterable[StoredInstance | Path | str] = (),
        latency: float = 0.0,
        bytes_per_second: Optional[float] = None,
    ) -> None:
        self.dialect = dialect
        self.latency = latency
        self.bytes_per_second = bytes_per_second
        self.requests: list[Seen] = []
        self.instances: dict[str, StoredInstance] = {}
        self.tokens: dict[str, Optional[set[str]]] = {}
        """Bearer tokens, and which SOP instances each may read; None: all."""
        self.users: dict[str, str] = {}
        """Names and passwords of Basic authentication; they may read all."""
        self.on_body: list[Callable[[Seen, bytes], None]] = []
        """Called with each piece of a request's body as it arrives."""
        self.port = 0
        self.factory = HTTPServer(self._handle, reactor.seconds, lambda call: reactor.callLater(0, call))
        self._reactor = reactor
        self._listening: Any = None
        self._gates: list[Gate] = []
        self._scripts: list[_Script] = []
        self._watchers: list[tuple[Callable[[Seen], bool], int, Deferred[None]]] = []
        for instance in instances:
            self.add(instance)

    # How a test sets it up.

    def add(self, instance: StoredInstance | Path | str) -> StoredInstance:
        """Hold one more instance, or the one in a DICOM file."""
        stored = instance if isinstance(instance, StoredInstance) else from_file(instance)
        self.instances[stored.sop] = stored
        return stored

    def start(self, port: int = 0) -> SimulatedStore:
        """Listen on the loopback interface."""
        self._listening = self._reactor.listenTCP(port, self.factory, interface="127.0.0.1", backlog=1024)
        self.port = self._listening.getHost().port
        return self

    async def stop(self) -> None:
        """Stop listening and cut every connection."""
        listening, self._listening = self._listening, None
        if listening is not None:
            await listening.stopListening()
        await self.factory.close_all()

    @property
    def url(self) -> str:
        """The DICOMweb root, no slash at its end."""
        return f"{self.server}{self.dialect.root}"

    @property
    def server(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    def allow(self, token: str, *sops: str) -> None:
        """Let callers with this bearer token read these SOP instances; none given: all. From the first `allow` on,
        who has no token is refused with 401, and who may not read an instance with 403."""
        self.tokens[token] = set(sops) or None

    def fail(self, fault: Fault, match: Match = "", times: Optional[int] = 1) -> None:
        """Answer the next *times* requests (None: all) that match so. *match*: part of the path, or a function."""
        self._scripts.append(_Script(fault, _matcher(match), times))

    def heal(self) -> None:
        """Forget all faults."""
        self._scripts.clear()

    def hold(self, match: Match = "", after: Optional[int] = None) -> Gate:
        """Let matching requests wait, before anything is answered or after *after* bytes of the answer's body."""
        gate = Gate(_matcher(match), after)
        self._gates.append(gate)
        return gate

    # What a test looks at.

    def seen(self, match: Match = "") -> list[Seen]:
        """The requests so far that match, in order."""
        return list(filter(_matcher(match), self.requests))

    def lines(self, match: Match = "") -> list[str]:
        """Their methods, paths and queries, the root left out of the path."""
        return [seen.line.replace(self.dialect.root, "", 1) for seen in self.seen(match)]

    async def requested(self, match: Match = "", count: int = 1) -> None:
        """Return once *count* matching requests have come."""
        if len(self.seen(match)) < count:
            arrival: Deferred[None] = Deferred()
            self._watchers.append((_matcher(match), count, arrival))
            await arrival

    # One request.

    async def _handle(self, exchange: Exchange) -> None:
        seen = exchange.seen
        if seen.path.startswith("/_control/"):
            await self._send(exchange, self._control(), None)
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
        reply = await self._reply(exchange)
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

    # What a store answers.

    async def _reply(self, exchange: Exchange) -> Reply:
        seen = exchange.seen
        body = await self._body(exchange)
        if not seen.path.startswith(self.dialect.root + "/"):
            return error(404, "outside of the DICOMweb root")
        allowed = self._allowed(seen)
        if isinstance(allowed, Reply):
            return allowed
        steps = seen.path[len(self.dialect.root) + 1 :].split("/")
        if seen.method == "OPTIONS":
            return Reply(204, [("Allow", "GET, POST, DELETE, OPTIONS")])
        if seen.method in ("POST", "PUT"):
            return self._store(seen, body)
        readable = [stored for stored in self.instances.values() if allowed is None or stored.sop in allowed]
        if steps[-1] == "big":
            return _big(int(dict(seen.arguments).get("size", "0")))
        below = self._below(steps, list(self.instances.values()))
        if seen.method == "DELETE":
            for stored in below:
                del self.instances[stored.sop]
            return Reply(204) if below else error(404, "nothing there")
        if steps[-1] in ("studies", "series", "instances"):
            return self._search(seen, steps, self._below(steps[:-1], readable))
        if not below:
            return error(404, "nothing there")
        if not self._below(steps, readable):
            return error(403, "not for you")
        return self._retrieve(seen, steps, self._below(steps, readable))

    async def _body(self, exchange: Exchange) -> Optional[bytes]:
        """The request's body, or None where it was too long to keep."""
        kept: Optional[list[bytes]] = []
        while chunk := await exchange.read():
            for listener in self.on_body:
                listener(exchange.seen, chunk)
            if kept is not None:
                if exchange.seen.body_bytes > MAX_KEPT_UPLOAD:
                    kept = None
                else:
                    kept.append(chunk)
        return None if kept is None else b"".join(kept)

    def _allowed(self, seen: Seen) -> Union[set[str], Reply, None]:
        if not self.tokens and not self.users:
            return None
        scheme, _, value = seen.header("Authorization").partition(" ")
        if scheme == "Bearer" and value in self.tokens:
            return self.tokens[value]
        if scheme == "Basic":
            name, _, password = base64.b64decode(value).decode().partition(":")
            if self.users.get(name) == password:
                return None
        kind = "Bearer" if self.tokens else "Basic"
        return Reply(
            401, [("WWW-Authenticate", f'{kind} realm="store"'), ("Content-Type", "text/plain")], b"who are you?"
        )

    def _below(self, steps: list[str], instances: list[StoredInstance]) -> list[StoredInstance]:
        names = dict(zip(steps[::2], steps[1::2], strict=False))
        return [
            stored
            for stored in instances
            if names.get("studies", stored.study) == stored.study
            and names.get("series", stored.series) == stored.series
            and names.get("instances", stored.sop) == stored.sop
        ]

    def _search(self, seen: Seen, steps: list[str], instances: list[StoredInstance]) -> Reply:
        found = search(instances, steps[-1], seen.arguments, self.url)
        return json_reply(found) if found or self.dialect.empty_search != 204 else Reply(204)

    def _retrieve(self, seen: Seen, steps: list[str], instances: list[StoredInstance]) -> Reply:
        first, what = instances[0], steps[-1]
        url = f"{self.url}/{first.resource}"
        if what == "metadata":
            return json_reply([self._metadata(stored) for stored in instances])
        if ("frames" in steps and what == "rendered") or what in ("rendered", "thumbnail"):
            return Reply(200, [("Content-Type", "image/jpeg")], first.frames[0])
        if "frames" in steps:
            return self._frames(first, what, seen.header("Accept"), url)
        if "bulkdata" in steps:
            value = b"".join(first.frames) if what == "7FE00010" else first.bulk.get(what)
            if value is None:
                return error(404, "no such bulk data")
            return Reply(200, [("Content-Type", "application/octet-stream")], value)
        return self._instances(instances, seen.header("Accept"))

    def _metadata(self, stored: StoredInstance) -> dict[str, Any]:
        metadata = stored.metadata_at(f"{self.url}/{stored.resource}")
        if self.dialect.syntax_tag:
            metadata[self.dialect.syntax_tag] = {"vr": "UI", "Value": [stored.transfer_syntax]}
        for tag in self.dialect.omitted_tags:
            _remove(metadata, tag)
        return metadata

    def _frames(self, instance: StoredInstance, text: str, accept: str, url: str) -> Reply:
        if not text.replace(",", "").isdigit():
            return error(400, "no frame list")
        numbers = [int(number) for number in text.split(",")]
        form = self.dialect.choose(instance, accept)
        if isinstance(form, Reply):
            return form
        if max(numbers) > len(instance.frames) or min(numbers) < 1:
            return self.dialect.missing(instance, numbers, form, url)
        return self.dialect.present(form, instance, numbers, url)

    def _instances(self, instances: list[StoredInstance], accept: str) -> Reply:
        single = accept.startswith("application/dicom")
        if single:
            if not self.dialect.single_instance or len(instances) > 1:
                return error(400 if self.dialect.name == "orthanc" else 406, "cannot generate that")
            return Reply(
                200, [("Content-Type", "application/dicom")], instances[0].part10, framing=self.dialect.framing
            )
        parts = [
            Part([("Content-Type", "application/dicom"), ("Content-Length", str(len(stored.part10)))], stored.part10)
            for stored in instances
        ]
        reply = Reply(200, [], parts=parts, framing=self.dialect.framing)
        reply.headers = [("Content-Type", f'multipart/related; type="application/dicom"; boundary={reply.boundary}')]
        return reply

    def _store(self, seen: Seen, body: Optional[bytes]) -> Reply:
        """STOW-RS (PS3.18 section 10.5): what can be read of the parts is held from now on."""
        stored = []
        boundary = seen.header("Content-Type").partition("boundary=")[2].split(";")[0].strip('" ')
        for part in (body or b"").split(b"--" + boundary.encode()) if boundary else []:
            content = part.partition(b"\r\n\r\n")[2][:-2]
            if content[128:132] == b"DICM":
                stored.append(self.add(from_part10(content)))
        items = [
            {
                "00081150": {"vr": "UI", "Value": [instance.sop_class]},
                "00081155": {"vr": "UI", "Value": [instance.sop]},
                "00081190": {"vr": "UR", "Value": [f"{self.url}/{instance.resource}"]},
            }
            for instance in stored
        ]
        return json_reply({"00081199": {"vr": "SQ", "Value": items}})


def big_pieces(size: int) -> Iterator[bytes]:
    """*size* bytes, made as they are read; each 64 KiB start with the number of that piece."""
    filler = bytes(range(256)) * (PIECE // 256)
    for number in range(-(-size // PIECE)):
        piece = number.to_bytes(8, "big") + filler[8:]
        yield piece[: size - number * PIECE]


def _big(size: int) -> Reply:
    return Reply(200, [("Content-Type", "application/octet-stream")], pieces=big_pieces(size), length=size)


def _remove(metadata: dict[str, Any], tag: str) -> None:
    metadata.pop(tag, None)
    for element in metadata.values():
        for item in element.get("Value", []) if element.get("vr") == "SQ" else []:
            _remove(item, tag)


def main(arguments: list[str]) -> None:
    """Serve until killed; the first line printed is the DICOMweb root's URL."""
    parser = argparse.ArgumentParser(prog="python -m tests.stores.simulated", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--dialect", choices=sorted(DIALECTS), default="standard")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--bytes-per-second", type=float, default=None, help="of each answer's body")
    parser.add_argument("files", nargs="*", help="DICOM files to hold")
    options = parser.parse_args(arguments)
    from twisted.internet import reactor

    store = SimulatedStore(
        reactor, DIALECTS[options.dialect], options.files, options.latency, options.bytes_per_second
    ).start(options.port)
    print(store.url, flush=True)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1:])
