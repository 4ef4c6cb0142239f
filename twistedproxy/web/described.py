"""What answers that describe instances are: their form, and the instances in them. Bytes in, values out, no I/O."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterator
from typing import Optional

from twistedproxy.dicom.address import Instance, InvalidUID
from twistedproxy.dicom.media_types import MULTIPART_RELATED
from twistedproxy.origin.interface import Headers, media_type_of
from twistedproxy.web.mounts import Target
from twistedproxy.web.object_syntax import SyntaxLookup
from twistedproxy.web.paths import Kind
from twistedproxy.web.rewriting import Chain, Transform, json_transform, xml_transform

MAX_LOOKUPS = 64
"""Instances of one answer whose transfer syntax is looked up: search pages of viewers are not longer."""

STORED_STATUSES = frozenset({200, 202, 409})
"""Of a STOW that stored all, some or none (PS3.18 table 10.5.3-1)."""

_STEP = re.compile(r"[\s,]*")
_PART_LENGTH = re.compile(rb"\r?\nContent-Length:[ \t]*[0-9]+[ \t]*(?=\r?\n)", re.IGNORECASE)
_MAX_PART_LENGTH = 64  # bytes of such a line

_DESCRIBING = frozenset({Kind.METADATA, Kind.STUDIES, Kind.SEARCH})
_STORING = frozenset({Kind.STUDIES, Kind.STUDY, Kind.INSTANCE})


def is_describing(method: bytes, kind: Kind) -> bool:
    """Whether the answer describes instances: metadata, a search's (PS3.18 sections 10.4, 10.6) or a STOW's (10.5)."""
    if method in (b"GET", b"HEAD"):
        return kind in _DESCRIBING
    return method in (b"POST", b"PUT") and kind in _STORING


class Form(enum.Enum):
    """How an answer describes instances (PS3.18 annex F, PS3.19 annex A)."""

    JSON = "json"
    XML = "xml"
    XML_PARTS = "xml parts"


_FORMS = {
    "application/dicom+json": Form.JSON,
    "application/json": Form.JSON,
    "application/dicom+xml": Form.XML,
    "application/xml": Form.XML,
    "text/xml": Form.XML,
}


def form_of(headers: Headers) -> Optional[Form]:
    """The form of an answer with these headers; None for what cannot be looked into, an encoded one too."""
    values = {name.lower(): value for name, value in headers}
    if values.get(b"content-encoding", b"identity").strip().lower() not in (b"", b"identity"):
        return None
    media_type = media_type_of(headers)
    if media_type is None:
        return None
    if media_type.type == MULTIPART_RELATED:
        return Form.XML_PARTS if _FORMS.get(media_type.part_type or "") is Form.XML else None
    return _FORMS.get(media_type.type)


def transform_of(form: Form, base_from: str, base_to: str, syntaxes: SyntaxLookup, asked: str) -> Transform:
    """What an answer in *form* goes through; see `twistedproxy.web.rewriting`."""
    if form is Form.JSON:
        return json_transform(base_from, base_to, syntaxes, asked)
    xml = xml_transform(base_from, base_to)
    return Chain((PartLengths(), xml)) if form is Form.XML_PARTS else xml


class PartLengths:
    """Leaves Content-Length out of the parts' headers: it would not be true any more, and nobody needs it."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        data = _PART_LENGTH.sub(b"", self._held + chunk)
        cut = data.rfind(b"\n", max(0, len(data) - _MAX_PART_LENGTH))
        cut = len(data) if cut < 0 else cut - (data[cut - 1 : cut] == b"\r")
        self._held = data[cut:]
        return data[:cut]

    def close(self) -> bytes:
        rest, self._held = self._held, b""
        return rest


def instances_in(answer: bytes, target: Target) -> Iterator[Optional[Instance]]:
    """The first instances that a DICOM JSON *answer*, or the beginning of one, describes without a transfer syntax,
    as far as it places them (PS3.18 annex F). None for each object in between: decoding many takes its time."""
    text = answer.decode("utf-8-sig", "replace")
    if '"00080018"' not in text or text.lstrip()[:1] != "[":
        return
    decoder = json.JSONDecoder(strict=False)
    position = text.index("[") + 1
    found = 0
    while found < MAX_LOOKUPS:
        step = _STEP.match(text, position)
        try:
            attributes, position = decoder.raw_decode(text, step.end() if step else position)
        except (ValueError, RecursionError):  # the end, or what is no JSON
            break
        instance = _placed(attributes, target)
        found += instance is not None
        yield instance


def _placed(attributes: object, target: Target) -> Optional[Instance]:
    if not isinstance(attributes, dict) or {"00083002", "00020010"} & attributes.keys():
        return None
    study = _uid(attributes, "0020000D") or target.resource.study
    series = _uid(attributes, "0020000E") or target.resource.series
    sop = _uid(attributes, "00080018")
    if not study or not series or not sop:
        return None
    try:
        return Instance(target.origin.url, target.resource.root, study, series, sop)
    except InvalidUID:
        return None


def _uid(attributes: dict[str, object], tag: str) -> Optional[str]:
    try:
        value = attributes[tag]["Value"][0]  # type: ignore[index]
    except (KeyError, IndexError, TypeError):
        return None
    return value if isinstance(value, str) else None
