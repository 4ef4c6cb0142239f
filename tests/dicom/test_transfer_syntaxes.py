from __future__ import annotations

from pathlib import Path

import wsidicom_data
from pydicom.uid import UID
from twisted.trial.unittest import SynchronousTestCase

from tests.properties import given, settings, st
from twistedproxy.dicom import transfer_syntaxes as ts
from twistedproxy.dicom.sniffing import sniff

ENCODED = Path(wsidicom_data.__file__).parent / "data" / "encoded"

BY_FILE_NAME = {
    "JPEG_Baseline": ts.JPEG_BASELINE,
    "JPEG_Extended": ts.JPEG_EXTENDED,
    "JPEG_Lossless": ts.JPEG_LOSSLESS,
    "JPEG-LS_Lossless": ts.JPEG_LS_LOSSLESS,
    "JPEG-LS_Lossy": ts.JPEG_LS_NEAR_LOSSLESS,
    "JPEG_2000_Image_Compression_(Lossless_Only)": ts.JPEG_2000_LOSSLESS,
    "JPEG_2000_Image_Compression-": ts.JPEG_2000,
    "RLE": ts.RLE_LOSSLESS,
}


def expected_of(name: str) -> str | None:
    return next((uid for start, uid in BY_FILE_NAME.items() if name.startswith(start)), None)


class TableTests(SynchronousTestCase):
    def test_agrees_with_pydicom(self) -> None:
        """Encapsulation, byte order, VR and deflation of every entry are what pydicom knows of it."""
        for syntax in ts._TABLE:
            if syntax.uid.startswith((ts.DEFLATED_IMAGE_FRAME, "1.2.840.10008.1.2.4.11")):
                continue  # newer than pydicom's dictionary
            uid = UID(syntax.uid)
            known = (uid.is_encapsulated, uid.is_little_endian, uid.is_implicit_VR, uid.is_deflated)
            ours = (syntax.encapsulated, not syntax.big_endian, syntax.implicit_vr, syntax.deflated)
            self.assertEqual(known, ours, syntax.uid)

    def test_media_types(self) -> None:
        """Each transfer syntax has its media type; an unknown one is plain bytes."""
        self.assertEqual(ts.media_type_of(ts.JPEG_BASELINE), "image/jpeg")
        self.assertEqual(ts.media_type_of(ts.HTJ2K_LOSSLESS_RPCL), "image/jphc")
        self.assertEqual(ts.media_type_of(ts.EXPLICIT_VR_LITTLE_ENDIAN), "application/octet-stream")
        self.assertEqual(ts.media_type_of(ts.RLE_LOSSLESS), "image/dicom-rle")
        self.assertEqual(ts.media_type_of("1.2.3"), "application/octet-stream")
        self.assertIsNone(ts.lookup("1.2.3"))

    def test_aliases(self) -> None:
        """Both names of a media type mean the same transfer syntax, whatever their letter case."""
        for alias, uid in [
            ("image/X-JLS", ts.JPEG_LS_LOSSLESS),
            ("image/dicom-rle", ts.RLE_LOSSLESS),
            ("image/x-dicom-rle", ts.RLE_LOSSLESS),
            ("image/x-jp2", ts.JPEG_2000_LOSSLESS),
            ("image/jll", ts.JPEG_LOSSLESS_SV1),
            ("image/uncompressed", ts.EXPLICIT_VR_LITTLE_ENDIAN),
            ("application/octed-stream", ts.EXPLICIT_VR_LITTLE_ENDIAN),
        ]:
            self.assertIn(uid, ts.uids_of(alias))

    def test_label_of_a_native_frame(self) -> None:
        """A frame out of a deflated, implicit VR or big endian file is labelled as what its bytes are when they go out:
        explicit VR, little endian."""
        for uid in (ts.IMPLICIT_VR_LITTLE_ENDIAN, ts.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, ts.EXPLICIT_VR_BIG_ENDIAN):
            self.assertEqual(ts.frame_uid(uid), ts.EXPLICIT_VR_LITTLE_ENDIAN)


class SniffTests(SynchronousTestCase):
    def test_real_frames(self) -> None:
        """Every encoded tile of wsidicom-data is recognised; native ones are not taken for anything."""
        seen = set()
        for path in sorted(ENCODED.iterdir()):
            expected = expected_of(path.name)
            found = sniff(path.read_bytes())
            if expected == ts.JPEG_LOSSLESS:  # the encoder uses selection value 1, which is process 14 as well
                self.assertIn(found, (ts.JPEG_LOSSLESS, ts.JPEG_LOSSLESS_SV1), path.name)
            else:
                self.assertEqual(found, expected, path.name)
            seen.add(expected)
        self.assertEqual(seen, {None, *BY_FILE_NAME.values()})

    def test_predictors_of_lossless_jpeg(self) -> None:
        """Selection value 1 has a transfer syntax of its own (PS3.5 section 8.2.1)."""
        tile = (ENCODED / "JPEG_Lossless,_Non-Hierarchical_(Process_14)-RGB-8.jpg").read_bytes()
        place = tile.index(b"\xff\xda\0\x0c\3") + 11
        for selection, expected in ((1, ts.JPEG_LOSSLESS_SV1), (6, ts.JPEG_LOSSLESS)):
            self.assertEqual(sniff(tile[:place] + bytes([selection]) + tile[place + 1 :]), expected)

    def test_a_frames_head_suffices(self) -> None:
        """The first four kilobytes tell as much as the whole frame."""
        for path in sorted(ENCODED.iterdir()):
            data = path.read_bytes()
            self.assertEqual(sniff(data[:4096]), sniff(data), path.name)

    def test_made_frames(self) -> None:
        """HTJ2K, JPEG XL, containers and progressive JPEG, from encoders of their own, are told apart."""
        import imagecodecs
        import numpy

        picture = numpy.arange(64 * 64 * 3, dtype=numpy.uint8).reshape(64, 64, 3)
        self.assertEqual(sniff(bytes(imagecodecs.htj2k_encode(picture, reversible=True))), ts.HTJ2K_LOSSLESS)
        self.assertEqual(sniff(bytes(imagecodecs.htj2k_encode(picture, reversible=False))), ts.HTJ2K)
        self.assertEqual(sniff(bytes(imagecodecs.jpegxl_encode(picture, lossless=True))), ts.JPEG_XL)
        self.assertEqual(sniff(bytes(imagecodecs.jpegxl_encode(picture, usecontainer=True))), ts.JPEG_XL)
        self.assertEqual(
            sniff(bytes(imagecodecs.jpeg2k_encode(picture, codecformat="jp2", reversible=True))), ts.JPEG_2000_LOSSLESS
        )
        self.assertEqual(
            sniff(bytes(imagecodecs.jpeg2k_encode(picture, codecformat="jp2", reversible=False, level=40))),
            ts.JPEG_2000,
        )

    def test_beginnings(self) -> None:
        """Frames of real encoders begin as their transfer syntax wants it; no text does, and no other codestream."""
        frames = {uid: data for path in ENCODED.iterdir() if (uid := sniff(data := path.read_bytes())) is not None}
        self.assertGreater(len(frames), 5)
        for uid, data in frames.items():
            for other in frames:
                like = {ts.media_type_of(one).replace("jls", "jpeg") for one in (uid, other)}
                self.assertEqual(ts.may_be(data, other), len(like) == 1, (uid, other))
            for text in (b"", b"<html>", b'{"error": 1}', data[1:], b"\0" + data):
                self.assertFalse(ts.may_be(text, uid), uid)
        self.assertTrue(ts.may_be(b"\xff\xff\xff\xd8", ts.JPEG_BASELINE))
        self.assertTrue(ts.may_be(b"<html>", ts.EXPLICIT_VR_LITTLE_ENDIAN))

    @settings(max_examples=200)
    @given(
        st.sampled_from(
            [b"", b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n", b"\1\0\0\0\x40\0\0\0"]
        ),
        st.binary(max_size=300),
    )
    def test_nonsense(self, start: bytes, rest: bytes) -> None:
        """Whatever follows a signature, the answer is a known UID or none."""
        found = sniff(start + rest)
        self.assertTrue(found is None or ts.lookup(found) is not None)
