"""The folder's responses to DICOMweb requests (DICOM PS3.18 section 10).

- What is there is given as it is stored; what would need decoding is refused with 406.
- Nothing is stored, deleted or replaced: 405.
- URLs in responses begin with the origin's own URL, as those of any store do; a proxy in front rewrites them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Optional
from urllib.parse import unquote

from twistedproxy.dicom.multipart_writer import MultipartForm, build, part_content_type
from twistedproxy.dicom.resource import InvalidUID, validate_uid
from twistedproxy.dicom.transfer_syntaxes import OCTET_STREAM
from twistedproxy.origin.errors import OriginRefused
from twistedproxy.origin.folder.accept import require_json, wants_bare
from twistedproxy.origin.folder.attributes import AVAILABLE_TRANSFER_SYNTAX, LEVELS
from twistedproxy.origin.folder.frames import FileReader
from twistedproxy.origin.folder.index import Index
from twistedproxy.origin.folder.instance_file import StoredFile, read_full_header
from twistedproxy.origin.folder.json_model import find_value, joined, json_chunks
from twistedproxy.origin.folder.offset_table import total
from twistedproxy.origin.folder.refusals import MAX_SHOWN, refused, shown
from twistedproxy.origin.folder.search import parse_query, result_chunks, search
from twistedproxy.origin.folder.threads import Threads, generated
from twistedproxy.origin.interface import Headers, OriginRequest, OriginResponse
from twistedproxy.streams import BytesStream, ByteStream, StreamTooLong

SEARCH_WAIT = 5.0  # seconds that a search waits for the first scan; it then gives what is known
MAX_FRAMES = 10_000  # of one request; the number of frames in a query line of 16 KiB is smaller
MAX_FRAMES_BYTES = 256 * 1024 * 1024  # of one answer
DICOM = "application/dicom"
_ALLOW = (b"Allow", b"GET, HEAD, OPTIONS")


class FolderServer:
    """Answers GET and HEAD. *url*: what URLs in answers begin with. *translate*: from errors of reading to an origin's."""

    def __init__(
        self,
        url: str,
        index: Index,
        threads: Threads,
        files: FileReader,
        translate: Callable[[Exception], Exception],
    ) -> None:
        self._url = url.rstrip("/")
        self._index = index
        self._threads = threads
        self._files = files
        self._translate = translate

    async def answer(self, request: OriginRequest) -> OriginResponse:
        """Answer one request. Raises origin errors, and what reading raises."""
        method = request.method.decode("latin-1").upper()
        if method == "OPTIONS":
            return OriginResponse(204, (_ALLOW,), BytesStream(), 0)
        if method not in ("GET", "HEAD"):
            raise refused(405, f"allowed here: {_ALLOW[1].decode()}", (_ALLOW,))
        response = await self._resource(request)
        if method == "HEAD":
            response.body.close()
            return OriginResponse(response.status, response.headers, BytesStream(), response.length)
        return response

    async def _resource(self, request: OriginRequest) -> OriginResponse:
        where, rest = _split(request.path)
        match where, rest:
            case _, [level] if level in LEVELS and len(where) < 3:
                return await self._search(request, level, where)
            case [_, *_], ["metadata"]:
                require_json(request)
                chunks = self._metadata_chunks(await self._records(where))
                return await self._generated(b"application/dicom+json", chunks)
            case [_, *_], []:
                return await self._instances(request, await self._records(where))
            case [_, _, _], ["bulkdata", _, *_]:
                return await self._bulk_data(request, (await self._records(where))[0], rest[1:])
            case [_, _, _], ["frames", numbers]:
                return await self._frame_list(request, (await self._records(where))[0], numbers)
            case [_, *_], ["rendered" | "thumbnail"] | ["frames", _, "rendered" | "thumbnail"]:
                await self._records(where)
                raise refused(406, "a folder gives frames as they are stored and renders nothing")
        raise refused(404, f"{shown(request.path)} is no DICOMweb resource of a folder")

    async def _records(self, where: Sequence[str]) -> list[StoredFile]:
        """What is there of a study, series or instance. `OriginBusy` as `Index.find`."""
        found = await self._index.find(*where)
        if not found:
            raise no_such(("study", "series", "instance")[len(where) - 1])
        return found

    async def _search(self, request: OriginRequest, level: str, where: tuple[str, ...]) -> OriginResponse:
        require_json(request)
        query = parse_query(request.query)
        complete = await self._index.first_scan(SEARCH_WAIT)
        self._index.check_there()
        catalog = self._index.catalog
        found = await self._threads.run(lambda: search(catalog, level, where, query))
        warnings = []
        if found.left:
            # PS3.18 section 8.3.4.4 and 10.6.3
            warnings.append(f"There are {found.left} additional results that can be requested")
        if query.ignored:
            names = "".join(char for char in ", ".join(query.ignored) if char.isalnum() or char in ".,_ ")
            warnings.append(f"Nothing is matched by these parameters: {names[:MAX_SHOWN]}")
        if not complete:
            warnings.append("The folder is still being indexed: there may be more results")
        headers = [(b"Warning", f'299 twistedproxy "{text}"'.encode("ascii", "replace")) for text in warnings]
        chunks = result_chunks(found, level, where, query, self._url)
        return await self._generated(b"application/dicom+json", chunks, None, tuple(headers))

    def _metadata_chunks(self, records: Iterable[StoredFile]) -> Iterator[bytes]:
        def one(record: StoredFile) -> Iterator[bytes]:
            uri = f"{self._url}{record.resource}/bulkdata"
            extra: dict[str, Any] = {AVAILABLE_TRANSFER_SYNTAX: {"vr": "UI", "Value": [record.common.transfer_syntax]}}
            if record.pixels is not None:
                tag = f"{record.pixels.tag:08X}"
                extra[tag] = {"vr": record.pixels.vr, "BulkDataURI": f"{uri}/{tag}"}
            return json_chunks(read_full_header(record), uri, extra)

        return joined(map(one, records))

    async def _instances(self, request: OriginRequest, records: Sequence[StoredFile]) -> OriginResponse:
        syntaxes = {record.common.transfer_syntax for record in records}
        bare = [wants_bare(request, DICOM, syntax) for syntax in sorted(syntaxes)]
        if len(records) == 1 and bare[0]:
            content_type = part_content_type(DICOM, *syntaxes).encode("ascii")
            return await self._generated(content_type, self._files.file_chunks(records[0]), records[0].stamp.size)
        boundary = _identity(records)
        forms = {syntax: MultipartForm.of(DICOM, syntax, boundary) for syntax in syntaxes}
        whole = MultipartForm.of(DICOM, min(syntaxes) if len(syntaxes) == 1 else None, boundary)
        kinds = [(forms[record.common.transfer_syntax], record.stamp.size) for record in records]
        length = sum(len(form.head(size, n == 0)) + size for n, (form, size) in enumerate(kinds)) + len(whole.end)
        parts = ((*kind, self._files.file_chunks(record)) for kind, record in zip(kinds, records))
        return await self._generated(whole.content_type, _multipart(parts), length)

    async def _frame_list(self, request: OriginRequest, record: StoredFile, listed: str) -> OriginResponse:
        numbers = _frame_numbers(listed, record)
        media_type, syntax = record.syntax.media_type, record.syntax.frame_uid
        bare = wants_bare(request, media_type, syntax)
        distinct = sorted(set(numbers))
        try:
            frames = await self._threads.run(lambda: self._files.read(record, distinct, MAX_FRAMES_BYTES))
        except StreamTooLong:
            raise refused(413, f"the frames have more than {MAX_FRAMES_BYTES} bytes together") from None
        found = dict(zip(distinct, frames))
        if len(numbers) == 1 and bare:
            return _response(
                part_content_type(media_type, syntax).encode("ascii"), BytesStream(*frames), len(frames[0])
            )
        body = build([found[number] for number in numbers], media_type, syntax)
        return _response(body.content_type, BytesStream(*body.chunks), body.length)

    async def _bulk_data(self, request: OriginRequest, record: StoredFile, place: Sequence[str]) -> OriginResponse:
        """One value: in one part, or bare; encapsulated pixel data in a part for each frame, each read when its turn comes."""
        pixels, media_type, syntax = record.pixels, OCTET_STREAM, None
        if pixels is not None and place == [f"{pixels.tag:08X}"]:
            count = 1
            if pixels.length is None:
                count, media_type, syntax = record.frames, record.syntax.media_type, record.syntax.frame_uid
            contents = self._pixels(record, count)
        else:
            value = await self._threads.run(lambda: find_value(read_full_header(record), place))
            if value is None:
                raise no_such("bulk data")
            count, contents = 1, iter(((len(value), iter((value,))),))
        bare = wants_bare(request, media_type, syntax)
        form = MultipartForm.of(media_type, syntax, _identity([record]))
        if count > 1:
            return await self._generated(form.content_type, _multipart((form, *content) for content in contents))
        size, chunks = await self._threads.run(lambda: next(contents))
        if bare:
            return await self._generated(part_content_type(media_type, syntax).encode("ascii"), chunks, size)
        return await self._generated(form.content_type, _multipart([(form, size, chunks)]), form.length([size]))

    def _pixels(self, record: StoredFile, count: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        for number in range(1, count + 1):
            spans = self._files.spans(record, number)
            yield total(spans), self._files.chunks(record, spans)

    async def _generated(
        self, content_type: bytes, chunks: Iterator[bytes], length: Optional[int] = None, headers: Headers = ()
    ) -> OriginResponse:
        body = await generated(self._threads, chunks, self._translate)
        return _response(content_type, body, length, headers)


def _response(content_type: bytes, body: ByteStream, length: Optional[int], headers: Headers = ()) -> OriginResponse:
    """*length*: bytes of the body, None where they are not known beforehand."""
    counted = () if length is None else ((b"Content-Length", b"%d" % length),)
    return OriginResponse(200, ((b"Content-Type", content_type), *counted, *headers), body, length)


def _multipart(parts: Iterable[tuple[MultipartForm, int, Iterator[bytes]]]) -> Iterator[bytes]:
    """A body of *parts*, at least one: the form, the bytes and the content of each."""
    for number, (form, size, chunks) in enumerate(parts):
        yield form.head(size, number == 0)
        yield from chunks
    yield form.end


def _identity(records: Sequence[StoredFile]) -> str:
    """A boundary: it cannot be put into a part without knowing the files' times, and the same state of the files has the
    same."""
    stated = repr([(record.path, record.stamp) for record in records])
    return hashlib.blake2b(stated.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _split(path: bytes) -> tuple[tuple[str, ...], list[str]]:
    """The UIDs of study, series and instance, as far as *path* names them; and what follows."""
    rest = unquote(path.decode("latin-1")).strip("/").split("/")
    where: tuple[str, ...] = ()
    for level in LEVELS:
        if rest[:1] != [level] or len(rest) < 2:
            break
        try:
            where = (*where, validate_uid(rest[1]))
        except InvalidUID as error:
            raise refused(400, str(error)) from None
        rest = rest[2:]
    return where, rest


def no_such(what: str) -> OriginRefused:
    """404; *what*: study, series, instance and so on."""
    return refused(404, f"there is no such {what} in the folder")


def _frame_numbers(listed: str, record: StoredFile) -> list[int]:
    """Numbers from 1, in the order asked for. Raises `OriginRefused` 400, 404."""
    texts = listed.split(",", MAX_FRAMES)
    if len(texts) > MAX_FRAMES:
        raise refused(400, f"more than {MAX_FRAMES} frames were asked for")
    if any(not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text)) for text in texts):
        raise refused(400, f"{shown(listed)} is no list of frames: numbers from 1, joined by commas, are accepted")
    numbers = [int(text) for text in texts]
    check_numbers(record, numbers)
    return numbers


def check_numbers(record: StoredFile, numbers: Sequence[int]) -> None:
    """Raises `OriginRefused` 404 for frames that the instance doesn't have."""
    if record.pixels is None:
        raise refused(404, "the instance has no pixel data")
    if numbers and (max(numbers) > record.frames or min(numbers) < 1):
        raise refused(404, f"the instance has frames 1 to {record.frames}")
