"""Everything that is looked at in the proxy's own page, in Chromium and in Firefox, as far as they are installed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy
import psutil
import pydicom
from pydicom.uid import generate_uid

from tests import slides
from tests.browser import page, page_use
from tests.browser.looking import Found
from tests.browser.page import DRAWN, Series, series_of
from tests.browser.remote import Browser
from tests.browser.slides import Pixels, as_jpeg2000, sample_files
from tests.running import Proxy, Store
from tests.stores import orthanc
from tests.stores.orthanc import Orthanc, basic

USER, PASSWORD = "ann", "a-secret-of-hers"
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
SLICES, SIDE = 40, 128
WINDOW = 20000, 30000  # center and width of the slices
ZOOMS = 2, 6  # double notches of the wheel, from all of the slide, where a walk begins
DRAGS = 40  # between two looks at the memory
STATIC_VIEWS = {"studies": "#/", "status": "#/status", "connect": "#/connect"}
GROWTH = 1.3  # of what the page holds, from the second quarter of the walk to the last


@contextmanager
def proxied(*options: str, port: int | None = None) -> Iterator[Proxy]:
    """A proxy with its page."""
    # The machine may be busy with other things: that must not make whole-instance loads into block loads.
    load = ["--whole-instance-max-cpu", "100", "--whole-instance-max-memory", "100"]
    proxy = Proxy(*options, "--log-format", "json", *load, port=port)
    try:
        yield proxy.wait_until_ready()
    finally:
        proxy.stop()
        proxy.remove()


def tour(folder: Path, kind: str) -> Iterator[Found]:
    """All of it in one browser."""
    files = sample_files()
    made = folder / "made"
    made.mkdir(exist_ok=True)
    yield Found(f"{kind}", [str(_version(folder, kind))], [])
    ct, us = computed_tomography(made), ultrasound(made)
    with proxied("--origin", "sample:") as proxy, Browser(folder, kind) as browser:
        sample = series_of(proxy, "/dicomweb", "SM")
        yield page_use.opening(browser, sample)
        yield from page.slide(browser, "sample", sample, files, folder)
        yield page_use.using(browser, sample)
        yield from accessible(folder, kind, sample, STATIC_VIEWS)
    # Without prefetch a part of the stack is not cached, and must be shown so.
    with proxied("--origin", f"file:{made}", "--prefetch", "off") as proxy, Browser(folder, kind) as browser:
        _wait_for_files(proxy, "CT", "US")
        stack = series_of(proxy, "/dicomweb", "CT")
        yield page.stack(browser, "CT", stack, ct, (1, SLICES))
        yield page.marks(browser, "CT", stack)
        yield page.stack(browser, "ultrasound", series_of(proxy, "/dicomweb", "US"), us, (1, 7))
        yield page_use.loop(browser, series_of(proxy, "/dicomweb", "US"))
        yield from accessible(folder, kind, stack, {})
    yield from in_orthanc(folder, kind)
    yield proxy_ends(folder, kind)


def _version(folder: Path, kind: str) -> Any:
    with Browser(folder, kind) as browser:
        return browser.ask("version")


def accessible(folder: Path, kind: str, series: Series, others: Mapping[str, str]) -> Iterator[Found]:
    """axe-core in light and dark, wide and narrow: a series, its study, and *others*."""
    routes = {"series": series.route, "study": series.route.split("/series/")[0], **others}
    for dark, width in ((False, 1280), (True, 390)):
        with Browser(folder, kind, width=width, dark=dark, still=dark, profile="axe") as browser:
            found = page_use.usable(browser, series.proxy.url, routes)
            yield Found(f"{found.title}, {width} pixels, {'dark' if dark else 'light'}", found.lines, found.problems)


def in_orthanc(folder: Path, kind: str) -> Iterator[Found]:
    """A JPEG 2000 slide in an Orthanc that asks for a password; what the page says without one; Orthanc stops answering."""
    if not orthanc.available():
        yield Found("Orthanc", ["not installed: its slide is left out"], [])
        return
    files = as_jpeg2000(sample_files(), folder)
    with ExitStack() as ending:
        store = Orthanc(users={USER: PASSWORD})
        ending.callback(store.stop)
        store.start().store(*files)
        proxy = ending.enter_context(proxied("--origin", store.url))
        series = series_of(proxy, "/dicomweb", "SM", headers={"Authorization": basic(USER, PASSWORD)})
        with Browser(folder, kind) as browser:
            yield page_use.refused(browser, proxy, USER)
        with Browser(folder, kind) as browser:
            browser.ask("authenticate", {"username": USER, "password": PASSWORD})
            browser.goto(f"{proxy.url}/{series.route}")
            browser.wait(DRAWN)
            browser.trouble()  # the first request is answered with 401: the browser learns that a password is needed
            yield from page.slide(browser, "JPEG 2000 in Orthanc", series, files, folder)
            yield page_use.lost_store(browser, series, store.pid)


def proxy_ends(folder: Path, kind: str) -> Found:
    """The proxy ends and is started again while its page is open."""
    with ExitStack() as ending:
        proxy = ending.enter_context(proxied("--origin", "sample:"))
        series = series_of(proxy, "/dicomweb", "SM")
        browser = ending.enter_context(Browser(folder, kind))
        options = ("--origin", "sample:")
        return page_use.lost_proxy(browser, series, lambda: ending.enter_context(proxied(*options, port=proxy.port)))


def computed_tomography(folder: Path) -> list[Pixels]:
    """A CT in *folder*, its instance numbers against its positions; how its slices look, in the order of the positions."""
    study, series = generate_uid(), generate_uid()
    shown = []
    center, width = WINDOW
    for place in range(SLICES):
        position = {"ImagePositionPatient": [0, 0, 2.5 * place], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        extra = {
            **position,
            "InstanceNumber": SLICES - place,
            "WindowCenter": center,
            "WindowWidth": width,
            "FrameTime": None,
        }
        extra |= {"PixelSpacing": [0.7, 0.7], "FrameIncrementPointer": None}
        made = slides.multi_frame(
            folder / f"ct-{place}.dcm",
            1,
            SIDE,
            SIDE,
            "raw-16",
            sop_class=CT_CLASS,
            modality="CT",
            study=study,
            series=series,
            patient="STACK",
            extra=extra,
        )
        data = pydicom.dcmread(made.path)
        values = numpy.roll(data.pixel_array, 5 * place, axis=1)
        data.PixelData = values.tobytes()
        data.save_as(made.path)
        # PS3.3 C.11.2.1.2.1
        gray = ((values - (center - 0.5)) / (width - 1) + 0.5) * 255
        shown.append(numpy.clip(gray, 0, 255).astype(numpy.uint8))
    return shown


def ultrasound(folder: Path) -> list[Pixels]:
    """A loop in *folder*, and its frames."""
    made = slides.loop(folder / "us.dcm", 12, 192, 256)
    return [frame.astype(numpy.uint8) for frame in pydicom.dcmread(made.path).pixel_array]


def _wait_for_files(proxy: Proxy, *modalities: str) -> None:
    """Until the folder's new files are known."""
    for modality in modalities:
        for _ in range(6000):
            try:
                series_of(proxy, "/dicomweb", modality)
            except LookupError:
                continue
            break


def panning(folder: Path, kind: str, minutes: float) -> Found:
    """A reader pans and zooms about the sample slide for *minutes*: whether what the tab holds grows."""
    chance = random.Random(7)
    rows: list[tuple[float, ...]] = []
    with proxied("--origin", "sample:") as proxy, Browser(folder, kind) as browser:
        series = series_of(proxy, "/dicomweb", "SM")
        browser.ask("before", _COUNT_BITMAPS)
        browser.goto(f"{proxy.url}/{series.route}")
        browser.wait(DRAWN)
        began = browser.evaluate("return performance.now()")
        while not rows or rows[-1][0] < minutes:
            _walk(browser, chance)
            heap = browser.ask("heap") or 0
            held, now = browser.evaluate("return [window.bitmaps, performance.now()]")
            rows.append(
                (
                    (now - began) / 60_000,
                    heap / 1e6,
                    held["pixels"] * 4 / 1e6,
                    held["open"],
                    held["made"],
                    _resident(browser),
                )
            )
        trouble = browser.trouble()
    chosen = [rows[len(rows) * part // 8] for part in range(8)] + [rows[-1]]
    text = "{0:.1f} min: heap {1:.1f} MB, bitmaps {2:.0f} MB ({3}, of {4} made), processes {5:.0f} MB"
    lines = [text.format(*row) for row in chosen]
    early, late = rows[len(rows) // 4 : len(rows) // 2], rows[len(rows) * 3 // 4 :]
    for column, name in ((1, "heap"), (2, "bitmaps"), (5, "memory of the processes")):
        before, after = (max((row[column] for row in part), default=0.0) for part in (early, late))
        if before and after > before * GROWTH:
            trouble.append(f"{name}: {before:.0f} MB grew to {after:.0f} MB")
    return Found(f"panning for {minutes:g} minutes, page in {kind}", lines, trouble)


_COUNT_BITMAPS = """
window.bitmaps = { open: 0, made: 0, pixels: 0 };
const make = window.createImageBitmap;
window.createImageBitmap = async (...given) => {
  const bitmap = await make(...given);
  const size = bitmap.width * bitmap.height;
  window.bitmaps.open++;
  window.bitmaps.made++;
  window.bitmaps.pixels += size;
  const close = bitmap.close.bind(bitmap);
  bitmap.close = () => {
    window.bitmaps.open--;
    window.bitmaps.pixels -= size;
    close();
  };
  return bitmap;
};
"""


def _walk(browser: Browser, chance: random.Random) -> None:
    browser.evaluate("document.querySelector('.stage').focus()")
    browser.ask("press", ["0"])
    for _ in range(chance.randrange(*ZOOMS)):
        browser.ask("wheel", [chance.randrange(200, 700), chance.randrange(150, 600), -2])
    for _ in range(DRAGS):
        browser.ask("drag", [480, 400, chance.randrange(-400, 400), chance.randrange(-300, 300)])


def _resident(browser: Browser) -> float:
    """MB of all processes of the browser, shared pages counted once for each."""
    total = 0
    for process in psutil.Process(browser.pid).children(recursive=True):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6


_SOME_OF_ALL = """((found) => found && found[1] > 30 && found[2] > 15)(
  /view: (\\d+) cached, (\\d+) being/.exec(document.querySelector('aside .state').textContent)
)"""


def screenshot(folder: Path) -> Path:
    """A picture of the page with the sample slide in a store that takes its time, while frames are still being loaded."""
    taken = folder / "page.png"
    with ExitStack() as ending:
        store = Store("--latency", "0.3", "--shared-bytes-per-second", "1000000", *map(str, sample_files()))
        ending.callback(store.remove)
        ending.callback(store.stop)
        proxy = ending.enter_context(proxied("--origin", store.wait_until_ready()))
        series = series_of(proxy, "/dicomweb", "SM")
        browser = ending.enter_context(Browser(folder, "chromium"))
        browser.goto(f"{proxy.url}/{series.route}")
        browser.wait(DRAWN)
        browser.evaluate("document.querySelector('.stage').focus()")
        browser.ask("press", ["+"] * 4)
        browser.wait(_SOME_OF_ALL)
        browser.ask("screenshot", str(taken))
    return taken
