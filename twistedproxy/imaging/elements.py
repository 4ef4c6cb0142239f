"""Elements of DICOM JSON (PS3.18 annex F) out of a stream of events, for readers of `MetadataEvents`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import ijson

from twistedproxy.dicom.metadata_json import CLOSE, OPEN, Events, skip


def read_items(keep: Callable[[dict[str, Any]], None], wanted: frozenset[str]) -> Events:
    """Read a sequence that has just begun (``{"vr": "SQ", "Value": [{…}, …]}``): of each item *keep* gets the *wanted*
    elements, as soon as the item has ended."""
    while True:
        event, key = yield
        if event == "end_map":
            return
        event, _ = yield
        if event not in OPEN:
            continue
        if key != "Value" or event != "start_array":
            yield from skip()
            continue
        while True:
            event, _ = yield
            if event == "end_array":
                break
            if event == "start_map":
                item: dict[str, Any] = {}
                yield from _read_item(item, wanted)
                keep(item)
            elif event in OPEN:
                yield from skip()


def _read_item(item: dict[str, Any], wanted: frozenset[str]) -> Events:
    while True:
        event, tag = yield
        if event == "end_map":
            return
        event, value = yield
        if tag in wanted:
            item[tag] = yield from read_value(event, value)
        elif event in OPEN:
            yield from skip()


def read_value(event: str, value: Any) -> Generator[None, tuple[str, Any], Any]:
    """The JSON value whose first event has just come."""
    builder = ijson.ObjectBuilder()
    depth = 0
    while True:
        builder.event(event, value)
        depth += (event in OPEN) - (event in CLOSE)
        if depth == 0:
            value = builder.value
            builder.containers.clear()  # a function in there leads back to the builder
            return value
        event, value = yield
