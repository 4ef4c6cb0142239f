"""The folder's responses to DICOMweb requests (DICOM PS3.18 section 10).

- What is there is given as it is stored; what would need decoding is refused with 406.
- Nothing is stored, deleted or replaced: 405.
- URLs in responses begin with the origin's own URL, as those of any store do; a proxy in front rewrites them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Optional
from urllib.parse import unquote

from twistedproxy.dicom.media_types import BadMediaType
from twistedproxy.dicom.multipart_writer import MultipartForm, part_content_type
from twistedproxy.dicom.negotiation import (
    AcceptedTypes,
    NotAcceptable,
    check_json,
    parse_accept,
    query_accept,
    wants_bare,
)
from twistedproxy.dicom.resource import MAX_SHOWN, InvalidUID, shown, validate_uid
from twistedproxy.dicom.transfer_syntaxes import OCTET_STREAM, frame_uid
from twistedproxy.origin.errors import OriginRefused, refused
from twistedproxy.origin.folder.frames import FileReader
from twistedproxy.origin.folder.index import Index
from twistedproxy.origin.folder.instance_file import StoredFile, read_full_header
from twistedproxy.origin.folder.json_model import AVAILABLE_TRANSFER_SYNTAX, LEVELS, find_value, joined, json_chunks
from twistedproxy.origin.folder.search import parse_query, result_chunks, search
from twistedproxy.origin.folder.threads import Threads, generated
from twistedproxy.origin.interface import Headers, OriginRequest, OriginResponse
from twistedproxy.streams import BytesStream, StreamTooLong

SEARCH_WAIT = 5.0  # seconds that a search waits for the first scan; it then gives what is known
MAX_FRAME_BYTES = 256 * 1024 * 1024
DICOM = "application/dicom"
_ALLOW = (b"Allow", b"GET, HEAD, OPTIONS")

Content = tuple[int, Iterator[bytes]]  # of a part: its size in bytes, and the bytes


class FolderServer:
    """Answers GET and HEAD. *url*: what URLs in answers begin with."""

    def __init__(self, url: str, index: Index, threads: Threads, files: FileReader) -> None:
        self._url = url.rstrip("/")
        self._index = index
        self._threads = threads
        self._files = files

    async def answer(self, request: OriginRequest) -> OriginResponse:
        """Answer one request. Raises origin errors."""
        method = request.method.decode("latin-1").upper()
        if method == "OPTIONS":
            return OriginResponse(204, (_ALLOW,), BytesStream(), 0)
        if method not in ("GET", "HEAD"):
            raise refused(405, f"this method is not allowed here; allowed: {_ALLOW[1].decode()}", (_ALLOW,))
        try:
            response = await self._resource(request)
        except NotAcceptable as error:
            listed = ", ".join(error.available)
            raise refused(406, f"none of the media types in Accept is available; available: {listed}") from None
        except BadMediaType as error:
            raise refused(400, str(error)) from None
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
                check_json(_accepted(request))
                chunks = self._metadata_chunks(await self._records(where))
                return await self._generated(b"application/dicom+json", chunks)
            case [_, *_], []:
                return await self._instances(request, await self._records(where))
            case [_, _, _], ["bulkdata", _, *_]:
                return await self._bulk_data(request, (await self._records(where))[0], rest[1:])
            case [_, _, _], ["frames", numbers]:
                return await self._frames(request, (await self._records(where))[0], numbers)
            case [_, *_], ["rendered" | "thumbnail"] | ["frames", _, "rendered" | "thumbnail"]:
                await self._records(where)
                raise refused(406, "a folder gives frames as stored and does not render")
        raise refused(404, f"{shown(request.path)} is not a DICOMweb resource of a folder")

    async def _records(self, where: Sequence[str]) -> list[StoredFile]:
        """What is there of a study, series or instance. `OriginBusy` as `Index.find`."""
        found = await self._index.find(*where)
        if not found:
            raise no_such(("study", "series", "instance")[len(where) - 1])
        return found

    async def _search(self, request: OriginRequest, level: str, where: tuple[str, ...]) -> OriginResponse:
        check_json(_accepted(request))
        query = parse_query(request.query)
        complete = await self._index.first_scan(SEARCH_WAIT)
        self._index.check_there()
        catalog = self._index.catalog
        results, left = await self._threads.run(lambda: search(catalog, level, where, query))
        warnings = []
        if left:
            # PS3.18 section 8.3.4.4 and 10.6.3
            warnings.append(f"There are {left} additional results that can be requested")
        if query.ignored:
            names = "".join(char for char in ", ".join(query.ignored) if char.isalnum() or char in ".,_ ")
            warnings.append(f"These parameters are not supported and were ignored: {names[:MAX_SHOWN]}")
        if not complete:
            warnings.append("The folder is still being indexed: there may be more results")
        headers = [(b"Warning", f'299 twistedproxy "{text}"'.encode("ascii", "replace")) for text in warnings]
        chunks = result_chunks(results, level, where, query, self._url)
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
        syntaxes = [record.common.transfer_syntax for record in records]
        contents = [(record.stamp.size, self._files.file_chunks(record)) for record in records]
        return await self._parts(request, records, DICOM, syntaxes, iter(contents), [size for size, _ in contents])

    async def _frames(self, request: OriginRequest, record: StoredFile, listed: str) -> OriginResponse:
        numbers = _frame_numbers(listed, record)

        def contents() -> Iterator[Content]:
            for number in numbers:
                try:
                    (frame,) = self._files.read(record, [number], MAX_FRAME_BYTES)
                except StreamTooLong:
                    raise refused(413, f"frame {number} has more than {MAX_FRAME_BYTES} bytes") from None
                yield len(frame), iter((frame,))

        syntax = record.syntax
        return await self._parts(
            request, [record], syntax.media_type, [frame_uid(syntax.uid)] * len(numbers), contents()
        )

    async def _bulk_data(self, request: OriginRequest, record: StoredFile, place: Sequence[str]) -> OriginResponse:
        """One value: in one part, or bare; encapsulated pixel data in a part for each frame."""
        pixels, syntax = record.pixels, record.syntax
        if pixels is None or place != [f"{pixels.tag:08X}"]:
            value = await self._threads.run(lambda: find_value(read_full_header(record), place))
            if value is None:
                raise no_such("bulk data")
            return await self._parts(request, [record], OCTET_STREAM, [None], iter([(len(value), iter((value,)))]))
        if pixels.length is not None:
            return await self._parts(request, [record], OCTET_STREAM, [None], self._files.pixel_data(record, 1))
        frames = self._files.pixel_data(record, record.frames)
        return await self._parts(request, [record], syntax.media_type, [frame_uid(syntax.uid)] * record.frames, frames)

    async def _parts(
        self,
        request: OriginRequest,
        records: Sequence[StoredFile],
        media_type: str,
        syntaxes: Sequence[Optional[str]],
        contents: Iterator[Content],
        sizes: Optional[Sequence[int]] = None,
    ) -> OriginResponse:
        """A part for each of *syntaxes*, or a single one bare, made of *records* when its turn comes."""
        boundary = _identity(records)
        forms = {syntax: MultipartForm.of(media_type, syntax, boundary) for syntax in syntaxes}
        accepted = _accepted(request)
        bare = [wants_bare(accepted, media_type, syntax) for syntax in forms]
        if len(syntaxes) == 1:
            size, chunks = await self._threads.run(lambda: next(contents))
            if bare[0]:
                return await self._generated(part_content_type(media_type, syntaxes[0]).encode("ascii"), chunks, size)
            contents, sizes = iter([(size, chunks)]), [size]
        whole = forms[syntaxes[0]] if len(forms) == 1 else MultipartForm.of(media_type, None, boundary)
        length = None
        if sizes is not None:
            heads = [forms[syntax].head(size, n == 0) for n, (syntax, size) in enumerate(zip(syntaxes, sizes))]
            length = sum(map(len, heads)) + sum(sizes) + len(whole.end)

        def body() -> Iterator[bytes]:
            for number, (syntax, (size, chunks)) in enumerate(zip(syntaxes, contents)):
                yield forms[syntax].head(size, number == 0)
                yield from chunks
            yield whole.end

        return await self._generated(whole.content_type, body(), length)

    async def _generated(
        self, content_type: bytes, chunks: Iterator[bytes], length: Optional[int] = None, headers: Headers = ()
    ) -> OriginResponse:
        """*length*: bytes of the body, None where they are not known beforehand."""
        body = await generated(self._threads, chunks)
        counted = () if length is None else ((b"Content-Length", b"%d" % length),)
        return OriginResponse(200, ((b"Content-Type", content_type), *counted, *headers), body, length)


def _accepted(request: OriginRequest) -> AcceptedTypes:
    header = b", ".join(value for name, value in request.headers if name.lower() == b"accept")
    return parse_accept(header, query_accept(request.query))


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
    return refused(404, f"no such {what} in the folder")


def _frame_numbers(listed: str, record: StoredFile) -> list[int]:
    """Numbers from 1, in the order asked for. Raises `OriginRefused` 400, 404."""
    texts = listed.split(",")
    if any(not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text)) for text in texts):
        raise refused(400, f"{shown(listed)} is not a list of frames; expected numbers from 1, separated by commas")
    numbers = [int(text) for text in texts]
    check_numbers(record, numbers)
    return numbers


def check_numbers(record: StoredFile, numbers: Sequence[int]) -> None:
    """Raises `OriginRefused` 404 for frames that the instance doesn't have."""
    if record.pixels is None:
        raise refused(404, "the instance has no pixel data")
    if numbers and (max(numbers) > record.frames or min(numbers) < 1):
        raise refused(404, f"the instance has frames 1 to {record.frames}")
