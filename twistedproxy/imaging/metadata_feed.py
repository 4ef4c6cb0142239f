"""An instance's metadata on their way from the origin to a rendering child, piece by piece: they may be 400 MB."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Optional, TypeVar

from twistedproxy.dicom.address import Instance
from twistedproxy.imaging.pool import Held, RenderPool
from twistedproxy.origin.errors import OriginBadAnswer, OriginRefused
from twistedproxy.origin.interface import Caller, Origin, OriginRequest, is_dicom_json
from twistedproxy.streams import ByteStream, StreamTooLong, hold, read_all

PIECE = 1 << 20
MAX_REFUSAL = 64 << 10

T = TypeVar("T")

_numbers = itertools.count(1)


async def feed(
    pool: RenderPool,
    origin: Origin,
    instance: Instance,
    caller: Caller,
    head: Mapping[str, Any],
    finish: Callable[[Held, int], Awaitable[T]],
) -> T:
    """Have a child read the metadata by calls that begin with *head*; then what *finish* makes of the child and of the
    number by which it knows what it has read.

    Raises the errors of `twistedproxy.origin.errors` and `PoolError`.
    """
    number = next(_numbers)
    path = f"{instance.root}/{instance.path}/metadata".encode("ascii")
    body = await _opened(origin, path, caller)
    held: Optional[Held] = None
    try:
        while True:
            piece, whole = await hold(body, PIECE)
            call = {**head, "number": number, "uids": instance.uids}
            if held is None:
                held = await pool.hold(call, [piece])
            else:
                await held.call(call, [piece])
            if whole:
                return await finish(held, number)
    finally:
        body.close()
        if held is not None:
            held.forget({"op": "drop", "number": number})


async def _opened(origin: Origin, path: bytes, caller: Caller) -> ByteStream:
    """The body of a successful answer to a GET of the caller. Raises the errors of `twistedproxy.origin.errors`."""
    response = await origin.forward(OriginRequest.get(path, b"", b"application/dicom+json", caller))
    if response.status != 200:
        try:
            refusal = await read_all(response.body, MAX_REFUSAL)
        except StreamTooLong:
            refusal = b""
        if response.status < 400:
            raise OriginBadAnswer(f"the origin answered a request for metadata with {response.status}")
        raise OriginRefused(response.status, response.headers, refusal)
    if not is_dicom_json(response.headers):
        response.body.close()
        raise OriginBadAnswer("the origin's answer to a metadata request is no DICOM JSON")
    return response.body
