"""What every origin offers. Providers: DICOMweb over HTTP, a folder of files, the sample slide."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Optional, Protocol

import attrs

from twistedproxy.dicom.media_types import MediaType, parse_media_type
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.negotiation import DICOM_JSON
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import Frame
from twistedproxy.origin.errors import NotAsStored
from twistedproxy.streams import ByteStream

Headers = tuple[tuple[bytes, bytes], ...]

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding"
    b" upgrade".split()
)
"""Fields that concern one connection only, and are never handed on, any more than those that a Connection field names
(RFC 9110 section 7.6.1)."""

AMBIGUOUS = re.compile(r"[\x00-\x20\x7f\\\\]")
"""What readers of URLs take differently: some drop these, and take a backslash for a slash."""


class Priority(enum.IntEnum):
    """Which request goes first at an origin's limiter: the smallest. `WHOLE` has one slot of its own. `UNKNOWN`: a caller of
    whom it is not known that the origin lets them read anything."""

    CALLER = 0
    UNKNOWN = 1
    DISPLAY = 2
    BLOCK = 3
    WHOLE = 4


@attrs.frozen
class Caller:
    """A client, as the origin knows it.

    *credential* is a keyed digest of what identifies the caller and may be stored and compared;
    *headers* and *query* (raw fields, joined by ``&``) are what the origin judges by (Authorization, cookies, a token): never
    stored, never logged. *address*: the client's, which distinguishes callers without these where they compete.
    """

    credential: bytes
    headers: Headers = attrs.field(default=(), repr=False)
    query: bytes = attrs.field(default=b"", repr=False)
    address: str = attrs.field(default="", eq=False, repr=False)

    @property
    def has_credentials(self) -> bool:
        """Whether there is anything that the origin may judge by."""
        return bool(self.headers or self.query)

    @property
    def flow(self) -> bytes:
        """What a fair share at the origin is given to."""
        return self.credential if self.has_credentials else self.address.encode("utf-8")

    def asking(self, query: bytes) -> bytes:
        """*query* of a request in the caller's name, with the caller's own fields."""
        return b"&".join(filter(None, (query, self.query)))


@attrs.frozen
class OriginRequest:
    """A request to hand on as it is. *path* is raw (still percent-encoded), relative to the mount's
    origin URL, and starts with a slash; *headers* are end-to-end ones, the caller's credentials among them.
    *decoded*: a successful answer is to come without any content coding, whatever the origin makes of that
    (`OriginBadAnswer` where it cannot be decoded). *caller*: whose request it is, for a fair share of the origin.
    """

    method: bytes
    path: bytes
    query: bytes = attrs.field(default=b"", repr=False)
    headers: Headers = attrs.field(default=(), repr=False)
    body: Optional[ByteStream] = None
    length: Optional[int] = None
    decoded: bool = False
    caller: Caller = Caller(b"")

    @property
    def is_repeatable(self) -> bool:
        """Whether it may be sent again."""
        return self.method in (b"GET", b"HEAD") and self.body is None

    @classmethod
    def get(cls, path: bytes, query: bytes, accept: bytes, caller: Caller) -> OriginRequest:
        """A GET of the proxy's own in the name of *caller*, of which it reads the answer."""
        headers = (*caller.headers, (b"Accept", accept), (b"Accept-Encoding", b"identity"))
        return cls(b"GET", path, caller.asking(query), headers, decoded=True, caller=caller)


@attrs.frozen
class OriginResponse:
    """An answer whose body is still to be pulled. *headers* are end-to-end ones.
    *length* is the body's length in bytes where it is known. *framed*: after the body's end, whether its length
    or its chunks showed that it is whole; else it ended with its connection."""

    status: int
    headers: Headers
    body: ByteStream
    length: Optional[int] = None
    framed: Callable[[], bool] = attrs.field(default=lambda: True, eq=False, repr=False)


def first(headers: Headers, name: bytes) -> Optional[bytes]:
    """The first value of field *name* (lower case), stripped, or None."""
    return next((value.strip() for key, value in headers if key.lower() == name), None)


def is_for(caller: Caller, headers: Headers) -> bool:
    """Whether the origin itself judged *caller* for the answer with these *headers*: Age is a cache's (RFC 9111 section 5.1),
    which may have kept what another caller asked for. Callers without credentials are all one."""
    return not caller.has_credentials or first(headers, b"age") is None


def past_caches(caller: Caller) -> Caller:
    """*caller*, whose requests a cache on the way must ask the origin about (RFC 9111 section 5.2.1.4), where that judges by
    anything."""
    if not caller.has_credentials:
        return caller
    return attrs.evolve(caller, headers=(*caller.headers, (b"Cache-Control", b"no-cache")))


def is_of_origin(caller: Caller, headers: Headers) -> bool:
    """Whether the answer to a request `past_caches` with these *headers* is the origin's: a cache that has just asked may say so with
    an Age of 0, and others do not mind what a request says."""
    age = first(headers, b"age")
    return not caller.has_credentials or age is None or not age.strip(b"0 \t")


def media_type_of(headers: Headers) -> Optional[MediaType]:
    """What Content-Type says; None where it is missing or cannot be read, or where several fields differ:
    readers take the first or the last (RFC 9110 section 5.3)."""
    values = {value.strip() for name, value in headers if name.lower() == b"content-type"}
    return parse_media_type(values.pop()) if len(values) == 1 else None


def is_dicom_json(headers: Headers) -> bool:
    """Whether an answer with these *headers* is labelled as DICOM JSON (PS3.18 section 8.7.3.2), by either name in use."""
    media_type = media_type_of(headers)
    return media_type is not None and media_type.type in DICOM_JSON


class Origin(Protocol):
    """One store. Providers derive from it. All methods raise the errors of `twistedproxy.origin.errors`, and are cancellable."""

    url: str
    """The store's identity, as the operator gave it, without credentials: part of every `Instance`."""

    async def metadata(self, instance: Instance, caller: Caller) -> InstanceMetadata:
        """Ask for the instance's metadata with the caller's own headers: access check and facts in one. Raises
        `AnsweredByCache` where it is facts only."""

    async def frames(
        self,
        instance: Instance,
        numbers: Sequence[int],
        caller: Caller,
        metadata: InstanceMetadata,
        priority: Priority = Priority.CALLER,
        limit: Optional[int] = None,
    ) -> Mapping[int, Frame]:
        """Fetch all of *numbers* (from 1, no repeats) as stored, each checked to be whole. Only at `Priority.CALLER` are
        they cut out of the whole instance where the origin gives them in no other way.

        All (and others that came along) or an error; `StreamTooLong` once more than *limit* bytes came. Where the
        origin is better asked for one frame a request, it is asked so, side by side.
        """

    def gives_unknown(self, instance: Instance) -> bool:
        """Whether `frame_of_unknown` is worth a request: a store's metadata may come late, and its frames need none."""
        return False

    async def frame_of_unknown(self, instance: Instance, number: int, caller: Caller, limit: int) -> Frame:
        """Frame *number* (from 1) of an instance of which nothing is known, in the form in which this origin probably has it
        stored: asked for once, at `Priority.UNKNOWN`. Its answer is for this *caller*, by no cache on the way.

        The length of a native frame is not checked, and it may have been decompressed. `StreamTooLong` after *limit* bytes.
        """
        raise NotAsStored("this origin gives no frames of an instance of which nothing is known")

    async def ready(self, caller: Caller) -> None:
        """Return once a request of *caller* that nobody waits for would not wait for others. Raises `OriginBusy`."""

    def frames_per_request(self, instance: Instance) -> int:
        """How many frames one request should ask for at this origin, as far as is known."""

    async def stored_instance(
        self, instance: Instance, caller: Caller, priority: Priority = Priority.WHOLE
    ) -> ByteStream:
        """The whole instance as a DICOM Part 10 file (PS3.10 section 7), as stored; its place at the limiter is held until
        the stream was read to its end or closed."""

    async def local_file(self, instance: Instance) -> Optional[str]:
        """The path of the instance's file where the origin keeps it as one on this machine, else None."""
        return None

    async def representative(self, root: str, study: str, series: Optional[str]) -> Optional[Instance]:
        """The instance whose picture represents a study or series; None where there is none, or where the origin itself
        makes such pictures."""
        return None

    async def forward(self, request: OriginRequest) -> OriginResponse:
        """Hand a request on and give back the answer, whatever its status, both bodies streamed."""

    async def ping(self) -> Optional[str]:
        """Return if the origin can be reached, else raise. What is returned: a doubt whether it is the right one."""

    def examples(self) -> tuple[str, ...]:
        """Resources below the mount that are known to exist and fit to be tried; mostly none are."""
        return ()

    def status(self) -> dict[str, object]:
        """Facts for ``/status.json``: what is known of the origin, running and waiting requests."""

    async def start(self) -> None:
        """Get ready. Mostly, connections are made and files opened when they are needed."""
        return

    async def stop(self) -> None:
        """End all that runs and waits."""


@attrs.frozen
class Changes:
    """A page of what changed in a store. *instances*: Study, Series and SOP Instance UID of each that is new or was replaced; *last*:
    where the next page begins; *done*: whether there is no other for now."""

    instances: Sequence[tuple[str, str, str]]
    last: int
    done: bool


class ChangeSource(Protocol):
    """A store that numbers its changes. All methods raise the errors of `twistedproxy.origin.errors`, and are cancellable."""

    async def last(self) -> int:
        """The number of the last change."""

    async def since(self, position: int) -> Changes:
        """The changes after *position*, as many as fit a page."""

    async def stop(self) -> None:
        """Drop all connections."""
