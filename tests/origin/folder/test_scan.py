"""What a scan finds in a folder, and what it leaves alone."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import attrs
import pydicom
from twisted.trial.unittest import SynchronousTestCase

from tests.slides import slide
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.origin.folder import header
from twistedproxy.origin.folder.scan import FolderGone, Found, Scanner, Stopped


class ScanTests(SynchronousTestCase):
    """Scans, one after the other."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.scanner = Scanner(str(self.folder))
        self.found = Found()

    def scan(self) -> Found:
        self.found = self.scanner.scan(self.found)
        return self.found

    def names(self) -> list[str]:
        return sorted(os.path.relpath(path, self.folder) for path in self.found.files)

    def test_folders_within(self) -> None:
        """Files in folders of folders are found, whatever they are called; hidden ones are not."""
        (self.folder / "a" / "b").mkdir(parents=True)
        slide(self.folder / "a" / "b" / "no-suffix", 1, 1, tile=16)
        slide(self.folder / ".hidden.dcm", 1, 1, tile=16)
        self.scan()
        self.assertEqual(self.names(), ["a/b/no-suffix"])

    def test_facts(self) -> None:
        """What is kept of a file is what its whole header says, of a part of a concatenation too."""
        part = {"InConcatenationNumber": 2, "ConcatenationFrameOffsetNumber": 3}
        made = slide(self.folder / "part.dcm", 1, 3, tile=16, extra=part)
        self.scan()
        facts = self.found.files[str(made.path)].facts
        self.assertEqual((facts.concatenation_part, facts.frame_offset), (2, 3))
        whole = InstanceMetadata.from_dataset(pydicom.dcmread(made.path, stop_before_pixels=True))
        self.assertEqual(facts, attrs.evolve(whole, transfer_syntax=facts.transfer_syntax))

    def test_symlinks(self) -> None:
        """Symlinks lead nowhere, neither to files nor to folders outside."""
        outside = Path(self.mktemp()).absolute()
        outside.mkdir()
        slide(outside / "secret.dcm", 1, 1, tile=16)
        (self.folder / "link").symlink_to(outside)
        (self.folder / "link.dcm").symlink_to(outside / "secret.dcm")
        self.assertEqual(self.scan().problems, ())
        self.assertEqual(self.names(), [])

    def test_unreadable_is_told_once(self) -> None:
        """A file that cannot be read is told of once, and again when it changed."""
        bad = self.folder / "bad.dcm"
        bad.write_bytes(b"no DICOM")
        self.assertEqual([os.path.basename(path) for path, _ in self.scan().problems], ["bad.dcm"])
        self.assertEqual(self.scan().problems, ())
        bad.write_bytes(b"still no DICOM")
        self.assertEqual(len(self.scan().problems), 1)
        slide(bad, 1, 1, tile=16)
        self.assertEqual(self.scan().problems, ())
        self.assertEqual(self.names(), ["bad.dcm"])

    def test_broken_files(self) -> None:
        """Whatever is wrong with a file, the others are found."""
        good = slide(self.folder / "good.dcm", 2, 2, tile=16, encoding="raw")
        content = good.path.read_bytes()
        (self.folder / "cut-header.dcm").write_bytes(content[:700])
        (self.folder / "cut-pixels.dcm").write_bytes(content[:-10])
        (self.folder / "prefix-only.dcm").write_bytes(bytes(128) + b"DICM")
        (self.folder / "garbage.dcm").write_bytes(bytes(128) + b"DICM" + bytes(range(256)) * 40)
        (self.folder / "empty.dcm").write_bytes(b"")
        (self.folder / "no-uid.dcm").write_bytes(content.replace(good.study.encode(), b"x" * len(good.study)))
        found = self.scan()
        self.assertEqual(self.names(), ["good.dcm"])
        self.assertEqual(len(found.problems), 6)

    def test_nothing_is_read_twice(self) -> None:
        """A file that did not change keeps its record; one that did gets a new one."""
        slide(self.folder / "same.dcm", 1, 1, tile=16)
        slide(self.folder / "other.dcm", 1, 1, tile=16)
        before = dict(self.scan().files)
        self.assertFalse(self.scan().changed)
        slide(self.folder / "other.dcm", 1, 1, tile=20)
        after = self.scan()
        self.assertTrue(after.changed)
        kept = {os.path.basename(path) for path, file in after.files.items() if before[path] is file}
        self.assertEqual(kept, {"same.dcm"})

    def test_gone(self) -> None:
        """A file that went is forgotten."""
        slide(self.folder / "one.dcm", 1, 1, tile=16)
        self.scan()
        (self.folder / "one.dcm").unlink()
        self.assertTrue(self.scan().changed)
        self.assertEqual(self.found.catalog.size, 0)

    def test_duplicates(self) -> None:
        """Of two files with one instance the first by path is served, the other told of once."""
        first = slide(self.folder / "a.dcm", 1, 1, tile=16)
        slide(self.folder / "b.dcm", 1, 2, tile=16, study=first.study, series=first.series, sop=first.sop)
        problems = self.scan().problems
        self.assertEqual([os.path.basename(path) for path, _ in problems], ["b.dcm"])
        served = self.found.catalog.get(first.study, first.series, first.sop)
        assert served is not None
        self.assertEqual(os.path.basename(served.path), "a.dcm")
        slide(self.folder / "c.dcm", 1, 1, tile=16)
        self.assertEqual(self.scan().problems, ())
        (self.folder / "a.dcm").unlink()
        self.scan()
        served = self.found.catalog.get(first.study, first.series, first.sop)
        assert served is not None
        self.assertEqual(os.path.basename(served.path), "b.dcm")

    def test_look_at_one(self) -> None:
        """Looking at one file takes that up alone."""
        one = slide(self.folder / "one.dcm", 1, 1, tile=16)
        slide(self.folder / "two.dcm", 1, 1, tile=16)
        self.found = self.scanner.look_at(self.found, [str(one.path)])
        self.assertEqual(self.names(), ["one.dcm"])

    def test_folder_gone(self) -> None:
        """A folder that cannot be listed is an error without its path."""
        self.folder.rmdir()
        error = self.assertRaises(FolderGone, self.scan)
        self.assertNotIn(str(self.folder), str(error))

    def test_stopped(self) -> None:
        """A scan ends soon after it is told to."""
        slide(self.folder / "one.dcm", 1, 1, tile=16)
        self.assertRaises(Stopped, Scanner(str(self.folder), lambda: True).scan, Found())

    def test_deflated_bomb(self) -> None:
        """A deflated dataset is inflated so far and no further."""
        made = slide(self.folder / "small.dcm", 1, 1, tile=16, encoding="deflated")
        self.patch(header, "MAX_INFLATED", 100_000)
        self.scan()
        self.assertEqual(self.names(), ["small.dcm"])
        content = made.path.read_bytes()
        size = 144 + int.from_bytes(content[140:144], "little")
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        bomb = packer.compress(bytes(10_000_000)) + packer.flush()
        (self.folder / "bomb.dcm").write_bytes(content[:size] + bomb)
        self.assertIn("more than 100000 bytes", self.scan().problems[0][1])

    def test_shared_attributes(self) -> None:
        """What two files have in common is kept once."""
        one = slide(self.folder / "a.dcm", 1, 1, tile=16)
        slide(self.folder / "b.dcm", 1, 1, tile=16, study=one.study, series=one.series)
        first, second = self.scan().files.values()
        self.assertIs(first.attributes["0020000D"], second.attributes["0020000D"])
