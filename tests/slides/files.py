"""Whole DICOM files: slides (VL Whole Slide Microscopy, PS3.3 section A.32.8) and multi-frames that are none."""

from __future__ import annotations

import datetime
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
import pydicom
from PIL import ImageCms
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, generate_uid

from tests.slides.encodings import ENCODINGS, Encoding
from tests.slides.pixel_data import OffsetTable, extended_table, fragments, write_encapsulated

SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
ULTRASOUND_LOOP_CLASS = "1.2.840.10008.5.1.4.1.1.3.1"
SECONDARY_CAPTURE_LOOP_CLASS = "1.2.840.10008.5.1.4.1.1.7.4"
MICRON = 0.001  # mm
PIXEL_SPACING = 0.5 * MICRON  # mm: 20x


@attrs.frozen
class Made:
    """A file that was written and what is in it. *rows*, *columns* are those of one frame, in pixels."""

    path: Path
    study: str
    series: str
    sop: str
    frames: int
    rows: int
    columns: int
    encoding: Encoding

    @property
    def resource(self) -> str:
        """The DICOMweb resource (PS3.18 section 10.4), no leading slash."""
        return f"studies/{self.study}/series/{self.series}/instances/{self.sop}"

    def stored_frames(self) -> list[bytes]:
        """Each frame's bytes as pydicom reads them from the file."""
        return stored_frames(self.path)


@attrs.frozen
class Pieces:
    """How the pixels lie in the file: which offset table, how many fragments a frame, what follows them."""

    offset_table: OffsetTable = OffsetTable.BASIC
    fragments_per_frame: int = 1
    trailing_padding: int = 0
    """Bytes of Data Set Trailing Padding (FFFC,FFFC) behind the pixels; 0: none."""


def slide(
    path: Path | str,
    rows: int = 3,
    columns: int = 4,
    tile: int | None = None,
    encoding: str = "jpeg",
    offset_table: OffsetTable | str = OffsetTable.BASIC,
    fragments_per_frame: int = 1,
    *,
    tile_rows: int | None = None,
    total_rows: int | None = None,
    total_columns: int | None = None,
    focal_planes: int = 1,
    optical_paths: int = 1,
    sparse: bool = False,
    positions: Iterable[tuple[int, int]] | None = None,
    icc_profile: bool | bytes = True,
    trailing_padding: int = 0,
    study: str | None = None,
    series: str | None = None,
    sop: str | None = None,
    patient: str = "SLIDE",
    extra: dict[str, Any] | None = None,
) -> Made:
    """Write one level of a slide: a grid of *rows* x *columns* frames, each *tile* pixels wide (256) and *tile_rows* high.

    *total_rows*, *total_columns*: size of the total pixel matrix in pixels, where the last frames stand over its edge.
    *focal_planes* and *optical_paths* repeat the grid. *sparse*: TILED_SPARSE, one frame for each of *positions*
    (row, column in the grid, from 0; by default every second place); else TILED_FULL. *icc_profile*: of color
    images, sRGB or the given bytes, an even number. *extra*: attributes by keyword that replace or, with None, remove
    what is written.
    """
    kind = ENCODINGS[encoding]
    width = tile or kind.side or 256
    height = tile_rows or width
    places = list(positions) if positions is not None else [divmod(n, columns) for n in range(rows * columns)]
    if sparse and positions is None:
        places = places[::2]
    count = len(places) * focal_planes * optical_paths
    data = _common(SLIDE_CLASS, study, series, sop, patient, "SM")
    _image(data, kind, count, height, width)
    _slide_module(data, focal_planes, total_rows or rows * height, total_columns or columns * width)
    _optical_paths(data, kind, optical_paths, icc_profile)
    data.DimensionOrganizationType = "TILED_SPARSE" if sparse else "TILED_FULL"
    if sparse:
        _per_frame(data, places, height, width, focal_planes, optical_paths)
    pieces = Pieces(OffsetTable(offset_table), fragments_per_frame, trailing_padding)
    return _write(Path(path), data, kind, count, pieces, extra)


def loop(
    path: Path | str, frames: int = 12, rows: int = 96, columns: int = 128, encoding: str = "raw-gray", **more: Any
) -> Made:
    """Write an ultrasound loop: a multi-frame that is no slide and has no grid. *more*: see `multi_frame`."""
    return multi_frame(path, frames, rows, columns, encoding, sop_class=ULTRASOUND_LOOP_CLASS, modality="US", **more)


def multi_frame(
    path: Path | str,
    frames: int,
    rows: int,
    columns: int,
    encoding: str = "raw",
    *,
    sop_class: str = SECONDARY_CAPTURE_LOOP_CLASS,
    modality: str = "OT",
    pieces: Pieces = Pieces(),
    study: str | None = None,
    series: str | None = None,
    sop: str | None = None,
    patient: str = "LOOP",
    extra: dict[str, Any] | None = None,
) -> Made:
    """Write *frames* frames of *rows* x *columns* pixels, shown one after the other."""
    kind = ENCODINGS[encoding]
    if kind.side:
        rows = columns = kind.side
    data = _common(sop_class, study, series, sop, patient, modality)
    _image(data, kind, frames, rows, columns)
    data.FrameTime = "40"
    data.FrameIncrementPointer = 0x00181063
    return _write(Path(path), data, kind, frames, pieces, extra)


def stored_frames(path: Path | str) -> list[bytes]:
    """Each frame's bytes as pydicom reads them: items joined, pad bytes kept; native frames cut by size."""
    data = pydicom.dcmread(path)
    count = int(data.get("NumberOfFrames", 1))
    if data.file_meta.TransferSyntaxUID.is_encapsulated:
        tables = None
        if "ExtendedOffsetTable" in data:
            tables = (data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths)
        return list(generate_frames(data.PixelData, number_of_frames=count, extended_offsets=tables))
    size = data.Rows * data.Columns * data.SamplesPerPixel * data.BitsAllocated // 8
    return [data.PixelData[n * size : (n + 1) * size] for n in range(count)]


def _common(
    sop_class: str, study: str | None, series: str | None, sop: str | None, patient: str, modality: str
) -> Dataset:
    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID = sop_class
    data.SOPInstanceUID = sop or generate_uid(prefix="2.25.")
    data.StudyInstanceUID = study or generate_uid(prefix="2.25.")
    data.SeriesInstanceUID = series or generate_uid(prefix="2.25.")
    data.PatientName = f"{patient}^TEST"
    data.PatientID = patient
    data.PatientBirthDate = data.PatientSex = data.AccessionNumber = data.ReferringPhysicianName = ""
    data.StudyID = data.SeriesNumber = data.InstanceNumber = "1"
    data.StudyDate = data.SeriesDate = data.ContentDate = data.AcquisitionDate = "20260102"
    data.StudyTime = data.SeriesTime = data.ContentTime = "030405"
    data.AcquisitionDateTime = datetime.datetime(2026, 1, 2, 3, 4, 5).strftime("%Y%m%d%H%M%S")
    data.StudyDescription = "made for a test"
    data.Modality = modality
    data.Manufacturer = data.ManufacturerModelName = "twistedproxy tests"
    data.DeviceSerialNumber = "1"
    data.SoftwareVersions = "1"
    data.BurnedInAnnotation = "NO"
    return data


def _image(data: Dataset, kind: Encoding, frames: int, rows: int, columns: int) -> None:
    data.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    data.NumberOfFrames = frames
    data.Rows, data.Columns = rows, columns
    data.SamplesPerPixel = kind.samples
    data.PhotometricInterpretation = kind.photometric
    if kind.samples > 1:
        data.PlanarConfiguration = 0
    data.BitsAllocated, data.BitsStored, data.HighBit = kind.bits, kind.bits_stored, kind.bits_stored - 1
    data.PixelRepresentation = 0
    data.LossyImageCompression = "01" if kind.lossy else "00"
    if kind.lossy:
        data.LossyImageCompressionMethod = kind.lossy
        data.LossyImageCompressionRatio = "20"
    if kind.samples == 1:
        data.PresentationLUTShape = "IDENTITY"
        data.RescaleIntercept, data.RescaleSlope = "0", "1"


def _slide_module(data: Dataset, focal_planes: int, total_rows: int, total_columns: int) -> None:
    data.FrameOfReferenceUID = generate_uid(prefix="2.25.")
    data.PositionReferenceIndicator = "SLIDE_CORNER"
    data.VolumetricProperties = "VOLUME"
    data.SpecimenLabelInImage = "NO"
    data.FocusMethod = "AUTO"
    data.ExtendedDepthOfField = "NO"
    data.AcquisitionContextSequence = Items([])
    data.ContainerIdentifier = "1"
    data.IssuerOfTheContainerIdentifierSequence = Items([])
    data.ContainerTypeCodeSequence = Items([_code("433466003", "SCT", "Microscope slide")])
    specimen = Dataset()
    specimen.SpecimenIdentifier = "1"
    specimen.SpecimenUID = generate_uid(prefix="2.25.")
    specimen.IssuerOfTheSpecimenIdentifierSequence = Items([])
    specimen.SpecimenPreparationSequence = Items([])
    data.SpecimenDescriptionSequence = Items([specimen])
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = total_rows, total_columns
    data.TotalPixelMatrixFocalPlanes = focal_planes
    data.ImagedVolumeHeight, data.ImagedVolumeWidth = total_rows * PIXEL_SPACING, total_columns * PIXEL_SPACING
    data.ImagedVolumeDepth = focal_planes * 1.0
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = "0"
    data.TotalPixelMatrixOriginSequence = Items([origin])
    data.ImageOrientationSlide = ["0", "-1", "0", "-1", "0", "0"]
    data.SharedFunctionalGroupsSequence = Items([_shared_groups(focal_planes)])
    dimension = Dataset()
    dimension.DimensionOrganizationUID = generate_uid(prefix="2.25.")
    data.DimensionOrganizationSequence = Items([dimension])


def _shared_groups(focal_planes: int) -> Dataset:
    measures = Dataset()
    measures.PixelSpacing = [str(PIXEL_SPACING)] * 2
    measures.SliceThickness = "0.001"
    if focal_planes > 1:
        measures.SpacingBetweenSlices = "0.001"
    frame_type = Dataset()
    frame_type.FrameType = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    shared = Dataset()
    shared.PixelMeasuresSequence = Items([measures])
    shared.WholeSlideMicroscopyImageFrameTypeSequence = Items([frame_type])
    return shared


def _optical_paths(data: Dataset, kind: Encoding, count: int, icc_profile: bool | bytes) -> None:
    paths = []
    for number in range(1, count + 1):
        path = Dataset()
        path.OpticalPathIdentifier = str(number)
        path.OpticalPathDescription = "Brightfield"
        path.IlluminationTypeCodeSequence = Items([_code("111744", "DCM", "Brightfield illumination")])
        path.IlluminationColorCodeSequence = Items([_code("11744", "DCM", "Full Spectrum")])
        path.ObjectiveLensPower = "20"
        if icc_profile and kind.samples == 3:
            path.ICCProfile = icc_profile if isinstance(icc_profile, bytes) else _srgb()
        paths.append(path)
    data.NumberOfOpticalPaths = count
    data.OpticalPathSequence = Items(paths)


def _srgb() -> bytes:
    out: bytes = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return out + b"\x00" * (len(out) % 2)


def _per_frame(
    data: Dataset, places: Sequence[tuple[int, int]], height: int, width: int, planes: int, paths: int
) -> None:
    groups = []
    for path in range(paths):
        for plane in range(planes):
            for row, column in places:
                groups.append(_frame_group(row * height + 1, column * width + 1, plane, path + 1))
    data.PerFrameFunctionalGroupsSequence = Items(groups)


def _frame_group(row: int, column: int, plane: int, path: int) -> Dataset:
    position = Dataset()
    position.XOffsetInSlideCoordinateSystem = f"{(row - 1) * PIXEL_SPACING:.6g}"
    position.YOffsetInSlideCoordinateSystem = f"{(column - 1) * PIXEL_SPACING:.6g}"
    position.ZOffsetInSlideCoordinateSystem = str(plane)
    position.ColumnPositionInTotalImagePixelMatrix = column
    position.RowPositionInTotalImagePixelMatrix = row
    identification = Dataset()
    identification.OpticalPathIdentifier = str(path)
    group = Dataset()
    group.PlanePositionSlideSequence = Items([position])
    group.OpticalPathIdentificationSequence = Items([identification])
    return group


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _write(path: Path, data: Dataset, kind: Encoding, count: int, pieces: Pieces, extra: dict[str, Any] | None) -> Made:
    rows, columns = int(data.Rows), int(data.Columns)
    frames = [kind.encode(number, rows, columns) for number in range(1, count + 1)]
    for keyword, value in (extra or {}).items():
        if value is None:
            delattr(data, keyword)
        else:
            setattr(data, keyword, value)
    if kind.encapsulated:
        cut = [fragments(frame, pieces.fragments_per_frame) for frame in frames]
        _write_encapsulated(path, data, kind, cut, pieces)
    else:
        _write_native(path, data, kind, b"".join(frames), pieces)
    return Made(path, data.StudyInstanceUID, data.SeriesInstanceUID, data.SOPInstanceUID, count, rows, columns, kind)


def _write_encapsulated(path: Path, data: Dataset, kind: Encoding, cut: list[list[bytes]], pieces: Pieces) -> None:
    if pieces.offset_table is OffsetTable.EXTENDED:
        if pieces.fragments_per_frame > 1:
            raise ValueError("with an Extended Offset Table each frame is one fragment (PS3.3 section C.7.6.3.1.8)")
        data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = extended_table(cut)
    with path.open("wb") as file:
        _write_dataset(file, data, kind)
        write_encapsulated(file, cut, basic_offset_table=pieces.offset_table is OffsetTable.BASIC)
        if pieces.trailing_padding:
            size = pieces.trailing_padding + pieces.trailing_padding % 2
            file.write(b"\xfc\xff\xfc\xffOB\x00\x00" + size.to_bytes(4, "little") + b"\x00" * size)


def _write_native(path: Path, data: Dataset, kind: Encoding, pixels: bytes, pieces: Pieces) -> None:
    data.PixelData = pixels + b"\x00" * (len(pixels) % 2)
    data["PixelData"].VR = "OW" if kind.bits == 16 or kind.transfer_syntax == "1.2.840.10008.1.2" else "OB"
    if pieces.trailing_padding:
        data.DataSetTrailingPadding = b"\x00" * (pieces.trailing_padding + pieces.trailing_padding % 2)
    with path.open("wb") as file:
        _write_dataset(file, data, kind)


def _write_dataset(file: Any, data: Dataset, kind: Encoding) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = data.SOPClassUID
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    meta.TransferSyntaxUID = UID(kind.transfer_syntax)
    meta.ImplementationClassUID = UID("2.25.305828488182831875890203105390285383139")
    data.file_meta = meta
    buffer = io.BytesIO()
    dcmwrite(buffer, data, enforce_file_format=True)
    file.write(buffer.getbuffer())
