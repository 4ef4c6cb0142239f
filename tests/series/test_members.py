"""The instances of a series, out of its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.series.support import SERIES, STUDY, level_json, path_json, slice_json
from twistedproxy.dicom.json_events import BadMetadata
from twistedproxy.series import members
from twistedproxy.series.members import Member, SeriesParser, StudyParser, pack_members, unpack_members


def parsed(objects: list[Any], step: int = 1 << 20) -> Mapping[str, Member]:
    """What a parser makes of an answer that comes in steps of so many bytes."""
    answer = json.dumps(objects).encode()
    parser = SeriesParser(STUDY, SERIES)
    for start in range(0, len(answer), step):
        parser.feed(answer[start : start + step])
    return parser.close()


class ParserTests(SynchronousTestCase):
    """Reading the answer."""

    def test_all(self) -> None:
        """Every instance with its facts and its place, however the bytes are cut."""
        objects = [slice_json("1.1", 7, 2.5), slice_json("1.2", 8, 5, _00280010=[256])]
        for step in (1, 7, 1 << 20):
            found = parsed(objects, step)
            self.assertEqual(list(found), ["1.1", "1.2"])
            self.assertEqual(
                (found["1.1"].number, found["1.1"].position, found["1.1"].orientation),
                ((7.0,), (-100.0, -100.0, 2.5), (1, 0, 0, 0, 1, 0)),
            )
            self.assertEqual([one.metadata.rows for one in found.values()], [512, 256])
            self.assertEqual(found["1.1"].metadata.transfer_syntax, "1.2.840.10008.1.2.1")

    def test_slides(self) -> None:
        """Of a slide also what its picture is of, and its optical paths, in whatever order they come; with the facts beside them."""
        level = {**level_json("1.1", 1, 1000, 2000, 32), "00480105": path_json("red", "blue")}
        label = level_json("1.2", 2, 256, 256, 1, _00080008=["ORIGINAL", "PRIMARY", "LABEL"])
        odd = {**level_json("1.3", 3, 256, 256, 1, _00080008=[1, 2, 3]), "00480105": {"vr": "SQ", "Value": [{}, None]}}
        for step in (1, 1 << 20):
            found = parsed([level, label, odd], step)
            self.assertEqual(
                [(one.flavor, one.paths) for one in found.values()],
                [("VOLUME", ("blue", "red")), ("LABEL", ()), ("", ())],
            )
            self.assertEqual(found["1.1"].metadata.total_columns, 2000)
            self.assertEqual(unpack_members(pack_members(found.values())), found)
        profiled = path_json("1")
        profiled["Value"][0]["00282000"] = {"vr": "OB", "BulkDataURI": "profile"}
        (one,) = parsed([{**level, "00480105": profiled}]).values()
        self.assertEqual((one.paths, one.metadata.has_icc_profile), (("1",), True))

    def test_texts(self) -> None:
        """Numbers that a store sends as texts are numbers; what are none, or too few, are not there."""
        one = slice_json(
            "1.1", _00200013=["12"], _00200032=["-1.5", "2e1", "3 "], _00200037=["1", "0", "x", "0", "1", "0"]
        )
        other = slice_json("1.2", _00200013=None, _00200032=[1, 2], _00200037=[1, 0, 0, 0, 1, float("nan")])
        found = parsed([one, other])
        self.assertEqual(
            [(each.number, each.position, each.orientation) for each in found.values()],
            [((12.0,), (-1.5, 20.0, 3.0), ()), ((), (), ())],
        )

    def test_not_named(self) -> None:
        """What does not name study, series and instance, each once, counts for nothing."""
        others = [
            slice_json("1.2", _0020000D=["1.9"]),
            slice_json("1.3", _0020000E=["1.2.9"]),
            slice_json("1.4", _0020000E=None),
            slice_json("1.5", _00080018=["1.5", "1.6"]),
            slice_json("1.7", _00080018=None),
            slice_json("no uid"),
        ]
        self.assertEqual(list(parsed([*others, slice_json("1.1")])), ["1.1"])

    def test_study(self) -> None:
        """Of a study every instance by its series; one that two series name is believed of neither, one of another study of none."""
        objects = [
            slice_json("1.1"),
            slice_json("1.2", _0020000E=["1.2.9"]),
            slice_json("1.3"),
            slice_json("1.4"),
            slice_json("1.4", _0020000E=["1.2.9"]),
            slice_json("1.5", _0020000D=["1.9"]),
            slice_json("1.6", _0020000E=None),
            slice_json("1.7", _0020000E=["../.."]),
        ]
        parser = StudyParser(STUDY)
        parser.feed(json.dumps(objects).encode())
        found = parser.close()
        self.assertEqual(
            {series: list(members) for series, members in found.items()}, {SERIES: ["1.1", "1.3"], "1.2.9": ["1.2"]}
        )
        self.assertEqual(found["1.2.9"]["1.2"].metadata.rows, 512)
        cut = StudyParser(STUDY)
        cut.feed(json.dumps(objects).encode()[:-1])
        self.assertRaises(BadMetadata, cut.close)

    def test_twice(self) -> None:
        """Of two objects of one instance neither is believed, nor is a third."""
        twice = [slice_json("1.2"), slice_json("1.2", _00280010=[1])]
        self.assertEqual(list(parsed([slice_json("1.1"), *twice])), ["1.1"])
        self.assertEqual(list(parsed([*twice, *twice[:1], slice_json("1.1")])), ["1.1"])

    def test_no_sense(self) -> None:
        """An instance whose facts make no sense is left out."""
        self.assertEqual(list(parsed([slice_json("1.1"), slice_json("1.2", _00280010=["many"])])), ["1.1"])

    def test_cut_off(self) -> None:
        """An answer that is not all there is none."""
        whole = json.dumps([slice_json("1.1"), slice_json("1.2")]).encode()
        for answer in (whole[:-1], whole[: len(whole) // 2], whole + b"[]", b"{}", b"[]", b"", b"[1]"):
            parser = SeriesParser(STUDY, SERIES)
            with self.assertRaises(BadMetadata, msg=answer[-20:]):
                parser.feed(answer)
                parser.close()

    def test_too_many(self) -> None:
        """A series of more instances than are kept is not known at all."""
        self.patch(members, "MAX_MEMBERS", 2)
        self.assertEqual(len(parsed([slice_json("1.1"), slice_json("1.2")])), 2)
        with self.assertRaises(BadMetadata):
            parsed([slice_json("1.1"), slice_json("1.2"), slice_json("1.3")])


class PackTests(SynchronousTestCase):
    """What is kept in the cache."""

    def test_round_trip(self) -> None:
        """It comes back as it was, and takes little."""
        found = parsed([slice_json(f"1.2.840.{number}", number, number * 1.5) for number in range(1, 201)])
        packed = pack_members(found.values())
        self.assertEqual(unpack_members(packed), found)
        self.assertLess(len(packed), 200 * 100)

    def test_damaged(self) -> None:
        """Anything else is refused."""
        packed = pack_members(parsed([slice_json("1.1")]).values())
        for wrong in (b"", b"{}", packed[:-4], pack_members([])[:5]):
            self.assertRaises(BadMetadata, unpack_members, wrong)
