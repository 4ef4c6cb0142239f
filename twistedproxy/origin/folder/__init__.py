"""A folder of DICOM files, served as DICOMweb."""

from twistedproxy.origin.folder.provider import FolderOrigin, folder_origin

__all__ = ["FolderOrigin", "folder_origin"]
