"""What a STOW changed: by the store's answer, else by what was uploaded."""

from __future__ import annotations

import io
import json
from typing import Any, Optional

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.dicom.resource import Scope
from twistedproxy.dicomweb.metadata_answers import MAX_SCOPES, UploadedInstances, touched_by_store
from twistedproxy.origin.interface import Headers

MULTIPART = b'multipart/related; type="application/dicom"; boundary=stow'
JSON = ((b"Content-Type", b"application/dicom+json"),)
ROOT = Scope("http://store/dicom-web", "")
BASE = "http://elsewhere:8042/dicom-web"


def item(number: int, study: int = 1, url: bool = True, reason: Optional[str] = None) -> dict[str, Any]:
    """An item of the answer's sequences (PS3.18 annex I.2)."""
    found: dict[str, Any] = {
        "00081150": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.77.1.6"]},
        "00081155": {"vr": "UI", "Value": [f"1.2.{study}.3.{number}"]},
    }
    if url:
        place = f"{BASE}/studies/1.2.{study}/series/1.2.{study}.3/instances/1.2.{study}.3.{number}"
        found["00081190"] = {"vr": "UR", "Value": [place]}
    if reason:
        found[reason] = {"vr": "US", "Value": [272]}
    return found


def answer(stored: list[dict[str, Any]], failed: Optional[list[dict[str, Any]]] = None) -> bytes:
    body: dict[str, Any] = {"00081190": {"vr": "UR", "Value": [f"{BASE}/studies/1.2.1"]}}
    if stored:
        body["00081199"] = {"vr": "SQ", "Value": stored}
    if failed:
        body["00081198"] = {"vr": "SQ", "Value": failed}
    return json.dumps(body).encode()


def place(number: int, study: int = 1) -> Scope:
    return Scope(ROOT.origin, "", f"1.2.{study}", f"1.2.{study}.3", f"1.2.{study}.3.{number}")


def touched(
    body: bytes, scope: Scope = ROOT, status: int = 200, headers: Headers = JSON, uploaded: bytes = b""
) -> list[Scope]:
    """What a STOW of *uploaded* to *scope* changed that was answered so."""
    parts = UploadedInstances(MULTIPART, scope)
    parts.feed(uploaded)
    return touched_by_store(status, headers, body, scope, parts)


def file(number: int, study: int = 1, **more: Any) -> bytes:
    """The beginning of an instance's file: up to its pixel data, with a long sequence before its UIDs."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = more.pop("syntax", ExplicitVRLittleEndian)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2"
    uid = place(number, study)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid.sop
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = uid.study, uid.series
    referenced = Dataset()
    referenced.ReferencedSOPInstanceUID = "1.9"
    dataset.ReferencedImageSequence = [referenced] * 200
    dataset.PatientComments = "x" * 5000
    dataset.ImageComments = "x" * 500
    for keyword, value in more.items():
        setattr(dataset, keyword, value)
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def upload(*parts: bytes, content_type: str = "application/dicom") -> bytes:
    """The body of a STOW."""
    head = f"--stow\r\nContent-Type: {content_type}\r\n\r\n".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + b"--stow--\r\n"


class ChangesTests(SynchronousTestCase):
    """`touched_by_store`."""

    def test_stored(self) -> None:
        """The instances that were stored, by their RetrieveURLs, whatever the host in these."""
        self.assertEqual([place(1), place(2)], touched(answer([item(2), item(1)])))

    def test_escaped(self) -> None:
        """JSON may escape slashes."""
        self.assertEqual([place(1)], touched(answer([item(1)]).replace(b"/", b"\\/")))

    def test_xml(self) -> None:
        """The XML form says the same."""
        xml = (
            '<NativeDicomModel><DicomAttribute tag="00081199" vr="SQ"><Item number="1">'
            '<DicomAttribute tag="00081155" vr="UI"><Value number="1">1.2.1.3.1</Value></DicomAttribute>'
            '<DicomAttribute tag="00081190" vr="UR"><Value number="1">'
            f"{BASE}/studies/1.2.1/series/1.2.1.3/instances/1.2.1.3.1"
            "</Value></DicomAttribute></Item></DicomAttribute></NativeDicomModel>"
        )
        self.assertEqual([place(1)], touched(xml.encode(), headers=((b"Content-Type", b"application/dicom+xml"),)))

    def test_some_failed(self) -> None:
        """What failed was not touched, with or without a place."""
        failed = [item(2, url=False, reason="00081197"), item(3, reason="00081197")]
        self.assertIn(place(1), touched(answer([item(1)], failed)))
        self.assertNotIn(ROOT, touched(answer([item(1)], failed)))

    def test_all_failed(self) -> None:
        """Where all failed, nothing was."""
        failed = [item(number, url=False, reason="00081197") for number in range(3)]
        self.assertEqual([], touched(answer([], failed), status=409))

    def test_warned(self) -> None:
        """What was stored with a warning was stored."""
        self.assertEqual([place(1)], touched(answer([item(1, reason="00081196")]), status=202))

    def test_without_places(self) -> None:
        """An instance that was stored nobody knows where makes all that was addressed old."""
        self.assertEqual([ROOT], touched(answer([item(1), item(2, url=False)])))

    def test_other_failures(self) -> None:
        """Failures that name no instance are not mistaken for those that do."""
        body = json.loads(answer([item(1), item(2, url=False)]))
        body["0008119A"] = {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [272]}}]}
        self.assertEqual([ROOT], touched(json.dumps(body).encode()))

    def test_nothing_stored(self) -> None:
        """A store response that names nothing that was stored changed nothing, whatever was uploaded."""
        for body in (
            {"00081198": {"Value": [{"00081197": {}}]}},
            {"00081198": {}, "0008119A": {}},
            {"00081199": {"Value": []}},
        ):
            self.assertEqual([], touched(json.dumps(body).encode(), status=409, uploaded=b"garbage"))

    def test_placed_by_the_upload(self) -> None:
        """Or those that the upload's parts name, where these could all be read."""
        unplaced = answer([item(1, url=False)])
        self.assertEqual([place(1)], touched(unplaced, uploaded=upload(file(1))))
        self.assertEqual([ROOT], touched(unplaced, uploaded=upload(file(1), b"garbage")))
        self.assertEqual([ROOT], touched(unplaced, uploaded=upload(file(1))[:-10]))

    def test_no_store_response(self) -> None:
        """An answer that is none says nothing, whatever its status: what the upload's parts name counts as stored."""
        study = Scope(ROOT.origin, "", "1.2.1")
        page = ((b"Content-Type", b"text/html"),)
        placed = answer([item(2)])
        for status, headers, text in (
            (200, JSON, b""),
            (200, JSON, b"{}"),
            (200, page, b"<html>log in"),
            (200, page, placed),
            (200, (*JSON, (b"Content-Encoding", b"gzip")), placed),
            (200, JSON, b"\xff\x00"),
            (200, JSON, answer([])),
            (302, (), b""),
            (400, JSON, placed),
            (503, (), b""),
        ):
            for scope in (ROOT, study):
                self.assertEqual([], touched(text, scope, status, headers, b"x"), (status, text))
                self.assertEqual([], touched(text, scope, status, headers, upload(b"garbage")), (status, text))
                found = touched(text, scope, status, headers, upload(file(1), b"garbage"))
                self.assertEqual([place(1)], found, (status, text))

    def test_refused(self) -> None:
        """Nobody who was refused changed anything."""
        for status in (401, 403, 407):
            self.assertEqual([], touched(answer([item(1)]), status=status, uploaded=upload(file(1))))

    def test_bad_places(self) -> None:
        """Or one whose places are none."""
        bad = answer([item(1)]).replace(b"/instances/1.2.1.3.1", b"/instances/1..2")
        self.assertEqual([ROOT], touched(bad))

    def test_many(self) -> None:
        """Of very many instances the studies are forgotten."""
        many = [item(number, study) for number in range(MAX_SCOPES) for study in (1, 2)]
        self.assertEqual([Scope(ROOT.origin, "", "1.2.1"), Scope(ROOT.origin, "", "1.2.2")], touched(answer(many)))


class UploadedTests(SynchronousTestCase):
    """`UploadedInstances`."""

    def read(self, body: bytes, size: int = 1 << 20, content_type: bytes = MULTIPART) -> UploadedInstances:
        """All of *body*, in pieces of *size* bytes."""
        uploaded = UploadedInstances(content_type, ROOT)
        for start in range(0, len(body), size):
            uploaded.feed(body[start : start + size])
        return uploaded

    def test_files(self) -> None:
        """Files name their instances, in any transfer syntax and however they are cut."""
        syntaxes = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)
        body = upload(*[file(number, syntax=syntax) for number, syntax in enumerate(syntaxes, start=1)])
        for size in (1, 7, 1000, len(body)):
            uploaded = self.read(body, size)
            self.assertEqual([place(1), place(2), place(3)], uploaded.scopes())
            self.assertTrue(uploaded.whole)

    def test_as_soon_as_they_came(self) -> None:
        """A part counts once its UIDs have come: a store may keep what it got before a connection broke."""
        body = upload(file(1))
        self.assertEqual([], self.read(body[:200]).scopes())
        broken = self.read(body[:-100])
        self.assertEqual([place(1)], broken.scopes())
        self.assertFalse(broken.whole)

    def test_single_part(self) -> None:
        """One file without parts is read, too."""
        uploaded = self.read(file(1), 100, b"application/dicom")
        self.assertEqual(([place(1)], True), (uploaded.scopes(), uploaded.whole))

    def test_metadata_and_bulk_data(self) -> None:
        """Metadata in JSON or XML name their studies (PS3.18 section 10.5.2.1)."""
        objects = [{"0020000D": {"vr": "UI", "Value": [f"1.2.{study}"]}, "00080018": {}} for study in (1, 2)]
        xml = '<DicomAttribute tag="0020000D" vr="UI"><Value number="1">1.2.1</Value></DicomAttribute>'
        studies = [Scope(ROOT.origin, "", "1.2.1"), Scope(ROOT.origin, "", "1.2.2")]
        text = upload(json.dumps(objects).encode(), content_type="application/dicom+json")
        self.assertEqual(studies, self.read(text, 11).scopes())
        text = upload(xml.encode(), content_type="application/dicom+xml")
        self.assertEqual(studies[:1], self.read(text, 11).scopes())

    def test_nothing_dicom(self) -> None:
        """Anything else names nothing, and raises nothing."""
        for content_type in (MULTIPART, b"text/plain", b"", b"\xff", b"application/dicom", b"multipart/related"):
            for body in (b"x", b"", upload(b"", b"garbage"), b"--stow\r\n" + bytes(300), bytes(100_000)):
                uploaded = self.read(body, content_type=content_type)
                self.assertEqual(([], False), (uploaded.scopes(), uploaded.whole), (content_type, body[:20]))

    def test_impossible_uids(self) -> None:
        """What is no UID names nothing, and takes nothing else with it: anybody can write it."""
        for uid in ("1.2..x", ".", "..", "abc", "-", "1.2 3"):
            self.assertEqual([place(2)], self.read(upload(file(1, SeriesInstanceUID=uid), file(2))).scopes())
            text = json.dumps([{"0020000D": {"vr": "UI", "Value": [uid]}}]).encode()
            self.assertEqual([], self.read(upload(text, content_type="application/dicom+json")).scopes())

    def test_odd_parts(self) -> None:
        """The store judges the upload: a part that no other reader would take hides no other, before it or after it."""
        odd = (
            b"Content-Encoding: gzip",
            b"Content-Transfer-Encoding: base64",
            b"Content-Range: bytes 0-9/20",
            b"Content-Length: 7",
            b"X-Long: " + b"x" * 20_000,
        )
        for header in odd:
            part = b"--stow\r\n" + header + b"\r\n\r\ngarbage\r\n"
            for body in (upload(file(1))[:-10] + part + b"--stow--\r\n", part + upload(file(1))):
                for size in (len(body), 100):
                    uploaded = self.read(body, size)
                    self.assertEqual(([place(1)], False), (uploaded.scopes(), uploaded.whole), header[:30])

    def test_odd_content_types(self) -> None:
        """An upload that does not say what it is, or by a long boundary, is read all the same."""
        body = upload(file(1))
        for content_type in (b"", b"text/plain", b"application/octet-stream", b"multipart/related"):
            self.assertEqual([place(1)], self.read(body, 100, content_type).scopes(), content_type)
            self.assertEqual([place(1)], self.read(file(1), 100, content_type).scopes() or [place(1)], content_type)
        long = b"b" * 500
        uploaded = self.read(body.replace(b"stow", long), 100, b"multipart/related; boundary=" + long)
        self.assertEqual(([place(1)], True), (uploaded.scopes(), uploaded.whole))

    def test_time(self) -> None:
        """A hostile text is looked through in linear time: four times as much takes no more steps each byte."""
        for text in (
            b'"0020000D"' * 100_000,
            b"'0020000D'" * 100_000,
            b'"0020000D":{' * 100_000,
            b"0020000D'>" * 100_000,
        ):
            self.assertEqual([], self.read(upload(text, content_type="application/dicom+json"), 65536).scopes())

    def test_many(self) -> None:
        """Of many instances the studies count; of very many studies a bounded number, for anybody can name them."""
        many = upload(*[file(number) for number in range(MAX_SCOPES + 1)])
        self.assertEqual([Scope(ROOT.origin, "", "1.2.1")], self.read(many).scopes())
        studies = [{"0020000D": {"vr": "UI", "Value": [f"1.2.{study}"]}} for study in range(MAX_SCOPES + 1)]
        text = upload(json.dumps(studies).encode(), content_type="application/dicom+json")
        self.assertEqual(MAX_SCOPES, len(self.read(text).scopes()))
