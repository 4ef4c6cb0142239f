"""Open files: few, and always the very ones that were indexed."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.slides import slide
from twistedproxy.origin.folder.instance_file import FileChanged, read_header
from twistedproxy.origin.folder.open_files import OpenFiles


class OpenFilesTests(SynchronousTestCase):
    """Descriptors that are shared and bounded."""

    def setUp(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        made = [slide(folder / f"{n}.dcm", 1, 1, tile=16) for n in range(5)]
        self.records = [read_header(str(one.path), {}) for one in made]
        self.files = OpenFiles(max_open=2)
        self.addCleanup(self.files.close)

    def descriptors(self) -> int:
        return len(os.listdir("/proc/self/fd"))

    def test_bounded(self) -> None:
        """No more than so many stay open, and all are closed at the end."""
        before = self.descriptors()
        for record in self.records * 2:
            with self.files.reading(record) as read_at:
                self.assertEqual(read_at(128, 4), b"DICM")
        self.assertEqual((len(self.files), self.descriptors() - before), (2, 2))
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

    def test_kept(self) -> None:
        """Files that are not wanted any more are closed."""
        for record in self.records[:2]:
            with self.files.reading(record):
                pass
        self.files.keep_only(lambda path, _: path == self.records[1].path)
        self.assertEqual(len(self.files), 1)
