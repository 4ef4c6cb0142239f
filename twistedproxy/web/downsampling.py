"""Metadata and searches with ``downsample``: the origin's answer, told of the smaller instances."""

from __future__ import annotations

import functools
from typing import Optional

import attrs

from twistedproxy.imaging.attributes import ASKED_FOR
from twistedproxy.imaging.errors import PoolError
from twistedproxy.imaging.parameters import DESCRIBING, without
from twistedproxy.imaging.pool import RenderPool
from twistedproxy.streams import BytesStream, ByteStream, StreamTooLong, read_all
from twistedproxy.web import problems
from twistedproxy.web.mounts import Target
from twistedproxy.web.passthrough import Alteration
from twistedproxy.web.paths import Kind
from twistedproxy.web.picture_answers import raise_problem
from twistedproxy.web.picture_requests import asked_of

MAX_DESCRIPTION = 64 << 20
"""Bytes of an answer that can be given for a downsampled instance: it is rewritten as a whole."""


def described(target: Target, pool: Optional[RenderPool]) -> tuple[Target, Optional[Alteration]]:
    """What the origin is to be asked for instead of metadata or a search with ``downsample``, and what becomes of its
    answer. Raises `Problem` 400."""
    asked = asked_of(target.query, DESCRIBING)
    if not asked.given:
        return target, None
    if pool is None:
        raise problems.bad_request("downsample needs rendering workers: there are none")
    query = without(target.query, DESCRIBING)
    if target.resource.kind is Kind.SEARCH:
        fields = [f"includefield={tag}".encode("ascii") for tag in ASKED_FOR]
        query = b"&".join([query, *fields] if query else fields)
    onward = attrs.evolve(target, query=query)
    return onward, functools.partial(_described, pool, asked.rendering.downsample)


async def _described(pool: RenderPool, factor: float, body: ByteStream) -> ByteStream:
    """The metadata, or the answer to a search, of downsampled instances."""
    try:
        answer = await read_all(body, MAX_DESCRIPTION)
        made = await pool.call({"op": "downsample", "factor": factor}, [answer])
    except StreamTooLong:
        raise problems.too_large(MAX_DESCRIPTION, "what the origin says of these instances") from None
    except PoolError as error:
        raise_problem(error)
    return BytesStream(made.blobs[0])
