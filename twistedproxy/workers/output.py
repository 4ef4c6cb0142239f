"""What a worker prints becomes whole lines of the parent's log: pieces of two workers never meet in one line.

Lines of a worker's standard output are ready-made: it logs in the parent's format. What comes on its standard error,
or is not what it should be, is somebody's cry for help and becomes an event of the parent.
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


class LogLines:
    """The lines of one worker. *output*: where they go; None: each becomes an event."""

    def __init__(self, output: Optional[LogOutput]) -> None:
        self.pid: Optional[int] = None
        self.last_words = ""
        """The last line of its standard error."""
        self._output = output
        self._begun: dict[int, bytes] = {}

    def said(self, descriptor: int, data: bytes) -> None:
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
                self._write_line(descriptor, line)
        else:
            output.write(lines.decode("utf-8", "replace"))

    def _write_line(self, descriptor: int, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        if descriptor != STDOUT:
            self.last_words = text or self.last_words
        elif self._output is None:
            _log.info("{line}", line=text)
            return
        elif line.startswith(b"{"):
            self._output.write(text + "\n")
            return
        if text:
            _log.warn("worker {pid} said: {line}", pid=self.pid, line=text)
