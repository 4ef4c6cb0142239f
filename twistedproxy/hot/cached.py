"""Answers made of frames in the cache before a request is parsed in full, where reading them takes no waiting.

- What does not depend on the frames (CORS, what caches may do, the form) is taken from an answer of the ordinary way to the same
  instance, Accept and Origin: a *template*. Type, length and ETag are made as the ordinary way makes them.
- The grant is looked up for each answer, and must be of the instance's present fence.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Optional

import attrs

from twistedproxy.cache.interface import Cache
from twistedproxy.dicom.multipart_writer import build, content_digest, part_content_type
from twistedproxy.dicom.negotiation import FrameForm
from twistedproxy.dicom.resource import Instance
from twistedproxy.frames.access import Access
from twistedproxy.frames.entries import BadEntry, frame_name, unpack_frame, was_prefetched
from twistedproxy.frames.grants import Grant
from twistedproxy.frames.invalidation import Invalidation
from twistedproxy.frames.streamed import LONG
from twistedproxy.hot.responses import MAX_ANSWER, Key
from twistedproxy.origin.interface import Caller
from twistedproxy.server.conditional import entity_tag

MAX_TEMPLATES = 4096
"""Templates that are kept: one for each instance and viewer; about 1.5 kB each."""

MAX_FRAMES = 100
"""Frames of one answer."""

_FRAMES = b"/frames/"
_NUMBERS = re.compile(rb"[1-9][0-9]{0,8}(?:,[1-9][0-9]{0,8})*")
_VALUES = re.compile(
    rb"(.*\r\nETag: )[^\r]*(\r\n.*Content-Type: )[^\r]*(\r\nContent-Length: )[0-9]*(\r\n.*)", re.DOTALL
)
"""Header lines around the values that depend on the frames."""

Used = Callable[[Instance, int, Sequence[int]], None]
"""Called with an instance, its number of frames, and frames that were loaded ahead of any request and are asked for now."""


@attrs.frozen
class Template:
    """*stored*: the transfer syntax of the frames; *parts*: the header lines around ETag, Content-Type and Content-Length."""

    instance: Instance
    form: FrameForm
    stored: str
    parts: Sequence[bytes]


@attrs.frozen
class CachedAnswer:
    """An answer with status 200; see `HotAnswer`."""

    route: str
    etag: bytes
    head: bytes
    body: bytes


@attrs.define(eq=False)
class CachedAnswers:
    """Makes the answers of one worker. *max_frames*: of one request."""

    cache: Cache
    access: Access
    invalidation: Invalidation
    max_frames: int
    used: Used
    _templates: OrderedDict[tuple[Key, bool], Template] = attrs.field(init=False, factory=OrderedDict)

    def find(self, key: Key, caller: Caller) -> Optional[CachedAnswer]:
        """The answer of *key*, if it may be given to *caller* now, and without waiting for anything."""
        prefix, separator, tail = key[0].rpartition(_FRAMES)
        if not separator or _NUMBERS.fullmatch(tail) is None:
            return None
        single = b"," not in tail
        template = self._templates.get(((prefix, key[1], key[2]), single))
        if template is None or self.invalidation.pending:
            return None
        grant = self.access.known(caller, template.instance)
        if grant is None or grant.spent(self.access.wall_clock(), self.access.ttl):
            return None
        numbers = (int(tail),) if single else tuple(map(int, tail.split(b",")))
        frames = self._frames(template, grant, numbers)
        return None if frames is None else _answer(template, frames)

    def _frames(self, template: Template, grant: Grant, numbers: Sequence[int]) -> Optional[list[bytes]]:
        """The frames *numbers*, if all are at hand, and are no more than is written at once."""
        count = len(numbers)
        if count > min(MAX_FRAMES, self.max_frames) or (count > 1 and count * grant.most > LONG):
            return None
        if max(numbers) > grant.metadata.frames:
            return None
        frames, prefetched, room = [], [], MAX_ANSWER
        for number in numbers:
            read = self.cache.read_now(template.instance, frame_name(number))
            if read is None or read[0] != grant.fence:
                return None
            room -= len(read[1])
            try:
                frame = unpack_frame(read[1])
            except BadEntry:
                return None
            if room < 0 or frame.transfer_syntax != template.stored:
                return None
            frames.append(frame.data)
            if was_prefetched(read[1]):
                prefetched.append(number)
        if prefetched:
            self.used(template.instance, grant.metadata.frames, prefetched)
        return frames

    def learn(self, key: Key, instance: Instance, form: FrameForm, stored: str, head: bytes) -> None:
        """Take a template from the ordinary answer to *key*, of frames in the transfer syntax *stored*; *head*: its header lines."""
        prefix, separator, tail = key[0].rpartition(_FRAMES)
        cut = _VALUES.fullmatch(head)
        if separator and cut is not None:
            template = Template(instance, form, stored, cut.groups())
            self._templates[(prefix, key[1], key[2]), b"," not in tail] = template
            if len(self._templates) > MAX_TEMPLATES:
                self._templates.popitem(last=False)


def _answer(template: Template, frames: Sequence[bytes]) -> CachedAnswer:
    form, (before, type_, length, after) = template.form, template.parts
    if form.multipart:
        made = build(frames, form.media_type, form.transfer_syntax)
        etag, content_type, body = b'"%s"' % made.digest.encode("ascii"), made.content_type, b"".join(made.chunks)
    else:
        content_type, body = part_content_type(form.media_type, form.transfer_syntax).encode("ascii"), frames[0]
        etag = entity_tag(content_type, content_digest(frames))
    head = b"".join((before, etag, type_, content_type, length, b"%d" % len(body), after))
    return CachedAnswer("frames", etag, head, body)
