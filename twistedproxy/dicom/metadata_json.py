"""DICOM JSON metadata (PS3.18 annex F) event by event, as they come: who reads takes some elements and drops the rest.

A reader of an element is a generator that is sent ijson's basic events. It begins after the event that opened the
element, and returns with the one that closes it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Optional

import ijson

Events = Generator[None, tuple[str, Any], None]

MAX_VALUE = 16 << 20
"""Bytes of one value. The parser begins a text anew with each piece of it: 16 MB take it 1 s, 200 MB minutes."""

OPEN = frozenset(("start_map", "start_array"))
CLOSE = frozenset(("end_map", "end_array"))

UIDS = ("0020000D", "0020000E", "00080018")
"""The elements that name an instance: Study, Series and SOP Instance UID."""


class BadMetadata(ValueError):
    """Metadata are no DICOM JSON, or say something impossible."""


class MetadataEvents:
    """Feed it the answer to a metadata request for one instance, an array of one object, in chunks.

    A subclass says in `element` what is read. Numbers are those of 64 bits, floats where they have a fraction.
    *uids*: the Study, Series and SOP Instance UID that the object must have; None accepts any.
    """

    def __init__(self, uids: Optional[tuple[str, str, str]] = None) -> None:
        self._complete = False
        self._expected = uids
        self._uids: dict[str, str] = {}
        self._without_quote = 0
        watcher = self._watch()
        next(watcher)
        # Without use_float, an integer of more digits than `sys.get_int_max_str_digits` kills the process: ijson 3.6 goes
        # on with the object that Python refused to make.
        self._json = ijson.basic_parse_coro(watcher, use_float=True)

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes. Raises `BadMetadata`."""
        if self._complete or not chunk:  # yajl takes an empty chunk for the end
            return
        # Only a value has that many bytes without a quote.
        self._without_quote = 0 if b'"' in chunk else self._without_quote + len(chunk)
        if self._without_quote > MAX_VALUE:
            raise BadMetadata(f"the metadata hold a value of more than {MAX_VALUE} bytes")
        try:
            self._json.send(chunk)
        except BadMetadata:
            raise
        except (ijson.JSONError, ValueError) as error:
            if not self._complete:  # what follows the array does not matter
                raise BadMetadata("the metadata are no JSON") from error

    def element(self, tag: str) -> Optional[Events]:
        """The reader of a top-level element that has just begun; None drops it."""
        return None

    def check_complete(self) -> None:
        """The answer has ended. Raises `BadMetadata` if it ended too early, or describes another instance."""
        if not self._complete:
            raise BadMetadata("the metadata ended too early")
        if self._expected is not None and tuple(self._uids.get(tag) for tag in UIDS) != self._expected:
            raise BadMetadata("the metadata are not those of the instance asked for")

    def _watch(self) -> Events:
        event, _ = yield
        if event != "start_array":
            raise BadMetadata("the metadata are no array of instances")
        event, _ = yield
        if event != "start_map":
            raise BadMetadata("the metadata hold no instance")
        while True:
            event, tag = yield
            if event != "map_key":
                break
            event, _ = yield
            if event == "start_map":
                reader = self._keep_uid(tag) if tag in UIDS else self.element(tag)
                yield from reader if reader is not None else skip()
            elif event == "start_array":  # no element is one
                yield from skip()
        event, _ = yield
        if event != "end_array":
            raise BadMetadata("the metadata are of more than one instance")
        self._complete = True
        while True:
            yield

    def _keep_uid(self, tag: str) -> Events:
        """Keep the first value of a UID's element that has just begun: ``{"vr": "UI", "Value": ["1.2.3"]}``."""
        depth, key = 1, None
        while depth:
            event, value = yield
            if event in OPEN:
                depth += 1
            elif event in CLOSE:
                depth -= 1
            elif event == "map_key":
                key = value
            elif key == "Value" and event == "string":
                self._uids.setdefault(tag, value.strip(" \0"))


def skip() -> Events:
    """Drop what has just begun. Nearly all events come here."""
    depth = 1
    while depth:
        event, _ = yield
        if event in OPEN:
            depth += 1
        elif event in CLOSE:
            depth -= 1
