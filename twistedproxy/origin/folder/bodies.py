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

from twistedproxy.origin.folder.open_files import OpenFiles
from twistedproxy.origin.folder.records import StoredFile
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

    content_type: str
    length: int
    chunks: Callable[[], Iterator[bytes]]


@attrs.frozen
class StreamedMultipart:
    """*length*: of the whole body in bytes."""

    content_type: bytes
    length: int
    chunks: Iterator[bytes]


def multipart(parts: Sequence[PartSource], media_type: str, identity: str) -> StreamedMultipart:
    """One multipart/related body (RFC 2387). The boundary is a digest of *identity*: nobody can put it into a
    part without knowing the file's times, and it is the same for the same state of the files."""
    boundary = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    heads = []
    before = ""
    for part in parts:
        heads.append(
            f"{before}--{boundary}\r\nContent-Type: {part.content_type}\r\nContent-Length: {part.length}\r\n\r\n".encode(
                "ascii"
            )
        )
        before = "\r\n"
    tail = f"\r\n--{boundary}--\r\n".encode("ascii")

    def chunks() -> Iterator[bytes]:
        for head, part in zip(heads, parts):
            yield head
            yield from part.chunks()
        yield tail

    length = sum(map(len, heads)) + sum(part.length for part in parts) + len(tail)
    syntaxes = {part.content_type.partition("; transfer-syntax=")[2] for part in parts} - {""}
    syntax = f"; transfer-syntax={syntaxes.pop()}" if len(syntaxes) == 1 else ""
    content_type = f'multipart/related; type="{media_type}"{syntax}; boundary={boundary}'
    return StreamedMultipart(content_type.encode("ascii"), length, chunks())
