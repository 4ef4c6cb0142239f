"""Counters and histograms of one worker, as plain numbers, and Prometheus' text made from those of all workers.

Rules:
- counting is a lookup and an addition: it happens for every frame. Only the reactor's thread counts, so there is
  no lock (`prometheus_client`'s own counters take one each, which costs more than all of this);
- a label value comes from code, never from a request as it is: the number of series is bounded;
- a `Snapshot` is plain JSON, so that workers can send theirs and `merge` can add them up.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Union

import attrs
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

# Seconds: a hot answer takes well below a millisecond, a slow store's a minute.
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"))
FROM_CACHE = frozenset(("hit", "hot"))
"""Outcomes of requests that were answered without an origin, and without making anything."""
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

Snapshot = dict[str, list[list[Any]]]
"""Family name -> rows of [label values, numbers]; one number, or a histogram's (see `Family`)."""


@attrs.frozen
class Family:
    """One metric. *kind*: ``counter`` (summed over workers), ``gauge`` (summed), ``shared`` (a gauge of something
    that all workers look at: the largest counts), ``total`` (likewise, and it only grows) or ``histogram``, whose
    numbers are one count for each of `BUCKETS`, one beyond them, and the sum of seconds."""

    name: str
    kind: str
    help: str
    label_names: str = ""

    @property
    def labels(self) -> list[str]:
        """The names, which are given separated by spaces."""
        return self.label_names.split()


FAMILIES = {
    family.name: family
    for family in (
        Family("requests", "counter", "Requests completed.", "route method status"),
        Family(
            "request_seconds", "histogram", "Seconds from the request line to the end of the response.", "route cache"
        ),
        Family("requests_in_flight", "gauge", "Requests in progress."),
        Family(
            "client_bytes",
            "counter",
            "Bytes of request and response bodies, from (in) and to (out) clients.",
            "direction",
        ),
        Family(
            "cache_operation_seconds", "histogram", "Duration of cache operations, in seconds.", "operation outcome"
        ),
        Family(
            "origin_operation_seconds", "histogram", "Duration of requests to origins, in seconds.", "operation outcome"
        ),
        Family(
            "origin_bytes",
            "counter",
            "Bytes of response and request bodies, from (in) and to (out) origins.",
            "direction",
        ),
        Family("cache_connected", "shared", "Whether the cache is connected (1) or not (0)."),
        Family(
            "cache_works",
            "shared",
            "Whether each server of the cache has just taken a test write and given it back (1) or not (0).",
        ),
        Family("cache_used_bytes", "shared", "Bytes used by the cache."),
        Family("cache_max_bytes", "shared", "Limit of the cache in bytes; 0 means no limit."),
        Family(
            "worker_restarts", "counter", "Workers started in the place of one that had ended unasked, or was killed."
        ),
        Family("prefetch_plans", "counter", "Prefetch decisions, by kind of load (or none) and reason.", "kind reason"),
        Family("prefetch_jobs", "counter", "Prefetch jobs finished, by result.", "kind result"),
        Family("prefetch_jobs_busy", "counter", "Prefetches skipped because --max-jobs jobs were running."),
        Family("prefetch_locks_lost", "counter", "Prefetches skipped because another worker held the lock."),
        Family("prefetch_claims_lost", "counter", "Frames skipped because another load had claimed them."),
        Family("prefetch_frames", "counter", "Frames loaded by finished prefetch jobs.", "kind"),
        Family("prefetch_frames_used", "counter", "Prefetched frames that were requested later, each counted once."),
        Family("prefetch_jobs_running", "gauge", "Prefetch jobs in progress.", "kind"),
        Family("prefetch_frames_running", "gauge", "Frames loaded so far by prefetch jobs in progress.", "kind"),
        Family("prefetch_frames_wanted", "gauge", "Frames to load in total by prefetch jobs in progress.", "kind"),
        Family("prefetch_bytes_running", "gauge", "Bytes loaded so far by prefetch jobs in progress.", "kind"),
        Family("prefetch_children", "gauge", "Child processes that load instances."),
        Family("cache_evictions", "total", "Entries evicted from the cache for lack of space."),
        Family("cache_entries", "shared", "Entries in the cache."),
        Family("cache_segments_dropped", "total", "Segments dropped from the local cache for lack of space."),
        Family("cache_second_chances", "total", "Entries of dropped segments that were kept because they are in use."),
        Family("cache_reads", "counter", "Entries read from the local cache, by source: memory or disk.", "source"),
        Family("cache_write_queue_bytes", "gauge", "Bytes on their way to the local cache."),
        Family(
            "cache_index_write_p99_seconds",
            "shared",
            "99th percentile of the last 1000 writes to the local cache's index, of at most 1 MiB of entries each.",
        ),
    )
}

_OF_STATUS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "connected": ("cache_connected", ()),
    "works": ("cache_works", ()),
    "used_bytes": ("cache_used_bytes", ()),
    "max_bytes": ("cache_max_bytes", ()),
    "evicted": ("cache_evictions", ()),
    "items": ("cache_entries", ()),
    "segments_dropped": ("cache_segments_dropped", ()),
    "second_chances": ("cache_second_chances", ()),
    "read_from_memory": ("cache_reads", ("memory",)),
    "read_from_disk": ("cache_reads", ("disk",)),
    "write_queue_bytes": ("cache_write_queue_bytes", ()),
    "index_write_p99_seconds": ("cache_index_write_p99_seconds", ()),
}
"""The families of what the cache's status has."""

_HISTOGRAM_NUMBERS = len(BUCKETS) + 2
_SUM = _HISTOGRAM_NUMBERS - 1
Row = list[float]


class Metrics:
    """What one worker counts. Call it from the reactor's thread only."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[tuple[str, ...], Row]] = {name: {} for name in FAMILIES}
        self._bound: dict[tuple[str, str, int, str], tuple[Row, Row, Row]] = {}
        self._from_cache: Row = [0.0]
        self._otherwise: Row = [0.0]
        for name, family in FAMILIES.items():
            if family.kind in ("counter", "gauge") and not family.labels:
                self._row(name, ())  # 0 from the beginning: what appears late looks like no increase to Prometheus
        self._in_flight = self._row("requests_in_flight", ())
        self._bytes_out = self._row("client_bytes", ("out",))
        self._bytes_in = self._row("client_bytes", ("in",))

    # Requests.

    def request_started(self) -> None:
        """A request is being answered."""
        self._in_flight[0] += 1

    def request_ended(self) -> None:
        """It is no more, whatever became of it. Pairs with `request_started`."""
        self._in_flight[0] -= 1

    def request_finished(
        self, route: str, method: str, status: int, outcome: str, seconds: float, bytes_out: int
    ) -> None:
        """A request was answered. *route* and *outcome* (of the cache: hit, miss, partial... or "") come from code;
        *seconds* from its first line to the answer's end; *bytes_out* of the body."""
        bound = self._bound.get((route, method, status, outcome))
        if bound is None:
            bound = self._bind(route, method, status, outcome)
        count, tally, histogram = bound
        count[0] += 1
        tally[0] += 1
        histogram[bisect_left(BUCKETS, seconds)] += 1
        histogram[_SUM] += seconds
        self._bytes_out[0] += bytes_out

    def answered_from_cache(self) -> float:
        """How many requests were, so far."""
        return self._from_cache[0]

    def bytes_received(self, size: int) -> None:
        """Bytes of a request's body came from a client."""
        self._bytes_in[0] += size

    # The cache and the origins.

    def cache_operation(self, name: str, outcome: str, seconds: float) -> None:
        """The cache did *name* (get, put, claim...) with *outcome* (hit, miss, ok, error...)."""
        self.observe("cache_operation_seconds", (name, outcome), seconds)

    def cache_status(self, status: Mapping[str, object]) -> None:
        """The state of the cache, as last read: what of it is a number."""
        for name, (family, labels) in _OF_STATUS.items():
            value = status.get(name)
            if isinstance(value, (int, float)):
                self.set(family, float(value), labels)

    # Any family.

    def count(self, family: str, labels: tuple[str, ...] = (), amount: float = 1) -> None:
        """Add to a counter or gauge."""
        self._row(family, labels)[0] += amount

    def set(self, family: str, value: float, labels: tuple[str, ...] = ()) -> None:
        """Say what a gauge stands at."""
        self._row(family, labels)[0] = value

    def observe(self, family: str, labels: tuple[str, ...], seconds: float) -> None:
        """Add to a histogram."""
        row = self._row(family, labels)
        row[bisect_left(BUCKETS, seconds)] += 1
        row[_SUM] += seconds

    def snapshot(self) -> Snapshot:
        """All numbers as they are now, as plain JSON."""
        return {
            name: [[list(labels), list(row)] for labels, row in rows.items()]
            for name, rows in self._rows.items()
            if rows
        }

    def render(self, others: Iterable[Snapshot] = ()) -> bytes:
        """Prometheus' text format 0.0.4, of this worker and of *others*' snapshots together."""
        return render(merge([self.snapshot(), *others]))

    def _row(self, family: str, labels: tuple[str, ...]) -> Row:
        rows = self._rows[family]
        row = rows.get(labels)
        if row is None:
            described = FAMILIES[family]
            if len(labels) != len(described.labels):
                raise ValueError(f"{family} has the labels {described.labels}, and {labels} came")
            row = rows[labels] = [0.0] * (_HISTOGRAM_NUMBERS if described.kind == "histogram" else 1)
        return row

    def _bind(self, route: str, method: str, status: int, outcome: str) -> tuple[Row, Row, Row]:
        """The rows of a kind of request, found once. Unknown methods share a row, and nothing keeps them apart."""
        if method not in METHODS:
            method = "other"
        cache = outcome or "none"
        bound = (
            self._row("requests", (route, method, f"{status // 100}xx")),
            self._from_cache if outcome in FROM_CACHE else self._otherwise,
            self._row("request_seconds", (route, cache)),
        )
        if method != "other":
            self._bound[(route, method, status, outcome)] = bound
        return bound


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """The numbers of several workers together. Families and rows that this version does not know are left out."""
    merged: dict[str, dict[tuple[str, ...], Row]] = {}
    for snapshot in snapshots:
        for name, rows in snapshot.items():
            if name not in FAMILIES:
                continue
            family, known = FAMILIES[name], merged.setdefault(name, {})
            for labels, numbers in rows:
                key = tuple(labels)
                if key not in known:
                    known[key] = list(numbers)
                elif family.kind in ("shared", "total"):
                    known[key] = [max(known[key][0], numbers[0])]
                else:
                    known[key] = [a + b for a, b in zip(known[key], numbers)]
    return {name: [[list(labels), row] for labels, row in rows.items()] for name, rows in merged.items()}


class _SnapshotCollector(Collector):
    """Shows `prometheus_client` a snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        for name, family in FAMILIES.items():
            metric = _CLASSES[family.kind](f"twistedproxy_{name}", family.help, labels=family.labels)
            for labels, numbers in self._snapshot.get(name, ()):
                if isinstance(metric, HistogramMetricFamily):
                    counts = itertools.accumulate(numbers[:_SUM])
                    metric.add_metric(labels, list(zip((*map(str, BUCKETS), "+Inf"), counts)), numbers[_SUM])
                else:
                    metric.add_metric(labels, numbers[0])
            yield metric


Collected = Union[CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily]
_CLASSES: Mapping[str, type[Collected]] = {
    "counter": CounterMetricFamily,
    "total": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "shared": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


def render(snapshot: Snapshot) -> bytes:
    """Prometheus' text format 0.0.4 of a snapshot."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_SnapshotCollector(snapshot))
    return generate_latest(registry)
