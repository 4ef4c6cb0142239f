"""From Accept, as the clients really write it, to the form of the answer."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.dicom.negotiation import (
    MAX_CACHED_ACCEPT,
    FrameForm,
    NotAcceptable,
    check_json,
    choose_frames,
    choose_type,
    parse_accept,
    query_accept,
    wants_bare,
)
from twistedproxy.dicom.transfer_syntaxes import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    JPEG_2000,
    JPEG_BASELINE,
    JPEG_LOSSLESS_SV1,
    JPEG_LS_LOSSLESS,
    RLE_LOSSLESS,
)

JPEG = FrameForm(True, "image/jpeg", JPEG_BASELINE, True)
JPEG_SINGLE = FrameForm(False, "image/jpeg", JPEG_BASELINE, True)
J2K = FrameForm(True, "image/jp2", JPEG_2000, True)
NATIVE = FrameForm(True, "application/octet-stream", EXPLICIT_VR_LITTLE_ENDIAN, True)
RLE = FrameForm(True, "image/dicom-rle", RLE_LOSSLESS, True)

OLD_MICROSCOPY_VIEWER = (
    b'multipart/related; type="image/jls"; transfer-syntax=1.2.840.10008.1.2.4.80,'
    b' multipart/related; type="image/jls"; transfer-syntax=1.2.840.10008.1.2.4.81,'
    b' multipart/related; type="image/jp2"; transfer-syntax=1.2.840.10008.1.2.4.90,'
    b' multipart/related; type="image/jp2"; transfer-syntax=1.2.840.10008.1.2.4.91,'
    b' multipart/related; type="image/jpx"; transfer-syntax=1.2.840.10008.1.2.4.92,'
    b' multipart/related; type="application/octet-stream"; transfer-syntax=*,'
    b' multipart/related; type="image/jpeg"; transfer-syntax=1.2.840.10008.1.2.4.50'
)

# client, Accept, stored transfer syntax, the form of the answer (None: 406)
CLIENTS: list[tuple[str, bytes, str, FrameForm | None]] = [
    ("dicomweb-client (Python)", b'multipart/related; type="*/*"', JPEG_BASELINE, JPEG),
    ("dicomweb-client (Python)", b'multipart/related; type="*/*"', EXPLICIT_VR_LITTLE_ENDIAN, NATIVE),
    (
        "dicomweb-client (Python)",
        b'multipart/related; type="image/jpeg"; transfer-syntax=1.2.840.10008.1.2.4.50',
        JPEG_BASELINE,
        JPEG,
    ),
    (
        "dicomweb-client (Python)",
        b'multipart/related; type="image/jp2"; transfer-syntax=1.2.840.10008.1.2.4.91, '
        b'multipart/related; type="image/jpeg"; transfer-syntax=1.2.840.10008.1.2.4.50',
        JPEG_BASELINE,
        JPEG,
    ),
    ("dicomweb-client (JavaScript)", b'multipart/related; type="application/octet-stream"', JPEG_BASELINE, None),
    (
        "dicomweb-client (JavaScript)",
        b'multipart/related; type="application/octet-stream"',
        EXPLICIT_VR_LITTLE_ENDIAN,
        NATIVE,
    ),
    (
        "dicomweb-client (JavaScript)",
        b'multipart/related; type="image/jpeg"; transfer-syntax=1.2.840.10008.1.2.4.50',
        JPEG_BASELINE,
        JPEG,
    ),
    (
        "dicom-microscopy-viewer, Slim",
        b'multipart/related; type="application/octet-stream"; transfer-syntax=*',
        JPEG_BASELINE,
        JPEG,
    ),
    (
        "dicom-microscopy-viewer, Slim",
        b'multipart/related; type="application/octet-stream"; transfer-syntax=*',
        JPEG_2000,
        J2K,
    ),
    ("older dicom-microscopy-viewer", OLD_MICROSCOPY_VIEWER, JPEG_BASELINE, JPEG),
    ("older dicom-microscopy-viewer", OLD_MICROSCOPY_VIEWER, JPEG_2000, J2K),
    ("older dicom-microscopy-viewer", OLD_MICROSCOPY_VIEWER, EXPLICIT_VR_LITTLE_ENDIAN, NATIVE),
    (
        "cornerstone",
        b"multipart/related; type=application/octet-stream; transfer-syntax=*",
        JPEG_BASELINE,
        JPEG,
    ),
    ("OHIF", b'multipart/related; type="application/octet-stream"; transfer-syntax="*"', JPEG_BASELINE, JPEG),
    (
        "OHIF",
        b'multipart/related; type="application/octet-stream"; transfer-syntax="1.2.840.10008.1.2.4.50"; '
        b'transfer-syntax="*"',
        JPEG_BASELINE,
        JPEG,
    ),
    (
        "OHIF",
        b'multipart/related; type="image/jpeg"; transfer-syntax="*"; transfer-syntax="1.2.840.10008.1.2.4.50"',
        JPEG_2000,
        None,
    ),
    (
        "wsidicom",
        b'multipart/related; type="image/jpeg"; transfer-syntax=1.2.840.10008.1.2.4.50',
        JPEG_2000,
        None,
    ),
    (
        "wsidicom",
        b'multipart/related; type="image/x-dicom-rle"; transfer-syntax=1.2.840.10008.1.2.5',
        RLE_LOSSLESS,
        RLE,
    ),
    (
        "wsidicom",
        b'multipart/related; type="application/octet-stream"; transfer-syntax=1.2.840.10008.1.2.1',
        JPEG_BASELINE,
        None,
    ),
    ("EZ-WSI", b'multipart/related; type="application/octet-stream"; transfer-syntax=*', JPEG_BASELINE, JPEG),
]


class FrameClientTests(SynchronousTestCase):
    def test_clients(self) -> None:
        """Every client of the table gets the form that it can read, or a 406."""
        for client, accept, stored, expected in CLIENTS:
            with_name = f"{client}: {accept!r} on {stored}"
            if expected is None:
                with self.assertRaises(NotAcceptable, msg=with_name):
                    choose_frames(parse_accept(accept), stored, 1)
            else:
                self.assertEqual(choose_frames(parse_accept(accept), stored, 1), expected, with_name)

    def test_many_frames(self) -> None:
        """The forms that are multipart do for any number of frames."""
        for client, accept, stored, expected in CLIENTS:
            if expected is not None:
                self.assertEqual(choose_frames(parse_accept(accept), stored, 400), expected, client)


class FrameTests(SynchronousTestCase):
    def form(self, accept: bytes | None, stored: str = JPEG_BASELINE, count: int = 1, *more: str) -> FrameForm:
        return choose_frames(parse_accept(accept), stored, count, more)

    def refused(self, accept: bytes | None, stored: str = JPEG_BASELINE, count: int = 1) -> NotAcceptable:
        error: NotAcceptable = self.assertRaises(NotAcceptable, self.form, accept, stored, count)
        return error

    def test_anything(self) -> None:
        """Without Accept, with an empty one and with a star the frame comes as stored, in multipart."""
        for accept in (None, b"", b"  ", b"*/*", b"text/html, */*;q=0.1", b"multipart/related", b"multipart/*"):
            self.assertEqual(self.form(accept), JPEG, accept)

    def test_single_part(self) -> None:
        """A bare type gets one frame in a single part, labelled with its true type."""
        for accept in (b"image/jpeg", b"image/*", b"application/octet-stream; transfer-syntax=*"):
            self.assertEqual(self.form(accept), JPEG_SINGLE, accept)
        native = self.form(b"application/octet-stream", EXPLICIT_VR_LITTLE_ENDIAN)
        self.assertEqual((native.multipart, native.media_type), (False, "application/octet-stream"))

    def test_single_part_of_many(self) -> None:
        """Several frames are never squeezed into a single part."""
        self.refused(b"image/jpeg", count=2)
        self.assertEqual(self.form(b"image/jpeg, */*;q=0.1", count=2), JPEG)

    def test_first_named_wins(self) -> None:
        """Between single part and multipart of one weight the first named is answered."""
        self.assertEqual(self.form(b'image/jpeg, multipart/related; type="image/jpeg"'), JPEG_SINGLE)
        self.assertEqual(self.form(b'multipart/related; type="image/jpeg", image/jpeg'), JPEG)

    def test_weights(self) -> None:
        """A higher weight wins over the order, and weight 0 forbids."""
        self.assertEqual(self.form(b'image/jpeg;q=0.5, multipart/related; type="image/jpeg"'), JPEG)
        self.refused(b'multipart/related; type="image/jpeg"; q=0, */*')
        self.refused(b"*/*;q=0")

    def test_most_specific_decides(self) -> None:
        """The range that says most about a form gives its weight."""
        accept = b'multipart/related; type="*/*"; q=0.9, multipart/related; type="image/jpeg"; q=0.1, image/jpeg; q=0.5'
        self.assertEqual(self.form(accept), JPEG_SINGLE)

    def test_type_without_transfer_syntax(self) -> None:
        """A type alone is met by any syntax of that type; octet-stream alone by native little endian only."""
        self.assertEqual(
            self.form(b'multipart/related; type="image/jpeg"', JPEG_LOSSLESS_SV1).transfer_syntax, JPEG_LOSSLESS_SV1
        )
        for stored in (JPEG_BASELINE, RLE_LOSSLESS, EXPLICIT_VR_BIG_ENDIAN, "1.2.3.4"):
            self.refused(b'multipart/related; type="application/octet-stream"', stored)

    def test_implicit_little_endian(self) -> None:
        """A native frame of an implicit VR instance is an explicit VR one, under either name."""
        for accept in (
            b'multipart/related; type="application/octet-stream"',
            b'multipart/related; type="application/octet-stream"; transfer-syntax=1.2.840.10008.1.2.1',
            b'multipart/related; type="application/octet-stream"; transfer-syntax=1.2.840.10008.1.2',
            b'multipart/related; type="*/*"',
        ):
            self.assertEqual(self.form(accept, IMPLICIT_VR_LITTLE_ENDIAN), NATIVE, accept)

    def test_octet_stream_with_the_stored_syntax(self) -> None:
        """Octet-stream with the very syntax that is stored is met, labelled with the true type."""
        self.assertEqual(
            self.form(b"multipart/related; type=application/octet-stream; transfer-syntax=1.2.840.10008.1.2.4.50"), JPEG
        )

    def test_aliases(self) -> None:
        """The other names of a type are understood and the canonical one is answered."""
        for name in (b"image/dicom-rle", b"image/x-dicom-rle"):
            self.assertEqual(self.form(b'multipart/related; type="%s"' % name, RLE_LOSSLESS), RLE)
        self.assertEqual(self.form(b'multipart/related; type="image/x-jls"', JPEG_LS_LOSSLESS).media_type, "image/jls")

    def test_nonsense(self) -> None:
        """What holds no media type that frames come in is a 406, never a guess."""
        for accept in (b"nonsense", b";;;", b",", b"image/png", b"multipart/form-data", b"\xff\x00"):
            self.refused(accept)

    def test_no_substrings(self) -> None:
        """A type is not found inside another parameter."""
        self.refused(b'application/x; note="multipart/related; type=image/jpeg"')
        self.refused(b'multipart/related; type="image/jpegx"')

    def test_406_lists_what_there_is(self) -> None:
        """The 406 names the stored form, as it could be asked for."""
        self.assertEqual(
            self.refused(b"image/png").available,
            [
                'multipart/related; type="image/jpeg"; transfer-syntax=1.2.840.10008.1.2.4.50',
                "image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50",
            ],
        )

    def test_producible(self) -> None:
        """What can be made is made when asked for, but what is stored is preferred at equal weight."""
        made = self.form(
            b'multipart/related; type="application/octet-stream"', JPEG_BASELINE, 1, EXPLICIT_VR_LITTLE_ENDIAN
        )
        self.assertEqual(made, FrameForm(True, "application/octet-stream", EXPLICIT_VR_LITTLE_ENDIAN, False))
        both = b'multipart/related; type="application/octet-stream", multipart/related; type="image/jpeg"'
        self.assertEqual(self.form(both, JPEG_BASELINE, 1, EXPLICIT_VR_LITTLE_ENDIAN), JPEG)
        weighed = b'multipart/related; type="application/octet-stream", multipart/related; type="image/jpeg"; q=0.5'
        self.assertFalse(self.form(weighed, JPEG_BASELINE, 1, EXPLICIT_VR_LITTLE_ENDIAN).as_stored)

    def test_long_accept(self) -> None:
        """An Accept that is too long to be remembered is read all the same."""
        accept = b"text/html, " * (MAX_CACHED_ACCEPT // 20) + b"image/jpeg"
        self.assertEqual(self.form(accept), JPEG_SINGLE)
        self.refused(b"a/b, " * 3000 + b"image/jpeg")


class BigEndianTests(SynchronousTestCase):
    """Frames that a store gave in big endian, which must not be on the wire (PS3.18 section 8.7.3)."""

    def test_transcoded(self) -> None:
        """They are transcoded whatever is asked for, or refused."""
        for accept in (b"*/*", b"", b'multipart/related; type="application/octet-stream"; transfer-syntax=*'):
            form = choose_frames(parse_accept(accept), EXPLICIT_VR_BIG_ENDIAN, 1, (EXPLICIT_VR_LITTLE_ENDIAN,))
            self.assertEqual((form.transfer_syntax, form.as_stored), (EXPLICIT_VR_LITTLE_ENDIAN, False))
            self.assertRaises(NotAcceptable, choose_frames, parse_accept(accept), EXPLICIT_VR_BIG_ENDIAN, 1)


class QueryTests(SynchronousTestCase):
    def test_query_replaces_the_header(self) -> None:
        """An accept in the query counts instead of the header."""
        accept = query_accept(b"a=1&accept=multipart%2Frelated%3B%20type%3Dimage/jpeg")
        self.assertEqual(accept, b"multipart/related; type=image/jpeg")
        self.assertEqual(choose_frames(parse_accept(b"image/png", accept), JPEG_BASELINE, 1), JPEG)

    def test_plus(self) -> None:
        """A plus sign belongs to the type; behind a separator it was a space."""
        self.assertEqual(query_accept(b"accept=application/dicom+json"), b"application/dicom+json")
        self.assertEqual(query_accept(b"accept=multipart/related;+type=a/b"), b"multipart/related; type=a/b")

    def test_missing(self) -> None:
        """No accept, or an empty one, leaves the header in force."""
        self.assertIsNone(query_accept(b""))
        self.assertIsNone(query_accept(b"limit=3&accept="))
        self.assertIsNone(query_accept(b"xaccept=a/b"))


class TypeTests(SynchronousTestCase):
    """The type of an answer that is no multipart."""

    def test_choose_type(self) -> None:
        """The type with the highest weight wins, the first available one among equals; a multipart is another thing."""
        available = ("application/dicom+json", "application/json")
        self.assertEqual(choose_type(parse_accept(b"application/json"), available), "application/json")
        self.assertEqual(choose_type(parse_accept(b"application/*"), available), "application/dicom+json")
        accept = b"application/dicom+json;q=0.2, application/json;q=0.4"
        self.assertEqual(choose_type(parse_accept(accept), available), "application/json")
        xml = parse_accept(b'multipart/related; type="application/json"')
        self.assertRaises(NotAcceptable, choose_type, xml, available)


class FolderTests(SynchronousTestCase):
    """What has one form only."""

    def test_json(self) -> None:
        """Any multipart type is taken to mean JSON; weight 0 means nothing."""
        for accept in (
            b"",
            b"application/json;q=0.1, text/html",
            b"multipart/related; type=a/b",
            b"*/*",
            b"text/html;q=0",
        ):
            check_json(parse_accept(accept))
        self.assertRaises(NotAcceptable, check_json, parse_accept(b"application/dicom+xml, application/json;q=0"))

    def test_bare(self) -> None:
        """The first range that fits decides, whatever its weight; octets in any syntax are met by any type."""
        for accept, bare in (
            (b"", False),
            (b"*/*", False),
            (b"image/png, image/jpeg;q=0.1, multipart/related", True),
            (b"multipart/related, image/jpeg", False),
            (b"application/octet-stream; transfer-syntax=*", True),
            (b"image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50", True),
        ):
            self.assertEqual(bare, wants_bare(parse_accept(accept), "image/jpeg", JPEG_BASELINE), accept)
        error = self.assertRaises(NotAcceptable, wants_bare, parse_accept(b"image/png"), "image/jpeg", JPEG_BASELINE)
        self.assertEqual(
            ['multipart/related; type="image/jpeg"; transfer-syntax=1.2.840.10008.1.2.4.50'], error.available
        )
        self.assertRaises(NotAcceptable, wants_bare, parse_accept(b"multipart/form-data"), "image/jpeg")
