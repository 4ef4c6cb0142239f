"""What the proxy says of itself: health, readiness, metrics, status."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
from klein import Klein
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.server import Request

from twistedproxy.cache.interface import Cache
from twistedproxy.logs import AccessLog
from twistedproxy.metrics import CONTENT_TYPE, Metrics
from twistedproxy.web.cors import Cors
from twistedproxy.web.handling import answered
from twistedproxy.web.mounts import Mounts

CHECK_SECONDS = 3.0
"""How long readiness waits for the cache and each origin."""

Extra = Callable[[], Mapping[str, object]]


@attrs.frozen
class StatusPages:
    """Writes the pages. *jobs* gives ``{"running": [...], "ended": [...]}``; *workers* describes each worker."""

    mounts: Mounts
    cache: Cache
    metrics: Metrics
    clock: IReactorTime
    jobs: Extra
    workers: Callable[[], list[dict[str, object]]]

    async def health(self, request: Request) -> None:
        """200 as long as the reactor turns."""
        _send_json(request, 200, {"status": "ok"})

    async def ready(self, request: Request) -> None:
        """200 where the cache and all origins can be reached, else 503 that says what cannot."""
        checks = {"cache": await self._check(self.cache.ping)}
        for mount in self.mounts.all:
            checks[f"origin {mount.prefix or '/'}"] = await self._check(mount.origin.ping)
        ready = all(problem is None for problem in checks.values())
        shown = {name: problem or "ok" for name, problem in checks.items()}
        _send_json(request, 200 if ready else 503, {"status": "ok" if ready else "unavailable", "checks": shown})

    async def _check(self, ping: Callable[[], Awaitable[None]]) -> str | None:
        async def check() -> None:
            await ping()

        try:
            await Deferred.fromCoroutine(check()).addTimeout(CHECK_SECONDS, self.clock)
        except Exception as error:
            return str(error) or type(error).__name__
        return None

    async def metrics_text(self, request: Request) -> None:
        """Prometheus' text format."""
        cache = await self.cache.status()
        self.metrics.cache_server(
            bool(cache.get("connected", True)),
            *(_count(cache.get(name)) for name in ("used_bytes", "max_bytes", "evicted")),
        )
        _send(request, 200, CONTENT_TYPE, self.metrics.render())

    async def status_json(self, request: Request) -> None:
        """Mounts, cache, workers, jobs."""
        mounts = [{"prefix": mount.prefix or "/", **mount.origin.status()} for mount in self.mounts.all]
        cache = await self.cache.status()
        status: dict[str, Any] = {"mounts": mounts, "cache": cache, "workers": self.workers(), "jobs": self.jobs()}
        _send_json(request, 200, status)


class AdminRoutes:
    """What the listener for administrators answers."""

    app = Klein()

    def __init__(self, status: StatusPages, metrics: Metrics, seconds: Callable[[], float]) -> None:
        self.status = status
        self.metrics = metrics
        self.seconds = seconds
        self.access_log = AccessLog()
        self.cors = Cors()

    @app.route("/healthz", methods=["GET", "HEAD"])
    @answered("healthz")
    async def healthz(self, request: Request) -> None:
        await self.status.health(request)

    @app.route("/readyz", methods=["GET", "HEAD"])
    @answered("readyz")
    async def readyz(self, request: Request) -> None:
        await self.status.ready(request)

    @app.route("/metrics", methods=["GET", "HEAD"])
    @answered("metrics")
    async def metrics_text(self, request: Request) -> None:
        await self.status.metrics_text(request)

    @app.route("/status.json", methods=["GET", "HEAD"])
    @answered("status")
    async def status_json(self, request: Request) -> None:
        await self.status.status_json(request)


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _send_json(request: Request, status: int, value: object) -> None:
    _send(request, status, b"application/json", json.dumps(value, indent=1).encode("utf-8") + b"\n")


def _send(request: Request, status: int, content_type: bytes, body: bytes) -> None:
    request.setResponseCode(status)
    request.responseHeaders.setRawHeaders(b"Content-Type", [content_type])
    request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
    request.responseHeaders.setRawHeaders(b"Cache-Control", [b"no-store"])
    request.write(body)
