"""What children print becomes whole lines of the proxy's log: pieces of two children never meet in one line.

Lines on a worker's standard output are ready-made: it logs in its parent's format. All else becomes an event.
"""

from __future__ import annotations

import re
from typing import Optional

from twisted.logger import Logger

from twistedproxy.system.logs import LogOutput

STDOUT = 1

MAX_LINE = 256 * 1024
"""Bytes; a line that is longer is cut up."""

_NOT_JSON = re.compile(rb"^[^{]", re.MULTILINE)

_log = Logger()


class ChildOutput:
    """The lines of one child. *name*: what the log calls it. *output*: where lines of its standard output go ready-made;
    None: each becomes an event."""

    def __init__(self, name: str, output: Optional[LogOutput] = None) -> None:
        self.pid: Optional[int] = None
        self.last_error = ""
        """The last line of its standard error."""
        self._name = name
        self._output = output
        self._begun: dict[int, bytes] = {}

    def received(self, descriptor: int, data: bytes) -> None:
        """A piece of what it printed."""
        whole, newline, begun = (self._begun.pop(descriptor, b"") + data).rpartition(b"\n")
        if whole or newline:
            self._write(descriptor, whole + newline)
        if len(begun) > MAX_LINE:
            self._write(descriptor, begun + b"\n")
        elif begun:
            self._begun[descriptor] = begun

    def ended(self) -> None:
        """It prints no more."""
        begun, self._begun = self._begun, {}
        for descriptor, data in begun.items():
            self._write(descriptor, data + b"\n")

    def _write(self, descriptor: int, lines: bytes) -> None:
        output = self._output
        if descriptor != STDOUT or output is None or (output.json and _NOT_JSON.search(lines)):
            for line in lines.splitlines():
                self._write_line(descriptor, line.decode("utf-8", "replace").rstrip())
        else:
            output.write(lines.decode("utf-8", "replace"))

    def _write_line(self, descriptor: int, line: str) -> None:
        if descriptor != STDOUT:
            self.last_error = line or self.last_error
        elif self._output is None:
            _log.info("{line}", line=line)
            return
        elif line.startswith("{"):
            self._output.write(line + "\n")
            return
        if line:
            _log.warn("{name} {pid} printed: {line}", name=self._name, pid=self.pid, line=line)
