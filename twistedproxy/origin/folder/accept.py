"""What a request accepts, for the few forms that a folder has (DICOM PS3.18 section 8.7)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Optional
from urllib.parse import parse_qsl

from twistedproxy.dicom.media_types import BadMediaType, MediaType, covers, parse_media_type_list
from twistedproxy.dicom.transfer_syntaxes import OCTET_STREAM, canonical_media_type
from twistedproxy.origin.folder.refusals import Refusal
from twistedproxy.origin.interface import Headers, OriginRequest

JSON_TYPES = ("application/dicom+json", "application/json")
MULTIPART = "multipart/related"


def header(headers: Headers, name: bytes) -> bytes:
    """The values of a header, joined."""
    return b", ".join(value for key, value in headers if key.lower() == name)


def accepted_types(request: OriginRequest) -> list[MediaType]:
    """What the request accepts; empty: anything. ``accept`` in the query goes before the header (section 8.3.3.1)."""
    in_query = [value for name, value in parse_qsl(request.query.decode("latin-1")) if name.lower() == "accept"]
    try:
        listed = parse_media_type_list(", ".join(in_query) or header(request.headers, b"accept"))
    except BadMediaType as error:
        raise Refusal(400, str(error)) from None
    return [media_type for media_type in listed if media_type.q > 0]


def accepts_json(types: list[MediaType]) -> bool:
    """Whether DICOM JSON (PS3.18 annex F) is accepted."""
    # Clients merge a multipart type into requests for metadata; that it cannot be JSON is not meant.
    return not types or any(
        media_type.is_multipart or any(covers(media_type.type, offered) for offered in JSON_TYPES)
        for media_type in types
    )


def accepts_single(types: list[MediaType], media_type: str, syntax: Optional[str] = None) -> bool:
    """Whether the first type that fits asks for a bare body of *media_type* rather than for multipart."""
    for accepted in types:
        if _fits(accepted, media_type, syntax):
            return not accepted.is_multipart and accepted.type != "*/*"
    return False


def accepts_parts(types: list[MediaType], media_type: str, syntax: Optional[str] = None) -> bool:
    """Whether parts of *media_type* in transfer syntax *syntax*, as stored, are accepted."""
    return not types or any(_fits(accepted, media_type, syntax) for accepted in types)


def _fits(accepted: MediaType, media_type: str, syntax: Optional[str]) -> bool:
    if accepted.is_multipart and accepted.type not in (MULTIPART, "multipart/*"):
        return False
    wanted = canonical_media_type(accepted.part_type or "*/*")
    asked = accepted.transfer_syntax
    if syntax is None or asked == "*":
        # Asked for octets in any transfer syntax: as stored, labelled with the true type.
        return covers(wanted, media_type) or wanted == OCTET_STREAM
    return covers(wanted, media_type) and asked in (None, syntax)


def offers(media_types: Iterable[str]) -> str:
    """What a 406 says that there is: *media_types* as parts."""
    return ", ".join(f'multipart/related; type="{media_type}"' for media_type in media_types)
