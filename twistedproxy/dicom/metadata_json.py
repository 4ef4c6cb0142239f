"""DICOM JSON metadata (PS3.18 annex F) event by event, as they come: who reads takes some elements and drops the rest.

A reader of an element is a generator that is sent ijson's basic events. It begins after the event that opened the
element, and returns with the one that closes it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Optional

import ijson

from twistedproxy.dicom.lenient_json import BadJson, LenientJson

Events = Generator[None, tuple[str, Any], None]
Readers = Callable[[str], Optional[Events]]
"""Gives the reader of a top-level element, by its tag, that has just begun; None drops it."""

OPEN = frozenset(("start_map", "start_array"))
CLOSE = frozenset(("end_map", "end_array"))


class BadMetadata(ValueError):
    """Metadata are no DICOM JSON, or say something impossible."""


class _Complete(Exception):
    """The instance has ended."""


class MetadataEvents:
    """Feed it the answer to a metadata request, an array of one object (of more the first counts), in chunks.

    Numbers are those of 64 bits, floats where they have a fraction. Only *readers* see what is in the metadata, and what is
    malformed elsewhere does not matter as long as objects, arrays and texts are closed; see `LenientJson`.

    *readers* must not lead to this object: the garbage collector does not look into ijson's, so a circle through it stays
    for good.
    """

    def __init__(self, readers: Readers) -> None:
        self._complete = False
        self._text = LenientJson()
        watcher = _watch(readers)
        next(watcher)
        # Without use_float, an integer of more digits than `sys.get_int_max_str_digits` kills the process: ijson 3.6 goes
        # on with the object that Python refused to make.
        self._json: Any = ijson.basic_parse_coro(watcher, use_float=True)

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes. Raises `BadMetadata`, here or at the end."""
        if self._json is not None:
            self._parse(self._text.feed, chunk)

    def check_complete(self) -> None:
        """The answer has ended. Raises `BadMetadata` if it holds no instance, or ended too early."""
        if self._json is not None:
            self._parse(self._text.close)
        if not self._complete:
            raise BadMetadata("the metadata ended too early")

    def _parse(self, take: Callable[..., bytes], *chunk: bytes) -> None:
        parser, self._json = self._json, None
        try:
            block = take(*chunk)
            if block:  # yajl takes an empty chunk for the end
                parser.send(block)
        except _Complete:  # what follows the first object does not matter
            self._complete = True
        except BadJson as error:
            raise BadMetadata(f"the metadata hold {error}") from error
        except BadMetadata:
            raise
        except (ijson.JSONError, ValueError) as error:
            raise BadMetadata("the metadata are no JSON") from error
        else:
            self._json = parser


def _watch(readers: Readers) -> Events:
    event, _ = yield
    if event == "start_array":
        event, _ = yield
    if event != "start_map":
        raise BadMetadata("the metadata hold no instance")
    while True:
        event, tag = yield
        if event != "map_key":
            raise _Complete
        event, _ = yield
        if event == "start_map":
            reader = readers(tag)
            yield from reader if reader is not None else skip()
        elif event == "start_array":  # no element is one
            yield from skip()


def skip() -> Events:
    """Drop what has just begun. Nearly all events come here."""
    depth = 1
    while depth:
        event, _ = yield
        if event in OPEN:
            depth += 1
        elif event in CLOSE:
            depth -= 1
