"""A stored instance on its way into the cache: every format, every way to go wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Optional

import attrs
import pydicom
from twisted.internet.defer import CancelledError, Deferred

from tests.frames.support import INSTANCE, JPEG
from tests.prefetch.support import MIB, PrefetchCase
from tests.slides import Made, OffsetTable
from tests.slides import loop as any_loop
from tests.slides import slide as any_slide
from twistedproxy.cache.keys import LOADING
from twistedproxy.cache.memory import MemoryCache
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.frames.entries import expires_of, frame_name, unpack_frame, was_prefetched
from twistedproxy.origin.errors import OriginUnreachable
from twistedproxy.prefetch.instance_load import (
    BATCH_BYTES,
    BATCH_SECONDS,
    OUTSTANDING_BYTES,
    InstanceLoad,
    Loaded,
    ProvisionalFrames,
)
from twistedproxy.prefetch.jobs import LoadFailed, Withdrawn
from twistedproxy.prefetch.loaders import InProcessLoader, LoadTask, turns

NATIVE = "1.2.840.10008.1.2.1"


UIDS = {"study": INSTANCE.study, "series": INSTANCE.series, "sop": INSTANCE.sop}
slide, loop = partial(any_slide, **UIDS), partial(any_loop, **UIDS)


class Pieces:
    """A `ByteStream` that gives a piece when the test does."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._waiter: Optional[Deferred[None]] = None
        self._end: Optional[Exception | bool] = None
        self.closed = False
        self.reads = 0

    def give(self, *pieces: bytes) -> None:
        self._pieces += pieces
        self._wake()

    def end(self, error: Optional[Exception] = None) -> None:
        self._end = error or True
        self._wake()

    async def read(self) -> bytes:
        self.reads += 1
        while not self._pieces:
            if isinstance(self._end, Exception):
                raise self._end
            if self._end:
                return b""
            self._waiter = Deferred()
            await self._waiter
        return self._pieces.pop(0)

    def close(self) -> None:
        self.closed = True

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.callback(None)


class SlowCache(MemoryCache):
    """Takes each batch when the test says so; *takes*: whether it does."""

    takes = True
    removes = True

    def setup(self) -> SlowCache:
        self.waiting: list[Deferred[None]] = []
        self.sizes: list[int] = []
        return self

    async def put_many(self, instance, fence, entries, seconds):  # type: ignore[no-untyped-def]
        waiter: Deferred[None] = Deferred()
        self.waiting.append(waiter)
        self.sizes.append(sum(map(len, entries.values())))
        await super().put_many(instance, fence, entries, seconds)
        await waiter
        return self.takes

    async def remove(self, instance, names):  # type: ignore[no-untyped-def]
        if not self.removes:
            return False
        return await super().remove(instance, names)


class LateCache(SlowCache):
    """Has frames only when the test says so."""

    async def put_many(self, instance, fence, entries, seconds):  # type: ignore[no-untyped-def]
        waiter: Deferred[None] = Deferred()
        self.waiting.append(waiter)
        await waiter
        return await MemoryCache.put_many(self, instance, fence, entries, seconds)


class LoadCase(PrefetchCase):
    """One load into the cache in memory."""

    def begin(
        self, stream: object, metadata: InstanceMetadata, cache: Optional[MemoryCache] = None
    ) -> Deferred[Loaded]:
        self.told: list[tuple[int, int]] = []
        frames = ProvisionalFrames(
            cache or self.cache, INSTANCE, self.fence(), 3600.0, lambda count, size: self.told.append((count, size))
        )
        load = InstanceLoad(frames, metadata, self.clock)
        return Deferred.fromCoroutine(load.run(stream))  # type: ignore[arg-type]

    def entries(self, count: int) -> dict[int, bytes]:
        """What is cached of frames 1 to *count*."""
        names = [frame_name(number) for number in range(1, count + 1)]
        reading = self.now(self.cache.get_many(INSTANCE, names))
        return {number: reading.entries[name] for number, name in enumerate(names, 1) if name in reading.entries}

    def made(self, **more: object) -> Made:
        return slide(self.mktemp(), 3, 4, 64, **more)  # type: ignore[arg-type]

    def metadata(self, made: Made) -> InstanceMetadata:
        return InstanceMetadata.from_dataset(pydicom.dcmread(made.path, stop_before_pixels=True))

    def cut(self, data: bytes, size: int = 1000) -> list[bytes]:
        return [data[start : start + size] for start in range(0, len(data), size)]


class FormatTests(LoadCase):
    """All frames from the cache equal pydicom's."""

    def check(self, made: Made, expected: Sequence[bytes], label: str) -> None:
        stream = Pieces()
        stream.give(*self.cut(made.path.read_bytes(), 4096))
        stream.end()
        loaded = self.successResultOf(self.begin(stream, self.metadata(made)))
        self.assertEqual((loaded.frames, loaded.bytes), (len(expected), sum(map(len, expected))))
        entries = self.entries(made.frames + 1)
        frames = [unpack_frame(entry) for entry in entries.values()]
        self.assertEqual([frame.data for frame in frames], list(expected))
        self.assertEqual({frame.transfer_syntax for frame in frames}, {label})
        self.assertTrue(all(map(was_prefetched, entries.values())))
        self.assertTrue(stream.closed)

    def test_encapsulated(self) -> None:
        """JPEG, JPEG 2000, JPEG-LS, RLE, HTJ2K and JPEG XL."""
        for encoding in ("jpeg", "jpeg2000", "jpeg2000-lossless", "jpegls", "rle", "htj2k", "jpegxl"):
            made = self.made(encoding=encoding)
            self.check(made, made.stored_frames(), made.encoding.transfer_syntax)

    def test_native(self) -> None:
        """Native frames of 8 and 16 bits; implicit, deflated and big endian ones are labelled as what a frame of them is."""
        for encoding in ("raw", "raw-gray", "raw-16", "implicit", "deflated", "big-endian"):
            made = self.made(encoding=encoding)
            self.check(made, made.stored_frames(), NATIVE)

    def test_pad_byte(self) -> None:
        """A trailing pad byte is no frame and belongs to none."""
        made = loop(self.mktemp(), 11, 7, 3)
        self.assertEqual(len(made.stored_frames()[0]) * made.frames % 2, 1)
        self.check(made, made.stored_frames(), NATIVE)

    def test_offset_tables(self) -> None:
        """Basic, extended and no offset table; several fragments a frame."""
        for table, pieces in ((OffsetTable.BASIC, 1), (OffsetTable.BASIC, 3), (OffsetTable.EXTENDED, 1),
                              (OffsetTable.NONE, 1), (OffsetTable.NONE, 3)):  # fmt: skip
            made = self.made(offset_table=table, fragments_per_frame=pieces)
            self.check(made, made.stored_frames(), JPEG)

    def test_unlike_labels(self) -> None:
        """A syntax known from a frame may be another native one than the file's; a compressed one may not."""
        made = self.made(encoding="implicit")
        for known in (NATIVE, "1.2.840.10008.1.2", None):
            stream = Pieces()
            stream.give(made.path.read_bytes())
            stream.end()
            self.successResultOf(self.begin(stream, attrs.evolve(self.metadata(made), transfer_syntax=known)))
        stream = Pieces()
        stream.give(made.path.read_bytes())
        stream.end()
        loading = self.begin(stream, attrs.evolve(self.metadata(made), transfer_syntax=JPEG))
        self.assertIn("stored as", str(self.failureResultOf(loading, LoadFailed).value))


class ProvisionalTests(LoadCase):
    """A load that turns out wrong takes back all it wrote."""

    def setUp(self) -> None:
        super().setUp()
        self.slide = self.made()
        self.data = self.slide.path.read_bytes()
        self.facts = self.metadata(self.slide)

    def half_loaded(self, facts: Optional[InstanceMetadata] = None) -> tuple[Pieces, Deferred[Loaded]]:
        """A load whose first frames are in the cache already."""
        stream = Pieces()
        loading = self.begin(stream, facts or self.facts)
        pieces = self.cut(self.data[: len(self.data) // 2])
        for piece in pieces:
            stream.give(piece)
            self.clock.advance(BATCH_SECONDS)
        self.assertGreater(len(self.entries(12)), 3)
        return stream, loading

    def failed(self, stream: Pieces, loading: Deferred[Loaded], kind: type[Exception]) -> str:
        reason = str(self.failureResultOf(loading, kind).value)
        self.assertEqual(self.entries(12), {})
        self.assertTrue(stream.closed)
        return reason

    def test_served_before_the_end(self) -> None:
        """Frames are in the cache long before the last byte; a slow origin's wait no longer than a moment."""
        stream, loading = self.half_loaded()
        worker = self.worker(prefetch=False)
        self.origin.metadata_value = self.facts
        answer = self.ask(worker, 2)
        self.assertEqual((answer.cached, answer.frames[0].data), (1, self.slide.stored_frames()[1]))
        self.assertGreater(self.told[-1][0], 3)
        stream.give(self.data[len(self.data) // 2 :])
        stream.end()
        self.successResultOf(loading)

    def test_expiry(self) -> None:
        """Frames say when their time in the cache ends, by the wall clock when they were written; or that it never does."""
        self.clock.advance(100.0)
        for seconds, expires in ((3600.0, 4724.0), (None, math.inf)):
            frames = ProvisionalFrames(self.cache, INSTANCE, self.fence(), seconds, lambda *_: None)
            frames.wall_clock = lambda: 1024.0 + self.clock.seconds()
            self.now(frames.write([b"one", b"two"], 6, JPEG))
            self.now(frames.finish())
            self.assertEqual([expires_of(entry) for entry in self.entries(2).values()], [expires, expires])

    def test_stream_breaks(self) -> None:
        """The stream breaks."""
        stream, loading = self.half_loaded()
        stream.end(OriginUnreachable("the origin's response was cut off"))
        self.assertEqual(self.failed(stream, loading, Withdrawn), "the origin's response was cut off")

    def test_stream_too_short(self) -> None:
        """The stream ends too early: too few frames."""
        stream, loading = self.half_loaded()
        stream.end()
        self.assertIn("ended within its pixel data", self.failed(stream, loading, Withdrawn))

    def test_another_instance(self) -> None:
        """The file of another instance is none of this one's."""
        for other in ({"study": "1.9"}, {"series": "1.9"}, {"sop": "1.9"}):
            made = any_slide(self.mktemp(), 3, 4, 64, **{**UIDS, **other})
            stream = Pieces()
            loading = self.begin(stream, self.metadata(made))
            stream.give(made.path.read_bytes())
            stream.end()
            self.assertIn("of another instance", self.failed(stream, loading, LoadFailed))
            self.assertEqual(self.entries(12), {})

    def test_cancelled(self) -> None:
        """The load is given up."""
        stream, loading = self.half_loaded()
        loading.cancel()
        self.failed(stream, loading, CancelledError)

    def test_fragments_that_are_no_frames(self) -> None:
        """More frames than the data set says, and fewer: known at the end only."""
        for count in (10, 14):
            path = self.mktemp()
            made = slide(path, 3, 4, 64, offset_table="none", extra={"NumberOfFrames": count})
            data = made.path.read_bytes()
            stream = Pieces()
            loading = self.begin(stream, self.metadata(made))
            for piece in self.cut(data):
                stream.give(piece)
                self.clock.advance(BATCH_SECONDS)
            if count > 12:
                self.assertGreater(self.told[-1][0], 3)
            stream.end()
            self.assertIn("frames", self.failed(stream, loading, LoadFailed))

    def test_other_number_of_frames(self) -> None:
        """A NumberOfFrames other than the metadata's is seen before the first frame is written."""
        for count in (11, 13):
            stream = Pieces()
            loading = self.begin(stream, attrs.evolve(self.facts, frames=count))
            stream.give(self.data)
            stream.end()
            self.assertEqual(self.failed(stream, loading, LoadFailed),
                             f"the file has 12 frames, its metadata say {count}")  # fmt: skip
            self.assertEqual(self.told, [])

    def test_other_transfer_syntax(self) -> None:
        """A file that comes in another transfer syntax than the stored one is none of ours."""
        stream = Pieces()
        loading = self.begin(stream, attrs.evolve(self.facts, transfer_syntax="1.2.840.10008.1.2.4.90"))
        stream.give(self.data)
        stream.end()
        reason = self.failed(stream, loading, LoadFailed)
        self.assertIn(JPEG, reason)
        self.assertEqual(self.told, [])

    def test_frames_that_are_no_codestreams(self) -> None:
        """A file whose fragments hold something else than its transfer syntax says is not loaded."""
        stream = Pieces()
        loading = self.begin(stream, self.facts)
        stream.give(self.data.replace(b"\xff\xd8\xff", b"<p>"))
        stream.end()
        self.assertIn(b"<p>".decode(), self.failed(stream, loading, LoadFailed))
        self.assertEqual(self.told, [])

    def test_no_dicom(self) -> None:
        """What is no DICOM file, or has frames that can't be told apart, fails with a plain reason."""
        stream = Pieces()
        loading = self.begin(stream, self.facts)
        stream.give(b"<html>" * 1000)
        stream.end()
        self.assertIn("not a DICOM file", self.failed(stream, loading, LoadFailed))
        bits = loop(self.mktemp(), 12, 64, 64, extra={"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0})
        stream = Pieces()
        loading = self.begin(stream, self.metadata(bits))
        stream.give(bits.path.read_bytes())
        stream.end()
        self.assertIn("not supported frame by frame", self.failed(stream, loading, LoadFailed))

    def test_cache_takes_nothing(self) -> None:
        """A full cache, or one that is gone, ends the load."""
        cache = SlowCache(self.clock, 64 * MIB).setup()
        self.cache, cache.takes = cache, False
        stream = Pieces()
        loading = self.begin(stream, self.facts, cache)
        for piece in self.cut(self.data):
            stream.give(piece)
            self.clock.advance(BATCH_SECONDS)
        stream.end()
        while cache.waiting:
            cache.waiting.pop(0).callback(None)
        self.assertEqual(self.failed(stream, loading, LoadFailed), "the cache did not take the frames")

    def test_cache_takes_no_sign(self) -> None:
        """Where it cannot be said that an instance is being loaded, as where a node of a cluster is down, no frame is written: if all
        of us died, nobody would know that it was never checked."""
        real = self.cache.put_many

        async def some(instance: Any, fence: Any, entries: Any, seconds: Any) -> bool:
            return LOADING not in entries and await real(instance, fence, entries, seconds)

        self.patch(self.cache, "put_many", some)
        stream = Pieces()
        loading = self.begin(stream, self.facts)
        stream.give(self.data)
        stream.end()
        self.assertEqual(self.failed(stream, loading, LoadFailed), "the cache did not take the frames")
        self.assertEqual(self.told, [])

    def test_cache_removes_nothing(self) -> None:
        """Where the cache can't be told to remove them, that is said."""
        cache = SlowCache(self.clock, 64 * MIB).setup()
        self.cache, cache.removes = cache, False
        stream = Pieces()
        loading = self.begin(stream, self.facts, cache)
        stream.give(self.data[: len(self.data) // 2])
        self.clock.advance(BATCH_SECONDS)
        stream.give(self.data[len(self.data) // 2 : -2000])
        stream.end(OriginUnreachable("broke off"))
        for waiter in cache.waiting:
            waiter.callback(None)
        self.assertEqual(str(self.failureResultOf(loading, Withdrawn).value), "broke off")

    def test_cancelled_and_not_removed(self) -> None:
        """A load that is given up while the cache can't be told to remove its frames says so."""
        cache = SlowCache(self.clock, 64 * MIB).setup()
        self.cache, cache.removes = cache, False
        loading = self.begin(Pieces(), self.facts, cache)
        loading.cancel()
        self.failureResultOf(loading, CancelledError)
        stream = Pieces()
        loading = self.begin(stream, self.facts, cache)
        stream.give(self.data[: len(self.data) // 2])
        self.clock.advance(BATCH_SECONDS)
        stream.give(self.data[len(self.data) // 2 : -2000])
        for waiter in cache.waiting:
            waiter.callback(None)
        loading.cancel()
        self.failureResultOf(loading, Withdrawn)

    def test_what_is_still_on_its_way(self) -> None:
        """Frames that are on their way to the cache when the load fails are taken back when they have come there."""
        for give_up in (False, True):
            self.setUp()
            cache = self.cache = LateCache(self.clock, 64 * MIB).setup()
            stream = Pieces()
            loading = self.begin(stream, self.facts, cache)
            stream.give(self.data[: len(self.data) // 2])
            self.clock.advance(BATCH_SECONDS)
            stream.give(self.data[len(self.data) // 2 : -2000])
            self.assertNotEqual(cache.waiting, [])
            if give_up:
                loading.cancel()
            else:
                stream.end(OriginUnreachable("broke off"))
            for waiter in cache.waiting:
                waiter.callback(None)
            self.failureResultOf(loading, CancelledError if give_up else Withdrawn)
            self.assertEqual(self.entries(12), {})

    def test_nothing_written(self) -> None:
        """What fails before anything was written is no more than a failure: nobody was given a frame."""
        stream = Pieces()
        loading = self.begin(stream, self.facts)
        stream.give(self.data[:200])
        stream.end(OriginUnreachable("broke off"))
        self.failureResultOf(loading, OriginUnreachable)


class PaceTests(LoadCase):
    """The cache sets the pace."""

    def test_bounded(self) -> None:
        """While the cache takes nothing, no more than a bound is read and written; then all goes on."""
        made = slide(self.mktemp(), 8, 8, 256, "raw")
        cache = SlowCache(self.clock, 64 * MIB).setup()
        self.cache = cache
        stream = Pieces()
        stream.give(*self.cut(made.path.read_bytes(), 65536))
        stream.end()
        loading = self.begin(stream, self.metadata(made), cache)
        self.assertLess(sum(cache.sizes), OUTSTANDING_BYTES + 2 * BATCH_BYTES)
        self.assertLess(stream.reads, 60)
        while cache.waiting:
            cache.waiting.pop(0).callback(None)
        self.assertEqual(self.successResultOf(loading).frames, 64)
        self.assertEqual([unpack_frame(entry).data for entry in self.entries(64).values()], made.stored_frames())

    def test_turns(self) -> None:
        """In this process a load lets the reactor turn after a few milliseconds of work, and not before."""
        breathe = turns(self.clock, 0.004)
        self.clock.advance(0.003)
        self.assertIsNone(breathe())
        self.clock.advance(0.002)
        breath = breathe()
        assert breath is not None
        turning = Deferred.fromCoroutine(breath)  # type: ignore[arg-type]
        self.assertNoResult(turning)
        self.clock.advance(0)
        self.successResultOf(turning)
        self.assertIsNone(breathe())

    def test_in_process(self) -> None:
        """The loader of this process works in such turns, and closes the stream."""
        made = self.made()
        stream = Pieces()
        stream.give(*self.cut(made.path.read_bytes()))
        stream.end()
        self.origin.file = stream
        clock = self.clock

        class Working(Pieces):
            """Each piece takes two milliseconds to work on."""

            async def read(self) -> bytes:
                clock.rightNow += 0.002
                return await stream.read()

            def close(self) -> None:
                stream.close()

        self.origin.file = Working()
        task = LoadTask(self.origin, INSTANCE, self.caller(), self.metadata(made), self.fence(), None)  # type: ignore[arg-type]
        loading = Deferred.fromCoroutine(InProcessLoader(self.cache, self.clock).load(task, lambda *_: None))
        self.assertNoResult(loading)
        self.assertLess(stream.reads, 5)
        while self.clock.getDelayedCalls():
            self.clock.advance(0)
        self.assertEqual(self.successResultOf(loading).frames, 12)
        self.assertTrue(stream.closed)
