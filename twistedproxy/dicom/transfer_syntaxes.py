"""The transfer syntaxes of DICOM (PS3.6 table A-1) as the proxy needs to know them.

Rules that this file keeps:

- A UID that is not in the table is unknown: nothing is guessed for it.
- Media types are those of PS3.18 tables 8.7.3-4 and 8.7.3-5, lower case, one canonical name each;
  `canonical_media_type` turns the other names that are in use into it. An answer bears the canonical name also
  where the caller asked by another: of what dicomweb-client and wsidicom (image/x-dicom-rle) read from an answer's
  Content-Type, nothing is that name, and so an answer's bytes hang on the frames alone.
"""

from __future__ import annotations

import attrs

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
    *frames_separable*: whether frames can be told apart without decoding.
    """

    uid: str
    name: str
    media_type: str = OCTET_STREAM
    encapsulated: bool = False
    implicit_vr: bool = False
    big_endian: bool = False
    deflated: bool = False
    end_marker: bytes | None = None
    frames_separable: bool = True

    @property
    def frame_uid(self) -> str:
        """The UID to label one frame with. Native frames go out in little endian only (PS3.18 section 8.7.3), and say
        nothing of implicit VR or of deflation: who cuts frames out of a big endian file swaps their bytes."""
        if self.implicit_vr or self.deflated or self.big_endian:
            return EXPLICIT_VR_LITTLE_ENDIAN
        return self.uid


def _encapsulated(
    uid: str, name: str, media_type: str, *, end_marker: bytes | None = None, frames: bool = True
) -> TransferSyntax:
    return TransferSyntax(uid, name, media_type, encapsulated=True, end_marker=end_marker, frames_separable=frames)


def _jpeg_family(media_type: str, names: dict[str, str]) -> list[TransferSyntax]:
    return [_encapsulated(uid, name, media_type, end_marker=END_OF_IMAGE) for uid, name in names.items()]


def _video(media_type: str, names: dict[str, str]) -> list[TransferSyntax]:
    return [_encapsulated(uid, name, media_type, frames=False) for uid, name in names.items()]


_MPEG4 = "1.2.840.10008.1.2.4.10"

_TABLE = [
    TransferSyntax(IMPLICIT_VR_LITTLE_ENDIAN, "Implicit VR Little Endian", implicit_vr=True),
    TransferSyntax(EXPLICIT_VR_LITTLE_ENDIAN, "Explicit VR Little Endian"),
    TransferSyntax(DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, "Deflated Explicit VR Little Endian", deflated=True),
    TransferSyntax(EXPLICIT_VR_BIG_ENDIAN, "Explicit VR Big Endian", big_endian=True),
    _encapsulated(ENCAPSULATED_UNCOMPRESSED, "Encapsulated Uncompressed Explicit VR Little Endian", OCTET_STREAM),
    _encapsulated(DEFLATED_IMAGE_FRAME, "Deflated Image Frame Compression", OCTET_STREAM),
    _encapsulated(RLE_LOSSLESS, "RLE Lossless", "image/dicom-rle"),
    *_jpeg_family(
        "image/jpeg",
        {
            JPEG_BASELINE: "JPEG Baseline (Process 1)",
            JPEG_EXTENDED: "JPEG Extended (Process 2 and 4)",
            "1.2.840.10008.1.2.4.53": "JPEG Spectral Selection, Non-Hierarchical (Process 6 and 8)",
            JPEG_PROGRESSIVE: "JPEG Full Progression, Non-Hierarchical (Process 10 and 12)",
            JPEG_LOSSLESS: "JPEG Lossless, Non-Hierarchical (Process 14)",
            JPEG_LOSSLESS_SV1: "JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14, Selection Value 1)",
        },
    ),
    *_jpeg_family(
        "image/jls", {JPEG_LS_LOSSLESS: "JPEG-LS Lossless", JPEG_LS_NEAR_LOSSLESS: "JPEG-LS Lossy (Near-Lossless)"}
    ),
    *_jpeg_family("image/jp2", {JPEG_2000_LOSSLESS: "JPEG 2000 (Lossless Only)", JPEG_2000: "JPEG 2000"}),
    *_jpeg_family(
        "image/jpx",
        {
            JPEG_2000_PART_2_LOSSLESS: "JPEG 2000 Part 2 Multi-component (Lossless Only)",
            JPEG_2000_PART_2: "JPEG 2000 Part 2 Multi-component",
        },
    ),
    *_jpeg_family(
        "image/jphc",
        {
            HTJ2K_LOSSLESS: "High-Throughput JPEG 2000 (Lossless Only)",
            HTJ2K_LOSSLESS_RPCL: "High-Throughput JPEG 2000 with RPCL Options (Lossless Only)",
            HTJ2K: "High-Throughput JPEG 2000",
        },
    ),
    _encapsulated(JPEG_XL_LOSSLESS, "JPEG XL Lossless", "image/jxl"),
    _encapsulated(JPEG_XL_RECOMPRESSION, "JPEG XL JPEG Recompression", "image/jxl"),
    _encapsulated(JPEG_XL, "JPEG XL", "image/jxl"),
    *_video(
        "video/mpeg",
        {
            f"{_MPEG4}0": "MPEG2 Main Profile / Main Level",
            f"{_MPEG4}0.1": "Fragmentable MPEG2 Main Profile / Main Level",
            f"{_MPEG4}1": "MPEG2 Main Profile / High Level",
            f"{_MPEG4}1.1": "Fragmentable MPEG2 Main Profile / High Level",
        },
    ),
    *_video(
        "video/mp4",
        {
            f"{_MPEG4}2": "MPEG-4 AVC/H.264 High Profile / Level 4.1",
            f"{_MPEG4}2.1": "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.1",
            f"{_MPEG4}3": "MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1",
            f"{_MPEG4}3.1": "Fragmentable MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1",
            f"{_MPEG4}4": "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video",
            f"{_MPEG4}4.1": "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video",
            f"{_MPEG4}5": "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video",
            f"{_MPEG4}5.1": "Fragmentable MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video",
            f"{_MPEG4}6": "MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2",
            f"{_MPEG4}6.1": "Fragmentable MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2",
        },
    ),
    *_video(
        "video/h265",
        {f"{_MPEG4}7": "HEVC/H.265 Main Profile / Level 5.1", f"{_MPEG4}8": "HEVC/H.265 Main 10 Profile / Level 5.1"},
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


def lookup(uid: str) -> TransferSyntax | None:
    """What is known of a transfer syntax; None for an unknown one."""
    return _BY_UID.get(uid)


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
