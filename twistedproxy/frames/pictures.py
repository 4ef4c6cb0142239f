"""Pictures that the origin made of frames, kept like frames: under the caller's grant, forgotten with the instance."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Optional

import attrs
from twisted.internet.defer import Deferred

from twistedproxy.cache.interface import Cache, Fence
from twistedproxy.dicom.address import Instance
from twistedproxy.frames.entries import rendered_name
from twistedproxy.frames.inflight import InFlight
from twistedproxy.frames.reader import FrameReader, NoSuchFrame, Wanted
from twistedproxy.origin.errors import OriginBadAnswer, OriginRefused
from twistedproxy.origin.interface import OriginRequest
from twistedproxy.streams import StreamTooLong, read_all

MAX_PICTURE = 64 << 20
"""Bytes of one answer of pictures."""

_LENGTH = struct.Struct("!H")


@attrs.frozen
class Picture:
    """A request for pictures: *raw_path* and *query* as they came (below the mount), *accept* joined."""

    wanted: Wanted
    raw_path: bytes
    query: bytes
    accept: bytes

    @property
    def name(self) -> bytes:
        """The name of its entry: all that the answer depends on."""
        return rendered_name(b"\0".join((self.raw_path.rpartition(b"/frames/")[2], self.query, self.accept)))


@attrs.frozen
class Rendered:
    """An answer that holds pictures."""

    content_type: bytes
    data: bytes


_Key = tuple[Instance, Optional[Fence], bytes]


@attrs.define(eq=False)
class PictureReader:
    """Reads pictures for callers, through the cache."""

    reader: FrameReader
    cache: Cache
    seconds: Optional[float]
    _in_flight: InFlight[_Key, Rendered] = attrs.field(init=False, factory=InFlight)

    async def read(self, picture: Picture) -> tuple[Rendered, bool]:
        """The pictures, and whether they came from the cache.

        Raises `NoSuchFrame` and the errors of `twistedproxy.origin.errors`.
        """
        wanted, name = picture.wanted, picture.name
        grant, reading = await self.reader.granted(wanted.origin, wanted.instance, wanted.caller, [name])
        if max(wanted.numbers) > grant.metadata.frames:
            last = max(wanted.numbers)
            raise NoSuchFrame(f"frame {last} was asked for; the instance has frames 1 to {grant.metadata.frames}")
        if name in reading.entries:
            return _unpack(reading.entries[name]), True
        key = (wanted.instance, reading.fence, name)
        fetch = self._in_flight.running([key]).get(key)
        if fetch is not None:
            try:
                return (await fetch.wait())[key], False
            except OriginRefused:
                pass  # that caller was refused; this one asks for itself
        return (await self._start(picture, key))[key], False

    def _start(self, picture: Picture, key: _Key) -> Deferred[Mapping[_Key, Rendered]]:
        instance, fence, name = key

        async def fetch() -> Mapping[_Key, Rendered]:
            return {key: await self._fetch(picture)}

        async def keep(rendered: Mapping[_Key, Rendered]) -> None:
            await self.cache.put_many(instance, fence, {name: _pack(rendered[key])}, self.seconds)

        return self._in_flight.start([key], fetch(), keep)

    @staticmethod
    async def _fetch(picture: Picture) -> Rendered:
        headers = (*picture.wanted.caller.headers, (b"Accept", picture.accept or b"image/jpeg"))
        request = OriginRequest(b"GET", picture.raw_path, picture.query, headers)
        response = await picture.wanted.origin.forward(request)
        try:
            data = await read_all(response.body, MAX_PICTURE)
        except StreamTooLong:
            raise OriginBadAnswer(f"the origin's pictures are more than {MAX_PICTURE} bytes") from None
        if response.status != 200:
            raise OriginRefused(response.status, response.headers, data)
        content_type = next((value for name, value in response.headers if name.lower() == b"content-type"), b"")
        return Rendered(content_type or b"image/jpeg", data)


def _pack(rendered: Rendered) -> bytes:
    return _LENGTH.pack(len(rendered.content_type)) + rendered.content_type + rendered.data


def _unpack(entry: bytes) -> Rendered:
    (length,) = _LENGTH.unpack_from(entry)
    return Rendered(entry[2 : 2 + length], entry[2 + length :])
