"""The command line of ``twistedproxy-warm``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from twisted.python import usage

from twistedproxy.options.command import Command
from twistedproxy.warm.targets import NoTarget, Target

MAX_JOBS = 64


def _jobs(text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_JOBS:
        return int(text)
    raise ValueError(f"1 to {MAX_JOBS} is accepted")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError("seconds, 0 or more, are accepted")
    return seconds


class Options(Command):
    """Options and URLs. *headers*: what goes along with every request."""

    synopsis = "Usage: twistedproxy-warm [options] URL..."
    longdesc = (
        "Has a twistedproxy load whole instances into its cache. URL: of a study, series or instance, as its viewers "
        "ask for it: http://HOST:PORT/dicomweb/studies/UID[/series/UID[/instances/UID]]. "
        "Ends with 1 if any instance could not be loaded."
    )
    optFlags = [
        ["again", "a", "Load what was loaded lately once more"],
        ["quiet", "q", "Say nothing but what went wrong"],
    ]
    optParameters = [
        ["jobs", "j", 1, "Instances at once; no more than the proxy's --max-jobs are loaded at a time", _jobs],
        ["patience", None, 600.0, "Seconds to wait for a proxy that is busy with other loads", _seconds],
    ]

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        super().__init__()
        self._environment = environment
        self.headers: list[tuple[str, str]] = []
        self.targets: list[Target] = []

    def opt_header(self, line: str) -> None:
        """Header to send, 'Name: value'; may be repeated. Others see it in the process list: not for tokens"""
        self._add(line, "--header")

    opt_H = opt_header

    def opt_header_file(self, path: str) -> None:
        """File of headers to send, one a line; - is the standard input; may be repeated"""
        try:
            text = sys.stdin.read() if path == "-" else Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise usage.UsageError(f"--header-file {path}: {error}") from None
        for line in text.splitlines():
            if line.strip():
                self._add(line, f"--header-file {path}")

    def opt_header_env(self, name: str) -> None:
        """Environment variable that holds headers to send, one a line; may be repeated"""
        if name not in self._environment:
            raise usage.UsageError(f"--header-env {name}: there is no such variable")
        for line in self._environment[name].splitlines():
            if line.strip():
                self._add(line, f"--header-env {name}")

    def _add(self, line: str, option: str) -> None:
        name, colon, value = line.partition(":")
        # What came is not shown: it may be a token.
        if not colon or not name.strip().replace("-", "").isalnum() or not value.strip().isprintable():
            raise usage.UsageError(f"{option}: a header that is not of the form 'Name: value'")
        self.headers.append((name.strip(), value.strip()))

    def parseArgs(self, *urls: str) -> None:
        try:
            self.targets = [Target.of(url) for url in urls]
        except NoTarget as error:
            raise usage.UsageError(str(error)) from None

    def postOptions(self) -> None:
        if not self.targets:
            raise usage.UsageError("a URL is needed: of a study, series or instance, below the proxy's mount")
