"""The page's paths at a listener: ``/``, for GET and HEAD, and below ``/page`` those that `page_files` knows. All others are left to what
was there."""

from __future__ import annotations

import json
from typing import Any

from klein import Klein
from twisted.web.resource import IResource
from twisted.web.resource import Resource as WebResource
from twisted.web.server import Request

import twistedproxy
from twistedproxy.dicomweb.middleware import Accounting, answered
from twistedproxy.dicomweb.mounts import Pages
from twistedproxy.page.files import PLACE, page_files
from twistedproxy.server.conditional import matches_none
from twistedproxy.server.cors import Cors
from twistedproxy.server.problems import method_not_allowed
from twistedproxy.server.response_body import send_page
from twistedproxy.settings import Settings

ABOUT = f"/{PLACE}/about.json".encode()
_READ = (b"GET", b"HEAD")


def page_of(settings: Settings, accounting: Accounting, admin: bool = False) -> Pages:
    """What a listener serves of the page, by its paths. *admin*: whether it is that for administrators."""
    if not settings.page:
        return {}
    return dict.fromkeys([*page_files(), ABOUT], PageResource(PageRoutes(_about(settings, admin), accounting)))


def _about(settings: Settings, admin: bool) -> bytes:
    """What the page is told of its listener: mounts in the order of the settings; whether it has status and metrics."""
    kinds = {"sample": "sample", "file": "file"}
    mounts = [
        {"prefix": mount.prefix, "kind": kinds.get(mount.url.partition(":")[0], "http")} for mount in settings.origin
    ]
    status = admin or settings.admin_listen is None
    return (
        json.dumps({"version": twistedproxy.__version__, "mounts": [] if admin else mounts, "status": status}).encode()
        + b"\n"
    )


class PageResource(WebResource):
    """The page."""

    isLeaf = True

    def __init__(self, routes: PageRoutes) -> None:
        super().__init__()
        self._routes = routes.app.resource()

    def render(self, request: Any) -> Any:
        """Answer a request for one of its paths."""
        request.postpath = [b"page"]
        return self._routes.render(request)


class AdminRoot(WebResource):
    """The root resource of the listener for administrators: *page*, and what lies *below*."""

    isLeaf = True

    def __init__(self, page: Pages, below: IResource) -> None:
        super().__init__()
        self._page = page
        self._below = below

    def render(self, request: Any) -> Any:
        """Answer, or pass on."""
        page = None if request.refused is not None else self._page.get(request.uri.partition(b"?")[0])
        return (page or self._below).render(request)


class PageRoutes:
    """Answers requests for the page's paths. *about*: what the page is told of its listener."""

    app = Klein()

    def __init__(self, about: bytes, accounting: Accounting) -> None:
        self._about = about
        self.accounting = accounting
        self.cors = Cors()

    @app.route("/page")
    @answered("page")
    async def page(self, request: Request) -> None:
        """A file of the page, or what it is told."""
        if request.method not in _READ:
            raise method_not_allowed(["GET", "HEAD"])
        path = request.uri.partition(b"?")[0]
        if path == ABOUT:
            send_page(request, b"application/json", self._about)
            return
        file = page_files()[path]
        encodings = request.requestHeaders.getRawHeaders(b"Accept-Encoding", [])
        etag, headers, body = file.answer(b", ".join(encodings))
        for name, value in headers:
            request.responseHeaders.setRawHeaders(name, [value])
        condition = request.requestHeaders.getRawHeaders(b"If-None-Match")
        if condition is not None and matches_none(b", ".join(condition), etag):
            request.responseHeaders.removeHeader(b"Content-Encoding")
            request.setResponseCode(304)
            request.write(b"")
            return
        request.responseHeaders.setRawHeaders(b"Content-Type", [file.content_type])
        request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
        request.write(body)
