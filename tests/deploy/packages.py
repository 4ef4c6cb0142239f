"""The wheel and the sdist: built, checked, and installed and run without the tree.

Run: ``tox -e packages``. It takes a minute or two, most of it for downloads.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import twistedproxy
from tests.running import READY_SECONDS, Child, free_port
from twistedproxy.origin.sample.slide import LEVELS

ROOT = Path(__file__).parents[2]
NAME = f"twistedproxy-{twistedproxy.__version__}"
PLUGIN = "twisted/plugins/twistedproxy_plugin.py"
MINUTES = 15 * 60.0  # seconds for one command; far above what is measured


def run(*command: str, folder: Path = ROOT, **environment: str) -> str:
    """What *command* prints. Raises AssertionError with all of it where it fails."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env={**kept, **environment}, capture_output=True, text=True, timeout=MINUTES
    )
    assert done.returncode == 0, f"{command}: {(done.stdout + done.stderr)[-3000:]}"
    return done.stdout + done.stderr


class Installed(Child):
    """The proxy as a virtual environment in *folder* has it."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        listen = f"--listen=tcp:{self.port}:interface=127.0.0.1"
        command = [str(folder / "bin" / "twistedproxy"), "--origin=sample:", listen, "--log-format=json"]
        if os.getuid() == 0:  # without the right to write where the mode does not allow it
            command = ["setpriv", "--bounding-set=-dac_override", "--", *command]
        self.cache = Path(tempfile.mkdtemp(prefix="installed-"))
        super().__init__(command, {"XDG_CACHE_HOME": str(self.cache), "PYTHONPATH": ""})

    def remove(self) -> None:
        super().remove()
        shutil.rmtree(self.cache, ignore_errors=True)

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body, once it listens."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers={"Accept": "image/jpeg"})
        deadline = time.monotonic() + READY_SECONDS * 2
        while time.monotonic() < deadline and self.running():
            try:
                with opener.open(request, timeout=30) as answer:
                    return answer.status, answer.read()
            except ConnectionRefusedError:
                pass
            except OSError as error:
                if not isinstance(getattr(error, "reason", None), ConnectionRefusedError):
                    raise
            time.sleep(0.05)
        raise AssertionError(self.output()[-3000:])


class PackageTests(SynchronousTestCase):
    """What is published."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="packages-"))
        self.addCleanup(shutil.rmtree, self.folder)

    def test_packages(self) -> None:
        """Both are built, the wheel from the sdist, and PyPI would take them; the wheel serves the sample slide where it
        cannot write to the place of its installation, and the sdist has the tests and what they read."""
        began = time.monotonic()
        # Out of a copy: a build leaves folders in its tree.
        tree = self.folder / "tree"
        tracked = self._tracked()
        for name in tracked:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
        run(sys.executable, "-m", "build", "--outdir", str(self.folder / "dist"), str(tree))
        [wheel] = (self.folder / "dist").glob("*.whl")
        [sdist] = (self.folder / "dist").glob("*.tar.gz")
        checked = run(sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist))
        self.assertEqual(2, checked.count("PASSED"), checked)
        self._check_wheel(wheel, tracked)
        self._check_sdist(sdist, tracked)
        sizes = f"wheel {wheel.stat().st_size / 1e3:.0f} kB, sdist {sdist.stat().st_size / 1e3:.0f} kB"
        seen = [f"built and checked in {time.monotonic() - began:.0f} s: {sizes}"]
        self._check_installed(wheel, seen)
        print("\n" + "\n".join(seen), flush=True)

    def _tracked(self) -> set[str]:
        """The files of the checkout."""
        if not (ROOT / ".git").exists():
            raise SkipTest("this is no checkout: what belongs to it is not known")
        return set(run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines())

    def _check_wheel(self, wheel: Path, tracked: set[str]) -> None:
        """The package and the plugin, all of them, and nothing else: no tests, no part of Twisted."""
        names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        self.assertEqual({name for name in tracked if name.startswith(("twistedproxy/", "twisted/"))}, names)
        self.assertEqual({PLUGIN}, {name for name in names if name.startswith("twisted/")})

    def _check_sdist(self, sdist: Path, tracked: set[str]) -> None:
        """All of the tree but what git alone needs."""
        with tarfile.open(sdist) as archive:
            names = {name.name.partition("/")[2] for name in archive.getmembers() if name.isfile()}
        self.assertEqual({".gitignore"}, tracked - names)
        self.assertEqual(set(), {name for name in names - tracked if ".egg-info/" not in name} - {"PKG-INFO"})

    def _check_installed(self, wheel: Path, seen: list[str]) -> None:
        place = self.folder / "installed"
        began = time.monotonic()
        run(sys.executable, "-m", "venv", str(place))
        run(str(place / "bin" / "pip"), "install", "--quiet", str(wheel))
        seen.append(f"installed in {time.monotonic() - began:.0f} s")
        program = str(place / "bin" / "twistedproxy")
        self.assertIn("Usage: twistedproxy --origin", run(program, "--help", folder=self.folder))
        self.assertIn(twistedproxy.__version__, run(program, "--version", folder=self.folder))
        run(str(place / "bin" / "twistd"), "--help", folder=self.folder)  # writes dropin.cache
        self._serve(place, True, seen)
        _set_writable(place, True)
        for written in place.rglob("dropin.cache"):
            written.unlink()
        self._serve(place, False, seen)

    def _serve(self, place: Path, cached: bool, seen: list[str]) -> None:
        """It serves a frame, whether or not Twisted's plugin cache is there, and cannot be written."""
        _set_writable(place, False)
        self.addCleanup(_set_writable, place, True)
        began = time.monotonic()
        proxy = Installed(place)
        self.addCleanup(proxy.remove)
        status, frame = proxy.get(f"/dicomweb/{LEVELS[0].path}/frames/792")
        seconds = time.monotonic() - began
        self.assertEqual((200, b"\xff\xd8\xff"), (status, frame[:3]))
        proxy.stop()
        messages = [json.loads(line)["message"] for line in proxy.output().splitlines() if line.startswith("{")]
        failed = [message for message in messages if re.match("Unable to write to plugin cache", message)]
        self.assertEqual(cached, not failed, proxy.output())
        self.assertEqual([], [path for path in place.rglob("dropin.cache") if not cached])
        seen.append(
            f"a frame of the sample slide after {seconds:.1f} s, {'with' if cached else 'without'} dropin.cache"
        )
        proxy.remove()


def _set_writable(folder: Path, writable: bool) -> None:
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode | 0o200 if writable else mode & ~0o222)
