"""The rules before a prefetch, one function each. Pure: None lets through, a `Reason` is a "no".

Rules:
- each "no" has a reason of its own, whose value is stable: logs and metrics carry it;
- a reading of the system load is taken only when its answer can matter; one that fails changes nothing.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Optional, Protocol, Union

import attrs

from twistedproxy.cache.address import CacheAddress, NoAddress
from twistedproxy.dicom import transfer_syntaxes
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.system.machine_load import SystemLoad

NEVER_LOOKED_AT = 100
"""A limit in percent that switches its reading off."""


class PrefetchSettings(Protocol):
    """The settings that decide; `twistedproxy.settings.Settings` has them all, with their units."""

    @property
    def cache(self) -> CacheAddress: ...
    @property
    def prefetch(self) -> bool: ...
    @property
    def prefetch_min_frames(self) -> int: ...
    @property
    def prefetch_trigger(self) -> float: ...
    @property
    def whole_instance(self) -> bool: ...
    @property
    def whole_instance_max_frames(self) -> int: ...
    @property
    def whole_instance_max_cpu(self) -> float: ...
    @property
    def whole_instance_max_memory(self) -> float: ...
    @property
    def block_pixels(self) -> int: ...
    @property
    def display_pixels(self) -> int: ...
    @property
    def display_min_frames(self) -> int: ...


Load = Union[SystemLoad, Callable[[], SystemLoad]]
"""A reading, or what takes one when it is needed; it may raise OSError."""


@attrs.frozen
class Room:
    """*capacity*: bytes of the cache, None where that is not known; *frame_bytes*: those of a frame of the instance, about; 0 where
    that is not known. *seconds*: how long it would take to load the instance, and what else its reader and others may look at."""

    capacity: Optional[int]
    frame_bytes: int
    seconds: float = 0.0


class Reason(enum.Enum):
    """Why. The values are stable: logs and metrics carry them."""

    NO_FRAMES_REQUESTED = "no-frames-requested"
    PREFETCH_OFF = "prefetch-off"
    NO_CACHE = "no-cache"
    BELOW_TRIGGER = "below-trigger"
    SYNTAX_UNKNOWN = "syntax-unknown"
    SYNTAX_NOT_SUPPORTED = "syntax-not-supported"
    TOO_FEW_FRAMES = "too-few-frames"
    FRAME_SIZE_UNKNOWN = "frame-size-unknown"
    SPARSE = "sparse"
    FRAMES_REFUSED = "frames-refused"

    SMALL_INSTANCE = "small-instance"
    WHOLE_INSTANCE = "whole-instance"
    ASKED_BY_HAND = "asked-by-hand"
    NEEDED_BY_A_PICTURE = "needed-by-a-picture"
    SMALL_LEVEL = "small-level"

    WHOLE_INSTANCE_OFF = "whole-instance-off"
    TOO_MANY_FRAMES = "too-many-frames"
    LARGE_FOR_THE_CACHE = "large-for-the-cache"
    SLOW_TO_LOAD = "slow-to-load"
    PACKED_FRAMES = "packed-frames"
    NOT_LOADABLE = "not-loadable"
    CPU_ABOVE_LIMIT = "cpu-above-limit"
    MEMORY_ABOVE_LIMIT = "memory-above-limit"

    DISPLAY_TOO_FEW_FRAMES = "display-too-few-frames"
    DISPLAY_NOT_SMALLER = "display-not-smaller"
    LOOKED_AHEAD = "looked-ahead"


def switched_off(settings: PrefetchSettings) -> Optional[Reason]:
    """Whether anything is prefetched at all."""
    if not settings.prefetch:
        return Reason.PREFETCH_OFF
    return Reason.NO_CACHE if isinstance(settings.cache, NoAddress) else None


def unsupported(metadata: InstanceMetadata) -> Optional[Reason]:
    """Frames that cannot be told apart without decoding are not prefetched."""
    if not metadata.transfer_syntax:
        return Reason.SYNTAX_UNKNOWN
    syntax = transfer_syntaxes.lookup(metadata.transfer_syntax)
    return None if syntax and syntax.frames_separable else Reason.SYNTAX_NOT_SUPPORTED


def unsized(metadata: InstanceMetadata) -> Optional[Reason]:
    """Without the size of a frame there is no square, and nothing to cut native frames by."""
    return None if metadata.rows > 0 and metadata.columns > 0 else Reason.FRAME_SIZE_UNKNOWN


def packed(metadata: InstanceMetadata) -> Optional[Reason]:
    """Native frames not made of whole bytes run into each other (PS3.5 section 8.1.1): no stream of them can be cut."""
    native = transfer_syntaxes.is_native(metadata.transfer_syntax)
    return Reason.PACKED_FRAMES if native and metadata.frame_length is None else None


CACHE_SHARE = 4
"""One part in so many of the cache is the most that an instance may take which nobody asked to be loaded whole: larger ones push out
what other readers use, and themselves."""


PAYS_SECONDS = 5.0
"""How long a slide may take to be loaded whole. Loading frames around those that are looked at brings less that nobody asks for:
of a slide of 1.5 GB at 50 MB/s a tenth, and fewer tiles wait meanwhile (``tests/benchmarks/reader_model``)."""


def too_large(settings: PrefetchSettings, metadata: InstanceMetadata, room: Optional[Room] = None) -> Optional[Reason]:
    """Whether instances of this size are loaded whole, where the cache has this *room*."""
    if not settings.whole_instance:
        return Reason.WHOLE_INSTANCE_OFF
    room = room or Room(None, 0)
    if metadata.frames * room.frame_bytes * CACHE_SHARE > (room.capacity or math.inf):
        return Reason.LARGE_FOR_THE_CACHE
    if room.seconds > PAYS_SECONDS:
        return Reason.SLOW_TO_LOAD
    return Reason.TOO_MANY_FRAMES if metadata.frames > settings.whole_instance_max_frames else None


def too_busy(settings: PrefetchSettings, load: Load) -> Optional[Reason]:
    """Whether the machine has room for a whole-instance load."""
    cpu_limit, memory_limit = settings.whole_instance_max_cpu, settings.whole_instance_max_memory
    if min(cpu_limit, memory_limit) >= NEVER_LOOKED_AT:
        return None
    try:
        reading = load if isinstance(load, SystemLoad) else load()
    except OSError:
        return None
    if _above(reading.cpu_percent, cpu_limit):
        return Reason.CPU_ABOVE_LIMIT
    return Reason.MEMORY_ABOVE_LIMIT if _above(reading.memory_percent, memory_limit) else None


def _above(percent: Optional[float], limit: float) -> bool:
    return limit < NEVER_LOOKED_AT and percent is not None and percent > limit
