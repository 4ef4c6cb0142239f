"""Where requests come in: the raw path tells the mount and the DICOMweb resource, then Klein finds the handler.

Klein is shown the kind of the resource in the place of the path that was read already: matching a path of ten segments
costs a fifth of all that a cached frame costs, and Klein decodes percent signs, while a path must mean the same to us
as to the origin.
"""

from __future__ import annotations

from typing import Any

from twisted.web.resource import IResource, Resource

from twistedproxy.frames.credentials import Credentials
from twistedproxy.web.mounts import Mounts, Target
from twistedproxy.web.paths import parse_resource
from twistedproxy.web.problems import Problem, not_found, shown

OWN = frozenset({b"/healthz", b"/readyz", b"/metrics", b"/status.json"})
"""The proxy's own pages, which no mount hides."""


class Entry(Resource):
    """The root resource of a listener. *routes*: Klein's."""

    isLeaf = True

    def __init__(self, mounts: Mounts, routes: IResource, credentials: Credentials) -> None:
        super().__init__()
        self._credentials = credentials
        self._mounts = mounts
        self._routes = routes

    def render(self, request: Any) -> Any:
        """Say what *request* is about (`StreamingRequest.target`, or why it is about nothing), and pass it on."""
        raw_path, _, query = request.uri.partition(b"?")
        if raw_path not in OWN and request.refused is None:
            try:
                self._enter(request, raw_path, query)
            except Problem as problem:
                request.nowhere = problem
                request.postpath = [b"nowhere"]
        return self._routes.render(request)

    def _enter(self, request: Any, raw_path: bytes, query: bytes) -> None:
        found = self._mounts.find(raw_path)
        if found is None:
            prefixes = ", ".join(mount.prefix or "/" for mount in self._mounts.all)
            raise not_found(f"{shown(raw_path)} is below no mount; there is: {prefixes}")
        mount, below = found
        resource = parse_resource(below)
        request.target = Target(mount, resource, below, *self._credentials.split(query))
        request.postpath = [resource.kind.value.encode("ascii")]
