"""How an origin can fail, as callers of this package see it."""

from __future__ import annotations

import http
import json
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from twistedproxy.dicom.metadata import InstanceMetadata

NOT_ALLOWED = frozenset({401, 403})
"""How origins say that a caller may not do something."""

DENIALS = NOT_ALLOWED | {404, 410}
"""How origins say that a caller may not read, or that there is nothing to read."""

HAS_NOT = frozenset({404, 405, 406, 410, 415})
"""Statuses by which an origin says that it does not have something for a caller, or not in that form. After any other
refusal the next request may go well."""


class OriginError(Exception):
    """An origin did not give what it was asked for. `str()` of it is fit for a caller's eyes: no secrets."""


@attrs.define(eq=False)
class OriginRefused(OriginError):
    """The origin answered with an error: it goes back as it came.

    *headers* are end-to-end ones; *body* is bounded by what its reader kept (64 KiB).
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def __str__(self) -> str:
        return f"the origin answered {self.status}"


def refused(status: int, detail: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> OriginRefused:
    """A refusal by an origin that is part of this package, as DICOMweb gives them (application/problem+json, RFC 9457).
    *detail* names what came and what is accepted."""
    problem = {"title": http.HTTPStatus(status).phrase, "status": status, "detail": detail}
    body = json.dumps(problem).encode("ascii")
    return OriginRefused(status, ((b"Content-Type", b"application/problem+json"), *headers), body)


class FramesRefused(OriginRefused):
    """The origin gives a caller who may read an instance neither its frames as stored nor its file. It may give
    them in another form, or pictures of them."""


class OriginUnreachable(OriginError):
    """No connection, or it broke: 502."""


class OriginBrokeOff(OriginUnreachable):
    """An answer began, and broke off."""


class OriginBusy(OriginError):
    """The origin kept asking for a retry later, or the queue in front of it is full: 503."""


class OriginTimeout(OriginError):
    """No progress within the deadline: 504."""


class OriginBadAnswer(OriginError):
    """The answer came and violates DICOMweb: 502."""


@attrs.define(eq=False)
class AnsweredByCache(OriginBadAnswer):
    """A cache on the way gave the *metadata*: they are facts, and no proof that this caller may read the instance."""

    metadata: InstanceMetadata

    def __str__(self) -> str:
        return "a cache in front of the origin answered, which proves no access to the instance"


class NotAsStored(OriginBadAnswer):
    """The origin sent frames in another form than the stored one."""
