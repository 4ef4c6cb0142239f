"""Datasets in the DICOM JSON Model (PS3.18 annex F), long binary values replaced by a reference.

- A reference names its value by its place, ``…/bulkdata/TAG`` or, inside a sequence, ``…/bulkdata/TAG/ITEM/TAG``
  with items counted from 1; `find_value` reads such a place.
- A value that cannot be expressed (a broken one) is left out: one bad attribute must not hide an instance.
- Text comes out as UTF-8, so Specific Character Set says so (PS3.18 section F.2.2).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, Optional

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

MAX_INLINE = 1024  # bytes; longer ones (ICC profiles, lookup tables) are fetched by whoever wants them
_BINARY = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN", "OB or OW", "US or OW", "US or SS or OW"))
_CHARACTER_SET = 0x00080005
_UTF8 = {"vr": "CS", "Value": ["ISO_IR 192"]}

# Offset tables and pixels of the instance are no metadata (of an icon they are); group lengths are retired (PS3.5 section 7.2).
_LEFT_OUT = frozenset((0x7FE00001, 0x7FE00002, 0x7FE00003, 0x7FE00008, 0x7FE00009, 0x7FE00010))


class NoSuchElement(LookupError):
    """A bulk data reference leads nowhere."""


def element_json(element: DataElement, uri: str) -> Optional[dict[str, Any]]:
    """One attribute; *uri* is its own bulk data reference. None where its value cannot be expressed."""
    if element.tag == _CHARACTER_SET:
        return dict(_UTF8)
    vr = str(element.VR)
    try:
        if vr == "SQ":
            items = [dataset_json(item, f"{uri}/{number}") for number, item in enumerate(element.value or (), 1)]
            return {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
        if vr in _BINARY:
            return _binary_json(element, vr.rpartition(" or ")[2], uri)
        found = element.to_json_dict(None, 0)
    except Exception:  # pydicom raises anything from AttributeError to OverflowError on broken values
        return None
    return None if _has_no_json(found.get("Value", ())) else found


def _binary_json(element: DataElement, vr: str, uri: str) -> dict[str, Any]:
    if element.value is not None and len(element.value) > MAX_INLINE:
        return {"vr": vr, "BulkDataURI": uri}
    return {**element.to_json_dict(None, 0), "vr": vr}


def _has_no_json(values: Sequence[Any]) -> bool:
    return any(isinstance(value, float) and not math.isfinite(value) for value in values)


def dataset_json(dataset: Dataset, uri: str) -> dict[str, Any]:
    """All attributes of *dataset*, by tag as eight hexadecimal digits; *uri* is the reference to the dataset itself."""
    return dict(_elements(dataset, uri))


def _elements(dataset: Dataset, uri: str) -> Iterator[tuple[str, Any]]:
    for tag in sorted(dataset.keys()):
        if tag.element == 0:
            continue
        name = f"{int(tag):08X}"
        element = element_of(dataset, tag)
        if element is not None and (found := element_json(element, f"{uri}/{name}")) is not None:
            yield name, found


def element_of(dataset: Dataset, tag: Any) -> Optional[DataElement]:
    """pydicom converts a raw value when it is first looked at: None for one that cannot be converted."""
    try:
        return dataset[tag]
    except Exception:  # anything, as above
        return None


def json_chunks(dataset: Dataset, uri: str, extra: dict[str, Any]) -> Iterator[bytes]:
    """The JSON text of *dataset* in pieces: a sequence of 500,000 items is never one string.

    *extra*: attributes by tag that are added, or that replace the dataset's own. Tags ascend (PS3.18 section F.2.2).
    """
    own = {f"{int(tag):08X}": tag for tag in list(dataset.keys()) if tag.element and int(tag) not in _LEFT_OUT}
    separator = b"{"
    for name in sorted(own.keys() | extra.keys()):
        chunks = (
            iter((_member(name, extra[name]),))
            if name in extra
            else _element_chunks(dataset, own[name], f"{uri}/{name}")
        )
        for chunk in chunks:
            yield separator + chunk
            separator = b""
        separator = separator or b","
    yield b"{}" if separator == b"{" else b"}"


def _member(name: str, value: Any) -> bytes:
    return b'"%s":%s' % (name.encode("ascii"), dumps(value))


def _element_chunks(dataset: Dataset, tag: Any, uri: str) -> Iterator[bytes]:
    name = f"{int(tag):08X}"
    element = element_of(dataset, tag)
    if element is None:
        return
    if str(element.VR) != "SQ" or not element.value:
        if (found := element_json(element, uri)) is not None:
            yield _member(name, found)
        return
    opening = b'"%s":{"vr":"SQ","Value":[' % name.encode("ascii")
    for number, item in enumerate(element.value, 1):
        yield opening + dumps(dataset_json(item, f"{uri}/{number}"))
        opening = b","
    yield b"]}"


def dumps(value: Any) -> bytes:
    """*value* as compact JSON in UTF-8; what UTF-8 cannot say (lone surrogates) as question marks."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def find_value(dataset: Dataset, place: Sequence[str]) -> bytes:
    """The binary value that a reference names; *place* is what follows ``bulkdata/``. Raises `NoSuchElement`."""
    try:
        for depth in range(0, len(place) - 1, 2):
            number = int(place[depth + 1])
            if number < 1:
                raise NoSuchElement
            dataset = dataset[int(place[depth], 16)].value[number - 1]
        value = dataset[int(place[-1], 16)].value or b""
        if not isinstance(value, bytes):  # bytes() of a number would be as many zeros
            raise NoSuchElement
        return value
    except Exception:
        raise NoSuchElement("/".join(place)) from None
