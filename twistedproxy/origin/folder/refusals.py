"""Refusals in the form that DICOMweb gives them (application/problem+json, RFC 9457)."""

from __future__ import annotations

import http
import json

from twistedproxy.origin.errors import OriginRefused
from twistedproxy.origin.interface import Headers

MAX_SHOWN = 80  # characters of what came


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
