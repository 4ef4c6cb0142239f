"""Answers that describe instances, from the cache: metadata, and bulk data such as ICC profiles.

Rules:
- A description is shown only to a caller whom the store gave that very URL (path, Accept, Origin, plain query) within ``--grant-ttl``: that
  answer is the *proof*. A grant for frames is none, for a description may hold a patient's name.
- What callers were given is kept once for each content. They share the bytes, never the right.
- Both are kept below the instance, or, of a series or study, below the study (`Instance.of_study`), under the fence read before the
  store was asked: a change hides them at once, and an answer that was under way by then is not kept.
- They are kept as the store sent them. What each client sees is made of them anew: a Host header must not decide what others see.
- Large ones are compressed once for all who see the same: by the tag of what they see.
- A refusal ends the proof. A caller's proofs in one place name one token, so that they can be ended together.
- Requests of one caller for one URL that are under way are one at the store; searches, too, of which nothing is kept.
- Condition fields do not reach the store: the tags that clients have of such answers are ours.
"""

from __future__ import annotations

import secrets
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Optional

import attrs

from twistedproxy.cache.interface import Fence
from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.dicomweb.description_answers import (
    PIECE,
    REFUSABLE,
    Answered,
    DescriptionRequest,
    WholeAnswer,
    description_request,
    gather,
    is_whole,
    may_be_kept,
    place_of,
    stream_of,
)
from twistedproxy.dicomweb.metadata_observer import MetadataObserver
from twistedproxy.dicomweb.mounts import Target
from twistedproxy.dicomweb.paths import ResourceKind
from twistedproxy.frames.access import CLOCK_SLACK
from twistedproxy.frames.entries import (
    TOKEN_LENGTH,
    DescriptionProof,
    content_name,
    description_name,
    digests_of,
    token_name,
)
from twistedproxy.frames.single_flight import SingleFlight
from twistedproxy.origin.errors import DENIALS, NOT_ALLOWED
from twistedproxy.origin.interface import OriginRequest, OriginResponse, first
from twistedproxy.streams import ChainedStream, read_all
from twistedproxy.system.memory_budget import AnswerMemory, Reservation
from twistedproxy.system.outages import Recent

CONTENT_SECONDS = 24 * 3600.0
"""How long what is proved may stay in the cache (seconds), and a token: longer than any proof. Without one it cannot be seen."""

STREAMED_SECONDS = 300.0
"""For how long an answer that was too long to be kept is streamed from its beginning (seconds)."""

MAX_REFUSALS = 10_000
"""Refusals that are remembered, for answers that are under way."""

CODED_ONCE = 256 << 10
"""Bytes of a description from which on its compressed form is kept, too: gzip takes 1.2 ms for as much, a cache 0.1."""

_KEPT_FIELDS = frozenset(b"content-type content-disposition content-language content-location vary warning".split())

Forward = Callable[[OriginRequest], Awaitable[OriginResponse]]
_Key = tuple[Optional[Instance], bytes, bytes, Optional[Fence], int, Optional[object]]


@attrs.define
class _Own:
    """The answer that only the request gets that asked for it. *gone*: whether that has left."""

    response: Optional[OriginResponse] = None
    size: int = 0
    gone: bool = False

    def take(self, response: OriginResponse, size: int = 0) -> None:
        """The answer has come; *size* bytes of it are held."""
        self.response, self.size = response, size
        if self.gone:
            self.leave()

    def leave(self) -> None:
        """Let go of the answer, now or as soon as it comes."""
        self.gone = True
        if self.response is not None:
            self.response.body.close()


class DescriptionCache:
    """Descriptions of one proxy. *observer*: of what the store answers. *memory*: for what is held of answers."""

    def __init__(self, observer: MetadataObserver, memory: AnswerMemory) -> None:
        access = observer.access
        self._observer = observer
        self._cache = observer.cache
        self._credentials = observer.credentials
        self._memory = memory
        self._clock = observer.clock
        self._wall_clock = access.wall_clock
        self._ttl = access.ttl
        self._flights: SingleFlight[_Key, Optional[WholeAnswer]] = SingleFlight()
        self._changes = 0
        self._refusals: OrderedDict[tuple[bytes, Instance], int] = OrderedDict()
        self._too_long: Recent[tuple[bytes, bytes]] = Recent(STREAMED_SECONDS)
        observer.reader.invalidation.also.append(self._changed)

    def wanted(self, target: Target, handed_on: OriginRequest) -> Optional[DescriptionRequest]:
        """What *handed_on* asks for, if an answer to it may be kept or shared."""
        return description_request(target, handed_on, self._credentials)

    def _changed(self, _scope: Scope) -> None:
        """Let no request join one that was under way when something changed: searches lie in no place that has a fence."""
        self._changes += 1

    async def answer(self, wanted: DescriptionRequest, held: Reservation, forward: Forward) -> Answered:
        """The answer to *wanted*, of which *held* counts what is at hand. Raises what *forward* raises, and `NoRoom`."""
        fence: Optional[Fence] = None
        if wanted.place is not None:
            found: Optional[Answered] = None
            fence, found = await held.read(lambda: self._find(wanted), _size_found)
            if found is not None:
                return found
            if fence is None or self._too_long.has((wanted.caller.credential, wanted.url), self._clock.seconds()):
                return Answered(await forward(wanted.handed_on))
        own, apart = _Own(), object() if wanted.fresh else None
        key = (wanted.place, wanted.caller.credential, wanted.url, fence, self._changes, apart)
        try:
            whole, joined = await self._flights.one(
                key, wanted.caller.credential, lambda: self._ask(wanted, fence, forward, own)
            )
        except BaseException:
            own.leave()
            raise
        if whole is not None:
            return whole.answered(joined, wanted.fresh)
        if own.response is not None:
            return Answered(own.response, size=own.size)
        return Answered(await forward(wanted.handed_on))

    async def coded(self, target: Target, answered: Answered, response: OriginResponse) -> OriginResponse:
        """*response*, whose body is compressed while it is read, with the body that an equal one had. Its tag names its content, which
        the caller has proved; small ones are not worth an entry."""
        coding, tag = first(response.headers, b"content-encoding"), first(response.headers, b"etag")
        place = place_of(target)
        if answered.size < CODED_ONCE or coding is None or tag is None or place is None:
            return response
        name = content_name(b"%s %s" % (tag, coding))
        reading = await self._observer.read(place, [name])
        body = reading.entries.get(name)
        if body is None:
            body = await read_all(response.body, sys.maxsize)
            await self._cache.put_many(place, reading.fence, {name: body}, self._ttl)
        return attrs.evolve(response, body=stream_of(body), length=len(body))

    async def refused(self, target: Target, handed_on: OriginRequest, status: int) -> None:
        """The store answered the caller's own GET or HEAD with *status*: what that refuses is proved no more, and neither is what
        the caller was given of the study as a whole, or of a series in it."""
        place, kind = place_of(target), target.resource.kind
        if place is None or kind not in REFUSABLE or status not in DENIALS:
            return
        if kind is ResourceKind.BULKDATA and status not in NOT_ALLOWED:  # one value is missing
            wanted = self.wanted(target, handed_on)
            if wanted is not None:
                await self._cache.remove(place, [description_name(wanted.caller, wanted.url)])
            return
        for one in {place, place.of_study}:
            key = handed_on.caller.credential, one
            self._refusals[key] = self._refusals.pop(key, 0) + 1
            if len(self._refusals) > MAX_REFUSALS:
                self._refusals.popitem(last=False)
            await self._cache.remove(one, [token_name(handed_on.caller)])

    async def _find(self, wanted: DescriptionRequest) -> tuple[Optional[Fence], Optional[Answered]]:
        """The present fence, and what the cache holds for the caller."""
        place, caller = wanted.place, wanted.caller
        assert place is not None
        proof_name, token = description_name(caller, wanted.url), token_name(caller)
        reading = await self._observer.read(place, [] if wanted.fresh else [proof_name, token])
        proof = DescriptionProof.unpack(reading.entries.get(proof_name, b""))
        now = self._wall_clock()
        if proof is None or not now < proof.expires <= now + self._ttl + CLOCK_SLACK:
            return reading.fence, None
        if proof.token != reading.entries.get(token):
            return reading.fence, None
        name = content_name(proof.digest)
        content = await self._observer.read(place, [name])
        body = content.entries.get(name) if content.fence == reading.fence else None
        if body is None:
            return content.fence, None
        response = OriginResponse(200, proof.headers, stream_of(body), len(body))
        return content.fence, Answered(response, b"twistedproxy; hit", "hit", len(body), True, False)

    async def _ask(
        self, wanted: DescriptionRequest, fence: Optional[Fence], forward: Forward, own: _Own
    ) -> Optional[WholeAnswer]:
        """Ask the store, and keep what it gives. None, and the answer is in *own*, where that is for one request alone."""
        asked, refused = self._wall_clock(), self._refused(wanted)
        response = await forward(wanted.unconditional)
        if (response.length or 0) > wanted.limit:
            self._note_long(wanted)
        if not may_be_kept(wanted, response, self._credentials):
            own.take(response)
            return None
        with self._memory.hold() as held:
            try:
                await held.take(min(response.length or PIECE, wanted.limit))
                token = await self._token(wanted, fence)
                body, whole = await gather(response.body, wanted.limit, held)
            except BaseException:
                response.body.close()
                raise
            if not whole:
                self._note_long(wanted)
                rest = ChainedStream(stream_of(body), response.body)
                own.take(attrs.evolve(response, body=rest), len(body))
                return None
            response = attrs.evolve(response, body=stream_of(body), length=len(body))
            if not is_whole(wanted, response, body):
                own.take(response, len(body))
                return None
            if wanted.place is None or fence is None or self._refused(wanted) != refused:  # while this was under way
                return WholeAnswer(response, body, None)
            headers = tuple(pair for pair in response.headers if _is_kept(pair[0].lower()))
            digest = (await digests_of([body]))[0]
            proof = DescriptionProof(asked + self._ttl, token, digest, headers)
            return WholeAnswer(response, body, await self._keep(wanted, wanted.place, fence, proof, body))

    def _refused(self, wanted: DescriptionRequest) -> int:
        """How often the caller was refused what lies in that place, as far as is remembered."""
        return 0 if wanted.place is None else self._refusals.get((wanted.caller.credential, wanted.place), 0)

    def _note_long(self, wanted: DescriptionRequest) -> None:
        self._too_long.add((wanted.caller.credential, wanted.url), self._clock.seconds())

    async def _token(self, wanted: DescriptionRequest, fence: Optional[Fence]) -> bytes:
        """The caller's token. A new one is written before the answer has come: a refusal meanwhile removes it, and with it the
        right that the answer would be."""
        if wanted.place is None:
            return b""
        name = token_name(wanted.caller)
        known = (await self._observer.read(wanted.place, [name])).entries.get(name)
        if known is not None:
            return known
        token = secrets.token_bytes(TOKEN_LENGTH)
        await self._cache.put_many(wanted.place, fence, {name: token}, CONTENT_SECONDS)
        return token

    async def _keep(
        self, wanted: DescriptionRequest, place: Instance, fence: Fence, proof: DescriptionProof, body: bytes
    ) -> bool:
        """Keep an answer, its body only where no caller has been given it before; whether the cache took it."""
        name = content_name(proof.digest)
        shared = name in await self._cache.present(place, [name])
        if not (shared or await self._cache.put_many(place, fence, {name: body}, CONTENT_SECONDS)):
            return False
        entry = {description_name(wanted.caller, wanted.url): proof.pack()}
        return await self._cache.put_many(place, fence, entry, self._ttl)


def _is_kept(field: bytes) -> bool:
    return field in _KEPT_FIELDS or field.startswith(b"access-control-")


def _size_found(found: tuple[Optional[Fence], Optional[Answered]]) -> int:
    return 0 if found[1] is None else 2 * found[1].size
