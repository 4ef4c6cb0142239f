"""Makes the origin that ``--origin`` names."""

from __future__ import annotations

from typing import Any

from twistedproxy.metrics import Metrics
from twistedproxy.origin.interface import Origin
from twistedproxy.settings import Settings


def open_origin(reactor: Any, url: str, settings: Settings, metrics: Metrics) -> Origin:
    """The origin at *url* (``http(s)://…``, ``file:PATH``, ``sample:``), not yet started."""
    if url.startswith("sample:"):
        from twistedproxy.origin.sample.provider import SampleOrigin

        return SampleOrigin(reactor)
    if url.startswith("file:"):
        from twistedproxy.origin.folder import folder_origin

        return folder_origin(url, reactor)
    from twistedproxy.origin.http.origin import HTTPOrigin

    return HTTPOrigin(reactor, url, settings, metrics)
