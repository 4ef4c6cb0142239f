"""The read-through, over an origin and a cache in memory."""

from __future__ import annotations

import math
from typing import Any

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.frames.support import ALICE, INSTANCE, JPEG, MALLORY, METADATA, ReadingParts, frames
from twistedproxy.frames.entries import frame_name, pack_frame
from twistedproxy.frames.read_through import AnswerTooLarge, FrameAnswer, FrameReader, FrameRequest, NoSuchFrame
from twistedproxy.origin.errors import FramesRefused, OriginBadAnswer, OriginBrokeOff, OriginRefused, OriginUnreachable
from twistedproxy.origin.interface import Caller
from twistedproxy.streams import StreamTooLong


class ReaderCase(SynchronousTestCase):
    """A reader and its surroundings."""

    def setUp(self) -> None:
        self.parts = ReadingParts()
        self.origin = self.parts.origin
        self.reader = self.parts.reader()

    def ask(self, *numbers: int, caller: Caller = ALICE, reader: FrameReader | None = None) -> Deferred[FrameAnswer]:
        """Ask for frames."""
        wanted = FrameRequest(self.origin, INSTANCE, numbers, caller)  # type: ignore[arg-type]
        return Deferred.fromCoroutine((reader or self.reader).read(wanted))

    def got(self, *numbers: int, caller: Caller = ALICE, reader: FrameReader | None = None) -> FrameAnswer:
        """Ask for frames that come at once."""
        return self.successResultOf(self.ask(*numbers, caller=caller, reader=reader))


class ReadThroughTests(ReaderCase):
    """What is cached comes from the cache, the rest from the origin."""

    def test_first_and_second(self) -> None:
        """A frame is fetched once; asked again, the origin hears nothing."""
        first = self.got(5)
        self.assertEqual((first.frames, first.cached, first.fetched), (frames(5), 0, 1))
        self.origin.asked.clear()
        second = self.got(5)
        self.assertEqual((second.frames, second.cached, second.fetched), (frames(5), 1, 0))
        self.assertEqual(self.origin.asked, [])

    def test_order_and_repeats(self) -> None:
        """Frames come in the order asked for, repeats included, and are fetched once each in one request."""
        self.got(2)
        answer = self.got(3, 1, 2, 3)
        self.assertEqual(answer.frames, frames(3, 1, 2, 3))
        self.assertEqual((answer.cached, answer.fetched), (1, 2))
        self.assertEqual(self.origin.asked_for("frames"), [(2,), (3, 1)])

    def test_past_the_end(self) -> None:
        """A number past NumberOfFrames is no frame, and the origin is not asked for it."""
        failure = self.failureResultOf(self.ask(1, 101), NoSuchFrame)
        self.assertIn("1 to 100", str(failure.value))
        self.assertEqual(self.origin.asked_for("frames"), [])

    def test_too_large(self) -> None:
        """Frames that are too many bytes together are refused; one alone is answered."""
        reader = self.parts.reader(max_answer=10)
        self.failureResultOf(self.ask(1, 2, reader=reader), AnswerTooLarge)
        self.assertEqual(self.got(1, reader=reader).frames, frames(1))

    def test_too_large_at_the_origin(self) -> None:
        """So are those of which too many bytes come from the origin, past the cache or not."""
        self.origin.failure = StreamTooLong("more than there may be")
        for fresh in (False, True):
            wanted = FrameRequest(self.origin, INSTANCE, (1, 2), ALICE, fresh=fresh)  # type: ignore[arg-type]
            self.failureResultOf(Deferred.fromCoroutine(self.reader.read(wanted)), AnswerTooLarge)

    def test_huge(self) -> None:
        """Huge frames are answered once the cache has them, others before: the answer's memory is what bounds them."""
        self.got(1)  # a grant is put, too
        put_many, written = self.parts.cache.put_many, Deferred[None]()

        async def put_later(*arguments: Any) -> bool:
            await written
            return await put_many(*arguments)

        self.parts.cache.put_many = put_later  # type: ignore[method-assign]
        self.assertEqual(self.got(2).frames, frames(2))
        self.reader.huge = 0
        huge = self.ask(3)
        self.assertNoResult(huge)
        written.callback(None)
        self.assertEqual(self.successResultOf(huge).frames, frames(3))
        self.assertEqual(self.got(3).cached, 1)

    def test_too_large_native(self) -> None:
        """Native frames' sizes are known before anything is fetched."""
        native = attrs.evolve(METADATA, transfer_syntax="1.2.840.10008.1.2.1", samples_per_pixel=3)
        self.origin.metadata_value = native
        self.failureResultOf(self.ask(*range(1, 10)), AnswerTooLarge)
        self.assertEqual(self.origin.asked_for("frames"), [])

    def test_cache_lost(self) -> None:
        """A cache that lost everything costs a fetch, no answer."""
        self.got(1)
        self.successResultOf(Deferred.fromCoroutine(self.parts.cache.remove(INSTANCE, [frame_name(1)])))
        self.assertEqual(self.got(1).fetched, 1)

    def test_origin_fails(self) -> None:
        """An origin's failure is raised, nothing is cached, and the next request asks again."""
        self.origin.failure = OriginUnreachable("gone")
        self.failureResultOf(self.ask(1), OriginUnreachable)
        self.origin.failure = None
        self.assertEqual(self.got(1).fetched, 1)

    def test_transfer_syntax_is_learned(self) -> None:
        """A transfer syntax that the metadata lack is learned from a frame, also for other workers."""
        self.origin.metadata_value = attrs.evolve(METADATA, transfer_syntax=None)
        self.got(1)
        self.assertEqual(self.got(1).metadata.transfer_syntax, JPEG)
        self.assertEqual(self.got(1, reader=self.parts.reader()).metadata.transfer_syntax, JPEG)

    def test_check(self) -> None:
        """What the caller could not use is refused before a frame is fetched."""

        def check(_metadata: object) -> None:
            raise KeyError("not this")

        wanted = FrameRequest(self.origin, INSTANCE, (1,), ALICE, check)  # type: ignore[arg-type]
        self.failureResultOf(Deferred.fromCoroutine(self.reader.read(wanted)), KeyError)
        self.assertEqual(self.origin.asked_for("frames"), [])


class ExpiryTests(ReaderCase):
    """An answer says when the first of its frames ends."""

    def setUp(self) -> None:
        super().setUp()
        self.parts.clock.advance(1000.0)

    def put(self, number: int, expires: float) -> None:
        """Another host writes a frame that ends then."""
        packed = {frame_name(number): pack_frame(frames(number)[0], expires)}
        fence = self.successResultOf(Deferred.fromCoroutine(self.parts.cache.get_many(INSTANCE, []))).fence
        self.successResultOf(Deferred.fromCoroutine(self.parts.cache.put_many(INSTANCE, fence, packed, None)))

    def test_fetched(self) -> None:
        """What was fetched just now ends after the whole time of frames."""
        self.assertEqual(self.got(1).expires, 4600.0)

    def test_read_prolongs_nothing(self) -> None:
        """What was cached ends when it was to end at first, however often it is read; a list with its first frame."""
        self.got(1)
        self.parts.clock.advance(100.0)
        for _again in range(3):
            self.assertEqual(self.got(1).expires, 4600.0)
        self.assertEqual(self.got(2).expires, 4700.0)
        self.assertEqual((self.got(2, 1).expires, self.got(3, 1).expires), (4600.0, 4600.0))
        self.put(4, 1200.0)
        self.assertEqual(self.got(2, 4, 3).expires, 1200.0)

    def test_really_ends_then(self) -> None:
        """The cache has the frame until the answer's expiry, and not at it."""
        expires = self.got(1).expires
        self.parts.clock.advance(expires - self.parts.clock.seconds() - 0.25)
        self.assertEqual(self.got(1).cached, 1)
        self.parts.clock.advance(0.25)
        self.assertEqual(self.got(1).fetched, 1)

    def test_slow_origin(self) -> None:
        """A frame's time begins when it has come, and is the same for who joined late."""
        self.origin.gate = Deferred()
        asked = [self.ask(1)]
        self.parts.clock.advance(5.0)
        asked.append(self.ask(1, 2))
        self.parts.clock.advance(5.0)
        self.origin.gate.callback(None)
        self.assertEqual([self.successResultOf(one).expires for one in asked], [4610.0, 4610.0])
        self.assertEqual(self.got(1, 2).expires, 4610.0)

    def test_slow_cache(self) -> None:
        """Who joins while a frame that has come is being written gets no more of its time than who fetched it."""
        written: Deferred[None] = Deferred()
        put_many = self.parts.cache.put_many

        async def slow(*arguments: Any) -> bool:
            await written
            return await put_many(*arguments)

        self.got(2)  # the grant
        self.patch(self.parts.cache, "put_many", slow)
        self.assertEqual(self.got(1).expires, 4600.0)
        self.parts.clock.advance(5.0)
        late = self.got(1)
        self.assertEqual((late.shared, late.expires), (1, 4600.0))
        written.callback(None)

    def test_wrong_clock(self) -> None:
        """A writer whose clock is far ahead prolongs nothing beyond the time of frames from now."""
        self.put(1, 1e9)
        self.assertEqual(self.got(1).expires, 4600.0)

    def test_no_expiry(self) -> None:
        """Where frames have no end, answers have none."""
        self.reader.frame_seconds = None
        self.assertEqual((self.got(1).expires, self.got(1).expires), (math.inf, math.inf))

    def test_earlier_layout(self) -> None:
        """An entry without an expiry, as they were once, is not there: it is neither misread nor in the way."""
        self.got(2)
        cache = self.parts.cache
        fence = self.successResultOf(Deferred.fromCoroutine(cache.get_many(INSTANCE, []))).fence
        old = {b"f1": b"%c%s" % (len(JPEG), JPEG.encode("ascii")) + b"old frame"}
        self.successResultOf(Deferred.fromCoroutine(cache.put_many(INSTANCE, fence, old, 3600.0)))
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(cache.present(INSTANCE, [frame_name(1)]))), set())
        answer = self.got(1)
        self.assertEqual((answer.frames, answer.cached, answer.fetched), (frames(1), 0, 1))


class SharingTests(ReaderCase):
    """Frames that are on their way are waited for, not fetched again."""

    def setUp(self) -> None:
        super().setUp()
        self.got(100)  # the grant
        self.origin.asked.clear()
        self.gate: Deferred[None] = Deferred()
        self.origin.gate = self.gate

    def test_many_callers(self) -> None:
        """200 callers of one frame make one request; half of them leave, the others are answered."""
        waits = [self.ask(1) for _ in range(200)]
        for wait in waits[:100]:
            wait.cancel()
            self.failureResultOf(wait, CancelledError)
        self.gate.callback(None)
        for wait in waits[100:]:
            self.assertEqual(self.successResultOf(wait).frames, frames(1))
        self.assertEqual(self.origin.asked, [("frames", (1,))])

    def test_counts(self) -> None:
        """A shared fetch counts as such."""
        self.ask(1)
        second = self.ask(1)
        self.gate.callback(None)
        answer = self.successResultOf(second)
        self.assertEqual((answer.fetched, answer.shared), (0, 1))

    def test_everyone_leaves(self) -> None:
        """When all have left, the origin's request is cancelled; who comes then starts anew."""
        waits = [self.ask(1), self.ask(1)]
        for wait in waits:
            wait.cancel()
            self.failureResultOf(wait, CancelledError)
        self.assertEqual(self.origin.cancelled, 1)
        self.origin.gate = None
        self.assertEqual(self.got(1).frames, frames(1))

    def test_overlapping_lists(self) -> None:
        """A list joins what is on its way and fetches only the rest."""
        first, second = self.ask(1, 2), self.ask(2, 3)
        self.origin.gate = None
        self.gate.callback(None)
        self.assertEqual(self.successResultOf(first).frames, frames(1, 2))
        self.assertEqual(self.successResultOf(second).frames, frames(2, 3))
        self.assertEqual(self.origin.asked_for("frames"), [(1, 2), (3,)])

    def test_the_other_is_refused(self) -> None:
        """Who shares the fetch of a caller that is refused meanwhile asks for itself."""
        bob = Caller(b"bob")
        self.origin.readers.add(b"bob")
        self.origin.gate = None
        self.got(100, caller=bob)
        self.origin.gate = self.gate
        first, second = self.ask(1), self.ask(1, caller=bob)
        self.origin.readers.remove(ALICE.credential)
        self.origin.gate = None
        self.gate.callback(None)
        self.failureResultOf(first, OriginRefused)
        self.assertEqual(self.successResultOf(second).frames, frames(1))

    def test_the_other_fails(self) -> None:
        """Whatever the origin made of that caller's request, the others share one of their own. Requests of the same caller
        share its failure."""
        callers = [Caller(b"bob"), Caller(b"carol")]
        for failure in (
            OriginRefused(500, (), b""),
            OriginRefused(428, (), b""),
            FramesRefused(400, (), b""),
            OriginBadAnswer("a redirect"),
            OriginBrokeOff("too early"),
        ):
            self.setUp()
            for caller in callers:
                self.origin.readers.add(caller.credential)
                self.origin.gate = None
                self.got(100, caller=caller)
            self.origin.asked.clear()
            self.origin.gate = self.gate
            first = [self.ask(1), self.ask(1)]
            others = [self.ask(1, caller=caller) for caller in callers * 3]
            second: Deferred[None] = Deferred()
            self.origin.gate, self.origin.failure = second, failure
            self.gate.callback(None)
            for wait in first:
                self.failureResultOf(wait, type(failure))
            self.origin.failure = None
            second.callback(None)
            for wait in others:
                self.assertEqual(self.successResultOf(wait).frames, frames(1))
            self.assertEqual(self.origin.asked_for("frames"), [(1,)] * 2, failure)

    def test_it_fails_for_all(self) -> None:
        """One request of each credential, not of each who waits; after two of them failed, all the others' at once."""
        callers = [Caller(b"bob"), Caller(b"carol"), Caller(b"dave")]
        self.origin.gate = None
        for caller in callers:
            self.origin.readers.add(caller.credential)
            self.got(100, caller=caller)
        self.origin.asked.clear()
        self.origin.gate = self.gate
        waits = [self.ask(1, caller=caller) for caller in [ALICE, *callers] * 5]
        self.origin.failure = OriginRefused(500, (), b"")
        for asked in (2, 4, 4):
            gate, self.origin.gate = self.origin.gate, Deferred()
            gate.callback(None)
            self.assertEqual(self.origin.asked_for("frames"), [(1,)] * asked)
        for wait in waits:
            self.failureResultOf(wait, OriginRefused)

    def test_origin_is_gone(self) -> None:
        """An origin that cannot be reached is gone for all: nobody asks again for that."""
        self.origin.gate = None
        self.origin.readers.add(b"bob")
        self.got(100, caller=Caller(b"bob"))
        self.origin.asked.clear()
        self.origin.gate = self.gate
        waits = [self.ask(1), self.ask(1, caller=Caller(b"bob"))]
        self.origin.failure = OriginUnreachable("gone")
        self.gate.callback(None)
        for wait in waits:
            self.failureResultOf(wait, OriginUnreachable)
        self.assertEqual(self.origin.asked_for("frames"), [(1,)])

    def test_all_are_denied(self) -> None:
        """A denial reaches all of that caller's requests that wait, and the origin is not asked for each of them."""
        waits = [self.ask(1) for _ in range(10)]
        self.origin.readers.clear()
        self.gate.callback(None)
        for wait in waits:
            self.failureResultOf(wait, OriginRefused)
        self.assertEqual(self.origin.asked_for("frames"), [(1,)])


class GrantTests(ReaderCase):
    """Nobody reads without a grant."""

    def test_refused(self) -> None:
        """Who is refused gets nothing of what another cached, from any worker, and the origin's own answer."""
        self.got(1)
        for reader in (self.reader, self.parts.reader()):
            failure = self.failureResultOf(self.ask(1, caller=MALLORY, reader=reader), OriginRefused)
            self.assertEqual(failure.value.status, 403)

    def test_grant_is_shared_by_workers(self) -> None:
        """What one worker's caller was granted holds at another worker, without asking the origin."""
        self.got(1)
        self.origin.asked.clear()
        self.assertEqual(self.got(1, reader=self.parts.reader()).frames, frames(1))
        self.assertEqual(self.origin.asked, [])

    def test_grant_ends(self) -> None:
        """After the grant's end the origin is asked again, and what it says holds."""
        self.got(1)
        self.parts.clock.advance(600)
        self.origin.readers.clear()
        self.failureResultOf(self.ask(1), OriginRefused)
        self.failureResultOf(self.ask(1, reader=self.parts.reader()), OriginRefused)

    def test_grant_is_renewed(self) -> None:
        """A grant that is used when three quarters are spent is renewed, and lasts on."""
        self.got(1)
        self.parts.clock.advance(440)
        self.got(1)
        self.assertEqual(self.origin.asked_for("metadata"), [ALICE.credential])
        self.parts.clock.advance(20)
        self.got(1)
        self.assertEqual(self.origin.asked_for("metadata"), 2 * [ALICE.credential])
        self.parts.clock.advance(300)
        self.got(1)
        self.assertEqual(self.origin.asked_for("metadata"), 2 * [ALICE.credential])

    def test_denied_renewal(self) -> None:
        """A renewal that the origin denies ends the grant for the next request."""
        self.got(1)
        self.origin.readers.clear()
        self.parts.clock.advance(460)
        self.assertEqual(self.got(1).frames, frames(1))
        self.failureResultOf(self.ask(1), OriginRefused)

    def test_forgotten(self) -> None:
        """A forgotten instance is asked for anew: grant, metadata and frames, at every worker."""
        other = self.parts.reader()
        self.got(1, reader=other)
        self.got(1)
        self.successResultOf(Deferred.fromCoroutine(self.reader.invalidation.invalidate(INSTANCE.scope)))
        self.origin.asked.clear()
        self.assertEqual(self.got(1, reader=other).fetched, 1)
        self.assertEqual(self.origin.asked, [("metadata", ALICE.credential), ("frames", (1,))])

    def test_forgotten_while_fetching(self) -> None:
        """What a fetch brings that began before the instance was forgotten is not kept."""
        self.got(100)
        gate: Deferred[None] = Deferred()
        self.origin.gate = gate
        wait = self.ask(1)
        self.successResultOf(Deferred.fromCoroutine(self.reader.invalidation.invalidate(INSTANCE.scope)))
        self.origin.gate = None
        gate.callback(None)
        self.successResultOf(wait)
        self.origin.asked.clear()
        self.got(1)
        self.assertEqual(self.origin.asked_for("frames"), [(1,)])
