"""Requests a second that a server answers: by wrk where it is installed, else by a small client of our own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

import attrs

from tests.running import pinned, python_environment

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


@attrs.frozen
class Load:
    """Requests a second, milliseconds at the 99th percentile (None: not measured), answers that were no 200."""

    per_second: float
    p99: Optional[float]
    failed: int


def load(
    url: str,
    paths: Sequence[str],
    headers: Mapping[str, str],
    connections: int = 32,
    seconds: float = 3,
    core: Optional[int] = None,
) -> Load:
    """Ask *url* for *paths* in turn over *connections* connections, from a process of its own on *core*."""
    with tempfile.TemporaryDirectory() as folder:
        if not shutil.which("wrk"):
            return _with_python(url, paths, headers, connections, seconds, core, Path(folder))
        script = Path(folder) / "ask.lua"
        script.write_text(_lua(paths, headers))
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{max(1, round(seconds))}s",
            "--latency",
            "-s",
            str(script),
            url,
        ]
        return _read(_output(pinned(command, core)))


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, env=python_environment()).stdout


def _lua(paths: Sequence[str], headers: Mapping[str, str]) -> str:
    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)  # backslash and quote are escaped as Lua wants it

    fields = "".join(f"wrk.headers[{quoted(name)}] = {quoted(value)}\n" for name, value in headers.items())
    if len(paths) == 1:
        return fields + f"wrk.path = {quoted(paths[0])}\n"
    listed = ",\n".join(map(quoted, paths))
    # Formatted once: what wrk spends on a request shall not depend on how many paths there are.
    return (
        f"{fields}local paths = {{\n{listed}}}\nlocal requests, turn = {{}}, 0\n"
        "function init(args) for i, path in ipairs(paths) do requests[i] = wrk.format('GET', path) end end\n"
        "function request() turn = turn % #requests + 1 return requests[turn] end\n"
    )


def _read(output: str) -> Load:
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if not rate:
        raise RuntimeError(output)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s|m)\b", output)
    wrong = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    failed = int(wrong[1]) if wrong else 0
    failed += sum(map(int, broken.groups())) if broken else 0
    return Load(float(rate[1]), float(p99[1]) * _UNITS[p99[2]] if p99 else None, failed)


def _with_python(
    url: str,
    paths: Sequence[str],
    headers: Mapping[str, str],
    connections: int,
    seconds: float,
    core: Optional[int],
    folder: Path,
) -> Load:
    heads = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    requests = folder / "requests"
    requests.write_text("\0".join(f"GET {path} HTTP/1.1\r\nHost: bench\r\n{heads}\r\n" for path in paths))
    command = [sys.executable, "-m", "tests.benchmarks.load", url, str(requests), str(connections), str(seconds)]
    rate, failed = _output(pinned(command, core)).split()
    return Load(float(rate), None, int(failed))


def _client(url: str, requests: list[bytes], connections: int, seconds: float) -> tuple[float, int]:
    """Threads with plain sockets; answers must have a Content-Length."""
    import itertools
    import socket
    import threading
    import time
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    end = time.perf_counter() + seconds
    counts: list[tuple[int, int]] = []
    turns = itertools.cycle(requests)

    def caller() -> None:
        done = failed = 0
        with socket.create_connection((parts.hostname or "", parts.port or 80)) as connection:
            stream = connection.makefile("rb")
            while time.perf_counter() < end:
                connection.sendall(next(turns))
                failed += b" 200 " not in stream.readline()
                length = 0
                while (line := stream.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line[15:])
                stream.read(length)
                done += 1
        counts.append((done, failed))

    threads = [threading.Thread(target=caller) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done for done, _ in counts) / seconds, sum(failed for _, failed in counts)


if __name__ == "__main__":
    _url, _file, _connections, _seconds = sys.argv[1:]
    _requests = Path(_file).read_bytes().split(b"\0")
    print(*_client(_url, _requests, int(_connections), float(_seconds)))
