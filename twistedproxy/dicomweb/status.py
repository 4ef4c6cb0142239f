"""The proxy's own pages: health, readiness, metrics and status, the latter two of all workers together. For administrators alone,
also the resource by which what is cached of a study, series or instance is purged: for stores and scripts that changed it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Optional

import attrs
from klein import Klein
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.server import Request
from werkzeug.exceptions import HTTPException

from twistedproxy.cache.interface import Cache, CacheUnavailable
from twistedproxy.deferreds import all_or_none
from twistedproxy.dicomweb.middleware import Accounting, answer_error, answered
from twistedproxy.dicomweb.mounts import OWN, MountedOrigin, Mounts
from twistedproxy.dicomweb.paths import Resource, ResourceKind, parse_resource
from twistedproxy.frames.invalidation import Invalidation, Siblings
from twistedproxy.frames.single_flight import SingleFlight
from twistedproxy.origin.errors import OriginError
from twistedproxy.prefetch.jobs import JobKind
from twistedproxy.server.compression import compress
from twistedproxy.server.cors import Cors
from twistedproxy.server.problems import Problem, method_not_allowed, shown, unavailable
from twistedproxy.server.response_body import send_page, send_stream
from twistedproxy.streams import BytesStream
from twistedproxy.system.metrics import CONTENT_TYPE, FAMILIES, Metrics, Snapshot, merge
from twistedproxy.system.outages import with_hint

_log = Logger()

# Gauges of running jobs, by kind, and the field of a job that each sums (None: each job counts 1).
_RUNNING = {
    "prefetch_jobs_running": None,
    "prefetch_frames_running": "frames",
    "prefetch_frames_wanted": "total",
    "prefetch_bytes_running": "bytes",
}


def running_gauges(jobs: Iterable[Mapping[str, Any]]) -> Snapshot:
    """The progress of running *jobs*, as gauges by kind; a kind that does not run is 0."""
    sums: dict[str, dict[str, float]] = {name: {kind.value: 0.0 for kind in JobKind} for name in _RUNNING}
    for job in jobs:
        for name, field in _RUNNING.items():
            sums[name][job["kind"]] += 1 if field is None else job[field]
    return {name: [[[kind], [value]] for kind, value in by_kind.items()] for name, by_kind in sums.items()}


_TOTALS = {
    "plans": "prefetch_plans",
    "ended": "prefetch_jobs",
    "frames": "prefetch_frames",
    "used": "prefetch_frames_used",
    "busy": "prefetch_jobs_busy",
    "locks_lost": "prefetch_locks_lost",
    "claims_lost": "prefetch_claims_lost",
    "children": "prefetch_children",
}


def totals(snapshot: Snapshot) -> dict[str, object]:
    """Prefetching since the start: the values of some metrics, by their labels."""
    return {name: _by_label(snapshot.get(family, []), len(FAMILIES[family].labels)) for name, family in _TOTALS.items()}


def _by_label(rows: list[list[Any]], labels: int) -> object:
    if not labels:
        return int(sum(numbers[0] for _, numbers in rows))
    groups: dict[str, list[list[Any]]] = {}
    for (first, *others), numbers in rows:
        groups.setdefault(first, []).append([others, numbers])
    return {label: _by_label(group, labels - 1) for label, group in groups.items()}


CHECK_SECONDS = 3.0
"""Timeout of the readiness checks of cache and origins, which run side by side (seconds)."""

READY_SECONDS = 1.0
"""How long a result of the readiness checks is reused (seconds): frequent probes do not reach the origins."""


@attrs.frozen
class Check:
    """The result of a check: whether the part can be used, and the text to show."""

    usable: bool
    text: str = "ok"


Checks = dict[str, Check]
"""Results by the name of what was checked."""

Ping = Callable[[], Coroutine[Deferred[Any], Any, Optional[str]]]


@attrs.define(eq=False)
class StatusPages:
    """Writes the pages. *own*: this worker's part, ``{"worker": {...}, "jobs": {"running": [...], "ended": [...]}}``."""

    mounts: Mounts
    cache: Cache
    metrics: Metrics
    clock: IReactorTime
    own: Callable[[], dict[str, Any]]
    siblings: Siblings = attrs.Factory(Siblings)
    ready_seconds: float = READY_SECONDS
    _checked: tuple[float, Checks] = attrs.field(init=False, default=(-math.inf, {}))
    _checking: SingleFlight[str, None] = attrs.field(init=False, factory=SingleFlight)

    async def health(self, request: Request) -> None:
        """200 as long as the reactor turns."""
        await self._send_json(request, 200, {"status": "ok"})

    async def ready(self, request: Request) -> None:
        """200 where the cache and all origins can be reached, else 503 that names what cannot.

        An origin that may be the wrong one is reported as doubtful, with 200: a request may show that it is right, and a
        load balancer that saw 503 would send none.
        """
        checks = await self._checks()
        ready = all(check.usable for check in checks.values())
        sure = all(check == Check(True) for check in checks.values())
        status = "unavailable" if not ready else "ok" if sure else "doubtful"
        shown = {name: check.text for name, check in checks.items()}
        await self._send_json(request, 200 if ready else 503, {"status": status, "checks": shown})

    async def _checks(self) -> Checks:
        """The checks of a moment ago, or those under way, or new ones."""
        when, checks = self._checked
        if self.clock.seconds() - when < self.ready_seconds:
            return checks
        await self._checking.one("ready", None, self._check_all)
        return self._checked[1]

    async def _check_all(self) -> None:
        pings: dict[str, tuple[Ping, str]] = {"cache": (self.cache.ping, "the cache")}
        pings.update(
            {f"origin {mount.prefix or '/'}": (mount.origin.ping, mount.origin.url) for mount in self.mounts.all}
        )
        checks = await all_or_none([Deferred.fromCoroutine(self._check(*ping)) for ping in pings.values()])
        self._checked = self.clock.seconds(), dict(zip(pings, checks, strict=True))

    async def _check(self, ping: Ping, server: str) -> Check:
        try:
            doubt = await Deferred.fromCoroutine(ping()).addTimeout(CHECK_SECONDS, self.clock)
        except (CacheUnavailable, OriginError) as error:  # whose texts are fit to be shown
            return Check(False, with_hint(str(error) or type(error).__name__, server))
        except defer.TimeoutError:
            return Check(False, with_hint(f"no answer within {CHECK_SECONDS:g} s", server))
        except OSError as error:
            return Check(False, error.strerror or type(error).__name__)
        return Check(True, doubt or "ok")

    async def metrics_text(self, request: Request) -> None:
        """Prometheus' text format."""
        self.metrics.cache_status(await self.cache.status())
        parts = await self._parts()
        running = running_gauges(job for part in parts for job in part["jobs"]["running"])
        await self._send(request, 200, CONTENT_TYPE, self.metrics.render([running, *await self.siblings.snapshots()]))

    async def status_json(self, request: Request) -> None:
        """Mounts, cache, workers, jobs, and what became of prefetching in numbers."""
        mounts = [{"prefix": mount.prefix or "/", **mount.origin.status()} for mount in self.mounts.all]
        cache = await self.cache.status()
        parts = await self._parts()
        jobs = {state: [job for part in parts for job in part["jobs"][state]] for state in ("running", "ended")}
        workers = [part["worker"] for part in parts]
        prefetch = totals(merge([self.metrics.snapshot(), *await self.siblings.snapshots()]))
        status = {"mounts": mounts, "cache": cache, "workers": workers, "jobs": jobs, "prefetch": prefetch}
        await self._send_json(request, 200, status)

    async def _parts(self) -> list[dict[str, Any]]:
        """The parts of all workers, this one's too."""
        parts = [self.own(), *await self.siblings.statuses()]
        parts.sort(key=lambda part: part["worker"]["pid"])
        return parts

    async def _send_json(self, request: Request, status: int, value: object) -> None:
        await self._send(request, status, b"application/json", json.dumps(value, indent=1).encode("utf-8") + b"\n")

    async def _send(self, request: Request, status: int, content_type: bytes, body: bytes) -> None:
        request.setResponseCode(status)
        headers, stream, coded = await compress(request, (), BytesStream(body), len(body), self.clock)
        for name, value in headers:
            request.responseHeaders.addRawHeader(name, value)
        if not coded:
            send_page(request, content_type, body)
            return
        request.responseHeaders.setRawHeaders(b"Content-Type", [content_type])
        request.responseHeaders.setRawHeaders(b"Cache-Control", [b"no-store"])
        await send_stream(request, stream)


_PAGES = {
    "healthz": ("/healthz", StatusPages.health),
    "readyz": ("/readyz", StatusPages.ready),
    "metrics": ("/metrics", StatusPages.metrics_text),
    "status": ("/status.json", StatusPages.status_json),
}
PURGED = "PREFIX/studies/UID[/series/UID[/instances/UID]]/cache"

PURGE_RETRY_AFTER = 2
"""Seconds after which a purge that was not confirmed may be repeated: longer than the proxy itself takes to ask again."""

_PRIVATE = frozenset({"metrics", "status"})
"""Pages that name instances."""


def add_pages(app: Klein, private: Callable[[Any], bool]) -> None:
    """Give *app* the pages, of the `status` of the object that it belongs to. *private*: whether that object has those that
    name instances, too."""
    for name, (path, write) in _PAGES.items():

        async def page(routes: Any, request: Request, name: str = name, write: Any = write) -> None:
            if name in _PRIVATE and not private(routes):
                raise Problem(404, "this page is served on --admin-listen only")
            await write(routes.status, request)

        app.route(path, methods=["GET", "HEAD"], endpoint=name)(answered(name)(page))


class AdminRoutes:
    """The routes of the admin listener."""

    app = Klein()
    add_pages(app, lambda _: True)

    def __init__(self, status: StatusPages, accounting: Accounting, invalidation: Invalidation) -> None:
        self.status = status
        self.accounting = accounting
        self.invalidation = invalidation
        self.cors = Cors()

    @app.route("/<path:anything>", methods=["DELETE"])
    @answered("purge")
    async def purge(self, request: Request) -> None:
        """Have all workers and hosts give nothing any more of what is cached of a study, series or instance. 204 once that is
        so, whether there was anything or not."""
        mount, resource = self._cached(request)
        # Browsers send it with every DELETE of a page, also of one whose name was made to lead here (DNS rebinding), which is
        # of this web origin then.
        if request.requestHeaders.hasHeader(b"Origin"):
            raise Problem(403, "this request came from a page in a browser; only stores and scripts purge")
        scope = resource.scope(mount.origin.url)
        if not await self.invalidation.purge(scope, "webhook"):
            text = "the cache did not confirm it and is asked again; until then this host gives nothing of it from the cache"
            raise unavailable(text, PURGE_RETRY_AFTER)
        _log.info("purged: {path}", event="purged", path=request.uri.partition(b"?")[0].decode("ascii"))
        request.setResponseCode(204)

    def _cached(self, request: Any) -> tuple[MountedOrigin, Resource]:
        """What is to be purged. Raises `Problem`."""
        raw_path = request.uri.partition(b"?")[0]
        if raw_path in OWN:
            raise method_not_allowed(["GET", "HEAD"])
        mount, below = self.status.mounts.find(raw_path)
        resource = parse_resource(below)
        if resource.kind is not ResourceKind.CACHE:
            raise Problem(404, f"{shown(raw_path)} is nothing to be purged; expected {PURGED}")
        return mount, resource

    @app.handle_errors(HTTPException)
    def routing_failed(self, request: Any, failure: Any) -> None:
        """No page, or not with that method."""
        allowed, problem = ["GET", "HEAD"], None
        if request.uri.partition(b"?")[0] not in OWN:
            try:
                self._cached(request)
                allowed = ["DELETE"]
            except Problem:
                paths = ", ".join(path for path, _ in _PAGES.values())
                problem = Problem(404, f"no such page; pages: {paths}; DELETE: {PURGED}")
        answer_error(request, problem or method_not_allowed(allowed))
