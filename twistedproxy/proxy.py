"""The composition root: builds every component of one proxy.

Starting: cache, origins, prefetch, then listeners. Stopping: listeners, open connections (with a deadline), prefetch,
origins, cache.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Optional

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from twistedproxy.cache.address import NoAddress
from twistedproxy.cache.monitoring import CacheUse
from twistedproxy.cache.open import open_cache
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.dicomweb.descriptions import DescriptionCache
from twistedproxy.dicomweb.frames import FrameAnswers, StoredFrames
from twistedproxy.dicomweb.metadata_observer import MetadataObserver
from twistedproxy.dicomweb.middleware import Accounting
from twistedproxy.dicomweb.mounts import MountedOrigin, Mounts, open_followers
from twistedproxy.dicomweb.passthrough import PassThrough
from twistedproxy.dicomweb.prefetch import PrefetchEndpoint
from twistedproxy.dicomweb.rendered import RenderedAnswers
from twistedproxy.dicomweb.repairs.metadata import MetadataRepairs
from twistedproxy.dicomweb.requests import RequestParser
from twistedproxy.dicomweb.routes import ProxyRoutes
from twistedproxy.dicomweb.status import AdminRoutes, StatusPages
from twistedproxy.frames.access import Access
from twistedproxy.frames.audit import AuditTrail, audit_key
from twistedproxy.frames.grants import Credentials, normal_key
from twistedproxy.frames.invalidation import Invalidation, Siblings
from twistedproxy.frames.read_through import FrameReader
from twistedproxy.frames.series_answers import SeriesAnswers
from twistedproxy.frames.series_lookup import SeriesLookup
from twistedproxy.frames.streamed import ListReader
from twistedproxy.hot.cached import CachedAnswers
from twistedproxy.hot.dispatcher import HotDispatcher
from twistedproxy.hot.request_heads import RequestHeads
from twistedproxy.hot.responses import HotResponses
from twistedproxy.origin.interface import Caller, Origin
from twistedproxy.origin.open import open_origin
from twistedproxy.page.coverage import CoverageAnswers
from twistedproxy.page.routes import AdminRoot, page_of
from twistedproxy.prefetch.jobs import JobBook
from twistedproxy.prefetch.loaders import ChildLoader, InProcessLoader
from twistedproxy.prefetch.rules import switched_off
from twistedproxy.prefetch.scheduler import Scheduler
from twistedproxy.rendering.service import open_imaging
from twistedproxy.server.connections import Connections
from twistedproxy.server.listening import Listening, listening_anew
from twistedproxy.server.site import ProxySite
from twistedproxy.server.startup_log import Served
from twistedproxy.settings import PIXELS, Settings
from twistedproxy.system.caller_demand import Demand
from twistedproxy.system.logs import AccessLog
from twistedproxy.system.machine_load import SystemLoadReader, cpu_count
from twistedproxy.system.memory_budget import AnswerMemory
from twistedproxy.system.metrics import Metrics
from twistedproxy.system.outages import Recent

_log = Logger()

HEADS_SHARE = 16
"""One part in so many of the memory for hot responses is for the heads of requests that were understood."""

HEADS_MEMORY = 1 << 20  # bytes for these heads, at least

STEP_SECONDS = 10.0
"""How long a part may take to stop, open connections apart: an origin that hangs must not keep the others."""


class Proxy:
    """All components of one proxy.

    A worker has *siblings*, and sockets that are open already: *listen* listens on these as a description says.
    *joining* is waited for just before. *origins* opens the stores, as `open_origin` does; grants go by *wall_clock* (seconds
    since the epoch).
    """

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        access_log: Optional[AccessLog] = None,
        siblings: Optional[Siblings] = None,
        listen: Optional[Listening] = None,
        joining: Optional[Callable[[], Awaitable[None]]] = None,
        *,
        origins: Callable[..., Origin] = open_origin,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._reactor = reactor
        self._settings = settings
        self._listen_as = listen or listening_anew(reactor)
        self._joining = joining
        self._ports: list[IListeningPort] = []
        self.stopping = False
        siblings = siblings or Siblings()
        self.metrics = Metrics()
        accounting = Accounting(self.metrics, access_log or AccessLog(), time.perf_counter)
        self.demand = Demand(reactor, self.metrics.answered_from_cache, cpu_count() / max(1, settings.workers))
        self.cache = open_cache(reactor, settings.cache, settings.cache_memory, self.metrics, settings.near_cache)
        self._cache_use = CacheUse(self.cache, self.metrics, reactor)
        self.mounts = Mounts(
            MountedOrigin(mount.prefix.rstrip("/"), origins(reactor, mount.url, settings, self.metrics, self.changed))
            for mount in settings.origin
        )
        self._build_reading(siblings, wall_clock)
        self._build_prefetch()
        self._hot = hot = self._build_hot(accounting)
        status = StatusPages(self.mounts, self.cache, self.metrics, reactor, self.status, siblings)
        self._routes = self._build_routes(accounting, hot, status)
        self._admin_routes = AdminRoutes(status, accounting, self.invalidation)
        self._followers = open_followers(reactor, settings, self.mounts, self.cache, self.invalidation)

    def _build_reading(self, siblings: Siblings, wall_clock: Callable[[], float]) -> None:
        """Frames and pictures, for callers with a grant."""
        reactor, settings = self._reactor, self._settings
        self.access = Access(self.cache, wall_clock, settings.grant_ttl, settings.frame_ttl, siblings=siblings)
        self.access.by_pixels = settings.proof == PIXELS
        self.access.series = SeriesAnswers(self.cache, reactor, wall_clock, settings.grant_ttl, siblings)
        self.invalidation = Invalidation(self.cache, self.access.grants, reactor, siblings)
        self.access.changed = partial(self.invalidation.purge, why="replaced")
        self.audit = AuditTrail(audit_key(settings.secret), wall_clock, settings.log_format == "json")
        self.audit.watch(self.access.grants, self.invalidation)
        hot_memory = settings.hot_memory - settings.hot_memory // HEADS_SHARE
        self.hot_responses = HotResponses(hot_memory, self.access, reactor.seconds)
        self.series = SeriesLookup(time.monotonic, settings.grant_ttl)
        self.invalidation.also += [self.cache.invalidated, self.hot_responses.invalidate, self.series.invalidate]
        self.reader = FrameReader(
            self.cache,
            self.access,
            self.invalidation,
            settings.frame_ttl,
            settings.max_answer,
            watch=self.hot_responses if settings.hot_memory else None,
            reports_hits=settings.prefetch_trigger <= 0,
        )
        self.lists = ListReader(self.reader)
        self.imaging = open_imaging(reactor, settings, self.reader, self.cache)
        self.answer_memory = AnswerMemory(reactor, settings.answer_memory)

    def _build_prefetch(self) -> None:
        reactor, settings, cache = self._reactor, self._settings, self.cache
        self.jobs = JobBook(reactor, self.metrics, settings.reap_interval)
        self.children = ChildLoader(reactor, cache, settings, self.metrics, self.demand)
        in_process = InProcessLoader(cache, reactor)
        system_load = SystemLoadReader(self._cache_use.on_this_machine)
        self.scheduler = Scheduler(
            settings,
            cache,
            self.reader,
            self.metrics,
            reactor,
            self.jobs,
            lambda: system_load.read(reactor.seconds()),
            in_process,
            self.children if cache.shared else in_process,
        )
        self.reader.answered = self.scheduler.answered
        self.reader.missed, self.reader.refused = self.scheduler.missed, self.scheduler.refused
        if self.imaging is not None:
            self.imaging.maker.load_whole = self.scheduler.for_picture

    def _build_hot(self, accounting: Accounting) -> HotDispatcher:
        """What answers before a request is parsed, and the connections that ask it."""
        settings = self._settings
        named = settings.credential_header, settings.credential_cookie, settings.credential_parameter
        encoded = [tuple(name.encode("ascii") for name in names) for names in named]
        self._credentials = Credentials(normal_key(settings.secret, settings.proof == PIXELS), *encoded)
        heads_memory = max(HEADS_MEMORY, settings.hot_memory // HEADS_SHARE)
        heads = RequestHeads(self._credentials, heads_memory, settings.trusted_proxy)
        cached = None
        if self.cache.reads_now and not self.reader.reports_hits:
            limit, hit = settings.max_frames_per_request, self.scheduler.hit
            cached = CachedAnswers(self.cache, self.access, self.invalidation, limit, hit)
        log, seconds = accounting.access_log, accounting.seconds
        hot = HotDispatcher(self.hot_responses, cached, heads, self.metrics, log, seconds, self.answer_memory)
        self.connections = Connections(self._reactor, settings.client_timeout, hot.answer, self.answer_memory)
        return hot

    def _build_routes(self, accounting: Accounting, hot: HotDispatcher, status: StatusPages) -> ProxyRoutes:
        settings, memory, reactor = self._settings, self.answer_memory, self._reactor
        repairs, credentials = MetadataRepairs(self.imaging, reactor), self._credentials
        descriptions = MetadataObserver(self.cache, self.access, self.reader, credentials, reactor, repairs)
        kept = None if isinstance(settings.cache, NoAddress) else DescriptionCache(descriptions, memory)
        pass_through = PassThrough(self.invalidation, descriptions, memory, settings.trusted_proxy, kept)
        requests = RequestParser(settings, self._credentials, self.series, self.imaging)
        answers = FrameAnswers.of(settings)
        pictures = RenderedAnswers(answers, self.imaging, memory, hot.keep)
        stored_frames = StoredFrames(
            answers,
            self.lists,
            memory,
            hot,
            pass_through,
            requests.outside,
            pictures.frames,
            Recent(settings.recache_after),
            accounting.seconds,
        )
        self._prefetching = PrefetchEndpoint.of(self.scheduler)
        self._coverage = CoverageAnswers.of(self.scheduler, reactor)
        answering = requests, stored_frames, pictures, pass_through, status
        return ProxyRoutes(settings, self.mounts, *answering, self._prefetching, self._coverage.answer, accounting)

    def status(self) -> dict[str, Any]:
        """This worker's part of ``/status.json``."""
        connections, grants = len(self.connections), len(self.access.grants)
        worker: dict[str, Any] = {"pid": os.getpid(), "connections": connections, "grants": grants}
        worker["cached_answers_per_second"] = round(self.demand.per_second, 1)
        worker["answers"] = {"held_bytes": self.answer_memory.used, "waiting": self.answer_memory.waiting}
        if self.imaging is not None:
            worker["rendering"] = self.imaging.pool.status()
        return {"worker": worker, "jobs": self.jobs.status()}

    async def changed(self, scope: Scope) -> None:
        """An origin noticed that what is cached of *scope* is old."""
        await self.invalidation.purge(scope, "folder")

    def revoke(self, credential: bytes, instance: Instance) -> None:
        """Drop a grant that the origin denied at another worker."""
        self.access.forget(Caller(credential), instance)

    async def start(self) -> None:
        """Start all parts, the listeners last; go no further once `stopping`. Raises what keeps one from starting."""
        await self.cache.start()
        for mount in self.mounts.all:
            if not self.stopping:
                await mount.origin.start()
        if not self.stopping:
            self._start_prefetch()
            self.connections.start()
            self._followers.start()
            if self.imaging is not None:
                await self.imaging.start()
            if self._joining is not None:
                await self._joining()
            await self._listen()

    def _start_prefetch(self) -> None:
        self.demand.start()
        self._cache_use.start()
        self.jobs.start_reaping()
        reason = switched_off(self._settings)
        if reason is not None:
            _log.info("prefetch is off: {reason}", event="prefetch_off", reason=reason.value)
        elif self.cache.shared and self._settings.whole_instance:
            self.children.start()

    async def _stop_prefetch(self) -> None:
        await self.scheduler.stop()
        await self.children.stop()
        self.jobs.stop_reaping()
        self.demand.stop()
        self._cache_use.stop()

    async def _listen(self) -> None:
        settings, accounting = self._settings, self._routes.accounting
        roots = [(text, self._routes.resource(page_of(settings, accounting))) for text in settings.listen]
        if settings.admin_listen is not None:
            page = page_of(settings, accounting, admin=True)
            roots.append((settings.admin_listen, AdminRoot(page, self._admin_routes.app.resource())))
        for text, root in roots:
            self._ports.append(await self._listen_as(text, ProxySite(root, self.connections, self._reactor)))

    def served(self) -> list[Served]:
        """What its mounts stand for, once it has been started."""
        return [Served(mount.prefix, mount.origin.url, mount.origin.examples()) for mount in self.mounts.all]

    def hosts(self) -> list[Any]:
        """Where it listens, in the order of the settings."""
        return [port.getHost() for port in self._ports]

    async def stop(self, idle_seconds: float = 0.0) -> None:
        """Stop all parts; running answers may finish until the deadline, idle connections stay for *idle_seconds*."""
        self.stopping = True
        ports, self._ports = self._ports, []
        for port in ports:
            await self._ended("a listener", _stopped(port))
        self._coverage.stop()
        self._prefetching.stop_within(self._settings.stop_deadline)
        cut = await self.connections.drain(self._settings.stop_deadline, idle_seconds)
        if cut:
            _log.warn("the stop deadline has passed: {cut} connections were closed", event="connections_cut", cut=cut)
        await self._ended("prefetch", self._stop_prefetch())
        await self._ended("following changes", self._followers.stop())
        self.invalidation.stop()  # a load that is given up may have had something to invalidate
        if self.imaging is not None:
            await self._ended("rendering", self.imaging.pool.stop())
        for mount in self.mounts.all:
            await self._ended(f"the origin at {mount.prefix or '/'}", mount.origin.stop())
        await self._ended("the cache", self.cache.stop())

    async def _ended(self, what: str, stopping: Coroutine[Deferred[Any], Any, None]) -> None:
        """Wait until one part has stopped. That it doesn't must not keep the next from being stopped."""
        try:
            await Deferred.fromCoroutine(stopping).addTimeout(STEP_SECONDS, self._reactor)
        except Exception:
            _log.failure("{what} did not stop cleanly", what=what)


async def _stopped(port: IListeningPort) -> None:
    stopping = port.stopListening()
    if isinstance(stopping, Deferred):
        await stopping
