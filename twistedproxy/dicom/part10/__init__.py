"""DICOM files (PS3.10) read as they arrive: attributes first, then frames."""
