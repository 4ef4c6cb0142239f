"""Openings of studies: what viewers send and in which order, what is found wrong, and what the table says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import ensureDeferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.benchmarks import viewers
from tests.benchmarks.opening import NAMES, Marks, Opened, kind, rows
from tests.benchmarks.viewers import Seconds, Study, Viewer, open_slide, open_stack, slide, stack
from tests.stores.dialects import DCM4CHEE, STANDARD, Dialect
from tests.stores.faults import Answer
from tests.stores.simulated import SimulatedStore
from tests.waiting import wait_until


class ViewerCase(TestCase):
    """Viewers before a store."""

    def _folder(self) -> Path:
        folder = Path(self.mktemp())
        folder.mkdir()
        return folder

    def _store(self, study: Study, dialect: Dialect = STANDARD) -> SimulatedStore:
        from twisted.internet import reactor

        store = SimulatedStore(reactor, dialect, study.files).start()
        self.addCleanup(store.stop)
        return store

    async def _open(
        self, store: SimulatedStore, how: Callable[[Viewer, Study], Seconds], study: Study, as_stored: bool = True
    ) -> int:
        """How many frames and profiles came wrong."""
        viewer = Viewer(store.url, "caller", as_stored)
        self.addCleanup(viewer.close)
        await deferToThread(how, viewer, study)
        return viewer.wrong()


class SlideTests(ViewerCase):
    """Slim."""

    async def test_order(self) -> None:
        """Searches and metadata one after the other; profiles before what is searched for beside them; then tiles, the middle first."""
        study = slide(self._folder(), 1, ((4, 4), (16, 3)))
        store = self._store(study)
        self.patch(viewers, "CONNECTIONS", 1)  # several send side by side: it is not said which comes first
        self.assertEqual(await self._open(store, open_slide, study), 0)
        lines = store.lines()
        self.assertEqual(list(map(kind, lines[:3])), ["searches", "searches", "metadata"])
        beside = 5
        self.assertEqual(list(map(kind, lines[3:5])), ["bulk data"] * 2)
        tiles = [line for line in lines if "/frames/" in line]
        self.assertEqual(len(lines), 3 + 2 + beside + 9)
        self.assertIn(f"{study.stored[1].resource}/frames/5", "".join(tiles[:2]))

    async def test_waits(self) -> None:
        """Tiles wait for all profiles; what is searched for beside them does not."""
        study = slide(self._folder(), 1, ((4, 3), (16, 2)))
        store = self._store(study)
        gate = store.hold("/bulkdata/")
        viewer = Viewer(store.url, "caller")
        self.addCleanup(viewer.close)
        show, released = viewer.show, []

        def watched(*what: Any) -> None:
            released.append(gate.open)
            show(*what)

        self.patch(viewer, "show", watched)
        opening = deferToThread(open_slide, viewer, study)
        await store.requested(lambda seen: "Modality=OT" in seen.line)
        await wait_until(lambda: len(gate.waiting) == 2, "both profiles' requests")
        gate.release()
        await opening
        self.assertEqual((len(gate.waiting), released), (2, [True]))

    async def test_sent(self) -> None:
        """Each request has the caller's credential; tiles are asked for as they are stored."""
        study = slide(self._folder(), 1, ((16, 2),))
        store = self._store(study)
        await self._open(store, open_slide, study)
        self.assertEqual({seen.header("Authorization") for seen in store.requests}, {"Bearer caller"})
        self.assertEqual(
            {seen.header("Accept") for seen in store.seen("/frames/")},
            {'multipart/related; type="application/octet-stream"; transfer-syntax=*'},
        )

    async def test_wrong(self) -> None:
        """Other frames and another profile than those of the files are found."""
        study = slide(self._folder(), 1, ((4, 3), (16, 2)))
        store = self._store(study)
        fine, coarse = study.stored
        store.add(attrs.evolve(coarse, frames=[b"x", *coarse.frames[1:]]))
        store.add(attrs.evolve(fine, bulk={"00282000": b"y"}))
        self.assertEqual(await self._open(store, open_slide, study), 2)

    async def test_decompressed(self) -> None:
        """Frames that a store decompresses are right when it is asked directly, and wrong through a proxy."""
        study = slide(self._folder(), 1, ((16, 2),))
        store = self._store(study, DCM4CHEE)
        self.assertEqual(await self._open(store, open_slide, study, as_stored=False), 0)
        self.assertEqual(await self._open(store, open_slide, study), 4)

    async def test_refused(self) -> None:
        """An answer that is an error ends the opening."""
        study = slide(self._folder(), 1, ((16, 2),))
        store = self._store(study)
        store.fail(Answer(503), "/metadata")
        await self.assertFailure(ensureDeferred(self._open(store, open_slide, study)), RuntimeError)


class StackTests(ViewerCase):
    """OHIF."""

    async def test_order(self) -> None:
        """Studies, series, metadata; what else is searched for lies beside; slices come from the middle outwards, each once."""
        study = stack(self._folder(), 1, 5)
        store = self._store(study)
        self.assertEqual(await self._open(store, open_stack, study), 0)
        lines = store.lines()
        self.assertIn("limit=101", lines[0])
        self.assertEqual([kind(line) for line in lines].count("searches"), 4)
        frames = [line for line in lines if "/frames/" in line]
        self.assertEqual(sorted(frames), sorted(f"GET /{one.resource}/frames/1" for one in study.stored))
        places = [study.stored.index(one) for one, _ in study.shown]
        self.assertEqual(places, [2, 1, 3, 0, 4])


class TableTests(SynchronousTestCase):
    """What is told of openings."""

    def test_kinds(self) -> None:
        """Requests are told apart by their paths, of simulated stores and of Orthanc."""
        series = "GET /dicomweb/studies/1.2/series/1.3"
        of = f"{series}/instances/1.4"
        self.assertEqual({kind("GET /dicomweb/series?Modality=SM"), kind(series[:-4])}, {"searches"})
        self.assertEqual({kind(f"{series}/metadata"), kind(f"{of}/metadata")}, {"metadata"})
        self.assertEqual({kind(f"{of}/bulkdata/00282000"), kind(f"{of}/bulk/00480105/1/00282000")}, {"bulk data"})
        self.assertEqual({kind(of), kind(series)}, {"objects"})
        self.assertEqual(kind(f"{of}/frames/1,2"), "frames")

    def _rows(self, times: list[float], requests: dict[str, int], marks: Marks) -> list[list[str]]:
        rounds = [[Opened(Seconds(one * turn, 1.0, 1.0), requests, 0) for one in times] for turn in (1, 9, 2)]
        return list(rows(rounds, marks))

    def test_marks(self) -> None:
        """Medians are compared with the direct one: what is at most the mark has reached it, what is above has not."""
        lines = self._rows([2.0, 1.4, 0.6, 1.0], {"searches": 7}, Marks((None, 0.7, 0.25, 0.6)))
        self.assertEqual([line[0] for line in lines], list(NAMES))
        self.assertEqual([line[1] for line in lines], ["4.00", "2.80", "1.20", "2.00"])
        self.assertEqual([line[2] for line in lines], ["1.00", "0.70", "0.30", "0.50"])
        self.assertEqual([line[3] for line in lines], ["", "0.70", "0.25, missed", "0.60"])

    def test_requests(self) -> None:
        """Of another caller, requests that are no searches count, too."""
        marks = Marks((None, None, None, 0.9), 3)
        few = self._rows([2.0, 1.0, 1.0, 1.0], {"searches": 9, "metadata": 3}, marks)
        many = self._rows([2.0, 1.0, 1.0, 1.0], {"metadata": 3, "frames": 1}, marks)
        self.assertEqual((few[3][3], many[3][3]), ("0.90, 3 requests", "0.90, 3 requests, missed"))
        self.assertEqual((many[1][3], many[1][7:]), ("", ["0", "3", "0", "1", "0", "0"]))
