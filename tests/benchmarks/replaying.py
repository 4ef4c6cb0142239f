"""Readers (`tests.benchmarks.readers`) before real servers: a clock, and connections that one loop looks after.

Rules:
- one thread for all readers, so that what measures takes little of the machine that is measured;
- a connection is kept, and opened again where the server had closed it;
- each frame is compared with the stored one by its checksum.
"""

from __future__ import annotations

import heapq
import selectors
import socket
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Optional
from urllib.parse import urlsplit

import attrs

from tests.benchmarks.measuring import AS_STORED
from tests.benchmarks.readers import Answer, Done, Item
from tests.clients import split_multipart

RECEIVED = 1 << 18  # bytes at once


@attrs.frozen
class Held:
    """A frame's *path* below the DICOMweb root, and its checksum."""

    path: str
    checksum: int


@attrs.define(eq=False)
class _Connection:
    """*done*: takes the answer to the request that is under way."""

    socket: socket.socket
    reader: str
    item: Item
    done: Done
    request: bytes = b""
    received: bytearray = attrs.Factory(bytearray)
    head: Optional[dict[str, str]] = None
    start: int = 0

    def complete(self) -> bool:
        """Whether all of the answer is there."""
        if self.head is None:
            end = self.received.find(b"\r\n\r\n")
            if end < 0:
                return False
            self.head, self.start = _fields(bytes(self.received[:end])), end + 4
        if "content-length" in self.head:
            return len(self.received) >= self.start + int(self.head["content-length"])
        return self.received.endswith(b"\r\n0\r\n\r\n")

    def body(self) -> bytes:
        """What came after the head, without chunks."""
        assert self.head is not None
        body = bytes(self.received[self.start :])
        return body if "content-length" in self.head else _dechunked(body)

    def answer(self, checksum: int) -> Answer:
        """What came, compared with what is stored."""
        assert self.head is not None
        if not self.received.startswith(b"HTTP/1.1 200 "):
            return Answer(wrong=True)
        parts = split_multipart(self.head["content-type"], self.body())
        right = [zlib.crc32(part.body) for part in parts] == [checksum]
        return Answer("; hit" in self.head.get("cache-status", ""), None, not right)


def _fields(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _dechunked(body: bytes) -> bytes:
    chunks, at = [], 0
    while size := int(body[at : (end := body.index(b"\r\n", at))].split(b";")[0], 16):
        chunks.append(body[end + 2 : end + 2 + size])
        at = end + 4 + size
    return b"".join(chunks)


class Network:
    """The clock and the connections of readers who ask the server at *url* for what is *held*. Each reader has a credential of
    its own."""

    def __init__(self, url: str, held: Mapping[Item, Held]) -> None:
        self._parts = urlsplit(url)
        self._held = held
        self._selector = selectors.DefaultSelector()
        self._planned: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._idle: dict[str, list[socket.socket]] = {}
        self._start = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._start

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._planned, (self.now() + seconds, self._count, call))

    def ask(self, reader: str, item: Item, done: Done) -> None:
        """One frame, on a connection of *reader*."""
        head = {"Host": self._parts.netloc, "Accept": AS_STORED, "Authorization": f"Bearer {reader}"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
        path = f"{self._parts.path.rstrip('/')}/{self._held[item].path}"
        request = f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode()
        idle = self._idle.setdefault(reader, [])
        self._send(_Connection(idle.pop() if idle else self._connect(), reader, item, done, request))

    def _connect(self) -> socket.socket:
        return socket.create_connection((self._parts.hostname or "", self._parts.port or 80))

    def _send(self, connection: _Connection) -> None:
        try:
            connection.socket.sendall(connection.request)
        except (BrokenPipeError, ConnectionResetError):
            connection.socket.close()
            connection.socket = self._connect()
            connection.socket.sendall(connection.request)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def run(self, until: Callable[[], bool]) -> None:
        """Until then."""
        while not until():
            while self._planned and self._planned[0][0] <= self.now():
                heapq.heappop(self._planned)[2]()
            wait = max(0.0, self._planned[0][0] - self.now()) if self._planned else 1.0
            for key, _ in self._selector.select(wait):
                self._receive(key.data)

    def _receive(self, connection: _Connection) -> None:
        try:
            came = connection.socket.recv(RECEIVED)
        except ConnectionResetError:
            came = b""
        if not came:
            self._closed(connection)
            return
        connection.received += came
        if not connection.complete():
            return
        self._selector.unregister(connection.socket)
        self._idle[connection.reader].append(connection.socket)
        connection.done(connection.answer(self._held[connection.item].checksum))

    def _closed(self, connection: _Connection) -> None:
        """The server closed a connection: between two requests it may."""
        self._selector.unregister(connection.socket)
        connection.socket.close()
        if connection.received:
            raise ConnectionError(f"the server closed the connection within an answer to {connection.reader}")
        connection.socket = self._connect()
        self._send(connection)

    def close(self) -> None:
        for idle in self._idle.values():
            for one in idle:
                one.close()
        self._selector.close()
