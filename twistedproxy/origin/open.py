"""Makes the origin that ``--origin`` names."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

from twistedproxy.dicom.resource import Scope
from twistedproxy.origin.interface import ChangeSource, Origin
from twistedproxy.settings import Settings
from twistedproxy.system.metrics import Metrics


def open_origin(
    reactor: Any,
    url: str,
    settings: Settings,
    metrics: Metrics,
    changed: Callable[[Scope], Awaitable[None]],
) -> Origin:
    """The origin at *url* (``http(s)://…``, ``file:PATH``, ``sample:``), not yet started.

    *changed* is called with what changed there otherwise than through the proxy, where the origin notices that, before
    the origin gives what it is now.
    """
    if url.startswith("sample:"):
        from twistedproxy.origin.sample.provider import SampleOrigin

        return SampleOrigin(reactor, changed=changed)
    if url.startswith("file:"):
        from twistedproxy.origin.folder.provider import FolderOrigin

        return FolderOrigin(url, reactor, changed=changed, environment=os.environ)
    from twistedproxy.origin.http.origin import HTTPOrigin

    return HTTPOrigin(reactor, url, settings, metrics)


def open_changes(reactor: Any, prefix: str, url: str, settings: Settings) -> ChangeSource:
    """The changes of the store behind the mount *prefix*, by the interface at *url*."""
    from twistedproxy.origin.http.orthanc import OrthancChanges

    logins = {each.prefix: each.login for each in settings.follow_changes_login}
    return OrthancChanges(reactor, url, logins.get(prefix), settings)
