"""Knowledge of DICOM and DICOMweb without I/O: bytes or values in, values out."""
