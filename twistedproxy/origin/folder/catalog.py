"""All instances of a folder at one moment, by study, series and instance. Never changed once made.

The order is that of the paths, so that pages of a search fit together and several workers give the same.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Optional

import attrs

from twistedproxy.origin.folder.instance_file import Key, StoredFile

Series = Mapping[str, StoredFile]


@attrs.frozen(eq=False)
class Study:
    """*files*: in the order of their paths. *series*: by SeriesInstanceUID the instances, by SOPInstanceUID the file; of several
    files with one instance the first is served."""

    files: Sequence[StoredFile]
    series: Mapping[str, Series]

    @classmethod
    def of(cls, files: Iterable[StoredFile]) -> Study:
        """Arrange *files*."""
        ordered = sorted(files, key=lambda file: file.path)
        series: dict[str, dict[str, StoredFile]] = {}
        for file in ordered:
            series.setdefault(file.common.series, {}).setdefault(file.sop, file)
        return cls(ordered, series)

    @property
    def size(self) -> int:
        """How many instances there are."""
        return sum(map(len, self.series.values()))


@attrs.frozen(eq=False, slots=False)
class Catalog:
    """*studies*: by StudyInstanceUID. *size*, *duplicates*: numbers of files that are served, and that are not."""

    studies: Mapping[str, Study] = attrs.field(factory=dict)
    size: int = 0
    duplicates: int = 0

    @functools.cached_property
    def ordered(self) -> Sequence[tuple[str, Study]]:
        """The studies, by the path of their first file."""
        return sorted(self.studies.items(), key=lambda item: item[1].files[0].path)

    def files(self, study: str, series: Optional[str] = None, sop: Optional[str] = None) -> list[StoredFile]:
        """All files of a study, a series or one instance; none where there is no such thing."""
        found = self.studies[study].series if study in self.studies else {}
        chosen = found.values() if series is None else [found.get(series, {})]
        if sop is None:
            return [file for instances in chosen for file in instances.values()]
        return [instances[sop] for instances in chosen if sop in instances]

    def changed(self, gone: Collection[StoredFile], come: Collection[StoredFile]) -> Catalog:
        """The catalog without the files *gone* and with those that have *come*: only their studies are arranged anew."""
        studies = dict(self.studies)
        size, count = self.size, self.size + self.duplicates
        without = {id(file) for file in gone}
        added: dict[str, list[StoredFile]] = {file.common.study: [] for file in (*gone, *come)}
        for file in come:
            added[file.common.study].append(file)
        for uid, files in added.items():
            before = studies.pop(uid, Study((), {}))
            after = Study.of([*(file for file in before.files if id(file) not in without), *files])
            size += after.size - before.size
            count += len(after.files) - len(before.files)
            if after.files:
                studies[uid] = after
        return Catalog(studies, size, count - size)

    def replaced(self, after: Catalog, touched: Iterable[StoredFile]) -> set[Key]:
        """Which instances of the files *touched* were served, and are no more by the same file."""
        keys = {file.key for file in touched}
        return {key for key in keys if any(file not in after.files(*key) for file in self.files(*key))}


def representative(files: Sequence[StoredFile]) -> StoredFile:
    """The one to show for *files*, at least one, of a series or study: of tiled levels the largest image that is one frame,
    else the middle one (the first and last slices of a stack show little)."""
    tiled = [file for file in files if file.facts.is_tiled]
    if tiled:
        return min(tiled, key=lambda file: (file.facts.frames, -file.facts.rows * file.facts.columns))
    return files[len(files) // 2]
