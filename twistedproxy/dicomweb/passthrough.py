"""The reverse proxy for everything below a mount that is no frame: requests and answers are streamed both ways.

- The caller's headers go along but for hop-by-hop ones and some (see below); the origin's come back but for hop-by-hop ones.
- Redirects are given back, never followed. URLs of the origin in JSON answers and in Location become URLs of the proxy;
  other URLs of the store's host are not shown (`twistedproxy.dicomweb.url_rewriting`).
- What a STOW or DELETE touched is invalidated before it is answered (`twistedproxy.dicomweb.metadata_answers`).
- Metadata and bulk data come from the cache for callers whom the origin has just given them (`twistedproxy.dicomweb.descriptions`).
- A metadata answer that passes is the caller's grant for that instance: the origin is not asked for it again.
- Answers that describe instances are requested without a content coding, inspected, and compressed here.
- Parts of answers that are held count against the memory for answers; an answer that finds no room there is not read.

Rules for request headers:
- fields that change the meaning of a request are dropped: a GET that a store takes for a DELETE would leave the cache
  unchanged, X-Original-URL would lead out of the mount, Proxy would redirect a store that is a CGI. Some servers read an
  underscore in a field's name as a dash: Transfer_Encoding is the same field;
- Forwarded, X-Forwarded-* and the like are forwarded from trusted proxies only: any client can set them. Not with requests for
  metadata and bulk data, whose answers are kept and prove rights: they must not depend on them, as frames do not. A header that
  the operator named as a credential is forwarded, whatever its name;
- the proxy adds itself to Via (RFC 9110 section 7.6.3), by its name alone. In answers a gateway need not, and
  Cache-Status names it there;
- hop-by-hop fields are dropped (RFC 9110 section 7.6.1). Fields that identify the caller are forwarded even if Connection
  names them: the store must not judge another caller than the one that the answer is a grant for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Optional

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.web.server import Request

from twistedproxy.deferreds import all_or_none, follow
from twistedproxy.dicom.resource import Scope
from twistedproxy.dicomweb.description_answers import Answered, stream_of, tagged
from twistedproxy.dicomweb.descriptions import DescriptionCache
from twistedproxy.dicomweb.metadata_answers import (
    UploadedInstances,
    form_of,
    is_describing,
    touched_by_store,
)
from twistedproxy.dicomweb.metadata_observer import MetadataObserver
from twistedproxy.dicomweb.mounts import Target
from twistedproxy.dicomweb.paths import ResourceKind
from twistedproxy.dicomweb.requests import caller_of
from twistedproxy.dicomweb.url_rewriting import UrlMap, located
from twistedproxy.frames.grants import Credentials
from twistedproxy.frames.invalidation import Invalidation
from twistedproxy.origin.errors import NOT_ALLOWED, OriginBusy, OriginRefused
from twistedproxy.origin.http.exchange import HIGH_WATER
from twistedproxy.origin.interface import HOP_BY_HOP, Caller, OriginRequest, OriginResponse
from twistedproxy.server.compression import compress, may_transform, not_modified
from twistedproxy.server.cors import confine
from twistedproxy.server.forwarded import Network, is_trusted
from twistedproxy.server.problems import not_acceptable
from twistedproxy.server.response_body import SLICE, send_stream
from twistedproxy.server.site import Upload
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


PSEUDONYM = b"twistedproxy"

_STAY = HOP_BY_HOP | frozenset(
    b"host content-length expect proxy x-http-method-override x-http-method x-method-override x-forwarded-method"
    b" x-original-url x-rewrite-url".split()
)
_KEPT = (ResourceKind.METADATA, ResourceKind.BULKDATA)
_OF_PROXIES = frozenset(b"forwarded x-real-ip x-client-ip x-cluster-client-ip true-client-ip cf-connecting-ip".split())


@attrs.frozen
class PassThrough:
    """Hands requests on. *descriptions* looks at answers that describe instances; *memory*: for what is held of answers;
    *trusted*: see `request_for_origin`. *kept*: descriptions that are in the cache; None where none are kept."""

    invalidation: Invalidation
    descriptions: MetadataObserver
    memory: AnswerMemory
    trusted: Sequence[Network] = ()
    kept: Optional[DescriptionCache] = None

    async def answer(
        self, request: Request, target: Target, outside: str, alter: Optional[Alteration] = None, only_good: bool = False
    ) -> Optional[int]:  # fmt: skip
        """Hand *request* on and write the answer. *outside*: the URL of the mount as the client sees it. *alter*: what
        becomes of an answer that describes instances, as JSON; one in another form is not acceptable then. *only_good*:
        nothing is written where the origin refuses, and the result is the status with which it does.

        Raises the errors of `twistedproxy.origin.errors` and `NoRoom`, before anything was written.
        """
        describing = is_describing(request.method, target.resource.kind)
        handed_on = request_for_origin(request, target, describing, self.descriptions.credentials, self.trusted)
        watch = await self.descriptions.watch(request, target, handed_on) if describing else None
        with self.memory.hold() as held:
            if request.method in _CHANGING and target.resource.kind in _CHANGED:
                answered = Answered(await self._change(request, target, handed_on))
                response = answered.response
                held.set(min(PASSING, response.length or PASSING))  # it has happened: the client must get the answer
            else:
                answered = await self._asked(target, handed_on, held)
                response = answered.response
                if watch is not None and not answered.said:
                    watch = watch.of_cache()
                if only_good and response.status >= 400:
                    response.body.close()
                    return response.status
                await self._hold(held, answered, watch.held if watch is not None else 0)
            origin = target.origin.url
            urls = UrlMap(origin, outside, origin + handed_on.path.decode("ascii"))
            response = located(response, urls)
            if (
                response.status in NOT_ALLOWED
                and target.resource.kind in _READING
                and request.method in (b"GET", b"HEAD")
            ):
                await self.descriptions.revoke(handed_on, target)
            if self.kept is not None and response.status >= 400 and request.method in (b"GET", b"HEAD"):
                await self.kept.refused(target, handed_on, response.status)
            size = response.length
            if watch is not None and watch.understands(response):
                response = await watch.follow(response, urls, held)
                if alter is not None:
                    response = attrs.evolve(response, body=await alter(response.body))
            elif alter is not None and response.status == 200:
                response.body.close()
                raise not_acceptable(["application/dicom+json"])
            if answered.tagged:
                response = await tagged(request, response, held)
            if describing:
                response = await self._compressed(request, response, size)
            if answered.tagged and self.kept is not None:
                response = await self.kept.coded(target, answered, response)
            request.cache_outcome = answered.outcome  # type: ignore[attr-defined]
            await self._send(request, response, answered.status)
        return None

    async def give(self, request: Request, content_type: bytes, content: bytes) -> None:
        """Answer with *content*, which the caller may see: as it was, if the client has it."""
        with self.memory.hold() as held:
            await held.take(2 * len(content))
            headers = ((b"Content-Type", content_type),)
            response = OriginResponse(200, headers, stream_of(content), len(content))
            await self._send(request, await tagged(request, response, held), b"twistedproxy; hit")

    async def _asked(self, target: Target, handed_on: OriginRequest, held: Reservation) -> Answered:
        """The answer to *handed_on*, of the cache or of the origin."""
        wanted = self.kept.wanted(target, handed_on) if self.kept is not None else None
        if self.kept is None or wanted is None:
            return Answered(await target.origin.forward(handed_on))
        return await self.kept.answer(wanted, held, target.origin.forward)

    @staticmethod
    async def _hold(held: Reservation, answered: Answered, looked_into: int) -> None:
        """Count what is held of an answer while it passes: what is at hand, and as much again for what is made of it; else what may
        wait for the client, and *looked_into* bytes. Raises `NoRoom`, and closes the body."""
        length, most = answered.response.length, PASSING + looked_into
        if answered.size and answered.said:  # it was read into memory that was counted: it need not wait again
            held.set(2 * answered.size)
            return
        if answered.size:  # that of the cache is counted already; many may share the answer to another request
            length = most = max(0, 2 * answered.size - held.size)
        try:
            await held.take(most if length is None else min(most, length))
        except BaseException:
            answered.response.body.close()
            raise

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

    async def _change(self, request: Request, target: Target, handed_on: OriginRequest) -> OriginResponse:
        """Hand on what may change the store, and invalidate what it touched before the answer is given.

        Once all of it was sent, the answer is awaited even if the client disconnects: only that shows whether anything
        changed, and a stranger that disconnects at once must not invalidate anything.
        """
        changing = Deferred.fromCoroutine(self._changed(request, target, handed_on))
        try:
            return await follow(changing)
        except CancelledError:
            if not _was_sent(request):
                changing.cancel()
            changing.addCallbacks(lambda response: response and response.body.close(), lambda _: None)
            raise

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
            await self._invalidate(possible if uploaded is None else uploaded.scopes(), handed_on.caller)
            raise
        touched = [] if 300 <= response.status < 500 else [addressed]
        if uploaded is not None:
            response = attrs.evolve(response, body=ChainedStream(BytesStream(answer), response.body))
            told = answer if whole else b""
            touched = touched_by_store(response.status, response.headers, told, addressed, uploaded)
        try:
            await self._invalidate(touched, handed_on.caller)
        except BaseException:
            response.body.close()
            raise
        return response

    async def _invalidate(self, scopes: Sequence[Scope], caller: Caller) -> None:
        await all_or_none([Deferred.fromCoroutine(self.invalidation.invalidate(scope, caller)) for scope in scopes])

    @staticmethod
    async def _send(request: Request, response: OriginResponse, status: bytes) -> None:
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
        request.responseHeaders.addRawHeader(b"Cache-Status", status)
        await send_stream(request, response.body)


def _was_sent(request: Request) -> bool:
    """Whether the origin may have got all of a request."""
    upload: Optional[Upload] = getattr(request, "upload", None)
    return upload is None or upload.taken


def request_for_origin(
    request: Request, target: Target, identity: bool, credentials: Credentials, trusted: Sequence[Network] = ()
) -> OriginRequest:
    """The request to send to the origin for *request*, its body still to be pulled.

    *identity*: the answer must come without a content coding. *credentials*: what identifies a caller; *trusted*: networks
    of trusted proxies.
    """
    stay = _named_by_connection(request)
    kept = target.resource.kind in _KEPT and request.method in (b"GET", b"HEAD")
    believed = not kept and is_trusted(getattr(request.getClientAddress(), "host", None), trusted)
    headers = [
        (name, value)
        for name, values in request.requestHeaders.getAllRawHeaders()
        if (lower := name.lower()) in credentials.header_names or (lower not in stay and _goes_on(lower, believed))
        for value in values
    ]
    headers.append((b"Via", b"%s %s" % (request.clientproto.rpartition(b"/")[2], PSEUDONYM)))
    upload: Optional[ByteStream] = getattr(request, "upload", None)
    length = getattr(upload, "length", None)
    caller = caller_of(request, target, credentials)
    query = caller.asking(target.query)
    return OriginRequest(request.method, target.raw_path, query, tuple(headers), upload, length, identity, caller)


def _named_by_connection(request: Request) -> set[bytes]:
    lines = request.requestHeaders.getRawHeaders(b"Connection") or ()
    return {token.strip().lower() for line in lines for token in line.split(b",")}


def _goes_on(lower: bytes, believed: bool) -> bool:
    dashed = lower.replace(b"_", b"-")
    if dashed in _STAY:
        return False
    return believed or not (dashed in _OF_PROXIES or dashed.startswith(b"x-forwarded"))
