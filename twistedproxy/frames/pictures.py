"""Pictures that the origin made of frames, kept like frames: under the caller's grant, forgotten with the instance.

Only what is a picture is kept: a page that asks people to sign in is none, whatever its status.
"""

from __future__ import annotations

import struct
from typing import Optional

import attrs

from twistedproxy.cache.interface import Cache, Fence, Reading
from twistedproxy.dicom.media_types import MULTIPART_RELATED, BadMediaType, MediaType, parse_media_type
from twistedproxy.dicom.multipart import BadMultipart, PartCollector
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.sniffing import is_text
from twistedproxy.frames.entries import rendered_name
from twistedproxy.frames.read_through import FrameReader, NoSuchFrame, Wanted
from twistedproxy.frames.single_flight import InFlight, Shared, shared
from twistedproxy.origin.errors import OriginBadAnswer, OriginRefused
from twistedproxy.origin.interface import OriginRequest, OriginResponse, first
from twistedproxy.streams import StreamTooLong, read_all

MAX_PICTURE = 64 << 20
"""Bytes of one answer of pictures."""

_LENGTH = struct.Struct("!H")


@attrs.frozen
class Picture:
    """A request for pictures of *wanted* frames: *query* raw, *accept* joined, both as they came."""

    wanted: Wanted
    query: bytes
    accept: bytes

    @property
    def _list(self) -> str:
        return ",".join(map(str, self.wanted.numbers))

    @property
    def path(self) -> bytes:
        """The resource below the mount (DICOM PS3.18 section 10.4.1.1.6), with its series."""
        instance = self.wanted.instance
        return f"{instance.root}/{instance.path}/frames/{self._list}/rendered".encode("ascii")

    @property
    def name(self) -> bytes:
        """The name of its entry: all that the answer depends on; the lengths keep query and Accept apart."""
        return rendered_name(b"%s %d %s%s" % (self._list.encode("ascii"), len(self.query), self.query, self.accept))


@attrs.frozen
class Rendered:
    """An answer that holds pictures."""

    content_type: bytes
    data: bytes


@attrs.frozen
class PictureAnswer:
    """Pictures and where they came from: the cache, a fetch that was *shared*, or one of this request's own.
    *stored*: whether the cache can be told. *fresh*: nothing was to come from the cache, or to go there."""

    rendered: Rendered
    cached: bool = False
    shared: bool = False
    stored: bool = False
    fresh: bool = False


_Key = tuple[Instance, Optional[Fence], bytes]


@attrs.define(eq=False)
class PictureReader:
    """Reads pictures for callers, through the cache."""

    reader: FrameReader
    cache: Cache
    seconds: Optional[float]
    _in_flight: InFlight[Shared[_Key], Rendered] = attrs.field(init=False, factory=InFlight)

    async def read(self, picture: Picture) -> PictureAnswer:
        """The pictures. Raises `NoSuchFrame` and the errors of `twistedproxy.origin.errors`."""
        wanted, name = picture.wanted, picture.name
        names = [] if wanted.fresh else [name]
        grant, reading = await self.reader.granted(wanted.origin, wanted.instance, wanted.caller, names)
        last = max(wanted.numbers)
        if last > grant.metadata.frames:
            raise NoSuchFrame(f"frame {last} was asked for; the instance has frames 1 to {grant.metadata.frames}")
        kept = _kept(reading, name)
        if kept is not None:
            return PictureAnswer(kept, cached=True)
        if wanted.fresh:
            return PictureAnswer(await _fetch(picture), fresh=True)
        return await self._from_origin(picture, (wanted.instance, reading.fence, name))

    async def _from_origin(self, picture: Picture, key: _Key) -> PictureAnswer:
        instance, fence, name = key

        async def fetch() -> Rendered:
            return await _fetch(picture)

        async def keep(rendered: Rendered) -> None:
            await self.cache.put_many(instance, fence, {name: _pack(rendered)}, self.seconds)

        rendered, joined = await shared(self._in_flight, key, picture.wanted.caller, fetch, keep)
        return PictureAnswer(rendered, shared=joined, stored=fence is not None)


async def _fetch(picture: Picture) -> Rendered:
    accept = picture.accept or b"image/jpeg"
    asked = OriginRequest.get(picture.path, picture.query, accept, picture.wanted.caller)
    response = await picture.wanted.origin.forward(asked)
    try:
        data = await read_all(response.body, MAX_PICTURE)
    except StreamTooLong:
        raise OriginBadAnswer(f"the origin's pictures are more than {MAX_PICTURE} bytes") from None
    if response.status >= 400:
        raise OriginRefused(response.status, response.headers, data)
    if response.status != 200:
        raise OriginBadAnswer(f"the origin answered a request for pictures with {response.status}")
    return Rendered(_checked(response, data), data)


def _checked(response: OriginResponse, data: bytes) -> bytes:
    """The Content-Type of what is a whole picture, or several. Raises `OriginBadAnswer`."""
    content_type = first(response.headers, b"content-type") or b""
    try:
        media_type = parse_media_type(content_type)
    except BadMediaType:
        raise OriginBadAnswer("the origin sent a picture without saying what it is") from None
    if media_type.type == MULTIPART_RELATED:
        _check_parts(media_type, data)
    else:
        _check_picture(media_type.type, data)
    return content_type


def _check_parts(media_type: MediaType, data: bytes) -> None:
    collector = PartCollector(media_type.boundary, MAX_PICTURE)
    try:
        parts = collector.feed(data)
        collector.close()
    except BadMultipart as error:
        raise OriginBadAnswer(f"the origin's pictures are not whole: {error}") from None
    for part in parts:
        kind = part.media_type.type if part.media_type is not None else media_type.part_type
        _check_picture(kind or "image/*", part.data)


def _check_picture(media_type: str, data: bytes) -> None:
    text = is_text(data) and media_type != "image/svg+xml"
    if media_type.partition("/")[0] not in ("image", "video") or not data or text:
        raise OriginBadAnswer(
            f"the origin sent {media_type[:80]} that begins with {data[:16]!r} where a picture belongs"
        )


def _kept(reading: Reading, name: bytes) -> Optional[Rendered]:
    """The picture among what was read from the cache."""
    entry = reading.entries.get(name)
    if entry is None or len(entry) < _LENGTH.size:
        return None
    end = _LENGTH.size + _LENGTH.unpack_from(entry)[0]
    return Rendered(entry[_LENGTH.size : end], entry[end:]) if len(entry) > end else None


def _pack(rendered: Rendered) -> bytes:
    return _LENGTH.pack(len(rendered.content_type)) + rendered.content_type + rendered.data
