"""Searches: what matches, what comes back, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.slides import Made, loop, slide
from twistedproxy.origin.errors import OriginRefused
from twistedproxy.origin.folder.contents import Catalog, representative
from twistedproxy.origin.folder.instance_file import read_header
from twistedproxy.origin.folder.search import MatchingKey, like, matches, parse_query, result_chunks, search

BASE = "file:/somewhere"


class MatchingTests(SynchronousTestCase):
    """One attribute against one key."""

    def check(self, vr: str, value: Any, wanted: str) -> bool:
        return matches({"00100010": {"vr": vr, "Value": [value]}}, MatchingKey(("00100010",), vr, (wanted,)))

    def test_wildcards(self) -> None:
        """Stars stand for any characters, question marks for one."""
        for text, pattern, expected in (
            ("SLIDE", "SLIDE", True),
            ("SLIDE", "SL*", True),
            ("SLIDE", "*D?", True),
            ("SLIDE", "*", True),
            ("SLIDE", "S?IDE*", True),
            ("SLIDE", "?LID", False),
            ("SLIDE", "SLI", False),
            ("", "*", True),
            ("a.c", "a?c*", True),
            ("aaab", "*ab", True),
        ):
            self.assertEqual(like(text, pattern), expected, (text, pattern))

    def test_hostile_pattern(self) -> None:
        """A pattern of many stars takes no more than text times pattern; brackets are characters; none is longer than any text."""
        self.assertFalse(like("a" * 2000, "*a" * 200 + "b"))
        self.assertTrue(like("a[b]!", "*[b]?"))
        self.assertFalse(like("a", "[a]*"))
        self.assertFalse(like("a" * 2000, "a" * 1024 + "*"))

    def test_names(self) -> None:
        """A person's name matches whatever its case; other text does not."""
        self.assertTrue(self.check("PN", {"Alphabetic": "Doe^Jane"}, "doe*"))
        self.assertTrue(self.check("PN", {"Alphabetic": "Doe^Jane^^^"}, "DOE^JANE"))
        self.assertFalse(self.check("LO", "Doe", "doe"))

    def test_dates(self) -> None:
        """A date matches itself and any range that it lies in."""
        for wanted, expected in (
            ("20260102", True),
            ("20260101-20260103", True),
            ("20260102-", True),
            ("-20260102", True),
            ("20260103-", False),
            ("-20260101", False),
            ("20250102", False),
        ):
            self.assertEqual(self.check("DA", "20260102", wanted), expected, wanted)

    def test_times(self) -> None:
        """A time given shortly stands for all moments that begin so."""
        self.assertTrue(self.check("TM", "030405.25", "0304"))
        self.assertTrue(self.check("TM", "030405", "02-0304"))
        self.assertFalse(self.check("TM", "030405", "0305-"))

    def test_uid_lists(self) -> None:
        """Any of several UIDs, joined by commas or backslashes; never a part of one."""
        for wanted, expected in (("1.2,1.3", True), ("1.4\\1.3", True), ("1.34", False), ("1.*", False)):
            self.assertEqual(self.check("UI", "1.3", wanted), expected, wanted)

    def test_numbers(self) -> None:
        """Numbers match by value, and a text that is none matches no number."""
        self.assertTrue(self.check("IS", 1, "01"))
        self.assertFalse(self.check("IS", 1, "x"))

    def test_empty(self) -> None:
        """An empty key matches everything, also what is missing."""
        self.assertTrue(matches({}, MatchingKey(("00100010",), "PN", ("",))))

    def test_in_sequences(self) -> None:
        """An attribute of an item matches by its path."""
        attributes = {"00400275": {"vr": "SQ", "Value": [{"00400009": {"vr": "SH", "Value": ["7"]}}]}}
        self.assertTrue(matches(attributes, MatchingKey(("00400275", "00400009"), "SH", ("7",))))
        self.assertFalse(matches(attributes, MatchingKey(("00400275", "00400009"), "SH", ("8",))))


class QueryTests(SynchronousTestCase):
    """Query strings."""

    def test_names_of_attributes(self) -> None:
        """Keywords, tags and paths name attributes; includefield may be repeated and hold a list."""
        query = parse_query(
            b"PatientID=A%2AB&00080060=SM&RequestAttributesSequence.00400009=1"
            b"&includefield=00081030,Rows&includefield=all&limit=5&offset=2&fuzzymatching=true"
        )
        self.assertEqual([(key.place, *key.values) for key in query.keys], [
            (("00100020",), "A*B"), (("00080060",), "SM"), (("00400275", "00400009"), "1"),
        ])  # fmt: skip
        self.assertEqual(query.include, (("00081030",), ("00280010",)))
        self.assertTrue(query.include_all)
        self.assertEqual((query.limit, query.offset), (5, 2))

    def test_nothing_named(self) -> None:
        """An empty name names no attribute, though pydicom knows one without a keyword."""
        for text in (b"includefield=", b"includefield=,Rows,&=x"):
            query = parse_query(text)
            self.assertEqual(query.include, (("00280010",),) if b"Rows" in text else ())
            self.assertEqual(query.keys, ())

    def test_ignored(self) -> None:
        """Unknown parameters, and attributes that nothing can be matched by, are ignored and named."""
        query = parse_query(b"Nonsense=1&PixelData=1&_=17&00091001=x&includefield=Nothing,Rows&x.y=2&PatientID=A")
        self.assertEqual(query.ignored, ("Nonsense", "PixelData", "_", "00091001", "x.y"))
        self.assertEqual([key.place for key in query.keys], [("00100020",)])
        self.assertEqual(query.include, (("00280010",),))

    def test_private_in_a_sequence(self) -> None:
        """A private element in a sequence is matched by as far as that goes."""
        (key,) = parse_query(b"00400275.00091001=x").keys
        self.assertEqual((key.place, key.vr), (("00400275", "00091001"), "UN"))
        self.assertFalse(matches({}, key))

    def test_refused(self) -> None:
        """What cannot be understood is refused with 400 that says what came."""
        for raw, named in (
            (b"limit=-1", "-1"),
            (b"offset=x", "x"),
            (b"limit=99999999999", "99999999999"),
            (b"a=1&" * 101, "parameters"),
            (b"PatientID=%ff", "UTF-8"),
        ):
            refusal = self.assertRaises(OriginRefused, parse_query, raw)
            self.assertEqual(refusal.status, 400)
            self.assertIn(named, refusal.body.decode())


class SearchTests(SynchronousTestCase):
    """Searches of a folder with two studies: a slide of two levels with a loop beside it, and a loop."""

    def setUp(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        self.base = slide(folder / "a.dcm", 2, 2, tile=32, patient="ANNA")
        same = {"study": self.base.study, "patient": "ANNA"}
        self.small = slide(
            folder / "b.dcm", 1, 1, tile=32, series=self.base.series, extra={"InstanceNumber": "2"}, **same
        )
        self.beside = loop(folder / "c.dcm", 3, 8, 8, **same)
        self.other = loop(folder / "d.dcm", 3, 8, 8, patient="BERT", extra={"StudyDate": "20250615"})
        self.folder = folder
        self.catalog = Catalog().changed((), [read_header(str(path)) for path in folder.iterdir()])

    def found(self, level: str, query: str, *where: str) -> list[Any]:
        parsed = parse_query(query.encode())
        results, _ = search(self.catalog, level, where, parsed)
        answer: list[Any] = json.loads(b"".join(result_chunks(results, level, where, parsed, BASE)))
        return answer

    def uids(self, level: str, query: str, *where: str) -> list[str]:
        tag = {"studies": "0020000D", "series": "0020000E", "instances": "00080018"}[level]
        return [one[tag]["Value"][0] for one in self.found(level, query, *where)]

    def sops(self, *made: Made) -> list[str]:
        return [one.sop for one in made]

    def test_studies(self) -> None:
        """Studies come with what they hold: modalities, counts, where to get them."""
        anna, bert = self.found("studies", "")
        self.assertEqual(anna["00080061"]["Value"], ["SM", "US"])
        self.assertEqual((anna["00201206"]["Value"], anna["00201208"]["Value"]), ([2], [3]))
        self.assertEqual(anna["00081190"]["Value"], [f"{BASE}/studies/{self.base.study}"])
        self.assertEqual(bert["00100020"]["Value"], ["BERT"])
        self.assertNotIn("0020000E", anna)
        self.assertEqual(list(anna), sorted(anna))

    def test_study_keys(self) -> None:
        """Keys of the patient and the study choose studies; so does a key of what lies below."""
        both = [self.base.study, self.other.study]
        for query, expected in (
            ("PatientID=ANNA", both[:1]),
            ("PatientName=*test", both),
            ("PatientName=bert^*", both[1:]),
            ("StudyDate=20250101-20251231", both[1:]),
            ("ModalitiesInStudy=SM", both[:1]),
            ("ModalitiesInStudy=US", both),
            ("ModalitiesInStudy=CT,SM", both[:1]),
            ("ModalitiesInStudy=CT%5CUS", both),
            ("ModalitiesInStudy=CT&ModalitiesInStudy=SM", both[:1]),
            ("ModalitiesInStudy=CT,MR", []),
            ("PatientID=BERT%5CNOBODY", both[1:]),
            ("PatientID=BERT,ANNA", []),
            ("Nonsense=1", both),
            ("00080060=SM", both[:1]),
            (f"StudyInstanceUID={','.join(both)}", both),
            (f"SOPInstanceUID={self.other.sop}", both[1:]),
            ("PatientID=NOBODY", []),
            ("PatientID=ANNA&StudyDate=2025-", both[:1]),
            ("PatientID=", both),
        ):
            self.assertEqual(self.uids("studies", query), expected, query)

    def test_series(self) -> None:
        """Series come with their counts, of all studies or of one; all of them name their study."""
        self.assertEqual(len(self.uids("series", "")), 3)
        slides, _ = self.found("series", "", self.base.study)
        self.assertEqual(slides["00201209"]["Value"], [2])
        self.assertEqual(slides["0020000D"]["Value"], [self.base.study])
        self.assertNotIn("00100020", slides)
        self.assertEqual(slides["00081190"]["Value"], [f"{BASE}/studies/{self.base.study}/series/{self.base.series}"])
        self.assertEqual(self.uids("series", "Modality=US", self.base.study), [self.beside.series])

    def test_instances(self) -> None:
        """Instances come with frames, size and transfer syntax, of everything, a study or a series."""
        self.assertEqual(self.uids("instances", ""), self.sops(self.base, self.small, self.beside, self.other))
        self.assertEqual(
            self.uids("instances", "", self.base.study, self.base.series), self.sops(self.base, self.small)
        )
        one = self.found("instances", "InstanceNumber=1", self.base.study, self.base.series)[0]
        self.assertEqual(one["00280008"]["Value"], [4])
        self.assertEqual(one["00083002"]["Value"], ["1.2.840.10008.1.2.4.50"])
        self.assertEqual(one["00081190"]["Value"], [f"{BASE}/{self.base.resource}"])
        self.assertEqual(self.uids("instances", "PatientID=BERT"), [self.other.sop])

    def test_included(self) -> None:
        """What was asked for comes along, from the index or from the file."""
        one = self.found("instances", "includefield=PatientID,00181020,OpticalPathSequence", self.base.study)[0]
        self.assertEqual(one["00100020"]["Value"], ["ANNA"])
        self.assertEqual(one["00181020"]["Value"], ["1"])
        profile = one["00480105"]["Value"][0]["00282000"]
        self.assertIn("vr", profile)
        everything = self.found("instances", "includefield=all", self.base.study)[0]
        self.assertIn("00480105", everything)
        self.assertNotIn("00480105", self.found("instances", "", self.base.study)[0])
        study = self.found("studies", "includefield=00181020")[0]
        self.assertEqual(study["00181020"]["Value"], ["1"])

    def test_pages(self) -> None:
        """limit and offset cut pages that fit together."""
        whole = self.uids("instances", "")
        pages = [self.uids("instances", f"limit=3&offset={offset}") for offset in (0, 3, 6)]
        self.assertEqual(pages, [whole[:3], whole[3:], []])
        self.assertEqual(self.found("studies", "limit=0"), [])

    def test_too_many(self) -> None:
        """Of more results than an answer holds the number of the others is told."""
        self.patch(__import__("twistedproxy.origin.folder.search", fromlist=["x"]), "MAX_RESULTS", 3)
        results, left = search(self.catalog, "instances", (), parse_query(b""))
        self.assertEqual((len(results), left), (3, 1))

    def test_representative(self) -> None:
        """A whole slide is shown by its smallest level, a stack by its middle."""
        study = self.catalog.files(self.base.study)
        self.assertEqual(representative(study).sop, self.small.sop)
        stack = [read_header(str(loop(self.folder / f"{n}.dcm", 1, 8, 8).path)) for n in range(3)]
        self.assertIs(representative(stack), stack[1])
