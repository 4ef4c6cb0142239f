"""The rule sets that are compared, and what is tuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs

from tests.benchmarks.model.proxy import Policy
from tests.benchmarks.model.rules import AfterMisses, LookAhead, NeighbouringLevels, SlicesAhead, SmallLevels
from twistedproxy.prefetch.ahead.frame_queues import SIDE_BY_SIDE
from twistedproxy.prefetch.ahead.surroundings import FURTHER, MARGIN, RING
from twistedproxy.prefetch.rules import PAYS_SECONDS
from twistedproxy.prefetch.runner import USUAL_RATE

SLIDE_LIMIT = PAYS_SECONDS * USUAL_RATE
WHOLE_LIMIT = 1024
AHEAD, BEHIND = 12, 4
SLOTS = 60


def no_whole_loads(
    ring: int = RING,
    further: int = FURTHER,
    margin: int = MARGIN,
    limit: int = WHOLE_LIMIT,
    ahead: int = AHEAD,
    behind: int = BEHIND,
    name: str = "no whole loads above 1,024 frames",
    slide_limit: float = float("inf"),
) -> Policy:
    """All rules for series; instances of more than *limit* frames are not loaded whole, nor are levels of slides above
    *slide_limit* bytes."""
    return Policy(
        name,
        lambda: (
            SmallLevels(),
            AfterMisses(limit, block=0, small_are_jobs=False, slide_limit=slide_limit),
            LookAhead(ring, further),
            NeighbouringLevels(margin),
            SlicesAhead(ahead, behind),
        ),
        join=True,
        beside=True,
        early=True,
        side_by_side=SIDE_BY_SIDE,
        slots=SLOTS,
    )


def as_built(**changed: Any) -> Policy:
    """What `twistedproxy.prefetch` does: levels are loaded whole where all of the slide takes no time."""
    name = ", ".join(f"{key} {value:,}" for key, value in changed.items()) or "as it is"
    return no_whole_loads(limit=500_000, slide_limit=SLIDE_LIMIT, name=name, **changed)


def _built_with(name: str, value: int) -> Policy:
    return as_built(**{name: value})


PYRAMID = (
    Policy("prefetch off"),
    Policy("whole loads and blocks", lambda: (AfterMisses(),)),
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
    as_built(),
)

STACK = (
    Policy("no slices ahead", lambda: (AfterMisses(),)),
    Policy("frames beside metadata", beside=True),
    Policy("and slices ahead", lambda: (SlicesAhead(AHEAD, 0),), beside=True),
    Policy("and joining, behind", lambda: (SlicesAhead(AHEAD, BEHIND),), join=True, beside=True),
)

SWEEPS: Mapping[str, Callable[[int], Policy]] = {
    **{name: partial(_built_with, name) for name in ("ring", "further", "margin", "ahead", "behind")},
    "whole": lambda value: no_whole_loads(limit=value, name=f"whole up to {value:,}"),
    "side": lambda value: attrs.evolve(as_built(), name=f"{value} side by side", side_by_side=value),
    "slots": lambda value: attrs.evolve(as_built(), name=f"{value} slots", slots=value),
    "weight": lambda value: attrs.evolve(as_built(), name=f"callers {value} times", caller_weight=value),
}
"""What `--sweep NAME=VALUE,...` changes of the rules as they are built."""
