"""A rendering child: ``python -m twistedproxy.imaging.child``, started by the proxy and spoken to over a pipe.

- It does one thing at a time, without a reactor; what it is told to do is in `twistedproxy.imaging.work`.
- A decoder that crashes takes this process down and nothing else; one that takes too much memory gets a MemoryError.
- It ends with the proxy: when its standard input does, and, should a decoder never come back, by the kernel's signal.
- It stands back: the proxy answers from the cache meanwhile, and comes first.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from typing import Any

from twistedproxy.background import short_turns, stand_back
from twistedproxy.imaging.messages import Message, read_message

ADDRESS_SPACE = 8 << 30
"""Bytes of address space, not of memory, that a child may take: libraries map far more than they use. A picture that
explodes in a decoder ends there."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Serve until standard input ends."""
    _die_with_parent()
    # Ctrl-C in a terminal is for the proxy, which ends us in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, target = _own_pipes()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    stand_back()
    from twistedproxy.imaging.work import Work

    work = Work()
    _write(target, Message({"ready": True}))
    while (message := read_message(source.read)) is not None:
        with short_turns():
            answer = work.answer(message)
        _write(target, answer)


def _die_with_parent() -> None:
    """Have the kernel end this process when the proxy is gone, where the kernel can. Should it be gone already, no work
    will come: that comes to those who said that they are ready."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _own_pipes() -> tuple[Any, Any]:
    """Standard input and output for messages alone: what a library prints goes to standard error."""
    source, target = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    return os.fdopen(source, "rb"), os.fdopen(target, "wb", buffering=0)


def _write(target: Any, message: Message) -> None:
    for piece in message.packed():
        view = memoryview(piece)
        while view:
            written = target.write(view)
            view = view[written:]


if __name__ == "__main__":
    # the proxy that has gone leaves a pipe that nobody reads
    with contextlib.suppress(BrokenPipeError):
        main()
    os._exit(0)
