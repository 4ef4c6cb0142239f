"""What a STOW's answer says that it stored."""

from __future__ import annotations

import json
from typing import Any, Optional

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.dicom.address import Scope
from twistedproxy.web.changes import MAX_SCOPES, touched_by_store

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


class ChangesTests(SynchronousTestCase):
    """`touched_by_store`."""

    def test_stored(self) -> None:
        """The instances that were stored, by their RetrieveURLs, whatever the host in these."""
        self.assertEqual([place(1), place(2)], touched_by_store(answer([item(2), item(1)]), ROOT))

    def test_escaped(self) -> None:
        """JSON may escape slashes."""
        self.assertEqual([place(1)], touched_by_store(answer([item(1)]).replace(b"/", b"\\/"), ROOT))

    def test_xml(self) -> None:
        """The XML form says the same."""
        xml = (
            '<NativeDicomModel><DicomAttribute tag="00081199" vr="SQ"><Item number="1">'
            '<DicomAttribute tag="00081155" vr="UI"><Value number="1">1.2.1.3.1</Value></DicomAttribute>'
            '<DicomAttribute tag="00081190" vr="UR"><Value number="1">'
            f"{BASE}/studies/1.2.1/series/1.2.1.3/instances/1.2.1.3.1"
            "</Value></DicomAttribute></Item></DicomAttribute></NativeDicomModel>"
        )
        self.assertEqual([place(1)], touched_by_store(xml.encode(), ROOT))

    def test_some_failed(self) -> None:
        """What failed was not touched, with or without a place."""
        failed = [item(2, url=False, reason="00081197"), item(3, reason="00081197")]
        self.assertIn(place(1), touched_by_store(answer([item(1)], failed), ROOT))
        self.assertNotIn(ROOT, touched_by_store(answer([item(1)], failed), ROOT))

    def test_all_failed(self) -> None:
        """Where all failed, nothing was."""
        failed = [item(number, url=False, reason="00081197") for number in range(3)]
        self.assertEqual([], touched_by_store(answer([], failed), ROOT))

    def test_warned(self) -> None:
        """What was stored with a warning was stored."""
        self.assertEqual([place(1)], touched_by_store(answer([item(1, reason="00081196")]), ROOT))

    def test_without_places(self) -> None:
        """An instance that was stored nobody knows where makes all that was addressed old."""
        self.assertEqual([ROOT], touched_by_store(answer([item(1), item(2, url=False)]), ROOT))

    def test_other_failures(self) -> None:
        """Failures that name no instance are not mistaken for those that do."""
        body = json.loads(answer([item(1), item(2, url=False)]))
        body["0008119A"] = {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [272]}}]}
        self.assertEqual([ROOT], touched_by_store(json.dumps(body).encode(), ROOT))

    def test_unreadable(self) -> None:
        """So does an answer that says nothing, or nothing that is understood."""
        study = Scope(ROOT.origin, "", "1.2.1")
        for text in (b"", b"{}", b"<html>stored</html>", b"\xff\x00", answer([])):
            self.assertEqual([study], touched_by_store(text, study), text)

    def test_bad_places(self) -> None:
        """Or one whose places are none."""
        bad = answer([item(1)]).replace(b"/instances/1.2.1.3.1", b"/instances/1..2")
        self.assertEqual([ROOT], touched_by_store(bad, ROOT))

    def test_many(self) -> None:
        """Of very many instances the studies are forgotten."""
        many = [item(number, study) for number in range(MAX_SCOPES) for study in (1, 2)]
        self.assertEqual(
            [Scope(ROOT.origin, "", "1.2.1"), Scope(ROOT.origin, "", "1.2.2")], touched_by_store(answer(many), ROOT)
        )
