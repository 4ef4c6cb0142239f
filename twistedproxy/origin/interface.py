"""What every origin offers. Providers: DICOMweb over HTTP, a folder of files, the sample slide."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Optional, Protocol

import attrs

from twistedproxy.dicom.address import Instance
from twistedproxy.dicom.frame import Frame
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.streams import ByteStream

Headers = tuple[tuple[bytes, bytes], ...]


class Priority(enum.IntEnum):
    """Who goes first at an origin's limiter: the smallest. `WHOLE` has one slot of its own."""

    CALLER = 0
    DISPLAY = 1
    BLOCK = 2
    WHOLE = 3


@attrs.frozen
class Caller:
    """Who asks.

    *credential* is a keyed digest of what identifies the caller and may be stored and compared;
    *headers* are what the origin judges by (Authorization, cookies): never stored, never logged.
    """

    credential: bytes
    headers: Headers = attrs.field(default=(), repr=False)


@attrs.frozen
class OriginRequest:
    """A request to hand on as it is. *path* is raw (still percent-encoded), relative to the mount's
    origin URL, and starts with a slash; *headers* are end-to-end ones, the caller's credentials among them.
    """

    method: bytes
    path: bytes
    query: bytes = b""
    headers: Headers = attrs.field(default=(), repr=False)
    body: Optional[ByteStream] = None
    length: Optional[int] = None


@attrs.frozen
class OriginResponse:
    """An answer whose body is still to be pulled. *headers* are end-to-end ones.
    *length* is the body's length in bytes where the origin said it."""

    status: int
    headers: Headers
    body: ByteStream
    length: Optional[int] = None


class Origin(Protocol):
    """One store. All methods raise the errors of `twistedproxy.origin.errors`, and are cancellable."""

    url: str
    """The store's identity, as the operator gave it, without credentials: part of every `Instance`."""

    async def metadata(self, instance: Instance, caller: Caller) -> InstanceMetadata:
        """Ask for the instance's metadata with the caller's own headers: access check and facts in one."""

    async def readable(self, instance: Instance, caller: Caller) -> bool:
        """Whether the caller may read the instance, by the cheapest request that proves it (a search for that one)."""

    async def frames(
        self,
        instance: Instance,
        numbers: Sequence[int],
        caller: Caller,
        metadata: InstanceMetadata,
        priority: Priority = Priority.CALLER,
        limit: Optional[int] = None,
    ) -> Mapping[int, Frame]:
        """Fetch all of *numbers* (from 1, no repeats) as stored, each checked to be whole.

        All or an error; `StreamTooLong` once more than *limit* bytes came. Where the origin is better asked
        for one frame a request, it is asked so, side by side.
        """

    def frames_per_request(self, instance: Instance) -> int:
        """How many frames one request should ask for at this origin, as far as is known."""

    async def stored_instance(self, instance: Instance, caller: Caller) -> ByteStream:
        """The whole instance as a DICOM Part 10 file (PS3.10 section 7), as stored, in the `WHOLE` slot."""

    async def local_file(self, instance: Instance) -> Optional[str]:
        """The path of the instance's file where the origin keeps it as one on this machine, else None."""

    async def representative(self, root: str, study: str, series: Optional[str]) -> Optional[Instance]:
        """The instance whose picture stands for a study or series; None where there is none, or where the origin itself
        makes such pictures."""

    async def forward(self, request: OriginRequest) -> OriginResponse:
        """Hand a request on and give back the answer, whatever its status, both bodies streamed."""

    async def ping(self) -> None:
        """Return if the origin can be reached, else raise."""

    def examples(self) -> tuple[str, ...]:
        """Resources below the mount that are known to exist and fit to be tried; mostly none are."""

    def status(self) -> dict[str, object]:
        """Facts for ``/status.json``: what is known of the origin, running and waiting requests."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...
