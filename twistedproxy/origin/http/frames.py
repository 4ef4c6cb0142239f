"""Frames of an instance, as stored: how each kind of store must be asked for them, what was learned of a store, and asking.

Rules that this module keeps:

- All frames asked for, or an error; never a frame in another form than the stored one.
- A URL may identify a store (Google, dcm4chee); all else is learned from responses, for each DICOMweb root. A response's form
  may give a store away: only Orthanc puts the parts' transfer syntax inside the quotes of the type.
- A dialect is *proven* once an answer brought compressed frames: the store did not decompress them. Until then the first
  frame of a request is asked for alone, dialect after dialect, until one brings it as stored.
- A list is cut into requests of the size that the store serves best, and they run side by side.
- Where the instance's transfer syntax is not known, native frames from an unproven store may be decompressed
  ones: a second dialect is asked, once for each instance. If that brings compressed ones, they are the stored ones. If
  it fails, nothing was learned: the frames are not taken for stored ones, by this request or a later one.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Optional, Union
from urllib.parse import urlsplit

import attrs
from twisted.internet.defer import Deferred

from twistedproxy.deferreds import all_or_none
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import Frame, is_as_stored, is_native, media_type_of
from twistedproxy.origin.errors import DENIALS, NotAsStored, OriginBadAnswer, OriginRefused
from twistedproxy.origin.http.requests import BUSY, Requests
from twistedproxy.origin.http.responses import Budget, TooFewFrames, read_frames
from twistedproxy.origin.interface import Caller, Headers, Priority, first, is_of_origin
from twistedproxy.system.outages import Recent

MAX_ROOTS = 1000  # DICOMweb roots remembered below one origin
MAX_CHECKED = 1000  # uncompressed instances remembered as such, a root
REFUSAL_SECONDS = 300.0  # what a store refused is not tried again sooner where there is another way

OCTETS = b'multipart/related; type="application/octet-stream"; transfer-syntax=*'
ANYTHING = b'multipart/related; type="*/*"'
INSTANCE = b'multipart/related; type="application/dicom"; transfer-syntax=*'
SINGLE_INSTANCE = b"application/dicom; transfer-syntax=*"


@attrs.frozen
class Dialect:
    """How to make requests of a kind of store.

    *frames*: the Accept value for frames as stored, None to name the instance's own media type and transfer syntax.
    *instances*: Accept values for a stored instance, to be tried in order. *frames_per_request*: how many are best asked
    for at once.
    """

    name: str
    frames: Optional[bytes] = OCTETS
    instances: tuple[bytes, bytes] = (INSTANCE, SINGLE_INSTANCE)
    frames_per_request: int = 10

    def frames_accept(self, transfer_syntax: Optional[str]) -> Optional[bytes]:
        """The Accept value for frames of an instance; None if it takes the transfer syntax, which is unknown."""
        if self.frames is not None:
            return self.frames
        if transfer_syntax is None:
            return None
        media_type = media_type_of(transfer_syntax)
        return f'multipart/related; type="{media_type}"; transfer-syntax={transfer_syntax}'.encode("ascii")


# Ten: a store that reads the frames of a list one after the other still sends its first bytes soon, and the
# requests of one caller spread over the slots.
STANDARD = Dialect("standard")
# A list makes Orthanc parse the whole file; one frame is read by its offset.
ORTHANC = Dialect("orthanc", frames_per_request=1)
# Walks from the first frame to those asked for: the fewer walks the better. Octet-stream makes it decompress.
DCM4CHEE = Dialect("dcm4chee", frames=ANYTHING, frames_per_request=100)
GOOGLE = Dialect("google", instances=(SINGLE_INSTANCE, INSTANCE), frames_per_request=100)
# For stores that take no star: the instance's own form by name.
EXPLICIT = Dialect("explicit", frames=None)

_ORTHANC_TYPE = re.compile(rb'type="[^";]*;\s*transfer-syntax=', re.IGNORECASE)


@attrs.define
class Store:
    """What is known of the store behind one DICOMweb root.

    *proven*: it does not decompress when asked in *dialect*. *frames_per_request*: once it was learned that it
    differs from the dialect's. *lists*: a list of frames was answered. *checked*: instances that are uncompressed, by whichever
    dialect. *by_file*: instances whose frames it refuses, and
    whose file it gives; *without_file*: those whose file was no help. Each for one credential.
    """

    dialect: Dialect = STANDARD
    proven: bool = False
    lists: bool = False
    one_a_request: bool = False
    checked: Recent[str] = attrs.field(factory=lambda: Recent(math.inf, MAX_CHECKED))
    by_file: Recent[tuple[str, bytes]] = attrs.field(factory=lambda: Recent(REFUSAL_SECONDS, MAX_CHECKED))
    without_file: Recent[tuple[str, bytes]] = attrs.field(factory=lambda: Recent(REFUSAL_SECONDS, MAX_CHECKED))

    @property
    def frames_per_request(self) -> int:
        """How many frames are best asked for at once."""
        return 1 if self.one_a_request else self.dialect.frames_per_request

    def candidates(self) -> list[Dialect]:
        """The dialects to try for frames, the likeliest first. Orthanc and Google ask as the standard does."""
        ways = {dialect.frames: dialect for dialect in (EXPLICIT, DCM4CHEE, STANDARD, self.dialect)}
        return [self.dialect, *(way for way in reversed(ways.values()) if way is not self.dialect)]

    def prove(self, dialect: Dialect) -> None:
        """Remember that the store gives frames as stored when asked in *dialect*."""
        self.dialect = dialect
        self.proven = True

    def recognize(self, headers: Headers) -> None:
        """Recognize a store by an answer's header fields."""
        content_type = first(headers, b"content-type") or b""
        if self.dialect is not ORTHANC and _ORTHANC_TYPE.search(content_type):
            self.prove(ORTHANC)
        elif not self.proven and self.dialect is STANDARD:
            server = (first(headers, b"server") or b"").lower()
            if server.startswith(b"orthanc"):
                self.dialect = ORTHANC
            elif server.startswith(b"wildfly") or b"dcm4chee" in server:
                self.dialect = DCM4CHEE


class Stores:
    """The stores behind one origin URL, by DICOMweb root."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stores: OrderedDict[str, Store] = OrderedDict()

    def at(self, root: str) -> Store:
        """What is known of the store at *root*; a new one starts with what its URL implies."""
        store = self._stores.pop(root, None) or _recognized(self._url + root)
        self._stores[root] = store  # the one used last stands last
        if len(self._stores) > MAX_ROOTS:
            self._stores.popitem(last=False)
        return store

    def status(self) -> dict[str, object]:
        return {
            root or "/": {
                "dialect": store.dialect.name,
                "proven": store.proven,
                "frames_per_request": store.frames_per_request,
            }
            for root, store in self._stores.items()
        }


def _recognized(url: str) -> Store:
    parts = urlsplit(url)
    if parts.hostname == "healthcare.googleapis.com":
        return Store(GOOGLE, proven=True)
    if "/dcm4chee-arc/" in parts.path:
        return Store(DCM4CHEE, proven=True)
    return Store()


# How stores refuse an Accept value: 406 is the right one, Orthanc sends 400 or 500.
NOT_THIS_WAY = frozenset({400, 406, 415, 500, 501})
# How a store refuses a caller, says that there is no such thing, or asks to come back later: all else that it refuses
# may be there in another form.
FINAL = DENIALS | BUSY
# How stores refuse a list of frames that they would give one by one.
NO_LISTS = NOT_THIS_WAY | {404, 405, 413, 414}


@attrs.define
class FrameLoad:
    """One call of `Origin.frames`. *metadata*: what is known of the instance."""

    requests: Requests
    store: Store
    instance: Instance
    caller: Caller
    priority: Priority
    metadata: InstanceMetadata
    budget: Budget
    lanes: int
    found: dict[int, Frame] = attrs.field(factory=dict)

    async def run(self, numbers: Sequence[int]) -> Mapping[int, Frame]:
        """Fetch *numbers*. Raises what `Origin.frames` does."""
        pending = sorted(set(numbers))
        if pending and not self.store.proven:
            await self._find_dialect(pending[0])
            del pending[0]
        size = self.store.frames_per_request
        chunks = [pending[start : start + size] for start in range(0, len(pending), size)]
        waiting = iter(chunks)
        await all_or_none(
            [Deferred.fromCoroutine(self._load_all(waiting)) for _ in range(min(self.lanes, len(chunks)))]
        )
        self.budget.check(tuple(self.found.values()))
        return {number: self.found[number] for number in numbers}

    async def run_unknown(self, number: int) -> Frame:
        """One frame, asked for in the likeliest dialect only. Raises what `Origin.frames` does."""
        await self._ask(self.store.dialect, [number])
        frame = self.found[number]
        if not self.store.proven and not is_native(frame.transfer_syntax):
            self.store.prove(self.store.dialect)
        self.budget.check([frame])
        return frame

    async def _load_all(self, waiting: Iterator[Sequence[int]]) -> None:
        for numbers in waiting:
            await self._load(numbers)

    async def _load(self, numbers: Sequence[int]) -> None:
        """Load one request's worth, one by one where the store turns out to take no lists."""
        try:
            await self._ask(self.store.dialect, numbers)
        except NotAsStored:
            self.store.proven = False  # the next call looks for another dialect
            raise
        except OriginRefused as refused:
            if len(numbers) == 1 or self.store.lists or refused.status not in NO_LISTS:
                raise
            for number in numbers:
                await self._ask(self.store.dialect, [number])
            self.store.one_a_request = True
        else:
            self.store.lists = self.store.lists or len(numbers) > 1

    async def _find_dialect(self, number: int) -> None:
        """Load one frame, and leave the dialect that brought it in the store."""
        first_failure: Union[OriginRefused, NotAsStored, None] = None
        for dialect in self.store.candidates():
            try:
                await self._ask(dialect, [number])
            except (OriginRefused, NotAsStored) as failed:
                if isinstance(failed, OriginRefused) and failed.status not in NOT_THIS_WAY:
                    raise
                first_failure = first_failure or failed
                continue
            if not self.store.proven:
                await self._judge(dialect, number)
            return
        raise first_failure or OriginBadAnswer("the origin does not serve frames as stored")

    async def _judge(self, dialect: Dialect, number: int) -> None:
        """Draw conclusions about the store from the frame that *dialect* brought."""
        if not is_native(self.found[number].transfer_syntax):
            self.store.prove(dialect)
            return
        # Native as stored proves nothing, but this dialect works.
        self.store.dialect = dialect
        if self.metadata.transfer_syntax is not None or self.store.checked.has(self.instance.sop, 0.0):
            return
        native = self.found[number]
        other = next(way for way in self.store.candidates()[1:] if way.frames is not None)
        try:
            await self._ask(other, [number])
        except (OriginRefused, OriginBadAnswer) as failed:
            raise NotAsStored(
                f"the origin sent native frames, which may be decompressed; the check failed: {failed}"
            ) from failed
        if not is_native(self.found[number].transfer_syntax):
            self.store.prove(other)
            return
        self.found[number] = native
        self.store.checked.add(self.instance.sop, 0.0)

    async def _ask(self, dialect: Dialect, numbers: Sequence[int]) -> None:
        stored = self.metadata.transfer_syntax
        accept = dialect.frames_accept(stored)
        if accept is None:
            raise NotAsStored("the instance's transfer syntax is not known")
        listed = ",".join(map(str, numbers))
        target = f"{self.instance.root}/{self.instance.path}/frames/{listed}"
        answer = await self.requests.get(target, accept, self.caller, self.priority, (200, 206))
        try:
            frames = await read_frames(answer, target, numbers, self.metadata, self.budget)
        except TooFewFrames:
            if answer.status == 206:  # dcm4chee gives what there is of a list
                raise OriginRefused(404, (), b"the origin does not have all of these frames") from None
            raise
        if answer.status != 200:
            raise OriginBadAnswer(f"the origin answered a request for frames with {answer.status}; expected 200")
        if self.priority is Priority.UNKNOWN and not is_of_origin(self.caller, answer.headers):  # it is to be a proof
            raise OriginBadAnswer("a cache in front of the origin gave a frame, and did not ask the origin")
        if stored is not None and not all(is_as_stored(frame.transfer_syntax, stored) for frame in frames.values()):
            raise NotAsStored("the origin sent frames that are not as stored")
        self.store.recognize(answer.headers)
        self.requests.standings.proven(self.caller)
        self.found.update(frames)
