"""The command line of ``twistedproxy warm``, and what its URLs name: a series or an instance, or a study, whose series are
searched for.

What to load is found out without input or output: URLs and answers in, searches and what they find out.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Optional

import attrs
from twisted.python import usage
from twisted.python.usage import UsageError

from twistedproxy.dicom.lenient_json import first_value
from twistedproxy.dicom.resource import InvalidUID, validate_uid
from twistedproxy.options.command import Command, parsed
from twistedproxy.options.values import seconds, whole

PAGE = 200  # series per search: Azure's limit, the lowest known
_URL = re.compile(r"((?i:https?)://[^/?#]+(?:/[^?#]*)?/studies/([^/]+))(?:/series/([^/]+)(?:/instances/([^/]+))?)?/*")
SERIES = "0020000E"


@attrs.frozen
class Found:
    """What one load is of: a series or an instance. *url*: without a slash at its end; *uid*: the last one in it."""

    url: str
    uid: str

    @property
    def root(self) -> str:
        """The URL that paths of resources, which begin with ``studies``, are below."""
        return self.url.rpartition("/studies/")[0]

    def holds(self, other: Found) -> bool:
        """Whether *other* is loaded with it."""
        return other.url.startswith(self.url + "/")


@attrs.frozen
class WarmTarget:
    """A study, series or instance. *url*: without a slash at its end; *study_url*: that of its study."""

    url: str
    study_url: str
    sop: Optional[str] = None
    series: Optional[str] = None

    @classmethod
    def of(cls, url: str) -> WarmTarget:
        """Read a URL ``http(s)://…/studies/{}[/series/{}[/instances/{}]]``. Raises `UsageError`."""
        if re.match("[^/]*//[^/?#]*@", url):
            raise UsageError("a URL with a password is visible in the process list; use --header-file or --header-env")
        if (match := _URL.fullmatch(url)) is None:
            raise UsageError(f"{url!r} is not of the form http(s)://HOST/.../studies/UID[/series/UID[/instances/UID]]")
        study_url, study, series, sop = match.groups()
        try:
            for uid in filter(None, (study, series, sop)):
                validate_uid(uid)
        except InvalidUID as error:
            raise UsageError(f"{url!r}: {error}") from None
        return cls(url.rstrip("/"), study_url, sop, series)

    @property
    def named(self) -> Optional[Found]:
        """What is loaded; None for a study: each of its series."""
        uid = self.sop or self.series
        return None if uid is None else Found(self.url, uid)

    def search(self, offset: int) -> str:
        """The URL of a search for the series of the study (PS3.18 section 10.6), from the *offset*-th on."""
        return f"{self.url}/series?limit={PAGE}&offset={offset}"

    def found(self, answer: object) -> Iterator[Found]:
        """The series of a search's *answer*, decoded. Raises ValueError if it is none."""
        if not isinstance(answer, list):
            raise ValueError("the response to the search is not a list")
        for item in answer:
            series = first_value(item, SERIES)
            if not isinstance(series, str):
                raise ValueError("the response to the search has a series without its UID")
            yield Found(f"{self.url}/series/{validate_uid(series)}", series)


_JOBS = partial(parsed, whole(1, 64), "--jobs")
_PATIENCE = partial(parsed, seconds(0), "--patience")


class WarmOptions(Command):
    """Options and URLs. *headers*: sent with every request."""

    synopsis = "Usage: twistedproxy warm [options] URL..."
    longdesc = (
        "Loads studies, series or instances into the cache of a running proxy. URL: that of one, as viewers "
        "request it: http://HOST:PORT/dicomweb/studies/UID[/series/UID[/instances/UID]]. "
        "The exit code is 1 if any instance could not be loaded."
    )
    optFlags = [
        ["again", "a", "Load recently loaded multi-frame instances again"],
        ["quiet", "q", "Print errors only"],
    ]
    optParameters = [
        [
            "jobs",
            "j",
            1,
            "Maximum number of concurrent loads of series or instances; also limited by the proxy's --max-jobs",
            _JOBS,
        ],
        ["patience", None, 600.0, "Time to wait for a proxy that is busy with other loads (seconds)", _PATIENCE],
    ]

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        super().__init__()
        self._environment = environment
        self.headers: list[tuple[str, str]] = []
        self.targets: list[WarmTarget] = []

    def opt_header(self, line: str) -> None:
        """Header to send, 'Name: value'; may be repeated. Visible in the process list: not for tokens"""
        self._add("--header", line)

    opt_H = opt_header

    def opt_header_file(self, path: str) -> None:
        """File of headers to send, one per line; - is standard input; may be repeated"""
        try:
            text = sys.stdin.read() if path == "-" else Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise usage.UsageError(f"--header-file {path}: {error}") from None
        self._add(f"--header-file {path}", *filter(str.strip, text.splitlines()))

    def opt_header_env(self, name: str) -> None:
        """Environment variable with headers to send, one per line; may be repeated"""
        if name not in self._environment:
            raise usage.UsageError(f"--header-env {name}: the variable is not set")
        self._add(f"--header-env {name}", *filter(str.strip, self._environment[name].splitlines()))

    def _add(self, option: str, *lines: str) -> None:
        for line in lines:
            name, colon, value = map(str.strip, line.partition(":"))
            # What came is not shown: it may be a token.
            if not colon or not name.replace("-", "").isalnum() or not value.isprintable():
                raise usage.UsageError(f"{option}: expected a header of the form 'Name: value'")
            self.headers.append((name, value))

    def parseArgs(self, *urls: str) -> None:
        if not urls:
            raise usage.UsageError("missing URL; expected that of a study, series or instance, below the proxy's mount")
        self.targets = [WarmTarget.of(url) for url in urls]
