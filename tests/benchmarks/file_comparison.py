"""One image at one origin of a proxy: what is asked for, what should come, and what is known to be otherwise."""

from __future__ import annotations

import fnmatch
import io
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import numpy
from PIL import Image

from tests.benchmarks.expected_pictures import Instance, NoReference, Pixels
from tests.benchmarks.measuring import Fetched, Fetcher

FRAMES = 20  # of one image that are compared
MAX_WHOLE = 16_000_000  # pixels of whole pictures that are compared
LOSSLESS_STEPS = 1  # of 255: rounding
# Of 255: decoders' inverse transforms and upsampling; the most is that of 99.9 % of the samples.
LOSSY_MEAN, LOSSY_MOST = 2.0, 48
FEW_LEVELS = 64  # of gray: what shows fewer, where another range would show more, is no picture
EQUAL, DIFFERENT, REFUSED, NO_REFERENCE = "equal", "different", "refused", "no reference"


@attrs.frozen
class Item:
    """A file that is served: *name* is unique among all, *image*: whether it has pixels."""

    name: str
    source: str
    path: Path
    image: bool
    sop: str


@attrs.frozen
class Known:
    """Differences and refusals that are right, or not the proxy's. *file*, *origin*, *check*: shell patterns; *detail*: a
    regular expression."""

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
    Known("pixel data that is cut off", "*/MR_truncated.dcm", "folder", "metadata"),
    Known("a data set that is cut off", "*/rtplan_truncated.dcm", "folder", "metadata"),
    Known("a number of frames that is no number", "*/badVR.dcm"),
    Known("big endian words of 32-bit values: DCMTK swaps 16 bits, pydicom 32", "dcmtk/rtdose-big-endian.dcm"),
    Known("UIDs with letters (PS3.5 section 9.1)", "*/bad_sequence.dcm", "*", "metadata", "is not a UID"),
    Known("Orthanc's metadata lose the window: a yen sign for its backslash", "*/J2K_pixelrep_mismatch.dcm", "orthanc"),
    Known("Orthanc's metadata lose the palette's descriptors", "*/OBXXXX1A_2frame-implicit.dcm", "orthanc", "[rw]*"),
    Known("Orthanc's metadata lose the palette's descriptors", "*/gdcm-US-ALOKA-16.dcm", "orthanc", "[rw]*"),
)
"""Each was looked into: a file that is wrong, or a store that loses what a picture needs."""


@attrs.frozen
class Outcome:
    """What came of one request. *frame*: from 1; 0: all. *also*: why it is right nevertheless, where that was found out."""

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
