"""Answers to searches (DICOM PS3.18 section 10.6.3). Blocking where attributes must be read from files.

- An instance answers for its series and its study with the attributes that they share; of a study or series
  the first file (in the order of paths) speaks.
- A study or series matches if its own attributes do and if one instance below it matches the other keys.
- Attributes that the index does not hold are read from the files of the results alone.
"""

from __future__ import annotations

import enum
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional

import attrs

from twistedproxy.origin.folder import instance_file as names
from twistedproxy.origin.folder.catalog import Catalog, Series, Study
from twistedproxy.origin.folder.instance_file import (
    FileChanged,
    JSONElement,
    StoredFile,
    UnreadableFile,
    read_full_header,
)
from twistedproxy.origin.folder.json_model import dataset_json, dumps, element_json, element_of
from twistedproxy.origin.folder.matching import matches
from twistedproxy.origin.folder.query import MAX_RESULTS, Match, Place, Query

Attributes = Mapping[str, JSONElement]
_PER_FRAME = 0x52009230  # Per-Frame Functional Groups: as long as all else a thousand times


class Level(enum.Enum):
    """What a search finds (PS3.18 section 10.6)."""

    STUDIES = "studies"
    SERIES = "series"
    INSTANCES = "instances"


@attrs.frozen
class Where:
    """Below what is searched: everything, a study or a series."""

    study: Optional[str] = None
    series: Optional[str] = None


@attrs.frozen(eq=False)
class Result:
    """One thing that was found. *view*: its attributes and those of what it belongs to; of an instance, those of its series."""

    file: StoredFile
    view: Attributes


@attrs.frozen(eq=False)
class Results:
    """*left*: how many more there are than one answer holds."""

    found: Sequence[Result]
    left: int = 0


def search(catalog: Catalog, level: Level, where: Where, query: Query) -> Results:
    """The page of results that *query* asks for."""
    end = query.offset + (MAX_RESULTS if query.limit is None else min(query.limit, MAX_RESULTS))
    found: list[Result] = []
    count = 0
    for result in _find(catalog, level, where, query.matches):
        if query.offset <= count < end:
            found.append(result)
        count += 1
        if count >= end and query.limit is not None and query.limit <= MAX_RESULTS:
            break
    return Results(found, max(0, count - end))


def _find(catalog: Catalog, level: Level, where: Where, keys: Iterable[Match]) -> Iterator[Result]:
    study_keys, series_keys, instance_keys = _by_level(keys)
    for study_uid, study in catalog.ordered():
        if where.study not in (None, study_uid):
            continue
        study_view = _study_view(study)
        if not _all_match(study_view, study_keys):
            continue
        hits = _in_study(study, study_view, where, series_keys, instance_keys)
        if level is Level.STUDIES:
            hit = next(hits, None)
            if hit is not None:
                yield Result(study.first, study_view)
            continue
        for series, series_view, instances in hits:
            if level is Level.SERIES:
                yield Result(_first(series), series_view)
            else:
                yield from (Result(file, series_view) for file in instances)


def _in_study(
    study: Study, study_view: Attributes, where: Where, series_keys: list[Match], instance_keys: list[Match]
) -> Iterator[tuple[Series, Attributes, Iterable[StoredFile]]]:
    """Each series that matches, with the instances that do; none without one."""
    for series_uid, series in study.series.items():
        if where.series not in (None, series_uid):
            continue
        view = _series_view(series, study_view)
        if not _all_match(view, series_keys):
            continue
        instances: Sequence[StoredFile] = list(series.values())
        if instance_keys:
            instances = [file for file in instances if _all_match(_instance_view(file, view), instance_keys)]
        if instances:
            yield series, view, instances


def _by_level(keys: Iterable[Match]) -> tuple[list[Match], list[Match], list[Match]]:
    levels: tuple[list[Match], list[Match], list[Match]] = ([], [], [])
    for key in keys:
        tag = key.place[0]
        levels[0 if tag in names.STUDY_LEVEL else 1 if tag in names.SERIES_LEVEL else 2].append(key)
    return levels


def _all_match(view: Attributes, keys: Iterable[Match]) -> bool:
    return all(matches(view, key) for key in keys)


def _first(mapping: Mapping[str, Any]) -> Any:
    return next(iter(mapping.values()))


def _study_view(study: Study) -> Attributes:
    first = study.first.common.attributes
    modalities = {
        value
        for series in study.series.values()
        for value in _first(series).common.attributes.get("00080060", {}).get("Value", ())
    }
    classes = {file.sop_class for file in study}
    counted: dict[str, JSONElement] = {
        names.MODALITIES_IN_STUDY: {"vr": "CS", "Value": sorted(modalities)},
        names.SOP_CLASSES_IN_STUDY: {"vr": "UI", "Value": sorted(classes)},
        names.STUDY_SERIES_COUNT: {"vr": "IS", "Value": [len(study.series)]},
        names.STUDY_INSTANCE_COUNT: {"vr": "IS", "Value": [study.size]},
    }
    return counted | {tag: first[tag] for tag in names.STUDY_TAGS if tag in first}


def _series_view(series: Series, study_view: Attributes) -> Attributes:
    first = _first(series).common.attributes
    own: dict[str, JSONElement] = {names.SERIES_INSTANCE_COUNT: {"vr": "IS", "Value": [len(series)]}}
    own |= {tag: first[tag] for tag in names.SERIES_TAGS if tag in first}
    return ChainMap(own, dict(study_view))


def _instance_view(file: StoredFile, series_view: Attributes) -> Attributes:
    own: dict[str, JSONElement] = {names.AVAILABLE_TRANSFER_SYNTAX: _syntax(file)}
    own |= file.own_attributes
    return ChainMap(own, dict(series_view))


def representative(files: Sequence[StoredFile]) -> StoredFile:
    """The one to show for *files*, at least one, of a series or study: of tiled levels the largest image that is one frame,
    else the middle one (the first and last slices of a stack show little)."""
    tiled = [file for file in files if file.facts.is_tiled]
    if tiled:
        return min(tiled, key=lambda file: (file.facts.frames, -file.facts.rows * file.facts.columns))
    return files[len(files) // 2]


def _syntax(file: StoredFile) -> JSONElement:
    return {"vr": "UI", "Value": [file.transfer_syntax]}


def result_chunks(results: Sequence[Result], level: Level, where: Where, query: Query, base: str) -> Iterator[bytes]:
    """The JSON text of an answer, result by result. *base*: the URL that resources are below."""
    separator = b"["
    for result in results:
        yield separator + dumps(_answer(result, level, where, query, base))
        separator = b","
    yield b"[]" if separator == b"[" else b"]"


def _answer(result: Result, level: Level, where: Where, query: Query, base: str) -> dict[str, Any]:
    file = result.file
    # What one level down is asked for below a study or series needs not repeat that (tables 10.6.1-5, 10.6.3-3 to -5).
    wanted = set(names.STUDY_LEVEL if where.study is None or level is Level.STUDIES else ("0020000D",))
    url = f"{base}/studies/{file.study}"
    if level is not Level.STUDIES:
        wanted |= names.SERIES_LEVEL if where.series is None or level is Level.SERIES else {"0020000E"}
        url += f"/series/{file.series}"
    if level is Level.INSTANCES:
        wanted |= names.INSTANCE_LEVEL
        url += f"/instances/{file.sop}"
    wanted |= {key.place[0] for key in query.matches} | {place[0] for place in query.include}
    view = _instance_view(file, result.view) if level is Level.INSTANCES else result.view
    answer: dict[str, Any] = {tag: element for tag, element in view.items() if tag in wanted or query.include_all}
    answer |= _from_file(result, level, query, f"{base}{file.resource}/bulkdata", answer)
    answer[names.AVAILABILITY] = {"vr": "CS", "Value": ["ONLINE"]}
    answer[names.RETRIEVE_URL] = {"vr": "UR", "Value": [url]}
    return dict(sorted(answer.items()))


def _from_file(result: Result, level: Level, query: Query, uri: str, have: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that were asked for and are not in the index. A file that changed meanwhile gives none."""
    everything = query.include_all and level is Level.INSTANCES
    missing = [place for place in query.include if place[0] not in have and place[0] not in names.ALL_LEVELS]
    if not everything and not missing:
        return {}
    try:
        dataset = read_full_header(result.file)
    except (FileChanged, UnreadableFile, OSError):
        return {}
    if everything:
        dataset.pop(_PER_FRAME, None)
        return {tag: element for tag, element in dataset_json(dataset, uri).items() if tag not in have}
    found = {}
    for tag in _tags(missing):
        element = element_of(dataset, int(tag, 16)) if int(tag, 16) in dataset else None
        if element is not None and (converted := element_json(element, f"{uri}/{tag}")) is not None:
            found[tag] = converted
    return found


def _tags(places: Iterable[Place]) -> list[str]:
    return [place[0] for place in places]
