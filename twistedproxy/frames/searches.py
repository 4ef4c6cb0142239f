"""Searches (DICOM PS3.18 section 10.6) that the proxy makes in the name of a caller, with the caller's own headers.

What is found is no proof of anything: stores exist that let callers search and not retrieve.
"""

from __future__ import annotations

from typing import Any, Optional

from twistedproxy.dicom.lenient_json import first_value, read_json
from twistedproxy.dicom.resource import validate_uid
from twistedproxy.origin.errors import OriginBadAnswer, OriginRefused
from twistedproxy.origin.interface import Caller, Origin, OriginRequest, first, is_dicom_json
from twistedproxy.streams import StreamTooLong, read_all

MAX_ANSWER = 1 << 20
"""Bytes of the answer to one search: a page of 200 instances has 200 to 400 kB."""

PAGE = 200
"""Objects that one search asks for: Azure's limit, the lowest known."""

MAX_FOUND = 20_000
"""Objects that are found in all: more, and the store most likely ignores where a page is to begin."""


async def search(
    origin: Origin, path: str, query: str, caller: Caller, most: Optional[int] = None, whole: bool = False
) -> list[Any]:  # fmt: skip
    """The objects that a search at *path* (from the root on) finds, whose answer has *most* bytes at most. *whole*: not where the origin warns
    that there are more (PS3.18 section 8.3.4.4).

    Raises `OriginRefused` as the origin has put it, `OriginBadAnswer`, and the other errors of `twistedproxy.origin.errors`.
    """
    request = OriginRequest.get(path.encode("ascii"), query.encode("ascii"), b"application/dicom+json", caller)
    response = await origin.forward(request)
    try:
        answer = await read_all(response.body, most or MAX_ANSWER)
    except StreamTooLong:
        raise OriginBadAnswer("the origin's response to a search is too long") from None
    if response.status >= 400:
        raise OriginRefused(response.status, response.headers, answer)
    if response.status not in (200, 204):  # a redirect, which is not followed, says nothing
        raise OriginBadAnswer(f"the origin answered a search with {response.status}")
    if whole and first(response.headers, b"warning") is not None:
        raise OriginBadAnswer("the origin's response to a search is a part of what there is")
    if not answer.strip():
        return []
    try:
        found = read_json(answer)
    except (ValueError, RecursionError):
        found = None
    if not is_dicom_json(response.headers) or not isinstance(found, list):
        raise OriginBadAnswer("the origin's response to a search is not DICOM JSON")
    return found


async def search_uids(origin: Origin, path: str, tag: str, caller: Caller) -> list[str]:
    """The UIDs in element *tag* of all that a search at *path* finds, page by page, each once. Raises as `search` does."""
    uids: dict[str, None] = {}
    offset = 0
    while len(uids) <= MAX_FOUND:
        try:
            page = await search(origin, path, f"limit={PAGE}&offset={offset}", caller)
        except OriginRefused as refused:
            if not offset or refused.status != 404:
                raise
            page = []  # how some stores say that there is no more
        try:
            new = {validate_uid(first_value(one, tag)): None for one in page}
        except (ValueError, TypeError):
            raise OriginBadAnswer("the origin's response to a search has an object without its UID") from None
        if new.keys() <= uids.keys():
            return list(uids)
        uids.update(new)
        offset += len(page)
    raise OriginBadAnswer(f"the origin's search finds more than {MAX_FOUND} objects at {path}")
