"""From Accept to the form of an answer (RFC 9110 section 12.5.1, DICOM PS3.18 sections 8.7.3 to 8.7.5).

Rules kept here:
- a frame goes out as stored unless the request asks for another form; among forms of equal weight the stored one wins;
- ``application/octet-stream`` with a transfer syntax, ``*`` too, is met by the stored frame whatever its true type
  is, and the label says the true type; without one it means Explicit VR Little Endian (PS3.18 table 8.7.3-5) and
  nothing else, since its readers take the bytes for pixels;
- another type without a transfer syntax is met by every syntax of that type: the table's defaults (``image/jpeg``
  would mean lossless only) are not what clients mean;
- one bare type (not multipart) is answered in a single part if one frame was asked for; ``*/*`` means multipart;
- what cannot be made is a 406 that lists what there is: wsidicom takes only that to mean "not this syntax";
- the most specific range decides on a form, its weight 0 forbids it; then the highest weight wins, then what is
  stored, then what was named first.

Two stages, so that the way of a frame finds both remembered: `parse_accept`, then `choose_frames`.

A folder has one form of each thing, and is more tolerant: `check_json` and `wants_bare`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Optional
from urllib.parse import unquote_to_bytes

import attrs

from twistedproxy.dicom.media_types import MULTIPART_RELATED, MediaType, covers, parse_media_type_list
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.multipart_writer import part_content_type
from twistedproxy.dicom.transfer_syntaxes import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    OCTET_STREAM,
    canonical_media_type,
    frame_uid,
    media_type_of,
)

MAX_RANGES = 64  # media ranges of one Accept that count; clients send up to a dozen
CACHED_ACCEPTS = 512  # clients send a handful of different ones
MAX_CACHED_ACCEPT = 1024  # bytes; longer ones are parsed each time
CACHED_CHOICES = 4096

ANY = "*/*"
DICOM_JSON = ("application/dicom+json", "application/json")
"""The names in use of DICOM JSON (PS3.18 section 8.7.3.2)."""

_ENCODED_SPACE = re.compile(rb"([;,])\++")


@attrs.define(eq=False)
class NotAcceptable(Exception):
    """Nothing that there is is accepted. *available*: what there is, as it could stand in Accept."""

    available: Sequence[str]

    def __str__(self) -> str:
        return "none of the media types in Accept is available; available: " + ", ".join(self.available)


@attrs.frozen
class Range:
    """One media range of an Accept: the type of the whole or, for multipart, of its parts; canonical names."""

    media_type: str
    multipart: bool
    transfer_syntax: str | None
    q: float


# Compared by identity: `parse_accept` remembers, and hashing the ranges each time would cost more than it saves.
@attrs.frozen(eq=False)
class AcceptedTypes:
    """What a request accepts, in the order written; anything, where it does not say."""

    ranges: tuple[Range, ...] = (Range("*/*", True, None, 1.0),)


@attrs.frozen
class FrameForm:
    """The form of the answer to a request for frames.

    *transfer_syntax* labels the frames: that of the bytes (Explicit VR Little Endian for every native little endian
    frame); None for pictures. *as_stored*: the frames' bytes are the stored ones; else they must be transcoded to this.
    """

    multipart: bool
    media_type: str
    transfer_syntax: Optional[str]
    as_stored: bool


def query_accept(query: bytes) -> bytes | None:
    """The value of ``accept`` in a raw query string (PS3.18 section 8.3.3.1), decoded; None where it is missing or empty.

    A ``+`` stays one (``dicom+json``), but for those behind a separator: there they were spaces.
    """
    for field in query.split(b"&"):
        if field[:7].lower() == b"accept=":
            return _ENCODED_SPACE.sub(rb"\1 ", unquote_to_bytes(field[7:])).strip() or None
    return None


def parse_accept(accept: bytes | None, accept_in_query: bytes | None = None) -> AcceptedTypes:
    """Read Accept (its lines joined by commas); one in the query replaces it.

    A missing or empty one accepts anything. One that holds no media range accepts nothing.
    Raises `BadMediaType` for one of more than 16 KiB.
    """
    text = accept_in_query or accept or b""
    return _parse_remembered(text) if len(text) <= MAX_CACHED_ACCEPT else _parse(text)


def choose_frames(
    accepted: AcceptedTypes, stored_transfer_syntax: str, frame_count: int, producible: tuple[str, ...] = ()
) -> FrameForm:
    """The form in which to answer *frame_count* frames that are stored in that transfer syntax.

    *producible*: UIDs of transfer syntaxes that the frames could be transcoded to, the preferred ones first.
    Raises `NotAcceptable` where neither is accepted.
    """
    _, form = _choose_frames(accepted, stored_transfer_syntax, frame_count == 1, producible)
    if form is None:
        offers = _offers(stored_transfer_syntax, frame_count == 1, producible)
        raise NotAcceptable([_described(offer) for offer in offers])
    return form


@attrs.frozen(eq=False)
class FormChoice:
    """The form of the answer to one request. *producible*: gives the transfer syntaxes that frames of an instance, stored in
    one, could be transcoded to."""

    accepted: AcceptedTypes
    frame_count: int
    producible: Callable[[InstanceMetadata, str], tuple[str, ...]]

    def check(self, metadata: InstanceMetadata) -> None:
        """Choose as soon as the metadata show how the frames are stored. Raises `NotAcceptable`."""
        stored = metadata.transfer_syntax
        if stored is not None:  # stores give frames in big endian in little endian
            self.of(metadata, EXPLICIT_VR_LITTLE_ENDIAN if stored == EXPLICIT_VR_BIG_ENDIAN else stored)

    def of(self, metadata: InstanceMetadata, stored: str) -> FrameForm:
        """The form of frames that are stored in that transfer syntax. Raises `NotAcceptable`."""
        form = self._best(stored)
        return form or choose_frames(self.accepted, stored, self.frame_count, self.producible(metadata, stored))

    def takes(self, stored: str) -> bool:
        """Whether frames that are stored in that transfer syntax are answered as they are, whatever could be made of them."""
        return self._best(stored) is not None

    def _best(self, stored: str) -> Optional[FrameForm]:
        """The form of frames as they are stored, if no other can be better."""
        weight, form = _choose_frames(self.accepted, stored, self.frame_count == 1, ())
        return form if weight >= 1 else None


def choose_type(accepted: AcceptedTypes, available: Sequence[str]) -> str:
    """The best of *available* media types, the preferred ones first, for an answer that is no multipart.

    Raises `NotAcceptable`.
    """
    weights = [_best_range(accepted, functools.partial(_is_bare, media_type))[1] for media_type in available]
    if not any(weights):
        raise NotAcceptable(available)
    return available[weights.index(max(weights))]


def _is_bare(media_type: str, range_: Range) -> bool:
    """Whether the range asks for *media_type*, not multipart."""
    return covers(range_.media_type, media_type) and (not range_.multipart or range_.media_type == ANY)


def _best_range(accepted: AcceptedTypes, meets: Callable[[Range], bool]) -> tuple[tuple[int, bool], float, int]:
    """The range that decides, of those that *meets* is true of: how specific it is, its weight and its place in the list,
    counted down. A weight of 0 where there is none."""
    found = [(_specificity(one), one.q, -place) for place, one in enumerate(accepted.ranges) if meets(one)]
    return max(found, default=((0, False), 0.0, 0))


def check_json(accepted: AcceptedTypes) -> None:
    """Raises `NotAcceptable` where DICOM JSON (PS3.18 annex F) is not accepted."""
    # Clients merge a multipart type into requests for metadata; that it cannot be JSON is not meant.
    wanted = _with_weight(accepted)
    if wanted and not any(one.multipart or any(covers(one.media_type, name) for name in DICOM_JSON) for one in wanted):
        raise NotAcceptable(DICOM_JSON[:1])


def wants_bare(accepted: AcceptedTypes, media_type: str, transfer_syntax: Optional[str] = None) -> bool:
    """Whether the first range that fits asks for a bare body of *media_type* in that transfer syntax, as stored, rather than
    for multipart. Raises `NotAcceptable` where none fits."""
    wanted = _with_weight(accepted)
    first = next((one for one in wanted if _fits(one, media_type, transfer_syntax)), None)
    if wanted and first is None:
        raise NotAcceptable([_multipart_type(media_type, transfer_syntax)])
    return first is not None and not first.multipart


def asks_for(accept: bytes | None, media_type: str) -> bool:
    """Whether an Accept header asks for *media_type* by its name, with a weight above 0."""
    return any(range_.media_type == media_type for range_ in _with_weight(parse_accept(accept)))


def _with_weight(accepted: AcceptedTypes) -> list[Range]:
    return [one for one in accepted.ranges if one.q > 0]


def _fits(range_: Range, media_type: str, transfer_syntax: Optional[str]) -> bool:
    if transfer_syntax is None or range_.transfer_syntax == "*":
        # Asked for octets in any transfer syntax: as stored, labelled with the true type.
        return covers(range_.media_type, media_type) or range_.media_type == OCTET_STREAM
    return covers(range_.media_type, media_type) and range_.transfer_syntax in (None, transfer_syntax)


def _parse(text: bytes) -> AcceptedTypes:
    if not text.strip():
        return AcceptedTypes()
    return AcceptedTypes(tuple(map(_range, parse_media_type_list(text)[:MAX_RANGES])))


_parse_remembered = functools.lru_cache(maxsize=CACHED_ACCEPTS)(_parse)


def _range(media_type: MediaType) -> Range:
    multipart = media_type.is_multipart or media_type.type == ANY
    part_type = media_type.part_type or ANY
    if multipart and media_type.type not in (ANY, "multipart/*", MULTIPART_RELATED):
        part_type = media_type.type  # another multipart: no frame comes so
    if "/" not in part_type:  # some say type=* for type="*/*"
        part_type = ANY if part_type == "*" else part_type
    return Range(canonical_media_type(part_type), multipart, media_type.transfer_syntax, media_type.q)


def _offers(stored: str, single: bool, producible: Iterable[str]) -> Iterable[FrameForm]:
    """All that could be answered, the preferred first. Frames in implicit VR or deflated files go as explicit VR, frames
    that a store gave in big endian not as they are (PS3.18 section 8.7.3)."""
    label, swapped = frame_uid(stored), stored == EXPLICIT_VR_BIG_ENDIAN
    for uid in dict.fromkeys(producible if swapped else (label, *producible)):
        as_stored = uid == label and not swapped
        for multipart in (True, False) if single else (True,):
            yield FrameForm(multipart, media_type_of(uid), uid, as_stored)


@functools.lru_cache(maxsize=CACHED_CHOICES)
def _choose_frames(
    accepted: AcceptedTypes, stored: str, single: bool, producible: tuple[str, ...]
) -> tuple[float, Optional[FrameForm]]:
    """The best form, and the weight that it has."""
    best: tuple[float, bool, int] = (0.0, False, 0)
    form: Optional[FrameForm] = None
    for offer in _offers(stored, single, producible):
        _, q, place = _best_range(accepted, functools.partial(_meets, offer, stored))
        if q > 0 and (form is None or (q, offer.as_stored, place) > best):
            best, form = (q, offer.as_stored, place), offer
    return best[0], form


def _meets(form: FrameForm, stored: str, range_: Range) -> bool:
    """Whether the range asks for *form*; what is as stored may be asked for by the transfer syntax of the instance, too."""
    if range_.multipart != form.multipart:
        return False
    wanted_uid = range_.transfer_syntax
    if wanted_uid not in (None, "*", form.transfer_syntax) and not (form.as_stored and wanted_uid == stored):
        return False
    if range_.media_type == OCTET_STREAM:
        if wanted_uid is None:
            return form.transfer_syntax == EXPLICIT_VR_LITTLE_ENDIAN
        return form.as_stored or form.media_type == OCTET_STREAM
    return covers(range_.media_type, form.media_type)


def _specificity(range_: Range) -> tuple[int, bool]:
    """How exactly a range says what it means: any type, a family or a type; then, a transfer syntax or not."""
    family = 0 if range_.media_type == ANY else 1 if range_.media_type.endswith("/*") else 2
    return family, range_.transfer_syntax not in (None, "*")


def _described(form: FrameForm) -> str:
    """An offer as it could stand in Accept."""
    return (_multipart_type if form.multipart else part_content_type)(form.media_type, form.transfer_syntax)


def _multipart_type(media_type: str, transfer_syntax: Optional[str]) -> str:
    return f'{MULTIPART_RELATED}; type="{media_type}"' + (
        f"; transfer-syntax={transfer_syntax}" if transfer_syntax else ""
    )
