"""Which attributes the index keeps, and at which level a search finds them (DICOM PS3.18 section 10.6.3.3, PS3.3)."""

from __future__ import annotations

from pydicom.datadict import tag_for_keyword


def _tags(keywords: str) -> tuple[str, ...]:
    return tuple(f"{tag_for_keyword(keyword):08X}" for keyword in keywords.split())


STUDY_TAGS = _tags(
    "StudyDate StudyTime AccessionNumber ReferringPhysicianName TimezoneOffsetFromUTC InstitutionName"
    " StudyDescription PatientName PatientID IssuerOfPatientID PatientBirthDate PatientSex PatientAge StudyInstanceUID StudyID"
)
SERIES_TAGS = _tags(
    "SeriesDate SeriesTime Modality Manufacturer StationName SeriesDescription ManufacturerModelName BodyPartExamined"
    " ProtocolName SeriesInstanceUID SeriesNumber FrameOfReferenceUID Laterality PerformedProcedureStepStartDate"
    " PerformedProcedureStepStartTime RequestAttributesSequence ContainerIdentifier"
)
INSTANCE_TAGS = _tags(
    "ImageType SOPClassUID SOPInstanceUID AcquisitionDate AcquisitionTime AcquisitionDateTime ContentDate ContentTime"
    " InstanceNumber NumberOfFrames Rows Columns SamplesPerPixel PhotometricInterpretation PlanarConfiguration BitsAllocated"
    " BitsStored HighBit PixelRepresentation TotalPixelMatrixColumns TotalPixelMatrixRows TotalPixelMatrixFocalPlanes"
    " NumberOfOpticalPaths DimensionOrganizationType VolumetricProperties LossyImageCompression ContentLabel"
)

# What an origin adds of its own (PS3.18 tables 10.6.3-3, -4, -5).
RETRIEVE_URL = "00081190"
AVAILABILITY = "00080056"
AVAILABLE_TRANSFER_SYNTAX = "00083002"
MODALITIES_IN_STUDY = "00080061"
SOP_CLASSES_IN_STUDY = "00080062"
STUDY_SERIES_COUNT = "00201206"
STUDY_INSTANCE_COUNT = "00201208"
SERIES_INSTANCE_COUNT = "00201209"

STUDY_LEVEL = frozenset(STUDY_TAGS) | {
    MODALITIES_IN_STUDY,
    SOP_CLASSES_IN_STUDY,
    STUDY_SERIES_COUNT,
    STUDY_INSTANCE_COUNT,
}
SERIES_LEVEL = frozenset(SERIES_TAGS) | {SERIES_INSTANCE_COUNT}
INSTANCE_LEVEL = frozenset(INSTANCE_TAGS) | {AVAILABLE_TRANSFER_SYNTAX}
ALL_LEVELS = STUDY_LEVEL | SERIES_LEVEL | INSTANCE_LEVEL

INDEXED = frozenset(int(tag, 16) for tag in STUDY_TAGS + SERIES_TAGS + INSTANCE_TAGS)
