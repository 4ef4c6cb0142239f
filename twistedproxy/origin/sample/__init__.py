"""The sample slide, served as DICOMweb: something to look at without a store."""

from twistedproxy.origin.sample.slide import LEVELS, SERIES, STUDY, SampleLevel

__all__ = ["LEVELS", "SERIES", "STUDY", "SampleLevel"]
