"""The reverse proxy for everything below a mount that is no frame: requests and answers are streamed both ways.

- The caller's headers go along but for hop-by-hop ones and some (`twistedproxy.dicomweb.forward_headers`); the origin's come back
  but for hop-by-hop ones.
- Redirects are given back, never followed. URLs of the origin in JSON answers and in Location become URLs of the proxy;
  other URLs of the store's host are not shown (`twistedproxy.dicomweb.url_rewriting`).
- What a STOW or DELETE touched is invalidated before it is answered (`twistedproxy.dicomweb.metadata_answers`).
- A metadata answer that passes is the caller's grant for that instance: the origin is not asked for it again.
- Answers that describe instances are requested without a content coding, inspected, and compressed here.
- Parts of answers that are held count against the memory for answers; an answer that finds no room there is not read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web.server import Request

from twistedproxy.deferreds import all_or_none
from twistedproxy.dicom.resource import Scope
from twistedproxy.dicomweb.forward_headers import request_for_origin
from twistedproxy.dicomweb.metadata_answers import (
    UploadedInstances,
    form_of,
    is_describing,
    touched_by_store,
)
from twistedproxy.dicomweb.metadata_observer import MetadataObserver
from twistedproxy.dicomweb.mounts import Target
from twistedproxy.dicomweb.paths import ResourceKind
from twistedproxy.dicomweb.url_rewriting import UrlMap, located
from twistedproxy.frames.invalidation import Invalidation
from twistedproxy.origin.errors import NOT_ALLOWED, OriginBusy, OriginRefused
from twistedproxy.origin.http.exchange import HIGH_WATER
from twistedproxy.origin.interface import OriginRequest, OriginResponse
from twistedproxy.server.compression import altered, compress, may_transform, not_modified
from twistedproxy.server.cors import confine
from twistedproxy.server.forwarded import Network
from twistedproxy.server.problems import not_acceptable
from twistedproxy.server.response_body import SLICE, send_stream
from twistedproxy.server.uploads import Upload
from twistedproxy.streams import BytesStream, ByteStream, ChainedStream, hold
from twistedproxy.system.memory_budget import AnswerMemory, Reservation

MAX_STORE_ANSWER = 16 << 20
"""Bytes of a STOW's answer that are kept to find what was stored: some 40,000 instances."""

PASSING = HIGH_WATER + SLICE
"""Bytes of an answer that are held while it passes, at most."""

Alteration = Callable[[ByteStream], Awaitable[ByteStream]]

_CHANGING = frozenset({b"POST", b"PUT", b"DELETE"})
_CHANGED = frozenset({ResourceKind.STUDIES, ResourceKind.STUDY, ResourceKind.SERIES, ResourceKind.INSTANCE})
_READING = frozenset({ResourceKind.METADATA, ResourceKind.INSTANCE})
# Fields that both sides set: the origin's replaces ours, or goes beside it, or (cross-origin rules) gives way to it.
_OF_THE_ORIGIN = (b"date", b"server")
_SHARED = frozenset({b"vary", b"cache-status"})
# Another way to the origin (RFC 7838); places of the store's own that callers cannot go to; what a browser would do to the
# proxy's whole host and so to other stores' pages; and what a web server in front of the proxy takes for an order.
_NOT_HANDED_BACK = frozenset(
    b"content-length alt-svc refresh link set-cookie2 clear-site-data service-worker-allowed strict-transport-security"
    b" public-key-pins public-key-pins-report-only expect-ct nel report-to reporting-endpoints accept-ch critical-ch"
    b" speculation-rules use-as-dictionary set-login sec-session-registration content-security-policy-report-only"
    b" x-accel-redirect x-accel-buffering x-accel-charset x-accel-expires x-accel-limit-rate x-sendfile"
    b" x-litespeed-location x-reproxy-url".split()
)


@attrs.frozen
class PassThrough:
    """Hands requests on. *descriptions* looks at answers that describe instances; *memory*: for what is held of answers;
    *trusted*: see `request_for_origin`."""

    invalidation: Invalidation
    descriptions: MetadataObserver
    memory: AnswerMemory
    trusted: Sequence[Network] = ()

    async def answer(
        self, request: Request, target: Target, outside: str, alter: Optional[Alteration] = None, only_good: bool = False
    ) -> Optional[int]:  # fmt: skip
        """Hand *request* on and write the answer. *outside*: the URL of the mount as the client sees it. *alter*: what
        becomes of an answer that describes instances, as JSON; one in another form is not acceptable then. *only_good*:
        nothing is written where the origin refuses, and the result is the status with which it does.

        Raises the errors of `twistedproxy.origin.errors` and `NoRoom`, before anything was written.
        """
        with self.memory.hold() as held:
            return await self._answer(held, request, target, outside, alter, only_good)

    async def _answer(
        self,
        held: Reservation,
        request: Request,
        target: Target,
        outside: str,
        alter: Optional[Alteration],
        only_good: bool,
    ) -> Optional[int]:
        describing = is_describing(request.method, target.resource.kind)
        handed_on = request_for_origin(request, target, describing, self.descriptions.credentials, self.trusted)
        watch = await self.descriptions.watch(request, target, handed_on) if describing else None
        if request.method in _CHANGING and target.resource.kind in _CHANGED:
            response = await self._change(request, target, handed_on)
            held.set(min(PASSING, response.length or PASSING))  # it has happened: the client must get the answer
        else:
            response = await target.origin.forward(handed_on)
            if only_good and response.status >= 400:
                response.body.close()
                return response.status
            most = PASSING + (watch.held if watch is not None else 0)
            try:
                await held.take(most if response.length is None else min(most, response.length))
            except BaseException:
                response.body.close()
                raise
        origin = target.origin.url
        urls = UrlMap(origin, outside, origin + handed_on.path.decode("ascii"))
        response = located(response, urls)
        if response.status in NOT_ALLOWED and target.resource.kind in _READING and request.method in (b"GET", b"HEAD"):
            await self.descriptions.revoke(handed_on, target)
        size = response.length
        if watch is not None and watch.understands(response):
            body = await watch.follow(response, urls, held)
            if alter is not None:
                body = await alter(body)
            response = attrs.evolve(response, headers=altered(response.headers), body=body, length=None)
        elif alter is not None and response.status == 200:
            response.body.close()
            raise not_acceptable(["application/dicom+json"])
        if describing:
            response = await self._compressed(request, response, size)
        await self._send(request, response)
        return None

    async def _compressed(self, request: Request, response: OriginResponse, size: Optional[int]) -> OriginResponse:
        """A describing *response* as the client of *request* takes it, left alone where it must be. *size*: its bytes, about,
        where that is known."""
        if response.status == 304:
            return attrs.evolve(response, headers=not_modified(request, response.headers))
        if response.status in (204, 206) or form_of(response.headers) is None or not may_transform(response.headers):
            return response
        clock = self.descriptions.clock
        headers, body, coded = await compress(request, response.headers, response.body, size, clock)
        return attrs.evolve(response, headers=headers, body=body, length=None if coded else response.length)

    def _change(self, request: Request, target: Target, handed_on: OriginRequest) -> Deferred[OriginResponse]:
        """Hand on what may change the store, and invalidate what it touched before the answer is given.

        Once all of it was sent, the answer is awaited even if the client disconnects: only that shows whether anything
        changed, and a stranger that disconnects at once must not invalidate anything.
        """
        changing = Deferred.fromCoroutine(self._changed(request, target, handed_on))
        waiter: Deferred[OriginResponse] = Deferred(lambda _: None if _was_sent(request) else changing.cancel())

        def answered(response: OriginResponse) -> None:
            if waiter.called:
                response.body.close()
            else:
                waiter.callback(response)

        def failed(failure: Failure) -> None:
            if not waiter.called:
                waiter.errback(failure)

        changing.addCallbacks(answered, failed)
        return waiter

    async def _changed(self, request: Request, target: Target, handed_on: OriginRequest) -> OriginResponse:
        """Hand on what may change the store, for as long as it takes, and invalidate what it touched.

        Where no answer came, the store may have done what was asked, if it got all of the request; of a STOW it may have
        stored any part that it got.
        """
        addressed = target.resource.scope(target.origin.url)
        uploaded: Optional[UploadedInstances] = None
        if handed_on.method != b"DELETE" and target.resource.kind in (ResourceKind.STUDIES, ResourceKind.STUDY):
            uploaded = UploadedInstances(request.getHeader(b"Content-Type") or b"", addressed)
            if handed_on.body is not None:
                handed_on = attrs.evolve(handed_on, body=uploaded.observing(handed_on.body))
        try:
            response = await target.origin.forward(handed_on)
            answer, whole = await hold(response.body, MAX_STORE_ANSWER) if uploaded is not None else (b"", False)
        except (OriginBusy, OriginRefused):  # nothing was sent
            raise
        except Exception:
            possible = [addressed] if _was_sent(request) else []
            await self._invalidate(possible if uploaded is None else uploaded.scopes())
            raise
        touched = [] if 300 <= response.status < 500 else [addressed]
        if uploaded is not None:
            response = attrs.evolve(response, body=ChainedStream(BytesStream(answer), response.body))
            told = answer if whole else b""
            touched = touched_by_store(response.status, response.headers, told, addressed, uploaded)
        try:
            await self._invalidate(touched)
        except BaseException:
            response.body.close()
            raise
        return response

    async def _invalidate(self, scopes: Sequence[Scope]) -> None:
        await all_or_none([Deferred.fromCoroutine(self.invalidation.invalidate(scope)) for scope in scopes])

    @staticmethod
    async def _send(request: Request, response: OriginResponse) -> None:
        request.setResponseCode(response.status)
        for name in _OF_THE_ORIGIN:
            if any(theirs.lower() == name for theirs, _ in response.headers):
                request.responseHeaders.removeHeader(name)
        ours = {name.lower() for name, _ in request.responseHeaders.getAllRawHeaders()} - _SHARED
        for name, value in response.headers:
            lower = name.lower()
            if lower not in ours and lower not in _NOT_HANDED_BACK:
                request.responseHeaders.addRawHeader(name, value)
        confine(request.responseHeaders)
        if response.length is not None:
            request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % response.length])
        request.responseHeaders.addRawHeader(b"Cache-Status", b"twistedproxy; fwd=bypass")
        await send_stream(request, response.body)


def _was_sent(request: Request) -> bool:
    """Whether the origin may have got all of a request."""
    upload: Optional[Upload] = getattr(request, "upload", None)
    return upload is None or upload.taken
