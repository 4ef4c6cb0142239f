"""How processes that work ahead or on pictures stand back: callers' answers come first where there is not enough CPU."""

from __future__ import annotations

import contextlib
import os

NICENESS = 19


def stand_back() -> None:
    """Run only where nothing else wants to, of what shares this process's control group or session (sched(7)).

    Niceness alone is not enough: on Linux a nice process still keeps its CPU for the milliseconds of its turn when
    another one wakes up. SCHED_IDLE nearly always gives it up at once (`twistedproxy.demand`: what is done about the rest). Who runs beside us in a group of their own, a store on the same
    host say, shares the CPU with our group as before.
    """
    with contextlib.suppress(OSError):  # a sandbox may forbid either
        os.nice(NICENESS)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
