"""Answers that describe instances: which do, in which form, and what a STOW's says of what it changed. No I/O.

A STOW (DICOM PS3.18 section 10.5 and annex I) changed what the store's answer lists as stored, or else what the parts of
the upload name.

Rules:
- A store's answer is believed where it is a store response. Any other, of a login gateway or of a store in trouble,
  leaves open what was done: then what the parts name counts as changed, and nothing else, for any client can send a POST.
- A caller that was refused (401, 403, 407) changed nothing.
"""

from __future__ import annotations

import enum
import re
from collections.abc import AsyncIterator, Iterable
from typing import Optional

from twistedproxy.dicom.media_types import MULTIPART_RELATED, parse_media_type
from twistedproxy.dicom.multipart import BadMultipart, End, MultipartParser, PartData, PartEnd, PartStart
from twistedproxy.dicom.part10.stream import BadPart10, Part10Stream
from twistedproxy.dicom.resource import InvalidUID, Scope, validate_uid
from twistedproxy.dicomweb.paths import ResourceKind
from twistedproxy.origin.interface import Headers, media_type_of
from twistedproxy.streams import ByteStream, YieldedStream

STORED_STATUSES = frozenset({200, 202, 409})
"""Of a STOW that stored all, some or none (PS3.18 table 10.5.3-1)."""

_DESCRIBING = frozenset({ResourceKind.METADATA, ResourceKind.STUDIES, ResourceKind.SEARCH})
_STORING = frozenset({ResourceKind.STUDIES, ResourceKind.STUDY, ResourceKind.INSTANCE})


def is_describing(method: bytes, kind: ResourceKind) -> bool:
    """Whether the answer describes instances: metadata, a search's (PS3.18 sections 10.4, 10.6) or a STOW's (10.5)."""
    if method in (b"GET", b"HEAD"):
        return kind in _DESCRIBING
    return method in (b"POST", b"PUT") and kind in _STORING


class DescriptionForm(enum.Enum):
    """How an answer describes instances (PS3.18 annex F, PS3.19 annex A)."""

    JSON = "json"
    XML = "xml"
    XML_PARTS = "xml parts"


_FORMS = {
    "application/dicom+json": DescriptionForm.JSON,
    "application/json": DescriptionForm.JSON,
    "application/dicom+xml": DescriptionForm.XML,
    "application/xml": DescriptionForm.XML,
    "text/xml": DescriptionForm.XML,
}


def form_of(headers: Headers) -> Optional[DescriptionForm]:
    """The form of an answer with these headers; None for what cannot be looked into, an encoded one too."""
    values = {name.lower(): value for name, value in headers}
    if values.get(b"content-encoding", b"identity").strip().lower() not in (b"", b"identity"):
        return None
    media_type = media_type_of(headers)
    if media_type is None:
        return None
    if media_type.type == MULTIPART_RELATED:
        return DescriptionForm.XML_PARTS if _FORMS.get(media_type.part_type or "") is DescriptionForm.XML else None
    return _FORMS.get(media_type.type)


MAX_SCOPES = 100
"""Instances that are invalidated one by one; of more, their studies are. Of as many studies, too, where only the upload names
them: each costs a pass over what a worker remembers, and any client can name a thousand."""

MAX_DESCRIPTION = 1 << 20
"""Bytes of a part in JSON or XML that are looked through for the studies that it names."""

REFUSED = frozenset({401, 403, 407})

# Both forms of the answer, DICOM JSON and Native DICOM Model XML, hold the RetrieveURL (0008,1190) of each instance.
_RETRIEVE_URL = re.compile(rb"/studies/([0-9.]{1,64})/series/([0-9.]{1,64})/instances/([0-9.]{1,64})(?![0-9./])")
# Referenced SOP Sequence (0008,1199) and Failed SOP Sequence (0008,1198) make a store response.
_RESPONSE = re.compile(rb"[\"']0008119[89][\"']")
# ReferencedSOPInstanceUID (0008,1155) of every instance, stored or failed; FailureReason (0008,1197) of each that failed.
_REFERENCED = re.compile(rb"[\"']00081155[\"']")
_FAILED = re.compile(rb"[\"']00081197[\"']")
_OTHER_FAILURES = re.compile(rb"[\"']0008119[Aa][\"']")  # these have a reason too, and name no instance
# StudyInstanceUID (0020,000D) in either form. Neither pattern looks at a byte more than a few times, whatever comes.
_STUDIES = (
    re.compile(rb'"0020000[Dd]"[^0-9\]}<>]{1,80}"([0-9.]{1,64})"'),
    re.compile(rb"[\"']0020000[Dd][\"'][^<>]{0,120}>\s{0,40}<Value[^<>]{0,40}>\s{0,40}([0-9.]{1,64})"),
)

_Place = tuple[str, str, str]


class UploadedInstances:
    """What the parts of a STOW to *addressed* (a root or a study) name, read as they pass. *content_type*: the upload's.

    The store judges the upload, not this: only delimiters tell parts apart, whatever else is wrong with them.
    """

    def __init__(self, content_type: bytes, addressed: Scope) -> None:
        self.whole = False
        """Whether the upload has ended, and every part named its instance."""
        self._addressed = addressed
        self._places: set[_Place] = set()
        self._studies: set[str] = set()
        self._legible = True
        self._file: Optional[Part10Stream] = None
        self._text: Optional[bytearray] = None
        self._parser: Optional[MultipartParser] = None
        self._begun = False
        media_type = parse_media_type(content_type)
        if media_type is not None and media_type.is_multipart:
            self._parser = MultipartParser(media_type.boundary, lenient=True)

    def observing(self, body: ByteStream) -> ByteStream:
        """The upload's *body*, read here as it passes."""

        async def chunks() -> AsyncIterator[bytes]:
            while chunk := await body.read():
                self.feed(chunk)
                yield chunk

        return YieldedStream(chunks(), body)

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the upload."""
        if not self._begun and chunk:
            self._begun = True
            if self._parser is None and chunk.startswith(b"--"):  # multipart that does not say so
                self._parser = MultipartParser(None, lenient=True)
            elif self._parser is None:  # one file without parts, as Azure takes it
                self._file = Part10Stream()
        if self._parser is None:
            self._take(chunk)
            self.whole = self._legible and bool(self._places)
            return
        try:
            for event in self._parser.feed(chunk):
                if isinstance(event, PartStart):
                    self._begin(event.headers.get("content-type", ""))
                elif isinstance(event, PartData):
                    self._take(event.data)
                elif isinstance(event, PartEnd):
                    self._end()
                elif isinstance(event, End):
                    self.whole = self._legible and bool(self._places or self._studies)
        except BadMultipart:  # no delimiter where there must be one
            self._parser = self._file = self._text = None
            self._legible = False

    def scopes(self) -> list[Scope]:
        """The instances that were named so far, or their studies where these are many, as far as that is bearable."""
        return _scopes(self._addressed, self._places, self._studies)[:MAX_SCOPES]

    def _begin(self, content_type: str) -> None:
        described = "json" in content_type or "xml" in content_type
        self._file, self._text = (None, bytearray()) if described else (Part10Stream(), None)

    def _take(self, data: bytes) -> None:
        if self._text is not None and len(self._text) < MAX_DESCRIPTION:
            self._text += data[: MAX_DESCRIPTION - len(self._text)]
        elif self._file is not None:
            try:
                self._file.feed(data)
            except BadPart10:
                self._end()
                return
            if all(self._file.uids):
                self._end()

    def _end(self) -> None:
        """All that a part names is known, or never will be."""
        if self._file is not None:
            study, series, sop = self._file.uids
            self._legible = self._name(study, series, sop) and self._legible
        elif self._text is not None:
            studies = {uid.decode("ascii") for form in _STUDIES for uid in form.findall(self._text)}
            self._studies |= {study for study in studies if _is_uid(study)}
            self._legible = self._legible and len(self._text) < MAX_DESCRIPTION
        self._file = self._text = None

    def _name(self, study: str, series: str, sop: str) -> bool:
        """Note an instance; whether it is one."""
        if not all(map(_is_uid, (study, series, sop))):
            return False
        if len(self._places) < MAX_SCOPES * MAX_SCOPES:
            self._places.add((study, series, sop))
        else:
            self._studies.add(study)
        return True


def touched_by_store(
    status: int, headers: Headers, answer: bytes, addressed: Scope, uploaded: UploadedInstances
) -> list[Scope]:
    """The scopes that a STOW to *addressed* changed which was answered so. *answer*: the body; b"" where it is too
    long to be kept."""
    if status in REFUSED:
        return []
    if status in STORED_STATUSES and form_of(headers) is not None and _RESPONSE.search(answer):
        placed = _stored_places(answer)
        if placed is not None:
            return _scopes(addressed, placed)
        if not uploaded.whole:
            return [addressed]
    return uploaded.scopes()


def _stored_places(answer: bytes) -> Optional[set[_Place]]:
    """The instances that a store response lists as stored; None where it does not place all of them."""
    unescaped = answer.replace(b"\\/", b"/")
    found = {match.groups() for match in _RETRIEVE_URL.finditer(unescaped)}
    named = len(_REFERENCED.findall(unescaped))
    failed = 0 if _OTHER_FAILURES.search(unescaped) else len(_FAILED.findall(unescaped))
    if len(found) < named - failed:
        return None
    return {(study.decode("ascii"), series.decode("ascii"), sop.decode("ascii")) for study, series, sop in found}


def _is_uid(text: str) -> bool:
    try:
        return bool(validate_uid(text))
    except InvalidUID:
        return False


def _scopes(addressed: Scope, places: Iterable[_Place], studies: Iterable[str] = ()) -> list[Scope]:
    """Scopes of the instances at *places* and of *studies*; all that was addressed where one of them is no place."""
    places = set(places)
    if len(places) > MAX_SCOPES:
        studies, places = {*studies, *(study for study, _, _ in places)}, set()
    try:
        scopes = {Scope(addressed.origin, addressed.root, *place) for place in places}
        scopes |= {Scope(addressed.origin, addressed.root, study) for study in studies}
    except InvalidUID:
        return [addressed]
    return sorted(scopes, key=lambda scope: (scope.study or "", scope.series or "", scope.sop or ""))
