"""What a request leads to: one test for each sentence of the decision."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from tests.frames.support import JPEG
from tests.prefetch.support import LOOP, SLIDE
from tests.properties import given, settings, st
from twistedproxy.cache.address import NoAddress
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.prefetch.plan import Kind, Plan, Reason, plan, plan_by_hand, plan_for_picture
from twistedproxy.prefetch.regions import Region, numbers
from twistedproxy.prefetch.rules import Room
from twistedproxy.settings import Settings
from twistedproxy.system.machine_load import SystemLoad

EXPLICIT = "1.2.840.10008.1.2.1"

IDLE = SystemLoad(cpu_percent=0.0, memory_percent=0.0)


def decide(
    metadata: InstanceMetadata = SLIDE,
    requested: tuple[int, ...] = (10_100,),
    load: Any = IDLE,
    from_origin: int | None = None,
    one_frame_a_request: bool = False,
    frames_refused: bool = False,
    not_loadable: bool = False,
    room: Room | None = None,
    looked_ahead: bool = False,
    **changed: Any,
) -> Plan:
    return plan(
        Settings(**changed),
        metadata,
        requested,
        load,
        from_origin=from_origin,
        one_frame_a_request=one_frame_a_request,
        frames_refused=frames_refused,
        not_loadable=not_loadable,
        room=room,
        looked_ahead=looked_ahead,
    )


class PlanTests(SynchronousTestCase):
    """Helpers."""

    def assertPlanned(self, planned: Plan, kind: Kind, reason: Reason) -> None:
        self.assertEqual((planned.kind, planned.reason), (kind, reason))

    def assertNothing(self, planned: Plan, reason: Reason) -> None:
        self.assertPlanned(planned, Kind.NOTHING, reason)
        self.assertEqual((planned.frames, len(planned.block), len(planned.display)), (0, 0, 0))


class Nothing(PlanTests):
    """Each "no" to any prefetch."""

    def test_no_frames_requested(self) -> None:
        """No frames requested, or none that the instance has: nothing."""
        self.assertNothing(decide(requested=()), Reason.NO_FRAMES_REQUESTED)
        self.assertNothing(decide(requested=(0, 20_001)), Reason.NO_FRAMES_REQUESTED)

    def test_prefetch_off(self) -> None:
        """Prefetch off: nothing."""
        self.assertNothing(decide(prefetch=False), Reason.PREFETCH_OFF)

    def test_no_cache(self) -> None:
        """Without a cache there is nowhere to put frames: nothing."""
        self.assertNothing(decide(cache=NoAddress()), Reason.NO_CACHE)

    def test_trigger(self) -> None:
        """Prefetch is considered at the trigger's share of frames from the origin, not below it."""
        four = (1, 2, 3, 4)
        self.assertNothing(decide(requested=four, from_origin=1), Reason.BELOW_TRIGGER)
        self.assertPlanned(decide(requested=four, from_origin=2), Kind.WHOLE, Reason.WHOLE_INSTANCE)
        self.assertNothing(decide(requested=four, from_origin=3, prefetch_trigger=0.8), Reason.BELOW_TRIGGER)
        self.assertPlanned(
            decide(requested=four, from_origin=0, prefetch_trigger=0.0), Kind.WHOLE, Reason.WHOLE_INSTANCE
        )

    def test_syntax_not_supported(self) -> None:
        """A video's frames cannot be told apart without decoding, an unknown syntax's neither: nothing."""
        for uid in ("1.2.840.10008.1.2.4.100", "1.2.840.10008.1.2.4.102", "1.2.840.10008.1.2.4.107", "1.2.3"):
            self.assertNothing(decide(attrs.evolve(SLIDE, transfer_syntax=uid)), Reason.SYNTAX_NOT_SUPPORTED)

    def test_syntax_supported(self) -> None:
        """Every syntax whose frames can be told apart is prefetched, native ones included."""
        encapsulated = ("4.50", "4.90", "4.91", "4.110", "4.111", "4.112", "4.80", "4.201", "5", "8.1", "1.98")
        for tail in (*encapsulated, "1", "2", "1.99"):
            planned = decide(attrs.evolve(SLIDE, transfer_syntax=f"1.2.840.10008.1.2.{tail}"))
            self.assertPlanned(planned, Kind.WHOLE, Reason.WHOLE_INSTANCE)
        self.assertPlanned(
            decide(attrs.evolve(SLIDE, transfer_syntax="1.2.840.10008.1.2")), Kind.WHOLE, Reason.WHOLE_INSTANCE
        )

    def test_syntax_known_to_the_file_only(self) -> None:
        """Where nobody knows the syntax the file does: a whole-instance load, in this process or not, or nothing."""
        silent = attrs.evolve(SLIDE, transfer_syntax=None)
        small = attrs.evolve(silent, frames=1000, total_columns=25_600)
        for metadata, kind in ((silent, Kind.WHOLE), (small, Kind.SMALL)):
            planned = decide(metadata, (1,), display_min_frames=10)
            self.assertEqual((planned.kind, planned.frames, len(planned.display)), (kind, metadata.frames, 0))
            self.assertEqual(planned.no_display, Reason.SYNTAX_UNKNOWN)
        for planned in (decide(silent, whole_instance=False), decide(silent, load=SystemLoad(99.0, 0.0))):
            self.assertNothing(planned, Reason.SYNTAX_UNKNOWN)
        self.assertEqual(planned.not_whole, Reason.CPU_ABOVE_LIMIT)
        self.assertNothing(decide(attrs.evolve(silent, frames=9), (1,)), Reason.TOO_FEW_FRAMES)

    def test_too_few_frames(self) -> None:
        """Fewer frames than the minimum: nothing; as many: a load."""
        self.assertNothing(decide(attrs.evolve(LOOP, frames=9), (1,)), Reason.TOO_FEW_FRAMES)
        self.assertEqual(decide(attrs.evolve(LOOP, frames=10), (1,)).kind, Kind.SMALL)
        self.assertNothing(decide(LOOP, (1,), prefetch_min_frames=101), Reason.TOO_FEW_FRAMES)

    def test_frame_size_unknown(self) -> None:
        """Metadata without the size of a frame gives no square: nothing."""
        for sizes in ({"rows": 0}, {"columns": 0}):
            self.assertNothing(decide(attrs.evolve(SLIDE, **sizes)), Reason.FRAME_SIZE_UNKNOWN)

    def test_order(self) -> None:
        """Where several reasons hold, the first of the fixed order is given."""
        wrong = attrs.evolve(LOOP, frames=9, transfer_syntax="1.2.840.10008.1.2.4.100")
        self.assertNothing(decide(wrong, (), prefetch=False), Reason.NO_FRAMES_REQUESTED)
        self.assertNothing(decide(wrong, (1,), prefetch=False), Reason.PREFETCH_OFF)
        self.assertNothing(decide(wrong, (1,)), Reason.SYNTAX_NOT_SUPPORTED)
        self.assertNothing(decide(attrs.evolve(LOOP, frames=9), (1,)), Reason.TOO_FEW_FRAMES)


class Whole(PlanTests):
    """Whole-instance loads, and what turns them into block loads."""

    def test_whole(self) -> None:
        """An instance larger than a block is loaded whole in a child process."""
        planned = decide()
        self.assertPlanned(planned, Kind.WHOLE, Reason.WHOLE_INSTANCE)
        self.assertEqual((planned.frames, len(planned.block), planned.not_whole), (20_000, 0, None))
        self.assertTrue(planned.whole)

    def test_whole_instance_off(self) -> None:
        """With whole-instance off: a block load."""
        self.assertPlanned(decide(whole_instance=False), Kind.BLOCK, Reason.WHOLE_INSTANCE_OFF)

    def test_too_many_frames(self) -> None:
        """Above the maximum of frames: a block load; at it: the whole instance."""
        self.assertPlanned(decide(whole_instance_max_frames=19_999), Kind.BLOCK, Reason.TOO_MANY_FRAMES)
        self.assertEqual(decide(whole_instance_max_frames=20_000).kind, Kind.WHOLE)

    def test_large_for_the_cache(self) -> None:
        """What would take more than a quarter of the cache: a block load. What is asked for by hand, or not known, is loaded."""
        half_full = Room(20_000 * 1000 * 4, 1001)
        self.assertPlanned(decide(room=half_full), Kind.BLOCK, Reason.LARGE_FOR_THE_CACHE)
        self.assertEqual(decide(room=attrs.evolve(half_full, frame_bytes=1000)).kind, Kind.WHOLE)
        self.assertEqual(decide(room=attrs.evolve(half_full, frame_bytes=0)).kind, Kind.WHOLE)
        self.assertEqual(plan_by_hand(Settings(), SLIDE).kind, Kind.WHOLE)

    def test_looked_ahead(self) -> None:
        """Where frames are loaded as the reader looks: whole only what takes no time; no block, no display load."""
        quick, slow = Room(None, 1000, 5.0), Room(None, 1000, 5.1)
        whole = decide(room=quick, looked_ahead=True)
        self.assertEqual((whole.kind, len(whole.display), whole.no_display), (Kind.WHOLE, 0, Reason.LOOKED_AHEAD))
        self.assertPlanned(decide(room=slow, looked_ahead=True), Kind.NOTHING, Reason.SLOW_TO_LOAD)
        self.assertPlanned(decide(looked_ahead=True, whole_instance=False), Kind.NOTHING, Reason.WHOLE_INSTANCE_OFF)
        self.assertEqual(decide(room=slow).kind, Kind.WHOLE)
        loop = attrs.evolve(SLIDE, total_rows=None, total_columns=None, frames=20_000)
        self.assertPlanned(decide(loop, room=slow, looked_ahead=True), Kind.NOTHING, Reason.SLOW_TO_LOAD)

    def test_not_looked_ahead(self) -> None:
        """Where a frame costs as much as all, or frames lie in no order, time does not matter."""
        slow = Room(None, 1000, 99.0)
        dear = decide(room=slow, looked_ahead=True, one_frame_a_request=True)
        self.assertEqual((dear.kind, len(dear.display)), (Kind.WHOLE, 64))
        sparse = attrs.evolve(SLIDE, organization="TILED_SPARSE")
        self.assertEqual(decide(sparse, room=slow, looked_ahead=True).kind, Kind.WHOLE)

    def test_cpu(self) -> None:
        """CPU above the limit: a block load; at the limit: the whole instance."""
        self.assertPlanned(decide(load=SystemLoad(80.1, 0.0)), Kind.BLOCK, Reason.CPU_ABOVE_LIMIT)
        self.assertEqual(decide(load=SystemLoad(80.0, 0.0)).kind, Kind.WHOLE)
        self.assertEqual(decide(load=SystemLoad(20.1, 0.0), whole_instance_max_cpu=20.0).kind, Kind.BLOCK)

    def test_memory(self) -> None:
        """Memory above the limit: a block load; at the limit, far above 0.7 %: the whole instance."""
        self.assertPlanned(decide(load=SystemLoad(0.0, 70.1)), Kind.BLOCK, Reason.MEMORY_ABOVE_LIMIT)
        self.assertEqual(decide(load=SystemLoad(0.0, 70.0)).kind, Kind.WHOLE)
        self.assertEqual(decide(load=SystemLoad(0.0, 20.1), whole_instance_max_memory=20.0).kind, Kind.BLOCK)

    def test_limit_of_100(self) -> None:
        """A limit of 100 is never looked at, whatever the reading; the other limit still is."""
        busy = SystemLoad(400.0, 101.0)
        planned = decide(load=busy, whole_instance_max_cpu=100.0)
        self.assertPlanned(planned, Kind.BLOCK, Reason.MEMORY_ABOVE_LIMIT)
        planned = decide(load=busy, whole_instance_max_memory=100.0)
        self.assertPlanned(planned, Kind.BLOCK, Reason.CPU_ABOVE_LIMIT)
        planned = decide(load=busy, whole_instance_max_cpu=100.0, whole_instance_max_memory=100.0)
        self.assertEqual(planned.kind, Kind.WHOLE)

    def test_reading_that_fails(self) -> None:
        """A load reading that fails changes nothing, as a whole or one of its figures."""

        def fails() -> SystemLoad:
            raise OSError("no load average here")

        self.assertEqual(decide(load=fails).kind, Kind.WHOLE)
        self.assertEqual(decide(load=SystemLoad(None, None)).kind, Kind.WHOLE)
        self.assertPlanned(decide(load=SystemLoad(None, 99.0)), Kind.BLOCK, Reason.MEMORY_ABOVE_LIMIT)

    def test_reading_is_taken_when_it_matters(self) -> None:
        """A reading is asked for only where the plan would be a whole-instance load."""

        def busy() -> SystemLoad:
            return SystemLoad(99.0, 99.0)

        def never() -> SystemLoad:
            raise AssertionError("read")

        self.assertPlanned(decide(load=busy), Kind.BLOCK, Reason.CPU_ABOVE_LIMIT)
        decide(load=never, whole_instance=False)
        decide(LOOP, (1,), load=never)
        decide(load=never, prefetch=False)
        decide(load=never, whole_instance_max_cpu=100.0, whole_instance_max_memory=100.0)

    def test_small(self) -> None:
        """An instance of no more frames than a block holds is loaded whole in this process."""
        planned = decide(attrs.evolve(SLIDE, frames=32 * 32), (1,))
        self.assertPlanned(planned, Kind.SMALL, Reason.SMALL_INSTANCE)
        self.assertEqual((planned.frames, planned.whole), (1024, True))
        self.assertEqual(decide(attrs.evolve(SLIDE, frames=32 * 32 + 1), (1,)).kind, Kind.WHOLE)

    def test_small_whatever_whole_says(self) -> None:
        """A small instance is loaded whole also with whole-instance off, above its maximum, and on a busy machine."""
        planned = decide(LOOP, (1,), load=SystemLoad(99.0, 99.0), whole_instance=False, whole_instance_max_frames=10)
        self.assertPlanned(planned, Kind.SMALL, Reason.SMALL_INSTANCE)

    def test_small_counts_rows_and_columns_of_a_frame(self) -> None:
        """How many frames a block holds goes by the rows and the columns of one frame."""
        tall = attrs.evolve(SLIDE, rows=1024, total_rows=102_400)
        self.assertEqual(decide(attrs.evolve(tall, frames=8 * 32), (1,)).kind, Kind.SMALL)
        self.assertEqual(decide(attrs.evolve(tall, frames=8 * 32 + 1), (1,)).kind, Kind.WHOLE)

    def test_not_loadable(self) -> None:
        """Where a whole-instance load would fail, blocks are loaded, however small the instance is."""
        self.assertPlanned(decide(not_loadable=True), Kind.BLOCK, Reason.NOT_LOADABLE)
        planned = decide(attrs.evolve(SLIDE, frames=100), (1,), not_loadable=True)
        self.assertPlanned(planned, Kind.BLOCK, Reason.NOT_LOADABLE)

    def test_frames_refused(self) -> None:
        """Where the origin refuses frames, the whole instance is loaded, however few it has, or nothing: no block."""
        few = decide(attrs.evolve(LOOP, frames=3), (1,), frames_refused=True)
        self.assertEqual((few.kind, few.no_display), (Kind.SMALL, Reason.FRAMES_REFUSED))
        self.assertEqual(len(decide(frames_refused=True).display), 0)
        self.assertNothing(decide(frames_refused=True, whole_instance=False), Reason.FRAMES_REFUSED)
        self.assertNothing(decide(frames_refused=True, not_loadable=True), Reason.FRAMES_REFUSED)

    def test_packed_frames(self) -> None:
        """Native frames of 1 bit a pixel cannot be cut from a stream: they are never loaded whole, however small."""
        packed = attrs.evolve(SLIDE, bits_allocated=1, transfer_syntax=EXPLICIT)
        self.assertPlanned(decide(packed), Kind.BLOCK, Reason.PACKED_FRAMES)
        self.assertPlanned(decide(attrs.evolve(packed, frames=100), (1,)), Kind.BLOCK, Reason.PACKED_FRAMES)
        self.assertEqual(decide(attrs.evolve(packed, bits_allocated=16)).kind, Kind.WHOLE)
        self.assertEqual(decide(attrs.evolve(packed, transfer_syntax=JPEG)).kind, Kind.WHOLE)


class Displays(PlanTests):
    """Display loads that go along."""

    def test_beside_a_whole_instance(self) -> None:
        """Beside a child, the display load covers the screen around the smallest frame asked for."""
        planned = decide(requested=(10_102, 10_100, 10_101))
        self.assertEqual(len(planned.display), 12 * 12)
        self.assertEqual(planned.display.runs[0][0], 10_100 - 3 * 200 - 3)
        self.assertIsNone(planned.no_display)

    def test_too_few_frames(self) -> None:
        """An instance below the minimum gets no display load, beside a block and beside a whole load."""
        for changed in ({}, {"whole_instance": False}):
            planned = decide(display_min_frames=20_001, **changed)
            self.assertEqual((len(planned.display), planned.no_display), (0, Reason.DISPLAY_TOO_FEW_FRAMES))
            self.assertEqual(len(decide(display_min_frames=20_000, **changed).display), 144)

    def test_size(self) -> None:
        """The display load follows its setting."""
        self.assertEqual(len(decide(display_pixels=1000).display), 4 * 4)

    def test_before_a_small_instance(self) -> None:
        """In a small load the display load goes along where it is smaller than the instance."""
        small = attrs.evolve(SLIDE, frames=1000, total_columns=25_600)
        planned = decide(small, (1,), display_min_frames=10)
        self.assertEqual((planned.kind, len(planned.display)), (Kind.SMALL, 120))
        smaller = attrs.evolve(small, frames=100, total_columns=2560, total_rows=2560)
        planned = decide(smaller, (1,), display_min_frames=10)
        self.assertEqual((planned.kind, len(planned.display)), (Kind.SMALL, 0))
        self.assertEqual(planned.no_display, Reason.DISPLAY_NOT_SMALLER)


class Blocks(PlanTests):
    """Block loads."""

    def test_leaves_out_its_display_load(self) -> None:
        """A block leaves out what its display load covers; together they are the block without one."""
        planned = decide(whole_instance=False)
        alone = decide(whole_instance=False, display_min_frames=10**9)
        self.assertEqual((len(alone.block), len(alone.display)), (32 * 32, 0))
        self.assertEqual((len(planned.block), len(planned.display)), (32 * 32 - 144, 144))
        self.assertEqual(planned.frames, 32 * 32 - 144)
        self.assertEqual(sorted([*planned.block, *planned.display]), list(alone.block))

    def test_display_load_as_large(self) -> None:
        """A display load as large as the block is left out, and the plan says so."""
        planned = decide(whole_instance=False, block_pixels=3000)
        self.assertEqual((len(planned.block), len(planned.display)), (144, 0))
        self.assertEqual(planned.no_display, Reason.DISPLAY_NOT_SMALLER)

    def test_viewport_rows_first(self) -> None:
        """A block's load order begins in the row of the request."""
        planned = decide(whole_instance=False)
        order = list(numbers(planned.in_load_order(planned.block)))
        self.assertEqual((order[0] - 1) // 200, (10_100 - 1) // 200)
        self.assertEqual(sorted(order), list(planned.block))

    def test_one_frame_a_request(self) -> None:
        """At an origin that serves one frame a request, each load has at most 64 frames."""
        planned = decide(whole_instance=False, one_frame_a_request=True)
        self.assertEqual((len(planned.block), len(planned.display)), (64, 0))
        self.assertEqual(len(decide(one_frame_a_request=True).display), 64)

    def test_sparse(self) -> None:
        """A sparsely tiled instance is loaded whole, without a display load, or not at all."""
        sparse = attrs.evolve(SLIDE, organization="TILED_SPARSE")
        planned = decide(sparse)
        self.assertEqual((planned.kind, len(planned.display), planned.no_display), (Kind.WHOLE, 0, Reason.SPARSE))
        planned = decide(sparse, whole_instance=False)
        self.assertNothing(planned, Reason.SPARSE)
        self.assertEqual(planned.not_whole, Reason.WHOLE_INSTANCE_OFF)
        self.assertNothing(decide(sparse, load=SystemLoad(99.0, 0.0)), Reason.SPARSE)
        self.assertEqual(decide(attrs.evolve(sparse, frames=100), (1,), whole_instance=False).kind, Kind.SMALL)

    def test_not_tiled(self) -> None:
        """A loop too long for a block gets a run around the request."""
        planned = decide(attrs.evolve(LOOP, frames=5000), (2500,), whole_instance=False)
        self.assertEqual(planned.block.runs, (range(2500 - 221 // 4, 2500 - 221 // 4 + 221),))


class ByHand(PlanTests):
    """Loads that somebody asked for."""

    def test_passes_the_gates(self) -> None:
        """What is asked for by hand passes the gates of size: too few frames, too many."""
        limits = Settings(whole_instance_max_frames=10, prefetch_min_frames=30_000)
        self.assertPlanned(plan_by_hand(limits, SLIDE), Kind.WHOLE, Reason.ASKED_BY_HAND)
        self.assertEqual(plan_by_hand(limits, SLIDE).frames, 20_000)
        self.assertPlanned(plan_by_hand(limits, attrs.evolve(LOOP, frames=2)), Kind.SMALL, Reason.ASKED_BY_HAND)

    def test_syntax_known_to_the_file_only(self) -> None:
        """Where nobody knows the transfer syntax the file says it, by hand too."""
        silent = attrs.evolve(SLIDE, transfer_syntax=None)
        self.assertPlanned(plan_by_hand(Settings(), silent), Kind.WHOLE, Reason.ASKED_BY_HAND)

    def test_what_it_does_not_pass(self) -> None:
        """Prefetch off, no cache, and frames that cannot be cut apart are a "no" by hand too."""
        self.assertNothing(plan_by_hand(Settings(prefetch=False), SLIDE), Reason.PREFETCH_OFF)
        self.assertNothing(plan_by_hand(Settings(cache=NoAddress()), SLIDE), Reason.NO_CACHE)
        self.assertNothing(plan_by_hand(Settings(whole_instance=False), SLIDE), Reason.WHOLE_INSTANCE_OFF)
        self.assertEqual(plan_by_hand(Settings(whole_instance=False), LOOP).kind, Kind.SMALL)
        video = attrs.evolve(SLIDE, transfer_syntax="1.2.840.10008.1.2.4.100")
        self.assertNothing(plan_by_hand(Settings(), video), Reason.SYNTAX_NOT_SUPPORTED)
        packed = attrs.evolve(SLIDE, bits_allocated=1)
        self.assertEqual(plan_by_hand(Settings(), packed).kind, Kind.WHOLE)
        packed = attrs.evolve(packed, transfer_syntax=EXPLICIT)
        self.assertNothing(plan_by_hand(Settings(), packed), Reason.PACKED_FRAMES)
        self.assertNothing(plan_by_hand(Settings(), attrs.evolve(SLIDE, rows=0)), Reason.FRAME_SIZE_UNKNOWN)


class ForPictures(PlanTests):
    """Loads of what a caller waits for."""

    def test_gates(self) -> None:
        """However busy the machine is; but not what is switched off, too large or too small, or cannot be cut apart."""
        busy = Settings(whole_instance_max_cpu=1, whole_instance_max_memory=1)
        self.assertPlanned(plan_for_picture(busy, SLIDE), Kind.WHOLE, Reason.NEEDED_BY_A_PICTURE)
        self.assertPlanned(plan_for_picture(busy, LOOP), Kind.SMALL, Reason.NEEDED_BY_A_PICTURE)
        for asked, reason in (
            (Settings(prefetch=False), Reason.PREFETCH_OFF),
            (Settings(whole_instance=False), Reason.WHOLE_INSTANCE_OFF),
            (Settings(whole_instance_max_frames=19_999), Reason.TOO_MANY_FRAMES),
            (Settings(prefetch_min_frames=30_000), Reason.TOO_FEW_FRAMES),
        ):
            self.assertNothing(plan_for_picture(asked, SLIDE), reason)
        video = attrs.evolve(SLIDE, transfer_syntax="1.2.840.10008.1.2.4.100")
        self.assertNothing(plan_for_picture(Settings(), video), Reason.SYNTAX_NOT_SUPPORTED)


class AnyPlan(PlanTests):
    """What holds for every plan."""

    def test_fields(self) -> None:
        """A plan's fields for the log have stable names and plain values."""
        self.assertEqual(
            decide(load=SystemLoad(99.0, 0.0)).fields(),
            {
                "kind": "block",
                "reason": "cpu-above-limit",
                "not_whole": "cpu-above-limit",
                "no_display": None,
                "frames": 880,
                "display_frames": 144,
            },
        )

    @settings(max_examples=300)
    @given(
        st.integers(0, 5000),
        st.lists(st.integers(-2, 5002), max_size=4, unique=True),
        st.sampled_from(["TILED_FULL", "TILED_SPARSE", None]),
        st.booleans(),
        st.booleans(),
        st.floats(0, 200),
        st.sampled_from([10, 10_000]),
    )
    def test_consistent(
        self,
        frames: int,
        requested: list[int],
        organization: str | None,
        whole: bool,
        one: bool,
        cpu: float,
        display_min_frames: int,
    ) -> None:
        """Whatever comes in, a plan comes out whose kind, frames, regions and reasons fit each other."""
        metadata = attrs.evolve(
            SLIDE, frames=frames, organization=organization, total_rows=256 * 50, total_columns=256 * 100
        )
        planned = decide(
            metadata,
            tuple(requested),
            SystemLoad(cpu, 0.0),
            one_frame_a_request=one,
            whole_instance=whole,
            display_min_frames=display_min_frames,
        )
        self.assertEqual(planned.block == Region(), planned.kind is not Kind.BLOCK)
        self.assertEqual(planned.frames, frames if planned.whole else len(planned.block))
        self.assertEqual(set(planned.block) & set(planned.display), set())
        held = set(range(1, frames + 1))
        self.assertTrue(set(planned.block) <= held and set(planned.display) <= held)
        if planned.kind is Kind.BLOCK:
            asked = min(n for n in requested if n in held)
            self.assertIn(asked, [*planned.block, *planned.display])
            self.assertEqual(planned.reason, planned.not_whole)
        if planned.kind is not Kind.NOTHING:
            self.assertEqual(planned.no_display is None, bool(planned.display))
