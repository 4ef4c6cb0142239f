"""How known stores understand Accept and shape their answers (see the wire notes of each product).

Nothing here is shared with the proxy: what the proxy believes of a store must not decide what the store does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Union

import attrs

from tests.stores.instances import StoredInstance
from tests.stores.replies import Part, Reply, error

EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
OCTETS = "application/octet-stream"
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")


@attrs.frozen
class Form:
    """In which form frames go out: *stored* as they are, else made up. *single*: one part without multipart."""

    stored: bool
    media_type: str
    transfer_syntax: str
    single: bool = False


Choice = Union[Form, Reply]
Range = tuple[str, dict[str, str]]


def split_outside_quotes(text: str, separator: str) -> list[str]:
    """*text* cut at *separator* wherever it stands outside double quotes; blanks around the pieces removed."""
    pattern = rf'(?:[^"{separator}]|"(?:[^"\\]|\\.)*")+'
    return [piece.strip() for piece in re.findall(pattern, text)]


def media_ranges(accept: str) -> list[Range]:
    """Type and parameters of each range of an Accept header; parameter names in lower case, values unquoted."""
    ranges: list[Range] = []
    for item in split_outside_quotes(accept, ","):
        kind, *rest = split_outside_quotes(item, ";")
        pairs = (parameter.partition("=") for parameter in rest)
        ranges.append((kind.lower(), {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}))
    return ranges


def stored_form(instance: StoredInstance, single: bool = False) -> Form:
    """Frames as they are stored."""
    return Form(True, instance.media_type, instance.transfer_syntax, single)


def decompressed_form(single: bool = False) -> Form:
    """Frames decompressed: native, explicit VR little endian."""
    return Form(False, OCTETS, EXPLICIT_LITTLE_ENDIAN, single)


@attrs.frozen
class Dialect:
    """A store that does what PS3.18 section 8.7 says, and what the others differ in.

    *root*: path of the DICOMweb root. *syntax_tag*: where metadata tell the transfer syntax, "" for nowhere.
    *part_syntax*: whether a part's Content-Type says it. *framing*: of frames and instances, see `Reply`.
    *single_instance*: whether an instance can come as one part. *missing_frame*: status for a frame that is
    not there. *empty_search*: status when nothing was found.
    """

    name: str = "standard"
    root: str = "/dicomweb"
    syntax_tag: str = "00083002"
    part_syntax: bool = True
    framing: str = "length"
    single_instance: bool = True
    missing_frame: int = 404
    empty_search: int = 204
    omitted_tags: Sequence[str] = ()

    def choose(self, instance: StoredInstance, accept: str) -> Choice:
        """The form in which frames of *instance* go out for an Accept header ("" for none), or the refusal."""
        for kind, parameters in media_ranges(accept or "*/*"):
            form = self.try_range(instance, kind, parameters)
            if form is not None:
                return form
        return error(406, "no such representation")

    def try_range(self, instance: StoredInstance, kind: str, parameters: dict[str, str]) -> Form | None:
        """The form that one media range asks for, if there is one."""
        if kind == "*/*":
            return stored_form(instance)
        if kind != "multipart/related":
            return None
        wanted, syntax = parameters.get("type", "*/*"), parameters.get("transfer-syntax", "")
        if wanted in (instance.media_type, "*/*") and syntax in ("", "*", instance.transfer_syntax):
            return stored_form(instance)
        if wanted == OCTETS:
            if syntax == "*":
                return stored_form(instance)
            if syntax in ("", EXPLICIT_LITTLE_ENDIAN):
                return decompressed_form()
        return None

    def present(self, form: Form, instance: StoredInstance, numbers: Sequence[int], url: str) -> Reply:
        """The answer for frames *numbers*, all of which are there. *url*: the instance's."""
        data = [instance.frames[number - 1] if form.stored else instance.decompressed(number) for number in numbers]
        label = form.media_type + (f"; transfer-syntax={form.transfer_syntax}" if self.part_syntax else "")
        if form.single:
            return Reply(200, [("Content-Type", label)], data[0])
        parts = [
            Part(
                [("Content-Type", label), ("Content-Length", str(len(body))), *self.more_part_headers(url, number)],
                body,
            )
            for number, body in zip(numbers, data, strict=True)
        ]
        reply = Reply(200, [], parts=parts, framing=self.list_framing(len(numbers)))
        reply.headers.append(("Content-Type", self.content_type(form.media_type, form.transfer_syntax, reply.boundary)))
        return reply

    def more_part_headers(self, url: str, number: int) -> list[tuple[str, str]]:
        """What else a part says."""
        return []

    def list_framing(self, count: int) -> str:
        """How an answer with *count* frames is framed."""
        return self.framing

    def content_type(self, media_type: str, transfer_syntax: str, boundary: str) -> str:
        """The Content-Type of a multipart answer."""
        return f'multipart/related; type="{media_type}"; transfer-syntax={transfer_syntax}; boundary={boundary}'

    def missing(self, instance: StoredInstance, numbers: Sequence[int], form: Form, url: str) -> Reply:
        """The answer when some of *numbers* are past the last frame."""
        return error(self.missing_frame, "no such frame")


@attrs.frozen
class _Orthanc(Dialect):
    """Orthanc 1.10 with DICOMweb plugin 1.7, as it answered when it was asked."""

    def choose(self, instance: StoredInstance, accept: str) -> Choice:
        kind, *rest = [piece.strip() for piece in accept.split(";")]  # at semicolons only
        if accept and kind != "multipart/related":
            return error(400, "expecting 'Accept: multipart/related' HTTP header")
        pairs = [parameter.partition("=") for parameter in rest]
        parameters = {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}
        wanted, syntax = parameters.get("type", ""), parameters.get("transfer-syntax", "")
        if syntax == "*":
            return stored_form(instance) if wanted == OCTETS or "octet" in accept else error(400, "incompatible")
        if syntax == instance.transfer_syntax and wanted == instance.media_type:
            return stored_form(instance)
        if not syntax and wanted in ("", "*/*", OCTETS):
            return decompressed_form()
        if not syntax and wanted == "image/jpeg":
            return Form(False, "image/jpeg", JPEG_LOSSLESS)
        return error(500, "Error encountered within the plugin engine")

    def more_part_headers(self, url: str, number: int) -> list[tuple[str, str]]:
        return [("Content-Location", f"{url}/frames/{number}"), ("MIME-Version", "1.0")]

    def list_framing(self, count: int) -> str:
        return "length" if count == 1 else "close"

    def content_type(self, media_type: str, transfer_syntax: str, boundary: str) -> str:
        return f'multipart/related; type="{media_type}; transfer-syntax={transfer_syntax}"; boundary={boundary}'


@attrs.frozen
class _Dcm4chee(Dialect):
    """dcm4chee-arc 5: octet-stream means decompressed whatever else is said; what is there of a list comes as 206."""

    def try_range(self, instance: StoredInstance, kind: str, parameters: dict[str, str]) -> Form | None:
        if parameters.get("type") == OCTETS and instance.transfer_syntax not in NATIVE:
            return decompressed_form()
        return Dialect.try_range(self, instance, kind, parameters)

    def missing(self, instance: StoredInstance, numbers: Sequence[int], form: Form, url: str) -> Reply:
        there = [number for number in numbers if number <= len(instance.frames)]
        if not there:
            return error(404, "no such frame")
        return attrs.evolve(self.present(form, instance, there, url), status=206)


@attrs.frozen
class _Static(Dialect):
    """Files behind a web server: one form, and the boundary stands only in the body."""

    def choose(self, instance: StoredInstance, accept: str) -> Choice:
        return stored_form(instance)

    def content_type(self, media_type: str, transfer_syntax: str, boundary: str) -> str:
        return "multipart/related"


@attrs.frozen
class _Azure(Dialect):
    """Azure's DICOM service: a type must be quoted; one frame may come as a single part."""

    def choose(self, instance: StoredInstance, accept: str) -> Choice:
        if re.search(r'type=[^"*;, ]*/', accept):
            return error(406, "the type must be quoted")
        return Dialect.choose(self, instance, accept)

    def try_range(self, instance: StoredInstance, kind: str, parameters: dict[str, str]) -> Form | None:
        if kind == OCTETS:
            stored = parameters.get("transfer-syntax") in ("*", instance.transfer_syntax)
            return stored_form(instance, single=True) if stored else decompressed_form(single=True)
        return Dialect.try_range(self, instance, kind, parameters)


STANDARD = Dialect()
ORTHANC = _Orthanc("orthanc", "/dicom-web", "", single_instance=False, missing_frame=400, empty_search=200)
DCM4CHEE = _Dcm4chee("dcm4chee", "/dcm4chee-arc/aets/DCM4CHEE/rs", "00083002", framing="chunked")
DCM4CHEE_OLD = attrs.evolve(DCM4CHEE, name="dcm4chee-old", part_syntax=False)
GOOGLE = Dialect("google", "/v1/projects/p/locations/l/datasets/d/dicomStores/s/dicomWeb", "00020010")
STATIC = _Static("static", "/static", "00083002", part_syntax=False, single_instance=False)
AZURE = _Azure("azure", "/v2", "00083002", omitted_tags=("00282000", "7FE00010"))
NO_SYNTAX = Dialect("no-syntax", syntax_tag="", part_syntax=False)

DIALECTS = {
    dialect.name: dialect for dialect in (STANDARD, ORTHANC, DCM4CHEE, DCM4CHEE_OLD, GOOGLE, STATIC, AZURE, NO_SYNTAX)
}
