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

One object of a DICOM JSON array as text, and (0008,3002) AvailableTransferSyntaxUID in it.

- Members are found by patterns at the speed of `re`, those that are nested too deeply or end too early token by token.
- What is no DICOM JSON is never an error: at worst nothing is added.
"""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Callable, Iterator
from typing import Union

from twistedproxy.dicom.resource import InvalidUID, validate_uid

SyntaxLookup = Callable[[str], Union[str, None]]

_SOP_INSTANCE_UID = b"00080018"
_TRANSFER_SYNTAX_UID = b"00020010"
_AVAILABLE = b"00083002"
_WANTED = (_SOP_INSTANCE_UID, _TRANSFER_SYNTAX_UID)
_INTERESTING = frozenset({_AVAILABLE, *_WANTED})

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
TOKEN = re.compile(_STRING + rb'|[{}\[\]"]', re.DOTALL)  # a lone quote: the string doesn't end in here
_PLAIN_DEPTH = 20  # brackets within brackets that patterns see through: sequences in sequences in sequences


def _balanced(depth: int) -> bytes:
    """A pattern of what stands in brackets and has at most *depth* more within. No kind of bracket is told from another."""
    within = rb'[^"{}\[\]]++|' + _STRING
    deeper = rb"|" + _balanced(depth - 1) if depth else b""
    return rb"[{\[](?:" + within + deeper + rb")*+[}\]]"


_BETWEEN = re.compile(rb"[\s,]*+")
_WHOLE = re.compile(_balanced(_PLAIN_DEPTH), re.DOTALL)
_MEMBER_KEY = re.compile(rb'"[0-9A-Fa-f]{8}"\s*+:\s*+')
_MEMBER_VALUE = re.compile(_balanced(_PLAIN_DEPTH - 1), re.DOTALL)
_TAG = re.compile(rb'"([0-9A-Fa-f]{8})"')
_FIRST_VALUE = re.compile(rb'"Value"\s*+:\s*+\[\s*+"([0-9.]{1,64})[ \0]*"')


def gap_end(text: bytes, position: int, stop: int = sys.maxsize) -> int:
    """Where the spaces and commas that begin at *position* end."""
    match = _BETWEEN.match(text, position, stop)
    return match.end() if match is not None else position


def whole_object(text: bytes, position: int, stop: int) -> int | None:
    """Where the object at *position* ends, before *stop*; None if none begins there, or it is not all there, or its
    brackets are too deep for the pattern."""
    match = _WHOLE.match(text, position, stop) if text[position : position + 1] == b"{" else None
    return None if match is None else match.end()


def with_syntax(text: bytes, syntax: str | SyntaxLookup, complete: bool = True) -> bytes:
    """*text*, a DICOM JSON object or (not *complete*) the beginning of one, with (0008,3002) where that can be said."""
    values: dict[bytes, bytes] = {}
    place: tuple[int, int, bytes] | None = None  # what to replace, and what follows the new member
    last_mention = text.rfind(b'"00083002"')
    for tag, start, stop in _members(text):
        if tag == _AVAILABLE:
            if stop is None or _FIRST_VALUE.search(text, start, stop):
                return text
            place = (start, stop, b"")  # an empty one
        elif tag > _AVAILABLE and place is None:
            place = (start, start, b",")
        if tag in _WANTED and stop is not None and (value := _FIRST_VALUE.search(text, start, stop)):
            values[tag] = value.group(1)
        # Sorted objects are done here; in others the rest may still hold what we look for.
        if place is not None and last_mention < start and (isinstance(syntax, str) or _SOP_INSTANCE_UID in values):
            break
    uid = _known_syntax(values, syntax)
    if uid is None:
        return text
    if place is not None:
        return text[: place[0]] + _member(uid) + place[2] + text[place[1] :]
    return _appended(text, uid) if complete else text


def _appended(text: bytes, uid: str) -> bytes:
    """The member as the last one: every tag of the object is smaller. Nothing where the object is empty."""
    body = text[:-1].rstrip()
    return text if body.endswith(b"{") else body + b"," + _member(uid) + b"}"


def _member(uid: str) -> bytes:
    return b'"00083002":{"vr":"UI","Value":["%s"]}' % uid.encode("ascii")


def _known_syntax(values: dict[bytes, bytes], syntax: str | SyntaxLookup) -> str | None:
    """The UID to add: a fixed one, or for an object that names its instance its own (0002,0010), or what is known."""
    sop = values.get(_SOP_INSTANCE_UID)
    try:
        if isinstance(syntax, str):
            return validate_uid(syntax)
        if sop is None:
            return None
        own = values.get(_TRANSFER_SYNTAX_UID)
        uid = own.decode("ascii") if own else syntax(validate_uid(sop.decode("ascii")))
        return None if uid is None else validate_uid(uid)
    except InvalidUID:
        return None


def _members(text: bytes) -> Iterator[tuple[bytes, int, int | None]]:
    """The members of an object: tag in upper case, where the key begins, where the value ends (None: not in *text*).

    Where the value of an uninteresting member ends is not looked for before the next member is wanted.
    """
    position = gap_end(text, 1)
    while key := _MEMBER_KEY.match(text, position):
        tag = text[position + 1 : position + 9].upper()
        if tag not in _INTERESTING:
            yield tag, position, None
        value = _MEMBER_VALUE.match(text, key.end())
        if value is None:
            break
        if tag in _INTERESTING:
            yield tag, position, value.end()
        position = gap_end(text, value.end())
    yield from _members_by_tokens(text, position)


def _members_by_tokens(text: bytes, position: int) -> Iterator[tuple[bytes, int, int | None]]:
    """The same from *position* on, also where values are nested deeply or are not all there."""
    depth = 1
    tag, start = b"", 0
    for token in TOKEN.finditer(text, position):
        character = token.group()
        if character in (b"{", b"["):
            depth += 1
        elif character in (b"}", b"]"):
            depth -= 1
            if depth == 1 and tag:
                yield tag, start, token.end()
                tag = b""
        elif depth == 1 and (key := _TAG.fullmatch(character)):
            tag, start = key.group(1).upper(), token.start()
        elif character == b'"':
            break
    if tag:
        yield tag, start, None


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
