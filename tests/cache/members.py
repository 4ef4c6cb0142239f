"""A process of its own that uses a local cache, as workers and loaders do, and does what a test tells it.

It is told in lines of JSON (method, arguments), and answers each with one: the result, or an error's text.
"""

from __future__ import annotations

import base64
import json
import sys
from collections import deque
from typing import Any

import attrs
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.error import ConnectionDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.stdio import StandardIO
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from tests.cache.support import A
from tests.running import python_environment, tied
from tests.waiting import within
from twistedproxy.cache.address import LocalAddress, SharedFolder
from twistedproxy.cache.local.cache import LocalCache
from twistedproxy.dicom.resource import Instance, Scope

SECONDS = 86400.0


def instance(number: int) -> Instance:
    """One of several instances of one series."""
    return attrs.evolve(A, sop=f"1.2.3.4.{number}")


class Member(ProcessProtocol):
    """The process, seen by the test. *own*: it is a proxy that prepares the folder, else one of its workers."""

    def __init__(self, reactor: Any, folder: str, size: int, own: bool = False) -> None:
        self._answers: deque[Deferred[Any]] = deque()
        self._rest = b""
        self.errors = b""
        self.ended: Deferred[None] = Deferred()
        self._ready = self._expect()
        command = tied([sys.executable, "-m", "tests.cache.members", folder, str(size), "own" if own else "shared"])
        self._process = reactor.spawnProcess(self, command[0], command, env=python_environment())

    async def started(self) -> Member:
        """Return once it has opened the cache. Raises RuntimeError where it can't."""
        await within(self._ready)
        return self

    async def put(self, number: int, entries: dict[bytes, bytes]) -> bool:
        """Write entries below instance *number* under the present fence."""
        return bool(await self._ask("put", number, {_text(name): _text(value) for name, value in entries.items()}))

    async def get(self, number: int, *names: bytes) -> dict[bytes, bytes]:
        """Read entries."""
        found = await self._ask("get", number, list(map(_text, names)))
        return {_bytes(name): _bytes(value) for name, value in found.items()}

    async def claim(self, number: int, *names: bytes) -> set[bytes]:
        """Claim names; which were won."""
        return set(map(_bytes, await self._ask("claim", number, list(map(_text, names)))))

    async def invalidate(self, number: int) -> None:
        """Invalidate an instance."""
        await self.invalidate_scope(instance(number).scope)

    async def invalidate_scope(self, scope: Scope) -> None:
        """Invalidate all of *scope*."""
        await self._ask("invalidate", *attrs.astuple(scope))

    async def stop(self) -> None:
        """Let it close the cache and end."""
        self._process.closeStdin()
        await within(self.ended)

    async def kill(self) -> None:
        """Kill it; return when it is gone. Harmless when it is."""
        try:
            self._process.signalProcess("KILL")
        except ProcessExitedAlready:
            return
        await within(self.ended)

    def _ask(self, method: str, *arguments: Any) -> Any:
        self._process.write(json.dumps([method, *arguments]).encode() + b"\n")
        return within(self._expect())

    def _expect(self) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred()
        self._answers.append(answer)
        return answer

    def outReceived(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            result, error = json.loads(line)
            answer = self._answers.popleft()
            if error is None:
                answer.callback(result)
            else:
                answer.errback(RuntimeError(error))

    def errReceived(self, data: bytes) -> None:
        self.errors += data

    def processEnded(self, reason: Failure) -> None:
        while self._answers:
            self._answers.popleft().errback(RuntimeError(f"it ended: {self.errors.decode()[-2000:]}"))
        self.ended.callback(None)


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


_CLOSED = Failure(ConnectionDone())


class _Orders(LineOnlyReceiver):
    """The process, seen from inside: orders from its standard input."""

    delimiter = b"\n"
    MAX_LENGTH = 64 << 20

    def __init__(self, reactor: Any, cache: LocalCache) -> None:
        self._reactor = reactor
        self._cache = cache

    def lineReceived(self, line: bytes) -> None:
        method, *arguments = json.loads(line)
        ensureDeferred(self._answer(getattr(self, f"do_{method}")(*arguments)))

    async def _answer(self, doing: Any) -> None:
        try:
            answer = [await doing, None]
        except Exception as error:
            answer = [None, f"{type(error).__name__}: {error}"]
        self.sendLine(json.dumps(answer).encode())

    async def do_put(self, number: int, entries: dict[str, str]) -> bool:
        fence = (await self._cache.get_many(instance(number), [])).fence
        values = {_bytes(name): _bytes(value) for name, value in entries.items()}
        return await self._cache.put_many(instance(number), fence, values, SECONDS)

    async def do_get(self, number: int, names: list[str]) -> dict[str, str]:
        reading = await self._cache.get_many(instance(number), list(map(_bytes, names)))
        return {_text(name): _text(value) for name, value in reading.entries.items()}

    async def do_claim(self, number: int, names: list[str]) -> list[str]:
        token = b"%d" % id(self)
        return list(map(_text, await self._cache.claim(instance(number), list(map(_bytes, names)), token, SECONDS)))

    async def do_invalidate(self, *scope: str) -> None:
        await self._cache.invalidate(Scope(*scope))

    def connectionLost(self, reason: Failure = _CLOSED) -> None:
        ensureDeferred(self._end())

    async def _end(self) -> None:
        await self._cache.stop()
        self._reactor.stop()


def main(folder: str, size: str, role: str) -> None:
    """Open the cache and do what comes."""
    from twisted.internet import reactor as installed

    reactor: Any = installed
    address = LocalAddress(folder, int(size)) if role == "own" else SharedFolder(folder, int(size))
    cache = LocalCache(reactor, address)
    orders = _Orders(reactor, cache)

    StandardIO(orders)
    reactor.callWhenRunning(lambda: ensureDeferred(orders._answer(cache.start())))
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
