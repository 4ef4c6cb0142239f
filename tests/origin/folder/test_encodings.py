"""Frames of real codestreams, wrapped as DICOM by pydicom and read back by offset."""

from __future__ import annotations

from pathlib import Path

import numpy
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import UID, UID_dictionary, generate_uid
from twisted.trial.unittest import SynchronousTestCase
from wsidicom_data import EncodedTestData

from twistedproxy.origin.folder.frames import FileReader
from twistedproxy.origin.folder.instance_file import read_header

SIDE = 240  # pixels of the test data's frames
FRAMES = 3
_UIDS = {entry[0]: UID(uid) for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax"}


def transfer_syntax(name: str) -> UID:
    """The transfer syntax that a file of the test data is named after."""
    said = name.replace("_", " ").split("-RGB")[0].split("-YBR")[0].split("-GRAYSCALE")[0]
    found = [uid for title, uid in _UIDS.items() if title.replace("Near-lossless", "Near-Lossless").startswith(said)]
    exact = [uid for title, uid in _UIDS.items() if title == said]
    return (exact or found)[0]


def wrapped(source: Path, path: Path, tables: str) -> Dataset:
    """Write *FRAMES* frames, each with a tail of its own, as a DICOM file."""
    _, colour, bits = source.stem.rsplit("-", 2)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    syntax = transfer_syntax(source.stem)
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7.4"
    data.SOPInstanceUID, data.StudyInstanceUID, data.SeriesInstanceUID = (generate_uid() for _ in range(3))
    data.Rows = data.Columns = SIDE
    data.NumberOfFrames = FRAMES
    data.SamplesPerPixel = 1 if colour == "GRAYSCALE" else 3
    data.PhotometricInterpretation = "MONOCHROME2" if colour == "GRAYSCALE" else "RGB"
    data.BitsAllocated = 8 if bits == "8" else 16
    data.BitsStored, data.HighBit, data.PixelRepresentation = int(bits), int(bits) - 1, 0
    frame = source.read_bytes()
    if not syntax.is_encapsulated:
        data.PixelData = b"".join(bytes([number]) + frame[1:] for number in range(FRAMES))
    else:
        # What follows the end of the codestream is still the frame's: distinct frames of different lengths.
        frames = [frame + b"\xff\xd9" * number for number in range(FRAMES)]
        if tables == "extended":
            data.PixelData, data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = encapsulate_extended(frames)
        else:
            data.PixelData = encapsulate(frames, has_bot=tables == "basic")
        data["PixelData"].is_undefined_length = True
    data["PixelData"].VR = "OB" if syntax.is_encapsulated or (bits == "8" and not syntax.is_implicit_VR) else "OW"
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return data


def expected_frames(path: Path) -> list[bytes]:
    data = pydicom.dcmread(path)
    if not data.file_meta.TransferSyntaxUID.is_encapsulated:
        value = data.PixelData
        if not data.file_meta.TransferSyntaxUID.is_little_endian and data["PixelData"].VR == "OW":
            value = numpy.frombuffer(value, "u2").byteswap().tobytes()
        size = len(value) // FRAMES
        return [value[n * size : (n + 1) * size] for n in range(FRAMES)]
    tables = (data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths) if "ExtendedOffsetTable" in data else None
    return list(generate_frames(data.PixelData, number_of_frames=FRAMES, extended_offsets=tables))


class EncodingTests(SynchronousTestCase):
    """Every encoding that the test data hold."""

    def test_all(self) -> None:
        """Frames read by offset are pydicom's, in little endian, whichever offset table the file has."""
        folder = Path(self.mktemp())
        folder.mkdir()
        sources = sorted(EncodedTestData.test_data_path.iterdir())
        self.assertGreater(len(sources), 30)
        seen = set()
        files = FileReader()
        self.addCleanup(files.close)
        for source in sources:
            for tables in ("none", "basic", "extended"):
                path = folder / f"{source.stem}-{tables}.dcm"
                data = wrapped(source, path, tables)
                record = read_header(str(path))
                seen.add(record.common.transfer_syntax)
                self.assertEqual(record.common.transfer_syntax, data.file_meta.TransferSyntaxUID)
                frames = files.read(record, [1, 2, 3])
                self.assertEqual(frames, expected_frames(path), path.name)
        self.assertGreaterEqual(len(seen), 11)
