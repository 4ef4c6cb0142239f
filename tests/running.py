"""Child processes of tests and benchmarks: none outlives the process that started it.

- Start children from a thread that lives as long as they should (the main one): Linux sends the parent's
  death signal when the *thread* that started the child ends.
- Starting is quick and may be done on the reactor; waiting is for a thread (`Proxy.started` does both).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional
from unittest import SkipTest

import psutil
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue

from twistedproxy.processes.child import child_environment

STOP_SECONDS = 15.0  # an orderly end after SIGTERM; SIGKILL follows
READY_SECONDS = 30.0
TREE = Path(__file__).resolve().parent.parent


def tied(command: Sequence[str]) -> list[str]:
    """*command*, killed by the kernel when its parent dies, where the system can do that."""
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return [setpriv, "--pdeathsig", "KILL", "--", *command] if setpriv else list(command)


def pinned(command: Sequence[str], core: Optional[int]) -> list[str]:
    """*command* on one processor core, where the system can do that; None: anywhere."""
    taskset = shutil.which("taskset")
    return [taskset, "-c", str(core), *command] if taskset and core is not None else list(command)


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody listens at a TCP port of the loopback interface."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def end(process: subprocess.Popen[bytes], seconds: float = STOP_SECONDS) -> int:
    """Ask *process* to end, insist after *seconds*, and return how it ended."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def python_environment(more: Optional[Mapping[str, str]] = None) -> dict[str, str]:
    """An environment in which the tree's packages and its Twisted plugin are found, without proxy settings."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("TWISTEDPROXY_")}
    path = [str(TREE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", **(more or {})}


async def printed(program: str, *arguments: str) -> str:
    """What *program*, Python that finds what a child of the proxy finds, prints. Raises AssertionError where it fails or says
    anything else."""
    command = ["-P", "-c", program, *arguments]
    output, errors, status = await getProcessOutputAndValue(sys.executable, command, env=child_environment())
    assert (errors, status) == (b"", 0), (errors, status)
    return output.decode()


def signals(pid: int, field: str) -> set[int]:
    """The signals that a process ignores (*field* ``SigIgn``) or has handlers for (``SigCgt``). Raises SkipTest where that is
    not known."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        raise SkipTest("this system does not list what a process does with signals") from None
    (mask,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith(f"{field}:"))
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


class Child:
    """A process with a temporary folder of its own, its working directory, where its output is kept."""

    def __init__(self, command: Sequence[str], environment: Optional[Mapping[str, str]] = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="child-"))
        self._family: dict[int, psutil.Process] = {}
        self.start(command, environment)

    def start(self, command: Sequence[str], environment: Optional[Mapping[str, str]] = None) -> None:
        """Start it, or start it again once it has ended."""
        serves_folder = any("file:" in word for word in command)  # whose index it keeps
        private = {"XDG_CACHE_HOME": str(self.folder / "cache")} if serves_folder else {}
        with (self.folder / "output").open("wb") as output:
            self.process = subprocess.Popen(
                tied(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                # What it leaves when it is killed, such as its cache's folder, goes with its own folder.
                env=python_environment({"TMPDIR": str(self.folder), **private, **(environment or {})}),
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def output(self) -> str:
        """All it printed so far, errors among it."""
        path = self.folder / "output"
        return path.read_text(errors="replace") if path.exists() else ""

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The events of that name in its log so far, where that is of JSON lines."""
        lines = [line for line in self.output().splitlines() if line.startswith("{") and line.endswith("}")]
        return [fields for fields in map(json.loads, lines) if fields.get("event") == event]

    def running(self) -> bool:
        return self.process.poll() is None

    def rss(self) -> int:
        """Resident memory in bytes, of it and all its children."""
        return sum(process.memory_info().rss for process in self.family())

    def family(self) -> list[psutil.Process]:
        """It and all its children that live now."""
        if not self.running():
            return []
        me = psutil.Process(self.pid)
        found = [me, *me.children(recursive=True)]
        self._family.update((process.pid, process) for process in found)
        return found

    def strays(self) -> list[psutil.Process]:
        """Those of its family, as far as `family` or an end by `stop` or `kill` saw them, that still live."""
        alive = []
        for process in self._family.values():
            try:
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
            except psutil.NoSuchProcess:
                continue
        return alive

    def wait_until_it_listens(self, port: int, seconds: float = READY_SECONDS) -> None:
        """Block until it listens there. Raises RuntimeError with its output's end if it does not in time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.running():
            if listens(port):
                return
            time.sleep(0.02)
        raise RuntimeError(f"{self.process.args} did not start: {self.output()[-3000:]}")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.family()
        self.process.send_signal(number)

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM, SIGKILL after *seconds*; how it ended: a status, or minus the signal's number."""
        self.family()
        return end(self.process, seconds)

    def kill(self) -> None:
        """SIGKILL; its children, if they live on, are not touched."""
        self.family()
        self.process.kill()
        self.process.wait()

    def remove(self) -> None:
        """For a test's cleanup: nothing of it is left, neither process nor file. Harmless when repeated."""
        if self.running():
            self.kill()
        for process in self.strays():
            with contextlib.suppress(psutil.NoSuchProcess):  # it may end by itself between the look and the signal
                process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Proxy(Child):
    """``twistd -n twistedproxy`` on a loopback port, a free one by default, from this tree. *options* go after
    ``twistedproxy``."""

    program = "from twisted.scripts.twistd import run; run()"
    command = (sys.executable, "-c", program, "-n", "--pidfile=", "twistedproxy")

    def __init__(
        self,
        *options: str,
        environment: Optional[Mapping[str, str]] = None,
        core: Optional[int] = None,
        port: Optional[int] = None,
    ) -> None:
        self.port = port or free_port()
        listen = f"tcp:{self.port}:interface=127.0.0.1"
        super().__init__(pinned([*self.command, "--listen", listen, *options], core), environment)

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    @classmethod
    async def started(cls, *options: str, environment: Optional[Mapping[str, str]] = None) -> Proxy:
        """Start and wait until it is ready, without blocking the reactor."""
        proxy = cls(*options, environment=environment)
        try:
            await deferToThread(proxy.wait_until_ready)
        except BaseException:
            proxy.remove()
            raise
        return proxy

    def wait_until_ready(self, seconds: float = READY_SECONDS) -> Proxy:
        """Block until ``/healthz`` answers. Raises RuntimeError with the log's end if it does not in time."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.running():
            try:
                opener.open(f"{self.url}/healthz", timeout=seconds).close()
            except urllib.error.HTTPError as refused:
                refused.close()
            except OSError:
                time.sleep(0.02)
                continue
            return self
        raise RuntimeError("the proxy did not start: " + self.output()[-3000:])


class Store(Child):
    """The simulated store as a process of its own; *options*: see ``python -m tests.stores.simulated --help``."""

    def __init__(self, *options: str, core: Optional[int] = None) -> None:
        super().__init__(pinned([sys.executable, "-m", "tests.stores.simulated", *options], core))

    def wait_until_ready(self, seconds: float = READY_SECONDS) -> str:
        """Block until it listens; its DICOMweb root's URL. Raises RuntimeError with its output."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.running():
            line, end_of_line, _ = self.output().partition("\n")
            if end_of_line and line.startswith("http://"):
                return line
            time.sleep(0.02)
        raise RuntimeError("the simulated store did not start: " + self.output()[-3000:])


class MemoryWatch:
    """The most resident memory of a process while this is open, above what it had before. Bytes."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.before = self.most = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.01):
            self.most = max(self.most, self._process.memory_info().rss)

    @property
    def growth(self) -> int:
        return self.most - self.before
