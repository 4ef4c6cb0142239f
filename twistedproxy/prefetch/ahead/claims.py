"""Of frames that are to be loaded, those that are neither cached nor loaded by another worker."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from twistedproxy.cache.interface import Cache
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.entries import frame_name

CLAIM_SECONDS = 30.0
"""How long other workers leave a frame to the one that loads it."""


@asynccontextmanager
async def claimed(
    cache: Cache, instance: Instance, numbers: Sequence[int]
) -> AsyncIterator[tuple[tuple[int, ...], int]]:
    """Claim those of *numbers* that are not cached, and give them back at the end: what was won, and how many others have claimed."""
    names = {frame_name(number): number for number in numbers}
    cached = await cache.present(instance, list(names))
    missing = [name for name in names if name not in cached]
    if not missing:
        yield (), 0
        return
    token = os.urandom(12)
    won = await cache.claim(instance, missing, token, CLAIM_SECONDS)
    try:
        yield tuple([names[name] for name in missing if name in won]), len(missing) - len(won)
    finally:
        await cache.unclaim(instance, won, token)
