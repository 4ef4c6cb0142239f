"""A whole proxy without sockets, processes or waiting: real components, routes and channels, an origin and a clock by hand."""

from __future__ import annotations

import re
from typing import Any, Optional

import attrs
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.frames.support import JPEG, MemoryOrigin
from tests.server.wire import Wire
from twistedproxy.cache.address import MemoryAddress
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.hot.cached import CachedAnswer, CachedAnswers
from twistedproxy.hot.responses import Key
from twistedproxy.origin.errors import OriginRefused
from twistedproxy.origin.interface import Caller, OriginRequest, OriginResponse
from twistedproxy.proxy import Proxy
from twistedproxy.server.site import ProxySite
from twistedproxy.settings import MIB, Mount, Settings
from twistedproxy.system.logs import AccessLog
from twistedproxy.system.metrics import Snapshot

FRAMES = "/dicomweb/studies/1.2/series/1.2.3/instances/1.2.3.4/frames/"
ACCEPT = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
ALICE = "Bearer alice-2d1c7e"
MALLORY = "Bearer mallory-77aa01"
BEGAN = 1_000_000.0


class MemoryStore(MemoryOrigin):
    """Lets callers in whose Authorization is not Mallory's; hands nothing on."""

    async def metadata(self, instance: Instance, caller: Caller) -> InstanceMetadata:
        self.asked.append(("metadata", caller.credential))
        if (b"Authorization", MALLORY.encode("ascii")) in caller.headers:
            raise OriginRefused(403, (), b"no")
        if self.refusal is not None:
            raise self.refusal
        self.readers.add(caller.credential)
        return self.metadata_value

    def frames_per_request(self, instance: Instance) -> int:
        return 100

    async def forward(self, request: OriginRequest) -> OriginResponse:
        raise OriginRefused(404, (), b"nothing is handed on")


class _Lines:
    """Takes lines as `LogOutput` does."""

    json = False

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.lines.append(line)


class _NoReactor(Clock):
    """A clock that is taken for a reactor."""

    def getDelayedCalls(self) -> list[Any]:
        return list(self.calls)

    def addSystemEventTrigger(self, *_arguments: Any, **_more: Any) -> None: ...


@attrs.frozen
class _Counted:
    """`CachedAnswers` whose findings are counted."""

    _cached: CachedAnswers
    find: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cached, name)


class HotProxy:
    """One worker. *hot*: bytes for hot responses. *reads_now*: whether frames are answered from the cache before a request is
    parsed. *fast*: whether anything is."""

    def __init__(
        self,
        test: SynchronousTestCase,
        hot: int,
        clock: Optional[_NoReactor] = None,
        reads_now: bool = False,
        fast: bool = True,
        **settings: Any,
    ) -> None:
        self.clock = clock or _NoReactor()
        metadata = InstanceMetadata(
            100, 256, 256, samples_per_pixel=3, photometric_interpretation="YBR_FULL_422", transfer_syntax=JPEG
        )
        self.store = MemoryStore(metadata_value=metadata)
        self._log = _Lines()
        given = {
            "origin": (Mount("/dicomweb", self.store.url),),
            "listen": ("tcp:0",),
            "cache": MemoryAddress(),
            "cache_memory": 64 * MIB,
            "hot_memory": hot,
            "prefetch": False,
            "render_workers": 0,
            **settings,
        }
        self.components = Proxy(
            self.clock,
            Settings(**given),
            AccessLog(self._log, lambda: BEGAN),  # type: ignore[arg-type]
            origins=lambda *_arguments: self.store,
            wall_clock=lambda: BEGAN + self.clock.seconds(),
        )
        self.found = 0
        """Answers that were made of frames from the cache before a request was parsed."""
        dispatcher = self.components._hot
        find = dispatcher.cached.find

        def counted(key: Key, caller: Caller) -> Optional[CachedAnswer]:
            answer = find(key, caller)
            self.found += answer is not None
            return answer

        dispatcher.cached = _Counted(dispatcher.cached, counted) if reads_now else None  # type: ignore[assignment]
        if not fast:
            self.components.connections.hot = None
        self._site = ProxySite(self.components._routes.resource({}), self.components.connections, self.clock)

    @property
    def hot(self) -> Any:
        """Its hot responses."""
        return self.components.hot_responses

    def connect(self) -> Wire:
        """A new connection."""
        wire = Wire()
        wire.protocol = self._site.buildProtocol(None)  # type: ignore[arg-type]
        wire.protocol.makeConnection(wire)
        return wire

    def get(self, frames: object = 1, **more: Any) -> Reply:
        """Ask for frames on a connection of its own; see `request`."""
        return self.ask(request(frames, **more))

    def ask(self, data: bytes, wire: Optional[Wire] = None) -> Reply:
        """Send *data* and take the one answer."""
        wire = wire or self.connect()
        self._log.lines.clear()
        wire.clear()
        wire.send(data)
        head, _, body = wire.value().partition(b"\r\n\r\n")
        return Reply(int(head.split(b" ")[1]) if head else 0, head, body, self.outcome())

    def outcome(self) -> str:
        """What the last line of the access log says of the cache."""
        return self._log.lines[-1].split()[-1] if self._log.lines else ""

    def access_lines(self) -> list[str]:
        """The lines of the access log since this was asked last, without times; hot ones as hits."""
        lines, self._log.lines = self._log.lines, []
        return [re.sub(r" [\d.]+ hot$", " - hit", re.sub(r" [\d.]+ (?!hot)(\S+)$", r" - \1", line)) for line in lines]

    def counted(self) -> dict[str, Any]:
        """Its metrics, hot as hits; of times only how many there are, and none of the cache, which is not asked."""
        snapshot: Snapshot = self.components.metrics.snapshot()
        counted: dict[str, Any] = {}
        for family, rows in snapshot.items():
            for labels, numbers in rows:
                if family != "cache_operation_seconds":
                    key = f"{family} {' '.join('hit' if label == 'hot' else str(label) for label in labels)}"
                    counted[key] = counted.get(key, 0) + (sum(numbers[:-1]) if len(numbers) > 1 else numbers[0])
        return counted


@attrs.frozen
class Reply:
    """One answer, and what the access log says of the cache."""

    status: int
    head: bytes
    body: bytes
    outcome: str


def request(
    frames: object = 1, method: str = "GET", authorization: str = ALICE, accept: str = ACCEPT, more: str = ""
) -> bytes:
    """A request for frames as viewers make it. *more*: header lines, each with its CRLF."""
    head = f"{method} {FRAMES}{frames} HTTP/1.1\r\nHost: viewer.test\r\nAuthorization: {authorization}\r\n"
    return f"{head}Accept: {accept}\r\n{more}\r\n".encode("latin-1")
