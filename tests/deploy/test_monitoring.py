"""deploy/'s alert rules and dashboard: every metric, label and value in them is one that the proxy has; promtool agrees."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from twisted.trial.unittest import SkipTest

import twistedproxy
from tests.deploy.test_manifests import DEPLOY, DeployedCase
from twistedproxy.origin.http.requests import _OUTCOMES
from twistedproxy.prefetch.jobs import Result
from twistedproxy.system.metrics import FAMILIES, FROM_CACHE

PACKAGE = Path(twistedproxy.__file__).parent
TARGET = {"job", "instance"}
"""Labels that Prometheus gives to everything that it scrapes."""

SELECTED = re.compile(r"\btwistedproxy_(\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(!?=~?)"([^"]*)"')
GROUPED = re.compile(r"\bby \(([^)]*)\)")
SUFFIXES = {"counter": ("_total",), "total": ("_total",), "histogram": ("_bucket", "_count", "_sum")}


def samples() -> dict[str, set[str]]:
    """The labels of every sample that the proxy can show, by its name without ``twistedproxy_``."""
    found = {}
    for name, family in FAMILIES.items():
        for suffix in SUFFIXES.get(family.kind, ("",)):
            found[name + suffix] = {*family.labels, *TARGET, *(["le"] if suffix == "_bucket" else [])}
    return found


def values(label: str) -> set[str]:
    """What *label* can say: of those that are compared with fixed values."""
    sources = [path.read_text("utf-8") for path in sorted((PACKAGE / "dicomweb").glob("*.py"))]
    routes = {name for text in sources for name in re.findall(r'@answered\("(\w+)"\)', text)}
    known = {
        "route": {*routes, "healthz", "readyz", "metrics", "status"},
        "status": {f"{hundred}xx" for hundred in range(1, 6)},
        "cache": {*FROM_CACHE, "partial", "miss", "collapsed", "none"},
        "outcome": {"ok", "failed", "hit", "partial", "miss", "lost", *(name for _, name in _OUTCOMES)},
        "result": {result.value for result in Result},
    }
    return known[label]


def mistakes(expression: str) -> Iterator[str]:
    """What *expression* names and the proxy does not have."""
    known, grouping = samples(), set()
    for name, matchers in SELECTED.findall(expression):
        if name not in known:
            yield f"no metric {name}"
            continue
        grouping |= known[name]
        for label, _, text in MATCHER.findall(matchers):
            if label not in known[name]:
                yield f"{name} has no label {label}"
            elif label not in TARGET:
                yield from (f"{label} is never {value}" for value in set(text.split("|")) - values(label))
    for labels in GROUPED.findall(expression):
        yield from (f"nothing has the label {label}" for label in {*re.findall(r"\w+", labels)} - grouping - TARGET)


def alerts() -> list[Any]:
    """The alert rules."""
    groups = yaml.safe_load((DEPLOY / "prometheus-alerts.yml").read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> Any:
    """The dashboard."""
    return json.loads((DEPLOY / "grafana-dashboard.json").read_text("utf-8"))


def queries() -> list[str]:
    """The expressions of all its panels."""
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]


class MetricTests(DeployedCase):
    """Names and labels."""

    def test_checker(self) -> None:
        """A wrong name, label, value or grouping is found."""
        for wrong, found in (
            ("rate(twistedproxy_request_total[5m])", "no metric request_total"),
            ("twistedproxy_requests", "no metric requests"),
            ('twistedproxy_requests_total{cache="hit"}', "requests_total has no label cache"),
            ('twistedproxy_requests_total{route=~"frames|frame"}', "route is never frame"),
            ("sum by (le) (twistedproxy_requests_total)", "nothing has the label le"),
        ):
            self.assertEqual([found], list(mistakes(wrong)))

    def test_alerts(self) -> None:
        """Alerts name what exists, and have what a receiver needs."""
        for rule in alerts():
            self.assertEqual([], list(mistakes(rule["expr"])), rule["alert"])
            self.assertTrue(rule["annotations"]["summary"] and rule["labels"]["severity"] in ("warning", "critical"))

    def test_dashboard(self) -> None:
        """So does the dashboard, in its variables too."""
        for query in (*queries(), *(str(one["query"]) for one in dashboard()["templating"]["list"])):
            self.assertEqual([], list(mistakes(query)), query)

    def test_all_are_shown(self) -> None:
        """Every metric has its place on the dashboard, except bytes of running jobs, and processes."""
        shown = {name for query in queries() for name, _ in SELECTED.findall(query)}
        missing = {
            family for family in FAMILIES if not shown & {family + end for end in ("", "_total", "_bucket", "_count")}
        }
        self.assertEqual({"prefetch_bytes_running", "prefetch_children"}, missing)

    def test_layout(self) -> None:
        """No panel covers another one, and each has an id of its own."""
        panels = dashboard()["panels"]
        self.assertEqual(len(panels), len({panel["id"] for panel in panels}))
        cells = [
            (x, y)
            for place in (panel["gridPos"] for panel in panels)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        self.assertEqual((len(cells), True), (len(set(cells)), all(x < 24 for x, _ in cells)))

    def test_job(self) -> None:
        """The job is called as the alerts have it, and Prometheus reads them."""
        settings = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))
        [job] = settings["scrape_configs"]
        self.assertEqual("twistedproxy", job["job_name"])
        self.assertTrue((DEPLOY / settings["rule_files"][0]).is_file())


class PromtoolTests(DeployedCase):
    """What Prometheus' own tool says."""

    def setUp(self) -> None:
        super().setUp()
        if shutil.which("promtool") is None:
            raise SkipTest("promtool is not installed")
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        for path in (*DEPLOY.glob("prometheus*.yml"), Path(__file__).with_name("alerts.yml")):
            shutil.copy(path, self.folder)

    def promtool(self, *arguments: str) -> str:
        """What it prints; a failure of it is one of the test."""
        done = subprocess.run(["promtool", *arguments], cwd=self.folder, capture_output=True, text=True, timeout=60)
        self.assertEqual(0, done.returncode, done.stdout + done.stderr)
        return done.stdout

    def test_configuration(self) -> None:
        """prometheus.yml and the rules are valid."""
        self.assertIn(f"{len(alerts())} rules found", self.promtool("check", "config", "prometheus.yml"))

    def test_firing(self) -> None:
        """Alerts fire when they should and not when they should not: alerts.yml has the cases."""
        self.assertIn("SUCCESS", self.promtool("test", "rules", "alerts.yml"))

    def test_dashboard(self) -> None:
        """The dashboard's expressions are valid."""
        texts = [query.replace("$__rate_interval", "5m") for query in queries()]
        rules = [{"record": f"query:number{number}", "expr": text} for number, text in enumerate(texts)]
        (self.folder / "queries.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
        self.promtool("check", "rules", "queries.yml")
