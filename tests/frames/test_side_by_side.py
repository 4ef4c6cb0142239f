"""A frame of an instance of which nothing is known, asked for side by side with its metadata."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Optional

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.frames.support import ALICE, INSTANCE, JPEG, MALLORY, METADATA, MemoryOrigin, ReadingParts, frame
from twistedproxy.deferreds import Waiters
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, JPEG_2000, JPEG_2000_LOSSLESS, Frame
from twistedproxy.frames.access import RENEWAL_PAUSE
from twistedproxy.frames.entries import LARGE_FRAME, frame_name, grant_name, unpack_grant
from twistedproxy.frames.read_through import FrameAnswer, FrameRequest, NoSuchFrame
from twistedproxy.frames.streamed import FramePieces, ListReader
from twistedproxy.origin.errors import (
    OriginBadAnswer,
    OriginError,
    OriginRefused,
    OriginTimeout,
    OriginUnreachable,
)
from twistedproxy.origin.interface import Caller, Priority
from twistedproxy.streams import StreamTooLong
from twistedproxy.system.memory_budget import AnswerMemory

BOB = Caller(b"bob", ((b"Authorization", b"Bearer bob"),))
NATIVE = InstanceMetadata(frames=100, rows=2, columns=2, transfer_syntax=EXPLICIT_VR_LITTLE_ENDIAN)


class Held:
    """Requests of one kind that wait until they are let go; *cancelled*: how many were not."""

    def __init__(self) -> None:
        self.waiting: Waiters[None] = Waiters()
        self.open = False
        self.cancelled = 0

    async def passed(self) -> None:
        if not self.open:
            try:
                await self.waiting.wait()
            except BaseException:
                self.cancelled += 1
                raise

    def release(self) -> None:
        self.open = True
        self.waiting.fire()


@attrs.define(eq=False)
class SlowOrigin(MemoryOrigin):
    """Answers when it is let: *slow* for metadata, *quick* for frames of an unknown instance. *given*: such frames; *denied*: how
    callers are refused them, *untold*: how they are refused metadata."""

    slow: Held = attrs.Factory(Held)
    quick: Held = attrs.Factory(Held)
    given: dict[int, Frame] = attrs.Factory(dict)
    denied: dict[bytes, Exception] = attrs.Factory(dict)
    untold: dict[bytes, Exception] = attrs.Factory(dict)

    def gives_unknown(self, instance: Instance) -> bool:
        return True

    async def metadata(self, instance: Instance, caller: Caller) -> InstanceMetadata:
        self.asked.append(("metadata", caller.credential))
        await self.slow.passed()
        if caller.credential in self.untold:
            raise self.untold[caller.credential]
        return self.metadata_value

    async def frame_of_unknown(self, instance: Instance, number: int, caller: Caller, limit: int) -> Frame:
        self.asked.append(("unknown", (caller.credential, number)))
        assert limit == LARGE_FRAME
        await self.quick.passed()
        if caller.credential in self.denied:
            raise self.denied[caller.credential]
        return self.given.get(number) or frame(number)

    def _check(self, caller: Caller) -> None:
        if caller.credential in self.denied:
            raise self.denied[caller.credential]


def refused(status: int) -> OriginRefused:
    return OriginRefused(status, (), b"no")


class SideBySideCase(SynchronousTestCase):
    """A worker in front of an origin whose answers wait; frames come at once unless a test holds them."""

    def setUp(self) -> None:
        self.origin = SlowOrigin()
        self.origin.quick.release()
        self.parts = ReadingParts(origin=self.origin)
        self.lists = ListReader(self.parts.reader())
        self.reader = self.lists.reader
        self.reports: list[tuple[FrameRequest, FrameAnswer]] = []
        self.reader.answered = lambda *report: self.reports.append(report)
        self.missed: list[tuple[FrameRequest, InstanceMetadata, Optional[bytes]]] = []
        self.reader.missed = lambda *report: self.missed.append(report)
        self.memory = AnswerMemory(self.parts.clock, 1 << 20)

    def ask(self, number: int, caller: Caller = ALICE, takes: Any = None, **more: Any) -> Deferred[FrameAnswer]:
        """Begin a request for one frame, by a caller who takes anything as it is unless *takes* says otherwise."""
        request = FrameRequest(self.origin, INSTANCE, (number,), caller, takes=takes or (lambda _: True), **more)

        async def read() -> FrameAnswer:
            with self.memory.hold() as held:
                answer = await self.lists.read(request, held)
                assert not isinstance(answer, FramePieces)
                return answer

        return Deferred.fromCoroutine(read())

    def given(self, number: int, caller: Caller = ALICE, **more: Any) -> FrameAnswer:
        """The answer to a request that does not wait for metadata."""
        return self.successResultOf(self.ask(number, caller, **more))

    def failed(self, asking: Deferred[FrameAnswer], kind: type[Exception]) -> Any:
        return self.failureResultOf(asking, kind).value

    def result(self, awaitable: Awaitable[Any]) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(awaitable))  # type: ignore[arg-type]

    def cached(self, *numbers: int) -> set[bytes]:
        """Which of these frames the cache holds now, for whoever has a grant."""
        return set(self.result(self.parts.cache.get_many(INSTANCE, [frame_name(number) for number in numbers])).entries)

    def grant(self, caller: Caller = ALICE) -> Optional[object]:
        return self.reader.access.known(caller, INSTANCE)

    def assert_asked(self, **kinds: list[object]) -> None:
        """What the origin was asked for, all in all."""
        for kind in ("metadata", "unknown", "frames"):
            self.assertEqual(self.origin.asked_for(kind), kinds.get(kind, []), kind)


class FrameFirstTests(SideBySideCase):
    """The frame comes before the metadata."""

    def test_given_at_once(self) -> None:
        """The frame is given and cached while the metadata are under way; these are the grant, and prefetch hears of it then."""
        answer = self.given(3)
        self.assertEqual((list(answer.frames), answer.fetched, answer.cached, answer.stored), ([frame(3)], 1, 0, True))
        self.assertEqual((self.cached(3), self.grant(), self.reports), ({frame_name(3)}, None, []))
        self.assertEqual(self.missed, [])
        self.origin.slow.release()
        self.assertIsNotNone(self.grant())
        self.assertEqual([metadata for _, metadata, fence in self.missed if fence is not None], [METADATA])
        ((_, reported),) = self.reports
        self.assertEqual((reported.metadata, reported.fetched), (METADATA, 1))
        self.assertEqual(self.given(3).cached, 1)
        self.assert_asked(metadata=[b"alice"], unknown=[(b"alice", 3)])

    def test_frames_come_first_in_line(self) -> None:
        """The frame is asked for before the metadata: with one slot at the origin it does not wait for these."""
        self.given(3)
        self.assertEqual([kind for kind, _ in self.origin.asked], ["unknown", "metadata"])

    def test_more_frames_meanwhile(self) -> None:
        """Until the metadata come each frame is asked for, those too that are cached; the metadata once."""
        for number in (3, 4, 3):
            self.assertEqual(self.given(number).fetched, 1)
        self.origin.slow.release()
        self.assertEqual(self.given(4).cached, 1)
        self.assert_asked(metadata=[b"alice"], unknown=[(b"alice", 3), (b"alice", 4), (b"alice", 3)])
        self.assertEqual([request.numbers for request, _ in self.reports], [(3,), (4,)], "the last one, and the hit")

    def test_same_frame_at_once(self) -> None:
        """Requests of one caller for one frame share one request to the origin."""
        self.origin.quick = Held()
        both = [self.ask(3), self.ask(3)]
        self.origin.quick.release()
        answers = [self.successResultOf(one) for one in both]
        self.assertEqual([(one.fetched, one.shared) for one in answers], [(1, 0), (0, 1)])
        self.assert_asked(metadata=[b"alice"], unknown=[(b"alice", 3)])

    def test_contradicted(self) -> None:
        """A frame that is not as stored by the metadata, or that they do not know, is taken out of the cache, and proves nothing."""
        for facts in (attrs.evolve(METADATA, transfer_syntax=JPEG_2000), attrs.evolve(METADATA, frames=2)):
            self.setUp()
            self.origin.metadata_value = facts
            self.given(3)
            self.given(3, MALLORY)
            self.origin.slow.release()
            self.assertEqual((self.cached(3), self.reports, self.grant(MALLORY)), (set(), [], None))

    def test_transfer_syntax_learned(self) -> None:
        """What the metadata do not say of the transfer syntax, the frame does."""
        self.origin.metadata_value = attrs.evolve(METADATA, transfer_syntax=None)
        self.given(3)
        self.origin.slow.release()
        grant = self.reader.access.known(ALICE, INSTANCE)
        assert grant is not None
        self.assertEqual(grant.metadata.transfer_syntax, JPEG)


class RightsTests(SideBySideCase):
    """Whom the origin gives what."""

    def test_refused_metadata(self) -> None:
        """Who is given a frame and refused the metadata gets that frame, no grant, and leaves nothing in the cache; the metadata are
        not asked for with each frame."""
        self.origin.untold[b"alice"] = refused(403)
        self.given(3)
        self.origin.slow.release()
        self.assertEqual((self.grant(), self.cached(3)), (None, set()))
        answer = self.given(4)
        self.assertEqual((list(answer.frames), answer.stored), ([frame(4)], False))
        self.assertEqual(self.cached(4), set())
        self.assert_asked(metadata=[b"alice"], unknown=[(b"alice", 3), (b"alice", 4)])
        self.parts.clock.advance(RENEWAL_PAUSE + 1)
        self.given(4)
        self.assertEqual(len(self.origin.asked_for("metadata")), 2)
        self.assertEqual(self.reports, [])

    def test_refused_metadata_first(self) -> None:
        """It makes no difference which answer comes first."""
        self.origin.untold[b"alice"] = refused(403)
        self.origin.quick = Held()
        asking = self.ask(3)
        self.origin.slow.release()
        self.assertNoResult(asking)
        self.origin.quick.release()
        self.assertEqual(list(self.successResultOf(asking).frames), [frame(3)])
        self.assertEqual((self.grant(), self.cached(3)), (None, set()))

    def test_refused_both(self) -> None:
        """Who is refused the frame is refused, whatever the metadata, at once; the metadata are not waited for."""
        for status in (401, 403):
            self.setUp()
            self.origin.denied[b"alice"] = refused(status)
            self.assertEqual(self.failed(self.ask(3), OriginRefused).status, status)
            self.assertEqual(self.origin.slow.cancelled, 1)
            self.origin.slow.release()
            self.assertEqual((self.grant(), self.cached(3)), (None, set()))

    def test_refused_frame_ends_other_proofs(self) -> None:
        """A denial of a frame ends the proof by metadata that is under way, for all requests of that caller, and a grant that has
        come meanwhile."""
        self.origin.quick = Held()
        whole = Deferred.fromCoroutine(self.reader.granted(self.origin, INSTANCE, ALICE))
        asking = self.ask(3)
        self.origin.denied[b"alice"] = refused(403)
        self.origin.quick.release()
        self.assertEqual(self.failed(asking, OriginRefused).status, 403)
        self.assertEqual(self.failureResultOf(whole, OriginRefused).value.status, 403)
        self.origin.slow.release()
        self.assertIsNone(self.grant())

        self.setUp()
        self.origin.quick = Held()
        asking = self.ask(3)
        self.origin.slow.release()
        self.assertIsNotNone(self.grant())
        self.origin.denied[b"alice"] = refused(403)
        self.origin.quick.release()
        self.failed(asking, OriginRefused)
        self.assertIsNone(self.grant())
        reading = self.result(self.parts.cache.get_many(INSTANCE, [*self.reader.access.entry_names(ALICE)]))
        self.assertIsNone(self.reader.access.from_reading(ALICE, INSTANCE, reading), "nor for other workers")

    def test_two_callers(self) -> None:
        """Each caller asks for frames, one of them for the metadata: these are the facts for both, to whom the origin gave frames."""
        self.given(3)
        self.given(3, MALLORY)
        self.origin.slow.release()
        self.assertEqual([self.given(3, one).cached for one in (ALICE, MALLORY)], [1, 1])
        self.assert_asked(metadata=[b"alice"], unknown=[(b"alice", 3), (b"mallory", 3)])

    def test_refused_after_a_frame(self) -> None:
        """A frame that was given is no proof after another one was denied, though another caller's metadata bring the facts."""
        self.given(3, MALLORY)
        self.given(3)
        self.origin.denied[b"alice"] = refused(403)
        self.failed(self.ask(4), OriginRefused)
        self.origin.slow.release()
        self.assertIsNotNone(self.grant(MALLORY))
        self.assertIsNone(self.grant(ALICE))
        self.assertEqual([request.caller for request, _ in self.reports], [MALLORY])

    def test_revoked_after_a_frame(self) -> None:
        """Nor after the origin has denied anything else of the instance, here or to another worker."""
        for caller in (MALLORY, ALICE):
            self.given(3, caller)
        self.reader.access.forget(ALICE, INSTANCE)
        self.origin.slow.release()
        self.assertEqual([self.grant(caller) is None for caller in (ALICE, MALLORY)], [True, False])

    def test_as_long_as_the_frame_proves(self) -> None:
        """A grant by a frame ends when the time of that frame does, however late another caller's metadata bring the facts."""
        self.given(3)
        self.given(4, MALLORY)
        waiting = self.ask(6, takes=lambda uid: uid == JPEG_2000_LOSSLESS, caller=BOB)
        self.parts.clock.advance(100)
        self.origin.slow.release()
        self.successResultOf(waiting)
        for caller in (MALLORY, BOB):
            grant = self.reader.access.known(caller, INSTANCE)
            assert grant is not None
            self.assertEqual(grant.expires, self.parts.ttl)
            packed = self.result(self.parts.cache.get_many(INSTANCE, [grant_name(caller)])).entries
            self.assertEqual(unpack_grant(packed[grant_name(caller)]), self.parts.ttl)

    def test_frames_are_not_joined(self) -> None:
        """A caller never gets the frame that another one's request brings, though it comes at the same time."""
        self.origin.quick = Held()
        own, other = self.ask(3), self.ask(3, MALLORY)
        self.origin.denied[b"mallory"] = refused(403)
        self.origin.quick.release()
        self.assertEqual(list(self.successResultOf(own).frames), [frame(3)])
        self.failed(other, OriginRefused)
        self.assertEqual(self.origin.asked_for("unknown"), [(b"alice", 3), (b"mallory", 3)])

    def test_facts_are_no_proof(self) -> None:
        """Who joined in another's metadata, and was given no frame, has no grant by that."""
        self.given(3)
        for failure in (refused(403), refused(404), OriginBadAnswer("a page"), OriginTimeout("late")):
            self.origin.denied[b"mallory"] = failure
            self.origin.quick = Held()
            asking = self.ask(3, MALLORY)
            self.origin.quick.release()
            self.assertIsNone(self.grant(MALLORY))
            asking.addErrback(lambda _: None)
        self.origin.untold[b"mallory"] = refused(403)
        self.origin.slow.release()
        self.assertIsNotNone(self.grant(ALICE))
        self.assertIsNone(self.grant(MALLORY))
        self.origin.denied[b"mallory"] = refused(403)
        self.failed(self.ask(3, MALLORY), OriginRefused)

    def test_metadata_refused_to_the_one_who_asked(self) -> None:
        """Where the caller in whose name metadata were asked for is refused them, another asks in its own name."""
        self.origin.untold[b"alice"] = refused(403)
        self.given(3)
        self.given(4, MALLORY)
        self.origin.slow.release()
        self.assertEqual((self.grant(ALICE), self.cached(3, 4)), (None, {frame_name(4)}))
        self.assertIsNotNone(self.grant(MALLORY))
        self.assert_asked(metadata=[b"alice", b"mallory"], unknown=[(b"alice", 3), (b"mallory", 4)])

    def test_invalidated_meanwhile(self) -> None:
        """What was asked for before a STOW is answered, and neither kept nor a proof after it."""
        self.origin.quick = Held()
        asking = self.ask(3)
        self.result(self.reader.invalidation.invalidate(INSTANCE.scope))
        self.origin.quick.release()
        self.successResultOf(asking)
        self.assertEqual(self.cached(3), set())
        self.origin.slow.release()
        self.given(3)
        self.assert_asked(metadata=[b"alice", b"alice"], unknown=[(b"alice", 3)], frames=[(3,)])
        self.assertEqual(self.cached(3), {frame_name(3)})

    def test_invalidated_before_the_metadata(self) -> None:
        """A frame that was cached, and metadata that came, on both sides of a STOW are no grant."""
        self.given(3)
        self.result(self.reader.invalidation.invalidate(INSTANCE.scope))
        self.origin.slow.release()
        self.assertEqual(self.cached(3), set())
        self.assertEqual(self.given(3).fetched, 1)


class OtherwiseTests(SideBySideCase):
    """What does not show by itself that it is the frame."""

    def test_cached_and_not_given(self) -> None:
        """A frame that waits for the facts, because its caller does not take it as it is, is taken out of the cache where none come:
        the metadata are refused, or the caller leaves."""
        asking = self.ask(3, takes=lambda uid: uid == JPEG_2000_LOSSLESS)
        self.assertEqual(self.cached(3), {frame_name(3)})
        self.origin.untold[b"alice"] = refused(403)
        self.origin.slow.release()
        self.failed(asking, OriginRefused)
        self.assertEqual(self.cached(3), set())

        self.setUp()
        asking = self.ask(3, takes=lambda uid: uid == JPEG_2000_LOSSLESS)
        asking.cancel()
        self.failed(asking, CancelledError)
        self.assertEqual((self.cached(3), self.origin.slow.cancelled), (set(), 1))

    def test_cached_after_it_was_taken_out(self) -> None:
        """A frame that comes to the cache only once it is known that no facts come is taken out then."""
        put, gate = self.parts.cache.put_many, Deferred[None]()

        async def late(*entry: Any) -> bool:
            await gate
            return await put(*entry)

        self.patch(self.parts.cache, "put_many", late)
        self.origin.untold[b"alice"] = refused(403)
        self.given(3)
        self.origin.slow.release()
        gate.callback(None)
        self.assertEqual(self.cached(3), set())

    def test_ordinary_way(self) -> None:
        """After any other failure the metadata are waited for, and the frame is asked for with these."""
        for failure in (refused(406), refused(500), OriginBadAnswer("a page"), StreamTooLong("large")):
            self.setUp()
            self.origin.denied[b"alice"] = failure
            asking = self.ask(3)
            self.assertNoResult(asking)
            self.origin.denied.clear()
            self.origin.slow.release()
            self.assertEqual(list(self.successResultOf(asking).frames), [frame(3)])
            self.assert_asked(metadata=[b"alice"], unknown=[(b"alice", 3)], frames=[(3,)])
            self.assertIs(self.origin.priority, Priority.CALLER)

    def test_origin_out_of_reach(self) -> None:
        """An origin that cannot be reached, or is too slow, is not asked again."""
        for failure in (OriginUnreachable("gone"), OriginTimeout("late")):
            self.setUp()
            self.origin.denied[b"alice"] = failure
            self.failed(self.ask(3), OriginError)
            self.assertEqual(self.origin.slow.cancelled, 1)

    def test_number_past_the_end(self) -> None:
        """Where the origin has no such frame, the metadata say which there are, if they were told to that very caller."""
        self.origin.denied.update({b"alice": refused(404), b"mallory": refused(404)})
        own, other = self.ask(101), self.ask(101, MALLORY)
        self.assertNoResult(own)
        self.origin.slow.release()
        self.assertIn("frames 1 to 100", str(self.failed(own, NoSuchFrame)))
        self.assertEqual(self.failed(other, OriginRefused).status, 404)

    def test_missing(self) -> None:
        """A 404 goes back as it came where the metadata know the frame; where they are refused, too, that refusal does."""
        self.origin.denied[b"alice"] = refused(404)
        asking = self.ask(3)
        self.origin.slow.release()
        self.assertEqual(self.failed(asking, OriginRefused).status, 404)
        self.setUp()
        self.origin.denied[b"alice"], self.origin.untold[b"alice"] = refused(404), refused(401)
        asking = self.ask(3)
        self.origin.slow.release()
        self.assertEqual(self.failed(asking, OriginRefused).status, 401)

    def test_native(self) -> None:
        """A native frame waits for the facts, and is used if it is right by them; only then it is cached."""
        self.origin.metadata_value = NATIVE
        self.origin.given[3] = Frame(b"grey", EXPLICIT_VR_LITTLE_ENDIAN)
        asking = self.ask(3)
        self.assertNoResult(asking)
        self.assertEqual(self.cached(3), set())
        self.origin.slow.release()
        answer = self.successResultOf(asking)
        self.assertEqual(([one.data for one in answer.frames], answer.metadata), ([b"grey"], NATIVE))
        self.assertEqual((self.cached(3), len(self.reports)), ({frame_name(3)}, 1))
        self.assert_asked(metadata=[b"alice"], unknown=[(b"alice", 3)])

    def test_native_that_is_wrong(self) -> None:
        """One of another length, of an instance that is stored otherwise, or of which that is not known, is fetched again."""
        for facts, data in (
            (NATIVE, b"gray scale"),
            (METADATA, b"grey"),
            (attrs.evolve(NATIVE, transfer_syntax=None), b"grey"),
        ):
            self.setUp()
            self.origin.metadata_value = facts
            self.origin.given[3] = Frame(data, EXPLICIT_VR_LITTLE_ENDIAN)
            asking = self.ask(3)
            self.origin.slow.release()
            self.assertEqual(list(self.successResultOf(asking).frames), [frame(3)])
            self.assert_asked(metadata=[b"alice"], unknown=[(b"alice", 3)], frames=[(3,)])

    def test_not_as_it_is(self) -> None:
        """A frame that the caller does not take as it is waits for the facts, by which another may be made of it."""
        asking = self.ask(3, takes=lambda uid: uid != JPEG)
        self.assertNoResult(asking)
        self.origin.slow.release()
        self.assertEqual(list(self.successResultOf(asking).frames), [frame(3)])
        self.assert_asked(metadata=[b"alice"], unknown=[(b"alice", 3)])

    def test_of_no_known_kind(self) -> None:
        """A frame whose bytes cannot show what they are waits, and is fetched again."""
        self.origin.given[3] = Frame(b"?", "1.2.3.4")
        asking = self.ask(3)
        self.assertNoResult(asking)
        self.origin.slow.release()
        self.assertEqual(list(self.successResultOf(asking).frames), [frame(3)])

    def test_metadata_first(self) -> None:
        """Metadata that come first, as small ones do, make the answer an ordinary one."""
        self.origin.quick = Held()
        asking = self.ask(3)
        self.origin.slow.release()
        self.origin.quick.release()
        answer = self.successResultOf(asking)
        self.assertEqual((answer.metadata, answer.fetched, len(self.reports), len(self.missed)), (METADATA, 1, 1, 1))
        self.assertEqual(self.given(3).cached, 1)
        self.assert_asked(metadata=[b"alice"], unknown=[(b"alice", 3)])

    def test_contradicted_before(self) -> None:
        """A frame that is not as stored, by metadata that came first, is neither given nor cached."""
        self.origin.metadata_value = attrs.evolve(METADATA, transfer_syntax=JPEG_2000)
        self.origin.quick = Held()
        asking = self.ask(3)
        self.origin.slow.release()
        self.origin.failure = OriginBadAnswer("not as stored")
        self.origin.quick.release()
        self.failed(asking, OriginBadAnswer)
        self.assertEqual(self.cached(3), set())

    def test_not_asked_so(self) -> None:
        """Lists, what is not to be cached, callers who need facts for any form, and known instances go the ordinary way."""
        for more in ({"fresh": True}, {"takes": lambda _: False}):
            asking = self.ask(3, **more)  # type: ignore[arg-type]
            self.assertNoResult(asking)
            asking.addErrback(lambda _: None)
            asking.cancel()
        self.assertEqual(self.origin.asked_for("unknown"), [])
        self.origin.slow.release()
        self.result(self.reader.granted(self.origin, INSTANCE, ALICE))
        self.given(3)
        self.origin.readers.add(b"mallory")
        self.given(3, MALLORY)
        self.assertEqual(self.origin.asked_for("unknown"), [])


class LeavingTests(SideBySideCase):
    """Callers who go before their answer comes."""

    def test_alone(self) -> None:
        """With the only caller both requests end."""
        self.origin.quick = Held()
        asking = self.ask(3)
        asking.addErrback(lambda _: None)
        asking.cancel()
        self.assertEqual((self.origin.quick.cancelled, self.origin.slow.cancelled), (1, 1))
        self.assertEqual(self.lists.side_by_side.under_way, 0)

    def test_one_of_two(self) -> None:
        """One who leaves ends its own wait alone: another request of that caller, and another caller's, get theirs."""
        self.origin.quick = Held()
        leaving, staying, other = self.ask(3), self.ask(3), self.ask(4, MALLORY)
        leaving.addErrback(lambda _: None)
        leaving.cancel()
        self.assertEqual((self.origin.quick.cancelled, self.origin.slow.cancelled), (0, 0))
        staying.addErrback(lambda _: None)
        staying.cancel()
        self.assertEqual((self.origin.quick.cancelled, self.origin.slow.cancelled), (1, 0))
        self.origin.quick.release()
        self.successResultOf(other)
        self.origin.slow.release()
        self.assertIsNotNone(self.grant(MALLORY))

    def test_after_the_frame(self) -> None:
        """Once a frame was given, the metadata go on, whoever leaves: the next request will need them."""
        self.given(3)
        self.origin.quick = Held()
        asking = self.ask(4)
        asking.addErrback(lambda _: None)
        asking.cancel()
        self.assertEqual((self.origin.quick.cancelled, self.origin.slow.cancelled), (1, 0))
        self.origin.slow.release()
        self.assertEqual(self.given(3).cached, 1)
