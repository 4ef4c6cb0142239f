"""Media types as clients and stores really write them (RFC 9110 sections 8.3.1 and 12.5.1, PS3.18 section 8.7.3.5).

Rules that this file keeps:

- Text is read once, from left to right: time grows with its length only, whatever it holds.
- A ``;`` or ``,`` inside quotes separates nothing. Outside quotes a ``,`` separates in a list, not in a single type.
- Tolerant where the meaning is plain: values unquoted although they hold a slash, a quoted star, single quotes,
  parameters in any order, twice, or inside the quoted type (``type="image/jpeg; transfer-syntax=…"``).
- An entry of a list that is no media type is left out, the others stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import attrs

MAX_LENGTH = 16 * 1024
"""Characters of one header value: twisted.web takes no more for all headers of a request together."""

MULTIPART_RELATED = "multipart/related"

# Possessive (*+, ++): no way back, so that hostile text cannot make them try every split.
_QUOTES = r'"((?:[^"\\]++|\\.)*+)(?:"|\\?\Z)'  # quotes without an end run to that of the text
_QUOTED = re.compile(_QUOTES, re.DOTALL)
_ENTRY_FIELD = re.compile(rf'((?:[^;,"]++|{_QUOTES})*+)([;,]?)', re.DOTALL)
_FIELD = re.compile(rf'((?:[^;"]++|{_QUOTES})*+)(;?)', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]++/[!#$%&'*+.^_`|~0-9A-Za-z-]++")
_WEIGHT = re.compile(r"[01](?:\.[0-9]{0,9})?|\.[0-9]{1,9}")


class BadMediaType(ValueError):
    """A list of media types is longer than any that makes sense."""


@attrs.frozen
class MediaType:
    """One media type or range.

    *type* is lower-cased ("image/jpeg", "multipart/related", "*/*"); *parameters* have lower-cased names, each
    once: of a doubled one the first that is not a star. *q* is the weight, 0 to 1 (0: not acceptable).
    """

    type: str
    parameters: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    q: float = 1.0

    @property
    def is_multipart(self) -> bool:
        """Whether it is a type of several parts (RFC 2046 section 5.1), or a range of such types."""
        return self.type.startswith("multipart/")

    @property
    def part_type(self) -> str | None:
        """The lower-cased type of the parts of a multipart type, without parameters; None where it is missing."""
        if not self.is_multipart:
            return self.type
        return self.parameters.get("type")

    @property
    def transfer_syntax(self) -> str | None:
        """The transfer-syntax parameter: a UID, ``*``, or None."""
        return self.parameters.get("transfer-syntax") or None

    @property
    def boundary(self) -> bytes | None:
        """The boundary parameter, None where it is missing, empty or in single quotes: these may belong to it (RFC 2046
        section 5.1.1), or not (dicomweb-pacs). Only the body shows which."""
        boundary = self.parameters.get("boundary", "")
        return None if _in_single_quotes(boundary) else boundary.encode("latin-1", "replace") or None


def parse_media_type(text: str | bytes) -> MediaType | None:
    """Read one media type (a Content-Type); a comma is part of it. None for what is none, or longer than `MAX_LENGTH`."""
    return next(_read(text, _FIELD)) if len(text) <= MAX_LENGTH else None


def parse_media_type_list(text: str | bytes | None) -> list[MediaType]:
    """Read an Accept header, or the ``accept`` of a query, in the order written.

    Empty or missing: an empty list, which means anything (RFC 9110 section 12.5.1). Raises `BadMediaType`
    only for what is longer than `MAX_LENGTH`.
    """
    if text and len(text) > MAX_LENGTH:
        raise BadMediaType(f"a media type of more than {MAX_LENGTH} characters")
    return [media_type for media_type in _read(text or "", _ENTRY_FIELD) if media_type is not None]


def covers(accepted: str, offered: str) -> bool:
    """Whether the type or range *accepted* (``image/*``, ``*/*``) takes in *offered*; both lower-cased."""
    if accepted in ("*/*", offered):
        return True
    return accepted.endswith("/*") and offered.startswith(accepted[:-1])


def _read(text: str | bytes, pattern: re.Pattern[str]) -> Iterator[MediaType | None]:
    """The media types in *text*, None for an entry that is none. *pattern*: a field, and the separator behind it."""
    fields: list[str] = []
    for match in pattern.finditer(text.decode("latin-1") if isinstance(text, bytes) else text):
        fields.append(match.group(1))
        if match.group(3) != ";":
            yield _media_type(fields)
            fields.clear()


def _unquoted(field: str) -> tuple[str, str | None]:
    """What stands before the quotes of a field, and in them; what follows them is dropped."""
    match = _QUOTED.search(field)
    return (field, None) if match is None else (field[: match.start()], _ESCAPE.sub(r"\1", match.group(1)))


def _media_type(fields: Sequence[str]) -> MediaType | None:
    before, quoted = _unquoted(fields[0])
    name = (before if quoted is None else quoted).strip()
    if name == "*":  # Java's HttpURLConnection says "*; q=.2"
        name = "*/*"
    if not _TYPE.fullmatch(name):
        return None
    parameters: dict[str, str] = {}
    for field in fields[1:]:
        _add_parameter(parameters, *_unquoted(field))
    # Orthanc puts the parts' parameters into the quotes of the type.
    inner = parameters.get("type")
    if inner is not None:
        part_type, *rest = inner.split(";")  # inside quotes, and out of the quotes of these quotes: no nesting
        part_type = part_type.strip().lower()
        parameters["type"] = part_type[1:-1] if _in_single_quotes(part_type) else part_type
        for text in rest:
            _add_parameter(parameters, text)
    return MediaType(name.lower(), parameters, _weight(parameters.pop("q", "")))


def _add_parameter(parameters: dict[str, str], text: str, quoted: str | None = None) -> None:
    name, equals, value = text.partition("=")
    name, value = name.strip().lower(), (value if quoted is None else quoted).strip().strip('"')
    if equals and (name not in parameters or (parameters[name] in ("*", "") and value not in ("*", ""))):
        parameters[name] = value


def _in_single_quotes(text: str) -> bool:
    return len(text) > 2 and text[0] == text[-1] == "'"


def _weight(text: str) -> float:
    """RFC 9110 section 12.4.2; an invalid weight counts as missing."""
    return min(float(text), 1.0) if _WEIGHT.fullmatch(text) else 1.0
