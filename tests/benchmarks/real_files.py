"""Some 450 real DICOM files from a folder and from Orthanc, each frame and picture compared with pydicom's.

Of each image up to 20 frames are asked for as they are stored, one by one and as a list, and rendered as PNG; of tiled and
single-frame images also the whole picture, of those with an ICC profile whether it comes along. What comes is compared with
what pydicom (where it has no decoder: DCMTK) makes of the file. Prints a table, then every difference and refusal, grouped
by its reason; ends with 1 if one of them is not explained (`file_comparison.KNOWN`).
Run: ``python -m tests.benchmarks.real_files``.
"""

from __future__ import annotations

import argparse
import collections
import fnmatch
import hashlib
import json
import os
import re
import sys
import tempfile
import time
import urllib.error
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs

from tests.benchmarks.expected_pictures import PIXELS, instance_at
from tests.benchmarks.file_comparison import DIFFERENT, EQUAL, NO_REFERENCE, REFUSED, Comparison, Item, Outcome
from tests.benchmarks.measuring import Fetcher, end_in_order, table
from tests.benchmarks.real_file_sources import gather, read
from tests.running import Proxy
from tests.stores.orthanc import Orthanc

CALLERS = 3  # images at once
REQUEST_SECONDS = 60.0  # without a byte, until a request counts as failed
ORIGINS = ("folder", "orthanc")


def layers(items: Iterable[Item]) -> list[list[Item]]:
    """No SOP Instance UID twice in one."""
    made: list[dict[str, Item]] = []
    for item in items:
        free = next((layer for layer in made if item.sop not in layer), None)
        if free is None:
            made.append(free := {})
        free[item.sop] = item
    return [list(layer.values()) for layer in made]


def items_of(files: Mapping[Path, str], folder: Path) -> Iterator[Item]:
    """Each file once, whatever its name; where a SOP Instance UID came before, its last digits are changed in the file."""
    seen: set[bytes] = set()
    taken: set[str] = set()
    for path, source in files.items():
        content = path.read_bytes()
        data, digest = read(path), hashlib.sha256(content).digest()
        if digest in seen or data is None:
            continue
        seen.add(digest)
        sop = str(data.SOPInstanceUID)
        if sop in taken and (other := other_uid(sop, taken)) and (changed := with_uid(content, sop, other)) is not None:
            path.write_bytes(changed)
            sop = other
        taken.add(sop)
        image = "Rows" in data and any(keyword in data for keyword in PIXELS)
        yield Item(str(path.relative_to(folder)), source, path, image, sop)


def other_uid(uid: str, taken: Collection[str]) -> str | None:
    """As long as *uid*, and not one of *taken*; None where its last component is too short for that."""
    if not uid[-4:].isdigit():
        return None
    return next((new for number in range(1000) if (new := f"{uid[:-3]}{number:03}") not in taken), None)


def with_uid(content: bytes, uid: str, other: str) -> bytes | None:
    """A file's content with another UID, as long as the one that it has; None where that is not found in the data set, as
    in a deflated one."""
    return content.replace(uid.encode(), other.encode()) if content.count(uid.encode()) >= 2 else None


def compare(item: Item, url: str, orthanc: Orthanc, origins: Sequence[str], folder: Path) -> list[Outcome]:
    """All of one file."""
    outcomes: list[Outcome] = []
    proxy, direct = Fetcher(url, REQUEST_SECONDS), Fetcher(orthanc.url, REQUEST_SECONDS)
    try:
        instance = instance_at(item.path, folder)
        for origin in origins:
            asked = direct if origin == "orthanc" else None
            outcomes += Comparison(item, instance, origin, proxy, asked).outcomes()
    except Exception as error:  # one file ends no measurement
        outcomes.append(
            Outcome(origin, item.source, item.name, "error", 0, DIFFERENT, f"{type(error).__name__}: {error}")
        )
    finally:
        proxy.close()
        direct.close()
    return outcomes


def store(item: Item, orthanc: Orthanc) -> Outcome | None:
    """What Orthanc says against a file, if it does."""
    try:
        orthanc.store(item.path)
    except urllib.error.HTTPError as error:
        said = " ".join(error.read()[:300].decode("utf-8", "replace").split())
        error.close()
        return Outcome(
            "orthanc", item.source, item.name, "store", 0, REFUSED, f"{error.code} {said}", "Orthanc does not store it"
        )
    return None


def serve(layer: Sequence[Item], folder: Path, deadline: float) -> Iterator[Outcome]:
    """Serve the files of one layer, and compare them."""
    (folder / "served").mkdir(parents=True)
    for number, item in enumerate(layer):
        os.link(item.path, folder / "served" / f"{number:03}-{item.path.name}")
    orthanc = Orthanc().start()
    proxy = None
    try:
        refused = {item.name: outcome for item in layer if (outcome := store(item, orthanc))}
        yield from refused.values()
        mounts = ["--origin", f"/folder=file:{folder / 'served'}", "--origin", f"/orthanc={orthanc.url}"]
        proxy = Proxy(*mounts, "--cache", "memory")
        proxy.wait_until_ready()
        url = proxy.url

        def compared(item: Item) -> list[Outcome]:
            if time.monotonic() > deadline:
                return [Outcome("both", item.source, item.name, "time", 0, REFUSED, "not compared: the time was up")]
            origins = [origin for origin in ORIGINS if origin == "folder" or item.name not in refused]
            return compare(item, url, orthanc, origins, folder)

        callers = ThreadPoolExecutor(CALLERS)
        try:
            for outcomes in callers.map(compared, layer):
                yield from outcomes
        finally:
            callers.shutdown(
                wait=False, cancel_futures=True
            )  # when this is ended early, its requests break with the proxy
    finally:
        if proxy is not None:
            proxy.stop()
            proxy.remove()
        orthanc.stop()


def row(origin: str, items: Mapping[str, Item], outcomes: Sequence[Outcome]) -> list[object]:
    mine = [outcome for outcome in outcomes if outcome.origin == origin]
    files = {outcome.file for outcome in mine if outcome.check != "store"}
    results = collections.Counter(outcome.result for outcome in mine)
    compared = [
        outcome for outcome in mine if outcome.check in ("stored", "rendered") and outcome.result != NO_REFERENCE
    ]
    unexplained = sum(not outcome.reason for outcome in mine)
    images = sum(items[name].image for name in files)
    counts = [results[result] for result in (EQUAL, DIFFERENT, REFUSED, NO_REFERENCE)]
    return [origin, len(files), images, len(compared), *counts, unexplained]


def groups(outcomes: Iterable[Outcome]) -> dict[tuple[str, ...], list[Outcome]]:
    """All that is not equal: unexplained first, then by origin, check and reason; numbers make no difference."""
    made: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.result != EQUAL:
            known = outcome.reason and outcome.result != NO_REFERENCE
            text = re.sub(r"\b[0-9a-f]{2}\b|[0-9][0-9.]*", "#", outcome.reason if known else outcome.detail)
            state = "" if not outcome.reason else "explained" if known else NO_REFERENCE
            made.setdefault((state, outcome.origin, outcome.check, outcome.result, text), []).append(outcome)
    return dict(sorted(made.items()))


def report(items: Sequence[Item], outcomes: Sequence[Outcome]) -> None:
    heads = [
        "origin",
        "files",
        "images",
        "frames compared",
        "equal",
        "different",
        "refused",
        "no reference",
        "unexplained",
    ]
    named = {item.name: item for item in items}
    print(table(heads, [row(origin, named, outcomes) for origin in ORIGINS]))
    for (state, origin, check, result, _text), found in groups(outcomes).items():
        files = collections.Counter(outcome.file for outcome in found)
        why = found[0].reason if state == "explained" else found[0].detail
        print(f"\n{state or 'UNEXPLAINED'}: {origin}, {check}, {result} ({len(found)}): {why}")
        print("  " + ", ".join(f"{name} ({count})" if count > 1 else name for name, count in files.items()))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.real_files", description=__doc__)
    parser.add_argument("--json", type=Path, help="a file for every outcome")
    parser.add_argument("--no-fetch", action="store_true", help="leave out what pip would have to download")
    parser.add_argument("--only", default="*", help="a shell pattern of files, such as 'pydicom/*rle*'")
    parser.add_argument("--seconds", type=float, default=900, help="after which no further file is compared")
    options = parser.parse_args(arguments)
    end_in_order()
    deadline = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        gathered = gather(folder / "files", not options.no_fetch)
        items = [
            item for item in items_of(gathered.files, folder / "files") if fnmatch.fnmatch(item.name, options.only)
        ]
        sources = collections.Counter(item.source for item in items)
        print(f"{len(items)} files: " + ", ".join(f"{count} {source}" for source, count in sources.items()))
        for missing in gathered.missing:
            print(f"missing: {missing}")
        print(flush=True)
        outcomes: list[Outcome] = []
        for number, layer in enumerate(layers(items)):
            outcomes += serve(layer, folder / f"layer-{number}", deadline)
    report(items, outcomes)
    if options.json:
        options.json.write_text(json.dumps([as_json(outcome) for outcome in outcomes], indent=1))
    return 1 if not outcomes or any(not outcome.reason for outcome in outcomes) else 0


def as_json(outcome: Outcome) -> dict[str, Any]:
    return {**attrs.asdict(outcome), "reason": outcome.reason}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
