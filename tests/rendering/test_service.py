"""Pictures for callers, in memory: what is fetched, made, shared, kept, and given up. The children are played."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.frames.support import ALICE, INSTANCE, JPEG, MALLORY, METADATA, MemoryOrigin, ReadingParts, frame
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.multipart_writer import content_digest
from twistedproxy.frames.read_through import FrameAnswer, FrameRequest, NoSuchFrame
from twistedproxy.imaging.errors import CallFailed, CannotRender, PictureTooLarge, PoolBusy
from twistedproxy.imaging.parameters import parse_query
from twistedproxy.imaging.tile_index import Placement, refusal
from twistedproxy.origin.errors import OriginRefused
from twistedproxy.origin.interface import Caller, OriginRequest, OriginResponse
from twistedproxy.prefetch.jobs import Job, JobKind
from twistedproxy.processes.messages import Message
from twistedproxy.rendering.planner import Limits, Request, can_decode
from twistedproxy.rendering.runner import BATCH
from twistedproxy.rendering.service import PictureService
from twistedproxy.streams import BytesStream

SLIDE = attrs.evolve(
    METADATA,
    frames=100,
    rows=256,
    columns=256,
    total_rows=2560,
    total_columns=2560,
    organization="TILED_FULL",
    samples_per_pixel=3,
    photometric_interpretation="YBR_FULL_422",
)
LIMITS = Limits(pixels=1 << 22, frames=20, whole_frames=1000, answer=1 << 20)


@attrs.define(eq=False)
class Played:
    """A pool whose children note what they are told, and answer at once or when *gate* opens."""

    told: list[tuple[Mapping[str, Any], int]] = attrs.Factory(list)
    gate: Optional[Deferred[None]] = None
    failure: Optional[Exception] = None
    cancelled: int = 0
    places: bytes = b""
    workers: int = 2

    async def call(self, head: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> Message:
        self.told.append((head, len(blobs)))
        if self.gate is not None:
            try:
                await self.gate
            except CancelledError:
                self.cancelled += 1
                raise
        if self.failure is not None:
            raise self.failure
        made = self.places if head["op"] == "described" else b"picture %d" % len(self.told)
        return Message({"digest": content_digest([made]).hex(), "uris": []}, [made])

    def held(self) -> Played:
        return self

    def release(self) -> None:
        self.told.append(({"op": "drop"}, 0))

    @property
    def operations(self) -> list[str]:
        """What was asked for, in order."""
        return [head["op"] for head, _ in self.told]


class Telling(MemoryOrigin):
    """An origin that has metadata to hand on, which the children who get them make nothing of."""

    async def forward(self, request: OriginRequest) -> OriginResponse:
        self.asked.append(("forward", request.path))
        return OriginResponse(200, ((b"Content-Type", b"application/dicom+json"),), BytesStream(b"[{}]"))


class ServiceCase(SynchronousTestCase):
    """A service over a memory origin."""

    def setUp(self) -> None:
        self.parts = ReadingParts(origin=Telling())
        self.pool = Played()
        self.heard: list[tuple[int, ...]] = []
        self.use(SLIDE)

    def use(self, metadata: InstanceMetadata, limits: Limits = LIMITS) -> None:
        """Let the origin hold an instance of that *metadata*."""
        self.parts.origin.metadata_value = metadata
        reader = self.parts.reader()
        reader.answered = self._heard
        pool: Any = self.pool
        self.service = PictureService(reader, self.parts.cache, pool, limits, 600.0)

    def _heard(self, wanted: FrameRequest, answer: FrameAnswer) -> None:
        self.heard.append(wanted.numbers)

    def request(self, query: str = "", media_type: str = "image/jpeg", caller: Caller = ALICE) -> Request:
        asked = parse_query(query.encode())
        origin: Any = self.parts.origin
        return Request(origin, INSTANCE, caller, asked.rendering.to(media_type), asked.fresh)

    def frames(
        self, numbers: Sequence[int], query: str = "", media_type: str = "image/jpeg", **more: Any
    ) -> Deferred[Any]:
        """Pictures of *numbers*, under way."""
        return Deferred.fromCoroutine(self.service.frames(self.request(query, media_type, **more), numbers))

    def whole(self, query: str = "") -> Deferred[Any]:
        return Deferred.fromCoroutine(self.service.whole(self.request(query)))


class SourceTests(ServiceCase):
    """Which stored frames are asked for."""

    def test_as_stored(self) -> None:
        """A stored JPEG as JPEG is read as any frame, repeats included; no child hears of it."""
        made = self.successResultOf(self.frames([3, 1, 3], "quality=10"))
        self.assertEqual(made.data, [frame(number).data for number in (3, 1, 3)])
        self.assertEqual((self.pool.told, self.heard), ([], [(3, 1, 3)]))

    def test_downsampled(self) -> None:
        """A virtual frame is made of the stored ones that it covers, of which prefetch hears."""
        made = self.successResultOf(self.frames([7], "downsample=2"))
        self.assertEqual((made.data, made.made), ([b"picture 1"], 1))
        self.assertEqual(self.parts.origin.asked_for("frames"), [(23, 24, 33, 34)])
        self.assertEqual(self.heard, [(23, 24, 33, 34)])
        ((head, blobs),) = self.pool.told
        self.assertEqual((head["op"], head["scale"], blobs), ("picture", 2, 6))
        self.assertEqual([list(tile[1:]) for tile in head["tiles"]], [[512, 512], [512, 768], [768, 512], [768, 768]])

    def test_filters_that_reach(self) -> None:
        """A filter that reaches over a frame's edge gets the frames beyond it, and frames of full size."""
        self.successResultOf(self.frames([7], "downsample=2&interpolation=linear"))
        numbers: Any = self.parts.origin.asked_for("frames")[0]
        self.assertEqual((len(numbers), numbers[0], numbers[-1]), (16, 12, 45))
        self.assertEqual(self.pool.told[0][0]["scale"], 1)

    def test_other_types(self) -> None:
        """JPEG becomes JPEG XL without loss, pixels as they are, or another picture, each by its own operation."""
        for media_type in ("image/jxl", "application/octet-stream", "image/png"):
            self.successResultOf(self.frames([1], media_type=media_type))
        self.assertEqual(self.pool.operations, ["transcode", "native", "picture"])

    def test_what_a_browser_would_get_wrong(self) -> None:
        """A JPEG whose components are RGB is no picture as it is stored."""
        self.use(attrs.evolve(SLIDE, photometric_interpretation="RGB"))
        self.successResultOf(self.frames([1]))
        self.assertEqual(self.pool.operations, ["picture"])

    def test_unknown_transfer_syntax(self) -> None:
        """Where only a frame tells the transfer syntax, it decides."""
        self.use(attrs.evolve(SLIDE, transfer_syntax=None))
        self.assertEqual(self.successResultOf(self.frames([1])).data, [frame(1).data])
        self.assertEqual(self.pool.told, [])

    def test_whole(self) -> None:
        """A whole instance comes batch by batch, row by row, into a picture that one child holds."""
        made = self.successResultOf(self.whole("viewport=100,100"))
        self.assertEqual(made.data, [b"picture 2"])
        self.assertEqual(self.pool.operations, ["picture", "picture"])
        asked = self.parts.origin.asked_for("frames")
        self.assertEqual(asked, [tuple(range(1, BATCH + 1)), tuple(range(BATCH + 1, 101))])

    def test_loaded_whole(self) -> None:
        """For a picture of most frames the instance is loaded whole, unless most of them are cached, and frames are read as
        they come; not for a picture of few frames."""
        loads: list[tuple[int, ...]] = []
        job = Job(INSTANCE, JobKind.WHOLE, "", 100, 0.0)

        async def load_whole(wanted: FrameRequest, metadata: InstanceMetadata, fence: object) -> Job:
            self.assertEqual(metadata.frames, 100)
            loads.append(wanted.numbers)
            return job

        self.service.maker.load_whole = load_whole
        making = self.whole("viewport=100,100")
        self.assertEqual(self.parts.origin.asked_for("frames"), [])
        job.progressed(BATCH, 1)
        self.assertEqual(self.heard, [tuple(range(1, BATCH + 1))])
        self.assertNoResult(making)
        job.ended = 1.0
        job.moved.fire()
        made = self.successResultOf(making)
        self.assertEqual((loads, made.forwarded), ([tuple(range(1, 101))], 1))
        self.successResultOf(self.whole("viewport=90,90"))
        self.successResultOf(self.whole("viewport=90,90,0,0,1000,1000"))
        self.assertEqual(len(loads), 1)

    def test_sparse(self) -> None:
        """Virtual frames of a sparse instance are made of the frames that lie there, and so is the whole. Where they lie is
        asked for once."""
        self.use(attrs.evolve(SLIDE, organization="TILED_SPARSE", frames=3))
        places = [0, 256 * 2560 + 256, 9 * (256 * 2560 + 256)]
        self.pool.places = Placement(1, places, [3, 1, 2], (1, 2, 3)).to_bytes()
        for number, needed in ((1, (3, 1)), (25, (2,)), (2, ())):
            self.successResultOf(self.frames([number], "downsample=2"))
            asked = self.parts.origin.asked_for("frames")
            self.assertEqual(asked[-1:] if needed else [], [needed] if needed else [])
            head, blobs = self.pool.told[-1]
            self.assertEqual((head["op"], head["background"], blobs), ("picture", (1, 2, 3), 2 + len(needed)))
        self.failureResultOf(self.frames([26], "downsample=2"), NoSuchFrame)
        self.successResultOf(self.whole("viewport=100,100"))
        self.assertEqual(self.heard[-1], (3, 1, 2))
        self.assertEqual(self.pool.operations.count("described"), 1)

    def test_unknown_places(self) -> None:
        """Where nothing says where frames lie there is no picture of the whole, nor a smaller one, whatever the order of the
        frames would make of it; their metadata are not read again. Each frame by itself is shown, and so is the only one."""
        for organization, frames in (("TILED_SPARSE", 3), (None, 100)):
            self.use(attrs.evolve(SLIDE, organization=organization, frames=frames))
            self.pool.places = refusal("in no grid")
            for _ in range(2):
                for asked in (self.frames([1], "downsample=2"), self.whole("viewport=100,100")):
                    self.assertIn("in no grid", str(self.failureResultOf(asked, CannotRender).value))
            self.assertEqual(self.pool.operations.count("described"), 1)
            self.successResultOf(self.frames([2], media_type="image/png"))
            self.setUp()
        for only in ({"frames": 1}, {"total_rows": 256, "total_columns": 200}):
            self.setUp()
            self.use(attrs.evolve(SLIDE, organization=None, **only))
            self.pool.places = refusal("in no grid")
            self.successResultOf(self.whole("viewport=100,100"))
            self.assertEqual(self.parts.origin.asked_for("frames"), [(1,)])

    def test_in_no_grid(self) -> None:
        """A child is told where frames lie in no grid, and their decoders average nothing."""
        self.use(attrs.evolve(SLIDE, organization=None, frames=3))
        self.pool.places = Placement(1, [7, 256 * 2560 + 99], [2, 3], in_grid=False).to_bytes()
        self.successResultOf(self.whole("viewport=100,100"))
        head, _ = self.pool.told[-1]
        self.assertEqual(([list(tile[1:]) for tile in head["tiles"]], head["in_grid"], head["scale"]),
                         ([[0, 7], [256, 99]], False, 1))  # fmt: skip

    def test_concatenation(self) -> None:
        """Frames of a later part of a concatenation are drawn where they lie in the whole."""
        self.use(attrs.evolve(SLIDE, frames=20, concatenation_part=3, frame_offset=45))
        self.successResultOf(self.whole("viewport=100,100"))
        self.assertEqual(self.heard, [tuple(range(1, 21))])
        head, _ = self.pool.told[-1]
        self.assertEqual(head["tiles"][0][1:], (4 * 256, 5 * 256))
        self.successResultOf(self.frames([13], "downsample=2"))
        self.assertEqual(self.heard[-1], (1, 10, 11))

    def test_can_decode(self) -> None:
        """Video is not worth a try, nor what is not known; a syntax that nobody told is."""
        self.assertTrue(can_decode(JPEG) and can_decode(None))
        self.assertFalse(can_decode("1.2.840.10008.1.2.4.102") or can_decode("1.2.3"))


class RefusalTests(ServiceCase):
    """What is refused, before any frame is fetched."""

    def _refused(self, kind: type[Exception], asked: Deferred[Any]) -> str:
        error = self.failureResultOf(asked, kind).value
        self.assertEqual(self.parts.origin.asked_for("frames"), [])
        self.assertEqual(self.pool.told, [])
        return str(error)

    def test_limits(self) -> None:
        """Frames, pixels and whole instances have limits that errors name."""
        self.assertIn("20", self._refused(PictureTooLarge, self.frames([1], "downsample=5")))
        self.assertIn("20", self._refused(PictureTooLarge, self.frames([1, 2, 3, 4, 5, 6], "downsample=2")))
        self.assertIn(str(1 << 22), self._refused(PictureTooLarge, self.whole()))
        self.use(SLIDE, attrs.evolve(LIMITS, whole_frames=99))
        self.assertIn("99", self._refused(PictureTooLarge, self.whole("viewport=9,9")))
        self.use(SLIDE, attrs.evolve(LIMITS, pixels=256 * 255))
        self._refused(PictureTooLarge, self.frames([1], "viewport=9,9"))

    def test_large_answers(self) -> None:
        """Pictures that are too many bytes together are not all made; those asked for again count again."""
        self.use(SLIDE, attrs.evolve(LIMITS, answer=3 * len(b"picture 1")))
        self.successResultOf(self.frames([1, 2, 1], "viewport=9,9"))
        refused = self.failureResultOf(self.frames([1, 2, 1, 1], "viewport=9,9"), PictureTooLarge)
        self.assertIn("27 bytes", str(refused.value))
        before = len(self.pool.told)
        self.failureResultOf(self.frames([*range(3, 20)], "viewport=9,9"), PictureTooLarge)
        self.assertLess(len(self.pool.told) - before, 9)

    def test_large_answers_from_the_cache(self) -> None:
        """Cached pictures that are too many bytes together are not read; as many as allowed are."""
        self.use(SLIDE, attrs.evolve(LIMITS, answer=3 * len(b"picture 1")))
        self.successResultOf(self.frames([1, 2], "viewport=9,9"))
        self.assertEqual(self.successResultOf(self.frames([1, 2, 1], "viewport=9,9")).cached, 2)
        read: list[int] = []
        get_many = self.parts.cache.get_many

        def counting(instance: Any, names: Any) -> Any:
            read.append(len(names))
            return get_many(instance, names)

        self.parts.cache.get_many = counting  # type: ignore[method-assign]
        self.failureResultOf(self.frames([1, 2, 1, 1], "viewport=9,9"), PictureTooLarge)
        self.assertEqual(read, [])

    def test_a_list_as_long_as_allowed(self) -> None:
        """Undownsampled frames need one each: the limit of a list alone bounds them."""
        self.assertEqual(len(self.successResultOf(self.frames(range(1, 31), media_type="image/png")).data), 30)

    def test_past_the_end(self) -> None:
        """Numbers past the end of the instance, or of the virtual one, are no frames."""
        self.assertIn("1 to 100", self._refused(NoSuchFrame, self.frames([101], media_type="image/png")))
        self.assertIn("1 to 25", self._refused(NoSuchFrame, self.frames([26], "downsample=2")))

    def test_no_grant(self) -> None:
        """Nobody gets a picture of what they may not read, however many of it there are."""
        self.successResultOf(self.frames([1], media_type="image/png"))
        self.failureResultOf(self.frames([1], media_type="image/png", caller=MALLORY), OriginRefused)


class SharingTests(ServiceCase):
    """Work that is done once, kept, and given up."""

    def test_kept(self) -> None:
        """A picture is made once, for all who ask in the same words or others."""
        first = self.successResultOf(self.frames([1, 2], media_type="image/png"))
        again = self.successResultOf(self.frames([2, 1, 1], "quality=30", "image/png"))
        self.assertEqual(again.data, [first.data[1], first.data[0], first.data[0]])
        self.assertEqual((again.cached, again.made, len(self.pool.told)), (2, 0, 2))

    def test_expiry(self) -> None:
        """Pictures say when the first of them ends in the cache; that they are read prolongs nothing."""
        self.assertEqual(self.successResultOf(self.frames([1], media_type="image/png")).expires, 600.0)
        self.parts.clock.advance(100.0)
        self.assertEqual(self.successResultOf(self.frames([2], media_type="image/png")).expires, 700.0)
        for numbers in ([1, 2], [2, 1]):
            again = self.successResultOf(self.frames(numbers, media_type="image/png"))
            self.assertEqual((again.cached, again.expires), (2, 600.0))
        self.parts.clock.advance(500.0)
        self.assertEqual(self.successResultOf(self.frames([1, 2], media_type="image/png")).made, 1)

    def test_expiry_of_stored(self) -> None:
        """A picture that is a stored frame ends with that frame."""
        self.assertEqual(self.successResultOf(self.frames([1])).expires, 3600.0)
        self.parts.clock.advance(100.0)
        self.assertEqual(self.successResultOf(self.frames([2, 1])).expires, 3600.0)

    def test_fresh(self) -> None:
        """Who wants nothing cached gets nothing cached, and leaves nothing."""
        self.assertEqual(self.successResultOf(self.frames([1], "disable_caching=1", "image/png")).made, 1)
        self.assertEqual(self.successResultOf(self.frames([1], "", "image/png")).made, 1)
        self.assertEqual(self.successResultOf(self.frames([1], "disable_caching=1", "image/png")).made, 1)

    def test_shared(self) -> None:
        """Who asks for a picture that is being made waits for that one."""
        self.pool.gate = Deferred()
        asked = [self.frames([1], media_type="image/png") for _ in range(3)]
        self.pool.gate.callback(None)
        made = [self.successResultOf(one) for one in asked]
        self.assertEqual([(one.made, one.shared) for one in made], [(1, 0), (0, 1), (0, 1)])
        self.assertEqual((len(self.pool.told), {one.data[0] for one in made}), (1, {b"picture 1"}))

    def test_given_up(self) -> None:
        """A picture is made as long as one waits for it; when the last has gone, it is given up."""
        self.pool.gate = Deferred()
        first, second = (self.frames([1], media_type="image/png") for _ in range(2))
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.assertEqual(self.pool.cancelled, 0)
        second.cancel()
        self.failureResultOf(second, CancelledError)
        self.assertEqual(self.pool.cancelled, 1)

    def test_held_and_given_up(self) -> None:
        """A child lets go of a picture of many frames that nobody waits for, and its place is free again."""
        origin: Any = self.parts.origin
        first = FrameRequest(origin, INSTANCE, tuple(range(1, BATCH + 1)), ALICE)
        self.successResultOf(Deferred.fromCoroutine(self.service.reader.read(first)))
        for _ in range(5):  # more often than there are places
            self.parts.origin.gate = Deferred()  # the second batch does not come
            asked = self.whole("viewport=100,100")
            self.assertEqual(self.pool.operations[-1], "picture")
            asked.cancel()
            self.failureResultOf(asked, CancelledError)
            self.assertEqual(self.pool.operations[-1], "drop")

    def test_failure(self) -> None:
        """What went wrong is told to all who wait, and not kept."""
        for failure in (CallFailed("BadImage", "broken"), PoolBusy("full")):
            self.pool.failure = failure
            self.failureResultOf(self.frames([1], media_type="image/png"), type(failure))
        self.pool.failure = None
        self.assertEqual(self.successResultOf(self.frames([1], media_type="image/png")).made, 1)

    def test_one_request_takes_few_places(self) -> None:
        """A long list has a few pictures made side by side: others get their turn."""
        self.pool.gate = Deferred()
        asked = self.frames(range(1, 21), media_type="image/png")
        self.assertEqual(len(self.pool.told), 4)
        self.pool.gate.callback(None)
        self.assertEqual(len(self.successResultOf(asked).data), 20)
