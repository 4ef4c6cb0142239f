"""The DICOMweb routes: frames, rendered, metadata, prefetch, status, and passthrough of all else."""
