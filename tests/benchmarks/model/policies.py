"""The rule sets that are compared, and what is tuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

from tests.benchmarks.model.proxy import Policy
from tests.benchmarks.model.rules import AfterMisses, LookAhead, NeighbouringLevels, SlicesAhead, SmallLevels

RING, FURTHER, MARGIN = 4, 4, 6
WHOLE_LIMIT = 1024
BLOCK = 12
AHEAD, BEHIND = 12, 4
SIDE_BY_SIDE = 12
SLOTS = 60


def no_whole_loads(
    ring: int = RING,
    further: int = FURTHER,
    margin: int = MARGIN,
    limit: int = WHOLE_LIMIT,
    ahead: int = AHEAD,
    behind: int = BEHIND,
    name: str = "no whole loads above 1,024 frames",
) -> Policy:
    """All rules for series; instances of more than *limit* frames are not loaded whole."""
    return Policy(
        name,
        lambda: (
            SmallLevels(),
            AfterMisses(limit, block=BLOCK, small_are_jobs=False),
            LookAhead(ring, further),
            NeighbouringLevels(margin),
            SlicesAhead(ahead, behind),
        ),
        join=True,
        beside=True,
        side_by_side=SIDE_BY_SIDE,
        slots=SLOTS,
    )


PYRAMID = (
    Policy("prefetch off"),
    Policy("as it is", lambda: (AfterMisses(),)),
    Policy(
        "small and neighbouring levels",
        lambda: (SmallLevels(), AfterMisses(small_are_jobs=False), NeighbouringLevels(MARGIN)),
    ),
    Policy(
        "and look-ahead on hits",
        lambda: (
            SmallLevels(),
            AfterMisses(small_are_jobs=False),
            LookAhead(RING),
            NeighbouringLevels(MARGIN),
        ),
    ),
    Policy(
        "and joining, direction",
        lambda: (
            SmallLevels(),
            AfterMisses(small_are_jobs=False),
            LookAhead(RING, FURTHER),
            NeighbouringLevels(MARGIN),
        ),
        join=True,
    ),
    no_whole_loads(),
)

STACK = (
    Policy("as it is", lambda: (AfterMisses(),)),
    Policy("frames beside metadata", beside=True),
    Policy("and slices ahead", lambda: (SlicesAhead(AHEAD, 0),), beside=True),
    Policy("and joining, behind", lambda: (SlicesAhead(AHEAD, BEHIND),), join=True, beside=True),
)

SWEEPS: Mapping[str, Callable[[int], Policy]] = {
    "ring": lambda value: no_whole_loads(ring=value, name=f"ring {value}"),
    "further": lambda value: no_whole_loads(further=value, name=f"further {value}"),
    "margin": lambda value: no_whole_loads(margin=value, name=f"margin {value}"),
    "whole": lambda value: no_whole_loads(limit=value, name=f"whole up to {value:,}"),
    "ahead": lambda value: no_whole_loads(ahead=value, name=f"{value} ahead"),
    "behind": lambda value: no_whole_loads(behind=value, name=f"{value} behind"),
    "side": lambda value: attrs.evolve(no_whole_loads(), name=f"{value} side by side", side_by_side=value),
    "slots": lambda value: attrs.evolve(no_whole_loads(), name=f"{value} slots", slots=value),
    "weight": lambda value: attrs.evolve(no_whole_loads(), name=f"callers {value} times", caller_weight=value),
}
"""What `--sweep NAME=VALUE,...` changes of the last rule set."""
