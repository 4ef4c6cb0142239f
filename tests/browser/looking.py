"""What happened when a browser looked at a slide, and what is wrong with it."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from tests.benchmarks.measuring import percentile
from tests.browser.comparing import MOST, is_blank, worst_block
from tests.browser.installing import chromium
from tests.browser.slides import Truth
from tests.running import Child, tied

DRIVE_SECONDS = 180.0
HIT = "twistedproxy; hit"


@attrs.frozen
class Found:
    """Lines to be told, and *problems*: none if all is well."""

    title: str
    lines: list[str]
    problems: list[str]


def drive(folder: Path, script: str, profile: str, asked: Mapping[str, Any]) -> Any:
    """What *script* in *folder* prints. Raises RuntimeError with what it says if it fails."""
    place = folder / f"profile-{profile}"
    shutil.rmtree(place, ignore_errors=True)
    more = {**asked, "chromium": chromium(), "profile": str(place)}
    command = tied(["node", script, json.dumps(more)])
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DRIVE_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{script}: {done.stderr[-3000:]}")
    return json.loads(done.stdout)


def accesses(proxy: Child, start: int = 0) -> list[dict[str, Any]]:
    """The answered requests in *proxy*'s log, behind its first *start*."""
    lines = (line for line in proxy.output().splitlines() if '"event":"access"' in line)
    return [json.loads(line) for line in lines][start:]


def openseadragon(title: str, seen: Any, truth: Truth, answered: Sequence[Mapping[str, Any]], screen: str) -> Found:
    """Judge what `openseadragon.mjs` printed. *answered*: what the proxy logged meanwhile."""
    problems = trouble(seen)
    blank = [name for name in ("moved", "whole") if is_blank(Path(f"{screen}-{name}.png"))]
    problems += [f"nothing is drawn: {name}" for name in blank]
    tiles = seen["tiles"]
    problems += [f"no Cache-Status to be read: {tile['url']}" for tile in tiles if not tile["cacheStatus"]]
    lines = [f"levels: {', '.join('{width} x {height}'.format(**level) for level in seen['levels'])}"]
    for view in seen["views"]:
        worst = worst_block(Path(view["picture"]), truth, view["left"], view["top"])
        lines.append(f"at {view['left']}, {view['top']}: no block differs by more than {worst:.2f} levels")
        if not worst <= MOST:
            problems.append(f"what is drawn at {view['left']}, {view['top']} is not the slide: {worst:.1f} levels")
    hits = [tile["milliseconds"] for tile in tiles if HIT in (tile["cacheStatus"] or "")]
    others = [tile["milliseconds"] for tile in tiles if HIT not in (tile["cacheStatus"] or "")]
    lines.append(f"tiles: {len(tiles)}, {len(hits) / max(len(tiles), 1):.1%} from the cache")
    lines += [times("in the page, from the cache", hits), times("in the page, others", others)]
    lines += served(answered)
    if not any(one["method"] == "OPTIONS" for one in answered):
        problems.append("no preflight was sent: nothing crossed origins")
    return Found(title, lines, problems)


def microscopy(title: str, seen: Any, answered: Sequence[Mapping[str, Any]], screen: str) -> Found:
    """Judge what `microscopy.mjs` printed."""
    problems = trouble(seen)
    names = ("whole", "moved", "overview")
    problems += [f"nothing is drawn: {name}" for name in names if is_blank(Path(f"{screen}-{name}.png"))]
    frames, answers = seen["frames"], seen["answers"]
    if frames["failed"] or frames["ended"] != frames["started"]:
        problems.append(f"frames: {frames}")
    types = sorted({answer["type"].partition("; boundary")[0] for answer in answers})
    hits = sum(HIT in (answer["cacheStatus"] or "") for answer in answers)
    share = f"{hits / max(len(answers), 1):.1%} of the answers from the cache"
    lines = [f"frames decoded by the viewer: {frames['ended']}; {share}", *(f"answers: {one}" for one in types)]
    return Found(title, lines + served(answered), problems)


def trouble(seen: Any) -> list[str]:
    """What the browser complained of."""
    complaints = [f"console: {text}" for text in seen["errors"]]
    return complaints + [f"request: {text}" for text in seen["failed"]]


def served(answered: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the proxy's own log says of the same requests."""
    found = [
        times("in the proxy, preflights", [one["seconds"] * 1e3 for one in answered if one["method"] == "OPTIONS"])
    ]
    frames = [one for one in answered if one["method"] == "GET" and "/frames/" in one["path"]]
    for outcome in sorted({one["cache"] for one in frames}):
        took = [one["seconds"] * 1e3 for one in frames if one["cache"] == outcome]
        found.append(times(f"in the proxy, {outcome}", took))
    return found


def times(what: str, milliseconds: Sequence[float]) -> str:
    """One line about durations."""
    if not milliseconds:
        return f"{what}: none"
    middle, late = statistics.median(milliseconds), percentile(milliseconds, 0.95)
    return f"{what}: {len(milliseconds)}, p50 {middle:.1f} ms, p95 {late:.1f} ms"
