"""A DICOMweb caching proxy on the Twisted reactor."""
