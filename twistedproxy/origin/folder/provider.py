"""A folder of DICOM files as an origin.

- Every caller that reaches the proxy may read the folder: files carry no access rights of callers.
- What a file gives is of the very state in which it was indexed; a file that changed is looked at again first, and
  what was cached of it is invalidated. Bytes of two states are never mixed: an answer that is under way breaks.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Optional

from twistedproxy.dicom.frame import Frame
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.origin.errors import OriginBadAnswer, OriginUnreachable
from twistedproxy.origin.folder.bodies import GeneratedStream, file_chunks
from twistedproxy.origin.folder.catalog import Key
from twistedproxy.origin.folder.frames import FrameReader
from twistedproxy.origin.folder.index import INTERVAL, FolderGone, Index, Stopped
from twistedproxy.origin.folder.index_cache import Kept, kept_place
from twistedproxy.origin.folder.instance_file import FileChanged, StoredFile, UnreadableFile
from twistedproxy.origin.folder.offset_table import BadPixelData
from twistedproxy.origin.folder.open_files import OpenFiles
from twistedproxy.origin.folder.refusals import Refusal, no_such
from twistedproxy.origin.folder.responses import FolderServer, check_numbers
from twistedproxy.origin.folder.search import representative
from twistedproxy.origin.folder.threads import Shared, Threads
from twistedproxy.origin.folder.watcher import Notices
from twistedproxy.origin.interface import Caller, OriginRequest, OriginResponse, Priority
from twistedproxy.streams import ByteStream

FRAMES_PER_REQUEST = 500  # each is a read of its own; more in one go would only hold a thread longer

MAX_SCOPES = 100  # that are invalidated one by one

_CHANGED = (FileChanged, FileNotFoundError)
_READ_ERRORS = (OSError, FileChanged, BadPixelData, UnreadableFile, Stopped)

Changed = Callable[[Scope], Awaitable[None]]


async def _nothing(_scope: Scope) -> None:
    return


class FolderOrigin:
    """The `Origin` of ``file:PATH``.

    *locate* gives the folder, when the origin starts. *interval*: seconds between two walks through it. *changed* is called
    with what is not what it was. *environment* tells where the user's cache is, for the index; None: it is not kept.
    """

    def __init__(
        self,
        url: str,
        locate: Callable[[], Awaitable[str]],
        reactor: Any,
        *,
        interval: float = INTERVAL,
        changed: Changed = _nothing,
        environment: Optional[Mapping[str, str]] = None,
    ) -> None:
        self.url = url
        self._locate = locate
        self._reactor = reactor
        self._interval = interval
        self._changed = changed
        self._kept_in = environment
        self._files = OpenFiles()
        self._frames = FrameReader(self._files)
        self._threads = Threads(reactor)
        self._running: dict[str, Shared[None]] = {}
        self._folder = ""
        self._index: Optional[Index] = None
        self._server: Optional[FolderServer] = None

    async def start(self) -> None:
        """Begin to index the folder. `OriginUnreachable` where it cannot be listed."""
        self._folder = await self._locate()
        self._threads.start()
        kept = None if self._kept_in is None else Kept(kept_place(self._kept_in, self._folder))
        index = Index(
            self._reactor,
            self._folder,
            self._threads,
            self._interval,
            kept,
            self._invalidate,
            functools.partial(Notices, self._reactor),
        )
        index.on_change = lambda: self._files.keep_only(index.is_current)
        self._server = FolderServer(self.url, index, self._threads, self._files, self._frames, self._translated)
        self._index = index
        try:
            await index.start()
        except BaseException as error:
            await self.stop()
            if isinstance(error, FolderGone):
                raise OriginUnreachable(f"the folder cannot be listed: {error}") from None
            raise

    async def stop(self) -> None:
        if self._index is not None:
            await self._index.stop()
            await self._threads.stop()
            self._index = None
        self._files.close()

    async def _invalidate(self, keys: Optional[Collection[Key]]) -> None:
        """Have forgotten what was known of instances; of many, of their series, studies, or all."""
        if keys is None:
            await self._changed(Scope(self.url, ""))
            return
        for length in (3, 2, 1):
            scopes = {key[:length] for key in keys}
            if len(scopes) <= MAX_SCOPES:
                for scope in sorted(scopes):
                    await self._changed(Scope(self.url, "", *scope))
                return
        await self._changed(Scope(self.url, ""))

    async def ping(self) -> Optional[str]:
        try:
            await self._threads.run(lambda: os.scandir(self._folder).close())
        except OSError as error:
            raise OriginUnreachable(f"the folder cannot be listed: {error.strerror}") from None
        return None

    def status(self) -> dict[str, object]:
        return {"kind": "folder", **self._indexed().status(), "open_files": len(self._files)}

    async def metadata(self, instance: Instance, caller: Caller) -> InstanceMetadata:
        return (await self._record(instance)).facts

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
        for again in (True, False):
            record = await self._record(instance)
            if _shape(record.facts) != _shape(metadata):
                raise OriginBadAnswer("the instance's file changed; ask again")
            try:
                check_numbers(record, numbers)
            except Refusal as refusal:
                raise refusal.error() from None
            try:
                await self._table(record)
                frames = await self._threads.run(functools.partial(self._frames.read, record, numbers, limit))
                break
            except _READ_ERRORS as error:
                if not (again and isinstance(error, _CHANGED)):
                    raise self._translated(error) from None
        return {number: Frame(data, record.frame_syntax) for number, data in zip(numbers, frames)}

    async def stored_instance(self, instance: Instance, caller: Caller) -> ByteStream:
        record = await self._record(instance)
        stream = GeneratedStream(self._threads, file_chunks(self._files, record), self._translated)
        await stream.start()
        return stream

    async def representative(self, root: str, study: str, series: Optional[str]) -> Optional[Instance]:
        """See `Origin.representative`."""
        records = [] if root else await self._indexed().find(study, series)
        with_pixels = [record for record in records if record.pixels is not None]
        if not with_pixels:
            return None
        record = representative(with_pixels)
        return Instance(self.url, "", *record.key)

    async def local_file(self, instance: Instance) -> Optional[str]:
        """See `Origin.local_file`."""
        return (await self._record(instance)).path

    def examples(self) -> tuple[str, ...]:
        """See `Origin.examples`."""
        return ("studies",)

    async def forward(self, request: OriginRequest) -> OriginResponse:
        """Answer as a DICOMweb server would. Errors of the request are answers too."""
        self._indexed()
        assert self._server is not None  # made with the index
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
        """The file of *instance* as it is now. `OriginRefused` 404; `OriginBusy` as `Index.find`."""
        index = self._indexed()
        found = [] if instance.root else await index.find(instance.study, instance.series, instance.sop)
        if not found:
            raise no_such("instance").error()
        return found[0]

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
            await self._threads.run(lambda: self._frames.prepare(record))
        finally:
            self._running.pop(record.path, None)

    def _translated(self, error: Exception) -> Exception:
        """What a caller may see of *error*: never a path."""
        if isinstance(error, _CHANGED):
            return OriginBadAnswer("the instance's file changed or went while it was read; ask again")
        if isinstance(error, (BadPixelData, UnreadableFile)):
            return OriginBadAnswer(f"the instance's file is broken: {error}")
        if isinstance(error, OSError):
            return OriginBadAnswer(f"the instance's file cannot be read: {error.strerror or type(error).__name__}")
        if isinstance(error, Stopped):
            return OriginUnreachable("the folder is not being served")
        return error

    def _indexed(self) -> Index:
        if self._index is None:
            raise OriginUnreachable("the folder is not being served")
        return self._index


def _shape(facts: InstanceMetadata) -> tuple[object, ...]:
    """What frames were asked for by."""
    return (
        facts.frames,
        facts.rows,
        facts.columns,
        facts.samples_per_pixel,
        facts.bits_allocated,
        facts.photometric_interpretation,
    )


def folder_origin(
    url: str,
    reactor: Any,
    interval: float = INTERVAL,
    changed: Changed = _nothing,
    environment: Optional[Mapping[str, str]] = None,
) -> FolderOrigin:
    """The origin of ``file:PATH``. Arguments as of `FolderOrigin`."""
    path = url.removeprefix("file:")

    async def locate() -> str:
        return path

    return FolderOrigin(url, locate, reactor, interval=interval, changed=changed, environment=environment)
