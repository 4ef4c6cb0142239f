"""What a request accepts, for the few forms that a folder has (DICOM PS3.18 section 8.7), and refusals in the form that DICOMweb
gives them (application/problem+json, RFC 9457)."""

from __future__ import annotations

import http
import json
from typing import Optional
from urllib.parse import parse_qsl

from twistedproxy.dicom.media_types import (
    MULTIPART_RELATED,
    BadMediaType,
    MediaType,
    covers,
    parse_media_type_list,
)
from twistedproxy.dicom.transfer_syntaxes import OCTET_STREAM, canonical_media_type
from twistedproxy.origin.errors import OriginRefused
from twistedproxy.origin.interface import Headers, OriginRequest

MAX_SHOWN = 80  # characters of what came
_JSON_TYPES = ("application/dicom+json", "application/json")


def require_json(request: OriginRequest) -> None:
    """Raises `OriginRefused` 406 where DICOM JSON (PS3.18 annex F) is not accepted."""
    # Clients merge a multipart type into requests for metadata; that it cannot be JSON is not meant.
    types = _accepted(request)
    if types and not any(
        one.is_multipart or any(covers(one.type, offered) for offered in _JSON_TYPES) for one in types
    ):
        raise _not_acceptable(_JSON_TYPES[0])


def wants_bare(request: OriginRequest, media_type: str, syntax: Optional[str] = None) -> bool:
    """Whether the first type that fits asks for a bare body of *media_type* in transfer syntax *syntax*, as stored, rather than
    for multipart. Raises `OriginRefused` 406 where none fits."""
    types = _accepted(request)
    fitting = [one for one in types if _fits(one, media_type, syntax)]
    if types and not fitting:
        form = f'{MULTIPART_RELATED}; type="{media_type}"'
        raise _not_acceptable(form if syntax is None else f"{form}; transfer-syntax={syntax}")
    return bool(fitting) and not fitting[0].is_multipart and fitting[0].type != "*/*"


def _accepted(request: OriginRequest) -> list[MediaType]:
    """What the request accepts; empty: anything. ``accept`` in the query goes before the header (section 8.3.3.1)."""
    in_query = [value for name, value in parse_qsl(request.query.decode("latin-1")) if name.lower() == "accept"]
    header = b", ".join(value for name, value in request.headers if name.lower() == b"accept")
    try:
        listed = parse_media_type_list(", ".join(in_query) or header)
    except BadMediaType as error:
        raise refused(400, str(error)) from None
    return [media_type for media_type in listed if media_type.q > 0]


def _fits(accepted: MediaType, media_type: str, syntax: Optional[str]) -> bool:
    if accepted.is_multipart and accepted.type not in (MULTIPART_RELATED, "multipart/*"):
        return False
    wanted = canonical_media_type(accepted.part_type or "*/*")
    asked = accepted.transfer_syntax
    if syntax is None or asked == "*":
        # Asked for octets in any transfer syntax: as stored, labelled with the true type.
        return covers(wanted, media_type) or wanted == OCTET_STREAM
    return covers(wanted, media_type) and asked in (None, syntax)


def _not_acceptable(available: str) -> OriginRefused:
    return refused(406, f"none of the media types in Accept is available; available: {available}")


def refused(status: int, detail: str, headers: Headers = ()) -> OriginRefused:
    """A request that is not granted. *detail* names what came and what is accepted."""
    problem = {"title": http.HTTPStatus(status).phrase, "status": status, "detail": detail}
    body = json.dumps(problem).encode("ascii")
    return OriginRefused(status, ((b"Content-Type", b"application/problem+json"), *headers), body)


def shown(text: str | bytes) -> str:
    """What came, quoted, escaped and shortened."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    return repr(text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "...")
