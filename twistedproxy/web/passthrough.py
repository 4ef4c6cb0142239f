"""Everything below a mount that is no frame: handed on as it is, both ways, as it comes.

- The caller's headers go along but for hop-by-hop ones and Host; the origin's come back likewise.
- Redirects are given back, never followed. URLs of the origin in JSON answers and in Location name the proxy.
- A STOW or DELETE forgets what it touched before it is answered.
- A metadata answer that passes is the caller's grant for that instance, and is not asked for again.
"""

from __future__ import annotations

from typing import Optional

import attrs
from twisted.web.server import Request

from twistedproxy.frames.forgetting import Forgetting
from twistedproxy.origin.interface import OriginRequest, OriginResponse
from twistedproxy.streams import BytesStream, ByteStream, ChainedStream, hold
from twistedproxy.web.changes import touched_by_store
from twistedproxy.web.descriptions import Descriptions
from twistedproxy.web.mounts import Target
from twistedproxy.web.paths import Kind
from twistedproxy.web.rewriting import UrlMap
from twistedproxy.web.sending import send_stream

MAX_STORE_ANSWER = 16 << 20
"""Bytes of a STOW's answer that are kept to learn what it stored: some 40,000 instances."""

# The proxy's own business on this hop; hop-by-hop headers are taken out where the origin is spoken to.
_NOT_FORWARDED = frozenset({b"host", b"content-length", b"expect"})
_DESCRIBING = frozenset({Kind.METADATA, Kind.STUDIES, Kind.SEARCH})
_CHANGING = frozenset({b"POST", b"PUT", b"DELETE"})
_CHANGED = frozenset({Kind.STUDIES, Kind.STUDY, Kind.SERIES, Kind.INSTANCE})
_LOCATIONS = frozenset({b"location", b"content-location"})


@attrs.frozen
class PassThrough:
    """Hands requests on. *descriptions* looks at JSON answers that describe instances."""

    forgetting: Forgetting
    descriptions: Descriptions

    async def answer(self, request: Request, target: Target, outside: str) -> None:
        """Hand *request* on and write the answer. *outside*: the URL of the mount as the client sees it.

        Raises the errors of `twistedproxy.origin.errors`, before anything was written.
        """
        describing = target.resource.kind in _DESCRIBING and request.method == b"GET"
        watch = await self.descriptions.watch(request, target) if describing else None
        response = await target.origin.forward(self._onward(request, target, identity=describing))
        body = response.body
        try:
            if request.method in _CHANGING and target.resource.kind in _CHANGED:
                body = await self._forget_touched(request, target, response)
        except BaseException:
            response.body.close()
            raise
        length = response.length
        if watch is not None and watch.understands(response):
            body, length = await watch.follow(body, outside), None
        await self._send(request, target, attrs.evolve(response, body=body, length=length), outside)

    @staticmethod
    def _onward(request: Request, target: Target, identity: bool) -> OriginRequest:
        headers = [
            (name, value)
            for name, values in request.requestHeaders.getAllRawHeaders()
            if (lower := name.lower()) not in _NOT_FORWARDED and not (identity and lower == b"accept-encoding")
            for value in values
        ]
        upload: Optional[ByteStream] = getattr(request, "upload", None)
        length = getattr(upload, "length", None)
        return OriginRequest(request.method, target.raw_path, target.query, tuple(headers), upload, length)

    async def _forget_touched(self, request: Request, target: Target, response: OriginResponse) -> ByteStream:
        """Forget what the request changed, and give the answer's body back. An answer in the 5xx may have
        changed things on its way: then all that was addressed is forgotten."""
        addressed = target.resource.scope(target.origin.url)
        if 400 <= response.status < 500 and response.status != 409:
            return response.body
        if request.method == b"DELETE" or target.resource.kind not in (Kind.STUDIES, Kind.STUDY):
            await self.forgetting.forget(addressed)
            return response.body
        answer, whole = await hold(response.body, MAX_STORE_ANSWER)
        told = whole and response.status < 500
        for scope in touched_by_store(answer, addressed) if told else [addressed]:
            await self.forgetting.forget(scope)
        return ChainedStream(BytesStream(answer), response.body)

    @staticmethod
    async def _send(request: Request, target: Target, response: OriginResponse, outside: str) -> None:
        request.setResponseCode(response.status)
        urls = UrlMap(target.origin.url, outside)
        for name, value in response.headers:
            lower = name.lower()
            if lower != b"content-length":
                shown = urls.rewrite_header(value) if lower in _LOCATIONS else value
                request.responseHeaders.addRawHeader(name, shown)
        if response.length is not None:
            request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % response.length])
        request.responseHeaders.addRawHeader(b"Cache-Status", b"twistedproxy; fwd=bypass")
        await send_stream(request, response.body)
