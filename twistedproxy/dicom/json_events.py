"""DICOM JSON metadata (PS3.18 annex F) event by event, as they come: a reader takes some elements and drops the rest.

A reader of an element is a generator that is sent ijson's basic events. It begins after the event that opened the
element, and returns with the one that closes it.

JSON as stores write it is made fit for the strict parser first (`twistedproxy.dicom.lenient_json`): what is malformed in an
element that is not read must not matter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Optional

import ijson

from twistedproxy.dicom.lenient_json import BadJson, LenientJson

Events = Generator[None, tuple[str, Any], None]
Readers = Callable[[str], Optional[Events]]
"""Gives the reader of a top-level element, by its tag, that has just begun; None drops it."""

OPEN = frozenset(("start_map", "start_array"))
CLOSE = frozenset(("end_map", "end_array"))

UIDS = ("0020000D", "0020000E", "00080018")
"""The elements that name an instance: Study, Series and SOP Instance UID."""


MOST_VALUES = 6
"""Values of an element that are kept: those of an orientation."""


class BadMetadata(ValueError):
    """Metadata are not DICOM JSON, or contain impossible values."""


class ArrayEvents:
    """Feed it the answer to a metadata request, an array of objects, in chunks. *objects* reads each object that has begun.

    Numbers are those of 64 bits, floats where they have a fraction. What is malformed in elements that nobody reads does not
    matter as long as objects, arrays and texts are closed; see `LenientJson`. Only white space may follow the array.

    *objects* must not lead to this object: the garbage collector does not look into ijson's, so a circle through it stays
    for good.
    """

    def __init__(self, objects: Callable[[], Events]) -> None:
        self._complete = self._ended = False
        self._text = LenientJson()
        watcher = _watch(objects)
        next(watcher)
        # Without use_float, an integer of more digits than `sys.get_int_max_str_digits` kills the process: ijson 3.6 goes
        # on with the object that Python refused to make.
        self._json: Any = ijson.basic_parse_coro(watcher, use_float=True)

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes. Raises `BadMetadata`, here or at the end."""
        self._parse(self._text.feed, chunk)

    def check_complete(self) -> None:
        """The answer has ended. Raises `BadMetadata` if it ended too early, or not with its array."""
        self._parse(self._text.close)
        self._ended = True
        self._parse(bytes)
        if not self._complete:
            raise BadMetadata("the metadata ended too early, or are followed by more")

    def _parse(self, take: Callable[..., bytes], *chunk: bytes) -> None:
        """Parse what *take* gives. An error ends it for good."""
        if (parser := self._json) is None:
            return
        self._json = None
        try:
            block = take(*chunk)
            if block or self._ended:  # yajl takes an empty chunk for the end
                parser.send(block)
            self._json = parser
        except StopIteration:  # one array, which is closed
            self._complete = not self._text.in_string  # the parser passes over a text that begins behind the array
        except BadJson as error:
            raise BadMetadata(f"the metadata hold {error}") from error
        except BadMetadata:
            raise
        except (ijson.JSONError, ValueError) as error:
            raise BadMetadata("the metadata are not JSON, or ended too early") from error


class MetadataEvents(ArrayEvents):
    """The same for one instance. Only *readers* see what is in the metadata. *uids*: the Study, Series and SOP Instance UID that
    the object must have, each once and with one value: of several, another reader may take another. None accepts any."""

    def __init__(self, readers: Readers, uids: Optional[tuple[str, str, str]] = None) -> None:
        self._expected = uids
        self._uids: dict[str, list[Any]] = {tag: [] for tag in UIDS}
        super().__init__(functools.partial(_only_object, readers, self._uids, iter((True,))))

    def check_complete(self) -> None:
        """As `ArrayEvents`; raises `BadMetadata` also if it describes another instance."""
        super().check_complete()
        if self._expected is not None and uids_in(self._uids) != self._expected:
            raise BadMetadata("the metadata are of another instance")


def uids_in(found: Mapping[str, Sequence[Any]]) -> Optional[tuple[str, ...]]:
    """The UIDs of an object, whose elements `UIDS` have the values *found*; None where one is not there once, with one value."""
    values = [found[tag][0] if len(found[tag]) == 1 else None for tag in UIDS]
    uids = tuple([value.strip(" \0") for value in values if isinstance(value, str)])
    return uids if len(uids) == len(UIDS) else None


def _watch(objects: Callable[[], Events]) -> Events:
    event, _ = yield
    if event != "start_array":
        raise BadMetadata("the metadata are not an array of instances")
    event, _ = yield
    if event != "start_map":
        raise BadMetadata("the metadata hold no instance")
    while event == "start_map":
        yield from objects()
        event, _ = yield
    if event != "end_array":
        raise BadMetadata("the metadata are not an array of instances")
    yield  # anything else is no JSON


def _only_object(readers: Readers, uids: dict[str, list[Any]], first: Iterator[bool]) -> Events:
    if not next(first, False):
        raise BadMetadata("the metadata are of more than one instance")
    return read_object(readers, uids)


def read_object(readers: Readers, uids: dict[str, list[Any]]) -> Events:
    """Read an object that has begun: its `UIDS` into *uids*, other elements by their *readers*."""
    while True:
        event, tag = yield
        if event != "map_key":
            break
        event, _ = yield
        if tag in UIDS and event != "start_map":
            uids[tag].append(None)
        if event == "start_map":
            reader = keep_values(uids[tag]) if tag in UIDS else readers(tag)
            yield from reader if reader is not None else skip()
        elif event == "start_array":  # no element is one
            yield from skip()


def keep_values(values: list[Any]) -> Events:
    """Add all values of an element that has just begun to *values*, None for what is no text; of no value, that, too."""
    depth, key, count = 1, None, len(values)
    while depth:
        event, value = yield
        if event in CLOSE:
            depth -= 1
            continue
        if event == "map_key" and depth == 1:
            key = value
        elif key == "Value" and (event, depth) != ("start_array", 1) and len(values) < MOST_VALUES:
            values.append(value)
        if event in OPEN:
            depth += 1
    if len(values) == count:
        values.append(None)


def skip() -> Events:
    """Drop what has just begun. Nearly all events come here."""
    depth = 1
    while depth:
        event, _ = yield
        if event in OPEN:
            depth += 1
        elif event in CLOSE:
            depth -= 1
