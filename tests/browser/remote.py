"""A browser that is told what to do, step by step: Chromium or Firefox, by `driver/remote.mjs`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.browser.installing import program
from tests.running import end, tied


class Browser:
    """One browser with one page and a profile of its own in *folder*, where the drivers and npm's packages are.

    Every method blocks until the browser has done it, for a minute at most; RuntimeError where it fails.
    """

    def __init__(
        self,
        folder: Path,
        kind: str,
        width: int = 1280,
        height: int = 800,
        dark: bool = False,
        still: bool = False,
        profile: str = "page",
    ) -> None:
        self.kind = kind
        place = folder / f"profile-{profile}-{kind}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        asked = {
            "browser": "firefox" if kind == "firefox" else "chrome",
            "program": program(kind),
            "profile": str(place),
            "width": width,
            "height": height,
            "dark": dark,
            "still": still,
        }
        self._errors = (folder / f"errors-{profile}-{kind}").open("w+")
        self._process = subprocess.Popen(
            tied(["node", "remote.mjs", json.dumps(asked)]),
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            end(self._process)
        self._errors.close()

    @property
    def pid(self) -> int:
        """The process whose children are the browser's."""
        return self._process.pid

    def ask(self, name: str, argument: Any = None) -> Any:
        """Have it carry out one command of `driver/remote.mjs`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({name: argument}).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise RuntimeError(f"{self.kind} ended: {self._errors.read()[-3000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.kind}: {name} {str(argument)[:300]}: {answer['error']}")
        return answer["result"]

    def goto(self, url: str) -> None:
        """Open a page anew, also where it is open already and only its view differs."""
        self.ask("goto", "about:blank")
        self.ask("goto", url)

    def evaluate(self, body: str) -> Any:
        """Run a function's *body* in the page; what it returns."""
        return self.ask("evaluate", body)

    def wait(self, expression: str) -> None:
        """Until *expression* is true in the page."""
        self.ask("wait", expression)

    def trouble(self) -> list[str]:
        """What it complained of since the last time."""
        found = self.ask("trouble")
        return [f"console: {text}" for text in found["errors"]] + [f"request: {text}" for text in found["failed"]]
