"""Answers made of frames in the cache before a request is parsed in full, where reading them takes no waiting.

- What does not depend on the frames (CORS, what caches may do, the form) is taken from an answer of the ordinary way to the same
  instance, Accept and Origin: a *template*. Type, length and ETag are made as the ordinary way makes them.
- The grant is looked up for each answer, and must be of the instance's present fence.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Optional, cast

import attrs

from twistedproxy.cache.interface import Cache
from twistedproxy.dicom.multipart_writer import MultipartForm, begun_parts_digest, content_digest, part_content_type
from twistedproxy.dicom.negotiation import FrameForm
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.access import Access
from twistedproxy.frames.entries import AFTER_EXPIRY, frame_heads, frame_name
from twistedproxy.frames.grants import Grant
from twistedproxy.frames.invalidation import Invalidation
from twistedproxy.frames.read_through import FrameRequest
from twistedproxy.frames.streamed import LONG
from twistedproxy.hot.responses import MAX_ANSWER, Key
from twistedproxy.origin.interface import Caller, Origin
from twistedproxy.server.conditional import entity_tag

MAX_TEMPLATES = 4096
"""Templates that are kept: one for each instance and viewer; about 1.5 kB each."""

MAX_NOTED = 10_000
"""Frames of a template whose use is known."""

MAX_KEY = 2048
"""Bytes of a request target, Accept and Origin that are remembered."""

_FRAMES = b"/frames/"
_LIST = re.compile(rb"[1-9][0-9]{0,8}(?:,[1-9][0-9]{0,8})+")
ZERO = ord("0")
MAX_DIGITS = 9
_VALUES = re.compile(
    rb"(.*\r\nETag: )[^\r]*(\r\n.*Content-Type: )[^\r]*(\r\nContent-Length: )[0-9]*(\r\n.*)", re.DOTALL
)
"""Header lines around the values that depend on the frames."""

Used = Callable[[FrameRequest, Grant, int], None]
"""Called with a request for frames that were loaded ahead of any and are asked for for the first time, as far as is known; with the
grant, and the bytes of one, about."""


@attrs.frozen
class Template:
    """An answer without what depends on its frames, as formats. *asked*, *ahead*, *start*: see `frame_heads`. *head*: the header lines,
    with ETag, boundary (where there are parts) and length to be filled in; *first*, *next*, *end*: what stands before the first part,
    before others, and after the last, with boundary and length (*end*: boundary) to be filled in; empty where there are no parts.
    *digest*: begins the digest of the parts."""

    origin: Origin
    instance: Instance
    asked: bytes
    ahead: bytes
    start: int
    content_type: bytes
    head: bytes
    first: bytes
    next: bytes
    end: bytes
    digest: Any
    noted: set[int] = attrs.Factory(set)
    """Frames that were loaded ahead and whose use is known."""

    @classmethod
    def of(
        cls, origin: Origin, instance: Instance, form: FrameForm, stored: str, lines: Sequence[bytes]
    ) -> Template:  # fmt: skip
        """The template of answers in *form*, *lines* being the header lines around ETag, Content-Type and Content-Length."""
        before, type_, length, after = [line.replace(b"%", b"%%") for line in lines]
        part_type = part_content_type(form.media_type, form.transfer_syntax).encode("ascii")
        first = next_ = end = b""
        content_type = part_type
        if form.multipart:
            body = MultipartForm.of(form.media_type, form.transfer_syntax, "%b")
            content_type, next_, end = body.content_type, body.part + b"%d\r\n\r\n", body.end
            first = next_[2:]
        head = b'%b"%%b"%b%b%b%%d%b' % (before, type_, content_type, length, after)
        digest = begun_parts_digest(form.media_type, form.transfer_syntax)
        return cls(origin, instance, *frame_heads(stored), part_type, head, first, next_, end, digest)

    def answer(self, frames: Sequence[bytes], digests: Sequence[bytes]) -> CachedAnswer:
        """The answer of these frames, whose digests are known."""
        if not self.end:
            etag, size = entity_tag(self.content_type, digests[0]), len(frames[0])
            return CachedAnswer("frames", etag, self.head % (etag[1:-1], size), frames, size)
        digest = self.digest.copy()
        digest.update(digests[0] if len(digests) == 1 else b"".join(digests))
        boundary = digest.hexdigest().encode("ascii")
        pieces = [self.first % (boundary, len(frames[0])), frames[0], self.end % boundary]
        for frame in frames[1:]:
            pieces[-1:-1] = (self.next % (boundary, len(frame)), frame)
        size = sum(map(len, pieces))
        return CachedAnswer("frames", b'"%b"' % boundary, self.head % (boundary, boundary, size), pieces, size)


class CachedAnswer(NamedTuple):
    """An answer with status 200; see `HotAnswer`."""

    route: str
    etag: bytes
    head: bytes
    pieces: Sequence[bytes]
    length: int


@attrs.define(eq=False)
class CachedAnswers:
    """Makes the answers of one worker. *max_frames*: of one request.

    On the way of every cached frame: a function call more takes 0.5 us there, twice what it takes by itself.
    """

    cache: Cache
    access: Access
    invalidation: Invalidation
    max_frames: int
    used: Used
    _templates: OrderedDict[tuple[bytes, bytes, bytes, bool], Template] = attrs.field(init=False, factory=OrderedDict)

    def find(self, key: Key, caller: Caller) -> Optional[CachedAnswer]:
        """The answer of *key*, if it may be given to *caller* now, and without waiting for anything."""
        prefix, _, tail = key[0].rpartition(_FRAMES)
        single = tail.isdigit()
        if single and (len(tail) > MAX_DIGITS or tail[0] == ZERO):
            return None
        template = self._templates.get((prefix, key[1], key[2], single))
        if template is None or self.invalidation.pending:
            return None
        grant = self.access.known_for_long(caller, template.instance)
        if grant is None:
            return None
        if not single:
            return self._list(template, grant, caller, tail)
        number = int(tail)
        read = self.cache.read_now(template.instance, (frame_name(number),))
        if read is None or read[0] != grant.fence or number > grant.metadata.frames:
            return None
        ((value, digest),) = read[1]
        head, frame = value[AFTER_EXPIRY : template.start], cast(bytes, value[template.start :])
        if head == template.ahead:
            if number not in template.noted:
                self._note(template, grant, caller, [number], len(frame))
        elif head != template.asked:
            return None
        return template.answer((frame,), (digest or content_digest((frame,)),)) if len(frame) <= MAX_ANSWER else None

    def _list(self, template: Template, grant: Grant, caller: Caller, text: bytes) -> Optional[CachedAnswer]:
        """The answer of the frames that the list *text* names."""
        numbers = self._numbers(text, grant)
        read = None if numbers is None else self.cache.read_now(template.instance, list(map(frame_name, numbers)))
        if numbers is None or read is None or read[0] != grant.fence or max(numbers) > grant.metadata.frames:
            return None
        heads = [bytes(value[AFTER_EXPIRY : template.start]) for value, _ in read[1]]
        frames = [cast(bytes, value[template.start :]) for value, _ in read[1]]
        if not {template.asked, template.ahead}.issuperset(heads) or sum(map(len, frames)) > MAX_ANSWER:
            return None
        ahead = [number for number, head in zip(numbers, heads) if head == template.ahead]
        if not template.noted.issuperset(ahead):
            self._note(template, grant, caller, ahead, len(frames[0]))
        digests = [digest or content_digest((frame,)) for frame, (_, digest) in zip(frames, read[1])]
        return template.answer(frames, digests)

    def _note(self, template: Template, grant: Grant, caller: Caller, numbers: list[int], size: int) -> None:
        """Let it be known that frames are asked for that were loaded ahead of any request."""
        if len(template.noted) > MAX_NOTED:
            template.noted.clear()
        template.noted.update(numbers)
        self.used(FrameRequest(template.origin, template.instance, tuple(numbers), caller), grant, size)

    def _numbers(self, text: bytes, grant: Grant) -> Optional[tuple[int, ...]]:
        """The frames that the list *text* names, if it does so plainly, and they are few."""
        if _LIST.fullmatch(text) is None or text.count(b",") >= self.max_frames:
            return None
        numbers = tuple(map(int, text.split(b",")))
        return None if len(numbers) * grant.most > LONG else numbers

    def learn(
        self, key: Key, origin: Origin, instance: Instance, form: FrameForm, stored: str, head: bytes
    ) -> None:  # fmt: skip
        """Take a template from the ordinary answer to *key*, of frames in the transfer syntax *stored*; *head*: its header lines."""
        prefix, separator, tail = key[0].rpartition(_FRAMES)
        cut = _VALUES.fullmatch(head)
        plain = tail.isdigit() or _LIST.fullmatch(tail) is not None
        if separator and cut is not None and plain and b"?" not in key[0] and sum(map(len, key)) <= MAX_KEY:
            template = Template.of(origin, instance, form, stored, cut.groups())
            self._templates[prefix, key[1], key[2], tail.isdigit()] = template
            if len(self._templates) > MAX_TEMPLATES:
                self._templates.popitem(last=False)
