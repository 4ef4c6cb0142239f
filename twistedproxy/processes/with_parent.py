"""Ends a process when its parent ends, also by kill -9.

As a program it runs a command so::

    python with_parent.py PARENT_PID pdeathsig|pipe COMMAND ARGUMENT...

``pdeathsig`` (Linux): the kernel kills the command when its parent dies (prctl(2), PR_SET_PDEATHSIG), and this
program becomes the command. ``pipe`` (elsewhere): this program stays between the two and kills the command at
the end of its standard input, which only the parent holds.

It is run as a file, with ``python -I -S``, and so imports nothing but the standard library: it starts in 20 ms.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
POLL_SECONDS = 0.2
PARENT_IS_GONE = 3  # exit status


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent ends, where the kernel can. Not if it has ended already."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def main(arguments: list[str]) -> int:
    """Run the command line described above."""
    parent, how, *command = arguments
    # A process group of its own: Ctrl-C in the terminal is for the parent, which ends us when it no longer needs us.
    # No session of its own: Linux shares the processors among sessions first (sched(7), autogroup), so that background
    # work in the parent's session would not yield to the command. Beside rendering, clients waited 1.5 times as long for
    # what the cache server holds (with `twistedproxy.system.tuning.short_time_slices`: 1.1 times).
    os.setpgrp()
    if how == "pipe":
        return beside(command)
    end_with_parent()
    if os.getppid() != int(parent):  # it died before prctl
        return PARENT_IS_GONE
    os.execv(command[0], command)  # noqa: S606 - no shell is the point


def beside(command: list[str]) -> int:
    """Run *command* until standard input ends, or SIGTERM comes, or it ends by itself."""
    import select
    import subprocess

    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda number, frame: child.terminate())
    while child.poll() is None:
        readable, _, _ = select.select([0], [], [], POLL_SECONDS)
        if readable and not os.read(0, 1024):
            child.kill()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
