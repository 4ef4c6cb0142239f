"""Debian's Orthanc with its DICOMweb plugin, as a child process with a folder of its own.

- Nothing of the machine's own Orthanc is read or written.
- It ends with `stop`, and with the process that started it.
- What it was asked is read from its log: `requests`, in the order in which they came.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest import SkipTest

from twisted.internet.threads import deferToThread

from tests.running import free_port, tied

PROGRAM = "/usr/sbin/Orthanc"  # Debian's package "orthanc"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")  # Debian's package "orthanc-dicomweb"
ROOT = "/dicom-web"
READY_SECONDS = 20.0
STORE_SECONDS = 120.0

# HttpServer.cpp of Orthanc 1.10 logs each request at the level "verbose", as it comes in.
_REQUEST = re.compile(r"\(http\) ([A-Z]+) (/\S*)$")


def available() -> bool:
    """Whether Orthanc and its plugin are installed."""
    return program() is not None and PLUGIN.exists()


def program() -> str | None:
    """Where Orthanc is, if it is."""
    return PROGRAM if Path(PROGRAM).exists() else shutil.which("Orthanc")


class Orthanc:
    """One Orthanc. *users* (name to password) switches Basic authentication on; *more* replaces settings."""

    def __init__(self, users: Mapping[str, str] | None = None, more: Mapping[str, Any] | None = None) -> None:
        self.users = dict(users or {})
        self.port = free_port()
        self._more = dict(more or {})
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def server(self) -> str:
        """The URL of Orthanc's own REST interface."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The DICOMweb root, no slash at its end."""
        return self.server + ROOT

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    async def started(self) -> Orthanc:
        """Start and wait without blocking the reactor; raises `SkipTest` where Orthanc is not installed."""
        self.spawn()
        try:
            await deferToThread(self.wait_until_ready)
        except BaseException:
            self.stop()
            raise
        return self

    def start(self) -> Orthanc:
        """Start and wait until requests are answered."""
        self.spawn()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def spawn(self) -> None:
        """Start without waiting."""
        found = program()
        if found is None or not PLUGIN.exists():
            raise SkipTest("Orthanc with its DICOMweb plugin is not installed (Debian: orthanc, orthanc-dicomweb)")
        self._folder = Path(tempfile.mkdtemp(prefix="orthanc-"))
        settings = self._folder / "orthanc.json"
        settings.write_text(json.dumps(self._settings(self._folder)))
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                tied([found, "--verbose", str(settings)]), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait_until_ready(self) -> None:
        """Block until requests are answered. Raises RuntimeError with the log's end if that takes too long."""
        assert self._process is not None, "not started"
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                self.ask("GET", "/system")
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise RuntimeError("Orthanc did not start: " + self.log()[-2000:])

    def stop(self) -> None:
        """End Orthanc and remove its folder. Harmless when repeated."""
        if self._process is not None:
            # Its folder goes with it: nothing is lost, and an orderly end takes Orthanc 2.5 s.
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def restart(self) -> None:
        """End in order, and start with all that it holds; for settings with a StorageDirectory of the test's own."""
        assert self._process is not None, "not started"
        self._process.terminate()
        self._process.wait()
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        self.start()

    def store(self, *paths: Path | str) -> None:
        """Store DICOM files. Raises urllib.error.HTTPError if one is refused."""
        for path in paths:
            self.ask("POST", "/instances", Path(path).read_bytes())

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Iterable[tuple[str, str]] = ()) -> bytes:
        """One request straight to Orthanc, as the first of its users; the answer's body."""
        request = urllib.request.Request(self.server + path, body, dict(headers), method=method)
        for name, password in list(self.users.items())[:1]:
            request.add_header("Authorization", basic(name, password))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=STORE_SECONDS) as answer:
            return bytes(answer.read())

    def log(self) -> str:
        """All that Orthanc logged so far."""
        assert self._folder is not None, "not started"
        return (self._folder / "log").read_text(errors="replace")

    def requests(self, containing: str = "") -> list[tuple[str, str]]:
        """Method and path of each request so far whose path contains *containing*; no query."""
        found = (_REQUEST.search(line) for line in self.log().splitlines())
        return [(match[1], match[2]) for match in found if match and containing in match[2]]

    def _settings(self, folder: Path) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "Name": "twistedproxy tests",
            "StorageDirectory": str(folder / "store"),
            "IndexDirectory": str(folder / "store"),
            "StorageCompression": False,
            "Plugins": [str(PLUGIN)],
            "HttpPort": self.port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": bool(self.users),
            "RegisteredUsers": self.users,
            "DicomServerEnabled": False,
            "OrthancExplorerEnabled": False,
            "WebDavEnabled": False,
            "DicomWeb": {"Enable": True, "Root": ROOT + "/", "Host": f"127.0.0.1:{self.port}"},
        }
        return {**settings, **self._more}


def basic(name: str, password: str) -> str:
    """The Authorization header of Basic authentication (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()
