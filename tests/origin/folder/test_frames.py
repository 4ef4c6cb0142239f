"""Reading frames: what is remembered, and what is done about tables that lie."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.slides import Made, slide
from twistedproxy.origin.folder.frames import FileReader
from twistedproxy.origin.folder.instance_file import FileChanged, StoredFile, UnreadableFile, read_header


class FileReaderTests(SynchronousTestCase):
    """Frames of files."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def make(self, name: str, **more: object) -> tuple[Made, StoredFile]:
        made = slide(self.folder / name, 2, 3, tile=32, **more)  # type: ignore[arg-type]
        return made, read_header(str(made.path))

    def test_table_that_lies(self) -> None:
        """A Basic Offset Table that points between items costs a scan, and no frame."""
        made, record = self.make("one.dcm")
        assert record.pixels is not None
        content = bytearray(made.path.read_bytes())
        second = record.pixels.start + 8 + 4
        (offset,) = struct.unpack_from("<I", content, second)
        struct.pack_into("<I", content, second, offset + 2)
        expected = made.stored_frames()
        made.path.write_bytes(content)
        record = read_header(str(made.path))
        self.assertEqual(FileReader().read(record, range(1, 7)), expected)

    def test_no_codestream(self) -> None:
        """Bytes that no frame in the transfer syntax begins with are no frame, wherever they stand."""
        made, _ = self.make("one.dcm")
        frame = made.stored_frames()[1]
        content = made.path.read_bytes()
        made.path.write_bytes(content.replace(frame, b"<html>" + frame[6:]))
        record = read_header(str(made.path))
        reader = FileReader()
        self.assertEqual(reader.read(record, [1, 3]), [made.stored_frames()[0], made.stored_frames()[2]])
        self.assertIn("frame 2", str(self.assertRaises(UnreadableFile, reader.read, record, [1, 2])))

    def test_remembered(self) -> None:
        """Tables are remembered up to so many bytes together, the one used last longest."""
        records = [self.make(f"{n}.dcm", offset_table="none")[1] for n in range(3)]
        reader = FileReader(max_table_bytes=1500)
        for record in records[:2]:
            reader.prepare(record)
        reader.read(records[0], [1])
        reader.prepare(records[2])
        self.assertEqual([reader.has_table(record) for record in records], [True, False, True])

    def test_fragments(self) -> None:
        """Frames of several fragments are joined, with a table and without."""
        for table in ("basic", "none"):
            made, record = self.make(f"{table}.dcm", offset_table=table, fragments_per_frame=3)
            self.assertEqual(FileReader().read(record, range(1, 7)), made.stored_frames())


class OpenFilesTests(SynchronousTestCase):
    """Descriptors that are shared and bounded."""

    def setUp(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        made = [slide(folder / f"{n}.dcm", 1, 1, tile=16) for n in range(5)]
        self.records = [read_header(str(one.path)) for one in made]
        self.files = FileReader(max_open=2)
        self.addCleanup(self.files.close)

    def descriptors(self) -> int:
        return len(os.listdir("/proc/self/fd"))

    def test_bounded(self) -> None:
        """No more than so many stay open, and all are closed at the end."""
        before = self.descriptors()
        for record in self.records * 2:
            with self.files.reading(record) as read_at:
                self.assertEqual(read_at(128, 4), b"DICM")
        self.assertEqual((self.files.open_files, self.descriptors() - before), (2, 2))
        del read_at
        self.files.close()
        self.assertEqual(self.descriptors(), before)

    def test_dropped_while_read(self) -> None:
        """A file that is dropped while it is read can be read to the end of that."""
        with self.files.reading(self.records[0]) as read_at:
            for record in self.records[1:]:
                with self.files.reading(record):
                    pass
            self.assertEqual(read_at(128, 4), b"DICM")

    def test_changed_before(self) -> None:
        """A file that is not what it was is not read."""
        os.utime(self.records[0].path, ns=(1, 1))
        with self.assertRaises(FileChanged), self.files.reading(self.records[0]):
            self.fail("it was opened")

    def test_changed_meanwhile(self) -> None:
        """What was read while the file changed is not given out."""
        with self.assertRaises(FileChanged), self.files.reading(self.records[0]) as read_at:
            read_at(0, 10)
            os.utime(self.records[0].path, ns=(1, 1))

    def test_replaced(self) -> None:
        """A file that took another's name is not taken for it, not even through a symlink."""
        record, other = self.records[:2]
        os.unlink(record.path)
        os.symlink(os.path.abspath(other.path), record.path)
        with self.assertRaises(OSError), self.files.reading(record):
            self.fail("it was opened")
