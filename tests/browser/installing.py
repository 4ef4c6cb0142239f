"""The folder that the browser's pages are served from: our pages and drivers, and npm's packages beside them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

OPENSEADRAGON = "openseadragon@6.1.1"
MICROSCOPY = "dicom-microscopy-viewer@0.48.24"  # brings dicomweb-client with it; 150 MB
PLAYWRIGHT = "playwright-core@1.65.1"  # without the browsers that it would download
PUPPETEER = "puppeteer-core@25.16.0"  # likewise; drives Debian's Firefox, too (WebDriver BiDi)
AXE = "axe-core@4.14.1"
INSTALL_SECONDS = 300.0

_HERE = Path(__file__).parent
_WORKER = Path("static/js")  # where dicom-microscopy-viewer looks for its decoders


def chromium() -> str | None:
    """Where Chromium is, if it is."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def firefox() -> str | None:
    """Where Firefox is, if it is."""
    return shutil.which("firefox-esr") or shutil.which("firefox")


def program(browser: str) -> str | None:
    """Where a browser, "chromium" or "firefox", is."""
    return firefox() if browser == "firefox" else chromium()


def missing(names: tuple[str, ...]) -> list[str]:
    """Which of these programs are not installed."""
    found = {name: program(name) if name in ("chromium", "firefox") else shutil.which(name) for name in names}
    return [name for name in names if found[name] is None]


def install(folder: Path, packages: list[str]) -> None:
    """Put the pages, the drivers and *packages* into *folder*; what is there already is not fetched again.

    Raises subprocess.CalledProcessError where npm fails, subprocess.TimeoutExpired.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*(_HERE / "pages").iterdir(), *(_HERE / "driver").iterdir()]:
        shutil.copy(path, folder)
    wanted = [package for package in packages if not _has(folder, package)]
    if wanted:
        (folder / "package.json").write_text('{"private": true}')
        quiet = ["--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--loglevel=error"]
        # With --no-save npm takes away what is not named.
        subprocess.run(["npm", "install", *quiet, *packages], cwd=folder, check=True, timeout=INSTALL_SECONDS)
    if MICROSCOPY in packages:
        built = folder / "node_modules/dicom-microscopy-viewer/dist/dynamic-import"
        (folder / _WORKER).mkdir(parents=True, exist_ok=True)
        for path in [built / "dataLoader.worker.min.js", *built.glob("*.wasm")]:
            shutil.copy(path, folder / _WORKER)


def _has(folder: Path, package: str) -> bool:
    name, _, version = package.partition("@")
    described = folder / "node_modules" / name / "package.json"
    return described.exists() and f'"version": "{version}"' in described.read_text("utf-8")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_arguments: Any) -> None:
        """Nothing: the driver tells what failed."""


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """Serve *folder* on a port of the loopback interface, and give the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, name="pages")
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
