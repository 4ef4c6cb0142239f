"""Frames of an instance, as stored, from a store whose dialect has to be found out.

Rules that this module keeps:

- All frames asked for, or an error; never a frame in another form than the stored one.
- A store that is not known yet is asked for the first frame alone, dialect after dialect, until one brings it as stored.
- A list is cut into requests of the size that the store serves best, and they run side by side.
- Where the instance's transfer syntax is not known, native frames from an unproven store may be decompressed
  ones: a second dialect is asked, once for each instance. If that brings compressed ones, they are the stored ones. If
  it fails, nothing was learned: the frames are not taken for stored ones, by this request or a later one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Optional, Union

import attrs
from twisted.internet.defer import Deferred

from twistedproxy.deferreds import all_or_none
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import Frame, is_as_stored, is_native
from twistedproxy.origin.errors import DENIALS, NotAsStored, OriginBadAnswer, OriginRefused
from twistedproxy.origin.http.dialects import Dialect, Store
from twistedproxy.origin.http.requests import BUSY, Requests
from twistedproxy.origin.http.responses import Budget, TooFewFrames, read_frames
from twistedproxy.origin.interface import Caller, Priority

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

    @property
    def stored(self) -> Optional[str]:
        """The instance's transfer syntax where it is known."""
        return self.metadata.transfer_syntax

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
        if self.stored is not None or self.store.checked.has(self.instance.sop, 0.0):
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
        accept = dialect.frames_accept(self.stored)
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
        if self.stored is not None and not all(
            is_as_stored(frame.transfer_syntax, self.stored) for frame in frames.values()
        ):
            raise NotAsStored("the origin sent frames that are not as stored")
        self.store.recognize(answer.headers)
        self.requests.standings.proven(self.caller)
        self.found.update(frames)
