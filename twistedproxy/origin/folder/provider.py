"""A folder of DICOM files as an origin.

- Every caller that reaches the proxy may read the folder: files carry no access rights of callers.
- What a file gives is of the very state in which it was indexed; a file that changed is looked at again first, and
  what was cached of it is invalidated. Bytes of two states are never mixed: an answer that is under way breaks.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Optional

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.dicom.transfer_syntaxes import Frame, frame_uid
from twistedproxy.origin.errors import OriginBadAnswer, OriginRefused
from twistedproxy.origin.folder.contents import Stopped, representative
from twistedproxy.origin.folder.frames import FileReader
from twistedproxy.origin.folder.index import INTERVAL, Index
from twistedproxy.origin.folder.index_cache import IndexCache
from twistedproxy.origin.folder.instance_file import Key, StoredFile
from twistedproxy.origin.folder.responses import FolderServer, check_numbers, no_such
from twistedproxy.origin.folder.threads import InstanceChanged, SharedRun, Threads, generated
from twistedproxy.origin.interface import Caller, Origin, OriginRequest, OriginResponse, Priority
from twistedproxy.streams import BytesStream, ByteStream

FRAMES_PER_REQUEST = 500  # each is a read of its own; more in one go would only hold a thread longer
MAX_SCOPES = 100  # that are invalidated one by one

Changed = Callable[[Scope], Awaitable[None]]


async def nothing(_scope: Scope) -> None:
    """Keeps nothing that could be invalidated."""


class FolderOrigin(Origin):
    """The `Origin` of ``file:PATH``.

    *interval*: seconds between two walks through it. *changed*: called with what is to be invalidated. *environment*: with it the
    index is kept in the user's cache; None: it is not.
    """

    def __init__(
        self,
        url: str,
        reactor: Any,
        *,
        interval: float = INTERVAL,
        changed: Changed = nothing,
        environment: Optional[Mapping[str, str]] = None,
    ) -> None:
        self.url = url
        self._reactor = reactor
        self._interval = interval
        self._changed = changed
        self._cached_in = environment
        self._files = FileReader()
        self._threads = Threads(reactor)
        self._preparing: dict[str, SharedRun[None]] = {}
        self._index: Optional[Index] = None

    async def locate(self) -> str:
        """The folder, when the origin starts."""
        return self.url.removeprefix("file:")

    async def start(self) -> None:
        """Begin to index the folder. `OriginUnreachable` where it cannot be listed."""
        folder = await self.locate()
        cache = None if self._cached_in is None else IndexCache(self._cached_in, folder)
        self._index = Index(
            self._reactor, folder, self._threads, self._invalidate, interval=self._interval, cache=cache
        )
        self._index.on_change = self._files.close
        try:
            await self._index.start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        if self._index is not None:
            await self._index.stop()
            await self._threads.stop()
            self._index = None
        self._files.close()

    async def _invalidate(self, keys: Optional[Collection[Key]]) -> None:
        """Invalidate what is cached of instances; of many, of their series, studies, or all."""
        for length in (3, 2, 1) if keys is not None else ():
            scopes = {key[:length] for key in keys or ()}
            if len(scopes) <= MAX_SCOPES:
                for scope in sorted(scopes):
                    await self._changed(Scope(self.url, "", *scope))
                return
        await self._changed(Scope(self.url, ""))

    async def ping(self) -> Optional[str]:
        await self._indexed().ping()
        return None

    def status(self) -> dict[str, object]:
        return {"kind": "folder", **self._indexed().status(), "open_files": self._files.open_files}

    async def metadata(self, instance: Instance, caller: Caller) -> InstanceMetadata:
        return (await self._record(instance)).facts

    async def ready(self, caller: Caller) -> None:
        return

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
                raise OriginBadAnswer("the instance's file changed; retry")
            check_numbers(record, numbers)
            try:
                await self._prepare(record)
                frames = await self._threads.run(functools.partial(self._files.read, record, numbers, limit))
                break
            except InstanceChanged:
                if not again:
                    raise
        return {number: Frame(data, frame_uid(record.syntax.uid)) for number, data in zip(numbers, frames)}

    async def _prepare(self, record: StoredFile) -> None:
        """Have the frames' places found once for all that wait for that: it may take a second."""
        if self._files.has_table(record):
            return
        run = SharedRun(lambda: self._threads.run(lambda: self._files.prepare(record)))
        try:
            await self._preparing.setdefault(record.path, run).join()
        finally:
            self._preparing.pop(record.path, None)

    async def stored_instance(
        self, instance: Instance, caller: Caller, priority: Priority = Priority.WHOLE
    ) -> ByteStream:
        chunks = self._files.file_chunks(await self._record(instance))
        return await generated(self._threads, chunks)

    async def representative(self, root: str, study: str, series: Optional[str]) -> Optional[Instance]:
        """See `Origin.representative`."""
        records = [] if root else await self._indexed().find(*filter(None, (study, series)))
        with_pixels = [record for record in records if record.pixels is not None]
        return Instance(self.url, "", *representative(with_pixels).key) if with_pixels else None

    async def local_file(self, instance: Instance) -> Optional[str]:
        """See `Origin.local_file`."""
        return (await self._record(instance)).path

    def examples(self) -> tuple[str, ...]:
        """See `Origin.examples`."""
        return ("studies",)

    async def forward(self, request: OriginRequest) -> OriginResponse:
        """Answer as a DICOMweb server would. Errors of the request are answers too."""
        server = FolderServer(self.url, self._indexed(), self._threads, self._files)
        try:
            return await server.answer(request)
        except OriginRefused as refusal:
            headers = (*refusal.headers, (b"Content-Length", b"%d" % len(refusal.body)))
            return OriginResponse(refusal.status, headers, BytesStream(refusal.body), len(refusal.body))
        finally:
            if request.body is not None:
                request.body.close()

    async def _record(self, instance: Instance) -> StoredFile:
        """The file of *instance* as it is now. `OriginRefused` 404; `OriginBusy` as `Index.find`."""
        found = [] if instance.root else await self._indexed().find(*instance.uids)
        if not found:
            raise no_such("instance")
        return found[0]

    def _indexed(self) -> Index:
        if self._index is None:
            raise Stopped("the folder is not being served")
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
