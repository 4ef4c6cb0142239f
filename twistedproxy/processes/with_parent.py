"""Runs a command that ends when the process that asked for it ends, also by kill -9.

    python with_parent.py PARENT_PID pdeathsig|pipe COMMAND ARGUMENT...

``pdeathsig`` (Linux): the kernel kills the command when its parent dies (prctl(2), PR_SET_PDEATHSIG), and this
program becomes the command. ``pipe`` (elsewhere): this program stays between the two and kills the command at
the end of its standard input, which the parent holds and nobody else.

It is run as a file, with ``python -I -S``, and so imports nothing but the standard library: it starts in 20 ms.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
POLL_SECONDS = 0.2
PARENT_IS_GONE = 3  # exit status


def main(arguments: list[str]) -> int:
    """Run the command line described above."""
    parent, how, *command = arguments
    # A process group of its own: Ctrl-C in the terminal is for the parent, which ends us when it no longer needs us.
    # No session of its own: Linux shares the processors among sessions first (sched(7), autogroup), so that what works
    # in the background of the parent's session would not stand back for us. Beside rendering, callers waited 1.5 times as
    # long for what we hold (with `twistedproxy.system.tuning.short_time_slices`: 1.1 times).
    os.setpgrp()
    if how == "pipe":
        return beside(command)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before prctl
        return PARENT_IS_GONE
    os.execv(command[0], command)  # noqa: S606 - no shell is the point


def beside(command: list[str]) -> int:
    """Run *command* until standard input ends, or SIGTERM comes, or it ends by itself."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda number, frame: child.terminate())
    while child.poll() is None:
        readable, _, _ = select.select([0], [], [], POLL_SECONDS)
        if readable and not os.read(0, 1024):
            child.kill()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
