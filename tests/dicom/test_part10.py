from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from twisted.trial.unittest import SynchronousTestCase

from tests.dicom.test_transfer_syntaxes import ENCODED, expected_of
from tests.properties import given, settings, st
from tests.slides import ENCODINGS, OffsetTable, Pieces, multi_frame, slide, stored_frames
from twistedproxy.dicom import transfer_syntaxes as ts
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.part10.dataset import MAX_DEPTH, MAX_META_BYTES
from twistedproxy.dicom.part10.stream import INFLATED_BYTES, BadPart10, NotByFrame, Part10Stream

ITEM = b"\xfe\xff\x00\xe0"
END = b"\xfe\xff\xdd\xe0\0\0\0\0"
UNDEFINED = b"\xff\xff\xff\xff"


def read(data: bytes, size: int = 1 << 20, max_frame_bytes: int = 1 << 28) -> list[bytes]:
    """All frames of *data*, fed in chunks of *size*."""
    stream = Part10Stream(max_frame_bytes)
    frames = [f for start in range(0, len(data), size) for f in stream.feed(data[start : start + size])]
    stream.finish()
    assert stream.frames_given == len(frames)
    return frames


def item(value: bytes) -> bytes:
    return ITEM + struct.pack("<L", len(value)) + value


def header(uid: str = ts.JPEG_BASELINE, **attributes: object) -> bytes:
    """A file up to its pixel data."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.3"
    dataset.SamplesPerPixel, dataset.BitsAllocated, dataset.Rows, dataset.Columns = 1, 8, 3, 3
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def encapsulated(
    items: Iterable[bytes],
    frames: int,
    table: bytes = b"",
    uid: str = ts.JPEG_BASELINE,
    extended_table: tuple[bytes, bytes] = (b"", b""),
) -> bytes:
    """A file whose pixel data has these *items* after the Basic Offset Table *table*."""
    keywords = "ExtendedOffsetTable", "ExtendedOffsetTableLengths"
    extended = {keyword: value for keyword, value in zip(keywords, extended_table, strict=True) if value}
    pixels = b"\xe0\x7f\x10\x00OB\0\0" + UNDEFINED + item(table) + b"".join(map(item, items)) + END
    return header(uid, NumberOfFrames=frames, **extended) + pixels


def extended(
    frames: Sequence[bytes],
    offsets: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
    basic: bytes = b"",
    uid: str = ts.JPEG_BASELINE,
) -> bytes:
    """A file of *frames*, one even item each, with an Extended Offset Table: the right one, or what is given of it."""
    items = [each + b"\0" * (len(each) % 2) for each in frames]
    if offsets is None:
        offsets = [sum(len(each) + 8 for each in items[:number]) for number in range(len(items))]
    if lengths is None:
        lengths = [len(each) for each in frames]
    table = struct.pack(f"<{len(offsets)}Q", *offsets), struct.pack(f"<{len(lengths)}Q", *lengths)
    return encapsulated(items, len(frames), basic, uid, table)


def by_pydicom(data: bytes) -> list[bytes]:
    """The frames that pydicom finds in a file."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    tables = None
    if "ExtendedOffsetTable" in dataset:
        tables = dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths
    count = int(dataset.NumberOfFrames)
    return list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=count, extended_offsets=tables))


def frame(name: bytes, size: int = 8) -> bytes:
    """A JPEG as far as its last two bytes go."""
    return name.ljust(size, b".") + ts.END_OF_IMAGE


def first_of_interest(encoding: str, data: bytes) -> int:
    """Where cuts of a file begin: at its pixel data, for data sets in explicit VR little endian are all alike; one is cut
    everywhere."""
    everywhere = ("implicit", "big-endian", "deflated", "jpeg")
    return 0 if encoding in everywhere else data.rindex(b"\xe0\x7f\x10\0")


class EveryEncoding(SynchronousTestCase):
    """Frames are those of pydicom."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()

    def assert_same(self, path: Path, sizes: Iterable[int] = (1 << 20, 1000, 77)) -> bytes:
        expected, data = stored_frames(path), path.read_bytes()
        for size in sizes:
            self.assertEqual(read(data, size), expected, (path.name, size))
        return data

    def test_slides_of_every_encoding(self) -> None:
        """Each encoding, with each kind of offset table, in one and in several fragments a frame."""
        for name, encoding in ENCODINGS.items():
            for table in OffsetTable if encoding.encapsulated else [OffsetTable.NONE]:
                path = self.folder / f"{name}-{table.value}"
                slide(path, 1, 3, encoding.side or 33, name, table, trailing_padding=20)
                self.assert_same(path)
            if encoding.encapsulated:
                slide(path, 2, 2, encoding.side or 33, name, OffsetTable.BASIC, 3)
                self.assert_same(path)
                slide(path, 1, 1, encoding.side or 33, name, OffsetTable.NONE, 4)
                self.assert_same(path)
            if encoding.encapsulated and ts.lookup(encoding.transfer_syntax).end_marker:  # type: ignore[union-attr]
                slide(path, 2, 2, encoding.side or 33, name, OffsetTable.NONE, 3)
                self.assert_same(path)

    def test_uids(self) -> None:
        """The file says which instance it is, as soon as that has come and after its last frame."""
        made = slide(self.folder / "uids", 1, 2, 33)
        stream = Part10Stream()
        self.assertEqual(stream.uids, ("", "", ""))
        for byte in made.path.read_bytes():
            stream.feed(bytes([byte]))
            if all(stream.uids):
                break
        self.assertIsNone(stream.metadata)
        uids = (made.study, made.series, made.sop)
        self.assertEqual(stream.uids, uids)
        stream = Part10Stream()
        stream.feed(made.path.read_bytes())
        self.assertEqual(stream.uids, uids)

    def test_every_cut(self) -> None:
        """Small files of every encoding, cut in two at every byte and read byte by byte."""
        for name, encoding in ENCODINGS.items():
            if encoding.side:
                continue
            path = self.folder / name
            multi_frame(path, 3, 5, 5, name, pieces=Pieces(fragments_per_frame=2))
            data = self.assert_same(path, [1, 2, 3])
            expected = stored_frames(path)
            for cut in range(first_of_interest(name, data), len(data)):
                stream = Part10Stream()
                frames = [*stream.feed(data[:cut]), *stream.feed(data[cut:])]
                stream.finish()
                self.assertEqual(frames, expected, (name, cut))

    def test_every_truncation(self) -> None:
        """A small file of every encoding that lacks its end gives no wrong frame and an error."""
        for name, encoding in ENCODINGS.items():
            if encoding.side:
                continue
            path = self.folder / name
            multi_frame(path, 3, 5, 5, name)
            data, expected = path.read_bytes(), stored_frames(path)
            # Only pad bytes, which no frame needs, and what deflate itself wants at its end may be missing.
            spare = 8 if name == "deflated" else 1
            for length in range(first_of_interest(name, data), len(data) - spare):
                stream = Part10Stream()
                frames = stream.feed(data[:length])
                self.assertEqual(frames, expected[: len(frames)])
                self.assertRaises(BadPart10, stream.finish)

    def test_wsidicom_data(self) -> None:
        """Every encoded tile of wsidicom-data, wrapped as a file of three frames, in one and in two fragments each."""
        for path in sorted(ENCODED.iterdir()):
            uid, tile = expected_of(path.name), path.read_bytes()
            if uid is None:
                continue
            tile += b"\0" * (len(tile) % 2)
            half = len(tile) // 4 * 2
            for items, table in [
                ([tile] * 3, b""),
                ([tile] * 3, struct.pack("<3L", *(n * (len(tile) + 8) for n in range(3)))),
                ([tile[:half], tile[half:]] * 3, struct.pack("<3L", *(n * (len(tile) + 16) for n in range(3)))),
            ]:
                data = encapsulated(items, 3, table, uid)
                dataset = pydicom.dcmread(io.BytesIO(data))
                expected = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=3))
                self.assertEqual(expected, [tile] * 3)
                self.assertEqual(read(data, 4000), expected, path.name)

    def test_wsidicom_data_native(self) -> None:
        """The native tiles of wsidicom-data, wrapped in their own transfer syntax."""
        for path in sorted(ENCODED.glob("*.raw")):
            name, _, bits = path.stem.replace("-", " ").split()
            uid = {"Implicit": ts.IMPLICIT_VR_LITTLE_ENDIAN, "Explicit": ts.EXPLICIT_VR_LITTLE_ENDIAN}[name[:8]]
            uid = ts.EXPLICIT_VR_BIG_ENDIAN if "Big" in name else uid
            tile, samples = path.read_bytes(), 3 if "RGB" in path.name else 1
            side = int((len(tile) * 8 // int(bits) // samples) ** 0.5)
            sizes = {"Rows": side, "Columns": side, "SamplesPerPixel": samples, "BitsAllocated": int(bits)}
            head = header(uid, NumberOfFrames=2, **sizes)
            order, vr = (">", b"") if "Big" in name else ("<", b"")
            vr = b"" if "Implicit" in name else b"OW\0\0"
            pixels = struct.pack(f"{order}HH", 0x7FE0, 0x10) + vr + struct.pack(f"{order}L", 2 * len(tile)) + 2 * tile
            if "Big" in name:  # both 8-bit and 16-bit samples lie in words
                tile = numpy.frombuffer(tile, "u2").byteswap().tobytes()
            self.assertEqual(read(head + pixels, 5000), [tile] * 2, path.name)

    def test_big_endian(self) -> None:
        """Frames come out in little endian, whatever the size of samples and wherever a frame begins."""
        random = numpy.random.default_rng(1)
        for vr, bits, kind, samples in (
            ("OB", 8, "u1", 3), ("OW", 8, "u1", 1), ("OW", 16, "u2", 1), ("OW", 32, "u4", 1), ("OV", 64, "u8", 1),
        ):  # fmt: skip
            frames = random.integers(0, 256, (3, 5 * 7 * samples * bits // 8), numpy.uint8)
            value = frames.tobytes() + bytes(frames.size % 2)
            stored = numpy.frombuffer(value, "u2" if (vr, bits) == ("OW", 8) else kind).byteswap().tobytes()
            sizes = {"Rows": 5, "Columns": 7, "SamplesPerPixel": samples, "BitsAllocated": bits}
            head = header(ts.EXPLICIT_VR_BIG_ENDIAN, NumberOfFrames=3, **sizes)
            element = struct.pack(">HH2sxxL", 0x7FE0, 0x10, vr.encode(), len(stored))
            for cut in (1, 7, 5000):
                self.assertEqual(read(head + element + stored, cut), [frame.tobytes() for frame in frames], (vr, bits))

    def test_another_codec(self) -> None:
        """Frames of another codec than the file's transfer syntax names are refused; another process of it is not."""
        made = slide(self.folder / "slide", 1, 2, 32, "jpeg")
        stored = stored_frames(made.path)
        items = [one + bytes(len(one) % 2) for one in stored]
        for uid in (ts.JPEG_2000, ts.JPEG_LS_LOSSLESS, ts.RLE_LOSSLESS, ts.JPEG_XL):
            self.assertRaises(BadPart10, read, encapsulated(items, 2, uid=uid), 5000)
        for uid in (ts.JPEG_BASELINE, ts.JPEG_EXTENDED):
            self.assertEqual(read(encapsulated(items, 2, uid=uid), 5000), items)

    def test_samples_that_are_all_there(self) -> None:
        """Data that say YBR_FULL_422 and are not subsampled are cut by the length that there is, or refused."""
        sizes = {"Rows": 4, "Columns": 6, "SamplesPerPixel": 3, "BitsAllocated": 8}
        for frames, samples in ((1, 2), (1, 3), (5, 2), (5, 3)):
            size = 4 * 6 * samples
            value = bytes(number for number in range(frames) for _ in range(size))
            said = {"NumberOfFrames": frames, "PhotometricInterpretation": "YBR_FULL_422", **sizes}
            head = header(ts.EXPLICIT_VR_LITTLE_ENDIAN, **said)
            element = struct.pack("<HH2sxxL", 0x7FE0, 0x10, b"OB", len(value))
            found = read(head + element + value, 5000)
            self.assertEqual(found, [bytes([number]) * size for number in range(frames)])
            for wrong in (len(value) - 2, len(value) + 4):
                element = struct.pack("<HH2sxxL", 0x7FE0, 0x10, b"OB", wrong)
                self.assertRaises(BadPart10, read, head + element + value + bytes(4), 5000)

    def test_facts(self) -> None:
        """Once the pixel data begins, the stream knows what the metadata would say."""
        path = self.folder / "slide"
        for encoding in ("jpeg", "implicit", "big-endian", "deflated"):
            slide(path, 2, 3, 32, encoding, focal_planes=2, icc_profile=False, sparse=True)
            stream = Part10Stream()
            stream.feed(path.read_bytes())
            self.assertEqual(stream.metadata, InstanceMetadata.from_dataset(pydicom.dcmread(path)))
            self.assertEqual(stream.transfer_syntax, ENCODINGS[encoding].transfer_syntax)
            self.assertTrue(stream.complete)

    def test_frames_come_at_once(self) -> None:
        """A frame is given with its last byte, not with the next frame's first."""
        for items, table in [
            ([frame(b"1"), frame(b"2")], b""),
            ([frame(b"1"), frame(b"2")], struct.pack("<2L", 0, 18)),
        ]:
            data = encapsulated(items, 2, table)
            stream = Part10Stream()
            end = data.index(ts.END_OF_IMAGE) + 2
            self.assertEqual(stream.feed(data[: end - 1]), [])
            self.assertEqual(stream.feed(data[end - 1 : end]), items[:1])


class BeforeThePixels(SynchronousTestCase):
    def nested(self, depth: int) -> Dataset:
        inner = Dataset()
        inner.NumberOfFrames, inner.Rows = 77, 77
        for _ in range(depth):
            outer = Dataset()
            outer.ReferencedImageSequence = Items([inner, inner])
            outer["ReferencedImageSequence"].is_undefined_length = True
            for each in outer.ReferencedImageSequence:
                each.is_undefined_length_sequence_item = True
            inner = outer
        return inner

    def test_nested_sequences(self) -> None:
        """What stands in nested sequences, of undefined length or not, is no fact of the instance."""
        for uid in (ts.IMPLICIT_VR_LITTLE_ENDIAN, ts.EXPLICIT_VR_LITTLE_ENDIAN):
            dataset = self.nested(4)
            pixels = header(uid, NumberOfFrames=2, ReferencedImageSequence=dataset.ReferencedImageSequence)
            vr = b"" if uid == ts.IMPLICIT_VR_LITTLE_ENDIAN else b"OB\0\0"
            data = pixels + b"\xe0\x7f\x10\0" + vr + struct.pack("<L", 18) + bytes(range(18))
            for size in (1, 5, 1000):
                self.assertEqual(read(data, size), [bytes(range(9)), bytes(range(9, 18))])

    def test_pixels_in_a_sequence(self) -> None:
        """An icon's encapsulated pixels and a sequence of unknown VR are passed over."""
        head = header(NumberOfFrames=1)
        icon = b"\x88\0\0\2SQ\0\0" + UNDEFINED + ITEM + UNDEFINED
        icon += (
            b"\xe0\x7f\x10\0OB\0\0" + UNDEFINED + item(b"") + item(b"icon") + END + b"\xfe\xff\x0d\xe0\0\0\0\0" + END
        )
        unknown = b"\x99\0\1\0UN\0\0" + UNDEFINED + ITEM + UNDEFINED  # implicit VR inside
        unknown += b"\x28\0\x08\0\2\0\0\0" + b"7 " + b"\xfe\xff\x0d\xe0\0\0\0\0" + END
        data = head + icon + unknown + b"\xe0\x7f\x10\0OB\0\0" + UNDEFINED + item(b"") + item(frame(b"real")) + END
        for size in (1, 7, 1000):
            self.assertEqual(read(data, size), [frame(b"real")])

    def test_too_deep(self) -> None:
        """Endless nesting is refused."""
        level = b"\x08\0\x40\x11SQ\0\0" + UNDEFINED + ITEM + UNDEFINED
        Part10Stream().feed(header() + level * (MAX_DEPTH // 2))
        self.assertRaises(BadPart10, Part10Stream().feed, header() + level * (MAX_DEPTH // 2 + 1))

    def test_sequences_out_of_order(self) -> None:
        """An element between items and a delimiter outside of them are refused where they stand."""
        start = header() + b"\x08\0\x40\x11SQ\0\0" + UNDEFINED
        for nonsense in (b"\x28\0\x10\0US\2\0\5\0", b"\xfe\xff\x0d\xe0\0\0\0\0", ITEM + UNDEFINED + END):
            self.assertRaises(BadPart10, Part10Stream().feed, start + nonsense)
        for nonsense in (ITEM + UNDEFINED, END, b"\xfe\xff\x0d\xe0\0\0\0\0"):
            self.assertRaises(BadPart10, Part10Stream().feed, header() + nonsense)

    def test_large_values_are_skipped(self) -> None:
        """A private value of 100 kB costs nothing but its passing."""
        data = header(NumberOfFrames=1) + b"\x99\0\1\0OB\0\0" + struct.pack("<L", 100_000) + b"x" * 100_000
        data += b"\xe0\x7f\x10\0OB\0\0" + UNDEFINED + item(b"") + item(frame(b"f")) + END
        for size in (999, 1 << 20):
            self.assertEqual(read(data, size), [frame(b"f")])

    def test_no_group_length(self) -> None:
        """A wrong or missing length of the meta information harms no data set that has tags."""
        data = encapsulated([frame(b"f")], 1)
        wrong = data[:140] + struct.pack("<L", 3) + data[144:]
        missing = data[:132] + data[144:]
        for each in (wrong, missing):
            self.assertEqual(read(each, 50), [frame(b"f")])

    def test_no_dicom(self) -> None:
        """Other files, broken meta information and unknown transfer syntaxes are refused early."""
        good = encapsulated([frame(b"f")], 1)
        for data in (
            b"<html>" * 50,
            good[:132] + b"\2\0\0\0??" + good[138:],
            good[:132] + good[132:].replace(b"\2\0\x10\0UI", b"\2\0\x11\0UI"),
            good.replace(ts.JPEG_BASELINE.encode(), b"1.2.840.10008.1.2.4.99"),
            good[:132] + b"\2\0\x02\1OB\0\0" + struct.pack("<L", MAX_META_BYTES + 1) + b"x" * 1000,
        ):
            self.assertRaises(BadPart10, Part10Stream().feed, data)
            self.assertRaises(BadPart10, read, data, 64)

    def test_deflated_bytes_that_look_like_meta_information(self) -> None:
        """A deflated data set may begin with what looks like group 2: the group's length says where it begins."""
        path = Path(self.mktemp())
        multi_frame(path, 3, 5, 5, "deflated")
        data = path.read_bytes()
        begin = 144 + struct.unpack("<L", data[140:144])[0]
        # An empty block of fixed codes, then an empty stored block: both inflate to nothing (RFC 1951 section 3.2.3).
        data = data[:begin] + b"\2\0\0\0\xff\xff" + data[begin:]
        for size in (1, 1000):
            self.assertEqual(read(data, size), stored_frames(path))


class ExtendedOffsetTables(SynchronousTestCase):
    """Frames of an Extended Offset Table end where its lengths say (PS3.3 section C.7.6.3.1.8)."""

    odd = [frame(b"1", 9), frame(b"2", 8), frame(b"3", 13), frame(b"4", 5)]  # 11, 10, 15 and 7 bytes

    def assert_frames(self, data: bytes, expected: list[bytes]) -> None:
        for size in (1, 7, 1000):
            self.assertEqual(read(data, size), expected)

    def test_odd_frames(self) -> None:
        """The pad byte that makes an item even is no part of the frame, the last one's and an only one's neither."""
        for uid in (ts.JPEG_BASELINE, ts.RLE_LOSSLESS, ts.JPEG_XL):
            for frames in (self.odd, self.odd[:1], self.odd[1:2]):
                data = extended(frames, uid=uid)
                self.assert_frames(data, frames)
                self.assertEqual(by_pydicom(data), frames)

    def test_pad_bytes_without_it(self) -> None:
        """With a Basic Offset Table or with none the pad byte stays, as with pydicom."""
        items = [each + b"\0" * (len(each) % 2) for each in self.odd]
        for table in (b"", struct.pack("<4L", 0, 20, 38, 62)):
            data = encapsulated(items, 4, table)
            self.assert_frames(data, items)
            self.assertEqual(by_pydicom(data), items)

    def test_end_marks_within(self) -> None:
        """It decides, not what a frame ends with."""
        frames = [b"no end", frame(b"1") + b"after", ts.END_OF_IMAGE * 3 + b"x"]
        self.assert_frames(extended(frames), frames)

    def test_basic_table_beside_it(self) -> None:
        """It goes before a Basic Offset Table, which must be empty, but not everywhere is."""
        self.assert_frames(extended(self.odd, basic=bytes(16)), self.odd)

    def test_every_length(self) -> None:
        """A length that its item cannot have is an error; none is cut shorter than by a pad byte."""
        for wrong in (0, 1, 13, 14, 20, 1 << 40, (1 << 64) - 1):
            for place in range(3):
                lengths = [14, 14, 14]
                lengths[place] = wrong
                data = extended([b"x" * 14] * 3, lengths=lengths)
                if wrong in (13, 14):
                    self.assertEqual([len(each) for each in read(data)], lengths)
                else:
                    self.assertRaises(BadPart10, read, data)
                    self.assertRaises(BadPart10, read, data, 1)

    def test_offsets_that_lie(self) -> None:
        """An offset into a fragment or past the end is an error."""
        for offsets in ([0, 19, 38, 62], [0, 20, 38, 61], [0, 20, 38, 1 << 40]):
            self.assertRaises(BadPart10, read, extended(self.odd, offsets=offsets))

    def test_not_believed(self) -> None:
        """Without its lengths, with too few, or where it does not ascend, the fragments decide: pad bytes stay."""
        items = [each + b"\0" * (len(each) % 2) for each in self.odd]
        for data in (
            extended(self.odd, lengths=[]),
            extended(self.odd, lengths=[11, 10, 15]),
            extended(self.odd, offsets=[0, 20, 38]),
            extended(self.odd, offsets=[0, 20, 20, 62]),
            extended(self.odd, offsets=[0, 0, 0, 0]),
            extended(self.odd, offsets=[8, 20, 38, 62]),
        ):
            self.assert_frames(data, items)

    def test_fragmented(self) -> None:
        """A frame in several fragments, which the standard forbids here, has the length of all of them together."""
        table = (struct.pack("<2Q", 0, 24), struct.pack("<2Q", 7, 3))
        data = encapsulated([b"abcd", b"efg\0", b"hij\0"], 2, extended_table=table)
        self.assert_frames(data, [b"abcdefg", b"hij"])


class HowFramesEnd(SynchronousTestCase):
    def test_offset_table_of_zeros(self) -> None:
        """A table that was reserved and never filled is not believed: the fragments decide."""
        items = [frame(b"1"), frame(b"2"), frame(b"3")]
        self.assertEqual(read(encapsulated(items, 3, bytes(12))), items)

    def test_offset_table_that_wraps(self) -> None:
        """From where the offsets go down, past 4 GiB, the fragments decide."""
        items = [b"no end mark.", b"more", frame(b"2"), b"part", frame(b"3"), frame(b"4")]
        table = struct.pack("<4L", 0, 32, 4, 60)
        joined = [b"no end mark.more", frame(b"2"), b"part" + frame(b"3"), frame(b"4")]
        self.assertEqual(read(encapsulated(items, 4, table)), joined)

    def test_offset_table_of_another_count(self) -> None:
        """A table with another number of frames than the data set's is not believed."""
        items = [frame(b"1"), frame(b"2")]
        self.assertEqual(read(encapsulated(items, 2, struct.pack("<3L", 0, 18, 36))), items)

    def test_offset_table_that_lies(self) -> None:
        """A table that places a frame inside a fragment is an error."""
        data = encapsulated([frame(b"1"), frame(b"2")], 2, struct.pack("<2L", 0, 10))
        self.assertRaises(BadPart10, Part10Stream().feed, data[:-20])

    def test_offset_table_decides(self) -> None:
        """An end mark in the middle of a frame doesn't end it where a table says otherwise."""
        items = [frame(b"1"), frame(b"still 1"), frame(b"2"), frame(b"still 2")]
        table = struct.pack("<2L", 0, 36)
        self.assertEqual(read(encapsulated(items, 2, table)), [items[0] + items[1], items[2] + items[3]])

    def test_empty_frames(self) -> None:
        """A frame may have no byte where an offset table says so, the last one too; elsewhere an empty item is no frame."""
        items = [frame(b"1"), b"", frame(b"3"), b""]
        size = len(items[0]) + 8
        table = struct.pack("<4L", 0, size, size + 8, 2 * size + 8)
        self.assertEqual(read(encapsulated(items, 4, table)), items)
        self.assertEqual(read(encapsulated([b"", items[0]], 2, struct.pack("<2L", 0, 8))), [b"", items[0]])
        for bad, count in ((items, 4), ([b""], 1), ([b"", b""], 2)):
            self.assertRaises(BadPart10, read, encapsulated(bad, count))

    def test_pad_bytes_after_the_end_mark(self) -> None:
        """Pad bytes after the end mark stay with the frame and don't hide its end."""
        items = [frame(b"1") + b"\0", frame(b"2") + b"\0\0\0", b"3", frame(b"3") + b"\0"]
        self.assertEqual(read(encapsulated(items, 3)), [items[0], items[1], items[2] + items[3]])

    def test_end_mark_across_fragments(self) -> None:
        """An end mark may be cut in two by fragments."""
        items = [frame(b"1")[:-1], frame(b"1")[-1:], frame(b"2")]
        self.assertEqual(read(encapsulated(items, 2)), [frame(b"1"), frame(b"2")])

    def test_end_mark_as_far_back_as_pydicom_looks(self) -> None:
        """Whatever stands in the last ten bytes with the end mark, the frame ends there; a mark further back is none."""
        mark, rest = ts.END_OF_IMAGE, b"." * 8
        items = [b"1.", b"1." + mark + rest, b"2." + mark + rest + b"..", b"2." + mark]
        data = encapsulated(items, 2)
        self.assertEqual(read(data), [items[0] + items[1], items[2] + items[3]])
        self.assertEqual(read(data), by_pydicom(data))

    def test_one_frame(self) -> None:
        """All fragments of a single frame are its own, whatever they end with."""
        items = [frame(b"1"), frame(b"2"), b"rest"]
        self.assertEqual(read(encapsulated(items, 1)), [b"".join(items)])

    def test_wrong_number_of_frames(self) -> None:
        """Too many and too few frames are an error, as is one without an end."""
        for items, count in [
            ([frame(b"1"), frame(b"2"), frame(b"3")], 2),
            ([frame(b"1"), frame(b"2")], 3),
            ([frame(b"1"), b"2"], 2),
            ([frame(b"1"), b""], 2),
            ([], 1),
            ([b""], 1),
        ]:
            self.assertRaises(BadPart10, read, encapsulated(items, count))
            self.assertRaises(BadPart10, read, encapsulated(items, count), 1)
        self.assertRaises(BadPart10, read, encapsulated([b"1", b"", b"3"], 3, uid=ts.RLE_LOSSLESS))

    def test_encapsulated_uncompressed(self) -> None:
        """Uncompressed frames in fragments end when they have all their bytes."""
        items = [b"12345678", b"9\0", b"abcdefghi\0"]
        data = encapsulated(items, 2, uid=ts.ENCAPSULATED_UNCOMPRESSED)
        self.assertEqual(read(data), [b"123456789\0", b"abcdefghi\0"])

    def native(self, frames: int, value: bytes, **attributes: object) -> bytes:
        head = header(ts.EXPLICIT_VR_LITTLE_ENDIAN, NumberOfFrames=frames, **attributes)
        return head + b"\xe0\x7f\x10\0OB\0\0" + struct.pack("<L", len(value)) + value

    def test_native_frames_of_odd_size(self) -> None:
        """Frames of nine bytes lie side by side; the pad byte at the end is no part of any."""
        value = bytes(range(27)) + b"\0"
        expected = [value[:9], value[9:18], value[18:27]]
        for size in (1, 4, 10, 1000):
            self.assertEqual(read(self.native(3, value), size), expected)

    def test_native_length_that_disagrees(self) -> None:
        """Pixel data for fewer or for more frames than there are is an error before the first frame."""
        for length in (26, 36, 40, 0):
            self.assertRaises(BadPart10, Part10Stream().feed, self.native(3, bytes(length)))

    def test_native_sixteen_bits_and_subsampling(self) -> None:
        """Bits allocated and chrominance that pixels share count."""
        self.assertEqual(len(read(self.native(2, bytes(36), BitsAllocated=16))[0]), 18)
        full = self.native(2, bytes(48), Rows=2, Columns=4, SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL_422")
        self.assertEqual(read(full), [bytes(24)] * 2)
        data = self.native(2, bytes(32), Rows=2, Columns=4, SamplesPerPixel=3, PhotometricInterpretation="YBR_FULL_422")
        self.assertEqual(len(read(data)[0]), 16)

    def test_one_bit(self) -> None:
        """1-bit pixels and video say that frames cannot be told apart."""
        error = self.assertRaises(NotByFrame, read, self.native(2, bytes(4), BitsAllocated=1))
        self.assertIn("1-bit", str(error))
        self.assertRaises(NotByFrame, read, encapsulated([b"video"], 9, uid="1.2.840.10008.1.2.4.102"))

    def test_pixel_data_of_the_wrong_kind(self) -> None:
        """Native pixels in a compressed syntax, encapsulated ones in a native, and none at all are errors."""
        good = encapsulated([frame(b"f")], 1)
        self.assertRaises(BadPart10, read, good.replace(UNDEFINED, b"\x20\0\0\0"))
        self.assertRaises(BadPart10, read, encapsulated([b"123456789\0"], 1, uid=ts.EXPLICIT_VR_LITTLE_ENDIAN))
        self.assertRaises(BadPart10, read, header())


class HostileStreams(SynchronousTestCase):
    def test_claims_are_refused_before_they_are_waited_for(self) -> None:
        """A fragment, a table, a frame or a value that claims gigabytes ends the stream at once."""
        huge = struct.pack("<L", 1 << 30)
        start = header(NumberOfFrames=2) + b"\xe0\x7f\x10\0OB\0\0" + UNDEFINED
        native = header(ts.EXPLICIT_VR_LITTLE_ENDIAN, NumberOfFrames=1, Rows=65535, Columns=65535)
        for data in (
            start + ITEM + huge,
            start + item(b"") + ITEM + huge,
            start + item(b"") + ITEM + UNDEFINED,
            start + item(b"") + item(b"x" * 600) * 2,
            native + b"\xe0\x7f\x10\0OB\0\0" + struct.pack("<L", 65535 * 65535),
            header(NumberOfFrames=2) + b"\xe0\x7f\x01\0OV\0\0" + huge,
            header(NumberOfFrames=2) + b"\x28\0\x08\0IS\xff\xff",
        ):
            self.assertRaises(BadPart10, Part10Stream(1000).feed, data)

    def test_many_small_fragments(self) -> None:
        """A frame that never ends is given up at the limit, however small its fragments."""
        stream = Part10Stream(1000)
        stream.feed(header(NumberOfFrames=2) + b"\xe0\x7f\x10\0OB\0\0" + UNDEFINED + item(b""))
        with self.assertRaises(BadPart10):
            for _ in range(1100):
                stream.feed(item(b"x"))

    def test_deflate_bomb(self) -> None:
        """A deflated file that inflates a thousandfold comes in pieces of a bounded size."""
        head = header(ts.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, Rows=100, Columns=100, NumberOfFrames=10_000)
        plain = header(ts.EXPLICIT_VR_LITTLE_ENDIAN, Rows=100, Columns=100, NumberOfFrames=10_000)
        body = plain[plain.index(b"\x08\0\x16\0") :]
        body += b"\xe0\x7f\x10\0OB\0\0" + struct.pack("<L", 100_000_000)
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        data = head[: head.index(b"\2\0\0\0UL") + 12]
        data += head[len(data) :][: struct.unpack("<L", data[-4:])[0]]
        data += deflate.compress(body) + b"".join(deflate.compress(bytes(1_000_000)) for _ in range(100))
        data += deflate.flush()
        stream = Part10Stream()
        sizes = [sum(map(len, batch)) for batch in stream.batches(data)]
        stream.finish()
        self.assertEqual(sum(sizes), 100_000_000)
        self.assertLessEqual(max(sizes), INFLATED_BYTES + 10_000)

    @settings(max_examples=400)
    @given(st.data())
    def test_changed_files(self, data: st.DataObject) -> None:
        """Files with bytes changed, cut out or put in give frames or `BadPart10`, the same for every cut."""
        uid = data.draw(st.sampled_from([ts.JPEG_BASELINE, ts.RLE_LOSSLESS]))
        file = bytearray(encapsulated([frame(b"1"), b"22", frame(b"2"), frame(b"3") + b"\0"], 3, uid=uid))
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(128, len(file)))
            new = data.draw(st.binary(max_size=4) | st.sampled_from([UNDEFINED, ITEM, END, bytes(8)]))
            file[place : place + data.draw(st.integers(0, 8))] = new

        def outcome(size: int) -> object:
            try:
                return read(bytes(file), size, 1000)
            except BadPart10:
                return "bad"

        self.assertEqual(outcome(data.draw(st.integers(1, 50))), outcome(len(file)))

    @settings(max_examples=200)
    @given(
        st.sampled_from([header(), header(ts.IMPLICIT_VR_LITTLE_ENDIAN), header(ts.EXPLICIT_VR_BIG_ENDIAN)]),
        st.binary(),
    )
    def test_garbage(self, start: bytes, garbage: bytes) -> None:
        """Whatever follows the beginning of a file, nothing but `BadPart10` comes of it."""
        self.assertRaises(BadPart10, read, start + garbage, 10, 1000)

    def test_garbage_from_the_start(self) -> None:
        """No file at all, or a deflated one of garbage, is refused."""
        head = header(ts.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)
        for data in (b"", b"\0" * 5000, bytes(128) + b"DICM" + b"\xff" * 5000, head[:200] + b"\xff" * 500):
            self.assertRaises(BadPart10, read, data, 100)


class Speed(SynchronousTestCase):
    def test_ten_thousand_frames(self) -> None:
        """87 MB of 8.7 kB frames in 512 kB chunks; 10 ms, of which this test forgives twenty times."""
        frames = [frame(b"%d" % number, 8698) for number in range(10)] * 1000
        data = encapsulated(frames, 10_000)
        chunks = [data[start : start + 524288] for start in range(0, len(data), 524288)]
        stream = Part10Stream()
        started = time.process_time()
        count = sum(len(stream.feed(chunk)) for chunk in chunks)
        stream.finish()
        self.assertEqual(count, 10_000)
        self.assertLess(time.process_time() - started, 0.2)

    def test_one_large_frame(self) -> None:
        """A frame of 64 MB that comes in 16 kB chunks is not joined anew for each of them."""
        value = bytes(8192 * 8192)
        head = header(ts.EXPLICIT_VR_LITTLE_ENDIAN, NumberOfFrames=1, Rows=8192, Columns=8192)
        data = head + b"\xe0\x7f\x10\0OB\0\0" + struct.pack("<L", len(value)) + value
        started = time.process_time()
        self.assertEqual(len(read(data, 16384)[0]), len(value))
        self.assertLess(time.process_time() - started, 1.0)
