"""Load by wrk, with each answer accounted for: how many, how long, how many bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

import attrs

from tests.running import pinned, python_environment

_DONE = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\nDONE {"requests": %d, "microseconds": %d, "bytes": %d, "failed": %d, "p50": %d, "p99": %d}\\n',
    summary.requests, summary.duration, summary.bytes, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


class WrongAnswers(RuntimeError):
    """Answers that were no 200, or of another length than that of the right ones."""


@attrs.frozen
class Ran:
    """One run. *p50* and *p99* in milliseconds; *bytes*: heads and bodies."""

    requests: int
    seconds: float
    bytes: int
    p50: float
    p99: float

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


def installed() -> bool:
    """Whether there is a wrk."""
    return shutil.which("wrk") is not None


def run(
    url: str,
    paths: Sequence[str],
    headers: Mapping[str, str],
    connections: int,
    seconds: int,
    core: Optional[int],
    length: float,
) -> Ran:
    """Ask *url* for *paths* in turn. *length*: bytes of a right answer with its head, on average.

    Raises `WrongAnswers`. wrk counts what is no 2xx or 3xx; what came beside, or not whole, shows in the bytes.
    """
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "ask.lua"
        script.write_text(_asking(paths, headers) + _DONE)
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), url]
        output = subprocess.run(
            pinned(command, core), check=True, capture_output=True, text=True, env=python_environment()
        ).stdout
    found = json.loads(output.partition("DONE ")[2])
    ran = Ran(
        found["requests"], found["microseconds"] / 1e6, found["bytes"], found["p50"] / 1e3, found["p99"] / 1e3
    )  # fmt: skip
    if found["failed"] or not ran.requests:
        raise WrongAnswers(f"{found['failed']} of {ran.requests} answers failed")
    # What is on its way at the end counts as bytes and not as a request; heads differ in a date or a word.
    slack = (connections + len(paths)) * length + 64 * ran.requests
    if abs(ran.bytes - ran.requests * length) > slack:
        raise WrongAnswers(f"{ran.bytes / ran.requests:,.0f} bytes an answer, where {length:,.0f} are right")
    return ran


def _asking(paths: Sequence[str], headers: Mapping[str, str]) -> str:
    """Requests that are formatted once: what wrk spends on one shall not depend on how many paths there are."""
    quoted = [json.dumps(path) for path in paths]
    fields = "".join(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}\n" for name, value in headers.items())
    return (
        f"{fields}local paths = {{{', '.join(quoted)}}}\nlocal requests, turn = {{}}, 0\n"
        "function init(args) for i, path in ipairs(paths) do requests[i] = wrk.format('GET', path) end end\n"
        "function request() turn = turn % #requests + 1 return requests[turn] end\n"
    )
