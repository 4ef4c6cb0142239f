"""What ``/metrics`` and ``/status.json`` say of prefetching, of all workers together. Pure: numbers in, numbers out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from twistedproxy.metrics import Snapshot

# Of running jobs, by kind: JOB fields (None: each counts 1) and the gauges that they are summed in.
_RUNNING = {
    "prefetch_jobs_running": None,
    "prefetch_frames_running": "frames",
    "prefetch_frames_wanted": "total",
    "prefetch_bytes_running": "bytes",
}


def running_gauges(jobs: Iterable[Mapping[str, Any]]) -> Snapshot:
    """The progress of running *jobs*, as gauges by kind; a kind that does not run is 0."""
    sums: dict[str, dict[str, float]] = {name: dict.fromkeys(("whole", "block", "display"), 0.0) for name in _RUNNING}
    for job in jobs:
        for name, field in _RUNNING.items():
            sums[name][job["kind"]] += 1 if field is None else job[field]
    return {name: [[[kind], [value]] for kind, value in by_kind.items()] for name, by_kind in sums.items()}


def totals(snapshot: Snapshot) -> dict[str, object]:
    """What became of prefetching since the start: *plans* by kind and reason, *ended* jobs by kind and result, *frames*
    that ended jobs loaded, by kind, and *used*, how many frames were then asked for; locks and claims that others had;
    living children."""

    def number(family: str) -> int:
        return int(sum(row[0] for _, row in snapshot.get(family, ())))

    def by_label(family: str) -> dict[str, int]:
        return {labels[0]: int(row[0]) for labels, row in snapshot.get(family, ())}

    def by_labels(family: str) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = defaultdict(dict)
        for (first, second), row in snapshot.get(family, ()):
            found[first][second] = int(row[0])
        return found

    return {
        "plans": by_labels("prefetch_plans"),
        "ended": by_labels("prefetch_jobs"),
        "frames": by_label("prefetch_frames"),
        "used": number("prefetch_frames_used"),
        "busy": number("prefetch_jobs_busy"),
        "locks_lost": number("prefetch_locks_lost"),
        "claims_lost": number("prefetch_claims_lost"),
        "children": number("prefetch_children"),
    }
