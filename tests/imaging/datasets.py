"""Facts of pydicom's data sets, by way of their metadata."""

from __future__ import annotations

from pydicom import Dataset

from twistedproxy.imaging.pixel_description import PixelFacts


def facts_of_dataset(dataset: Dataset, frame: int = 1) -> PixelFacts:
    """What a store's metadata of *dataset* say of *frame*."""
    wanted = Dataset(
        {tag: element for tag, element in dataset.items() if tag >> 16 in (0x0028, 0x0048, 0x2050, 0x5200)}
    )
    return PixelFacts.from_dicom_json(wanted.to_json_dict(suppress_invalid_tags=True), frame=frame)
