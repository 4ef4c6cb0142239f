"""URLs to warm, and what searches find below them."""

from __future__ import annotations

from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.warm.options import Found, WarmTarget

ROOT = "https://host:8443/a/dicomweb"
STUDY = f"{ROOT}/studies/1.2"


class TargetTests(SynchronousTestCase):
    """What a URL names."""

    def test_levels(self) -> None:
        """A study, a series and an instance are distinguished, whatever comes before them; a slash at the end is ignored."""
        self.assertEqual(WarmTarget.of(STUDY + "/"), WarmTarget(STUDY, STUDY))
        series = f"{STUDY}/series/3.4"
        self.assertEqual(WarmTarget.of(series), WarmTarget(series, STUDY, series="3.4"))
        instance = f"{series}/instances/5.6"
        self.assertEqual(WarmTarget.of(instance), WarmTarget(instance, STUDY, "5.6", "3.4"))
        google = "https://h/tile/projects/studies/x/studies/1.2"
        self.assertEqual(WarmTarget.of(google).study_url, google)

    def test_refused(self) -> None:
        """Anything else is refused, and so is a password where everybody sees it."""
        for url in (
            "ftp://h/studies/1.2",
            "http://h/dicomweb",
            "http://h/studies/abc",
            "http://h/studies",
            f"{STUDY}/instances/5.6",
            f"{STUDY}?limit=3",
            f"{STUDY}/series/3.4/instances/5.6/frames/1",
            "http://me:secret@h/studies/1.2",
            "http:///studies/1.2",
            "http://h?x/studies/1.2",
        ):
            self.assertRaises(UsageError, WarmTarget.of, url)

    def test_search(self) -> None:
        """A search asks for one page of instances, and for NumberOfFrames, which need not come otherwise."""
        self.assertEqual(
            WarmTarget.of(STUDY).search(400), f"{STUDY}/instances?limit=200&offset=400&includefield=00280008"
        )

    def test_found(self) -> None:
        """The number of frames is that of the answer; an image without a number of frames has one."""
        answer = [
            _item("3.4", "5.1", {"00280008": {"vr": "IS", "Value": ["12"]}}),
            _item("3.5", "5.2", {"00280010": {"vr": "US", "Value": [64]}}),
            _item("3.5", "5.3", {"00280008": {"vr": "IS"}}),
        ]
        self.assertEqual(
            list(WarmTarget.of(STUDY).found(answer)),
            [
                Found(f"{STUDY}/series/3.4/instances/5.1", "5.1", 12),
                Found(f"{STUDY}/series/3.5/instances/5.2", "5.2", 1),
                Found(f"{STUDY}/series/3.5/instances/5.3", "5.3", None),
            ],
        )

    def test_series_not_repeated(self) -> None:
        """Below a series an answer may leave the series out."""
        item = {"00080018": {"vr": "UI", "Value": ["5.1"]}}
        self.assertEqual(
            [one.url for one in WarmTarget.of(f"{STUDY}/series/3.4").found([item])],
            [f"{STUDY}/series/3.4/instances/5.1"],
        )

    def test_no_answer(self) -> None:
        """What is no answer to a search is an error, and UIDs in it are checked: they go into URLs."""
        for answer in (
            {},
            None,
            ["x"],
            [{}],
            [_item("3.4", "../..", {})],
            [_item("3.4", "5.1", {"00280008": {"Value": ["x"]}})],
        ):
            self.assertRaises(ValueError, lambda answer=answer: list(WarmTarget.of(STUDY).found(answer)))


def _item(series: str, sop: str, more: dict[str, object]) -> dict[str, object]:
    return {"0020000E": {"vr": "UI", "Value": [series]}, "00080018": {"vr": "UI", "Value": [sop]}, **more}
