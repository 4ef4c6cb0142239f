"""What a request path below a mount is.

Rules kept here:
- only paths that both sides of the proxy read alike get through: no dot segments, empty segments, path
  parameters (servlet containers drop ``;…`` and then see ``..``), encoded slashes, double encoding,
  controls, non-ASCII: 400;
- only DICOMweb resources get through (DICOM PS3.18 sections 8-13), else 404;
- whatever stands before ``/studies`` is the root: a mount may stand for something above the DICOMweb root;
- UIDs that come out are valid and may be put into a URL; what is asked often is parsed once.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Sequence
from typing import Optional
from urllib.parse import quote, unquote_to_bytes

import attrs

from twistedproxy.dicom.resource import Instance, InvalidUID, Scope, known_instance, validate_uid
from twistedproxy.server.problems import Problem, shown

MAX_FRAME_DIGITS = 10  # NumberOfFrames is an IS: at most 2**31 - 1 (PS3.5 section 6.2)
MAX_SEGMENTS = 64  # bulk data lies deep (tag/item/tag/…), no real path comes near
MAX_ROOT = 512  # characters; Google's project path has some 150, and roots are kept in memory by the thousand
CACHED_PATHS = 4096  # instances in use at once; an entry is below 2 kB
MAX_CACHED_PATH = 512  # bytes; three UIDs of 64 and Google's project path fit

_RAW_SEGMENT = re.compile(rb"[A-Za-z0-9\-._~!$&'()*+,=:@%]+")  # pchar of RFC 3986 section 3.3, without ";"
_ENCODED = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_DECODED_SEGMENT = re.compile(rb"[^\x00-\x1f\x7f-\xff/\\%;?#]+")
_PCHAR_SAFE = "-._~!$&'()*+,=:@"
_PLAIN_FRAME_LIST = re.compile(rb"[0-9,]+")

# PS3.18 sections 11 (worklist), 12 (non-patient instances), 13 (storage commitment).
_OTHER_SERVICES = frozenset(
    ("workitems", "commitment-requests")
    + ("color-palettes", "defined-procedure-protocols", "hanging-protocols", "implant-templates", "inventories")
)
MAX_OTHER_SEGMENTS = 4  # workitems/{uid}/subscribers/{aet}/suspend has the most below the service's name


class ResourceKind(enum.Enum):
    """What a path names. The level (study, series, instance) shows in the UIDs that the `Resource` has."""

    CAPABILITIES = "capabilities"  # the mount itself, for OPTIONS (PS3.18 section 8.9)
    STUDIES = "studies"  # search with GET, store with POST
    SEARCH = "search"  # series and instances, of all or of a study or series
    STUDY = "study"
    SERIES = "series"
    INSTANCE = "instance"
    METADATA = "metadata"  # any level
    RENDERED = "rendered"  # a study or series
    INSTANCE_RENDERED = "instance_rendered"
    FRAMES = "frames"
    FRAMES_RENDERED = "frames_rendered"
    THUMBNAIL = "thumbnail"  # any level, of frames too
    BULKDATA = "bulkdata"  # any level, whatever is below it
    PIXELDATA = "pixeldata"  # any level
    PREFETCH = "prefetch"  # any level; the proxy's own
    COVERAGE = "coverage"  # a series or instance; the proxy's own
    OTHER = "other"  # worklist, non-patient instances, storage commitment


_READ = ("GET", "HEAD", "OPTIONS")
_METHODS = {
    ResourceKind.CAPABILITIES: ("OPTIONS",),
    ResourceKind.STUDIES: (*_READ, "POST", "PUT"),  # Azure updates with PUT
    ResourceKind.STUDY: (*_READ, "POST", "PUT", "DELETE"),
    ResourceKind.SERIES: (*_READ, "POST", "DELETE"),
    ResourceKind.INSTANCE: (*_READ, "POST", "PUT", "DELETE"),
    ResourceKind.OTHER: (*_READ, "POST", "PUT", "DELETE"),
    ResourceKind.PREFETCH: ("GET", "HEAD", "POST"),
    ResourceKind.COVERAGE: ("GET", "HEAD"),
}


@attrs.frozen
class Resource:
    """A DICOMweb resource below a mount.

    *root*: what stands before the resource, percent-encoded in one way, "" or with a leading slash.
    *series* is None also for the short path ``studies/{}/instances/{}/frames/…``.
    *frame_list*: the text after ``frames/``, commas decoded, for `parse_frame_list`.
    """

    kind: ResourceKind
    root: str = ""
    study: Optional[str] = None
    series: Optional[str] = None
    sop: Optional[str] = None
    frame_list: str = ""

    @property
    def methods(self) -> Sequence[str]:
        """The methods that make sense here, OPTIONS among them."""
        return _METHODS.get(self.kind, _READ)

    def instance(self, origin: str) -> Instance:
        """The instance that the path names, at the store *origin*. `ValueError` where it names none (in full)."""
        if self.study is None or self.series is None or self.sop is None:
            raise ValueError(f"no whole instance address: {self!r}")
        return known_instance(origin, self.root, self.study, self.series, self.sop)

    def scope(self, origin: str) -> Scope:
        """What a change of this resource touches, at the store *origin*."""
        return Scope(origin, self.root, self.study, self.series, self.sop)


def parse_resource(raw_path: bytes) -> Resource:
    """Say what *raw_path* is: still percent-encoded, without query, relative to the mount, "" or with a leading slash.

    Raises `Problem`: 400 for what is malformed or tries to get out, 404 for what is not a DICOMweb resource.
    """
    # Viewers ask for thousands of frames of few instances: what stands before the list is parsed once.
    head, separator, tail = raw_path.rpartition(b"/frames/")
    if separator and _PLAIN_FRAME_LIST.fullmatch(tail):
        parent = _parse_cached(head + b"/frames/1")
        return Resource(parent.kind, parent.root, parent.study, parent.series, parent.sop, tail.decode("ascii"))
    return _parse_cached(raw_path)


def _parse_cached(raw_path: bytes) -> Resource:
    return _parse_remembered(raw_path) if len(raw_path) <= MAX_CACHED_PATH else _parse(raw_path)


def parse_frame_list(text: str, max_count: int) -> tuple[int, ...]:
    """The frame numbers (from 1) of *text* in the order asked for, repeats kept.

    Raises `Problem` 400 for anything but 1 to *max_count* positive numbers joined by commas.
    """
    count = text.count(",") + 1
    if count > max_count:
        raise Problem(400, f"{count} frames were requested; the limit is {max_count} per request")
    return tuple(map(_frame_number, text.split(",")))


def _frame_number(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= MAX_FRAME_DIGITS and (number := int(text)) > 0:
        return number
    raise Problem(400, f"{shown(text)} is not a frame number; expected numbers from 1, separated by commas")


def _parse(raw_path: bytes) -> Resource:
    if raw_path in (b"", b"/"):
        return Resource(ResourceKind.CAPABILITIES)
    if not raw_path.startswith(b"/"):
        raise Problem(400, f"the path {shown(raw_path)} does not start with a slash")
    raw_segments = raw_path[1:].split(b"/", MAX_SEGMENTS)
    if len(raw_segments) > MAX_SEGMENTS:
        raise Problem(400, f"the path has more than {MAX_SEGMENTS} segments")
    segments = [_decode_segment(raw) for raw in raw_segments]
    start = _resource_start(segments)
    root = "".join("/" + quote(segment, safe=_PCHAR_SAFE) for segment in segments[:start])
    if len(root) > MAX_ROOT:
        raise Problem(400, f"more than {MAX_ROOT} characters stand before the resource")
    try:
        return _classify(root, segments[start:])
    except InvalidUID as error:
        raise Problem(400, str(error)) from None


_parse_remembered = functools.lru_cache(maxsize=CACHED_PATHS)(_parse)


def _decode_segment(raw: bytes) -> str:
    """The segment percent-decoded once; 400 if that leaves anything which another reader could take otherwise."""
    if not _RAW_SEGMENT.fullmatch(raw) or _ENCODED.search(raw):
        raise Problem(400, f"the path segment {shown(raw)} is empty or contains characters that are not accepted")
    decoded = unquote_to_bytes(raw) if b"%" in raw else raw
    if decoded in (b".", b"..") or not _DECODED_SEGMENT.fullmatch(decoded):
        raise Problem(400, f"the path segment {shown(raw)} is not accepted")
    return decoded.decode("ascii")


def _resource_start(segments: Sequence[str]) -> int:
    """Where the resource begins: at the first ``studies`` that is last or has a UID behind it (a project may
    be called "studies" too), else at the first ``studies``, else at the first word of another service."""
    studies = [index for index, segment in enumerate(segments) if segment == "studies"]
    for index in studies:
        if index + 1 == len(segments) or segments[index + 1][:1].isdigit():
            return index
    if studies:
        return studies[0]
    # Only at the end, and once: a store's own interface has paths such as series/{id}/instances.
    if segments[-1] in ("series", "instances") and not {"series", "instances"}.intersection(segments[:-1]):
        return len(segments) - 1
    for index, segment in enumerate(segments):
        if segment == "bulkdata" or segment in _OTHER_SERVICES:
            return index
    raise _no_resource(segments)


def _no_resource(segments: Sequence[str]) -> Problem:
    return Problem(404, f"{shown('/'.join(segments))} is not a DICOMweb resource")


def _classify(root: str, segments: Sequence[str]) -> Resource:
    """The resource of *segments*, which begin with the name of a service's collection."""
    match segments:
        case ["studies"]:
            return Resource(ResourceKind.STUDIES, root)
        case ["series"] | ["instances"]:
            return Resource(ResourceKind.SEARCH, root)
        case ["bulkdata", _, *_]:
            return Resource(ResourceKind.BULKDATA, root)
        case ["studies", _, *_]:
            return _below_studies(root, segments)
        case [service, *rest] if service in _OTHER_SERVICES and len(rest) <= MAX_OTHER_SEGMENTS:
            return Resource(ResourceKind.OTHER, root)
    raise _no_resource(segments)


_COMMON = {  # what a study, a series and an instance have alike (PS3.18 section 10.4.1; prefetch is ours)
    "metadata": ResourceKind.METADATA,
    "thumbnail": ResourceKind.THUMBNAIL,
    "pixeldata": ResourceKind.PIXELDATA,
    "bulkdata": ResourceKind.BULKDATA,
    "prefetch": ResourceKind.PREFETCH,
}
_OF_STUDY = _COMMON | {
    "": ResourceKind.STUDY,
    "series": ResourceKind.SEARCH,
    "instances": ResourceKind.SEARCH,
    "rendered": ResourceKind.RENDERED,
}
_OF_SERIES = _COMMON | {
    "": ResourceKind.SERIES,
    "coverage": ResourceKind.COVERAGE,
    "instances": ResourceKind.SEARCH,
    "rendered": ResourceKind.RENDERED,
}
_OF_INSTANCE = _COMMON | {
    "": ResourceKind.INSTANCE,
    "coverage": ResourceKind.COVERAGE,
    "rendered": ResourceKind.INSTANCE_RENDERED,
}
_OF_FRAMES = {
    "": ResourceKind.FRAMES,
    "rendered": ResourceKind.FRAMES_RENDERED,
    "thumbnail": ResourceKind.THUMBNAIL,
}


def _below_studies(root: str, segments: Sequence[str]) -> Resource:
    """The resource of *segments*, which begin with ``studies`` and a UID."""
    rest = list(segments)
    uids: list[Optional[str]] = []
    for collection in ("studies", "series", "instances"):
        named = rest[:1] == [collection] and len(rest) > 1
        uids.append(validate_uid(rest[1]) if named else None)
        rest = rest[2:] if named else rest
    study, series, sop = uids
    frames = ""
    if sop is not None and rest[:1] == ["frames"] and len(rest) > 1:
        frames, rest, kinds = rest[1], rest[2:], _OF_FRAMES
    elif sop is not None:
        kinds = _OF_INSTANCE if series is not None else {}  # the short path has frames alone
    else:
        kinds = _OF_STUDY if series is None else _OF_SERIES
    bulk = rest[:1] == ["bulkdata"] or (rest[:1] == ["bulk"] and len(rest) > 1)  # Orthanc's BulkDataURI says "bulk"
    kind = kinds.get("bulkdata" if bulk else "/".join(rest))
    if kind is None:
        raise _no_resource(segments)
    return Resource(kind, root, study, series, sop, frames)
