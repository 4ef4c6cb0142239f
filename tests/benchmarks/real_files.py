"""Some 450 real DICOM files from a folder and from Orthanc, each frame and picture compared with pydicom's.

Of each image up to 20 frames are asked for as they are stored, one by one and as a list, and rendered as PNG; of tiled and single-frame
images also the whole picture, of those with an ICC profile whether it comes along. What comes is compared with what pydicom (where it has no decoder: DCMTK) makes of the file. Prints a table, then every difference and refusal, grouped by its reason; ends with 1 if one of
them is not in `KNOWN`. Run: ``python -m tests.benchmarks.real_files``.
"""

from __future__ import annotations

import argparse
import collections
import fnmatch
import hashlib
import io
import json
import os
import random
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
import numpy
from PIL import Image

from tests.benchmarks.expected_pictures import PIXELS, Instance, NoReference, Pixels, instance_at
from tests.benchmarks.measuring import Fetched, Fetcher, end_in_order, table
from tests.benchmarks.real_file_sources import gather, read
from tests.processes import Proxy
from tests.stores.orthanc import Orthanc

FRAMES = 20  # of one image that are compared
CALLERS = 3  # images at once
MAX_WHOLE = 16_000_000  # pixels of whole pictures that are compared
LOSSLESS_STEPS = 1  # of 255: rounding
LOSSY_MEAN, LOSSY_MOST = (
    2.0,
    48,
)  # of 255: decoders' inverse transforms and upsampling; the most for 99.9 % of the samples
FEW_LEVELS = 64  # of gray: what shows fewer, where another range would show more, is no picture
ORIGINS = ("folder", "orthanc")
EQUAL, DIFFERENT, REFUSED, NO_REFERENCE = "equal", "different", "refused", "no reference"


@attrs.frozen
class Known:
    """Differences and refusals that are right, or not the proxy's: *file* a shell pattern, *detail* a regular expression."""

    reason: str
    file: str = "*"
    origin: str = "*"
    check: str = "*"
    detail: str = ""

    def covers(self, outcome: Outcome) -> bool:
        return (
            fnmatch.fnmatch(outcome.file, self.file)
            and fnmatch.fnmatch(outcome.origin, self.origin)
            and fnmatch.fnmatch(outcome.check, self.check)
            and re.search(self.detail, outcome.detail) is not None
        )


_NO_PART_10 = "no DICOM Part 10 file (PS3.10 section 7.1): a folder's are"
KNOWN: tuple[Known, ...] = (
    Known(_NO_PART_10, "*NoMeta.dcm", "folder", "metadata"),
    Known(_NO_PART_10, "*/rtstruct.dcm", "folder", "metadata"),
    Known(_NO_PART_10, "*/OT-PAL-8-face.dcm", "folder", "metadata"),
    Known("implicit VR where the transfer syntax has explicit VR", "*/SC_rgb_jpeg.dcm", "folder", "metadata"),
    Known("pixel data that is cut off", "*/MR_truncated.dcm", "folder", "metadata"),
    Known("a number of frames that is no number", "*/badVR.dcm"),
    Known("UIDs with letters (PS3.5 section 9.1)", "*/bad_sequence.dcm", "*", "metadata", "is no UID"),
    Known("Orthanc's metadata lose the window: a yen sign for its backslash", "*/J2K_pixelrep_mismatch.dcm", "orthanc"),
    Known("Orthanc's metadata lose the palette's descriptors", "*/OBXXXX1A_2frame-implicit.dcm", "orthanc", "[rw]*"),
    Known("Orthanc's metadata lose the palette's descriptors", "*/gdcm-US-ALOKA-16.dcm", "orthanc", "[rw]*"),
)
"""Each was looked into: a file that is wrong, or a store that loses what a picture needs."""


@attrs.frozen
class Outcome:
    """What came of one request. *frame*: from 1; 0: the whole. *also*: what the origin itself, or another right picture, says of it."""

    origin: str
    source: str
    file: str
    check: str
    frame: int
    result: str
    detail: str = ""
    also: str = ""

    @property
    def reason(self) -> str:
        """Why it is as it should be; "" where it is not."""
        if self.result in (EQUAL, NO_REFERENCE):
            return self.result
        return self.also or next((known.reason for known in KNOWN if known.covers(self)), "")


@attrs.frozen
class Item:
    """A file that is served: *name* is unique among all, *image* None for what has no pixels."""

    name: str
    source: str
    path: Path
    image: bool
    sop: str


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
    """Each file once, whatever its name; of a SOP Instance UID that came before, the last digits are changed in the file."""
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
    """A file's content with another UID, as long as the one that it has; None where that is not found in the data set, which is
    deflated then."""
    return content.replace(uid.encode(), other.encode()) if content.count(uid.encode()) >= 2 else None


def sample(count: int) -> list[int]:
    """Frames of an image that are compared: all, or a sample with the first and the last."""
    if count <= FRAMES:
        return list(range(1, count + 1))
    return sorted({1, count, *random.Random(count).sample(range(2, count), FRAMES - 2)})


class Comparison:
    """One image at one origin."""

    def __init__(self, item: Item, instance: Instance, origin: str, proxy: Fetcher, direct: Fetcher | None) -> None:
        self._item, self._instance, self._origin = item, instance, origin
        self._proxy, self._direct = proxy, direct
        self._resource = f"{origin}/{instance.resource}"

    def outcomes(self) -> Iterator[Outcome]:
        """All of it, and nothing further where there is no metadata."""
        answer = self._proxy.get(f"{self._resource}/metadata", {"Accept": "application/dicom+json"})
        if answer.status != 200:
            yield self._outcome("metadata", 0, REFUSED, refusal(answer))
            return
        yield self._outcome("metadata", 0, *self._metadata(answer))
        if self._item.image:
            numbers = sample(self._instance.frames)
            yield from self._stored(numbers)
            for number in numbers:
                yield self._rendered(number)
            if self._instance.is_tiled or self._instance.frames == 1:
                yield self._whole()
            if self._instance.profile:
                yield self._profile()

    def _outcome(self, check: str, frame: int, result: str, detail: str = "", also: str = "") -> Outcome:
        return Outcome(self._origin, self._item.source, self._item.name, check, frame, result, detail, also)

    def _metadata(self, answer: Fetched) -> tuple[str, str]:
        """Whether it is of this instance, and as JSON should be (RFC 8259)."""
        try:
            described = json.loads(answer.body)
        except ValueError as error:
            return DIFFERENT, f"no JSON: {error}"
        found = [instance["00080018"]["Value"] for instance in described]
        return (EQUAL, "") if found == [[self._item.sop]] else (DIFFERENT, f"the metadata of {found}")

    def _stored(self, numbers: Sequence[int]) -> Iterator[Outcome]:
        try:
            expected = self._instance.stored()
        except NoReference as error:
            answer = self._proxy.frames(self._resource, [1])
            yield self._outcome("stored", 1, NO_REFERENCE, f"{error}; the proxy: {refusal(answer)}")
            return
        for asked in [[number] for number in numbers] + ([numbers] if len(numbers) > 1 else []):
            check, frame = ("stored", asked[0]) if len(asked) == 1 else ("list", 0)
            right = [expected[number - 1] for number in asked]
            result, detail = frames_compared(self._proxy.frames(self._resource, asked), right)
            also = ""
            if result != EQUAL and self._direct is not None:
                straight = frames_compared(self._direct.frames(self._instance.resource, asked), right)
                if straight == (result, detail) or (straight[0], result) == (REFUSED, REFUSED):
                    also = f"so is Orthanc's own answer: {straight[1][:60]}"
            yield self._outcome(check, frame, result, detail, also)

    def _picture(self, path: str) -> Fetched:
        return self._proxy.get(f"{self._resource}/{path}", {"Accept": "image/png"})

    def _rendered(self, number: int) -> Outcome:
        answer = self._picture(f"frames/{number}/rendered")
        try:
            result, detail, also = self._compared(answer, self._instance.pictures(number))
            return self._outcome("rendered", number, result, detail, also or self._without_frames(result))
        except NoReference as error:
            return self._outcome("rendered", number, NO_REFERENCE, f"{error}; the proxy: {refusal(answer)}")

    def _whole(self) -> Outcome:
        answer = self._picture("rendered")
        try:
            if not self._instance.is_tiled:
                right = self._instance.pictures(1)
            elif self._instance.data.TotalPixelMatrixRows * self._instance.data.TotalPixelMatrixColumns > MAX_WHOLE:
                raise NoReference("a picture too large to compare")
            else:
                right = {"mosaic": self._instance.mosaic()}
        except NoReference as error:
            return self._outcome("whole", 0, NO_REFERENCE, f"{error}; the proxy: {refusal(answer)}")
        result, detail, also = self._compared(answer, right)
        return self._outcome("whole", 0, result, detail, also or self._without_frames(result))

    def _profile(self) -> Outcome:
        """Whether the picture comes with the instance's own ICC profile."""
        answer = self._picture("frames/1/rendered?iccprofile=yes")
        if answer.status != 200:
            return self._outcome("profile", 1, REFUSED, refusal(answer), self._without_frames(REFUSED))
        came = Image.open(io.BytesIO(answer.body)).info.get("icc_profile", b"")
        if came == self._instance.profile:
            return self._outcome("profile", 1, EQUAL)
        return self._outcome(
            "profile", 1, DIFFERENT, f"a profile of {len(came)} bytes where {len(self._instance.profile)} are stored"
        )

    def _without_frames(self, result: str) -> str:
        """Where there is no picture: whether the store gives no frame to make one of."""
        if result != REFUSED or self._direct is None:
            return ""
        answer = self._direct.frames(self._instance.resource, [1])
        return "" if answer.status == 200 else f"Orthanc has no frame for it: {refusal(answer)[:60]}"

    def _compared(self, answer: Fetched, right: Mapping[str, Pixels]) -> tuple[str, str, str]:
        """The result, what is wrong, and what is right about it all the same."""
        if answer.status != 200:
            return REFUSED, refusal(answer), ""
        got = numpy.asarray(Image.open(io.BytesIO(answer.body)))
        found = {name: difference(got, picture, self._instance.lossy) for name, picture in right.items()}
        first, *others = found
        if not found[first]:
            return EQUAL, "", ""
        other = next((name for name in others if not found[name]), "")
        if other and int(numpy.ptp(got)) < min(FEW_LEVELS, int(numpy.ptp(right[first]))):
            return DIFFERENT, f"shows next to nothing: {numpy.ptp(got) + 1} levels of gray, as of the {other}", ""
        return DIFFERENT, found[first], other and f"shows the {other}, not the {first}"


def refusal(answer: Fetched) -> str:
    """A status and, of an error, the text that came with it."""
    text = "" if answer.status == 200 else answer.body[:400].decode("utf-8", "replace")
    try:
        text = json.loads(answer.body)["detail"]
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(f"{answer.status} {text}".split())[:300]


def frames_compared(answer: Fetched, right: Sequence[bytes]) -> tuple[str, str]:
    """The result, and what is wrong."""
    if answer.status != 200:
        return REFUSED, refusal(answer)
    try:
        got = answer.frames()
    except (ValueError, KeyError) as error:
        return DIFFERENT, f"no multipart: {error}"
    if got == list(right):
        return EQUAL, ""
    if len(got) != len(right):
        return DIFFERENT, f"{len(got)} frames where {len(right)} were asked for"
    wrong = next(index for index in range(len(got)) if got[index] != right[index])
    came, should = got[wrong], right[wrong]
    if len(came) != len(should):
        return DIFFERENT, f"{len(came)} bytes where {len(should)} are stored"
    for size in (2, 4):
        if len(came) % size == 0 and numpy.frombuffer(came, f">u{size}").astype(f"<u{size}").tobytes() == should:
            return DIFFERENT, f"words of {size} bytes are big endian"
    at = next(index for index in range(len(came)) if came[index] != should[index])
    return (
        DIFFERENT,
        f"other bytes from byte {at} on: {came[at : at + 4].hex(' ')} where {should[at : at + 4].hex(' ')} is stored",
    )


def difference(got: Pixels, right: Pixels, lossy: bool) -> str:
    """What is wrong with a picture; "" if it is right."""
    if got.shape != right.shape:
        return f"a picture of {got.shape} where {right.shape} is right"
    apart = numpy.abs(got.astype(numpy.int16) - right)
    mean, most = float(apart.mean()), float(numpy.percentile(apart, 99.9)) if lossy else float(apart.max())
    if most <= (LOSSY_MOST if lossy else LOSSLESS_STEPS) and mean <= (LOSSY_MEAN if lossy else LOSSLESS_STEPS):
        return ""
    return (
        f"samples apart by {mean:.1f} on average, {most:.0f} at most, {(apart > 1).mean():.1%} of them by more than 1"
    )


def compare(item: Item, url: str, orthanc: Orthanc, origins: Sequence[str], folder: Path) -> list[Outcome]:
    """All of one file."""
    outcomes: list[Outcome] = []
    proxy, direct = Fetcher(url), Fetcher(orthanc.url)
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

        with ThreadPoolExecutor(CALLERS) as callers:
            for outcomes in callers.map(compared, layer):
                yield from outcomes
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
