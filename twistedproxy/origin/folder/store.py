"""Uploads into a folder (STOW-RS, DICOM PS3.18 section 10.5).

- Each part is written to a file of its own while it arrives, out of sight of searches, and gets its place,
  ``<study>/<series>/<instance>.dcm``, only once it is whole and was read as DICOM.
- An instance that is there already stays: the same bytes again are a success, others a failure.
- A body that breaks off leaves what was stored before the break, as the standard allows, and no file besides.
"""

from __future__ import annotations

import errno
import filecmp
import functools
import io
import os
import secrets
import time
from collections.abc import Callable
from typing import Any, Optional

import attrs

from twistedproxy.dicom.address import InvalidUID, validate_uid
from twistedproxy.dicom.media_types import BadMediaType, MediaType, parse_media_type
from twistedproxy.dicom.multipart import BadMultipart, MultipartParser, PartData, PartEnd, PartStart
from twistedproxy.origin.folder.accept import header
from twistedproxy.origin.folder.answers import DICOM_JSON, Refusal, answer, shown
from twistedproxy.origin.folder.header import UnreadableFile, read_header
from twistedproxy.origin.folder.json_model import dumps
from twistedproxy.origin.folder.records import StoredFile
from twistedproxy.origin.folder.threads import Threads
from twistedproxy.origin.folder.watch import Watch
from twistedproxy.origin.interface import OriginRequest, OriginResponse

MAX_INSTANCES = 10_000  # in one request
WRITE_SIZE = 512 * 1024  # bytes gathered for one write
STALE_SECONDS = 24 * 3600.0  # without a byte written; no upload lasts that long
INCOMING = ".incoming-"  # begins with a dot: scans pass by

# Failure Reason (0008,1197): PS3.18 section I.2.2, PS3.7 annex C.
CANNOT_UNDERSTAND = 0xC000
OUT_OF_RESOURCES = 0xA700
NOT_THIS_STUDY = 0xA900
PROCESSING_FAILURE = 0x0110
DUPLICATE_INSTANCE = 0x0111

_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


@attrs.define
class Outcome:
    """What became of one part. *reason* None: stored."""

    reason: Optional[int] = None
    record: Optional[StoredFile] = None


class Receiver:
    """Takes the parts of one request. Its methods block: they run in threads, one at a time."""

    def __init__(
        self, folder: str, study: Optional[str], find: Callable[[str, str, str], Optional[StoredFile]]
    ) -> None:
        self._folder = folder
        self._study = study
        self._find = find
        self._file: Optional[io.FileIO] = None
        self._path = ""
        self._failed: Optional[int] = None
        self.outcomes: list[Outcome] = []

    def take(self, events: list[Any]) -> None:
        """Work off events of the multipart parser."""
        for event in events:
            if isinstance(event, PartData):
                self._write(event.data)
            elif isinstance(event, PartStart):
                self._begin(event.headers.get("content-type", "application/dicom"))
            elif isinstance(event, PartEnd):
                self.outcomes.append(self._end())

    def abandon(self) -> None:
        """Drop the part that is not complete."""
        if self._file is not None:
            self._file.close()
            self._file = None
            os.unlink(self._path)

    def _begin(self, content_type: str) -> None:
        if len(self.outcomes) >= MAX_INSTANCES:
            raise Refusal(413, f"more than {MAX_INSTANCES} instances in one request")
        self._failed = None if content_type.lower().startswith("application/dicom") else CANNOT_UNDERSTAND
        try:
            self._path = os.path.join(self._folder, INCOMING + secrets.token_hex(16))
            self._file = io.FileIO(self._path, "xb")
        except OSError as error:
            raise Refusal(403, f"the folder cannot be written to: {error.strerror}") from None

    def _write(self, data: bytes) -> None:
        if self._failed is not None or self._file is None:
            return
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._failed = OUT_OF_RESOURCES if error.errno in _FULL else PROCESSING_FAILURE
            self._file.truncate(0)

    def _end(self) -> Outcome:
        if self._file is None:
            return Outcome(PROCESSING_FAILURE)
        try:
            os.fsync(self._file.fileno())
            return Outcome(self._failed) if self._failed is not None else self._keep()
        except OSError as error:
            return Outcome(OUT_OF_RESOURCES if error.errno in _FULL else PROCESSING_FAILURE)
        finally:
            self._file.close()
            self._file = None
            if os.path.lexists(self._path):
                os.unlink(self._path)

    def _keep(self) -> Outcome:
        try:
            record = read_header(self._path, {})
        except (UnreadableFile, ValueError):
            return Outcome(CANNOT_UNDERSTAND)
        if self._study not in (None, record.study):
            return Outcome(NOT_THIS_STUDY, record)
        if (known := self._find(*record.key)) is not None:
            return self._again(record, known.path)
        place = os.path.join(self._folder, record.study, record.series)
        os.makedirs(place, exist_ok=True)
        if os.path.realpath(place) != os.path.join(os.path.realpath(self._folder), record.study, record.series):
            return Outcome(PROCESSING_FAILURE, record)  # a symlink leads out of the folder
        path = os.path.join(place, f"{record.sop}.dcm")
        try:
            os.link(self._path, path)  # unlike a rename, this never replaces what another upload put there
        except FileExistsError:
            return self._again(record, path)
        except OSError:  # a file system without hard links
            if os.path.lexists(path):
                return self._again(record, path)
            os.rename(self._path, path)
        return Outcome(None, attrs.evolve(record, path=path))

    def _again(self, record: StoredFile, path: str) -> Outcome:
        """An instance that is there already, at *path*."""
        same = filecmp.cmp(self._path, path, shallow=False)
        return Outcome(None if same else DUPLICATE_INSTANCE, attrs.evolve(record, path=path))


def sweep(folder: str) -> None:
    """Remove what uploads left behind whose process was killed. Blocking."""
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.name.startswith(INCOMING) and time.time() - entry.stat().st_mtime > STALE_SECONDS:
                    os.unlink(entry.path)
            except OSError:
                continue  # not ours to remove, or gone


def upload_boundary(request: OriginRequest) -> Optional[bytes]:
    """Check what comes (PS3.18 section 10.5.2); its boundary. Raises `Refusal` 415."""
    said = header(request.headers, b"content-type")
    try:
        media_type: Optional[MediaType] = parse_media_type(said)
    except BadMediaType:
        media_type = None
    if (
        media_type is None
        or media_type.type != "multipart/related"
        or media_type.part_type not in ("application/dicom", None)
    ):
        raise Refusal(415, f'Content-Type: {shown(said)} came; multipart/related; type="application/dicom" is accepted')
    return media_type.boundary


async def store(
    request: OriginRequest, folder: str, study: Optional[str], watch: Watch, threads: Threads, base: str
) -> OriginResponse:
    """Store what *request* brings. Raises `Refusal`; what the body raises."""
    if study is not None:
        try:
            validate_uid(study)
        except InvalidUID as error:
            raise Refusal(400, str(error)) from None
    parser = MultipartParser(upload_boundary(request))
    receiver = Receiver(folder, study, watch.catalog.get)
    try:
        await _receive(request, parser, receiver, threads)
    except BadMultipart as error:
        raise Refusal(400, f"the body is no multipart body: {error}") from None
    finally:
        await threads.run(receiver.abandon)
        await watch.look_at([record.path for record in _stored(receiver.outcomes)])
    if not receiver.outcomes:
        raise Refusal(400, "the body has no parts; parts of type application/dicom are accepted")
    return _response(receiver.outcomes, base, study)


async def _receive(request: OriginRequest, parser: MultipartParser, receiver: Receiver, threads: Threads) -> None:
    if request.body is None:
        raise Refusal(400, "the request has no body")
    events: list[Any] = []
    size = 0
    while chunk := await request.body.read():
        events += parser.feed(chunk)
        size += len(chunk)
        if size >= WRITE_SIZE:
            await threads.run(functools.partial(receiver.take, events))
            events, size = [], 0
    await threads.run(functools.partial(receiver.take, events))
    parser.close()


def _response(outcomes: list[Outcome], base: str, study: Optional[str]) -> OriginResponse:
    """The Store Instances response (PS3.18 section 10.5.3.2 and annex I)."""
    stored = _stored(outcomes)
    failed = [outcome for outcome in outcomes if outcome.reason is not None]
    dataset: dict[str, Any] = {}
    studies = {record.study for record in stored} | ({study} if study else set())
    if len(studies) == 1:
        dataset["00081190"] = {"vr": "UR", "Value": [f"{base}/studies/{studies.pop()}"]}
    if failed:
        dataset["00081198"] = {"vr": "SQ", "Value": [_failure(outcome) for outcome in failed]}
    if stored:
        dataset["00081199"] = {"vr": "SQ", "Value": [_reference(record, base) for record in stored]}
    status = 200 if not failed else 202 if stored else 409
    return answer(status, DICOM_JSON, dumps(dict(sorted(dataset.items()))))


def _stored(outcomes: list[Outcome]) -> list[StoredFile]:
    return [outcome.record for outcome in outcomes if outcome.reason is None and outcome.record is not None]


def _names(record: StoredFile) -> dict[str, Any]:
    return {
        "00081150": {"vr": "UI", "Value": [record.sop_class]},
        "00081155": {"vr": "UI", "Value": [record.sop]},
    }


def _reference(record: StoredFile, base: str) -> dict[str, Any]:
    return _names(record) | {"00081190": {"vr": "UR", "Value": [base + record.resource]}}


def _failure(outcome: Outcome) -> dict[str, Any]:
    names = _names(outcome.record) if outcome.record is not None else {}
    return names | {"00081197": {"vr": "US", "Value": [outcome.reason]}}
