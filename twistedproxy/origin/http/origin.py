"""The provider of `Origin` for a DICOMweb store over HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional
from urllib.parse import quote

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.iweb import IPolicyForHTTPS

from twistedproxy.dicom.address import Instance
from twistedproxy.dicom.frame import Frame
from twistedproxy.dicom.metadata import InstanceMetadata, MetadataParser
from twistedproxy.dicom.metadata_json import BadMetadata
from twistedproxy.origin.errors import OriginBadAnswer, OriginError, OriginRefused, OriginTimeout
from twistedproxy.origin.http.answers import Budget, InstanceStream, found_instance
from twistedproxy.origin.http.dialect import Stores
from twistedproxy.origin.http.exchange import Answer
from twistedproxy.origin.http.frames import NOT_THIS_WAY, FrameLoad
from twistedproxy.origin.http.limiter import Limiter
from twistedproxy.origin.http.requests import NoObserver, Observer, Requests, observed
from twistedproxy.origin.http.retry import drain
from twistedproxy.origin.http.transport import Transport, normal_url
from twistedproxy.origin.interface import Caller, OriginRequest, OriginResponse, Priority
from twistedproxy.settings import Settings
from twistedproxy.streams import ByteStream

PING_TIMEOUT = 5.0  # seconds to an answer to `ping`
NOT_READABLE = frozenset({401, 403, 404, 410})
METADATA_SLICE = 65536  # bytes parsed between two turns of the reactor: 1.3 ms
MAX_METADATA = 1 << 30  # bytes: ten times the largest seen, of sparsely tiled instances
JSON = b"application/dicom+json"


class HTTPOrigin:
    """A DICOMweb store, or anything above several of them, at *url* (http or https).

    Of *settings* it reads those that begin with ``origin_``; retries after 429 and 503 count into ``origin_timeout``.
    *policy*: how TLS certificates are verified, by default against the system's authorities. Raises ValueError for a bad URL.
    """

    def __init__(
        self,
        reactor: Any,
        url: str,
        settings: Settings,
        observer: Optional[Observer] = None,
        policy: Optional[IPolicyForHTTPS] = None,
    ) -> None:
        self.url = normal_url(url)
        self._clock: IReactorTime = reactor
        self._concurrency = settings.origin_concurrency
        self._observer: Observer = observer or NoObserver()
        timeout = settings.origin_timeout
        self._limiter = Limiter(reactor, self._concurrency, wait_timeout=timeout)
        self._transport = Transport(
            reactor,
            url,
            settings.origin_connect_timeout,
            timeout,
            settings.origin_stall_timeout,
            self._concurrency + 1,
            policy,
            self._observer.origin_bytes,
        )
        self._requests = Requests(reactor, self._transport, self._limiter, timeout)
        self._stores = Stores(url.rstrip("/"))
        self._last_error: Optional[str] = None

    async def metadata(self, instance: Instance, caller: Caller) -> InstanceMetadata:
        """See `Origin.metadata`."""
        return await observed(self._observer, self._clock, "metadata", self._metadata(instance, caller))

    async def readable(self, instance: Instance, caller: Caller) -> bool:
        """See `Origin.readable`. Refusals other than those that mean "no" raise `OriginRefused`."""
        return await observed(self._observer, self._clock, "readable", self._readable(instance, caller))

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
        load = FrameLoad(
            self._requests,
            self._stores.at(instance.root),
            instance,
            caller,
            priority,
            metadata.transfer_syntax,
            Budget(limit, len(numbers)),
            self._concurrency,
        )
        return await observed(self._observer, self._clock, "frames", load.run(numbers))

    def frames_per_request(self, instance: Instance) -> int:
        """See `Origin.frames_per_request`."""
        return self._stores.at(instance.root).frames_per_request

    async def stored_instance(self, instance: Instance, caller: Caller) -> ByteStream:
        """See `Origin.stored_instance`. The slot is held until the stream was read to its end or closed."""
        return await observed(self._observer, self._clock, "instance", self._stored_instance(instance, caller))

    async def representative(self, root: str, study: str, series: Optional[str]) -> Optional[Instance]:
        """See `Origin.representative`: the store makes the picture."""
        return None

    async def local_file(self, instance: Instance) -> Optional[str]:
        """See `Origin.local_file`: it is elsewhere."""
        return None

    async def forward(self, request: OriginRequest) -> OriginResponse:
        """See `Origin.forward`. A redirect comes back as it came; *length* of an answer to HEAD is that of its GET."""
        return await observed(self._observer, self._clock, "forward", self._requests.forward(request))

    async def ping(self) -> None:
        """See `Origin.ping`: any HTTP answer will do, also a refusal. Takes no slot: a busy origin is not gone."""
        asking = Deferred.fromCoroutine(self._ping())
        timeout = OriginTimeout(f"the origin did not answer within {PING_TIMEOUT:g} s")
        asking.addTimeout(PING_TIMEOUT, self._clock, onTimeoutCancel=lambda *_: Failure(timeout))
        try:
            await asking
        except OriginError as error:
            self._last_error = str(error)
            raise
        self._last_error = None

    def examples(self) -> tuple[str, ...]:
        """See `Origin.examples`: a store's contents are its own business."""
        return ()

    def status(self) -> dict[str, object]:
        """See `Origin.status`."""
        return {
            "kind": "http",
            "url": self.url,
            "last_ping_error": self._last_error,
            "requests": self._limiter.status(),
            "stores": self._stores.status(),
        }

    async def start(self) -> None:
        """Nothing to do: connections are made when they are needed."""

    async def stop(self) -> None:
        """Fail who waits, drop all connections."""
        self._limiter.close()
        await self._transport.close()

    async def _metadata(self, instance: Instance, caller: Caller) -> InstanceMetadata:
        target = f"{instance.root}/{instance.path}/metadata"
        answer = await self._requests.get(target, JSON, caller, Priority.CALLER)
        self._stores.at(instance.root).hear(answer.headers)
        try:
            return await self._parse(answer)
        except BadMetadata as bad:
            raise OriginBadAnswer(f"the origin's answer is no metadata: {bad}") from bad
        finally:
            answer.body.close()

    async def _parse(self, answer: Answer) -> InstanceMetadata:
        parser = MetadataParser()
        size = 0
        while chunk := await answer.body.read():
            size += len(chunk)
            if size > MAX_METADATA:
                raise OriginBadAnswer(f"the origin sent metadata of more than {MAX_METADATA} bytes")
            parser.feed(chunk[:METADATA_SLICE])
            for start in range(METADATA_SLICE, len(chunk), METADATA_SLICE):
                await deferLater(self._clock, 0)
                parser.feed(chunk[start : start + METADATA_SLICE])
        return parser.close()

    async def _readable(self, instance: Instance, caller: Caller) -> bool:
        target = (
            f"{instance.root}/studies/{instance.study}/series/{instance.series}/instances"
            f"?SOPInstanceUID={quote(instance.sop)}&limit=1"
        )
        try:
            answer = await self._requests.get(target, JSON, caller, Priority.CALLER)
        except OriginRefused as refused:
            if refused.status in NOT_READABLE:
                return False
            raise
        return await found_instance(answer, instance.sop)

    async def _stored_instance(self, instance: Instance, caller: Caller) -> ByteStream:
        target = f"{instance.root}/{instance.path}"
        *earlier, last = self._stores.at(instance.root).dialect.instances
        for accept in earlier:
            try:
                return await self._open(target, accept, caller)
            except OriginRefused as refused:
                if refused.status not in NOT_THIS_WAY:
                    raise
        return await self._open(target, last, caller)

    async def _open(self, target: str, accept: bytes, caller: Caller) -> ByteStream:
        answer = await self._requests.get(target, accept, caller, Priority.WHOLE)
        try:
            return InstanceStream(answer)
        except OriginBadAnswer:
            answer.body.close()
            raise

    async def _ping(self) -> None:
        headers = ((b"Accept", JSON),)
        answer = await self._transport.request(b"GET", b"/studies?limit=1", headers, deadline=PING_TIMEOUT)
        try:
            await drain(answer)
        except OriginError:
            pass  # it has answered
