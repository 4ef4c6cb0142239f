"""DICOMweb stores for tests: one that does what it is told, and real Orthanc."""
