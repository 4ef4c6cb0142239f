"""The levels as VL Whole Slide Microscopy Images (DICOM PS3.3 section A.32.8)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from PIL import ImageCms
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID

from twistedproxy.dicom.transfer_syntaxes import JPEG_BASELINE
from twistedproxy.origin.sample.slide import BASE_SPACING, LEVELS, SERIES, STUDY, TILE, SampleLevel, uid

_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_DATE, _TIME = "20260101", "120000"
_THICKNESS = 0.005  # mm: an ordinary section
_EMPTY = (
    "PatientBirthDate PatientSex AccessionNumber ReferringPhysicianName PositionReferenceIndicator"
    " IssuerOfTheContainerIdentifierSequence AcquisitionContextSequence"
)


def write_level(folder: Path, level: SampleLevel, frames: Sequence[bytes]) -> Path:
    """Write the file of one level; its path."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = UID(JPEG_BASELINE)
    _patient_to_equipment(data)
    _slide(data, level)
    _pixels(data, level, frames)
    path = folder / level.file_name
    data.save_as(path, enforce_file_format=True)
    return path


def _patient_to_equipment(data: Dataset) -> None:
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID = _WHOLE_SLIDE
    data.StudyInstanceUID, data.SeriesInstanceUID = STUDY, SERIES
    data.PatientName, data.PatientID = "SAMPLE^SLIDE", "SAMPLE"
    for keyword in _EMPTY.split():
        setattr(data, keyword, Items([]) if keyword.endswith("Sequence") else "")
    data.StudyDate = data.SeriesDate = data.ContentDate = data.AcquisitionDate = _DATE
    data.StudyTime = data.SeriesTime = data.ContentTime = data.AcquisitionTime = _TIME
    data.AcquisitionDateTime = _DATE + _TIME
    data.StudyID, data.SeriesNumber = "1", "1"
    data.StudyDescription = "Painted by twistedproxy: no patient's tissue"
    data.SeriesDescription = "Sample slide, haematoxylin and eosin"
    data.Modality = "SM"
    data.Manufacturer = data.ManufacturerModelName = "twistedproxy"
    data.DeviceSerialNumber, data.SoftwareVersions = "1", "1"
    data.FrameOfReferenceUID = uid("frame of reference")


def _slide(data: Dataset, level: SampleLevel) -> None:
    data.SOPInstanceUID = level.sop
    data.InstanceNumber = level.number
    data.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "NONE" if level.number == 1 else "RESAMPLED"]
    data.VolumetricProperties = "VOLUME"
    data.SpecimenLabelInImage = data.BurnedInAnnotation = data.ExtendedDepthOfField = "NO"
    data.FocusMethod = "AUTO"
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = level.columns * TILE, level.rows * TILE
    data.TotalPixelMatrixFocalPlanes = 1
    data.ImagedVolumeWidth = LEVELS[0].columns * TILE * BASE_SPACING
    data.ImagedVolumeHeight = LEVELS[0].rows * TILE * BASE_SPACING
    data.ImagedVolumeDepth = _THICKNESS * 1000  # um, unlike the others (PS3.3 table C.8.12.4-1)
    corner = Dataset()
    corner.XOffsetInSlideCoordinateSystem, corner.YOffsetInSlideCoordinateSystem = "20", "40"
    data.TotalPixelMatrixOriginSequence = Items([corner])
    data.ImageOrientationSlide = ["0", "-1", "0", "-1", "0", "0"]
    data.DimensionOrganizationType = "TILED_FULL"
    organization = Dataset()
    organization.DimensionOrganizationUID = uid("dimensions")
    data.DimensionOrganizationSequence = Items([organization])
    data.SharedFunctionalGroupsSequence = Items([_shared_groups(data, level)])
    data.NumberOfOpticalPaths = 1
    data.OpticalPathSequence = Items([_optical_path()])
    data.ContainerIdentifier = "SAMPLE-1"
    data.ContainerTypeCodeSequence = Items([_code("433466003", "SCT", "Microscope slide")])
    data.SpecimenDescriptionSequence = Items([_specimen()])


def _shared_groups(data: Dataset, level: SampleLevel) -> Dataset:
    measures = Dataset()
    measures.PixelSpacing = [f"{level.spacing:g}"] * 2
    measures.SliceThickness = f"{_THICKNESS:g}"
    frame_type = Dataset()
    frame_type.FrameType = data.ImageType
    path = Dataset()
    path.OpticalPathIdentifier = "1"
    shared = Dataset()
    shared.PixelMeasuresSequence = Items([measures])
    shared.WholeSlideMicroscopyImageFrameTypeSequence = Items([frame_type])
    shared.OpticalPathIdentificationSequence = Items([path])
    return shared


def _optical_path() -> Dataset:
    path = Dataset()
    path.OpticalPathIdentifier = "1"
    path.OpticalPathDescription = "Brightfield"
    path.IlluminationTypeCodeSequence = Items([_code("111744", "DCM", "Brightfield illumination")])
    path.IlluminationColorCodeSequence = Items([_code("414298005", "SCT", "Full Spectrum")])
    path.ObjectiveLensPower = "20"
    path.ICCProfile = srgb_profile()
    path.ColorSpace = "SRGB"
    return path


def srgb_profile() -> bytes:
    """An sRGB profile, of even length. Its date of making (bytes 24 to 36, ICC.1 section 7.2) is a fixed one."""
    profile: bytes = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    dated = profile[:24] + struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + profile[36:]
    return dated + b"\x00" * (len(dated) % 2)


def _specimen() -> Dataset:
    specimen = Dataset()
    specimen.SpecimenIdentifier = "SAMPLE-1"
    specimen.SpecimenUID = uid("specimen")
    specimen.IssuerOfTheSpecimenIdentifierSequence = Items([])
    specimen.SpecimenPreparationSequence = Items([])
    return specimen


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _pixels(data: Dataset, level: SampleLevel, frames: Sequence[bytes]) -> None:
    data.NumberOfFrames = len(frames)
    data.Rows = data.Columns = TILE
    data.SamplesPerPixel, data.PlanarConfiguration = 3, 0
    data.PhotometricInterpretation = "YBR_FULL_422"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.LossyImageCompression = "01"
    data.LossyImageCompressionMethod = "ISO_10918_1"
    data.LossyImageCompressionRatio = f"{level.frames * TILE * TILE * 3 / sum(map(len, frames)):.1f}"
    data.PixelData = encapsulate(list(frames), has_bot=True)
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
