"""The room's service, made from the settings."""

from __future__ import annotations

from typing import Any, Optional

from twistedproxy.cache.interface import Cache
from twistedproxy.frames.reader import FrameReader
from twistedproxy.imaging.pool import RenderPool
from twistedproxy.imaging.service import PictureService
from twistedproxy.imaging.tasks import Limits
from twistedproxy.settings import Settings


def open_imaging(reactor: Any, settings: Settings, reader: FrameReader, cache: Cache) -> Optional[PictureService]:
    """The service that makes pictures; None where there are no workers for it. Its `start` reads profiles."""
    if settings.render_workers == 0:
        return None
    pool = RenderPool(reactor, settings.render_workers, settings.render_queue, settings.render_timeout)
    limits = Limits(
        settings.render_max_pixels, settings.render_max_frames, settings.render_max_whole_frames, settings.max_answer
    )
    return PictureService(reader, cache, pool, limits, settings.frame_ttl, settings.icc_profiles)
