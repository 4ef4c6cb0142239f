"""Using the proxy's own page: pointer and keys, axe-core, and what it says when the proxy, the store or a password fails."""

from __future__ import annotations

import base64
import os
import signal
from collections.abc import Callable, Mapping

from tests.browser.looking import Found
from tests.browser.page import DRAWN, OVERLAY, Series, enter
from tests.browser.remote import Browser
from tests.running import Proxy

SHIFT = 0.02  # of the layout; browsers call 0.1 good
FIRST_TILE = 1500.0  # ms after the address was entered, where the machine is not busy with other things
OPENINGS = 3
SERIOUS = ("serious", "critical")


def using(browser: Browser, series: Series) -> Found:
    """Wheel, keys, map, overlay and color profile do what they say."""
    problems = []
    enter(browser, f"{series.route}?x=6000&y=4000&zoom=0.25")
    box = browser.evaluate(
        "const { x, y, width, height } = document.querySelector('.stage').getBoundingClientRect(); return [x, y, width, height]"
    )

    def view() -> dict[str, float]:
        browser.evaluate("await new Promise((done) => setTimeout(done, 600))")
        query = browser.evaluate("return location.hash.split('?')[1]")
        return {name: float(value) for name, value in (part.split("=") for part in query.split("&"))}

    def check(what: str, right: bool) -> None:
        problems.extend([] if right else [f"{what}: {view()}"])

    browser.ask("wheel", [box[0] + 200, box[1] + 150, -2])
    zoomed = view()
    under = [(200 - box[2] / 2, "x", 6000), (150 - box[3] / 2, "y", 4000)]
    stays = all(abs(zoomed[name] + away / zoomed["zoom"] - (at + away / 0.25)) < 5 for away, name, at in under)
    check("the wheel zooms about the pointer", zoomed["zoom"] > 0.3 and stays)
    browser.evaluate("document.querySelector('.stage').focus()")
    browser.ask("press", ["ArrowRight", "ArrowDown"])
    moved = view()
    check("arrow keys move", moved["x"] > zoomed["x"] and moved["y"] > zoomed["y"])
    browser.ask("press", ["-"])
    check("minus zooms out", view()["zoom"] < moved["zoom"])
    browser.ask("drag", [box[0] + 300, box[1] + 300, 100, 0])
    check("dragging moves", view()["x"] < moved["x"])
    browser.ask("click", [box[0] + 300, box[1] + 300, 2])
    check("a double click zooms in", view()["zoom"] > moved["zoom"])
    browser.ask("click", [box[0] + box[2] - 20, box[1] + 20])
    check("the map leads to its upper right corner", view()["x"] > 10_000 and view()["y"] < 1500)
    browser.ask("press", ["0"])
    check("0 shows all of it", abs(view()["x"] - 6144) < 1)
    browser.ask("press", ["o"])
    browser.evaluate("await new Promise((done) => setTimeout(done, 200))")
    shown = browser.evaluate(OVERLAY)["pixels"]
    check("O hides the overlay", not any(base64.b64decode(shown)))
    browser.ask("press", ["o"])
    browser.evaluate("document.querySelector('.tools input').click()")
    browser.wait("performance.getEntriesByType('resource').some(({ name }) => /rendered.iccprofile=srgb/.test(name))")
    browser.wait(DRAWN)
    browser.evaluate("document.querySelector('.tools input').click()")
    return Found(
        f"using it, page in {browser.kind}",
        ["wheel, keys, drag, double click, map, overlay, profile"],
        problems + browser.trouble(),
    )


def loop(browser: Browser, series: Series) -> Found:
    """A loop plays, and its frames can be reached by keys."""
    enter(browser, f"{series.route}?slice=2")
    number = "Number(document.querySelector('.slices').getAttribute('aria-valuenow'))"
    browser.evaluate("document.querySelector('.slices').focus()")
    browser.ask("press", ["End"])
    browser.wait(f"{number} === 12")
    browser.ask("press", ["Home"])
    browser.wait(f"{number} === 1")
    browser.evaluate(
        "[...document.querySelectorAll('.tools button')].find((one) => /Play/.test(one.textContent)).click()"
    )
    browser.wait(f"{number} > 5")
    browser.wait(f"{number} < 4")
    return Found(f"a loop plays, page in {browser.kind}", [], browser.trouble())


def opening(browser: Browser, series: Series) -> Found:
    """How soon the first tile is there after the address was entered: the first time, and again."""
    took = []
    for _ in range(OPENINGS):
        browser.goto(f"{series.proxy.url}/{series.route}")
        browser.wait(DRAWN)
        took.append(browser.evaluate(_FIRST_TILE))
    problems = [f"the first tile never came within {FIRST_TILE:.0f} ms"] if min(took) > FIRST_TILE else []
    said = f"first tile after {', '.join(f'{one:.0f}' for one in took)} ms"
    return Found(f"opening, page in {browser.kind}", [said], problems)


_FIRST_TILE = """
const [tile] = performance.getEntriesByType('resource').filter(({ name }) => /frames/.test(name));
return tile.responseEnd;
"""


def usable(browser: Browser, url: str, routes: Mapping[str, str]) -> Found:
    """What axe-core finds in each view, and whether anything moved while it was opened."""
    lines, problems = [], []
    for name, route in routes.items():
        browser.goto(f"{url}/{route}")
        browser.wait("document.querySelector('main h1') !== null")
        shift = browser.evaluate(_SHIFT)
        found = browser.ask("axe")
        moved = "not measured" if shift is None else f"{shift:.4f}"
        lines.append(f"{name}: axe-core: {', '.join(one['id'] for one in found) or 'nothing'}; layout shift: {moved}")
        problems += [f"{name}: {one['id']}: {one['nodes']}" for one in found if one["impact"] in SERIOUS]
        problems += [f"{name}: the layout shifted by {shift:.3f}"] if (shift or 0) > SHIFT else []
    return Found(f"usable, page in {browser.kind}", lines, problems)


_SHIFT = """
let shift = PerformanceObserver.supportedEntryTypes.includes('layout-shift') ? 0 : null;
const add = (list) => {
  for (const { value, hadRecentInput } of list.getEntries()) if (!hadRecentInput) shift += value;
};
if (shift !== null) new PerformanceObserver(add).observe({ type: 'layout-shift', buffered: true });
await new Promise((done) => setTimeout(done, 3500));
return shift;
"""


def refused(browser: Browser, proxy: Proxy, user: str) -> Found:
    """Somebody who has a wrong password is told so."""
    browser.ask("authenticate", {"username": user, "password": "guess"})
    browser.goto(f"{proxy.url}/")
    browser.wait("/login/.test(document.querySelector('main section .state')?.textContent)")
    said = browser.evaluate("return document.querySelector('main section .state').textContent")
    browser.trouble()
    return Found(f"a wrong password, page in {browser.kind}", [said], [])


def lost_proxy(browser: Browser, series: Series, again: Callable[[], object]) -> Found:
    """The proxy ends, and starts again with *again*: the page says so, and goes on."""
    browser.goto(f"{series.proxy.url}/{series.route}")
    browser.wait(DRAWN)
    series.proxy.stop()
    browser.wait("!document.getElementById('banner').hidden")
    said = browser.evaluate("return document.querySelector('#banner span').textContent")
    again()
    browser.wait("document.getElementById('banner').hidden")
    enter(browser, f"{series.route}?x=2000&y=2000&zoom=1")
    browser.trouble()
    return Found(
        f"the proxy ends, page in {browser.kind}", [said], [] if "does not answer" in said else [f"said {said!r}"]
    )


def lost_store(browser: Browser, series: Series, pid: int) -> Found:
    """The store, process *pid*, stops answering for a while."""
    browser.goto(f"{series.proxy.url}/{series.route}")
    browser.wait(DRAWN)
    os.kill(pid, signal.SIGSTOP)
    try:
        browser.wait("!document.getElementById('banner').hidden")
        said = browser.evaluate("return document.querySelector('#banner span').textContent")
    finally:
        os.kill(pid, signal.SIGCONT)
    browser.wait("document.getElementById('banner').hidden")
    browser.trouble()
    right = "cannot be reached" in said and series.prefix in said
    return Found(f"the store does not answer, page in {browser.kind}", [said], [] if right else [f"said {said!r}"])
