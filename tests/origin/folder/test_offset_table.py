"""Where frames lie: tables, tables that lie, scans, native sizes. On bytes in memory."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Optional

import attrs
import numpy
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.part10.pixels import BadPixelLength
from twistedproxy.dicom.transfer_syntaxes import END_OF_IMAGE
from twistedproxy.origin.folder.frames import native_frame
from twistedproxy.origin.folder.instance_file import PixelElement, ReadAt, UnreadableFile
from twistedproxy.origin.folder.offset_table import OffsetTable, find_frames, frame_spans

START = 100  # bytes in front of the pixel data
ENCAPSULATED = PixelElement(0x7FE00010, "OB", START, None, True)


def item(value: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(value)) + value


def content(fragments: Sequence[bytes], table: Sequence[int] = (), end: bytes = b"\xfe\xff\xdd\xe0\0\0\0\0") -> bytes:
    basic = struct.pack(f"<{len(table)}I", *table)
    return bytes(START) + item(basic) + b"".join(map(item, fragments)) + end


def reader(data: bytes) -> ReadAt:
    return lambda offset, size: data[offset : offset + size]


def table_of(
    data: bytes, frames: int, extended: Sequence[bytes] = (), end_marker: Optional[bytes] = END_OF_IMAGE
) -> OffsetTable:
    return find_frames(reader(data), ENCAPSULATED, frames, end_marker, extended)


def frame_of(data: bytes, table: OffsetTable, number: int) -> bytes:
    return b"".join(data[start:end] for start, end in frame_spans(table, ENCAPSULATED, reader(data), number))


def frames_of(data: bytes, table: OffsetTable) -> list[bytes]:
    frames = len(table.starts) - table.trusted  # where the last one ends is known then
    return [frame_of(data, table, number) for number in range(1, frames + 1)]


class TableTests(SynchronousTestCase):
    """Encapsulated frames."""

    def test_basic_table(self) -> None:
        """The Basic Offset Table is used: fragments between two offsets are one frame, the last runs to the end."""
        data = content([b"ab", b"cdef", b"gh", b"ij"], [0, 22])
        table = table_of(data, 2)
        self.assertFalse(table.trusted)
        self.assertEqual(frames_of(data, table), [b"abcdef", b"ghij"])

    def test_extended_table(self) -> None:
        """The Extended Offset Table tells lengths without the pad byte."""
        data = content([b"abc\0", b"defg"])
        table = table_of(data, 2, (struct.pack("<2Q", 0, 12), struct.pack("<2Q", 3, 4)))
        self.assertEqual(frames_of(data, table), [b"abc", b"defg"])

    def test_extended_lengths_that_lie(self) -> None:
        """A length in the Extended Offset Table that no item has is an error, not a shortened frame."""
        data = content([b"abcd", b"efgh"])
        table = table_of(data, 2, (struct.pack("<2Q", 0, 12), struct.pack("<2Q", 2, 4)))
        self.assertRaises(UnreadableFile, frames_of, data, table)

    def test_no_table(self) -> None:
        """Without a table each fragment is a frame where their numbers agree."""
        data = content([b"ab", b"cdef", b"gh"])
        table = table_of(data, 3)
        self.assertTrue(table.trusted)
        self.assertEqual(frames_of(data, table), [b"ab", b"cdef", b"gh"])

    def test_single_frame_of_many_fragments(self) -> None:
        """All fragments of a single frame are joined."""
        data = content([b"ab", b"cd", b"ef"])
        self.assertEqual(frames_of(data, table_of(data, 1)), [b"abcdef"])

    def test_fragments_to_the_end_mark(self) -> None:
        """Without a table a frame runs to the fragment that ends as its codestream must, pad byte or not."""
        data = content([b"ab", b"c\xff\xd9\0", b"de", b"fg\xff\xd9"])
        self.assertEqual(frames_of(data, table_of(data, 2)), [b"abc\xff\xd9\0", b"defg\xff\xd9"])

    def test_pad_bytes_after_the_end_mark(self) -> None:
        """More pad bytes than there should be don't hide the end mark; a mark further back is none."""
        data = content([b"ab", b"c\xff\xd9" + bytes(5), b"\xff\xd9" + b"d" * 10, b"fg\xff\xd9"])
        frames = [b"abc\xff\xd9" + bytes(5), b"\xff\xd9" + b"d" * 10 + b"fg\xff\xd9"]
        self.assertEqual(frames_of(data, table_of(data, 2)), frames)

    def test_fragments_without_end_mark(self) -> None:
        """Fragments that cannot be told apart are an error that names both numbers."""
        data = content([b"ab", b"cd", b"ef"])
        error = self.assertRaises(UnreadableFile, table_of, data, 2, (), None)
        self.assertIn("2 frames", str(error))
        self.assertIn("3 fragments", str(error))

    def test_too_few_fragments(self) -> None:
        """Fewer fragments than frames are an error."""
        self.assertRaises(UnreadableFile, table_of, content([b"ab"]), 2)

    def test_offsets_that_wrapped(self) -> None:
        """Offsets that do not ascend, as past 4 GiB, are not believed: the items decide."""
        for wrapped in ([0, 10, 4], [0, 20, 10]):
            data = content([b"ab", b"cd", b"ef"], wrapped)
            table = table_of(data, 3)
            self.assertTrue(table.trusted)
            self.assertEqual(frames_of(data, table), [b"ab", b"cd", b"ef"])

    def test_offsets_into_nowhere(self) -> None:
        """A last offset behind the pixels or between items is found out when its frame is read."""
        for last in (4000, 11):
            data = content([b"ab", b"cd"], [0, last])
            self.assertRaises(UnreadableFile, frames_of, data, table_of(data, 2))
            scanned = find_frames(reader(data), ENCAPSULATED, 2, END_OF_IMAGE, None)
            self.assertEqual(frames_of(data, scanned), [b"ab", b"cd"])

    def test_wrong_number_of_offsets(self) -> None:
        """A table for another number of frames is not believed."""
        data = content([b"ab", b"cd", b"ef"], [0, 10])
        self.assertEqual(frames_of(data, table_of(data, 3)), [b"ab", b"cd", b"ef"])

    def test_cut_off(self) -> None:
        """Pixel data that end within an item are an error."""
        self.assertRaises(UnreadableFile, table_of, content([b"ab", b"cd"], end=b"")[:-1], 2)
        self.assertRaises(UnreadableFile, table_of, content([b"ab", b"cd"], end=b""), 2)

    def test_half_a_million_frames(self) -> None:
        """A table of 500,000 frames takes 4 MB and little more."""
        count = 500_000
        data = content([b"ab"] * count, [10 * n for n in range(count)])
        table = table_of(data, count)
        self.assertEqual(table.size // 1000, 8 * count // 1000)
        self.assertEqual(frame_of(data, table, count), b"ab")


class NativeTests(SynchronousTestCase):
    """Frames that lie side by side."""

    facts = InstanceMetadata(3, rows=5, columns=7, samples_per_pixel=1, bits_allocated=8)
    pixels = PixelElement(0x7FE00010, "OB", START, 106, True)

    def cut(self, pixels: PixelElement, facts: InstanceMetadata, number: int) -> tuple[int, int]:
        """Where a frame lies."""
        data = numpy.arange(1000, dtype="<u2").tobytes()
        frame = native_frame(pixels, facts, reader(data), number)
        return data.index(frame), data.index(frame) + len(frame)

    def test_odd_sizes(self) -> None:
        """Frames are cut at their size: the pad byte at the end belongs to none."""
        spans = [self.cut(self.pixels, self.facts, number) for number in (1, 2, 3)]
        self.assertEqual(spans, [(100, 135), (135, 170), (170, 205)])

    def test_several_samples_and_bytes(self) -> None:
        """Samples and allocated bits count."""
        facts = attrs.evolve(self.facts, samples_per_pixel=3, bits_allocated=16)
        self.assertEqual(self.cut(self.pixels._replace(length=630), facts, 3), (100 + 420, 100 + 630))

    def test_subsampled(self) -> None:
        """Native YBR_FULL_422 has two samples a pixel."""
        facts = attrs.evolve(self.facts, columns=8, samples_per_pixel=3, photometric_interpretation="YBR_FULL_422")
        self.assertEqual(self.cut(self.pixels._replace(length=240), facts, 2), (180, 260))

    def test_too_short(self) -> None:
        """Pixel data that cannot hold all frames are an error, whichever frame is asked for."""
        self.assertRaises(BadPixelLength, self.cut, self.pixels._replace(length=104), self.facts, 1)

    def test_bits(self) -> None:
        """1-bit frames that begin within a byte come out as if they began with one."""
        random = numpy.random.default_rng(1)
        bits = random.integers(0, 2, 3 * 35, dtype=numpy.uint8)
        packed = numpy.packbits(bits, bitorder="little").tobytes()
        data = bytes(START) + packed
        facts = attrs.evolve(self.facts, bits_allocated=1)
        pixels = self.pixels._replace(length=len(packed))
        for number in (1, 2, 3):
            expected = numpy.packbits(bits[(number - 1) * 35 : number * 35], bitorder="little").tobytes()
            self.assertEqual(native_frame(pixels, facts, reader(data), number), expected)
