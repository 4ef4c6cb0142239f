"""What an index finds in a folder, what it leaves alone, when it looks. Time is a clock's; threads are run at once."""

from __future__ import annotations

import os
import sqlite3
import threading
import zlib
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

import attrs
import pydicom
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.slides import loop, slide
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.origin.errors import OriginBusy, OriginUnreachable
from twistedproxy.origin.folder import instance_file
from twistedproxy.origin.folder.contents import FolderContents, FolderGone
from twistedproxy.origin.folder.index import FIRST_WAIT, INTERVAL, MAX_SHARE, MIN_PAUSE, Index
from twistedproxy.origin.folder.index_cache import IndexCache
from twistedproxy.origin.folder.instance_file import Common, Key, StoredFile


class AtOnce:
    """Threads that are none: each call takes *seconds* of the clock, or, if it is held, until `go_on`."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.seconds = 0.0
        self.calls = 0
        self.held: Optional[list[Deferred[None]]] = None

    async def run(self, call: Callable[[], Any]) -> Any:
        self.calls += 1
        self.clock.rightNow += self.seconds  # no call of the clock is due meanwhile
        return call()

    async def run_long(self, call: Callable[[], Any]) -> Any:
        if self.held is not None:
            wait: Deferred[None] = Deferred()
            self.held.append(wait)
            await wait
        return await self.run(call)

    def go_on(self) -> None:
        held, self.held = self.held or [], None
        for wait in held:
            wait.callback(None)


class IndexTestCase(SynchronousTestCase):
    """Tests of an index of *folder*."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.clock = Clock()
        self.threads = AtOnce(self.clock)
        self.invalidated: list[Optional[Collection[Key]]] = []

    async def invalidate(self, keys: Optional[Collection[Key]]) -> None:
        self.invalidated.append(keys)

    def started(self, cache: Optional[IndexCache] = None) -> Index:
        self.index = Index(
            self.clock,
            str(self.folder),
            self.threads,  # type: ignore[arg-type]
            self.invalidate,
            cache=cache,
            watched=False,
        )
        self.successResultOf(Deferred.fromCoroutine(self.index.start()))
        return self.index

    def stop(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.index.stop()))

    def look(self) -> None:
        self.clock.advance(INTERVAL)

    def names(self) -> list[str]:
        files = [file for study in self.index.catalog.studies for file in self.index.catalog.files(study)]
        return sorted(os.path.relpath(file.path, self.folder) for file in files)

    def find(self, *key: str) -> list[StoredFile]:
        return self.successResultOf(Deferred.fromCoroutine(self.index.find(*key)))


class ScanTests(IndexTestCase):
    """What is found."""

    def test_folders_within(self) -> None:
        """Files in folders of folders are found, whatever they are called; hidden ones are not."""
        (self.folder / "a" / "b").mkdir(parents=True)
        slide(self.folder / "a" / "b" / "no-suffix", 1, 1, tile=16)
        slide(self.folder / ".hidden.dcm", 1, 1, tile=16)
        self.started()
        self.assertEqual(self.names(), ["a/b/no-suffix"])

    def test_facts(self) -> None:
        """What is kept of a file is what its whole header says, of a part of a concatenation too, and after it was kept."""
        part = {"InConcatenationNumber": 2, "ConcatenationFrameOffsetNumber": 3}
        made = slide(self.folder / "part.dcm", 1, 3, tile=16, extra=part)
        self.started()
        (record,) = self.find(made.study, made.series, made.sop)
        whole = InstanceMetadata.from_dataset(pydicom.dcmread(made.path, stop_before_pixels=True))
        self.assertEqual((whole.concatenation_part, whole.frame_offset), (2, 3))
        self.assertEqual(record.facts, attrs.evolve(whole, transfer_syntax=record.facts.transfer_syntax))

    def test_symlinks(self) -> None:
        """Symlinks lead nowhere, neither to files nor to folders outside."""
        outside = Path(self.mktemp()).absolute()
        outside.mkdir()
        slide(outside / "secret.dcm", 1, 1, tile=16)
        (self.folder / "link").symlink_to(outside)
        (self.folder / "link.dcm").symlink_to(outside / "secret.dcm")
        index = self.started()
        self.assertEqual((self.names(), index.status()["unreadable_files"]), ([], 0))

    def test_broken_files(self) -> None:
        """Whatever is wrong with a file, the others are found, and those that come later; it is counted."""
        good = slide(self.folder / "good.dcm", 2, 2, tile=16, encoding="raw")
        content = good.path.read_bytes()
        for size in range(148):
            (self.folder / f"cut-{size}.dcm").write_bytes(content[:size])
        (self.folder / "cut-header.dcm").write_bytes(content[:700])
        (self.folder / "cut-pixels.dcm").write_bytes(content[:-10])
        (self.folder / "garbage.dcm").write_bytes(bytes(128) + b"DICM" + bytes(range(256)) * 40)
        (self.folder / "no-uid.dcm").write_bytes(content.replace(good.study.encode(), b"x" * len(good.study)))
        jpeg = slide(self.folder / "jpeg.dcm", 2, 2, tile=16).path.read_bytes()
        (self.folder / "jpeg.dcm").write_bytes(jpeg[:-8])
        deflated = slide(self.folder / "deflated.dcm", 1, 1, tile=16, encoding="deflated").path.read_bytes()
        (self.folder / "deflated.dcm").write_bytes(deflated[:-20])
        index = self.started()
        self.assertEqual(self.names(), ["good.dcm"])
        self.assertEqual(index.status()["unreadable_files"], 148 + 6)
        slide(self.folder / "late.dcm", 1, 1, tile=16)
        good.path.unlink()
        self.look()
        self.assertEqual(self.names(), ["late.dcm"])

    def test_reports_that_are_being_written(self) -> None:
        """A file without pixel data that ends within an element is not served; whole ones are, in every encoding."""
        for encoding in ("raw", "implicit", "big-endian", "deflated"):
            made = slide(self.folder / "report.dcm", 1, 1, tile=16, encoding=encoding)
            data = pydicom.dcmread(made.path)
            del data.PixelData
            data.save_as(made.path)
            whole = made.path.read_bytes()
            self.started()
            self.assertEqual(self.names(), ["report.dcm"], encoding)
            self.stop()
            for less in (2, 40, 1001):  # a pad byte may follow what is deflated
                made.path.write_bytes(whole[: len(whole) - less])
                self.started()
                self.assertEqual(self.names(), [], (encoding, less))
                self.stop()

    def test_unreadable_folder(self) -> None:
        """A folder that cannot be listed is counted, and logged once."""
        (self.folder / "closed").mkdir()
        slide(self.folder / "open.dcm", 1, 1, tile=16)
        listed = os.scandir

        def scandir(path: str) -> Any:
            if path.endswith("closed"):
                raise PermissionError(13, "Permission denied", path)
            return listed(path)

        self.patch(os, "scandir", scandir)
        index = self.started()
        self.look()
        self.assertEqual((self.names(), index.status()["unreadable_folders"]), (["open.dcm"], 1))

    def test_nothing_is_read_twice(self) -> None:
        """A file that did not change keeps its record; one that did gets a new one."""
        same = slide(self.folder / "same.dcm", 1, 1, tile=16)
        other = slide(self.folder / "other.dcm", 1, 1, tile=16)
        (self.folder / "bad.dcm").write_bytes(b"no DICOM")
        self.started()
        before = self.find(same.study), self.find(other.study)
        reads: list[str] = []
        contents = self.index._contents
        read = contents._read
        contents._read = lambda path, *more: reads.append(os.path.basename(path)) or read(path, *more)  # type: ignore[method-assign, func-returns-value]
        self.look()
        self.assertEqual(reads, [])
        slide(other.path, 1, 1, tile=20, study=other.study, series=other.series, sop=other.sop)
        self.look()
        self.assertEqual(reads, ["other.dcm"])
        self.assertIs(self.find(same.study)[0], before[0][0])
        self.assertEqual(self.find(other.study)[0].facts.rows, 20)

    def test_duplicates(self) -> None:
        """Of two files with one instance the first by path is served, the other one once that has gone."""
        first = slide(self.folder / "a.dcm", 1, 1, tile=16)
        key = first.study, first.series, first.sop
        slide(self.folder / "b.dcm", 1, 2, tile=16, study=first.study, series=first.series, sop=first.sop)
        index = self.started()
        self.assertEqual((self.names(), index.status()["duplicates"]), (["a.dcm"], 1))
        first.path.unlink()
        self.look()
        self.assertEqual((self.names(), index.status()["duplicates"]), (["b.dcm"], 0))
        self.assertEqual(self.invalidated, [None, {key}])

    def test_deflated_bomb(self) -> None:
        """A deflated dataset is inflated so far and no further."""
        made = slide(self.folder / "small.dcm", 1, 1, tile=16, encoding="deflated")
        self.patch(instance_file, "MAX_INFLATED", 100_000)
        content = made.path.read_bytes()
        size = 144 + int.from_bytes(content[140:144], "little")
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        bomb = packer.compress(bytes(10_000_000)) + packer.flush()
        (self.folder / "bomb.dcm").write_bytes(content[:size] + bomb)
        index = self.started()
        self.assertEqual((self.names(), index.status()["unreadable_files"]), (["small.dcm"], 1))

    def test_small_records(self) -> None:
        """What files of a series have in common is kept once."""
        one = slide(self.folder / "a.dcm", 1, 1, tile=16)
        data = pydicom.dcmread(one.path)
        data.SOPInstanceUID, data.InstanceNumber = "1.2.3", 7
        data.save_as(self.folder / "b.dcm")
        self.started()
        first, second = self.find(one.study)
        self.assertEqual([file.own_attributes["00200013"]["Value"] for file in (first, second)], [[1], [7]])
        self.assertIs(first.common, second.common)


class WhenTests(IndexTestCase):
    """When the folder is looked at, and what is answered meanwhile."""

    def test_again_and_again(self) -> None:
        """The folder is looked at after each interval."""
        self.started()
        slide(self.folder / "one.dcm", 1, 1, tile=16)
        self.assertEqual(self.names(), [])
        self.look()
        self.assertEqual(self.names(), ["one.dcm"])
        (self.folder / "one.dcm").unlink()
        self.look()
        self.assertEqual(self.names(), [])

    def test_slow_walks_are_seldom(self) -> None:
        """Where a walk takes long, the next one waits until walking takes only its share of the time; reading doesn't count."""
        self.started()
        slide(self.folder / "one.dcm", 1, 1, tile=16)
        contents = self.index._contents
        read = contents._read

        def slowly(*arguments: Any) -> Any:
            self.clock.rightNow += 1000.0
            return read(*arguments)

        contents._read = slowly  # type: ignore[method-assign]
        self.threads.seconds = 3.0
        self.look()
        calls = self.threads.calls
        self.clock.advance(3.0 / MAX_SHARE - 0.1)
        self.assertEqual(self.threads.calls, calls)
        self.clock.advance(0.2)
        self.assertEqual(self.threads.calls, calls + 1)

    def test_asked_for(self) -> None:
        """What is not known makes the folder be looked at, but not right after another look."""
        self.started()
        self.clock.advance(MIN_PAUSE)
        made = slide(self.folder / "one.dcm", 1, 1, tile=16)
        self.assertEqual(len(self.find(made.study)), 1)
        calls = self.threads.calls
        for _ in range(100):
            self.assertEqual(self.find("1.2.3"), [])
        self.assertEqual(self.threads.calls, calls)

    def test_gone_while_a_file_changes(self) -> None:
        """What is being taken up when the folder goes, or comes back, does not undo that."""
        slide(self.folder / "kept.dcm", 1, 1, tile=16)
        changed = slide(self.folder / "changed.dcm", 1, 1, tile=16)
        index = self.started()
        self.look()
        waiting: list[Deferred[None]] = []

        async def invalidate(_keys: Optional[Collection[Key]]) -> None:
            waiting.append(Deferred())
            await waiting[-1]

        self.patch(index, "_invalidate", invalidate)
        os.utime(changed.path, ns=(1, 1))
        self.look()
        self.assertEqual(len(waiting), 1)
        index._gone = "it went"
        waiting.pop().callback(None)
        self.assertEqual(self.names(), [])
        os.utime(changed.path, ns=(2, 2))
        looking = Deferred.fromCoroutine(index.look_at([str(changed.path)]))
        index._gone = ""
        for waiter in waiting:
            waiter.callback(None)
        self.successResultOf(looking)
        self.assertEqual(self.names(), ["changed.dcm", "kept.dcm"])

    def test_folder_gone_and_back(self) -> None:
        """Without its folder nothing is served or said to be missing; when it is back all is as it was."""
        slide(self.folder / "one.dcm", 1, 1, tile=16)
        self.started()
        aside = self.folder.with_name(f"{self.folder.name}-aside")
        self.folder.rename(aside)
        for _ in range(3):
            self.look()
        self.assertEqual(self.names(), [])
        self.failureResultOf(Deferred.fromCoroutine(self.index.find("1.2.3")), OriginUnreachable)
        aside.rename(self.folder)
        self.look()
        self.assertEqual((self.names(), self.invalidated), (["one.dcm"], [None]))

    def test_no_folder(self) -> None:
        """A folder that cannot be listed ends the start with an error without its path."""
        self.folder.rmdir()
        index = Index(self.clock, str(self.folder), self.threads, self.invalidate)  # type: ignore[arg-type]
        error = self.failureResultOf(Deferred.fromCoroutine(index.start()), FolderGone)
        self.assertNotIn(str(self.folder), str(error.value))

    def test_stopped(self) -> None:
        """After the end nothing is left to happen."""
        self.started()
        self.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.successResultOf(Deferred.fromCoroutine(self.index.refresh()))

    def test_first_scan(self) -> None:
        """While the folder is indexed for the first time an unknown instance is no 404: its request waits, then is busy."""
        made = slide(self.folder / "one.dcm", 1, 1, tile=16)
        self.threads.held = []
        self.started()
        waits = [Deferred.fromCoroutine(self.index.find(made.study)) for _ in range(2)]
        cancelled = Deferred.fromCoroutine(self.index.find(made.study))
        cancelled.addErrback(lambda _: None)
        cancelled.cancel()
        self.clock.advance(FIRST_WAIT)
        for wait in waits:
            self.failureResultOf(wait, OriginBusy)
        late = Deferred.fromCoroutine(self.index.find(made.study))
        self.threads.go_on()
        self.assertEqual(len(self.successResultOf(late)), 1)
        self.assertEqual(self.find("1.2.3"), [])


class ChangeTests(IndexTestCase):
    """Files that change."""

    def test_invalidated_first(self) -> None:
        """Requests wait until nothing is cached of the old state, and then get the new one."""
        made = slide(self.folder / "one.dcm", 1, 1, tile=16)
        key = made.study, made.series, made.sop
        self.started()
        slide(made.path, 1, 1, tile=20, study=made.study, series=made.series, sop=made.sop)
        done: Deferred[None] = Deferred()

        async def invalidate(keys: Optional[Collection[Key]]) -> None:
            self.invalidated.append(keys)
            await done

        self.index._invalidate = invalidate
        waits = [Deferred.fromCoroutine(self.index.find(*key)) for _ in range(2)]
        for wait in waits:
            self.assertNoResult(wait)
        self.assertEqual(self.invalidated, [None, {key}])
        waits[0].addErrback(lambda _: None)
        waits[0].cancel()  # what one has begun goes on for the other
        done.callback(None)
        self.assertEqual(self.successResultOf(waits[1])[0].facts.rows, 20)

    def test_failed_invalidation(self) -> None:
        """That the cache cannot be told stops nothing."""
        made = slide(self.folder / "one.dcm", 1, 1, tile=16)
        self.started()

        async def invalidate(_keys: object) -> None:
            raise RuntimeError("no cache")

        self.index._invalidate = invalidate
        made.path.unlink()
        self.assertEqual(self.find(made.study), [])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_written_over(self) -> None:
        """A file that is written over is busy for a while, not gone; then it is what it is."""
        made = slide(self.folder / "one.dcm", 1, 1, tile=16)
        key = made.study, made.series, made.sop
        whole = made.path.read_bytes()
        self.started()
        made.path.write_bytes(
            whole[: whole.index(made.study.encode()) + 5]
        )  # within an element: between two it is a file
        self.failureResultOf(Deferred.fromCoroutine(self.index.find(*key)), OriginBusy)
        self.look()
        self.failureResultOf(Deferred.fromCoroutine(self.index.find(*key)), OriginBusy)
        for _ in range(10):
            self.look()
        self.assertEqual(self.find(*key), [])
        made.path.write_bytes(whole)
        self.look()
        self.assertEqual(len(self.find(*key)), 1)

    def test_changes_are_told(self) -> None:
        """Whoever keeps files open hears when files changed, and only then."""
        told: list[int] = []
        self.started().on_change = lambda: told.append(self.index.catalog.size)
        self.look()
        slide(self.folder / "one.dcm", 1, 1, tile=16)
        self.look()
        self.look()
        self.assertEqual(told, [1])


class IndexCacheTests(IndexTestCase):
    """What is kept for the next start."""

    def setUp(self) -> None:
        super().setUp()
        self.environment = {"XDG_CACHE_HOME": str(Path(self.mktemp()).absolute())}
        self.place = IndexCache(self.environment, str(self.folder)).place

    def restarted(self) -> list[str]:
        """Start anew; the names of the files that had to be read."""
        reads: list[str] = []
        read = FolderContents._read
        self.patch(
            FolderContents,
            "_read",
            lambda contents, path, stamp: reads.append(os.path.basename(path)) or read(contents, path, stamp),
        )
        self.invalidated.clear()
        self.started(IndexCache(self.environment, str(self.folder)))
        self.stop()
        return reads

    def test_read_again(self) -> None:
        """Only what changed is read at the next start, and invalidated; the rest is as it was, word for word."""
        report = loop(self.folder / "report.dcm", 1, 8, 8)
        data = pydicom.dcmread(report.path)
        del data.PixelData
        data.save_as(report.path)
        made = [
            slide(self.folder / f"{n}.dcm", 2, 2, tile=16, encoding=e) for n, e in enumerate(("jpeg", "big-endian"))
        ]
        (self.folder / "bad.dcm").write_bytes(b"no DICOM")
        self.assertEqual(len(self.restarted()), 4)
        self.assertEqual(self.invalidated, [None])
        before = {file.path: file for study in self.index.catalog.studies.values() for file in study.files}
        self.assertEqual(self.restarted(), [])
        self.assertEqual((self.names(), self.invalidated), (["0.dcm", "1.dcm", "report.dcm"], []))
        for study in self.index.catalog.studies.values():
            for file in study.files:
                known = before[file.path]
                self.assertEqual((file.stamp, file.key, file.pixels), (known.stamp, known.key, known.pixels))
                self.assertEqual((file.facts, file.common.attributes), (known.facts, known.common.attributes))
                self.assertEqual(file.own_attributes, known.own_attributes)
                self.assertEqual(file.common.transfer_syntax, known.common.transfer_syntax)
        slide(made[0].path, 1, 1, tile=20, study=made[0].study, series=made[0].series, sop=made[0].sop)
        made[1].path.unlink()
        self.assertEqual(self.restarted(), ["0.dcm"])
        self.assertEqual(set().union(*self.invalidated), {(one.study, one.series, one.sop) for one in made})

    def test_written_while_it_is_read(self) -> None:
        """What another worker writes meanwhile is seen with all that belongs to it, or not at all."""
        slide(self.folder / "one.dcm", 1, 1, tile=16)
        self.restarted()
        (known,) = [file for study in self.index.catalog.studies.values() for file in study.files]
        other, reading = (IndexCache(self.environment, str(self.folder)) for _ in range(2))
        other.load()
        unpack = Common.unpack

        def write_first(packed: bytes) -> Common:
            common = attrs.evolve(known.common, packed=known.common.packed + b" ")
            other.write({"/new": attrs.evolve(known, path="/new", common=common)})
            return unpack(packed)

        self.patch(Common, "unpack", write_first)
        learned = reading.load()
        self.patch(Common, "unpack", unpack)
        self.assertEqual([known.path], list(learned or ()))
        for cache in (other, reading):
            cache.close()
        with sqlite3.connect(self.place) as database:
            self.assertEqual(database.execute("SELECT count(*) FROM common").fetchone(), (2,))
            database.execute("DELETE FROM files WHERE path = ?", (b"/new",))
        database.close()
        self.assertEqual(self.restarted(), [])
        with sqlite3.connect(self.place) as database:  # what no file has any more
            self.assertEqual(database.execute("SELECT count(*) FROM common").fetchone(), (1,))
        database.close()

    def test_private(self) -> None:
        """Nobody else may read it; it names patients."""
        slide(self.folder / "one.dcm", 1, 1, tile=16)
        self.restarted()
        self.assertEqual(self.place.parent.stat().st_mode & 0o777, 0o700)
        self.assertEqual({path.stat().st_mode & 0o077 for path in self.place.parent.iterdir()}, {0})
        self.place.parent.chmod(0o755)
        self.assertEqual(self.restarted(), ["one.dcm"])

    def test_damaged(self) -> None:
        """One that is damaged, or of another version, is made anew."""
        slide(self.folder / "one.dcm", 1, 1, tile=16)
        self.restarted()
        database = sqlite3.connect(self.place)
        for damage in ("UPDATE files SET pixels = 'x'", "UPDATE common SET packed = '[]'", "PRAGMA user_version = 1"):
            with database:
                database.execute(damage)
            self.assertEqual(self.restarted(), ["one.dcm"], damage)
            self.assertEqual(self.restarted(), [])
            database.close()
            database = sqlite3.connect(self.place)
        database.close()
        self.place.write_bytes(b"something else" * 1000)
        self.assertEqual(self.restarted(), ["one.dcm"])
        self.assertEqual(self.restarted(), [])

    def test_closed_while_it_is_read(self) -> None:
        """Closing waits for the thread that reads, and nothing is opened again after it."""
        slide(self.folder / "one.dcm", 1, 1, tile=16)
        self.restarted()
        cache = IndexCache(self.environment, str(self.folder))
        reading, go_on = threading.Event(), threading.Event()
        read = cache._read

        def slowly(*arguments: Any) -> Any:
            reading.set()
            go_on.wait(10)
            return read(*arguments)

        cache._read = slowly  # type: ignore[method-assign]
        with ThreadPoolExecutor() as pool:
            loading = pool.submit(cache.load)
            reading.wait(10)
            closing = pool.submit(cache.close)
            go_on.set()
            closing.result(10)
            learned = loading.result(10)
        self.assertEqual(len(learned or ()), 1)
        self.assertIsNone(cache.load())

    def test_no_place(self) -> None:
        """Where nothing can be kept, all is read anew."""
        slide(self.folder / "one.dcm", 1, 1, tile=16)
        Path(self.environment["XDG_CACHE_HOME"]).write_bytes(b"")
        for _ in range(2):
            self.assertEqual(self.restarted(), ["one.dcm"])
