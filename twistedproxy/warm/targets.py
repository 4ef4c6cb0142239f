"""What to warm: URLs in, searches and instances out. Nothing here talks to anybody.

- Only multi-frames are worth a load of their own: what a search plainly shows to be something else is left out.
- What a search doesn't tell is tried, and the proxy decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional
from urllib.parse import urlsplit

import attrs

from twistedproxy.dicom.resource import InvalidUID, validate_uid

PAGE = 200
"""Instances that one search asks for: Azure's limit, the lowest known."""

SERIES, SOP, FRAMES, ROWS = "0020000E", "00080018", "00280008", "00280010"


class NoTarget(ValueError):
    """A URL that names no study, series or instance."""


@attrs.frozen
class Found:
    """An instance. *url*: without a slash at its end; *frames*: None where nobody said."""

    url: str
    sop: str
    frames: Optional[int] = None


@attrs.frozen
class Target:
    """A study, series or instance. *url*: without a slash at its end; *study_url*: that of its study."""

    url: str
    study_url: str
    sop: Optional[str] = None
    series: Optional[str] = None

    @classmethod
    def of(cls, url: str) -> Target:
        """Read a URL ``http(s)://…/studies/{}[/series/{}[/instances/{}]]``. Raises `NoTarget`."""
        parts = urlsplit(url)
        plain = url.rstrip("/")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise NoTarget(f"{url!r} is no http or https URL without a query")
        if parts.username is not None:
            raise NoTarget("a URL with a password in it stands in the process list; use --header-file or --header-env")
        root, found, below = plain.rpartition("/studies/")
        try:
            match below.split("/") if found else []:
                case [study]:
                    return cls(plain, f"{root}/studies/{validate_uid(study)}")
                case [study, "series", series]:
                    return cls(plain, f"{root}/studies/{validate_uid(study)}", series=validate_uid(series))
                case [study, "series", series, "instances", sop]:
                    study_url = f"{root}/studies/{validate_uid(study)}"
                    return cls(plain, study_url, validate_uid(sop), validate_uid(series))
        except InvalidUID as error:
            raise NoTarget(f"{url!r}: {error}") from None
        raise NoTarget(f"{url!r} does not end with studies/UID, .../series/UID or .../series/UID/instances/UID")

    def search(self, offset: int) -> str:
        """The URL of a search for the instances below (PS3.18 section 10.6), from the *offset*-th on."""
        return f"{self.url}/instances?limit={PAGE}&offset={offset}&includefield={FRAMES}"

    def found(self, answer: object) -> Iterator[Found]:
        """The instances of a search's *answer*, decoded. Raises ValueError where it is none."""
        if not isinstance(answer, list):
            raise ValueError("the answer to the search is no list")
        for item in answer:
            series, sop = _value(item, SERIES) or self.series, _value(item, SOP)
            if not isinstance(series, str) or not isinstance(sop, str):
                raise ValueError("the answer to the search names an instance without its UIDs")
            url = f"{self.study_url}/series/{validate_uid(series)}/instances/{validate_uid(sop)}"
            yield Found(url, sop, _frames(item))


def _value(item: Any, tag: str) -> Any:
    values = item.get(tag, {}).get("Value") if isinstance(item, dict) else None
    return values[0] if values else None


def _frames(item: Any) -> Optional[int]:
    """NumberOfFrames; 1 of an image that has none (PS3.3 section C.7.6.6 is for multi-frames only)."""
    frames = _value(item, FRAMES)
    if frames is None:
        return 1 if _value(item, ROWS) is not None else None
    return int(frames)
