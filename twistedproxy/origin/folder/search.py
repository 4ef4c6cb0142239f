"""Searches (QIDO-RS, DICOM PS3.18 sections 8.3.4 and 10.6). Blocking where attributes must be read from files.

- Attributes go by keyword or by eight hexadecimal digits, those in sequences with dots between. Parameters that are not known,
  and attributes that cannot be matched by, are ignored, as PS3.18 section 8.3.4 and PS3.4 section C.2.2.1.3 ask for; the
  answer names them. `fuzzymatching` is ignored, as the standard allows.
- Matching is that of PS3.4 section C.2.2.2. Any of several values: a parameter may be given several times, and values joined by
  backslashes; those of UIDs and codes (ModalitiesInStudy), which hold none, by commas too. Dates and times: a value or a range
  with a hyphen. Text: ``*`` and ``?`` as wildcards where the VR allows them; person names whatever their case.
- A study or series shows the attributes of its first file, in the order of paths. It matches if its own attributes do and if one
  instance below it matches the other keys.
- Attributes that the index does not hold are read from the files of the results alone.
"""

from __future__ import annotations

import fnmatch
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional
from urllib.parse import parse_qsl

import attrs
from pydicom.datadict import dictionary_VR, tag_for_keyword

from twistedproxy.dicom.resource import shown
from twistedproxy.origin.errors import refused
from twistedproxy.origin.folder.contents import Catalog, Series, Study
from twistedproxy.origin.folder.instance_file import (
    FileChanged,
    JSONElement,
    StoredFile,
    UnreadableFile,
    read_full_header,
)
from twistedproxy.origin.folder.json_model import (
    AVAILABILITY,
    AVAILABLE_TRANSFER_SYNTAX,
    LEVELS,
    RETRIEVE_URL,
    SEARCHED,
    SEARCHED_ANYWHERE,
    SERIES_COUNT,
    SERIES_TAGS,
    STUDY_COUNTS,
    STUDY_TAGS,
    UIDS,
    dataset_json,
    dumps,
    joined,
)

MAX_PARAMETERS = 100
MAX_PATTERN = 1024  # characters with wildcards
MAX_RESULTS = 5000  # of one answer; a client that wants more asks for the next ones with offset
_HEX = re.compile(r"[0-9A-Fa-f]{8}")
_IGNORED = frozenset(("fuzzymatching", "accept", "charset", "emptyvaluematching", "multiplevaluematching"))
_WILDCARD_VRS = frozenset("AE CS LO LT PN SH ST UC UR UT".split())
_TEXT_VRS = frozenset("ST LT UT".split())  # a backslash is one of their characters
_LIST_VRS = frozenset("UI CS".split())
_RANGE_VRS = frozenset("DA TM DT".split())
_NUMBER_VRS = frozenset("IS DS US UL SS SL FL FD UV SV".split())
_PRECISION = 14  # digits of YYYYMMDDHHMMSS: shorter values stand for a range
_PER_FRAME = 0x52009230  # Per-Frame Functional Groups: as long as all else a thousand times

Attributes = Mapping[str, JSONElement]
Place = tuple[str, ...]  # tags from the outside in
Result = tuple[StoredFile, Attributes]
"""An instance, or the first one of a series or study; the attributes of its series, or of the study."""


@attrs.frozen
class MatchingKey:
    """The attribute at *place* must match one of *values*."""

    place: Place
    vr: str
    values: tuple[str, ...]


@attrs.frozen
class Query:
    """*include*: attributes asked for; *include_all*: all that are there. *ignored*: names of parameters that nothing is
    matched by."""

    keys: tuple[MatchingKey, ...] = ()
    include: tuple[Place, ...] = ()
    include_all: bool = False
    limit: Optional[int] = None
    offset: int = 0
    ignored: tuple[str, ...] = ()


def parse_query(raw: bytes) -> Query:
    """Read a query string. Raises `OriginRefused` 400."""
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS, errors="strict")
    except ValueError:
        raise refused(400, f"the query is not UTF-8, or has more than {MAX_PARAMETERS} parameters") from None
    wanted: dict[Place, list[str]] = {}
    include: list[str] = []
    numbers: dict[str, int] = {}
    ignored: list[str] = []
    for name, value in pairs:
        lowered = name.lower()
        if lowered in ("limit", "offset"):
            if not (value.isascii() and value.isdigit() and len(value) < 10):
                raise refused(400, f"{lowered}={shown(value)} is invalid: expected a whole number from 0")
            numbers[lowered] = int(value)
        elif lowered == "includefield":
            include += value.split(",")
        elif (place := _place(name)) is not None and place[0] in SEARCHED_ANYWHERE:
            wanted.setdefault(place, []).append(value)
        elif value and lowered not in _IGNORED:
            ignored.append(name)
    keys = tuple(MatchingKey(place, _vr(place[-1]), tuple(values)) for place, values in wanted.items())
    included = tuple(place for field in include if (place := _place(field)) is not None)
    include_all = "all" in map(str.lower, include)
    return Query(keys, included, include_all, numbers.get("limit"), numbers.get("offset", 0), tuple(ignored))


def _vr(tag: str) -> str:
    try:
        return dictionary_VR(int(tag, 16)).rpartition(" ")[2]
    except KeyError:  # a private or an unknown one
        return "UN"


def _place(field: str) -> Optional[Place]:
    """The tags that a keyword, a tag or a path of these names; None where that is no attribute."""
    names = field.split(".")
    tags = [int(name, 16) if _HEX.fullmatch(name) else tag_for_keyword(name) for name in names]
    return None if None in tags or "" in names else tuple(f"{tag:08X}" for tag in tags)


def matches(attributes: Attributes, key: MatchingKey) -> bool:
    """Whether any value at the key's place matches. An empty key matches everything."""
    wanted = [one for value in key.values for one in _alternatives(key.vr, value)]
    return "" in wanted or any(_fits(value, key.vr, one) for value in _values(attributes, key.place) for one in wanted)


def _alternatives(vr: str, value: str) -> Sequence[str]:
    if vr in _TEXT_VRS:
        return (value,)
    return (value.replace(",", "\\") if vr in _LIST_VRS else value).split("\\")


def _values(attributes: Mapping[str, Any], place: Place) -> Iterable[Any]:
    found = attributes.get(place[0], {}).get("Value", ())
    if len(place) == 1:
        return list(found)
    return [value for item in found if isinstance(item, dict) for value in _values(item, place[1:])]


def _fits(value: Any, vr: str, wanted: str) -> bool:
    if vr in _RANGE_VRS:
        return _in_range(_digits(str(value)), wanted)
    if vr in _NUMBER_VRS:
        try:
            return float(value) == float(wanted)
        except (TypeError, ValueError):
            return False
    if vr == "PN":
        names = value.values() if isinstance(value, dict) else (value,)
        return any(like(str(name).rstrip("^").casefold(), wanted.rstrip("^").casefold()) for name in names)
    return like(str(value), wanted) if vr in _WILDCARD_VRS else str(value) == wanted


def like(text: str, pattern: str) -> bool:
    """Whether *text* fits *pattern* with ``*`` (any characters) and ``?`` (any one); none fits one of more than `MAX_PATTERN`
    characters."""
    if "*" not in pattern and "?" not in pattern:
        return text == pattern
    return len(pattern) <= MAX_PATTERN and _compiled(pattern).match(text) is not None


@functools.lru_cache(maxsize=64)  # fnmatch keeps thousands
def _compiled(pattern: str) -> re.Pattern[str]:
    # What fnmatch makes of a pattern never goes back behind a star: a hostile one takes no longer than the text is.
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))


def _digits(text: str) -> str:
    # The parts of a second and time zones are beyond what a search is made by.
    return text.replace(":", "").partition(".")[0].partition("+")[0]


def _in_range(value: str, wanted: str) -> bool:
    start, hyphen, end = (_digits(part) for part in wanted.partition("-"))
    end = end if hyphen else start
    earliest = value.ljust(_PRECISION, "0")
    if start and earliest < start.ljust(_PRECISION, "0"):
        return False
    return not end or earliest <= end.ljust(_PRECISION, "9")


def search(catalog: Catalog, level: str, where: tuple[str, ...], query: Query) -> tuple[Sequence[Result], int]:
    """The page of results that *query* asks for, and how many more there are than one answer holds. *level*: one of `LEVELS`;
    *where*: the UIDs of a study and a series, as far as the search is for what lies below them."""
    results = _search(catalog, level, where, query.keys)
    size = MAX_RESULTS if query.limit is None else min(query.limit, MAX_RESULTS)
    page = list(itertools.islice(results, query.offset, query.offset + size))
    return page, sum(1 for _ in results) if query.limit is None or query.limit > MAX_RESULTS else 0


def _search(catalog: Catalog, level: str, where: tuple[str, ...], keys: Iterable[MatchingKey]) -> Iterator[Result]:
    of_level: tuple[list[MatchingKey], ...] = ([], [], [])
    for key in keys:
        of_level[next(n for n, tags in enumerate(SEARCHED) if key.place[0] in tags)].append(key)
    for study_uid, study in catalog.ordered:
        if where[:1] not in ((), (study_uid,)):
            continue
        study_view = _study_view(study)
        if not _all_match(study_view, of_level[0]):
            continue
        for series_uid, series in study.series.items():
            if where[1:2] not in ((), (series_uid,)):
                continue
            view = _series_view(series, study_view)
            instances: Iterable[StoredFile] = series.values() if _all_match(view, of_level[1]) else ()
            if of_level[2]:
                instances = [file for file in instances if _all_match(_instance_view(file, view), of_level[2])]
            if level == "instances":
                yield from ((file, view) for file in instances)
            elif instances and level == "series":
                yield _first(series), view
            elif instances:
                yield study.files[0], study_view
                break


def _all_match(view: Attributes, keys: Iterable[MatchingKey]) -> bool:
    return all(matches(view, key) for key in keys)


def _first(series: Series) -> StoredFile:
    return next(iter(series.values()))


def _study_view(study: Study) -> dict[str, JSONElement]:
    attributes = [_first(series).common.attributes for series in study.series.values()]
    modalities = {value for one in attributes for value in one.get("00080060", {}).get("Value", ())}
    classes = {file.common.sop_class for series in study.series.values() for file in series.values()}
    counts = [sorted(modalities), sorted(classes), [len(study.series)], [study.size]]
    counted = {tag: {"vr": _vr(tag), "Value": values} for tag, values in zip(STUDY_COUNTS, counts)}
    return counted | {tag: attributes[0][tag] for tag in STUDY_TAGS if tag in attributes[0]}


def _series_view(series: Series, study_view: dict[str, JSONElement]) -> dict[str, JSONElement]:
    first = _first(series).common.attributes
    own = {tag: first[tag] for tag in SERIES_TAGS if tag in first}
    return study_view | {SERIES_COUNT: {"vr": "IS", "Value": [len(series)]}} | own


def _instance_view(file: StoredFile, series_view: Attributes) -> dict[str, JSONElement]:
    syntax = {"vr": "UI", "Value": [file.common.transfer_syntax]}
    return {**series_view, AVAILABLE_TRANSFER_SYNTAX: syntax, **file.own_attributes}


def result_chunks(
    results: Sequence[Result], level: str, where: tuple[str, ...], query: Query, base: str
) -> Iterator[bytes]:
    """The JSON text of an answer, result by result. *base*: the URL that resources are below."""
    return joined((dumps(_answer(*result, level, where, query, base)),) for result in results)


def _answer(
    file: StoredFile, view: Attributes, level: str, where: tuple[str, ...], query: Query, base: str
) -> dict[str, Any]:
    depth = LEVELS.index(level) + 1
    # What one level down is asked for below a study or series needs not repeat that (tables 10.6.1-5, 10.6.3-3 to -5).
    wanted = {key.place[0] for key in query.keys} | {place[0] for place in query.include}
    wanted.update(*(SEARCHED[n] if n >= len(where) or n == depth - 1 else UIDS[n : n + 1] for n in range(depth)))
    if level == "instances":
        view = _instance_view(file, view)
    answer: dict[str, Any] = {tag: element for tag, element in view.items() if tag in wanted or query.include_all}
    answer |= _from_file(file, level, query, f"{base}{file.resource}/bulkdata", answer)
    answer[AVAILABILITY] = {"vr": "CS", "Value": ["ONLINE"]}
    url = "/".join((base, *itertools.chain(*zip(LEVELS, file.key[:depth]))))
    answer[RETRIEVE_URL] = {"vr": "UR", "Value": [url]}
    return dict(sorted(answer.items()))


def _from_file(file: StoredFile, level: str, query: Query, uri: str, have: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that were asked for and are not in the index. A file that changed meanwhile gives none."""
    everything = query.include_all and level == "instances"
    missing = {place[0] for place in query.include}.difference(have, SEARCHED_ANYWHERE)
    if not everything and not missing:
        return {}
    try:
        dataset = read_full_header(file, None if everything else [int(tag, 16) for tag in missing])
    except (FileChanged, UnreadableFile, OSError):
        return {}
    dataset.pop(_PER_FRAME, None)
    found = dataset_json(dataset, uri)
    return {tag: found[tag] for tag in (found.keys() - have.keys() if everything else missing & found.keys())}
