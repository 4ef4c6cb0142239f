"""``python -m tests.benchmarks``: what there is. ``python -m tests.benchmarks NAME...``: one after the other, each as a
process of its own; options for it stand after its name. ``all``: every one."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.measuring import end_in_order
from tests.running import end, tied

FOLDER = Path(__file__).parent
USAGE = "usage: python -m tests.benchmarks [all | NAME [OPTION...]] [NAME [OPTION...]]..."


def benchmarks() -> dict[str, str]:
    """The modules whose docstrings say how to run them, and what each is about. Nothing is imported for it."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        document = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        if f"Run: ``python -m tests.benchmarks.{path.stem}``" in document:
            found[path.stem] = " ".join(document.partition("\n\n")[0].split())
    return found


def commands(arguments: Sequence[str], names: Sequence[str]) -> list[list[str]]:
    """Which to run with which options. Raises ValueError that names what is none."""
    if list(arguments) == ["all"]:
        return [[name] for name in names]
    chosen: list[list[str]] = []
    for argument in arguments:
        if argument in names:
            chosen.append([argument])
        elif chosen:
            chosen[-1].append(argument)
        else:
            raise ValueError(f"{argument!r} is none; there are: {', '.join(names)}")
    return chosen


def run(command: Sequence[str]) -> int:
    """One benchmark, to its end; its exit code."""
    print(f"\n## {' '.join(command)}\n", flush=True)
    process = subprocess.Popen(tied([sys.executable, "-m", f"tests.benchmarks.{command[0]}", *command[1:]]))
    try:
        return process.wait()
    finally:
        end(process)


def main(arguments: Sequence[str]) -> int:
    known = benchmarks()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE + "\n")
        for name, about in known.items():
            print(f"{name}: {about}")
        return 0
    end_in_order()
    try:
        chosen = commands(arguments, list(known))
    except ValueError as error:
        print(f"{error}\n{USAGE}", file=sys.stderr)
        return 2
    failed = [command[0] for command in chosen if run(command) != 0]
    if failed:
        print(f"\nshort of their aims: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
