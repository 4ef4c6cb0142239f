"""What a request asks of pictures: its query and its Accept, as a request of the rendering service."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Optional

import attrs

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicomweb import negotiation
from twistedproxy.frames.read_through import Wanted
from twistedproxy.imaging.errors import CannotRender
from twistedproxy.imaging.parameters import PROFILES, BadParameter, PictureQuery, parse_query
from twistedproxy.rendering import jobs, media_types
from twistedproxy.rendering.media_types import PICTURE_TYPES
from twistedproxy.server import problems
from twistedproxy.server.problems import Problem


def asked_of(query: bytes, known: frozenset[str], profiles: Collection[str] = PROFILES) -> PictureQuery:
    """What a query asks for. Raises `Problem` 400."""
    try:
        return parse_query(query, known, profiles)
    except BadParameter as error:
        raise problems.bad_request(str(error)) from None


def without_accept(query: bytes) -> bytes:
    """A raw query less what replaces Accept."""
    return b"&".join(field for field in query.split(b"&") if field and not field.lower().startswith(b"accept="))


def choose_picture(accepted: negotiation.Wanted, single: bool) -> tuple[str, bool]:
    """The media type of pictures, and whether they are parts. Raises `Problem` 406."""
    if single:
        try:
            return negotiation.choose_type(accepted, PICTURE_TYPES), False
        except Problem:
            if not any(range_.multipart for range_ in accepted.ranges):
                raise
    ranges = tuple(
        attrs.evolve(range_, multipart=False) for range_ in accepted.ranges if range_.multipart or not single
    )
    return negotiation.choose_type(attrs.evolve(accepted, ranges=ranges), PICTURE_TYPES), True


def request_of(
    wanted: Wanted, asked: PictureQuery, media_type: str, check: Optional[Callable[[InstanceMetadata], None]] = None
) -> jobs.Request:
    """What the rendering service is asked for. *check*: see there."""
    request = jobs.Request(
        wanted.origin, wanted.instance, wanted.caller, asked.rendering.to(media_type), asked.fresh
    )  # fmt: skip
    return request if check is None else attrs.evolve(request, check=check)


class NotDecodableHere(Exception):
    """The instance has no pixels, or is in a transfer syntax that is not decoded here."""


def check_decodable(metadata: InstanceMetadata) -> None:
    """Raises `NotDecodableHere`."""
    if not media_types.can_render(metadata):
        raise NotDecodableHere


def check_depth(metadata: InstanceMetadata) -> None:
    """Raises `CannotRender`: frames of a virtual instance have 8 bits a sample, as its viewers would not know."""
    if metadata.bits_stored > 8:
        raise CannotRender(
            f"frames of {metadata.bits_stored} bits a sample cannot be resized without loss of depth: ask for …/rendered"
        )
