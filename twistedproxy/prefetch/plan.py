"""What to load after a request, and why. Pure: settings, metadata, frame numbers and a load reading in, a `Plan` out.

Rules:
- the questions (`twistedproxy.prefetch.rules`) are asked in one fixed order; a plan carries the reason of each "no";
- a transfer syntax that nobody knows is no "no" to a whole-instance load, for the file itself says it, and such a load
  writes nothing before that; frames around a request can't be loaded then, as where frames lie in no order;
- what a caller waits for is loaded however busy the machine is;
- who holds a lock, what runs already and what is cached is not asked here: that is the scheduler's.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from typing import Optional

import attrs

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.prefetch.regions import FrameGrid, Region, Runs, Screen, Tiling, block_load, display_load
from twistedproxy.prefetch.rules import (
    Load,
    PrefetchSettings,
    Reason,
    Room,
    packed,
    switched_off,
    too_busy,
    too_large,
    unsized,
    unsupported,
)

__all__ = [
    "Kind",
    "Load",
    "Plan",
    "PrefetchSettings",
    "Reason",
    "plan",
    "plan_by_hand",
    "plan_for_picture",
]


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

    @property
    def waited_for(self) -> bool:
        """Whether a caller waits for what it loads."""
        return self.reason is Reason.NEEDED_BY_A_PICTURE

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
    one_frame_a_request: bool = False,
    frames_refused: bool = False,
    not_loadable: bool = False,
    room: Optional[Room] = None,
    looked_ahead: bool = False,
) -> Plan:
    """Decide what an answered request for the frames *requested* (no repeats) calls for.

    *from_origin* is how many of them came from the origin (None: all); *one_frame_a_request* whether the origin serves
    single frames only. *frames_refused*: the origin did not want to give these; only the whole instance can help, however
    few its frames are. *not_loadable*: a whole-instance load failed lately, as the next one would. *room*: what the cache has for
    it, where that is known. *looked_ahead*: whether frames are loaded where their readers look
    (`twistedproxy.prefetch.ahead.slides`): then there are no blocks and no display loads, and instances are loaded whole only where
    that takes no time. The *metadata*'s transfer syntax: where the origin doesn't say it, that of the frames.
    """
    frames = [number for number in requested if 1 <= number <= metadata.frames]
    origin_share = 1.0 if from_origin is None or not requested else from_origin / len(requested)
    refusal = (
        (None if frames else Reason.NO_FRAMES_REQUESTED)
        or switched_off(settings)
        or (Reason.BELOW_TRIGGER if origin_share < settings.prefetch_trigger else None)
        or _refused_syntax(metadata)
        or (Reason.TOO_FEW_FRAMES if metadata.frames < settings.prefetch_min_frames and not frames_refused else None)
        or unsized(metadata)
    )
    if refusal is not None:
        return Plan(Kind.NOTHING, refusal)
    screen = Screen(FrameGrid.of(metadata), min(frames), settings.display_pixels)
    only_whole = Reason.FRAMES_REFUSED if frames_refused else _only_whole(screen, metadata)
    not_whole = packed(metadata) or (Reason.NOT_LOADABLE if not_loadable else None)
    if not_whole is None and screen.grid.is_within(settings.block_pixels):
        return _whole(settings, Kind.SMALL, Reason.SMALL_INSTANCE, screen, only_whole, one_frame_a_request)
    ahead = looked_ahead and only_whole is None and not one_frame_a_request
    if room is not None and not ahead:
        room = attrs.evolve(room, seconds=0.0)  # a frame costs as much as all, or there is no other way
    not_whole = not_whole or too_large(settings, metadata, room) or too_busy(settings, load)
    if not_whole is not None and ahead:
        return Plan(Kind.NOTHING, not_whole, not_whole=not_whole, no_display=Reason.LOOKED_AHEAD)
    if not_whole is not None:
        return _block(settings, not_whole, screen, only_whole, one_frame_a_request)
    no_display = Reason.LOOKED_AHEAD if ahead else only_whole
    return _whole(settings, Kind.WHOLE, Reason.WHOLE_INSTANCE, screen, no_display, one_frame_a_request)


def plan_by_hand(settings: PrefetchSettings, metadata: InstanceMetadata) -> Plan:
    """Decide on a whole-instance load that somebody asked for: the gates of size, CPU and memory stand open."""
    refusal = switched_off(settings) or _refused_syntax(metadata) or unsized(metadata) or packed(metadata)
    if refusal is not None:
        return Plan(Kind.NOTHING, refusal)
    if FrameGrid.of(metadata).is_within(settings.block_pixels):
        return Plan(Kind.SMALL, Reason.ASKED_BY_HAND, metadata.frames)
    if not settings.whole_instance:
        return Plan(Kind.NOTHING, Reason.WHOLE_INSTANCE_OFF)
    return Plan(Kind.WHOLE, Reason.ASKED_BY_HAND, metadata.frames)


def plan_for_picture(settings: PrefetchSettings, metadata: InstanceMetadata, not_loadable: bool = False) -> Plan:
    """Decide on a whole-instance load of what a caller needs most frames of, and waits for: fetching them otherwise is more
    work still, so it does not matter how busy the machine is. *not_loadable*: as of `plan`."""
    if not_loadable:
        return Plan(Kind.NOTHING, Reason.NOT_LOADABLE)
    if metadata.frames < settings.prefetch_min_frames:
        return Plan(Kind.NOTHING, Reason.TOO_FEW_FRAMES)
    if (not_whole := too_large(settings, metadata)) is not None:
        return Plan(Kind.NOTHING, not_whole)
    decided = plan_by_hand(settings, metadata)
    return decided if decided.kind is Kind.NOTHING else attrs.evolve(decided, reason=Reason.NEEDED_BY_A_PICTURE)


def plan_small_level(settings: PrefetchSettings, metadata: InstanceMetadata) -> Plan:
    """Decide on loading a small level of a slide that is opened, and whose frames were not asked for yet."""
    refusal = _refused_syntax(metadata) or unsized(metadata) or packed(metadata)
    kind = Kind.NOTHING if refusal is not None else Kind.SMALL
    return Plan(kind, refusal or Reason.SMALL_LEVEL, metadata.frames)


def _refused_syntax(metadata: InstanceMetadata) -> Optional[Reason]:
    reason = unsupported(metadata)
    return None if reason is Reason.SYNTAX_UNKNOWN else reason


def _only_whole(screen: Screen, metadata: InstanceMetadata) -> Optional[Reason]:
    """Why the frames around a request can't be loaded by themselves."""
    if screen.grid.tiling is Tiling.SPARSE:
        return Reason.SPARSE
    return unsupported(metadata)  # it is unknown: others were refused before


def _whole(
    settings: PrefetchSettings,
    kind: Kind,
    reason: Reason,
    screen: Screen,
    none: Optional[Reason],
    one_frame_a_request: bool,
) -> Plan:
    display, no_display = _display(settings, screen, none, one_frame_a_request)
    # In this process the display load only goes first: of the same frames it would be the same load twice.
    if kind is Kind.SMALL and no_display is None and len(display) >= screen.grid.frames:
        display, no_display = Region(), Reason.DISPLAY_NOT_SMALLER
    return Plan(kind, reason, screen.grid.frames, Region(), display, None, no_display, screen)


def _block(
    settings: PrefetchSettings,
    not_whole: Reason,
    screen: Screen,
    only_whole: Optional[Reason],
    one_frame_a_request: bool,
) -> Plan:
    if only_whole is not None:
        return Plan(Kind.NOTHING, only_whole, not_whole=not_whole, no_display=only_whole)
    wanted, no_display = _display(settings, screen, None, one_frame_a_request)
    block, display = block_load(screen, settings.block_pixels, wanted, one_frame_a_request)
    if wanted and not display:
        no_display = Reason.DISPLAY_NOT_SMALLER
    return Plan(Kind.BLOCK, not_whole, len(block), block, display, not_whole, no_display, screen)


def _display(
    settings: PrefetchSettings, screen: Screen, only_whole: Optional[Reason], one_frame_a_request: bool
) -> tuple[Region, Optional[Reason]]:
    if only_whole is not None:
        return Region(), only_whole
    if screen.grid.frames < settings.display_min_frames:
        return Region(), Reason.DISPLAY_TOO_FEW_FRAMES
    return display_load(screen, one_frame_a_request), None
