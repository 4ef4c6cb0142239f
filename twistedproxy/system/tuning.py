"""How processes that work ahead or on pictures stand back: callers' answers come first where there is not enough CPU."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator

NICENESS = 19

TURN_SECONDS = 0.0005
"""The longest that such work keeps a CPU which another process of its session waits for."""


def stand_back() -> None:
    """Run only where nothing else wants to, of what shares this process's control group or session (sched(7)).

    Niceness alone is not enough: on Linux a nice process still keeps its CPU for the milliseconds of its turn when
    another one wakes up. SCHED_IDLE nearly always gives it up at once; `short_turns` is for the rest. Who runs beside us
    in a group of their own, a store on the same host say, shares the CPU with our group as before.
    """
    with contextlib.suppress(OSError):  # a sandbox may forbid either
        os.nice(NICENESS)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


@contextlib.contextmanager
def short_turns() -> Iterator[None]:
    """Meanwhile let others run every `TURN_SECONDS`, also inside of a library's call that takes long. For the main thread of a
    process that has no other use for SIGALRM.

    Linux picks even a SCHED_IDLE process now and then although another could run (it counts what each had so far), and
    lets it be until the next tick of its clock, up to 4 ms at the usual 250 Hz. Beside a rendering child that was 2 % of
    all time: answers from the cache server took 2.0-2.7 ms at the 99th percentile (one connection without a pause, two
    CPUs; 0.5 ms without rendering), and take 0.9-1.0 ms so. A picture takes 2 % longer (75 ms, 60 times, three runs).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library, or a sandbox: then without
        _yield_at_alarms()
        signal.setitimer(signal.ITIMER_REAL, TURN_SECONDS, TURN_SECONDS)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            signal.setitimer(signal.ITIMER_REAL, 0)


def _yield_at_alarms() -> None:
    """Have sched_yield(2) itself as the handler: one of Python's would have to wait for the end of the library's call.

    Who sleeps instead waits for a turn anew each time: beside others' busy processes pictures took up to 30 times as long.
    signal(3) has reads and writes go on that it interrupts.
    """
    library = ctypes.CDLL(None)
    library.signal.restype, library.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    library.signal(signal.SIGALRM, ctypes.cast(library.sched_yield, ctypes.c_void_p))
