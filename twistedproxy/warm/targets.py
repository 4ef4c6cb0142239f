"""What to load: URLs in, searches and instances out, without input or output.

Rules:
- only multi-frames are worth a load: what a search shows to be something else is left out;
- what a search does not show is tried, and the proxy decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Optional

import attrs
from twisted.python.usage import UsageError

from twistedproxy.dicom.resource import InvalidUID, validate_uid

PAGE = 200  # instances per search: Azure's limit, the lowest known
_URL = re.compile(r"((?i:https?)://[^/?#]+(?:/[^?#]*)?/studies/([^/]+))(?:/series/([^/]+)(?:/instances/([^/]+))?)?/*")
SERIES, SOP, FRAMES, ROWS = "0020000E", "00080018", "00280008", "00280010"


@attrs.frozen
class Found:
    """An instance. *url*: without a slash at its end; *frames*: None if the search did not return their number."""

    url: str
    sop: str
    frames: Optional[int] = None


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

    def search(self, offset: int) -> str:
        """The URL of a search for the instances below (PS3.18 section 10.6), from the *offset*-th on."""
        return f"{self.url}/instances?limit={PAGE}&offset={offset}&includefield={FRAMES}"

    def found(self, answer: object) -> Iterator[Found]:
        """The instances of a search's *answer*, decoded. Raises ValueError if it is none."""
        if not isinstance(answer, list):
            raise ValueError("the answer to the search is no list")
        for item in answer:
            series, sop = _value(item, SERIES) or self.series, _value(item, SOP)
            if not isinstance(series, str) or not isinstance(sop, str):
                raise ValueError("the answer to the search has an instance without its UIDs")
            url = f"{self.study_url}/series/{validate_uid(series)}/instances/{validate_uid(sop)}"
            # An image without NumberOfFrames has one (PS3.3 section C.7.6.6 is for multi-frames only).
            single = 1 if _value(item, ROWS) is not None else None
            frames = _value(item, FRAMES)
            yield Found(url, sop, single if frames is None else int(frames))


def _value(item: Any, tag: str) -> Any:
    values = item.get(tag, {}).get("Value") if isinstance(item, dict) else None
    return values[0] if values else None
