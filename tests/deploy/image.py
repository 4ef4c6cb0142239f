"""deploy/Containerfile: built by podman on a Debian that mmdebstrap makes, and run as an orchestrator would.

Run: ``tox -e image``. It needs root, podman and mmdebstrap, takes three to six minutes, and prints what it saw.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from twistedproxy.origin.sample.slide import LEVELS

ROOT = Path(__file__).parents[2]
SUITES = {"12": "bookworm", "13": "trixie"}
MINUTES = 15 * 60.0  # seconds for one command; far above what is measured
LOCKED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges")
"""As Kubernetes runs it with readOnlyRootFilesystem and without capabilities; not even /tmp can be written."""

# What a machine may need that is a container itself: runc instead of crun, and limits that it may set.
WAYS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    ((), ()),
    (("--runtime=runc", "--cgroup-manager=cgroupfs"), ("--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096")),
)

REQUEST = """
import http.client, json, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=30)
connection.request("GET", sys.argv[2], headers={"Accept": sys.argv[3]})
answer = connection.getresponse()
print(json.dumps([answer.status, dict(answer.getheaders()), len(answer.read())]))
"""

STATUS = """
import json, os
fields = dict(line.split(":", 1) for line in open("/proc/1/status"))
held = {name: fields[name].strip() for name in ("CapEff", "CapBnd", "NoNewPrivs")}
written = []
for folder in ("/", "/tmp", "/opt/twistedproxy", "/etc", "/var/cache/twistedproxy"):
    try:
        open(os.path.join(folder, "written"), "w").close()
        written.append(folder)
    except OSError:
        pass
print(json.dumps([os.getuid(), held, written]))
"""


class Unusable(Exception):
    """A command failed; its output."""


def run(*command: str, seconds: float = MINUTES) -> str:
    """What *command* prints. Raises `Unusable` where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=ROOT, check=False)
    if done.returncode:
        raise Unusable(f"{' '.join(command[:4])}: {(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def mirror() -> str:
    """Where this machine gets Debian from; what mmdebstrap takes by itself where that is not known."""
    lines = run("apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages").splitlines()
    return next((line.split()[1] for line in lines if line.startswith("Debian ")), "http://deb.debian.org/debian")


class Podman:
    """podman with a storage of its own in *folder*."""

    def __init__(self, folder: Path) -> None:
        self.command = ["podman", "--log-level=fatal", f"--root={folder}/storage", f"--runroot={folder}/run"]
        self.run_options: Sequence[str] = ()

    def __call__(self, *arguments: str) -> str:
        return run(*self.command, *arguments)

    def find_way(self, image: str) -> None:
        """Find options with which this machine runs a container. Raises SkipTest with the reasons where there are none."""
        command, reasons = self.command, []
        for more, options in WAYS:
            self.command, self.run_options = [*command, *more], options
            try:
                self("run", "--rm", "--network=none", *options, image, "/bin/true")
                return
            except Unusable as error:
                reasons.append(str(error))
        raise SkipTest("podman runs no container here: " + "; ".join(reasons))


class ImageTests(SynchronousTestCase):
    """The image."""

    def setUp(self) -> None:
        missing = [name for name in ("podman", "mmdebstrap") if shutil.which(name) is None]
        if missing or os.getuid() != 0:
            raise SkipTest(f"not installed: {', '.join(missing)}" if missing else "root only")
        self.folder = Path(tempfile.mkdtemp(prefix="image-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.podman = Podman(self.folder)
        self.seen: list[str] = []

    def _release(self) -> str:
        """The release of Debian that the Containerfile is written for."""
        text = (ROOT / "deploy" / "Containerfile").read_text("utf-8")
        [number] = re.findall(r"^ARG BASE=docker\.io/library/debian:(\d+)-slim$", text, re.MULTILINE)
        return SUITES[number]

    def _pip_settings(self) -> list[str]:
        """Give pip in the build this machine's certificate authorities, where pip here has been given some."""
        found = re.findall(r"^\S*\.cert='(.+)'$", run(sys.executable, "-m", "pip", "config", "list"), re.MULTILINE)
        if not found:
            return []
        settings = self.folder / "pip.conf"
        settings.write_text("[global]\ncert = /certificates.pem\n")
        return [f"--volume={found[-1]}:/certificates.pem:ro", f"--volume={settings}:/etc/pip.conf:ro"]

    def _build(self) -> None:
        base = self.folder / "base.tar"
        run("mmdebstrap", "--quiet", "--variant=minbase", self._release(), str(base), mirror())
        self.podman("import", "--quiet", str(base), "localhost/base")
        self.addCleanup(self.podman, "rmi", "--all", "--force")
        self.podman.find_way("localhost/base")
        options = ("--isolation=chroot", "--network=host", "--format=docker", "--build-arg=BASE=localhost/base")
        began = time.monotonic()
        self.podman(
            "build", *options, *self._pip_settings(), "--tag=localhost/proxy", "-f", "deploy/Containerfile", "."
        )
        seconds = time.monotonic() - began
        image, base_size = (self._size(name) for name in ("localhost/proxy", "localhost/base"))
        self.seen.append(f"built in {seconds:.0f} s: {image / 1e6:.0f} MB, of which the base {base_size / 1e6:.0f} MB")

    def _size(self, name: str) -> int:
        return int(json.loads(self.podman("image", "inspect", name))[0]["Size"])

    def _start(self) -> float:
        """Start the container, and wait until /readyz answers 200; seconds until the proxy listened, by its log."""
        began = datetime.now(timezone.utc)
        deadline = time.monotonic() + MINUTES
        self.podman("start", "proxy")
        while time.monotonic() < deadline:
            try:
                if self._get("/readyz")[0] == 200:
                    mounts = [each["time"] for each in self._log() if each.get("event") == "mount"]
                    after = [(datetime.fromisoformat(text) - began).total_seconds() for text in mounts]
                    if after and after[-1] > 0:  # the first worker is ready before the parent says that all are
                        return after[-1]
            except Unusable:  # it does not listen yet
                time.sleep(0.05)
        raise AssertionError(self.podman("logs", "proxy"))

    def _log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.podman("logs", "proxy").splitlines() if line.startswith("{")]

    def _get(self, path: str, accept: str = "*/*", port: int = 8080) -> Any:
        """Status, headers and the body's size of an answer, as seen in the container."""
        return json.loads(self.podman("exec", "proxy", "python", "-c", REQUEST, str(port), path, accept))

    def _inspect(self, field: str) -> Optional[Any]:
        return json.loads(self.podman("inspect", "proxy"))[0]["State"][field]

    def test_runs(self) -> None:
        """It builds, and answers README's requests without root, capabilities or a place to write to but its volume; a
        second start finds what the first one left; it stops in order."""
        self._build()
        self.podman(
            "create", "--name=proxy", "--network=none", *LOCKED, *self.podman.run_options,
            "--volume=cache:/var/cache/twistedproxy", "--env=TWISTEDPROXY_WORKERS=2",
            "localhost/proxy", "--origin", "sample:",
        )  # fmt: skip
        self.addCleanup(self.podman, "rm", "--force", "proxy")
        self.seen.append(f"first start, with making the sample slide: {self._start():.1f} s")
        self._readme()
        self._private_pages()
        self._locked()
        self.assertEqual("healthy", self._health())
        self._stop()
        self.seen.append(f"second start, until it listens: {self._start():.1f} s")
        self.assertEqual("twistedproxy; hit", self._get(self._frame(), "image/jpeg")[1]["Cache-Status"])
        self._no_complaints()
        self._stop()
        print("\n" + "\n".join(self.seen), flush=True)

    @staticmethod
    def _frame() -> str:
        return f"/dicomweb/{LEVELS[0].path}/frames/792"

    def _readme(self) -> None:
        """README's request gets the answer that README shows."""
        text = (ROOT / "README.md").read_text("utf-8")
        self.assertIn(f"{LEVELS[0].path}\ncurl -s -D- -o frame.jpg -H 'Accept: image/jpeg' $SLIDE/frames/792", text)
        shown = dict(re.findall(r"^([A-Z][A-Za-z-]+): (.*)$", text.split("HTTP/1.1 200 OK\n")[1].split("```")[0], re.M))
        status, headers, size = self._get(self._frame(), "image/jpeg")
        self.assertEqual(200, status)
        self.assertEqual(shown, {name: value for name, value in headers.items() if name in shown})
        self.assertEqual(int(shown["Content-Length"]), size)
        status, headers, _ = self._get(self._frame(), "image/jpeg")
        self.assertEqual((200, "twistedproxy; hit"), (status, headers["Cache-Status"]))
        status, headers, _ = self._get(self._frame() + "/rendered?viewport=100,100", "image/png")
        self.assertEqual((200, "image/png"), (status, headers["Content-Type"]))
        self.seen.append("README's requests, and a picture: as shown")

    def _private_pages(self) -> None:
        """Metrics are on the port of their own only."""
        self.assertEqual([404, 200], [self._get("/metrics", port=port)[0] for port in (8080, 9100)])

    def _locked(self) -> None:
        user, held, written = json.loads(self.podman("exec", "proxy", "python", "-c", STATUS))
        self.assertEqual(10001, user)
        self.assertEqual((0, 0, 1), tuple(int(held[name], 16) for name in ("CapEff", "CapBnd", "NoNewPrivs")))
        self.assertEqual(["/var/cache/twistedproxy"], written)
        self.seen.append(f"runs as user {user} with {held}; can write to {written}")

    def _health(self) -> str:
        try:
            return self.podman("healthcheck", "run", "proxy").strip() or "healthy"
        except Unusable as error:
            return str(error)

    def _no_complaints(self) -> None:
        """The log has no warning (the plugin cache is there, all could be written) but that others reach the metrics: the
        image cannot know which ports are published."""
        worse = [each for each in self._log() if each["level"] not in ("debug", "info")]
        self.assertEqual({"pages_exposed"}, {each.get("event", each["message"]) for each in worse})

    def _stop(self) -> None:
        began = time.monotonic()
        self.podman("stop", "--time=40", "proxy")
        self.assertEqual(128 + 15, self._inspect("ExitCode"), "it was killed, or failed")  # as SIGTERM has it end
        self.seen.append(f"SIGTERM to the end: {time.monotonic() - began:.1f} s")
