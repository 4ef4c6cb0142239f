"""What to load after a request, and why. Pure: settings, metadata, frame numbers and a load reading in, a `Plan` out.

Rules:
- the questions (`twistedproxy.prefetch.gates`) are asked in one fixed order; a plan carries the reason of each "no";
- who holds a lock, what runs already and what is cached is not asked here: that is the scheduler's.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from typing import Optional

import attrs

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.prefetch.gates import (
    Load,
    LoadReading,
    PrefetchSettings,
    Reason,
    packed,
    switched_off,
    too_busy,
    too_large,
    unsized,
    unsupported,
)
from twistedproxy.prefetch.grid import FrameGrid, Region, Runs, Tiling
from twistedproxy.prefetch.regions import Screen, block_load, display_load

__all__ = ["Kind", "Load", "LoadReading", "Plan", "PrefetchSettings", "Reason", "plan", "plan_by_hand"]


class Kind(enum.Enum):
    """What to start. The values are stable: logs and metrics carry them."""

    NOTHING = "nothing"
    SMALL = "small"
    """The whole instance, in this process."""
    WHOLE = "whole"
    """The whole instance, in a child process."""
    BLOCK = "block"


@attrs.frozen
class Plan:
    """What to load for one request.

    *reason* says why it is *kind*; of a block, why it is not the whole instance. *not_whole* and *no_display* say why
    there is no such load where one was thought of. *frames* is how many the main load wants, the display load's not
    counted. *block* (empty unless a block) and *display* (empty: no display load) share no frame.
    """

    kind: Kind
    reason: Reason
    frames: int = 0
    block: Region = Region()
    display: Region = Region()
    not_whole: Optional[Reason] = None
    no_display: Optional[Reason] = None
    screen: Optional[Screen] = attrs.field(default=None, repr=False)

    @property
    def whole(self) -> bool:
        """Whether the main load is of the whole instance."""
        return self.kind in (Kind.SMALL, Kind.WHOLE)

    def in_load_order(self, region: Region) -> Runs:
        """The runs of one of this plan's regions, viewport rows first."""
        return self.screen.viewport_first(region) if self.screen else region.runs

    def fields(self) -> dict[str, object]:
        """For logs and status: stable names, plain values."""
        return {
            "kind": self.kind.value,
            "reason": self.reason.value,
            "not_whole": self.not_whole.value if self.not_whole else None,
            "no_display": self.no_display.value if self.no_display else None,
            "frames": self.frames,
            "display_frames": len(self.display),
        }


def plan(
    settings: PrefetchSettings,
    metadata: InstanceMetadata,
    requested: Collection[int],
    load: Load,
    *,
    from_origin: Optional[int] = None,
    transfer_syntax: Optional[str] = None,
    one_frame_a_request: bool = False,
) -> Plan:
    """Decide what an answered request for the frames *requested* (no repeats) calls for.

    *from_origin* is how many of them came from the origin (None: all); *transfer_syntax* what they turned out to be
    stored in, for metadata that doesn't say; *one_frame_a_request* whether the origin serves single frames only.
    """
    frames = [number for number in requested if 1 <= number <= metadata.frames]
    origin_share = 1.0 if from_origin is None or not requested else from_origin / len(requested)
    refusal = (
        (None if frames else Reason.NO_FRAMES_REQUESTED)
        or switched_off(settings)
        or (Reason.BELOW_TRIGGER if origin_share < settings.prefetch_trigger else None)
        or unsupported(metadata, transfer_syntax)
        or (Reason.TOO_FEW_FRAMES if metadata.frames < settings.prefetch_min_frames else None)
        or unsized(metadata)
    )
    if refusal is not None:
        return Plan(Kind.NOTHING, refusal)
    screen = Screen(FrameGrid.of(metadata), min(frames), settings.display_pixels)
    not_whole = packed(metadata, transfer_syntax)
    if not_whole is None and screen.grid.is_within(settings.block_pixels):
        return _whole(settings, Kind.SMALL, Reason.SMALL_INSTANCE, screen, one_frame_a_request)
    not_whole = not_whole or too_large(settings, metadata) or too_busy(settings, load)
    if not_whole is None:
        return _whole(settings, Kind.WHOLE, Reason.WHOLE_INSTANCE, screen, one_frame_a_request)
    return _block(settings, not_whole, screen, one_frame_a_request)


def plan_by_hand(settings: PrefetchSettings, metadata: InstanceMetadata, transfer_syntax: Optional[str] = None) -> Plan:
    """Decide on a whole-instance load that somebody asked for: the gates of size, CPU and memory stand open."""
    refusal = (
        switched_off(settings)
        or unsupported(metadata, transfer_syntax)
        or unsized(metadata)
        or packed(metadata, transfer_syntax)
    )
    if refusal is not None:
        return Plan(Kind.NOTHING, refusal)
    if FrameGrid.of(metadata).is_within(settings.block_pixels):
        return Plan(Kind.SMALL, Reason.ASKED_BY_HAND, metadata.frames)
    if not settings.whole_instance:
        return Plan(Kind.NOTHING, Reason.WHOLE_INSTANCE_OFF)
    return Plan(Kind.WHOLE, Reason.ASKED_BY_HAND, metadata.frames)


def _whole(settings: PrefetchSettings, kind: Kind, reason: Reason, screen: Screen, one_frame_a_request: bool) -> Plan:
    display, no_display = _display(settings, screen, one_frame_a_request)
    # In this process the display load only goes first: of the same frames it would be the same load twice.
    if kind is Kind.SMALL and no_display is None and len(display) >= screen.grid.frames:
        display, no_display = Region(), Reason.DISPLAY_NOT_SMALLER
    return Plan(kind, reason, screen.grid.frames, Region(), display, None, no_display, screen)


def _block(settings: PrefetchSettings, not_whole: Reason, screen: Screen, one_frame_a_request: bool) -> Plan:
    if screen.grid.tiling is Tiling.SPARSE:
        return Plan(Kind.NOTHING, Reason.SPARSE, not_whole=not_whole, no_display=Reason.SPARSE)
    wanted, no_display = _display(settings, screen, one_frame_a_request)
    block, display = block_load(screen, settings.block_pixels, wanted, one_frame_a_request)
    if wanted and not display:
        no_display = Reason.DISPLAY_NOT_SMALLER
    return Plan(Kind.BLOCK, not_whole, len(block), block, display, not_whole, no_display, screen)


def _display(settings: PrefetchSettings, screen: Screen, one_frame_a_request: bool) -> tuple[Region, Optional[Reason]]:
    if screen.grid.tiling is Tiling.SPARSE:
        return Region(), Reason.SPARSE
    if screen.grid.frames < settings.display_min_frames:
        return Region(), Reason.DISPLAY_TOO_FEW_FRAMES
    return display_load(screen, one_frame_a_request), None
