"""The attributes that searches know without reading a file, by level (DICOM PS3.18 tables 10.6.1-5, 10.6.3-3 to -5).
Tags are eight hexadecimal digits."""

from __future__ import annotations

from pydicom.datadict import tag_for_keyword


def _tags(keywords: str) -> tuple[str, ...]:
    return tuple(f"{tag_for_keyword(keyword):08X}" for keyword in keywords.split())


# What the index takes from files.
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

# What an origin adds of its own.
RETRIEVE_URL, AVAILABILITY = _tags("RetrieveURL InstanceAvailability")
STUDY_COUNTS = _tags("ModalitiesInStudy SOPClassesInStudy NumberOfStudyRelatedSeries NumberOfStudyRelatedInstances")
(SERIES_COUNT,) = _tags("NumberOfSeriesRelatedInstances")
AVAILABLE_TRANSFER_SYNTAX = "00083002"

LEVELS = ("studies", "series", "instances")
UIDS = _tags("StudyInstanceUID SeriesInstanceUID SOPInstanceUID")
SEARCHED = (
    frozenset(STUDY_TAGS + STUDY_COUNTS),
    frozenset((*SERIES_TAGS, SERIES_COUNT)),
    frozenset((*INSTANCE_TAGS, AVAILABLE_TRANSFER_SYNTAX)),
)
"""By level: what results show, and what searches match by."""
SEARCHED_ANYWHERE = frozenset().union(*SEARCHED)
