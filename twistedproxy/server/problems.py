"""Errors of the proxy's own, as values that can be raised: application/problem+json (RFC 9457).

Rules kept here:
- a detail names what came and what would have been accepted; no secrets, no traceback;
- what came is shortened before it is shown, so a hostile request does not make a long answer;
- the type stays "about:blank" (RFC 9457 section 4.2.1), so the title is the status' own phrase.
"""

from __future__ import annotations

import http
import json
from collections.abc import Iterable, Mapping

import attrs

CONTENT_TYPE = b"application/problem+json"
MAX_SHOWN = 80  # characters of what came, as in twistedproxy.dicom.resource

Headers = tuple[tuple[bytes, bytes], ...]


@attrs.define(eq=False)
class Problem(Exception):
    """An error answer. *members* are extension members of the JSON object; *headers* go out beside Content-Type."""

    status: int
    detail: str
    title: str = ""
    members: Mapping[str, object] = attrs.field(factory=dict)
    headers: Headers = ()

    def __attrs_post_init__(self) -> None:
        if not self.title:
            self.title = http.HTTPStatus(self.status).phrase

    def __str__(self) -> str:
        return f"{self.status} {self.title}: {self.detail}"

    def to_json(self) -> bytes:
        """The body: one JSON object in ASCII."""
        known = {"title": self.title, "status": self.status, "detail": self.detail}
        return json.dumps({**self.members, **known}).encode("ascii")


def shown(text: str | bytes) -> str:
    """What came, quoted, escaped and shortened, fit for a detail."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    return repr(text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "...")


def method_not_allowed(allow: Iterable[str]) -> Problem:
    """405 with the Allow header that RFC 9110 section 15.5.6 demands."""
    methods = ", ".join(allow)
    return Problem(
        405, f"this method is not allowed here; allowed: {methods}", headers=((b"Allow", methods.encode("ascii")),)
    )


def not_acceptable(available: Iterable[str]) -> Problem:
    """406 whose body lists the media types that there are."""
    listed = list(available)
    return Problem(
        406,
        "none of the media types in Accept is available; available: " + ", ".join(listed),
        members={"available": listed},
    )


def range_not_satisfiable(size: int) -> Problem:
    """416 with the size in bytes that there is (RFC 9110 section 15.5.17)."""
    return Problem(
        416,
        f"the range starts beyond the end of the {size} bytes",
        headers=((b"Content-Range", b"bytes */%d" % size),),
    )


def unavailable(detail: str, retry_after: int) -> Problem:
    """503; *retry_after* in seconds."""
    return Problem(503, detail, headers=((b"Retry-After", b"%d" % retry_after),))
