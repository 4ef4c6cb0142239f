"""The transfer syntaxes of DICOM (PS3.6 table A-1) as the proxy needs to know them.

Not those of `pydicom.uid`: importing it adds 42 MB and 0.3 s to a worker, and it knows neither media types nor end markers.

Rules that this file keeps:

- A UID that is not in the table is unknown: nothing is guessed for it.
- Media types are those of PS3.18 tables 8.7.3-4 and 8.7.3-5, lower case, one canonical name each;
  `canonical_media_type` turns the other names that are in use into it. An answer bears the canonical name also
  where the caller asked by another: of what dicomweb-client and wsidicom (image/x-dicom-rle) read from an answer's
  Content-Type, nothing is that name, and so an answer's bytes hang on the frames alone.
"""

from __future__ import annotations

import itertools
import struct

import attrs

from twistedproxy.dicom.codestream import JP2_CONTAINER, JXL_CODESTREAM, JXL_CONTAINER, SOC, SOI

OCTET_STREAM = "application/octet-stream"

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
ENCAPSULATED_UNCOMPRESSED = "1.2.840.10008.1.2.1.98"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
JPEG_PROGRESSIVE = "1.2.840.10008.1.2.4.55"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.57"
JPEG_LOSSLESS_SV1 = "1.2.840.10008.1.2.4.70"
JPEG_LS_LOSSLESS = "1.2.840.10008.1.2.4.80"
JPEG_LS_NEAR_LOSSLESS = "1.2.840.10008.1.2.4.81"
JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
JPEG_2000 = "1.2.840.10008.1.2.4.91"
JPEG_2000_PART_2_LOSSLESS = "1.2.840.10008.1.2.4.92"
JPEG_2000_PART_2 = "1.2.840.10008.1.2.4.93"
JPEG_XL_LOSSLESS = "1.2.840.10008.1.2.4.110"
JPEG_XL_RECOMPRESSION = "1.2.840.10008.1.2.4.111"
JPEG_XL = "1.2.840.10008.1.2.4.112"
HTJ2K_LOSSLESS = "1.2.840.10008.1.2.4.201"
HTJ2K_LOSSLESS_RPCL = "1.2.840.10008.1.2.4.202"
HTJ2K = "1.2.840.10008.1.2.4.203"
RLE_LOSSLESS = "1.2.840.10008.1.2.5"
DEFLATED_IMAGE_FRAME = "1.2.840.10008.1.2.8.1"

END_OF_IMAGE = b"\xff\xd9"
"""EOI of JPEG (ITU-T T.81 B.1.1.3) and JPEG-LS, and EOC of JPEG 2000 and HTJ2K (T.800 A.4.4): the same two bytes."""


@attrs.frozen
class TransferSyntax:
    """How a data set and its pixel data are encoded.

    *encapsulated*: pixel data comes in fragments (PS3.5 section A.4). *deflated*: the whole data set is
    (PS3.5 section A.5).
    *end_marker*: the bytes that every frame ends with (a pad byte may follow), None where there are none.
    *frames_separable*: whether frames can be separated without decoding.
    """

    uid: str
    media_type: str = OCTET_STREAM
    encapsulated: bool = False
    implicit_vr: bool = False
    big_endian: bool = False
    deflated: bool = False
    end_marker: bytes | None = None
    frames_separable: bool = True


@attrs.frozen
class Frame:
    """The bytes of one frame exactly as stored, and the UID of their transfer syntax.

    Encapsulated frames are the bare codestream, all fragments joined; a pad byte that the
    store sent along stays. Native frames are Rows x Columns x SamplesPerPixel x BitsAllocated / 8 bytes.
    """

    data: bytes
    transfer_syntax: str


_FOUND_BY_MARKER = {
    "image/jpeg": (
        JPEG_BASELINE, JPEG_EXTENDED, "1.2.840.10008.1.2.4.53", JPEG_PROGRESSIVE, JPEG_LOSSLESS, JPEG_LOSSLESS_SV1
    ),
    "image/jls": (JPEG_LS_LOSSLESS, JPEG_LS_NEAR_LOSSLESS),
    "image/jp2": (JPEG_2000_LOSSLESS, JPEG_2000),
    "image/jpx": (JPEG_2000_PART_2_LOSSLESS, JPEG_2000_PART_2),
    "image/jphc": (HTJ2K_LOSSLESS, HTJ2K_LOSSLESS_RPCL, HTJ2K),
}  # fmt: skip
_UNMARKED = {
    OCTET_STREAM: (ENCAPSULATED_UNCOMPRESSED, DEFLATED_IMAGE_FRAME),
    "image/dicom-rle": (RLE_LOSSLESS,),
    "image/jxl": (JPEG_XL_LOSSLESS, JPEG_XL_RECOMPRESSION, JPEG_XL),
}
# The last parts of the UIDs; those that end in .1 are fragmentable.
_VIDEO = {
    "video/mpeg": "100 100.1 101 101.1",
    "video/mp4": "102 102.1 103 103.1 104 104.1 105 105.1 106 106.1",
    "video/h265": "107 108",
}

_TABLE = [
    TransferSyntax(IMPLICIT_VR_LITTLE_ENDIAN, implicit_vr=True),
    TransferSyntax(EXPLICIT_VR_LITTLE_ENDIAN),
    TransferSyntax(DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, deflated=True),
    TransferSyntax(EXPLICIT_VR_BIG_ENDIAN, big_endian=True),
    *(TransferSyntax(uid, media, encapsulated=True) for media, uids in _UNMARKED.items() for uid in uids),
    *(
        TransferSyntax(uid, media, encapsulated=True, end_marker=END_OF_IMAGE)
        for media, uids in _FOUND_BY_MARKER.items()
        for uid in uids
    ),
    *(
        TransferSyntax(f"1.2.840.10008.1.2.4.{end}", media, encapsulated=True, frames_separable=False)
        for media, ends in _VIDEO.items()
        for end in ends.split()
    ),
]

_BY_UID = {syntax.uid: syntax for syntax in _TABLE}

_CANONICAL = {
    "image/x-dicom-rle": "image/dicom-rle",  # until 2023; wsidicom asks for it still
    "image/rle": "image/dicom-rle",
    "image/jpg": "image/jpeg",
    "image/jll": "image/jpeg",  # Static DICOMweb, of lossless JPEG
    "image/uncompressed": OCTET_STREAM,  # small stores made after its example
    "application/octed-stream": OCTET_STREAM,  # dicomweb-pacs, dicomweb-proxy
    "binary/octet-stream": OCTET_STREAM,  # S3, of what was put there without a type
    "image/dicom+jpeg": "image/jpeg",
    "image/dicom+rle": "image/dicom-rle",
    "image/x-jls": "image/jls",
    "image/dicom+jpeg-ls": "image/jls",
    "image/x-jp2": "image/jp2",
    "image/jpeg2000": "image/jp2",
    "image/dicom+jp2": "image/jp2",
    "image/x-jpx": "image/jpx",
    "image/dicom+jpx": "image/jpx",
    "image/jph": "image/jphc",
    "image/x-jphc": "image/jphc",
    "image/x-jxl": "image/jxl",
    "video/mpeg2": "video/mpeg",
}


def lookup(uid: str | None) -> TransferSyntax | None:
    """What is known of a transfer syntax; None for an unknown one, or for None."""
    return _BY_UID.get(uid or "")


def frame_uid(uid: str) -> str:
    """The UID that a frame of an instance in transfer syntax *uid* is labelled with. Native frames go out in little endian only
    (PS3.18 section 8.7.3), and say nothing of implicit VR or of deflation: what cuts frames out of a big endian file swaps
    their bytes."""
    return EXPLICIT_VR_LITTLE_ENDIAN if is_native(uid) else uid


def is_native(uid: str | None) -> bool:
    """Whether frames in transfer syntax *uid* are plain pixels (PS3.5 section A.4 has the others)."""
    syntax = lookup(uid)
    return syntax is not None and not syntax.encapsulated


def is_as_stored(uid: str, stored: str) -> bool:
    """Whether frames or a file in transfer syntax *uid* can be as *stored*. Byte orders of native data are one: web services
    carry little endian only (PS3.18 section 8.7.3.5.2), and are labelled so whatever the file has."""
    return frame_uid(uid) == frame_uid(stored)


def media_type_of(uid: str) -> str:
    """The media type of one frame in that transfer syntax; ``application/octet-stream`` for an unknown one."""
    syntax = _BY_UID.get(uid)
    return syntax.media_type if syntax else OCTET_STREAM


def canonical_media_type(media_type: str) -> str:
    """The name that this module uses for a media type (without parameters); lower-cased, others unchanged."""
    lowered = media_type.lower()
    return _CANONICAL.get(lowered, lowered)


def uids_of(media_type: str) -> tuple[str, ...]:
    """All transfer syntaxes whose frames have that media type."""
    canonical = canonical_media_type(media_type)
    return tuple(syntax.uid for syntax in _TABLE if syntax.media_type == canonical)


RLE_HEADER = struct.Struct("<16I")  # PS3.5 section G.5
# How frames of a media type begin. T.81 B.1.1.2 lets fill bytes, FF, stand before a marker.
_BEGINNINGS = {
    **dict.fromkeys(("image/jpeg", "image/jls"), (SOI, b"\xff\xff")),
    **dict.fromkeys(("image/jp2", "image/jpx", "image/jphc"), (SOC, JP2_CONTAINER)),
    "image/jxl": (JXL_CODESTREAM, JXL_CONTAINER),
}


def is_recognized(uid: str) -> bool:
    """Whether frames in transfer syntax *uid* begin in a way of their own, which `may_be` looks for."""
    media_type = media_type_of(uid)
    return media_type == "image/dicom-rle" or media_type in _BEGINNINGS


def may_be(frame: bytes, uid: str) -> bool:
    """Whether *frame* begins as frames in transfer syntax *uid* do; True where these have no beginning in common."""
    media_type = media_type_of(uid)
    return is_rle(frame) if media_type == "image/dicom-rle" else frame.startswith(_BEGINNINGS.get(media_type, b""))


def is_rle(data: bytes) -> bool:
    """Whether the 16 numbers of an RLE header are there (PS3.5 section G.5): count, ascending offsets, zeros."""
    if len(data) < RLE_HEADER.size:
        return False
    count, *offsets = RLE_HEADER.unpack_from(data)
    ascending = all(earlier < later for earlier, later in itertools.pairwise(offsets[:count]))
    return 1 <= count <= 15 and offsets[0] == 64 and not any(offsets[count:]) and ascending
