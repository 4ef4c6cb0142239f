"""A folder of DICOM files, served as DICOMweb."""
