"""The provider of `Origin` for a DICOMweb store over HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IPolicyForHTTPS

from twistedproxy.deferreds import in_slices
from twistedproxy.dicom.json_events import BadMetadata
from twistedproxy.dicom.metadata import InstanceMetadata, MetadataParser
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import Frame
from twistedproxy.origin.errors import (
    HAS_NOT,
    AnsweredByCache,
    FramesRefused,
    NotAsStored,
    OriginBadAnswer,
    OriginError,
    OriginRefused,
    OriginTimeout,
)
from twistedproxy.origin.http.client import Transport, normal_url
from twistedproxy.origin.http.cut import FileReads, NoHelp
from twistedproxy.origin.http.frames import FINAL, NOT_THIS_WAY, FrameLoad, Stores
from twistedproxy.origin.http.limiter import Limiter
from twistedproxy.origin.http.requests import Requests, drain, observed
from twistedproxy.origin.http.responses import Budget, instance_file
from twistedproxy.origin.interface import (
    Caller,
    Origin,
    OriginRequest,
    OriginResponse,
    Priority,
    is_dicom_json,
    is_for,
    past_caches,
)
from twistedproxy.settings import Settings
from twistedproxy.streams import ByteStream, StreamTooLong
from twistedproxy.system.metrics import Metrics

PING_TIMEOUT = 5.0  # seconds to an answer to `ping`
MAX_METADATA = 1 << 30  # bytes: ten times the largest seen, of sparsely tiled instances
MAX_LANES = 64  # requests of one list of frames that run or wait at once: the queue has room for 150 such lists
JSON = b"application/dicom+json"
UNKNOWN = InstanceMetadata(frames=1)
"""Of an instance of which nothing is known: no size, no transfer syntax."""


_log = Logger()


class HTTPOrigin(Origin):
    """A DICOMweb store, or anything above several of them, at *url* (http or https).

    Of *settings* it reads those that begin with ``origin_``, and ``max_answer``, which bounds the files that it cuts frames
    out of; retries after 429 and 503 count into ``origin_timeout``.
    *policy*: how TLS certificates are verified, by default against the system's authorities. Raises ValueError for a bad URL.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        settings: Settings,
        metrics: Optional[Metrics] = None,
        policy: Optional[IPolicyForHTTPS] = None,
    ) -> None:
        self.url = normal_url(url)
        self._clock: IReactorTime = reactor
        self._metrics = metrics or Metrics()
        timeout = settings.origin_timeout
        self._limiter = Limiter(reactor, settings.origin_concurrency, wait_timeout=timeout)
        self._transport = Transport(
            reactor,
            url,
            settings.origin_connect_timeout,
            timeout,
            settings.origin_stall_timeout,
            settings.origin_concurrency + 1,
            policy,
            lambda direction, size: self._metrics.count("origin_bytes", (direction,), size),
        )
        self._requests = Requests(reactor, self._transport, self._limiter, timeout)
        self._files = FileReads(reactor, settings.max_answer)
        self._stores = Stores(url.rstrip("/"))
        self._last_error: Optional[str] = None

    async def metadata(self, instance: Instance, caller: Caller) -> InstanceMetadata:
        """See `Origin.metadata`."""
        return await observed(self._metrics, self._clock, "metadata", self._metadata(instance, caller))

    async def frames(
        self,
        instance: Instance,
        numbers: Sequence[int],
        caller: Caller,
        metadata: InstanceMetadata,
        priority: Priority = Priority.CALLER,
        limit: Optional[int] = None,
    ) -> Mapping[int, Frame]:
        """See `Origin.frames`."""
        load = self._load(instance, caller, priority, metadata, Budget(limit, len(numbers)))
        return await observed(self._metrics, self._clock, "frames", self._frames(load, numbers))

    def gives_unknown(self, instance: Instance) -> bool:
        """See `Origin.gives_unknown`: not where a store must be asked by the transfer syntax of the instance."""
        return self._stores.at(instance.root).dialect.frames_accept(None) is not None

    async def frame_of_unknown(self, instance: Instance, number: int, caller: Caller, limit: int) -> Frame:
        """See `Origin.frame_of_unknown`."""
        load = self._load(instance, past_caches(caller), Priority.UNKNOWN, UNKNOWN, Budget(limit, 1))
        return await observed(self._metrics, self._clock, "frames", load.run_unknown(number))

    async def ready(self, caller: Caller) -> None:
        """See `Origin.ready`."""
        slot = await self._limiter.acquire(Priority.BLOCK, caller.flow)
        slot.release()

    def frames_per_request(self, instance: Instance) -> int:
        """See `Origin.frames_per_request`."""
        return self._stores.at(instance.root).frames_per_request

    async def stored_instance(
        self, instance: Instance, caller: Caller, priority: Priority = Priority.WHOLE
    ) -> ByteStream:
        """See `Origin.stored_instance`. The slot is held until the stream was read to its end or closed."""
        return await observed(self._metrics, self._clock, "instance", self._stored_instance(instance, caller, priority))

    async def forward(self, request: OriginRequest) -> OriginResponse:
        """See `Origin.forward`. A redirect comes back as it came; *length* of an answer to HEAD is that of its GET."""
        return await observed(self._metrics, self._clock, "forward", self._requests.forward(request))

    async def ping(self) -> Optional[str]:
        """See `Origin.ping`: any HTTP answer will do, also a refusal. Takes no slot: a busy origin is not gone.

        A doubt, and no failure, is a 404 where all answers were: the URL may be anything above several DICOMweb roots.
        """
        asking = Deferred.fromCoroutine(self._ping())
        timeout = OriginTimeout(f"the origin did not answer within {PING_TIMEOUT:g} s")
        asking.addTimeout(PING_TIMEOUT, self._clock, onTimeoutCancel=lambda *_: Failure(timeout))
        try:
            await asking
        except OriginError as error:
            self._last_error = str(error)
            raise
        lost = not self._transport.found_something
        doubt = f"{self.url}/studies answered 404: is {self.url} a DICOMweb root, or above one?" if lost else None
        if doubt is not None and doubt != self._last_error:
            _log.warn("{doubt}", doubt=doubt, event="origin_doubtful")
        self._last_error = doubt
        return doubt

    def status(self) -> dict[str, object]:
        """See `Origin.status`."""
        return {
            "kind": "http",
            "url": self.url,
            "last_ping_error": self._last_error,
            "requests": self._limiter.status(),
            "stores": self._stores.status(),
        }

    async def stop(self) -> None:
        """Fail what waits, drop all connections."""
        self._limiter.close()
        await self._transport.close()

    def _load(
        self, instance: Instance, caller: Caller, priority: Priority, metadata: InstanceMetadata, budget: Budget
    ) -> FrameLoad:
        store, lanes = self._stores.at(instance.root), min(MAX_LANES, 2 * self._limiter.size)
        return FrameLoad(self._requests, store, instance, caller, priority, metadata, budget, lanes)

    async def _metadata(self, instance: Instance, caller: Caller) -> InstanceMetadata:
        target = f"{instance.root}/{instance.path}/metadata"
        answer = await self._requests.get(target, JSON, caller, Priority.UNKNOWN)
        self._stores.at(instance.root).recognize(answer.headers)
        try:
            if not is_dicom_json(answer.headers):
                raise OriginBadAnswer("the origin's response to a metadata request is not DICOM JSON")
            metadata = await self._parse(answer, instance)
            if not is_for(caller, answer.headers):
                raise AnsweredByCache(metadata)
            self._requests.standings.proven(caller)
            return metadata
        except BadMetadata as bad:
            raise OriginBadAnswer(f"the origin's metadata cannot be used: {bad}") from bad
        finally:
            answer.body.close()

    async def _parse(self, answer: OriginResponse, instance: Instance) -> InstanceMetadata:
        parser = MetadataParser(instance.uids)
        size = 0
        while chunk := await answer.body.read():
            size += len(chunk)
            if size > MAX_METADATA:
                raise OriginBadAnswer(f"the origin's metadata have more than {MAX_METADATA} bytes")
            await in_slices(parser.feed, chunk, self._clock)
        return parser.close()

    async def _frames(self, load: FrameLoad, numbers: Sequence[int]) -> Mapping[int, Frame]:
        """Frames as the store gives them; for a caller, out of the instance's file where it does not."""
        store, asked, now = load.store, (load.instance.sop, load.caller.credential), self._clock.seconds()
        if load.priority is not Priority.CALLER:
            return await load.run(numbers)
        if store.by_file.has(asked, now) and (frames := await self._from_file(load, numbers)) is not None:
            return frames
        try:
            return await load.run(numbers)
        except (OriginRefused, NotAsStored) as failed:
            if isinstance(failed, OriginRefused) and failed.status in FINAL:
                raise
            if not store.without_file.has(asked, now) and (frames := await self._from_file(load, numbers)) is not None:
                return frames
            if isinstance(failed, OriginRefused):
                raise FramesRefused(failed.status, failed.headers, failed.body) from failed
            raise

    async def _from_file(self, load: FrameLoad, numbers: Sequence[int]) -> Optional[Mapping[int, Frame]]:
        """The frames out of the instance's file; None where that is no help. What will be no help to this caller the next
        time either is remembered."""
        store, asked = load.store, (load.instance.sop, load.caller.credential)
        try:
            frames = await self._files.frames(
                load.instance,
                load.caller,
                numbers,
                load.metadata,
                lambda: self._stored_instance(load.instance, load.caller, Priority.CALLER),
            )
        except (OriginError, StreamTooLong) as no_help:
            store.by_file.discard(asked)
            has_not = isinstance(no_help, OriginRefused) and no_help.status in HAS_NOT
            if has_not or isinstance(no_help, (NoHelp, StreamTooLong)):
                store.without_file.add(asked, self._clock.seconds())
            return None
        store.by_file.add(asked, self._clock.seconds())
        self._requests.standings.proven(load.caller)
        return frames

    async def _stored_instance(self, instance: Instance, caller: Caller, priority: Priority) -> ByteStream:
        target = f"{instance.root}/{instance.path}"
        first, second = self._stores.at(instance.root).dialect.instances
        try:
            return await self._open(target, first, caller, priority)
        except OriginRefused as refused:
            if refused.status not in NOT_THIS_WAY:
                raise
        return await self._open(target, second, caller, priority)

    async def _open(self, target: str, accept: bytes, caller: Caller, priority: Priority) -> ByteStream:
        answer = await self._requests.get(target, accept, caller, priority, measured=False)
        try:
            return instance_file(answer)
        except OriginBadAnswer:
            answer.body.close()
            raise

    async def _ping(self) -> None:
        request = OriginRequest(b"GET", b"/studies", b"limit=1", ((b"Accept", JSON),))
        answer = await self._transport.request(request, deadline=PING_TIMEOUT)
        try:
            await drain(answer)
        except OriginError:
            pass  # it has answered
