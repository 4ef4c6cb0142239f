"""Bodies that are made while they are read, in threads: files, long JSON, multipart of both.

- A body is a generator of bytes; each read runs it, in a thread, until there are `CHUNK` bytes.
- A generator holds no file between two chunks: an abandoned body leaves nothing open.
- A file is checked around each chunk, so what is sent is of one state of the file or the body breaks.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Optional

import attrs

from twistedproxy.dicom.multipart_writer import MultipartForm
from twistedproxy.origin.folder.instance_file import StoredFile
from twistedproxy.origin.folder.open_files import OpenFiles
from twistedproxy.origin.folder.threads import Threads

CHUNK = 512 * 1024  # bytes a read


class GeneratedStream:
    """A `ByteStream` out of a generator of bytes. *translate* turns what the generator raises into an origin error."""

    def __init__(self, threads: Threads, chunks: Iterator[bytes], translate: Callable[[Exception], Exception]) -> None:
        self._threads = threads
        self._chunks = chunks
        self._translate = translate
        self._lock = threading.Lock()  # a cancelled read may still be running in its thread
        self._first = b""
        self._closed = False
        self._broken: Optional[BaseException] = None

    async def start(self) -> None:
        """Make the first chunk, so that what fails at once fails before the answer begins."""
        self._first = await self.read()

    async def read(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        if self._broken is not None:
            raise self._broken
        if self._closed:
            return b""
        try:
            chunk = await self._threads.run(self._pull)
        except BaseException as error:
            self._broken = self._translate(error) if isinstance(error, Exception) else error
            raise self._broken from None
        self._closed = self._closed or not chunk
        return chunk

    def close(self) -> None:
        self._closed = True
        self._first = b""

    def _pull(self) -> bytes:
        gathered: list[bytes] = []
        size = 0
        with self._lock:
            for chunk in self._chunks:
                gathered.append(chunk)
                size += len(chunk)
                if size >= CHUNK or self._closed:
                    break
        return gathered[0] if len(gathered) == 1 else b"".join(gathered)


def file_chunks(files: OpenFiles, record: StoredFile, start: int = 0, end: Optional[int] = None) -> Iterator[bytes]:
    """The bytes of a file from *start* to *end* (its own end). Raises `FileChanged`, `OSError`."""
    end = record.stamp.size if end is None else end
    while start < end:
        with files.reading(record) as read_at:
            chunk = read_at(start, min(CHUNK, end - start))
        if not chunk:
            raise OSError("the file ended early")
        start += len(chunk)
        yield chunk


@attrs.frozen
class PartSource:
    """One part of a multipart body: *chunks* give its *length* bytes."""

    transfer_syntax: Optional[str]
    length: int
    chunks: Callable[[], Iterator[bytes]]


@attrs.frozen
class StreamedMultipart:
    """*length*: of the whole body in bytes."""

    content_type: bytes
    length: int
    chunks: Iterator[bytes]


def identity(records: Sequence[StoredFile]) -> str:
    """A boundary: nobody can put it into a part without knowing the files' times, and the same state of the files has
    the same."""
    stated = repr([(record.path, record.stamp) for record in records])
    return hashlib.blake2b(stated.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def multipart(parts: Sequence[PartSource], media_type: str, boundary: str) -> StreamedMultipart:
    """One multipart/related body (RFC 2387); the transfer syntax is told of the whole where all parts have the same."""
    syntaxes = {part.transfer_syntax for part in parts}
    whole = MultipartForm.of(media_type, syntaxes.pop() if len(syntaxes) == 1 else None, boundary)
    forms = [MultipartForm.of(media_type, part.transfer_syntax, boundary) for part in parts]
    heads = [form.head(part.length, number == 0) for number, (form, part) in enumerate(zip(forms, parts))]

    def chunks() -> Iterator[bytes]:
        for head, part in zip(heads, parts):
            yield head
            yield from part.chunks()
        yield whole.end

    length = sum(map(len, heads)) + sum(part.length for part in parts) + len(whole.end)
    return StreamedMultipart(whole.content_type, length, chunks())
