"""Answers in the forms that DICOMweb gives them, and refusals (application/problem+json, RFC 9457)."""

from __future__ import annotations

import http
import json
from collections.abc import Iterable
from typing import Optional

import attrs

from twistedproxy.origin.errors import OriginRefused
from twistedproxy.origin.interface import Headers, OriginResponse
from twistedproxy.streams import BytesStream, ByteStream

DICOM_JSON = b"application/dicom+json"
PROBLEM_JSON = b"application/problem+json"
MAX_SHOWN = 80  # characters of what came


@attrs.define(eq=False)
class Refusal(Exception):
    """A request that is not granted. *detail* names what came and what is accepted."""

    status: int
    detail: str
    headers: Headers = ()

    def __str__(self) -> str:
        return f"{self.status}: {self.detail}"

    @property
    def body(self) -> bytes:
        """The problem as JSON (RFC 9457)."""
        title = http.HTTPStatus(self.status).phrase
        return json.dumps({"title": title, "status": self.status, "detail": self.detail}).encode("ascii")

    def response(self) -> OriginResponse:
        """The answer to a request that was handed on."""
        return answer(self.status, PROBLEM_JSON, self.body, self.headers)

    def error(self) -> OriginRefused:
        """The error of a request of the proxy's own."""
        return OriginRefused(self.status, ((b"Content-Type", PROBLEM_JSON), *self.headers), self.body)


def shown(text: str | bytes) -> str:
    """What came, quoted, escaped and shortened."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    return repr(text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "...")


def no_such(what: str) -> Refusal:
    """404; *what*: study, series, instance and so on."""
    return Refusal(404, f"there is no such {what} in the folder")


def not_allowed(methods: Iterable[str]) -> Refusal:
    """405 with Allow (RFC 9110 section 15.5.6)."""
    allowed = ", ".join(methods)
    return Refusal(405, f"allowed here: {allowed}", ((b"Allow", allowed.encode("ascii")),))


def not_acceptable(available: str) -> Refusal:
    """406 that lists the media types that there are."""
    return Refusal(406, f"nothing that Accept asks for is there; there is: {available}")


def answer(status: int, content_type: bytes, body: bytes, headers: Headers = ()) -> OriginResponse:
    """An answer whose *body* is there as a whole."""
    return streamed(status, content_type, BytesStream(body), len(body), headers)


def streamed(
    status: int, content_type: bytes, body: ByteStream, length: Optional[int], headers: Headers = ()
) -> OriginResponse:
    """*length*: bytes of the body, None where they are not known beforehand."""
    counted = () if length is None else ((b"Content-Length", b"%d" % length),)
    return OriginResponse(status, ((b"Content-Type", content_type), *counted, *headers), body, length)
