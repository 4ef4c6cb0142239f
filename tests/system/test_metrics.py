"""Metrics: counting, adding workers up, and Prometheus' text, read back by its own parser."""

from __future__ import annotations

import json

from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.system.metrics import FAMILIES, Metrics, merge, render

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: bytes) -> Samples:
    """All samples of Prometheus' text format, by name and labels."""
    return {
        (sample.name.removeprefix("twistedproxy_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


class MetricsTests(SynchronousTestCase):
    """One worker's numbers."""

    def setUp(self) -> None:
        self.metrics = Metrics()

    def sample(self, name: str, **labels: str) -> float:
        """The value of one sample."""
        return samples(self.metrics.render())[name, tuple(sorted(labels.items()))]

    def test_requests(self) -> None:
        """Requests are counted by route, method and class of status."""
        for status in (200, 206, 404):
            self.metrics.request_finished("frames", "GET", status, "hit", 0.001, 10)
        self.assertEqual(2, self.sample("requests_total", route="frames", method="GET", status="2xx"))
        self.assertEqual(1, self.sample("requests_total", route="frames", method="GET", status="4xx"))
        self.assertEqual(30, self.sample("client_bytes_total", direction="out"))

    def test_from_cache(self) -> None:
        """What the cache answered alone, from memory or a server, is counted by itself, over all routes."""
        for route in ("frames", "rendered"):
            for outcome in ("hit", "hot", "miss", "partial", "rendered", "collapsed", ""):
                self.metrics.request_finished(route, "GET", 200, outcome, 0.001, 10)
        self.assertEqual(4, self.metrics.answered_from_cache())

    def test_latencies(self) -> None:
        """Seconds fall into buckets that count everything below them, bounds included."""
        for seconds in (0.0004, 0.001, 0.0011, 500.0):
            self.metrics.request_finished("frames", "GET", 200, "hit", seconds, 0)
        found = {
            le: self.sample("request_seconds_bucket", route="frames", cache="hit", le=le)
            for le in ("0.0005", "0.001", "0.0025", "120.0", "+Inf")
        }
        self.assertEqual({"0.0005": 1, "0.001": 2, "0.0025": 3, "120.0": 3, "+Inf": 4}, found)
        self.assertEqual(4, self.sample("request_seconds_count", route="frames", cache="hit"))
        self.assertAlmostEqual(500.0025, self.sample("request_seconds_sum", route="frames", cache="hit"))

    def test_methods_are_bounded(self) -> None:
        """Methods that clients make up share one series, and leave nothing behind."""
        for number in range(1000):
            self.metrics.request_finished("none", f"M{number}", 405, "", 0.1, 0)
        self.assertEqual(1000, self.sample("requests_total", route="none", method="other", status="4xx"))
        self.assertEqual(0, len(self.metrics._bound))

    def test_in_flight(self) -> None:
        """A gauge says how many requests are being answered."""
        self.metrics.request_started()
        self.metrics.request_started()
        self.metrics.request_ended()
        self.assertEqual(1, self.sample("requests_in_flight"))

    def test_operations(self) -> None:
        """Operations of the cache and of origins are counted by name and outcome, with their seconds."""
        self.metrics.cache_operation("get_many", "hit", 0.25)
        self.metrics.cache_operation("get_many", "hit", 0.5)
        self.metrics.observe("origin_operation_seconds", ("frames", "timeout"), 30.0)
        self.assertEqual(2, self.sample("cache_operation_seconds_count", operation="get_many", outcome="hit"))
        self.assertEqual(0.75, self.sample("cache_operation_seconds_sum", operation="get_many", outcome="hit"))
        self.assertEqual(1, self.sample("origin_operation_seconds_count", operation="frames", outcome="timeout"))

    def test_bytes(self) -> None:
        """Bytes are counted by their direction."""
        self.metrics.bytes_received(5)
        self.metrics.count("origin_bytes", ("in",), 7)
        self.metrics.count("origin_bytes", ("out",), 9)
        self.assertEqual(5, self.sample("client_bytes_total", direction="in"))
        self.assertEqual(7, self.sample("origin_bytes_total", direction="in"))
        self.assertEqual(9, self.sample("origin_bytes_total", direction="out"))

    def test_cache_server(self) -> None:
        """The cache's own figures are shown as it last said them."""
        self.metrics.cache_status({"connected": True, "used_bytes": 100, "max_bytes": 200, "evicted": 3})
        self.metrics.cache_status(
            {"connected": False, "used_bytes": 50, "read_from_disk": 2, "evicted": 4, "policy": "x"}
        )
        self.assertEqual(0, self.sample("cache_connected"))
        self.assertEqual(50, self.sample("cache_used_bytes"))
        self.assertEqual(4, self.sample("cache_evictions_total"))
        self.assertEqual(2, self.sample("cache_reads_total", source="disk"))

    def test_wrong_labels(self) -> None:
        """A family's labels are complete, or it is a mistake."""
        with self.assertRaises(ValueError):
            self.metrics.count("requests", ("frames",))

    def test_nothing_yet(self) -> None:
        """Before the first request every family is there with its help, none with wrong samples."""
        text = self.metrics.render().decode()
        for family in FAMILIES.values():
            self.assertIn(f"# HELP twistedproxy_{family.name}", text)
        self.assertEqual(0, self.sample("requests_in_flight"))

    def test_label_values_are_escaped(self) -> None:
        """A quote or a newline in a label does not break the text."""
        self.metrics.cache_operation('a"b\n', "\\", 1.0)
        self.assertEqual(1, self.sample("cache_operation_seconds_count", operation='a"b\n', outcome="\\"))


class MergeTests(SynchronousTestCase):
    """Several workers' numbers."""

    def test_sums(self) -> None:
        """Counters, histograms and gauges add up, also after a way through JSON."""
        one, two = Metrics(), Metrics()
        for metrics, times in ((one, 2), (two, 3)):
            for _ in range(times):
                metrics.request_started()
                metrics.request_finished("frames", "GET", 200, "hit", 0.002, 10)
        two.request_finished("search", "GET", 200, "", 0.2, 1)
        found = samples(one.render([json.loads(json.dumps(two.snapshot()))]))
        labels = (("method", "GET"), ("route", "frames"), ("status", "2xx"))
        self.assertEqual(5, found["requests_total", labels])
        self.assertEqual(5, found["requests_in_flight", ()])
        self.assertEqual(51, found["client_bytes_total", (("direction", "out"),)])
        self.assertEqual(5, found["request_seconds_count", (("cache", "hit"), ("route", "frames"))])
        self.assertEqual(1, found["request_seconds_count", (("cache", "none"), ("route", "search"))])

    def test_shared(self) -> None:
        """What all workers look at is not added up."""
        one, two = Metrics(), Metrics()
        one.cache_status({"used_bytes": 100, "evicted": 3})
        two.cache_status({"used_bytes": 110, "evicted": 4})
        found = samples(render(merge([one.snapshot(), two.snapshot()])))
        self.assertEqual(110, found["cache_used_bytes", ()])
        self.assertEqual(4, found["cache_evictions_total", ()])

    def test_merging_changes_no_source(self) -> None:
        """Snapshots stay as they were."""
        one = Metrics()
        one.request_started()
        snapshot = one.snapshot()
        before = json.dumps(snapshot)
        merge([snapshot, snapshot])
        self.assertEqual(before, json.dumps(snapshot))

    def test_unknown_family(self) -> None:
        """A worker of another version may count what we don't know."""
        self.assertEqual({}, merge([{"novelties": [[[], [1.0]]]}]))
