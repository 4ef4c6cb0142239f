"""JSON as stores write it, made fit for a strict parser, and read where it is of moderate size.

Rules:

- A byte order mark is dropped (RFC 8259 section 8.1), bytes that are no UTF-8 become U+FFFD, control characters spaces.
- ``NaN``, ``Infinity`` and numbers that no 64 bits hold become texts: valid where they are dropped, and no number where one
  is needed. Numbers of 64 bits without a sign are valid (PS3.5 section 6.2, UV), but the event parser refuses them.
- Time is linear in the bytes, however they are cut: the event parser begins a text anew with each piece of it, so pieces are
  gathered, and the more of a text has come the more are.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from typing import Any

BLOCK = 32 << 10
"""Bytes that are gathered: the parser takes 1 ms for them."""
MAX_BLOCK = 1 << 20
"""Bytes of a text that are gathered before the parser begins it once more: the reactor waits at most 0.1 s for them."""
MAX_VALUE = 16 << 20
"""Bytes of one text."""
MAX_NUMBER = 256
"""Characters of one number. Those of DICOM have at most 20."""

_SPACES = bytes(32 if byte < 32 else byte for byte in range(256))
_WORD = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz+-."
_DELIMITERS = (b" ", b":", b",", b"[")
_ESCAPE = re.compile(rb"\\.")

# Finding these in a copy where all digits are 0 is ten times as fast as searching for _ODD.
_SHAPES = bytes.maketrans(b"123456789E ,[", b"000000000e:::")
_LONG, _EXPONENT = b":" + b"0" * 19, b"e000"
_ODD = re.compile(rb"(?<=[ :,\[])-?(?:NaN|Infinity|(?:[0-9]{19}|[0-9][0-9.]*[eE][+-]?[0-9]{3})[0-9.eE+-]*)")


class BadJson(ValueError):
    """A text or a number is longer than any that is needed."""


def read_json(answer: bytes) -> Any:
    """The value that a whole answer of moderate size holds. Raises ValueError and RecursionError, as `json.loads` does."""
    return json.loads(answer.decode("utf-8-sig", "replace"), strict=False)


class LenientJson:
    """Feed it JSON in chunks; it gives back blocks for a strict parser. *block*: bytes that are gathered."""

    def __init__(self, block: int = BLOCK) -> None:
        self._block_size = block
        self._chunks: list[bytes] = []
        self._size = 0
        self._first = True
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._tail = b""  # the beginning of a token that is not all there
        self.in_string = False
        """Whether what was given out ends within a text."""
        self._open = 0  # bytes of the text that has begun

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes; return what is ready, perhaps nothing. Raises `BadJson`."""
        self._chunks.append(chunk)
        self._size += len(chunk)
        enough = min(max(self._block_size, self._open), MAX_BLOCK)
        return self._block(False) if self._size >= enough or self._open + self._size > MAX_VALUE else b""

    def close(self) -> bytes:
        """The rest. Raises `BadJson`."""
        return self._block(True)

    def _block(self, final: bool) -> bytes:
        # A tail goes before what the decoder holds, and in valid JSON there is only one of them.
        data = b"".join((self._tail, *self._chunks))
        self._chunks, self._size, self._tail = [], 0, b""
        if self._first:
            self._first, data = False, data.removeprefix(codecs.BOM_UTF8)
        if not data.isascii() or self._decoder.getstate()[0]:
            data = self._decoder.decode(data, final).encode()
        data = data.translate(_SPACES)
        if not final:
            data = self._without_tail(data)
        begun_in_string = self.in_string
        if not self._count(data) and begun_in_string:
            return data
        if not self.in_string and not final:
            data = self._without_word(data)
        return _mended(data, begun_in_string) if _may_hold_odd(data) else data

    def _without_tail(self, data: bytes) -> bytes:
        """*data* but for a backslash at the end whose other half has not come."""
        if data.endswith(b"\\") and (len(data) - len(data.rstrip(b"\\"))) % 2:
            self._tail = b"\\"
            return data[:-1]
        return data

    def _without_word(self, data: bytes) -> bytes:
        """*data*, which do not end in a text, but for the delimiter of a number or word that follows or may go on."""
        cut = len(data.rstrip(_WORD))
        if len(data) - cut > MAX_NUMBER:
            raise BadJson(f"a number of more than {MAX_NUMBER} characters")
        if data[cut - 1 : cut] in _DELIMITERS:
            cut -= 1
        self._tail = data[cut:] + self._tail
        return data[:cut]

    def _count(self, data: bytes) -> int:
        """See whether *data* ends in a text, and how much of it has come; return how many quotes begin or end one."""
        bare = _ESCAPE.sub(b"", data) if b"\\" in data else data
        quotes = bare.count(b'"')
        self.in_string ^= bool(quotes % 2)
        self._open = self._open + len(data) if not quotes else len(bare) - bare.rfind(b'"') - 1
        if not self.in_string:
            self._open = 0
        elif self._open > MAX_VALUE:
            raise BadJson(f"a value of more than {MAX_VALUE} bytes")
        return quotes


def _may_hold_odd(data: bytes) -> bool:
    if b"NaN" in data or b"Infinity" in data:
        return True
    shapes = data.translate(_SHAPES, b"+-")
    return _LONG in shapes or (b"0e" in shapes and _EXPONENT in shapes)


def _mended(data: bytes, in_string: bool) -> bytes:
    """*data*, which begin *in_string* or not, with quotes around what no strict parser takes for a number."""
    out: list[bytes] = []
    position = 0
    for match in _ODD.finditer(data):
        before = data[position : match.start()]
        in_string ^= bool((_ESCAPE.sub(b"", before) if b"\\" in before else before).count(b'"') % 2)
        token = match.group()
        if not in_string and len(token) > MAX_NUMBER:
            raise BadJson(f"a number of more than {MAX_NUMBER} characters")
        out += (before, token if in_string or _fits(token) else b'"%s"' % token)
        position = match.end()
    return b"".join((*out, data[position:]))


def _fits(number: bytes) -> bool:
    """Whether *number* is one of 64 bits; what is none at all is left to the parser."""
    try:
        if number.lstrip(b"-").isdigit():
            return abs(int(number)) < 2**63  # yajl refuses -2**63
        return math.isfinite(float(number))
    except ValueError:
        return True


def first_value(attributes: Any, tag: str) -> Any:
    """The first value of *tag* in *attributes*, an object of the DICOM JSON Model (PS3.18 annex F); None where it has none."""
    try:
        return attributes[tag]["Value"][0]
    except (KeyError, IndexError, TypeError):
        return None
