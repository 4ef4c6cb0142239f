"""A folder of DICOM files as an origin.

- Whoever may reach the proxy may read the folder: files have no callers of their own to judge by.
- What a file gives is of the very state in which it was indexed; a file that changed is looked at again and
  this once answered with an error, never with bytes of both.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Optional, TypeVar

from twisted.internet.defer import ensureDeferred
from twisted.logger import Logger

from twistedproxy.dicom.address import Instance
from twistedproxy.dicom.frame import Frame
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.origin.errors import OriginBadAnswer, OriginError, OriginUnreachable
from twistedproxy.origin.folder.answers import Refusal, no_such
from twistedproxy.origin.folder.bodies import GeneratedStream, file_chunks
from twistedproxy.origin.folder.frames import FrameReader
from twistedproxy.origin.folder.header import FileChanged, UnreadableFile
from twistedproxy.origin.folder.offsets import BadPixelData
from twistedproxy.origin.folder.open_files import OpenFiles
from twistedproxy.origin.folder.records import StoredFile
from twistedproxy.origin.folder.scan import FolderGone
from twistedproxy.origin.folder.server import FolderServer, check_numbers
from twistedproxy.origin.folder.threads import Shared, Threads
from twistedproxy.origin.folder.watch import INTERVAL, Watch
from twistedproxy.origin.interface import Caller, OriginRequest, OriginResponse, Priority
from twistedproxy.streams import ByteStream

FRAMES_PER_REQUEST = 500  # each is a read of its own; more in one go would only hold a thread longer

_READ_ERRORS = (OSError, FileChanged, BadPixelData, UnreadableFile)

T = TypeVar("T")
log = Logger()


class FolderOrigin:
    """The `Origin` of ``file:PATH``.

    *locate* gives the folder, when the origin starts. *interval*: seconds between two looks at it.
    """

    def __init__(
        self,
        url: str,
        locate: Callable[[], Awaitable[str]],
        reactor: Any,
        *,
        interval: float = INTERVAL,
    ) -> None:
        self.url = url
        self._locate = locate
        self._reactor = reactor
        self._interval = interval
        self._files = OpenFiles()
        self._frames = FrameReader(self._files)
        self._threads = Threads(reactor)
        self._running: dict[str, Shared[None]] = {}
        self._folder = ""
        self._watch: Optional[Watch] = None
        self._server: Optional[FolderServer] = None

    async def start(self) -> None:
        """Index the folder. `OriginUnreachable` where it cannot be listed."""
        self._folder = await self._locate()
        self._threads.start()
        watch = Watch(self._reactor, self._folder, self._threads, self._interval)
        watch.on_change = lambda: self._files.keep_only(watch.is_current)
        self._server = FolderServer(self.url, watch, self._threads, self._files, self._frames, self._translated)
        self._watch = watch
        try:
            await watch.start()
        except BaseException as error:
            await self.stop()
            if isinstance(error, FolderGone):
                raise OriginUnreachable(f"the folder cannot be listed: {error}") from None
            raise

    async def stop(self) -> None:
        if self._watch is not None:
            await self._watch.stop()
            await self._threads.stop()
            self._watch = None
        self._files.close()

    async def ping(self) -> None:
        try:
            await self._threads.run(lambda: os.scandir(self._folder).close())
        except OSError as error:
            raise OriginUnreachable(f"the folder cannot be listed: {error.strerror}") from None

    def status(self) -> dict[str, object]:
        watch = self._watching()
        return {
            "kind": "folder",
            "instances": watch.catalog.size,
            "unreadable_files": watch.unreadable,
            "duplicates": len(watch.catalog.duplicates),
            "scan_seconds": round(watch.scan_seconds, 3),
            "open_files": len(self._files),
        }

    async def metadata(self, instance: Instance, caller: Caller) -> InstanceMetadata:
        return (await self._record(instance)).facts

    async def readable(self, instance: Instance, caller: Caller) -> bool:
        try:
            await self._record(instance)
        except OriginError:
            return False
        return True

    def frames_per_request(self, instance: Instance) -> int:
        return FRAMES_PER_REQUEST

    async def frames(
        self,
        instance: Instance,
        numbers: Sequence[int],
        caller: Caller,
        metadata: InstanceMetadata,
        priority: Priority = Priority.CALLER,
        limit: Optional[int] = None,
    ) -> Mapping[int, Frame]:
        record = await self._record(instance)
        try:
            check_numbers(record, numbers)
        except Refusal as refusal:
            raise refusal.error() from None
        await self._table(record)
        frames = await self._reading(lambda: self._frames.read(record, numbers, limit))
        return {number: Frame(data, record.frame_syntax) for number, data in zip(numbers, frames)}

    async def stored_instance(self, instance: Instance, caller: Caller) -> ByteStream:
        record = await self._record(instance)
        stream = GeneratedStream(self._threads, file_chunks(self._files, record), self._translated)
        await stream.start()
        return stream

    async def local_file(self, instance: Instance) -> Optional[str]:
        """See `Origin.local_file`."""
        return (await self._record(instance)).path

    def examples(self) -> tuple[str, ...]:
        """See `Origin.examples`."""
        return ("studies",)

    async def forward(self, request: OriginRequest) -> OriginResponse:
        """Answer as a DICOMweb server would. Errors of the request are answers too."""
        self._watching()
        assert self._server is not None  # made with the watch
        try:
            return await self._read_resource(self._server, request)
        except Refusal as refusal:
            return refusal.response()
        finally:
            if request.body is not None:
                request.body.close()

    async def _read_resource(self, server: FolderServer, request: OriginRequest) -> OriginResponse:
        try:
            return await server.answer(request)
        except _READ_ERRORS as error:
            raise self._translated(error) from None

    async def _record(self, instance: Instance) -> StoredFile:
        """The file of *instance*; the folder is looked at again for one that is not known. `OriginRefused` 404."""
        watch = self._watching()
        if instance.root == "":
            found = watch.catalog.get(instance.study, instance.series, instance.sop)
            if found is None:
                await watch.refresh()
                found = watch.catalog.get(instance.study, instance.series, instance.sop)
            if found is not None:
                return found
        raise no_such("instance").error()

    async def _table(self, record: StoredFile) -> None:
        """Have the frames' places found once for all who wait for that: it may take a second."""
        if self._frames.has_table(record):
            return
        shared = self._running.get(record.path)
        if shared is None:
            shared = self._running[record.path] = Shared(lambda: self._prepare(record))
        await shared.join()

    async def _prepare(self, record: StoredFile) -> None:
        try:
            await self._reading(lambda: self._frames.prepare(record))
        finally:
            self._running.pop(record.path, None)

    async def _reading(self, call: Callable[[], T]) -> T:
        try:
            return await self._threads.run(call)
        except _READ_ERRORS as error:
            raise self._translated(error) from None

    def _translated(self, error: Exception) -> Exception:
        """What a caller may see of *error*: never a path."""
        if isinstance(error, (FileChanged, FileNotFoundError)):
            self._look_again()
            return OriginBadAnswer("the instance's file changed or went while it was read; ask again")
        if isinstance(error, (BadPixelData, UnreadableFile)):
            return OriginBadAnswer(f"the instance's file is broken: {error}")
        if isinstance(error, OSError):
            return OriginBadAnswer(f"the instance's file cannot be read: {error.strerror or type(error).__name__}")
        return error

    def _look_again(self) -> None:
        if self._watch is not None:
            ensureDeferred(self._watch.refresh()).addErrback(
                lambda failure: log.failure("looking at the folder failed", failure)
            )

    def _watching(self) -> Watch:
        if self._watch is None:
            raise OriginUnreachable("the folder is not being served")
        return self._watch


def folder_origin(url: str, reactor: Any, interval: float = INTERVAL) -> FolderOrigin:
    """The origin of ``file:PATH``. *interval*: seconds between two looks at the folder."""
    path = url.removeprefix("file:")

    async def locate() -> str:
        return path

    return FolderOrigin(url, locate, reactor, interval=interval)
