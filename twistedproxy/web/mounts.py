"""Mounts: URL prefixes of the proxy and the origins that they stand for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Optional

import attrs

from twistedproxy.dicom.address import Instance
from twistedproxy.origin.interface import Origin
from twistedproxy.web.paths import Resource


@attrs.frozen
class Mount:
    """*prefix*: "" or with a leading and no trailing slash."""

    prefix: str
    origin: Origin


class Mounts:
    """All mounts; of two that fit, the longer prefix wins."""

    def __init__(self, mounts: Iterable[Mount]) -> None:
        self.all = sorted(mounts, key=lambda mount: len(mount.prefix), reverse=True)
        self._by_prefix = [(mount.prefix.encode("ascii"), mount) for mount in self.all]

    def find(self, raw_path: bytes) -> Optional[tuple[Mount, bytes]]:
        """The mount that *raw_path* (still percent-encoded) lies below, and the path below it."""
        for prefix, mount in self._by_prefix:
            if raw_path.startswith(prefix) and raw_path[len(prefix) : len(prefix) + 1] in (b"", b"/"):
                return mount, raw_path[len(prefix) :]
        return None


@attrs.frozen
class Target:
    """What a request is about. *raw_path*: below the mount, still percent-encoded; *query*: raw, without the fields that
    identify the caller: these are *token*, for the store alone."""

    mount: Mount
    resource: Resource
    raw_path: bytes
    query: bytes
    token: bytes = attrs.field(default=b"", repr=False)

    @property
    def origin(self) -> Origin:
        """The store behind the mount."""
        return self.mount.origin

    @property
    def instance(self) -> Instance:
        """The instance that the path names. `ValueError` where it names none (in full)."""
        return self.resource.instance(self.mount.origin.url)
