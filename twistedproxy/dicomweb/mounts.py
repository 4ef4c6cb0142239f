"""Mounts: URL prefixes of the proxy and the origins that they stand for.

A request comes in at `RootResource`: its raw path tells the mount and the DICOMweb resource, then Klein finds the handler.

Klein is shown the kind of the resource in the place of the path that was read already: matching a path of ten segments
costs a fifth of all that a cached frame costs, and Klein decodes percent signs, while a path must mean the same to us
as to the origin.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Optional

import attrs
from twisted.web.resource import IResource
from twisted.web.resource import Resource as WebResource

from twistedproxy.dicom.resource import Instance, known_instance
from twistedproxy.dicomweb.paths import Resource, parse_resource
from twistedproxy.frames.grants import Credentials
from twistedproxy.origin.interface import Origin
from twistedproxy.server.problems import Problem, shown


@attrs.frozen
class MountedOrigin:
    """*prefix*: "" or with a leading and no trailing slash."""

    prefix: str
    origin: Origin


class Mounts:
    """All mounts; of two that fit, the longer prefix wins."""

    def __init__(self, mounts: Iterable[MountedOrigin]) -> None:
        self.all = sorted(mounts, key=lambda mount: len(mount.prefix), reverse=True)
        self._by_prefix = [(mount.prefix.encode("ascii"), mount) for mount in self.all]

    def find(self, raw_path: bytes) -> tuple[MountedOrigin, bytes]:
        """The mount that *raw_path* (still percent-encoded) lies below, and the path below it. Raises `Problem` 404."""
        for prefix, mount in self._by_prefix:
            if raw_path.startswith(prefix) and raw_path[len(prefix) : len(prefix) + 1] in (b"", b"/"):
                return mount, raw_path[len(prefix) :]
        prefixes = ", ".join(mount.prefix or "/" for mount in self.all)
        raise Problem(404, f"{shown(raw_path)} is not below a mount; mounts: {prefixes}")


@attrs.frozen
class Target:
    """What a request is about. *raw_path*: below the mount, still percent-encoded; *query*: raw, without the fields that
    identify the caller: these are *token*, for the store alone."""

    mount: MountedOrigin
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

    @property
    def whole(self) -> Optional[Instance]:
        """What stands for the series or study that the path names, or that of its instance: see `Instance.of_series`. None where it
        names no study."""
        resource, study = self.resource, self.resource.study
        if study is None:
            return None
        series = resource.series or study
        return known_instance(self.mount.origin.url, resource.root, study, series, series)


Pages = Mapping[bytes, IResource]
"""Resources by their paths. None is that of a DICOMweb resource, but for ``/``, of which a mount may have other methods."""

OWN = frozenset({b"/healthz", b"/readyz", b"/metrics", b"/status.json"})
"""The proxy's own pages, which no mount hides."""


class RootResource(WebResource):
    """The root resource of a listener. *routes*: Klein's. *page*: what is read there, by its paths."""

    isLeaf = True

    def __init__(self, mounts: Mounts, routes: IResource, credentials: Credentials, page: Pages) -> None:
        super().__init__()
        self._page = page
        self._credentials = credentials
        self._mounts = mounts
        self._routes = routes

    def render(self, request: Any) -> Any:
        """Say what *request* is about (`StreamingRequest.target`, or why it is about nothing), and pass it on."""
        raw_path, _, query = request.uri.partition(b"?")
        page = self._page.get(raw_path)
        if page is not None and request.refused is None and (raw_path != b"/" or request.method in (b"GET", b"HEAD")):
            return page.render(request)
        if raw_path not in OWN and request.refused is None:
            try:
                mount, below = self._mounts.find(raw_path)
                resource = parse_resource(below)
            except Problem as problem:
                request.nowhere = problem
                request.postpath = [b"nowhere"]
            else:
                request.target = Target(mount, resource, below, *self._credentials.split(query))
                request.postpath = [resource.kind.value.encode("ascii")]
        return self._routes.render(request)
