"""A DICOMweb caching proxy on the Twisted reactor."""

__version__ = "0.1.0"
