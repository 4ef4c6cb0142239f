"""All instances of a folder at one moment, by study, series and instance. Never changed once made.

The order is that of the paths, so that pages of a search fit together and several workers give the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Optional

import attrs

from twistedproxy.origin.folder.instance_file import StoredFile

Series = Mapping[str, StoredFile]
Key = tuple[str, str, str]


@attrs.frozen(eq=False)
class Study:
    """*series*: by SeriesInstanceUID the instances, by SOPInstanceUID the file. *duplicates*: files whose instance
    another file has already; those are not served."""

    series: Mapping[str, Series]
    duplicates: tuple[StoredFile, ...] = ()

    @classmethod
    def of(cls, files: Iterable[StoredFile]) -> Study:
        """Arrange *files*; of several with one instance the first in the order of paths is served."""
        series: dict[str, dict[str, StoredFile]] = {}
        duplicates = [
            file
            for file in sorted(files, key=lambda file: file.path)
            if series.setdefault(file.series, {}).setdefault(file.sop, file) is not file
        ]
        return cls(series, tuple(duplicates))

    @property
    def size(self) -> int:
        """How many instances there are."""
        return sum(map(len, self.series.values()))

    @property
    def first(self) -> StoredFile:
        """The file that comes first in the order of paths."""
        return next(iter(next(iter(self.series.values())).values()))

    def __iter__(self) -> Iterator[StoredFile]:
        return (file for instances in self.series.values() for file in instances.values())


@attrs.frozen(eq=False)
class Catalog:
    """*studies*: by StudyInstanceUID. *size*, *duplicates*: numbers of files that are served, and that are not."""

    studies: Mapping[str, Study] = attrs.field(factory=dict)
    size: int = 0
    duplicates: int = 0
    _ordered: list[list[tuple[str, Study]]] = attrs.field(factory=list, init=False)

    def get(self, study: str, series: str, sop: str) -> Optional[StoredFile]:
        """The file of one instance, None where there is none."""
        found = self.studies.get(study)
        return found.series.get(series, {}).get(sop) if found is not None else None

    def files(self, study: str, series: Optional[str] = None, sop: Optional[str] = None) -> list[StoredFile]:
        """All files of a study, a series or one instance; none where there is no such thing."""
        if series is not None and sop is not None:
            file = self.get(study, series, sop)
            return [] if file is None else [file]
        found = self.studies.get(study)
        if found is None:
            return []
        chosen: Iterable[Series] = found.series.values() if series is None else (found.series.get(series, {}),)
        return [file for instances in chosen for file in instances.values()]

    def ordered(self) -> Iterable[tuple[str, Study]]:
        """The studies, by the path of their first file."""
        if not self._ordered:
            self._ordered.append(sorted(self.studies.items(), key=lambda item: item[1].first.path))
        return self._ordered[0]

    def changed(self, gone: Collection[StoredFile], come: Collection[StoredFile]) -> Catalog:
        """The catalog without the files *gone* and with those that have *come*: only their studies are arranged anew."""
        studies = dict(self.studies)
        size, duplicates = self.size, self.duplicates
        without = {id(file) for file in gone}
        added: dict[str, list[StoredFile]] = {file.study: [] for file in (*gone, *come)}
        for file in come:
            added[file.study].append(file)
        for uid, files in added.items():
            before = studies.pop(uid, Study({}))
            size, duplicates = size - before.size, duplicates - len(before.duplicates)
            after = Study.of([*(file for file in (*before, *before.duplicates) if id(file) not in without), *files])
            if after.series:
                studies[uid] = after
                size, duplicates = size + after.size, duplicates + len(after.duplicates)
        return Catalog(studies, size, duplicates)

    def replaced(self, after: Catalog, touched: Iterable[StoredFile]) -> set[Key]:
        """Which instances of the files *touched* were served, and are no more by the same file."""
        keys = {file.key for file in touched}
        return {key for key in keys if (before := self.get(*key)) is not None and after.get(*key) is not before}
