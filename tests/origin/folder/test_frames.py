"""Reading frames: what is remembered, and what is done about tables that lie."""

from __future__ import annotations

import struct
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.slides import Made, slide
from twistedproxy.origin.folder.frames import FrameReader
from twistedproxy.origin.folder.instance_file import StoredFile, read_header
from twistedproxy.origin.folder.offset_table import BadPixelData
from twistedproxy.origin.folder.open_files import OpenFiles


class FrameReaderTests(SynchronousTestCase):
    """Frames of files."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.files = OpenFiles()
        self.addCleanup(self.files.close)

    def make(self, name: str, **more: object) -> tuple[Made, StoredFile]:
        made = slide(self.folder / name, 2, 3, tile=32, **more)  # type: ignore[arg-type]
        return made, read_header(str(made.path), {})

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
        record = read_header(str(made.path), {})
        self.assertEqual(FrameReader(self.files).read(record, range(1, 7)), expected)

    def test_no_codestream(self) -> None:
        """Bytes that no frame in the transfer syntax begins with are no frame, wherever they stand."""
        made, _ = self.make("one.dcm")
        frame = made.stored_frames()[1]
        content = made.path.read_bytes()
        made.path.write_bytes(content.replace(frame, b"<html>" + frame[6:]))
        record = read_header(str(made.path), {})
        reader = FrameReader(self.files)
        self.assertEqual(reader.read(record, [1, 3]), [made.stored_frames()[0], made.stored_frames()[2]])
        self.assertIn("frame 2", str(self.assertRaises(BadPixelData, reader.read, record, [1, 2])))

    def test_remembered(self) -> None:
        """Tables are remembered up to so many bytes together, the one used last longest."""
        records = [self.make(f"{n}.dcm", offset_table="none")[1] for n in range(3)]
        reader = FrameReader(self.files, max_table_bytes=2 * 8 * 7)
        for record in records[:2]:
            reader.prepare(record)
        reader.read(records[0], [1])
        reader.prepare(records[2])
        self.assertEqual([reader.has_table(record) for record in records], [True, False, True])

    def test_fragments(self) -> None:
        """Frames of several fragments are joined, with a table and without."""
        for table in ("basic", "none"):
            made, record = self.make(f"{table}.dcm", offset_table=table, fragments_per_frame=3)
            self.assertEqual(FrameReader(self.files).read(record, range(1, 7)), made.stored_frames())
