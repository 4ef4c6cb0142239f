"""Request headers for the store.

Rules kept here:
- fields that change the meaning of a request are dropped: a GET that a store takes for a DELETE would leave the cache
  unchanged, X-Original-URL would lead out of the mount, Proxy would redirect a store that is a CGI. Some servers read an
  underscore in a field's name as a dash: Transfer_Encoding is the same field;
- Forwarded, X-Forwarded-* and the like are forwarded from trusted proxies only: any client can set them. A header that
  the operator named as a credential is forwarded, whatever its name;
- the proxy adds itself to Via (RFC 9110 section 7.6.3), by its name alone. In answers a gateway need not, and
  Cache-Status names it there;
- hop-by-hop fields are dropped (RFC 9110 section 7.6.1). Fields that identify the caller are forwarded even if Connection
  names them: the store must not judge another caller than the one that the answer is a grant for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from twisted.web.server import Request

from twistedproxy.dicomweb.mounts import Target
from twistedproxy.dicomweb.requests import caller_of
from twistedproxy.frames.grants import Credentials
from twistedproxy.origin.interface import HOP_BY_HOP, OriginRequest
from twistedproxy.server.forwarded import Network, is_trusted
from twistedproxy.streams import ByteStream

PSEUDONYM = b"twistedproxy"

_STAY = HOP_BY_HOP | frozenset(
    b"host content-length expect proxy x-http-method-override x-http-method x-method-override x-forwarded-method"
    b" x-original-url x-rewrite-url".split()
)
_OF_PROXIES = frozenset(b"forwarded x-real-ip x-client-ip x-cluster-client-ip true-client-ip cf-connecting-ip".split())


def request_for_origin(
    request: Request, target: Target, identity: bool, credentials: Credentials, trusted: Sequence[Network] = ()
) -> OriginRequest:
    """The request to send to the origin for *request*, its body still to be pulled.

    *identity*: the answer must come without a content coding. *credentials*: what identifies a caller; *trusted*: networks
    of trusted proxies.
    """
    stay = _named_by_connection(request)
    believed = is_trusted(getattr(request.getClientAddress(), "host", None), trusted)
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
