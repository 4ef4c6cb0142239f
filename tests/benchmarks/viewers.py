"""What two viewers send when a study is opened: Slim a slide, and OHIF a CT; and the studies that they open.

Read from the viewers' sources, facts only: which requests there are, in which order, what waits for what, and their Accept.
"""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from tests import slides
from tests.benchmarks.measuring import Fetched, Fetcher
from tests.benchmarks.model.series import SLICES
from tests.benchmarks.reader_replay import CT_CLASS, SLICE_SIDE
from tests.benchmarks.viewer_replay import CONNECTIONS, LEVELS
from tests.benchmarks.viewing import Level, visible
from tests.clients import Answer
from tests.stores.instances import StoredInstance, from_file

FIRST = 40  # frames that are shown before anything else
PROFILE_BYTES = 500_000
JSON = "application/dicom+json"
OCTETS = 'multipart/related; type="application/octet-stream"'
UNQUOTED = "multipart/related; type=application/octet-stream; transfer-syntax=*"
STUDY_FIELDS = "00081030%2C00080060%2C00080090%2C00100030"


@attrs.frozen
class Seconds:
    """Until the last frame that is shown; until the *first* `FIRST` frames, and all *frames*, from when they are asked for."""

    total: float
    first: float
    frames: float


@attrs.frozen
class Study:
    """One series. *files*: of *stored*, its instances, the finest level first. *shown*: whose frames, which, in the viewer's order."""

    files: Sequence[Path]
    stored: Sequence[StoredInstance]
    shown: Sequence[tuple[StoredInstance, int]]

    @property
    def uid(self) -> str:
        return self.stored[0].study

    @property
    def path(self) -> str:
        return f"studies/{self.uid}"

    @property
    def series(self) -> str:
        return f"{self.path}/series/{self.stored[0].series}"


class Viewer:
    """A browser's page with the credential of *caller*: requests are sent in the order in which they are made, on six connections.
    *as_stored*: compressed frames that come decompressed are wrong; some stores do that when they are asked directly."""

    def __init__(self, url: str, caller: str, as_stored: bool = True) -> None:
        self.url = url
        self._caller, self._as_stored = caller, as_stored
        self._free: queue.SimpleQueue[Fetcher] = queue.SimpleQueue()
        for _ in range(CONNECTIONS):
            self._free.put(Fetcher(url))
        self._pool = ThreadPoolExecutor(CONNECTIONS)
        self._expected: list[tuple[Future[Fetched], Callable[[], list[bytes]]]] = []

    def ask(self, path: str, accept: str = JSON) -> Future[Fetched]:
        """The answer. Raises RuntimeError on one that is neither 200 nor 204."""
        return self._pool.submit(self._get, path, accept)

    def get(self, path: str) -> bytes:
        """The body of a search or of metadata."""
        return self.ask(path).result().body

    def _get(self, path: str, accept: str) -> Fetched:
        fetcher = self._free.get()
        try:
            got = fetcher.get(path, {"Accept": accept, "Authorization": f"Bearer {self._caller}"})
        finally:
            self._free.put(fetcher)
        if got.status not in (200, 204):
            raise RuntimeError(f"{path}: {got.status} {got.body[:200]!r}")
        return got

    def show(self, frames: Iterable[tuple[StoredInstance, int]], accept: str) -> None:
        """Frames, one by one; returns when all are there."""
        asked = []
        for one, number in frames:
            asked.append(self.ask(f"{one.resource}/frames/{number}", accept))
            self._expected.append((asked[-1], partial(self._forms, one, number)))
        wait(asked)

    def _forms(self, one: StoredInstance, number: int) -> list[bytes]:
        stored = one.frames[number - 1]
        return [stored] if self._as_stored else [stored, one.decompressed(number)]

    def profile(self, level: Mapping[str, Any], stored: Sequence[StoredInstance]) -> Future[Fetched]:
        """The ICC profile of a level, as its metadata name it. Raises ValueError where that URL is not the server's."""
        url: str = level["00480105"]["Value"][0]["00282000"]["BulkDataURI"]
        if not url.startswith(self.url + "/"):
            raise ValueError(f"{url} is not below {self.url}")
        asked = self.ask(url.removeprefix(self.url + "/"), OCTETS)
        (right,) = (one.bulk["00282000"] for one in stored if one.sop == level["00080018"]["Value"][0])
        self._expected.append((asked, lambda: [right]))
        return asked

    def wrong(self) -> int:
        """How many frames and profiles are not what they should be. It takes a while, and is no part of what is measured."""
        count = 0
        for asked, right in self._expected:
            got = asked.result()
            frames = Answer(got.status, dict(got.headers), got.body).frames()
            count += len(frames) != 1 or frames[0] not in right()
        return count

    def close(self) -> None:
        self._pool.shutdown()
        while not self._free.empty():
            self._free.get().close()


# Slim: src/components/Worklist (searchForStudies), src/services/fetchImageMetadata, src/components/SlideViewer (populateViewports).
# dicom-microscopy-viewer: src/pyramid.js (_getIccProfiles, _createTileLoadFunction), src/viewer.js (render: tiles are asked for
# when all profiles are there). dicomweb-client: src/api.js (Accept of searches, metadata and bulk data).


def open_slide(viewer: Viewer, study: Study) -> Seconds:
    """As Slim does. What it searches for beside the profiles (annotations, segmentations) holds up no tile."""
    begun = time.perf_counter()
    viewer.get("studies?ModalitiesInStudy=SM")
    viewer.get(f"series?Modality=SM&StudyInstanceUID={study.uid}")
    levels = json.loads(viewer.get(f"{study.series}/metadata"))
    levels.sort(key=lambda level: level["00480006"]["Value"][0])
    profiles = [viewer.profile(level, study.stored) for level in levels]
    beside = [viewer.ask(f"{study.path}/instances?Modality={modality}") for modality in ("PR", "SR")]
    beside += [viewer.ask(f"{study.path}/series?Modality={modality}") for modality in ("ANN", "SEG", "OT")]
    wait(profiles)
    shown = time.perf_counter()
    viewer.show(study.shown, OCTETS + "; transfer-syntax=*")
    ended = time.perf_counter()
    wait(beside)
    return Seconds(ended - begun, ended - shown, ended - shown)


# OHIF: platform/app/src/routes/Mode/defaultRouteInit, extensions/default/src/DicomWebDataSource (qido.js,
# wado/retrieveMetadataLoaderAsync.js), .../Panels/StudyBrowser/PanelStudyBrowser, extensions/cornerstone/src/utils/
# interleaveCenterLoader (the middle slices first), platform/core/src/utils/generateAcceptHeader with platform/app's default
# configuration. cornerstone3D: packages/dicomImageLoader/src/imageLoader/wadors/loadImage (Accept, a frame a request).


def open_stack(viewer: Viewer, study: Study) -> Seconds:
    """As OHIF does: the list of studies; one of them, and its patient's others beside that; then all slices."""
    begun = time.perf_counter()
    search = f"studies?limit=101&offset=0&fuzzymatching=false&includefield={STUDY_FIELDS}"
    viewer.get(search)
    beside = [viewer.ask(f"{search}&StudyInstanceUID={study.uid}")]
    viewer.get(f"{study.path}/series")
    beside.append(viewer.ask(f"{search}&00100020={study.stored[0].metadata['00100020']['Value'][0]}"))
    viewer.get(f"{study.series}/metadata")
    shown = time.perf_counter()
    viewer.show(study.shown[:FIRST], UNQUOTED)
    first = time.perf_counter()
    viewer.show(study.shown[FIRST:], UNQUOTED)
    ended = time.perf_counter()
    wait(beside)
    return Seconds(ended - begun, first - shown, ended - shown)


def slide(folder: Path, number: int, levels: Sequence[tuple[int, int]] = LEVELS) -> Study:
    """Study *number*, of such *levels* (scale, tiles each way), each with an ICC profile of its own. The coarsest is what a window
    shows first, from the middle outwards."""
    root = f"1.2.826.0.1.3680043.9.8.{number}"
    extra = {"FrameOfReferenceUID": f"{root}.3", "ModalitiesInStudy": "SM"}
    files = [folder / f"{number}-{scale}.dcm" for scale, _ in levels]
    for file, (scale, side) in zip(files, levels, strict=True):
        profile = bytes((scale + place) % 251 for place in range(PROFILE_BYTES))
        slides.slide(file, side, side, icc_profile=profile, study=f"{root}.1", series=f"{root}.2", extra=extra)
    scale, side = levels[-1]
    middle = scale * side * 128
    shown = visible(Level("", scale, side, side), 2 * scale, middle, middle)[:FIRST]
    stored = [from_file(file) for file in files]
    return Study(files, stored, [(stored[-1], frame) for frame in shown])


def stack(folder: Path, number: int, slices: int = SLICES) -> Study:
    """Study *number*, a CT, from the middle outwards."""
    root = f"1.2.826.0.1.3680043.9.9.{number}"
    uids: dict[str, Any] = {"study": f"{root}.1", "series": f"{root}.2", "sop_class": CT_CLASS, "modality": "CT"}
    files = [folder / f"{number}-{place}.dcm" for place in range(slices)]
    for place, file in enumerate(files):
        position = {"InstanceNumber": str(place + 1), "ImagePositionPatient": ["0", "0", str(place)]}
        extra = {**position, "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"]}
        slides.multi_frame(file, 1, SLICE_SIDE, SLICE_SIDE, "raw-16", extra=extra, **uids)
    stored = [from_file(file) for file in files]
    outwards = sorted(range(slices), key=lambda place: abs(place - slices // 2))
    return Study(files, stored, [(stored[place], 1) for place in outwards])
