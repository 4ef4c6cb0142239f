"""JSON answers that describe instances (metadata, searches), looked at while they pass.

- URLs of the origin become the proxy's.
- (0008,3002) AvailableTransferSyntaxUID is added where the origin left it out and somebody knows it: a viewer that
  must probe for it takes minutes to open a slide. For one instance's metadata one frame is asked for to know.
- The metadata of one instance are the caller's grant for it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.server import Request

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.dicom.address import Instance, InvalidUID
from twistedproxy.dicom.metadata import BadMetadata, InstanceMetadata, MetadataParser
from twistedproxy.frames.access import Access, metadata_in
from twistedproxy.frames.credentials import Credentials
from twistedproxy.frames.entries import METADATA
from twistedproxy.frames.reader import FrameReader, Wanted
from twistedproxy.origin.interface import Caller, OriginResponse
from twistedproxy.streams import BytesStream, ByteStream, ChainedStream, hold
from twistedproxy.web.mounts import Target
from twistedproxy.web.paths import Kind
from twistedproxy.web.rewriting import Transform, json_transform

_log = Logger()

HELD = 4 << 20
"""Bytes of an answer that are held back to know all its instances before the first is sent on."""

MAX_LOOKUPS = 64
"""Instances of one answer whose transfer syntax is looked up in the cache."""

PROBE_SECONDS = 5.0
"""How long a metadata answer may wait for the frame that tells the transfer syntax."""


@attrs.frozen
class Descriptions:
    """Watches describing answers pass."""

    cache: Cache
    access: Access
    reader: FrameReader
    credentials: Credentials
    clock: IReactorTime

    async def watch(self, request: Request, target: Target) -> Watch:
        """Get ready for the answer to *request*. To be called before the origin is asked: a grant holds only
        for what the cache knew then."""
        caller = self.credentials.caller(request.requestHeaders.getRawHeaders)
        resource = target.resource
        if resource.kind is not Kind.METADATA or resource.sop is None or resource.series is None:
            return Watch(self, target, caller, None, None, None)
        reading = await self.cache.get_many(target.instance, [METADATA])
        return Watch(self, target, caller, target.instance, reading.fence, metadata_in(reading))


@attrs.frozen
class Watch:
    """One describing answer. *instance* is set where all of the answer is one instance's metadata;
    *known*: what the cache knew of it."""

    _room: Descriptions
    _target: Target
    _caller: Caller
    _instance: Optional[Instance]
    _fence: Optional[Fence]
    _known: Optional[InstanceMetadata]

    @staticmethod
    def understands(response: OriginResponse) -> bool:
        """Whether the answer can be looked into: a successful one, of plain JSON."""
        headers = {name.lower(): value for name, value in response.headers}
        plain = headers.get(b"content-encoding", b"identity").strip().lower() in (b"", b"identity")
        return response.status == 200 and plain and is_json(headers.get(b"content-type", b""))

    async def follow(self, body: ByteStream, outside: str) -> ByteStream:
        """The answer as the client shall see it. *outside*: the URL of the mount as the client sees it."""
        start, whole = await hold(body, HELD)
        rest = ChainedStream(BytesStream(start), body)
        try:
            if self._instance is None:
                syntaxes = await self._known_syntaxes(start) if whole else {}
                observed: ByteStream = rest
            elif whole:
                syntaxes = await self._granted(self._instance, start)
                observed = rest
            else:
                known = self._known.transfer_syntax if self._known is not None else None
                syntaxes = {self._instance.sop: known} if known is not None else {}
                observed = _Observed(rest, self._record)
        except BaseException:
            rest.close()
            raise
        return _Transformed(observed, json_transform(self._target.origin.url, outside, syntaxes.get))

    async def _granted(self, instance: Instance, answer: bytes) -> dict[str, str]:
        """Record the grant that this answer is; return the instance's transfer syntax, by its UID."""
        parser = MetadataParser()
        try:
            parser.feed(answer)
            metadata = parser.close()
        except BadMetadata:
            return {}
        await self._record(metadata)
        uid = metadata.transfer_syntax or (self._known.transfer_syntax if self._known else None)
        if uid is None and metadata.rows and metadata.columns:
            uid = await self._probe(instance)
        return {instance.sop: uid} if uid is not None else {}

    async def _record(self, metadata: InstanceMetadata) -> None:
        if self._instance is None:
            return
        if metadata.transfer_syntax is None and self._known is not None:
            metadata = attrs.evolve(metadata, transfer_syntax=self._known.transfer_syntax)
        await self._room.access.record(self._instance, self._caller, metadata, self._fence)

    async def _probe(self, instance: Instance) -> Optional[str]:
        wanted = Wanted(self._target.origin, instance, (1,), self._caller, prefetch=False)
        probing = Deferred.fromCoroutine(self._room.reader.read(wanted))
        probing.addTimeout(PROBE_SECONDS, self._room.clock)
        try:
            return (await probing).frames[0].transfer_syntax
        except Exception as error:
            _log.info("no frame told the transfer syntax: {reason}", reason=str(error), instance=instance.path)
            return None

    async def _known_syntaxes(self, answer: bytes) -> dict[str, str]:
        """The transfer syntaxes that the cache knows, of the instances in *answer*."""
        syntaxes = {}
        for instance in instances_in(answer, self._target)[:MAX_LOOKUPS]:
            metadata = metadata_in(await self._room.cache.get_many(instance, [METADATA]))
            if metadata is not None and metadata.transfer_syntax is not None:
                syntaxes[instance.sop] = metadata.transfer_syntax
        return syntaxes


def is_json(content_type: bytes) -> bool:
    """Whether a Content-Type is DICOM JSON (PS3.18 annex F), or JSON as some stores call it."""
    return content_type.partition(b";")[0].strip().lower() in (b"application/dicom+json", b"application/json")


def instances_in(answer: bytes, target: Target) -> list[Instance]:
    """The instances that a DICOM JSON *answer* describes, as far as it places them (PS3.18 annex F)."""
    if b'"00080018"' not in answer:
        return []
    try:
        described = json.loads(answer)
    except ValueError:
        return []
    instances = []
    for attributes in described if isinstance(described, list) else []:
        study = _uid(attributes, "0020000D") or target.resource.study
        series = _uid(attributes, "0020000E") or target.resource.series
        sop = _uid(attributes, "00080018")
        if study and series and sop and not {"00083002", "00020010"} & attributes.keys():
            try:
                instances.append(Instance(target.origin.url, target.resource.root, study, series, sop))
            except InvalidUID:
                continue
    return instances


def _uid(attributes: object, tag: str) -> Optional[str]:
    try:
        value = attributes[tag]["Value"][0]  # type: ignore[index]
    except (KeyError, IndexError, TypeError):
        return None
    return value if isinstance(value, str) else None


class _Transformed:
    """A stream whose bytes pass a transformer."""

    def __init__(self, source: ByteStream, transform: Transform) -> None:
        self._source = source
        self._transform: Optional[Transform] = transform

    async def read(self) -> bytes:
        while self._transform is not None:
            chunk = await self._source.read()
            if not chunk:
                transform, self._transform = self._transform, None
                return transform.close()
            if transformed := self._transform.feed(chunk):
                return transformed
        return b""

    def close(self) -> None:
        self._source.close()


class _Observed:
    """A stream of one instance's metadata that are read as they pass, and told of at the end."""

    def __init__(self, source: ByteStream, tell: Callable[[InstanceMetadata], Awaitable[None]]) -> None:
        self._source = source
        self._tell = tell
        self._parser: Optional[MetadataParser] = MetadataParser()

    async def read(self) -> bytes:
        chunk = await self._source.read()
        if self._parser is not None:
            try:
                if chunk:
                    self._parser.feed(chunk)
                else:
                    parser, self._parser = self._parser, None
                    await self._tell(parser.close())
            except BadMetadata:
                self._parser = None
        return chunk

    def close(self) -> None:
        self._source.close()
