"""The folder's answers to DICOMweb requests (DICOM PS3.18 section 10).

- What is there is given as it is stored; what would need decoding is refused with 406.
- Nothing is stored, deleted or replaced: 405.
- URLs in answers begin with the origin's own URL, as those of any store do; who stands in front rewrites them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Optional
from urllib.parse import unquote

from twistedproxy.dicom.media_types import MediaType
from twistedproxy.dicom.multipart_writer import MultipartForm, build, part_content_type
from twistedproxy.dicom.resource import InvalidUID, validate_uid
from twistedproxy.dicom.transfer_syntaxes import OCTET_STREAM, media_type_of
from twistedproxy.origin.folder.accept import (
    JSON_TYPES,
    accepted_types,
    accepts_json,
    accepts_parts,
    accepts_single,
    offers,
)
from twistedproxy.origin.folder.bodies import GeneratedStream, PartSource, file_chunks, identity, multipart
from twistedproxy.origin.folder.frames import FrameReader
from twistedproxy.origin.folder.index import Index
from twistedproxy.origin.folder.instance_file import AVAILABLE_TRANSFER_SYNTAX, StoredFile, read_full_header
from twistedproxy.origin.folder.json_model import NoSuchElement, find_value, json_chunks
from twistedproxy.origin.folder.open_files import OpenFiles
from twistedproxy.origin.folder.query import parse_query
from twistedproxy.origin.folder.refusals import (
    DICOM_JSON,
    MAX_SHOWN,
    Refusal,
    answer,
    no_such,
    not_acceptable,
    not_allowed,
    shown,
    streamed,
)
from twistedproxy.origin.folder.search import Level, Where, result_chunks, search
from twistedproxy.origin.folder.threads import Threads
from twistedproxy.origin.interface import OriginRequest, OriginResponse
from twistedproxy.streams import BytesStream, StreamTooLong

SEARCH_WAIT = 5.0  # seconds that a search waits for the first scan; it then gives what is known
MAX_FRAMES = 10_000  # of one request; the number of frames in a query line of 16 KiB is smaller
MAX_FRAMES_BYTES = 256 * 1024 * 1024  # of one answer
DICOM = "application/dicom"
_READ = ("GET", "HEAD", "OPTIONS")

Handler = Callable[[], Awaitable[OriginResponse]]


class FolderServer:
    """Answers GET and HEAD. *url*: what URLs in answers begin with. *translate*: from errors of reading to an origin's."""

    def __init__(
        self,
        url: str,
        index: Index,
        threads: Threads,
        files: OpenFiles,
        frames: FrameReader,
        translate: Callable[[Exception], Exception],
    ) -> None:
        self._url = url.rstrip("/")
        self._index = index
        self._threads = threads
        self._files = files
        self._frames = frames
        self._translate = translate

    async def answer(self, request: OriginRequest) -> OriginResponse:
        """Answer one request. Raises `Refusal`, origin errors, and what reading raises."""
        handler = self._route(request)
        method = request.method.decode("latin-1").upper()
        if method == "OPTIONS":
            allow = ", ".join(_READ).encode("ascii")
            return OriginResponse(204, ((b"Allow", allow),), BytesStream(), 0)
        if method not in _READ:
            raise not_allowed(_READ)
        response = await handler()
        if method == "HEAD":
            response.body.close()
            return OriginResponse(response.status, response.headers, BytesStream(), response.length)
        return response

    def _route(self, request: OriginRequest) -> Handler:
        segments = unquote(request.path.decode("latin-1")).strip("/").split("/")
        try:
            found = _split(segments)
        except InvalidUID as error:
            raise Refusal(400, str(error)) from None
        if found is None:
            raise Refusal(404, f"{shown(request.path)} is no DICOMweb resource of a folder")
        study, series, sop, rest = found
        return self._resource(request, study, series, sop, rest)

    def _resource(
        self, request: OriginRequest, study: Optional[str], series: Optional[str], sop: Optional[str], rest: list[str]
    ) -> Handler:
        where = Where(study, series)
        match rest:
            case ["studies" | "series" | "instances" as level] if sop is None:
                return lambda: self._search(request, Level(level), where)
            case ["metadata"]:
                return lambda: self._metadata(request, study, series, sop)
            case ["bulkdata", *place] if sop is not None and place:
                return lambda: self._bulk_data(request, study, series, sop, place)
            case ["frames", numbers] if sop is not None:
                return lambda: self._frame_list(request, study, series, sop, numbers)
            case []:
                return lambda: self._instances(request, study, series, sop)
            case ["rendered" | "thumbnail"] | ["frames", _, "rendered" | "thumbnail"]:
                return lambda: self._nothing_rendered(study, series, sop)
        raise Refusal(404, f"{shown(request.path)} is no DICOMweb resource of a folder")

    async def _search(self, request: OriginRequest, level: Level, where: Where) -> OriginResponse:
        _require_json(request)
        query = parse_query(request.query)
        complete = await self._index.first_scan(SEARCH_WAIT)
        self._index.check_there()
        catalog = self._index.catalog
        results = await self._threads.run(lambda: search(catalog, level, where, query))
        warnings = []
        if results.left:
            # PS3.18 section 8.3.4.4 and 10.6.3
            warnings.append(f"There are {results.left} additional results that can be requested")
        if query.ignored:
            names = "".join(char for char in ", ".join(query.ignored) if char.isalnum() or char in ".,_ ")
            warnings.append(f"Nothing is matched by these parameters: {names[:MAX_SHOWN]}")
        if not complete:
            warnings.append("The folder is still being indexed: there may be more results")
        headers = [(b"Warning", f'299 twistedproxy "{text}"'.encode("ascii", "replace")) for text in warnings]
        chunks = result_chunks(results.found, level, where, query, self._url)
        return await self._generated(200, DICOM_JSON, chunks, None, tuple(headers))

    async def _metadata(
        self, request: OriginRequest, study: Optional[str], series: Optional[str], sop: Optional[str]
    ) -> OriginResponse:
        _require_json(request)
        records = await self._records(study, series, sop)
        return await self._generated(200, DICOM_JSON, self._metadata_chunks(records), None)

    def _metadata_chunks(self, records: Sequence[StoredFile]) -> Iterator[bytes]:
        separator = b"["
        for record in records:
            uri = f"{self._url}{record.resource}/bulkdata"
            extra: dict[str, Any] = {AVAILABLE_TRANSFER_SYNTAX: {"vr": "UI", "Value": [record.transfer_syntax]}}
            if record.pixels is not None:
                tag = f"{record.pixels.tag:08X}"
                extra[tag] = {"vr": record.pixels.vr, "BulkDataURI": f"{uri}/{tag}"}
            yield separator
            yield from json_chunks(read_full_header(record), uri, extra)
            separator = b","
        yield b"]"

    async def _instances(
        self, request: OriginRequest, study: Optional[str], series: Optional[str], sop: Optional[str]
    ) -> OriginResponse:
        types = accepted_types(request)
        records = await self._records(study, series, sop)
        refused = [record for record in records if not accepts_parts(types, DICOM, record.transfer_syntax)]
        if refused:
            raise not_acceptable(f"{offers([DICOM])}; transfer-syntax={refused[0].transfer_syntax}")
        only = records[0]
        if len(records) == 1 and accepts_single(types, DICOM, only.transfer_syntax):
            content_type = part_content_type(DICOM, only.transfer_syntax).encode("ascii")
            return await self._generated(200, content_type, file_chunks(self._files, only), only.stamp.size)
        return await self._multipart([self._whole(record) for record in records], DICOM, records)

    def _whole(self, record: StoredFile) -> PartSource:
        return PartSource(
            record.transfer_syntax,
            record.stamp.size,
            lambda: file_chunks(self._files, record),
        )

    async def _multipart(
        self, parts: Sequence[PartSource], media_type: str, records: Sequence[StoredFile]
    ) -> OriginResponse:
        body = multipart(parts, media_type, identity(records))
        return await self._generated(200, body.content_type, body.chunks, body.length)

    async def _frame_list(
        self, request: OriginRequest, study: Optional[str], series: Optional[str], sop: Optional[str], listed: str
    ) -> OriginResponse:
        record = (await self._records(study, series, sop))[0]
        numbers = _frame_numbers(listed, record)
        types, media_type, syntax = _frame_form(request, record)
        distinct = sorted(set(numbers))
        try:
            frames = await self._threads.run(lambda: self._frames.read(record, distinct, MAX_FRAMES_BYTES))
        except StreamTooLong:
            raise Refusal(413, f"the frames have more than {MAX_FRAMES_BYTES} bytes together") from None
        found = dict(zip(distinct, frames))
        if len(numbers) == 1 and accepts_single(types, media_type, syntax):
            return answer(200, part_content_type(media_type, syntax).encode("ascii"), frames[0])
        body = build([found[number] for number in numbers], media_type, syntax)
        return streamed(200, body.content_type, BytesStream(*body.chunks), body.length)

    async def _bulk_data(
        self, request: OriginRequest, study: Optional[str], series: Optional[str], sop: Optional[str], place: list[str]
    ) -> OriginResponse:
        record = (await self._records(study, series, sop))[0]
        pixels = record.pixels
        if pixels is not None and place == [f"{pixels.tag:08X}"]:
            if pixels.length is None:
                return await self._all_frames(request, record)
            spans = await self._threads.run(lambda: self._frames.spans(record))
            return await self._octets(request, record, pixels.length, lambda: self._frames.chunks(record, spans))
        try:
            value = await self._threads.run(lambda: find_value(read_full_header(record), place))
        except NoSuchElement:
            raise no_such("bulk data") from None
        return await self._octets(request, record, len(value), lambda: iter((value,)))

    async def _all_frames(self, request: OriginRequest, record: StoredFile) -> OriginResponse:
        """Encapsulated pixel data: a part for each frame, each read when its turn comes; one body if that is wanted."""
        types, media_type, syntax = _frame_form(request, record)
        first = await self._threads.run(lambda: self._frames.spans(record, 1))
        if record.frames == 1 and accepts_single(types, media_type, syntax):
            content_type = part_content_type(media_type, syntax).encode("ascii")
            return await self._generated(200, content_type, self._frames.chunks(record, first), _size(first))
        form = MultipartForm.of(media_type, syntax, identity([record]))
        return await self._generated(200, form.content_type, self._frame_parts(record, form), None)

    def _frame_parts(self, record: StoredFile, form: MultipartForm) -> Iterator[bytes]:
        for number in range(1, record.frames + 1):
            spans = self._frames.spans(record, number)
            yield form.head(_size(spans), number == 1)
            yield from self._frames.chunks(record, spans)
        yield form.end

    async def _octets(
        self, request: OriginRequest, record: StoredFile, length: int, chunks: Callable[[], Iterator[bytes]]
    ) -> OriginResponse:
        types = accepted_types(request)
        if not accepts_parts(types, OCTET_STREAM):
            raise not_acceptable(offers([OCTET_STREAM]))
        if accepts_single(types, OCTET_STREAM):
            return await self._generated(200, OCTET_STREAM.encode("ascii"), chunks(), length)
        return await self._multipart([PartSource(None, length, chunks)], OCTET_STREAM, [record])

    async def _nothing_rendered(
        self, study: Optional[str], series: Optional[str], sop: Optional[str]
    ) -> OriginResponse:
        await self._records(study, series, sop)
        raise Refusal(406, "a folder gives frames as they are stored and renders nothing")

    async def _records(self, study: Optional[str], series: Optional[str], sop: Optional[str]) -> list[StoredFile]:
        """What is there of a study, series or instance. `OriginBusy` as `Index.find`."""
        assert study is not None  # every resource that gets here lies below a study
        found = await self._index.find(study, series, sop)
        if not found:
            raise no_such("instance" if sop else "series" if series else "study")
        return found

    async def _generated(
        self,
        status: int,
        content_type: bytes,
        chunks: Iterator[bytes],
        length: Optional[int],
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> OriginResponse:
        body = GeneratedStream(self._threads, chunks, self._translate)
        await body.start()
        return streamed(status, content_type, body, length, headers)


def _size(spans: Sequence[tuple[int, int]]) -> int:
    return sum(end - start for start, end in spans)


def _split(segments: list[str]) -> Optional[tuple[Optional[str], Optional[str], Optional[str], list[str]]]:
    """(study, series, instance, what follows) of a path below the root; None for no such path. Raises `InvalidUID`."""
    match segments:
        case ["studies" | "series" | "instances"]:
            return None, None, None, segments
        case ["studies", study, "series", series, "instances", sop, *rest]:
            return validate_uid(study), validate_uid(series), validate_uid(sop), rest
        case ["studies", study, "series", series, *rest]:
            return validate_uid(study), validate_uid(series), None, rest
        case ["studies", study, *rest]:
            return validate_uid(study), None, None, rest
    return None


def _require_json(request: OriginRequest) -> None:
    if not accepts_json(accepted_types(request)):
        raise not_acceptable(JSON_TYPES[0])


def _frame_form(request: OriginRequest, record: StoredFile) -> tuple[list[MediaType], str, str]:
    """What is accepted, and the media type and transfer syntax of the frames of *record*; 406 where these are not."""
    types = accepted_types(request)
    syntax = record.frame_syntax
    media_type = media_type_of(syntax)
    if not accepts_parts(types, media_type, syntax):
        raise not_acceptable(f"{offers([media_type])}; transfer-syntax={syntax}")
    return types, media_type, syntax


def _frame_numbers(listed: str, record: StoredFile) -> list[int]:
    """Numbers from 1, in the order asked for. Raises `Refusal` 400, 404."""
    texts = listed.split(",", MAX_FRAMES)
    if len(texts) > MAX_FRAMES:
        raise Refusal(400, f"more than {MAX_FRAMES} frames were asked for")
    if any(not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text)) for text in texts):
        raise Refusal(400, f"{shown(listed)} is no list of frames: numbers from 1, joined by commas, are accepted")
    numbers = [int(text) for text in texts]
    check_numbers(record, numbers)
    return numbers


def check_numbers(record: StoredFile, numbers: Sequence[int]) -> None:
    """Raises `Refusal` 404 for frames that the instance doesn't have."""
    if record.pixels is None:
        raise Refusal(404, "the instance has no pixel data")
    if numbers and (max(numbers) > record.frames or min(numbers) < 1):
        raise Refusal(404, f"the instance has frames 1 to {record.frames}")
