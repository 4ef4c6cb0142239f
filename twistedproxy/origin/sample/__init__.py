"""The sample slide, served as DICOMweb: something to look at without a store."""
