"""A frame of an instance of which nothing is known, asked for side by side with the metadata: they may have 100 MB.

Rules:
- The origin's answer with a frame to the caller's own request is that caller's proof, and as stored it needs no facts: who takes
  it just as it is gets it at once. It goes to the cache under the fence that was read before.
- It opens nothing else: what is cached needs a grant, which comes with the facts. Until then each frame is asked for.
- Metadata are asked for once for all callers that wait. They are facts to those to whom the origin gave a frame, and a
  grant to the one alone in whose name they were asked for.
- A denial of a frame (401, 403) goes back as it came, at once, and ends the proof by metadata that is under way. A denial of
  metadata does not take back a frame that the origin gave.
- What does not show by itself that it is a frame as stored, native ones above all, waits for the facts. What these contradict,
  or what none come for, is taken out of the cache again.
- Where asking so fails in any other way, the ordinary way is taken, once the metadata are there.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Optional, Union

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from twistedproxy.cache.interface import Fence, Reading
from twistedproxy.deferreds import Waiters, abandon
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import (
    HTJ2K_LOSSLESS,
    JPEG_2000_LOSSLESS,
    JPEG_BASELINE,
    JPEG_LS_LOSSLESS,
    JPEG_XL_LOSSLESS,
    RLE_LOSSLESS,
    Frame,
    is_as_stored,
    is_native,
    is_recognized,
)
from twistedproxy.frames.access import RENEWAL_PAUSE
from twistedproxy.frames.entries import LARGE_FRAME, METADATA, frame_name, pack_frame
from twistedproxy.frames.grants import Grant
from twistedproxy.frames.read_through import FrameAnswer, FrameReader, FrameRequest
from twistedproxy.frames.single_flight import SingleFlight
from twistedproxy.origin.errors import DENIALS, NOT_ALLOWED, OriginBadAnswer, OriginError, OriginRefused
from twistedproxy.streams import StreamTooLong
from twistedproxy.system.outages import Recent

LIKELY = (JPEG_BASELINE, JPEG_2000_LOSSLESS, HTJ2K_LOSSLESS, JPEG_LS_LOSSLESS, RLE_LOSSLESS, JPEG_XL_LOSSLESS)
"""One transfer syntax of each kind that frames are stored in. For who takes none of them as it is, facts are needed."""

_Key = tuple[bytes, Instance, Fence]


@attrs.define(eq=False)
class _Opening:
    """The first look of one caller at an instance, whose metadata are under way. *given*: by number, the transfer syntaxes of the
    frames that the caller has got meanwhile, and when (seconds since the epoch); *kept*: those of frames that went to the cache,
    whether the caller got them or has left; *last*: the last of the answers."""

    key: _Key
    reading: Reading
    given: dict[int, tuple[str, float]] = attrs.field(factory=dict)
    kept: dict[int, str] = attrs.field(factory=dict)
    last: Optional[tuple[FrameRequest, FrameAnswer]] = None
    metadata: Optional[InstanceMetadata] = None
    is_over: bool = False
    is_denied: bool = False
    """Whether the caller was denied the instance meanwhile: what it got before is no proof any more."""
    learning: Optional[Deferred[None]] = None
    waiters: Waiters[InstanceMetadata] = attrs.field(init=False)

    @waiters.default
    def _waiters(self) -> Waiters[InstanceMetadata]:
        return Waiters(self._give_up)

    def may_keep(self, number: int, transfer_syntax: str) -> bool:
        """Whether such a frame may go to the cache, by what is known so far."""
        if self.metadata is None:
            return not self.is_over
        return _may_be_stored(self.metadata, number, transfer_syntax)

    def _give_up(self) -> None:
        """No request waits any more. Who has got a frame will want the next one."""
        if self.learning is not None and not self.given:
            self.learning.cancel()


@attrs.define(eq=False)
class SideBySide:
    """Asks so for the callers of *reader*."""

    reader: FrameReader
    under_way: int = attrs.field(init=False, default=0)
    """First looks whose metadata are under way."""
    _frames: SingleFlight[tuple[_Key, int], tuple[Frame, float]] = attrs.field(init=False, factory=SingleFlight)
    _facts: SingleFlight[tuple[Instance, Fence], InstanceMetadata] = attrs.field(init=False, factory=SingleFlight)
    _openings: dict[_Key, _Opening] = attrs.field(init=False, factory=dict)
    _without: Recent[tuple[bytes, Instance]] = attrs.field(init=False, factory=lambda: Recent(RENEWAL_PAUSE))
    """Callers who got no metadata of an instance a short while ago: these would be asked for again with each frame."""
    _log = Logger()

    def __attrs_post_init__(self) -> None:
        self.reader.access.grants.also.append(self._revoke)

    def _revoke(self, credential: bytes, instance: Instance) -> None:
        for key, opening in self._openings.items():  # those of metadata that are under way: a few
            if key[:2] == (credential, instance):
                opening.is_denied = True

    async def read(self, request: FrameRequest) -> Optional[FrameAnswer]:
        """The answer to *request*; None where it has to be read in the ordinary way. Raises what `FrameReader.read` does."""
        instance, caller = request.instance, request.caller
        if len(request.numbers) != 1 or request.fresh or not any(map(request.takes, LIKELY)):
            return None
        if not request.origin.gives_unknown(instance):
            return None
        grant, reading = await self.reader.at_hand(instance, caller)
        if grant is not None or reading.fence is None or reading.ended or METADATA in reading.entries:
            return None
        series = self.reader.access.series
        said = None if series is None else await series.find(request.origin, instance, caller, ask=False)
        if said is not None and instance.sop in said.members:
            return None
        key = caller.credential, instance, reading.fence
        if self._without.has(key[:2], self.reader.access.wall_clock()):
            answer = await self._ask(request, key, None)
            return answer if answer is not None and _decides(request, answer) else None
        return await self._read(request, self._openings.get(key) or _Opening(key, reading))

    async def _read(self, request: FrameRequest, opening: _Opening) -> Optional[FrameAnswer]:
        asking = Deferred.fromCoroutine(self._ask(request, opening.key, opening))
        learned = opening.waiters.wait()
        if opening.learning is None:
            self._openings[opening.key] = opening
            opening.learning = Deferred.fromCoroutine(self._learn(request, opening))
            opening.learning.addErrback(
                lambda failure: self._log.failure("a frame given early was not settled", failure)
            )
        try:
            answer = await self._unless_missing(request, opening, asking, learned)
            at = self.reader.access.wall_clock()
            if answer is not None and opening.metadata is None and _decides(request, answer):
                opening.given[request.numbers[0]] = answer.frames[0].transfer_syntax, at
                opening.last = request, answer
                return answer
            metadata = await learned
            return None if answer is None else await self._checked(request, opening, answer, metadata, at)
        finally:
            abandon([asking])
            abandon([learned])

    async def _unless_missing(
        self,
        request: FrameRequest,
        opening: _Opening,
        asking: Deferred[Optional[FrameAnswer]],
        learned: Deferred[InstanceMetadata],
    ) -> Optional[FrameAnswer]:
        """What *asking* gives. Where the origin has no such frame, the metadata say which there are."""
        try:
            return await asking
        except OriginRefused as refused:
            if refused.status in NOT_ALLOWED:
                raise
            await learned
            grant = self.reader.access.known(request.caller, request.instance)
            # Without one they were told to another caller.
            if grant is not None and grant.fence == opening.reading.fence:
                self.reader.check(request, grant.metadata)
            raise

    async def _ask(self, request: FrameRequest, key: _Key, opening: Optional[_Opening]) -> Optional[FrameAnswer]:
        """The origin's answer; None where it may go well in the ordinary way. *opening*: without one it is not cached."""
        (number,), access = request.numbers, self.reader.access

        async def fetch() -> tuple[Frame, float]:
            frame = await request.origin.frame_of_unknown(request.instance, number, request.caller, LARGE_FRAME)
            return frame, self.reader.expiry()

        async def keep(fetched: tuple[Frame, float]) -> None:
            uid = fetched[0].transfer_syntax
            if opening is None or not is_recognized(uid) or not opening.may_keep(number, uid):
                return
            opening.kept[number] = uid
            await self._put(request, key, *fetched)
            if not opening.may_keep(number, uid):  # any more: it may have come to the cache after it was taken out
                await self._take_back(request.instance, [number])

        try:
            (frame, ends), joined = await self._frames.one((key, number), request.caller.credential, fetch, keep)
        except OriginRefused as refused:
            if refused.status not in DENIALS:
                return None
            if refused.status in NOT_ALLOWED:
                await access.denied(request.caller, request.instance, key[2], refused)
            raise
        except (OriginBadAnswer, StreamTooLong):
            return None
        facts = InstanceMetadata(frames=number, transfer_syntax=frame.transfer_syntax)
        fence = key[2] if opening is not None and not (opening.is_over and opening.metadata is None) else None
        return FrameAnswer((frame,), facts, 0, int(not joined), int(joined), fence, expires=ends, checked=False)

    async def _put(self, request: FrameRequest, key: _Key, frame: Frame, ends: float) -> None:
        entries = {frame_name(request.numbers[0]): pack_frame(frame, ends)}
        await self.reader.cache.put_many(request.instance, key[2], entries, self.reader.frame_seconds)

    async def _learn(self, request: FrameRequest, opening: _Opening) -> None:
        """Have the facts, tell those that wait, and what follows for what was given without."""
        self.under_way += 1
        try:
            outcome = await self._facts_of(request, opening)
            opening.is_over = True
            del self._openings[opening.key]
            opening.waiters.fire(outcome)
            await self._settle(opening)
        finally:
            self.under_way -= 1

    async def _facts_of(self, request: FrameRequest, opening: _Opening) -> Union[InstanceMetadata, Failure]:
        origin, (credential, instance, fence) = request.origin, opening.key
        outcome: Union[InstanceMetadata, Failure]

        async def ask() -> InstanceMetadata:
            grant = await self.reader.access.ask(origin, instance, request.caller, opening.reading)
            return grant.metadata

        try:
            outcome, _ = await self._facts.one((instance, fence), credential, ask)
            opening.metadata = outcome
        except Exception as error:
            outcome = Failure()
            if not isinstance(error, CancelledError):
                self._without.add((credential, instance), self.reader.access.wall_clock())
            if not isinstance(error, (CancelledError, OriginError)):
                self._log.failure("the metadata of an instance could not be learned")
        return outcome

    async def _settle(self, opening: _Opening) -> None:
        """The facts have come, or will not: what was given meanwhile is a proof, or should not be in the cache."""
        facts = None if opening.is_denied else opening.metadata
        cached = {**opening.kept, **{number: uid for number, (uid, _) in opening.given.items()}}
        right = {number for number, uid in cached.items() if facts is not None and _may_be_stored(facts, number, uid)}
        proofs = [one for number, one in opening.given.items() if number in right]
        if facts is not None and proofs and opening.last is not None:
            request, answer = opening.last
            grant = await self._granted(request, opening, facts, proofs[0][0], max(at for _, at in proofs))
            if request.numbers[0] in right:
                self.reader.report(request, attrs.evolve(answer, metadata=grant.metadata), early=True)
        await self._take_back(opening.key[1], cached.keys() - right)

    async def _granted(
        self, request: FrameRequest, opening: _Opening, facts: InstanceMetadata, transfer_syntax: str, at: float
    ) -> Grant:
        """The caller's grant, for whom a frame in this *transfer_syntax*, given *at* that time, is the proof where the metadata are not."""
        access, instance, caller = self.reader.access, request.instance, request.caller
        grant = access.known(caller, instance)
        if grant is None or grant.fence != opening.reading.fence:
            # That the instance is known is nothing new: with the facts among what was read.
            reading = attrs.evolve(opening.reading, entries={METADATA: facts.to_bytes()})
            grant = await access.record(instance, caller, facts, reading, said=False, expires=at + access.ttl)
        await access.learn_transfer_syntax(instance, grant, transfer_syntax)
        return grant

    async def _checked(
        self, request: FrameRequest, opening: _Opening, answer: FrameAnswer, facts: InstanceMetadata, at: float
    ) -> Optional[FrameAnswer]:
        """The *answer*, which came *at* that time, if it is right by the *facts*."""
        (frame,), (number,) = answer.frames, request.numbers
        native = is_native(frame.transfer_syntax)
        if native:  # it may have been decompressed, unless the facts say that it is stored so
            is_whole = facts.transfer_syntax is not None and len(frame.data) in facts.native_lengths
        else:
            is_whole = is_recognized(frame.transfer_syntax)
        if not is_whole or opening.is_denied or not _may_be_stored(facts, number, frame.transfer_syntax):
            await self._take_back(request.instance, [number])
            return None
        grant = await self._granted(request, opening, facts, frame.transfer_syntax, at)
        self.reader.check(request, grant.metadata)
        if native:
            await self._put(request, opening.key, frame, answer.expires)
        answer = attrs.evolve(answer, metadata=grant.metadata, checked=True)
        self.reader.report(request, answer, early=True)
        return answer

    async def _take_back(self, instance: Instance, numbers: Collection[int]) -> None:
        if numbers:
            self._log.info(
                "{count} frames of {instance} were not kept: they are not known to be as stored",
                event="frames_taken_back",
                count=len(numbers),
                instance=instance.path,
            )
            await self.reader.cache.remove(instance, [frame_name(number) for number in numbers])


def _decides(request: FrameRequest, answer: FrameAnswer) -> bool:
    """Whether the frame can be given without facts."""
    uid = answer.frames[0].transfer_syntax
    return is_recognized(uid) and request.takes(uid)


def _may_be_stored(facts: InstanceMetadata, number: int, transfer_syntax: str) -> bool:
    """Whether by the *facts* there is such a frame, stored so."""
    stored = facts.transfer_syntax
    return number <= facts.frames and (stored is None or is_as_stored(transfer_syntax, stored))
