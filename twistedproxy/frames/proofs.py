"""Has the origin prove a caller's right to the pixels of an instance, in the cheapest way, and say the facts where they are not known.

- What proves it is the instance's metadata, a frame as stored, or the object, given to that caller's own request.
- Where metadata and pixels are separate permissions (AWS HealthImaging is such a store), metadata are facts alone: *by_pixels*.
- A cache on the way proves nothing to a caller with credentials.
"""

from __future__ import annotations

from typing import Optional

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.origin.errors import NOT_ALLOWED, AnsweredByCache, OriginBadAnswer, OriginError, OriginRefused
from twistedproxy.origin.interface import Caller, Origin, Priority, past_caches

BY_METADATA = 100
"""Frames of an instance up to which metadata are the cheaper proof; of more they may be 100 MB, and a frame is asked for."""


async def proved(
    origin: Origin, instance: Instance, caller: Caller, known: Optional[InstanceMetadata], by_pixels: bool
) -> tuple[InstanceMetadata, bool]:
    """Have the right of *caller* proved, where the facts may be *known*; the facts, and whether the origin has just said them.

    Raises the errors of `twistedproxy.origin.errors`: what the origin refuses, as it has put it.
    """
    if by_pixels:
        facts = await _facts(origin, instance, caller) if known is None else known
        await _by_pixels(origin, instance, caller, facts)
        return facts, known is None
    if known is not None and known.frames > BY_METADATA:
        try:
            await _by_frame(origin, instance, caller, known)
            return known, False
        except OriginRefused as refused:
            if refused.status in NOT_ALLOWED:
                raise
        except OriginBadAnswer:
            pass  # a store that gives no frames may give metadata
    return await _by_metadata(origin, instance, caller), True


async def _by_metadata(origin: Origin, instance: Instance, caller: Caller) -> InstanceMetadata:
    try:
        return await origin.metadata(instance, caller)
    except AnsweredByCache as facts:
        await _by_frame(origin, instance, caller, facts.metadata)
        return facts.metadata


async def _facts(origin: Origin, instance: Instance, caller: Caller) -> InstanceMetadata:
    try:
        return await origin.metadata(instance, caller)
    except AnsweredByCache as facts:
        return facts.metadata


async def _by_pixels(origin: Origin, instance: Instance, caller: Caller, known: InstanceMetadata) -> None:
    """By a frame; by the object, of which the first bytes will do, where the origin gives no frames of it."""
    try:
        await _by_frame(origin, instance, caller, known)
    except (OriginRefused, OriginBadAnswer) as no_frame:
        if isinstance(no_frame, OriginRefused) and no_frame.status in NOT_ALLOWED:
            raise
        try:
            opened = await origin.stored_instance(instance, past_caches(caller))
        except OriginError:
            raise no_frame from None
        opened.close()


async def _by_frame(origin: Origin, instance: Instance, caller: Caller, known: InstanceMetadata) -> None:
    # With the priority of callers who hold no grant, no frame is cut out of the whole file.
    await origin.frames(instance, (1,), past_caches(caller), known, Priority.UNKNOWN)
