"""``python -m tests.browser``: looks at slides through the proxy in a browser, and ends with 1 if something is wrong.

OpenSeadragon and dicom-microscopy-viewer (what Slim draws with) open the sample slide, and a JPEG 2000 slide in an
Orthanc that asks for a password; the pages come from another origin than the slides. Needs chromium, node and npm
(Debian: chromium, nodejs, npm), and orthanc, orthanc-dicomweb for the second slide. The proxy's own page is looked at
in Chromium and, where it is installed (Debian: firefox-esr), in Firefox. ``--minutes`` has a reader pan about in it
instead, and watches the memory. ``--stay`` only serves the page with the sample slide in OpenSeadragon and says where,
for a browser of your own.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.measuring import end_in_order
from tests.browser import comparing, looking, page_tour
from tests.browser.installing import (
    AXE,
    MICROSCOPY,
    OPENSEADRAGON,
    PLAYWRIGHT,
    PUPPETEER,
    firefox,
    install,
    missing,
    served,
)
from tests.browser.looking import Found, accesses, drive
from tests.browser.slides import Truth, as_jpeg2000, sample_files
from tests.running import Proxy
from tests.stores import orthanc
from tests.stores.orthanc import Orthanc, basic

TOKEN = {"Authorization": "Bearer of-no-meaning"}
ANN = {"Authorization": basic("ann", "a-secret-of-hers")}
# Tissue, and tissue at the slide's lower edge.
SAMPLE_VIEWS = ([3000, 2500], [6900, 7600])
ORTHANC_VIEWS = ([900, 700], [1400, 1400])


@contextmanager
def proxied(origin: str, page_port: int) -> Iterator[Proxy]:
    """A proxy that lets the pages on *page_port* read."""
    # The machine may be busy with other things: that must not make whole-instance loads into block loads.
    load = ["--whole-instance-max-cpu", "100", "--whole-instance-max-memory", "100", "--cache-memory", "256M"]
    cors = ["--cors-origin", f"http://127.0.0.1:{page_port}"]
    proxy = Proxy("--origin", origin, *cors, "--log-format", "json", *load)
    try:
        yield proxy.wait_until_ready()
    finally:
        proxy.stop()
        proxy.remove()


class Tour:
    """Everything that is looked at, in *folder*, where the pages are, served on *page_port*."""

    def __init__(self, folder: Path, page_port: int, viewers: list[str]) -> None:
        self._folder = folder
        self._port = page_port
        self._viewers = viewers

    def look(self, name: str, proxy: Proxy, headers: dict[str, str], truth: Truth, views: Any) -> Iterator[Found]:
        """Open the slide behind *proxy* in each viewer, and once more as somebody else, whose browser knows nothing."""
        visits = (("openseadragon", "first"), ("openseadragon", "second"), ("microscopy", "first"))
        for viewer, visit in visits:
            if viewer not in self._viewers:
                continue
            before = len(accesses(proxy))
            screen = str(self._folder / f"{name}-{viewer}-{visit}")
            asked = {
                "page": self._page("index.html" if viewer == "openseadragon" else "microscopy.html"),
                "root": f"{proxy.url}/dicomweb",
                "headers": headers,
                "screenshot": screen,
                "views": list(views),
            }
            seen = drive(self._folder, f"{viewer}.mjs", f"{name}-{viewer}-{visit}", asked)
            answered, title = accesses(proxy, before), f"{name}, {viewer}, {visit} visit"
            if viewer == "openseadragon":
                yield looking.openseadragon(title, seen, truth, answered, screen)
            else:
                yield looking.microscopy(title, seen, answered, screen)

    def refusals(self, proxy: Proxy) -> Found:
        """A page of an origin that is not listed, and a caller whom the store refuses."""
        root = f"{proxy.url}/dicomweb"
        stranger = {"page": self._page("index.html", host="localhost"), "root": root, "headers": ANN}
        thief = {"page": self._page("index.html"), "root": root, "headers": {"Authorization": basic("ann", "guess")}}
        said = drive(self._folder, "refused.mjs", "refused", {"attempts": [stranger, thief]})
        expected = ("Failed to fetch", "401 for")  # the first is all that a browser tells a page that may not read
        wrong = [f"{want!r} expected, got {got!r}" for want, got in zip(expected, said) if want not in (got or "")]
        return Found("who may not", [f"seen by the page: {text!r}" for text in said], wrong)

    def _page(self, name: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self._port}/{name}"


def sample(tour: Tour, page_port: int) -> Iterator[Found]:
    """The sample slide."""
    files = sample_files()
    with proxied("sample:", page_port) as proxy:
        yield from tour.look("sample", proxy, TOKEN, Truth(files[0]), SAMPLE_VIEWS)


def in_orthanc(tour: Tour, page_port: int, folder: Path) -> Iterator[Found]:
    """A JPEG 2000 slide in Orthanc, and who may not see it."""
    files = as_jpeg2000(sample_files()[1:], folder)
    with ExitStack() as ending:
        store = Orthanc(users={"ann": "a-secret-of-hers"})
        ending.callback(store.stop)
        store.start().store(*files)
        proxy = ending.enter_context(proxied(store.url, page_port))
        yield from tour.look("jpeg2000", proxy, ANN, Truth(files[0]), ORTHANC_VIEWS)
        yield tour.refusals(proxy)


def run(options: Any, folder: Path) -> int:
    """Look and tell."""
    packages = [OPENSEADRAGON, PLAYWRIGHT] if {"openseadragon", "microscopy"} & set(options.viewer) else []
    packages += [MICROSCOPY] if "microscopy" in options.viewer else []
    packages += [PUPPETEER, AXE] if "page" in options.viewer else []
    install(folder, packages)
    failed = False
    for found in looked_at(options, folder):
        print(f"\n## {found.title}\n", *found.lines, *(f"WRONG: {text}" for text in found.problems), sep="\n")
        sys.stdout.flush()
        failed = failed or bool(found.problems)
    if options.keep_screenshot and "page" in options.viewer:
        comparing.keep(page_tour.screenshot(folder), options.keep_screenshot, most=200_000)
    return 1 if failed else 0


def looked_at(options: Any, folder: Path) -> Iterator[Found]:
    """What was found in each viewer."""
    others = [viewer for viewer in options.viewer if viewer != "page"]
    if others:
        with served(folder) as port:
            yield from slides(Tour(folder, port, others), port, folder)
    if "page" in options.viewer:
        for kind in options.browser or ["chromium", *(["firefox"] if firefox() else [])]:
            if options.minutes:
                yield page_tour.panning(folder, kind, options.minutes)
            else:
                yield from page_tour.tour(folder, kind)


def slides(tour: Tour, port: int, folder: Path) -> Iterator[Found]:
    """All there is to look at on this machine."""
    yield from sample(tour, port)
    if orthanc.available():
        yield from in_orthanc(tour, port, folder)
    else:
        print("\nOrthanc is not installed: its slide is left out")


def stay(folder: Path) -> int:
    """Serve the page with the sample slide until Control-C."""
    install(folder, [OPENSEADRAGON])
    with served(folder) as port, proxied("sample:", port) as proxy:
        print(f"open http://127.0.0.1:{port}/?root={proxy.url}/dicomweb; Control-C ends it", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            pass
    return 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.browser", description=__doc__)
    viewers = ("openseadragon", "microscopy", "page")
    parser.add_argument("--viewer", action="append", choices=viewers, help="only this one (default: all)")
    browsers = ("chromium", "firefox")
    parser.add_argument("--browser", action="append", choices=browsers, help="for the page (default: both)")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="pan about in the page so long, and watch its memory"
    )
    parser.add_argument("--keep-screenshot", type=Path, metavar="PATH", help="of the sample slide in the page, as JPEG")
    parser.add_argument("--packages", type=Path, metavar="FOLDER", help="install there, and keep it for the next time")
    parser.add_argument("--stay", action="store_true", help="serve the page for a browser of your own")
    options = parser.parse_args(arguments)
    options.viewer = options.viewer or (["page"] if options.minutes else list(viewers))
    only_firefox = options.viewer == ["page"] and options.browser == ["firefox"]
    lacking = missing(("npm",) if options.stay else ("firefox" if only_firefox else "chromium", "node", "npm"))
    if lacking:
        print(f"not installed: {', '.join(lacking)}", file=sys.stderr)
        return 2
    end_in_order()
    with tempfile.TemporaryDirectory(prefix="browser-") as temporary:
        folder = options.packages or Path(temporary)
        return stay(folder) if options.stay else run(options, folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
