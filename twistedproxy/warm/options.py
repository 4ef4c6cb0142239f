"""The command line of ``twistedproxy warm``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from twisted.python import usage

from twistedproxy.options.command import Command, parsed
from twistedproxy.options.values import seconds, whole
from twistedproxy.warm.targets import WarmTarget

_JOBS = partial(parsed, whole(1, 64), "--jobs")
_PATIENCE = partial(parsed, seconds(0), "--patience")


class WarmOptions(Command):
    """Options and URLs. *headers*: sent with every request."""

    synopsis = "Usage: twistedproxy warm [options] URL..."
    longdesc = (
        "Has a twistedproxy load whole instances into its cache. URL: of a study, series or instance, as its viewers "
        "request it: http://HOST:PORT/dicomweb/studies/UID[/series/UID[/instances/UID]]. "
        "The exit code is 1 if any instance could not be loaded."
    )
    optFlags = [
        ["again", "a", "Load instances again that were loaded lately"],
        ["quiet", "q", "Print errors only"],
    ]
    optParameters = [
        ["jobs", "j", 1, "Maximum number of concurrent loads; the proxy's --max-jobs limits them, too", _JOBS],
        ["patience", None, 600.0, "Time to wait for a proxy that is busy with other loads (seconds)", _PATIENCE],
    ]

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        super().__init__()
        self._environment = environment
        self.headers: list[tuple[str, str]] = []
        self.targets: list[WarmTarget] = []

    def opt_header(self, line: str) -> None:
        """Header to send, 'Name: value'; may be repeated. The process list shows it: not for tokens"""
        self._add("--header", line)

    opt_H = opt_header

    def opt_header_file(self, path: str) -> None:
        """File of headers to send, one per line; - is the standard input; may be repeated"""
        try:
            text = sys.stdin.read() if path == "-" else Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise usage.UsageError(f"--header-file {path}: {error}") from None
        self._add(f"--header-file {path}", *filter(str.strip, text.splitlines()))

    def opt_header_env(self, name: str) -> None:
        """Environment variable with headers to send, one per line; may be repeated"""
        if name not in self._environment:
            raise usage.UsageError(f"--header-env {name}: there is no such variable")
        self._add(f"--header-env {name}", *filter(str.strip, self._environment[name].splitlines()))

    def _add(self, option: str, *lines: str) -> None:
        for line in lines:
            name, colon, value = map(str.strip, line.partition(":"))
            # What came is not shown: it may be a token.
            if not colon or not name.replace("-", "").isalnum() or not value.isprintable():
                raise usage.UsageError(f"{option}: a header that is not of the form 'Name: value'")
            self.headers.append((name, value))

    def parseArgs(self, *urls: str) -> None:
        if not urls:
            raise usage.UsageError("a URL is needed: of a study, series or instance, below the proxy's mount")
        self.targets = [WarmTarget.of(url) for url in urls]
