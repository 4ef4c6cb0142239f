"""Pictures of frames that are not made here: the stored frame where it is the picture asked for, else the origin's, kept."""

from __future__ import annotations

from typing import Optional

import attrs
from twisted.web.server import Request

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicomweb import negotiation
from twistedproxy.dicomweb.frames import FrameAnswers, cache_outcome, cache_status, note_outcome, picture_status
from twistedproxy.dicomweb.rendered_answers import Keep, take_room
from twistedproxy.dicomweb.requests import asked_of, without_accept
from twistedproxy.frames.pictures import Picture, PictureReader
from twistedproxy.frames.read_through import Wanted
from twistedproxy.imaging.parameters import CACHING
from twistedproxy.rendering.media_types import JPEG, is_gray, is_same_picture
from twistedproxy.server.problems import Problem
from twistedproxy.system.memory_budget import AnswerMemory

ORIGIN_TYPES = ("image/jpeg", "image/png", "image/gif", "image/jp2")
"""What origins render to (PS3.18 table 8.7.4-1)."""


@attrs.frozen
class OriginPictures:
    """Answers with what *pictures* reads."""

    answers: FrameAnswers
    pictures: PictureReader
    memory: AnswerMemory
    keep: Keep

    async def answer(self, request: Request, wanted: Wanted, query: bytes, accept: Optional[bytes]) -> None:
        """``…/frames/{list}/rendered``, as the origin understands *query* and *accept*."""
        if len(wanted.numbers) == 1 and not without_accept(query):
            grant, _ = await self.pictures.reader.granted(wanted.origin, wanted.instance, wanted.caller, [])
            if _is_stored(negotiation.parse_accept(accept, negotiation.query_accept(query)), grant.metadata):
                await self._as_stored(request, wanted)
                return
        wanted = attrs.evolve(wanted, fresh=asked_of(query, CACHING).fresh)
        with self.memory.hold() as held:
            await take_room(self.pictures.reader, held, wanted)
            picture = Picture(wanted, query, accept or b"")
            answer = await held.read(lambda: self.pictures.read(picture), lambda answer: len(answer.rendered.data))
            note_outcome(request, "hit" if answer.cached else "collapsed" if answer.shared else "miss")
            rendered = answer.rendered
            answers = self.answers.of(wanted.fresh)
            await answers.send_single(request, rendered.data, rendered.content_type, picture_status(answer))

    async def _as_stored(self, request: Request, wanted: Wanted) -> None:
        with self.memory.hold() as held:
            answer = await held.read(
                lambda: self.pictures.reader.read(wanted), lambda answer: len(answer.frames[0].data)
            )
            note_outcome(request, cache_outcome(answer))
            sent = await self.answers.send_single(request, answer.frames[0].data, b"image/jpeg", cache_status(answer))
        if sent is not None:
            self.keep(request, wanted.instance, answer, "frames_rendered", sent)


def _is_stored(accepted: negotiation.Wanted, metadata: InstanceMetadata) -> bool:
    """Whether the stored frame is the picture that is accepted."""
    if metadata.transfer_syntax is None or is_gray(metadata) or not is_same_picture(metadata, JPEG):
        return False  # what is gray may have a window: the origin knows
    try:
        return negotiation.choose_rendered(accepted, metadata.transfer_syntax, ORIGIN_TYPES).as_stored
    except Problem:  # the origin may know how to make what we have not heard of
        return False
