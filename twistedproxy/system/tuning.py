"""What a process of this proxy asks of the system and of its libraries: open files, clock, garbage, memory, priority."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
import time
from collections.abc import Iterator
from typing import Any

OPEN_FILES = 65536
"""Connections and files of one process: far above 1024, the usual soft limit, which exists for select(2)."""

LARGE = 32 << 20
"""Bytes from which an object gets pages of its own, returned to the system when it is freed: the most that glibc takes."""

KEPT_FREE = 2 * LARGE
"""Bytes of freed memory that are kept for what is needed next."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

NICENESS = 19

SLICE_SECONDS = 0.0005
"""The longest time slice of background work while another process of the same session waits for the CPU."""


def allow_open_files() -> None:
    """Raise the limit of open files to `OPEN_FILES`, or as far as the system allows. Children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def use_monotonic_clock(reactor: Any) -> None:
    """Have *reactor* count seconds by a clock that is never set. To be called before anything is scheduled.

    Twisted's own is the wall clock: while that is set back, by NTP or after a suspend, every deadline stands still.
    """
    reactor.seconds = time.monotonic


def freeze_gc() -> None:
    """Take everything loaded so far (modules, above all) out of what the garbage collector scans.

    A full scan takes about 50 ms, in which no request is answered; it came every few thousand requests.
    """
    gc.collect()  # garbage of now would stay for good
    gc.freeze()


def keep_freed_memory() -> None:
    """Have the C library keep up to `KEPT_FREE` freed bytes, where it is glibc (mallopt(3)).

    It arrives at these limits by itself, once an object of 32 MB was freed. Until then it returns much to the system
    after each large answer, and for the next one the system has to find and to zero each page again: 0.4 ms per MB, in
    which no request is answered. Twenty viewers beside rendering waited 1.1 ms at the 99th percentile, and 0.7 so.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT_FREE)
        library.mallopt(_M_MMAP_THRESHOLD, LARGE)


def lower_priority() -> None:
    """Run only where nothing else wants to, of what shares this process's control group or session (sched(7)).

    For processes that load ahead or render: clients' requests come first where there is not enough CPU. Niceness alone is
    not enough: on Linux a nice process still keeps its CPU for the milliseconds of its time slice when another one wakes
    up. SCHED_IDLE nearly always gives it up at once; `short_time_slices` is for the rest. A process in another control
    group, a store on the same host say, shares the CPU with this group as before.
    """
    with contextlib.suppress(OSError):  # a sandbox may forbid either
        os.nice(NICENESS)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


@contextlib.contextmanager
def short_time_slices() -> Iterator[None]:
    """Meanwhile yield the CPU every `SLICE_SECONDS`, also inside a library's long call. For the main thread of a process
    that has no other use for SIGALRM.

    Linux picks even a SCHED_IDLE process now and then although another could run (it counts what each had so far), and
    leaves it there until the next tick of its clock, up to 4 ms at the usual 250 Hz. Beside a render worker that was
    2 % of all time: answers from the cache server took 2.0-2.7 ms at the 99th percentile (one connection without a pause,
    two CPUs; 0.5 ms without rendering), and take 0.9-1.0 ms so. A picture takes 2 % longer (75 ms, 60 times, three runs).
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library, or a sandbox: then without
        # sched_yield(2) itself is the handler: one of Python's would have to wait for the end of the library's call. One that
        # sleeps instead waits for a turn anew each time: beside other busy processes pictures took up to 30 times as long.
        # signal(3) resumes the reads and writes that it interrupts.
        library = ctypes.CDLL(None)
        library.signal.restype, library.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
        library.signal(signal.SIGALRM, ctypes.cast(library.sched_yield, ctypes.c_void_p))
        signal.setitimer(signal.ITIMER_REAL, SLICE_SECONDS, SLICE_SECONDS)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            signal.setitimer(signal.ITIMER_REAL, 0)
