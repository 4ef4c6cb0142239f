"""The proxy's own page in a browser: whether what it draws is what the files hold, and what it says is true.

Slides, a CT and an ultrasound loop. `tests.browser.page_use` is about using it.
"""

from __future__ import annotations

import base64
import io
import json
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy
from PIL import Image

from tests.browser.comparing import worst_block
from tests.browser.looking import Found
from tests.browser.remote import Browser
from tests.browser.slides import Pixels, Truth
from tests.running import Proxy

CLOSEST = 4.0  # levels of 255 that a block of 64 x 64 pixels may differ by; 30 and more are seen one tile away
COLORS = {"cached": (0, 137, 123), "store": (142, 36, 170), "loading": (21, 101, 192), "claimed": (230, 120, 0)}
DRAWN = """document.querySelector('main:not([aria-busy]) .stage[aria-busy="false"]') !== null"""


@attrs.frozen
class Series:
    """A series behind a proxy. *mount*: its number on the page."""

    proxy: Proxy
    prefix: str
    study: str
    uid: str
    mount: int = 0
    headers: Mapping[str, str] = {}

    @property
    def route(self) -> str:
        return f"#/m/{self.mount}/studies/{self.study}/series/{self.uid}"

    @property
    def url(self) -> str:
        return f"{self.proxy.url}{self.prefix}/studies/{self.study}/series/{self.uid}"

    def coverage(self) -> Any:
        """What the proxy says it has of it."""
        return _json(f"{self.url}/coverage", self.headers)


def _json(url: str, headers: Mapping[str, str]) -> Any:
    request = urllib.request.Request(url, headers={"Accept": "application/json", **headers})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        return json.load(answer)


def series_of(proxy: Proxy, prefix: str, modality: str, mount: int = 0, headers: Mapping[str, str] = {}) -> Series:
    """The first series of a modality behind *proxy*."""
    found = _json(f"{proxy.url}{prefix}/series?Modality={modality}", {**headers, "Accept": "application/dicom+json"})
    study, uid = (found[0][tag]["Value"][0] for tag in ("0020000D", "0020000E"))
    return Series(proxy, prefix, study, uid, mount, headers)


def enter(browser: Browser, route: str) -> None:
    """Go to another view of the open page that has a picture, and wait until it is drawn."""
    browser.evaluate(f"""
        const left = new Promise((done) => addEventListener('hashchange', done, {{ once: true }}));
        location.hash = {json.dumps(route)};
        await left;
    """)
    browser.wait(DRAWN)


def picture(browser: Browser) -> Pixels:
    """What is drawn, in device pixels, without what lies over it."""
    drawn = browser.evaluate("return document.querySelector('canvas.picture').toDataURL('image/png').split(',')[1]")
    return numpy.asarray(Image.open(io.BytesIO(base64.b64decode(drawn))).convert("RGB"))


def slide(browser: Browser, title: str, series: Series, files: Sequence[Path], folder: Path) -> Iterator[Found]:
    """Three levels, five places of each, one file a level, the largest first; then what is drawn over it."""
    truths = [Truth(path) for path in files]
    base = truths[0]
    browser.goto(f"{series.proxy.url}/{series.route}")
    browser.wait(DRAWN)
    lines, problems = [], []
    for truth in truths:
        width, height = browser.evaluate(
            "const c = document.querySelector('canvas.picture'); return [c.width, c.height]"
        )
        worst = 0.0
        for left, top in places(truth, width, height):
            scale = base.width / truth.width
            x, y = (left + width / 2) * scale, (top + height / 2) * base.height / truth.height
            enter(browser, f"{series.route}?x={x!r}&y={y!r}&zoom={1 / scale!r}")
            path = folder / f"{browser.kind}-view.png"
            Image.fromarray(picture(browser)[max(-top, 0) :, max(-left, 0) :]).save(path)
            worst = max(worst, worst_block(path, truth, max(left, 0), max(top, 0)))
        lines.append(f"{truth.width} x {truth.height}, five places: no block differs by more than {worst:.2f} levels")
        if not worst <= CLOSEST:
            problems.append(f"what is drawn of {truth.width} x {truth.height} is not the slide: {worst:.1f} levels")
    problems += browser.trouble()
    yield Found(f"{title}, page in {browser.kind}", lines, problems)
    yield overlay(browser, title, series, base)


def places(truth: Truth, width: int, height: int) -> list[tuple[int, int]]:
    """Left and top of five views of *width* x *height* pixels whose middle is in the slide; they may begin before it."""
    middles = ((0.03, 0.04), (0.96, 0.1), (0.1, 0.97), (0.9, 0.93), (0.43, 0.4))
    return [(round(truth.width * x - width / 2), round(truth.height * y - height / 2)) for x, y in middles]


def overlay(browser: Browser, title: str, series: Series, base: Truth) -> Found:
    """Whether tints and words are what the proxy says of the frames that are in view."""
    zoom, side = 0.5, 256
    x, y = base.width // 2, base.height // 2
    enter(browser, f"{series.route}?x={x}&y={y}&zoom={zoom}")
    browser.wait("/frames in view/.test(document.querySelector('aside .state').textContent)")
    problems: list[str] = []
    for _ in range(20):  # the proxy may still load: what is compared has to be of one moment
        before = series.coverage()
        browser.evaluate("await new Promise((done) => setTimeout(done, 500))")
        shown = browser.evaluate(OVERLAY)
        if before["instances"] == series.coverage()["instances"]:
            break
    else:
        return Found(f"{title}, overlay in {browser.kind}", [], ["what is cached did not come to rest"])
    instance = max(before["instances"], key=lambda uid: before["instances"][uid]["frames"])
    known, across = before["instances"][instance], -(-base.width // side)
    counted = dict.fromkeys(("cached", "loading", "claimed", "absent"), 0)
    for row, column in _in_view(base, (x, y), shown["size"], zoom, side):
        frame = row * across + column + 1
        states = [name for name in ("cached", "loading", "claimed") if _holds(known[name], frame)]
        state = (states or ["absent"])[0]
        counted[state] += 1
        left = round((column * side - x) * zoom + shown["size"][0] / 2) + 1
        middle = round(((row + 0.5) * side - y) * zoom + shown["size"][1] / 2)
        if not (2 <= left < shown["size"][0] - 2 and 2 <= middle < shown["size"][1] - 2):
            continue
        tint = _tint(shown["pixels"], left, middle, shown["size"][0])
        if tint != state and not (tint == "store" and state in ("cached", "absent")):
            problems.append(f"frame {frame} is {state}, and drawn as {tint}")
    expected = f"{sum(counted.values())} frames in view: {counted['cached']} cached, {counted['loading']} being loaded"
    if not shown["words"].startswith(expected):
        problems.append(f"{shown['words']!r}; expected {expected!r}")
    held = sorted(_held(one) for one in before["instances"].values())
    if sorted(shown["levels"]) != held:
        problems.append(f"the levels are shown as {shown['levels']}; expected {held}")
    lines = [shown["words"], f"of the levels: {', '.join(shown['levels'])}"]
    return Found(f"{title}, overlay in {browser.kind}", lines, problems[:5] + browser.trouble())


def _held(instance: Mapping[str, Any]) -> str:
    return f"{total(instance['cached']):,} of {instance['frames']:,}"


OVERLAY = """
const canvas = document.querySelector('canvas.overlay');
const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
const words = document.querySelector('aside .state').textContent;
let text = '';
for (let at = 0; at < data.length; at += 32768) text += String.fromCharCode(...data.subarray(at, at + 32768));
const levels = [...document.querySelectorAll('.shares .figure')].map((one) => one.textContent);
return { size: [canvas.width, canvas.height], words, levels, pixels: btoa(text) };
"""


def _in_view(
    base: Truth, middle: tuple[int, int], size: Sequence[int], zoom: float, side: int
) -> Iterator[tuple[int, int]]:
    ranges = []
    for at, pixels, most in ((middle[1], size[1], base.height), (middle[0], size[0], base.width)):
        half = pixels / 2 / zoom
        first, last = max(0, int((at - half) // side)), min(-(-most // side), int(-(-(at + half) // side)))
        ranges.append(range(first, last))
    return ((row, column) for row in ranges[0] for column in ranges[1])


def total(runs: Sequence[Sequence[int]]) -> int:
    """Frames in inclusive runs."""
    return sum(last - first + 1 for first, last in runs)


def _holds(runs: Sequence[Sequence[int]], frame: int) -> bool:
    return any(first <= frame <= last for first, last in runs)


def _tint(pixels: str, x: int, y: int, width: int) -> str:
    """The state whose color is drawn there."""
    drawn = numpy.frombuffer(base64.b64decode(pixels), numpy.uint8).reshape(-1, width, 4)
    *color, opacity = (int(value) for value in drawn[y, x])
    if opacity < 60:
        return "absent"
    return min(COLORS, key=lambda name: sum(abs(a - b) for a, b in zip(COLORS[name], color)))


def stack(browser: Browser, title: str, series: Series, slices: Sequence[Pixels], numbers: Sequence[int]) -> Found:
    """Slices by their numbers from 1: what is drawn is that slice and no other, stretched to the window."""
    browser.goto(f"{series.proxy.url}/{series.route}")
    browser.wait(DRAWN)
    problems, lines = [], []
    right = [_small(Image.fromarray(one).convert("RGB")) for one in slices]
    for number in numbers:
        enter(browser, f"{series.route}?slice={number}")
        drawn, (rows, columns) = picture(browser), slices[number - 1].shape[:2]
        scale = min(drawn.shape[1] / columns, drawn.shape[0] / rows)
        width, height = round(columns * scale), round(rows * scale)
        left, top = (drawn.shape[1] - width) // 2, (drawn.shape[0] - height) // 2
        seen = _small(Image.fromarray(drawn[top : top + height, left : left + width]))
        differences = [float(abs(seen - one).mean()) for one in right]
        nearest = differences.index(min(differences)) + 1
        lines.append(f"slice {number}: differs by {differences[number - 1]:.2f} levels on average")
        if nearest != number or not differences[number - 1] <= CLOSEST:
            problems.append(f"slice {number} is drawn as {nearest}: {min(differences):.1f} levels")
    if browser.evaluate("return document.querySelector('.tools select') !== null"):
        browser.evaluate(_FIRST_WINDOW)
        browser.wait("performance.getEntriesByType('resource').some(({ name }) => /rendered.window=/.test(name))")
        browser.wait(DRAWN)
    return Found(f"{title}, page in {browser.kind}", lines, problems + browser.trouble())


_FIRST_WINDOW = """
const select = document.querySelector('.tools select');
select.selectedIndex = 1;
select.dispatchEvent(new Event('change'));
"""


def marks(browser: Browser, title: str, series: Series) -> Found:
    """Whether the marks beside a stack of single frames, which is open, are what the proxy says of each slice."""
    browser.evaluate("await new Promise((done) => setTimeout(done, 1000))")
    known = series.coverage()["instances"]
    order = browser.evaluate(_ORDER % json.dumps(f"{series.url}/metadata".removeprefix(series.proxy.url)))
    shown = browser.evaluate(OVERLAY.replace("canvas.overlay", "canvas.marks"))
    width, height = shown["size"]
    problems = []
    for index, uid in enumerate(order):
        state = "cached" if uid in known and _holds(known[uid]["cached"], 1) else "absent"
        tint = _tint(shown["pixels"], 1, round((index + 0.5) * height / len(order)), width)
        if tint != state and not (tint == "store" and state == "cached"):
            problems.append(f"slice {index + 1} is {state}, and marked as {tint}")
    cached = sum(total(one["cached"]) for one in known.values())
    expected = f"{len(order)} frames: {cached} cached, 0 being loaded, 0 queued, {len(order) - cached} not cached."
    if shown["words"] != expected or not 0 < cached < len(order):
        problems.append(f"{shown['words']!r}; expected {expected!r}, and some of either")
    return Found(f"{title}, marks in {browser.kind}", [shown["words"]], problems[:5] + browser.trouble())


_ORDER = """
const answer = await fetch(%s, { headers: { Accept: 'application/dicom+json' } });
const placed = (await answer.json()).map((one) => [one['00200032'].Value[2], one['00080018'].Value[0]]);
return placed.sort((a, b) => a[0] - b[0]).map(([, uid]) => uid);
"""


def _small(image: Image.Image) -> Any:
    return numpy.asarray(image.resize((64, 64), Image.Resampling.BOX), int)
