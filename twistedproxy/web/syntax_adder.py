"""Adds AvailableTransferSyntaxUID (0008,3002) to the objects of a DICOM JSON array, as they pass.

A viewer that must probe for the transfer syntax takes minutes to open a slide.

Rules kept here:
- an object of up to `MAX_HEAD` bytes (every search answer's) is looked at as a whole, whatever the order of its
  members; of a larger one (metadata of sparse slides: 100 MB) its first `MAX_HEAD` bytes decide, which hold
  (0008,0018) and (0008,3002) where members are sorted as PS3.18 section F.2.2 wants; then it streams;
- the member goes in front of the first greater tag, so sorted members stay sorted;
- all else passes unchanged, byte for byte; what is no array or object of JSON passes as a whole;
- where objects end is found by one pattern for each that came as a whole, else by counting brackets in pieces, with
  functions of `bytes`: a tokenizer in Python takes ten times as long.
"""

from __future__ import annotations

import codecs
import re

from twistedproxy.web.object_syntax import TOKEN, SyntaxLookup, gap_end, whole_object, with_syntax

MAX_HEAD = 64 * 1024  # bytes of an object that are held; looking through them takes 3 ms at worst
PIECE_SIZES = (64 * 1024, 4096, 512)  # what has an object's edge in it is cut smaller, and then read token by token

_BEFORE = b" \t\r\n" + codecs.BOM_UTF8
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_REST_OF_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_SIMPLE_STRING = re.compile(rb'"[^"]*+"')
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"{}[]'))


class SyntaxAdder:
    """A transform of a JSON body. *syntax*: the UID to add, or a function from SOPInstanceUID to it (None: unknown).

    (0002,0010) of the object itself comes before what the function says.
    """

    def __init__(self, syntax: str | SyntaxLookup) -> None:
        self._syntax = syntax
        self._out: list[bytes] = []
        self._carry = b""  # a backslash whose other half has not come
        self._started = self._passes = False
        self._depth = 0
        self._in_string = False
        self._outer: int | None = None  # the depth around the object that we are in
        self._head: list[bytes] | None = None  # what is held of it
        self._head_size = 0

    def feed(self, chunk: bytes) -> bytes:
        chunk = self._carry + chunk
        if not self._started and (begun := chunk.lstrip(_BEFORE)):
            self._started, self._passes = True, begun[:1] not in (b"[", b"{")
        if self._passes:
            self._carry = b""
            return chunk
        cut = _whole_escapes(chunk, len(chunk))
        self._carry = chunk[cut:]
        position = 0
        level = 0
        while position < cut:
            if self._outer is None and not self._in_string:
                position, level = self._whole_objects(chunk, position, cut), 1
            position = self._walk(chunk, position, cut, level)
        return self._taken()

    def close(self) -> bytes:
        """The rest. An object that never ended passes as it came."""
        self._out += self._head or []
        self._head = None
        self._out.append(self._carry)
        self._carry = b""
        return self._taken()

    def _taken(self) -> bytes:
        ready, self._out = b"".join(self._out), []
        return ready

    def _whole_objects(self, data: bytes, position: int, stop: int) -> int:
        """Deal with the objects that are all there from *position* on, before *stop*; return where the last ends."""
        while self._depth <= 1:
            start = gap_end(data, position, stop)
            end = whole_object(data, start, stop)
            if end is None or end - start > MAX_HEAD:
                break
            self._out += (data[position:start], with_syntax(data[start:end], self._syntax))
            position = end
        return position

    def _walk(self, data: bytes, position: int, stop: int, level: int) -> int:
        """Go on from *position* to *stop*, or to the end of the object that is open; return where that is. Pieces
        have that level's size."""
        while position < stop:
            cut = _whole_escapes(data, min(position + PIECE_SIZES[level], stop))
            cut = cut if cut > position else stop  # nothing but backslashes
            position = self._piece(data, position, cut, level)
            if position < cut:
                break
        return position

    def _piece(self, data: bytes, position: int, cut: int, level: int) -> int:
        piece = data[position:cut]
        closers, openers, in_string = _brackets(piece, self._in_string)
        if self._outer is None:
            no_edge = b"{" not in piece
        else:
            no_edge = self._depth - closers > self._outer
        if no_edge:
            self._depth += openers - closers
            self._in_string = in_string
            self._keep(piece)
            return cut
        if level + 1 < len(PIECE_SIZES):
            return self._walk(data, position, cut, level + 1)
        taken = self._read_tokens(piece)
        self._in_string = in_string and taken == len(piece)
        return position + taken

    def _read_tokens(self, piece: bytes) -> int:
        """Find the edges of objects in *piece*; return where the first object ends, or how long the piece is."""
        kept = position = 0
        if self._in_string:
            rest = _REST_OF_STRING.match(piece)
            position = rest.end() if rest else len(piece)
        while token := TOKEN.search(piece, position):
            position = token.end()
            character = token.group()
            if character in (b"{", b"["):
                # Elements of the outermost array, or the one object that is the body.
                if character == b"{" and self._outer is None and self._depth <= 1:
                    self._keep(piece[kept : token.start()])
                    kept = token.start()
                    self._outer, self._head, self._head_size = self._depth, [], 0
                self._depth += 1
            elif character in (b"}", b"]"):
                self._depth -= 1
                if self._outer is not None and self._depth <= self._outer:
                    self._keep(piece[kept:position])
                    self._end_object()
                    return position
            elif character == b'"':  # a string that the piece ends in
                break
        self._keep(piece[kept:])
        return len(piece)

    def _keep(self, piece: bytes) -> None:
        if self._head is None:
            self._out.append(piece)
            return
        self._head.append(piece)
        self._head_size += len(piece)
        if self._head_size > MAX_HEAD:
            self._decide(complete=False)

    def _end_object(self) -> None:
        if self._head is not None:
            self._decide(complete=True)
        self._outer = None

    def _decide(self, complete: bool) -> None:
        text = b"".join(self._head or [])
        self._head = None
        self._out.append(with_syntax(text, self._syntax, complete))


def _brackets(piece: bytes, in_string: bool) -> tuple[int, int, bool]:
    """How many brackets *piece* closes that were open before it, and opens that stay open; whether it ends in a string.

    *piece* must not end between a backslash and what it escapes.
    """
    if b"\\" in piece:
        piece = _ESCAPE.sub(b"", piece)
    # An empty pair of quotes is a string without brackets, or the gap between two strings: without it the
    # rest is inside and outside of strings as before.
    structure = piece.translate(None, _NOT_STRUCTURE)
    if in_string:
        structure = b'"' + structure
    structure = structure.replace(b'""', b"")
    in_string = False
    if b'"' in structure:
        structure = _SIMPLE_STRING.sub(b"", structure)
        structure, quote, _ = structure.partition(b'"')
        in_string = bool(quote)
    size = -1
    while len(structure) != size:
        size = len(structure)
        structure = structure.replace(b"[]", b"").replace(b"{}", b"")
    closers = structure.count(b"}") + structure.count(b"]")
    return closers, len(structure) - closers, in_string


def _whole_escapes(data: bytes, end: int) -> int:
    """The last position up to *end* that is not between a backslash and what it escapes."""
    if data[end - 1 : end] != b"\\":
        return end
    backslashes = end - len(data[:end].rstrip(b"\\"))
    return end - backslashes % 2
