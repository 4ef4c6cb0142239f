"""One object of a DICOM JSON array as text, and (0008,3002) AvailableTransferSyntaxUID in it.

- Members are found by patterns at the speed of `re`, those that are nested too deeply or end too early token by token.
- What is no DICOM JSON is never an error: at worst nothing is added.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from typing import Union

from twistedproxy.dicom.address import InvalidUID, validate_uid

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
