"""All instances of a folder at one moment, by study, series and instance. Never changed once made.

The order is that of the paths, so that pages of a search fit together and several workers give the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Optional

import attrs

from twistedproxy.origin.folder.records import StoredFile

Series = Mapping[str, StoredFile]
Study = Mapping[str, Series]


@attrs.frozen(eq=False)
class Catalog:
    """*studies*: by StudyInstanceUID the series, by SeriesInstanceUID the instances, by SOPInstanceUID the file.

    *duplicates*: files whose instance another file has already; those are not served.
    """

    studies: Mapping[str, Study] = attrs.field(factory=dict)
    size: int = 0
    duplicates: tuple[StoredFile, ...] = ()

    def get(self, study: str, series: str, sop: str) -> Optional[StoredFile]:
        """The file of one instance, None where there is none."""
        return self.studies.get(study, {}).get(series, {}).get(sop)

    def files(self, study: str, series: Optional[str] = None, sop: Optional[str] = None) -> list[StoredFile]:
        """All files of a study, a series or one instance; none where there is no such thing."""
        found = self.studies.get(study, {})
        chosen: Iterable[Series] = found.values() if series is None else (found.get(series, {}),)
        return [file for instances in chosen for file in instances.values() if sop in (None, file.sop)]

    def __iter__(self) -> Iterator[StoredFile]:
        return (file for study in self.studies.values() for series in study.values() for file in series.values())


def build_catalog(files: Iterable[StoredFile]) -> Catalog:
    """Arrange *files*; of several with one instance the first in the order of paths is served."""
    studies: dict[str, dict[str, dict[str, StoredFile]]] = {}
    duplicates = []
    size = 0
    for file in sorted(files, key=lambda file: file.path):
        instances = studies.setdefault(file.study, {}).setdefault(file.series, {})
        if instances.setdefault(file.sop, file) is file:
            size += 1
        else:
            duplicates.append(file)
    return Catalog(studies, size, tuple(duplicates))
