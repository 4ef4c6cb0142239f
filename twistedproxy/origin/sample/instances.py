"""The levels as VL Whole Slide Microscopy Images (DICOM PS3.3 section A.32.8)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import ImageCms
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from twistedproxy.dicom.transfer_syntaxes import JPEG_BASELINE
from twistedproxy.origin.sample.slide import BASE_SPACING, LEVELS, SERIES, STUDY, TILE, SampleLevel, uid

_DATE, _TIME = "20260101", "120000"
_THICKNESS = 0.005  # mm: an ordinary section


def write_level(folder: Path, level: SampleLevel, frames: Sequence[bytes]) -> Path:
    """Write the file of one level; its path."""
    image_type = ["DERIVED", "PRIMARY", "VOLUME", "NONE" if level.number == 1 else "RESAMPLED"]
    data = _dataset(**_patient_to_equipment(), **_slide(level, image_type), **_image(level, frames))
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = UID(JPEG_BASELINE)
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    path = folder / level.file_name
    data.save_as(path, enforce_file_format=True)
    return path


def _dataset(**attributes: Any) -> Dataset:
    data = Dataset()
    for keyword, value in attributes.items():
        setattr(data, keyword, value)
    return data


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    return _dataset(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _patient_to_equipment() -> dict[str, Any]:
    kinds = ("Study", "Series", "Content", "Acquisition")
    return {
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.6",
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": SERIES,
        "FrameOfReferenceUID": uid("frame of reference"),
        "PatientName": "SAMPLE^SLIDE",
        "PatientID": "SAMPLE",
        **dict.fromkeys(("PatientBirthDate", "PatientSex", "AccessionNumber"), ""),
        **dict.fromkeys(("ReferringPhysicianName", "PositionReferenceIndicator"), ""),
        **{f"{kind}Date": _DATE for kind in kinds},
        **{f"{kind}Time": _TIME for kind in kinds},
        "AcquisitionDateTime": _DATE + _TIME,
        "StudyID": "1",
        "SeriesNumber": "1",
        "StudyDescription": "Painted by twistedproxy: no patient's tissue",
        "SeriesDescription": "Sample slide, haematoxylin and eosin",
        "Modality": "SM",
        "Manufacturer": "twistedproxy",
        "ManufacturerModelName": "twistedproxy",
        "DeviceSerialNumber": "1",
        "SoftwareVersions": "1",
    }


def _slide(level: SampleLevel, image_type: list[str]) -> dict[str, Any]:
    shared = _dataset(
        PixelMeasuresSequence=[_dataset(PixelSpacing=[f"{level.spacing:g}"] * 2, SliceThickness=f"{_THICKNESS:g}")],
        WholeSlideMicroscopyImageFrameTypeSequence=[_dataset(FrameType=image_type)],
        OpticalPathIdentificationSequence=[_dataset(OpticalPathIdentifier="1")],
    )
    optical_path = _dataset(
        OpticalPathIdentifier="1",
        OpticalPathDescription="Brightfield",
        IlluminationTypeCodeSequence=[_code("111744", "DCM", "Brightfield illumination")],
        IlluminationColorCodeSequence=[_code("414298005", "SCT", "Full Spectrum")],
        ObjectiveLensPower="20",
        ICCProfile=srgb_profile(),
        ColorSpace="SRGB",
    )
    specimen = _dataset(
        SpecimenIdentifier="SAMPLE-1",
        SpecimenUID=uid("specimen"),
        IssuerOfTheSpecimenIdentifierSequence=[],
        SpecimenPreparationSequence=[],
    )
    corner = _dataset(XOffsetInSlideCoordinateSystem="20", YOffsetInSlideCoordinateSystem="40")
    return {
        "SOPInstanceUID": level.sop,
        "InstanceNumber": level.number,
        "ImageType": image_type,
        "VolumetricProperties": "VOLUME",
        **dict.fromkeys(("SpecimenLabelInImage", "BurnedInAnnotation", "ExtendedDepthOfField"), "NO"),
        "FocusMethod": "AUTO",
        "TotalPixelMatrixColumns": level.columns * TILE,
        "TotalPixelMatrixRows": level.rows * TILE,
        "TotalPixelMatrixFocalPlanes": 1,
        "ImagedVolumeWidth": LEVELS[0].columns * TILE * BASE_SPACING,
        "ImagedVolumeHeight": LEVELS[0].rows * TILE * BASE_SPACING,
        "ImagedVolumeDepth": _THICKNESS * 1000,  # um, unlike the others (PS3.3 table C.8.12.4-1)
        "TotalPixelMatrixOriginSequence": [corner],
        "ImageOrientationSlide": ["0", "-1", "0", "-1", "0", "0"],
        "DimensionOrganizationType": "TILED_FULL",
        "DimensionOrganizationSequence": [_dataset(DimensionOrganizationUID=uid("dimensions"))],
        "SharedFunctionalGroupsSequence": [shared],
        "NumberOfOpticalPaths": 1,
        "OpticalPathSequence": [optical_path],
        "ContainerIdentifier": "SAMPLE-1",
        "ContainerTypeCodeSequence": [_code("433466003", "SCT", "Microscope slide")],
        "IssuerOfTheContainerIdentifierSequence": [],
        "AcquisitionContextSequence": [],
        "SpecimenDescriptionSequence": [specimen],
    }


def srgb_profile() -> bytes:
    """An sRGB profile, of even length. Its date of making (bytes 24 to 36, ICC.1 section 7.2) is a fixed one."""
    profile: bytes = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    dated = profile[:24] + struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + profile[36:]
    return dated + b"\x00" * (len(dated) % 2)


def _image(level: SampleLevel, frames: Sequence[bytes]) -> dict[str, Any]:
    return {
        "NumberOfFrames": len(frames),
        **dict.fromkeys(("Rows", "Columns"), TILE),
        "SamplesPerPixel": 3,
        "PlanarConfiguration": 0,
        "PhotometricInterpretation": "YBR_FULL_422",
        **dict.fromkeys(("BitsAllocated", "BitsStored"), 8),
        "HighBit": 7,
        "PixelRepresentation": 0,
        "LossyImageCompression": "01",
        "LossyImageCompressionMethod": "ISO_10918_1",
        "LossyImageCompressionRatio": f"{level.frames * TILE * TILE * 3 / sum(map(len, frames)):.1f}",
        "PixelData": encapsulate(list(frames), has_bot=True),
    }
