"""Child processes of tests and benchmarks: none outlives the process that started it.

Start children from a thread that lives as long as they should (the main one): Linux sends the parent's
death signal when the *thread* that started the child ends.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence

STOP_SECONDS = 10.0  # an orderly end after SIGTERM; SIGKILL follows


def tied(command: Sequence[str]) -> list[str]:
    """*command*, killed by the kernel when its parent dies, where the system can do that."""
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return [setpriv, "--pdeathsig", "KILL", "--", *command] if setpriv else list(command)


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end(process: subprocess.Popen[bytes], seconds: float = STOP_SECONDS) -> int:
    """Ask *process* to end, insist after *seconds*, and return how it ended."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()
