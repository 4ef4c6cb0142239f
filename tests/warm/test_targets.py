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

    def test_named(self) -> None:
        """A series or an instance is what is loaded; of a study that are its series."""
        series = f"{STUDY}/series/3.4"
        self.assertEqual(WarmTarget.of(series).named, Found(series, "3.4"))
        self.assertEqual(WarmTarget.of(f"{series}/instances/5.6").named, Found(f"{series}/instances/5.6", "5.6"))
        self.assertIsNone(WarmTarget.of(STUDY).named)
        self.assertEqual(Found(series, "3.4").root, ROOT)

    def test_holds(self) -> None:
        """A series is loaded with its instances, and no other."""
        series = Found(f"{STUDY}/series/3.4", "3.4")
        self.assertTrue(series.holds(Found(f"{STUDY}/series/3.4/instances/5.6", "5.6")))
        for other in (series, Found(f"{STUDY}/series/3.45/instances/5.6", "5.6")):
            self.assertFalse(series.holds(other))

    def test_search(self) -> None:
        """A search asks for one page of series."""
        self.assertEqual(WarmTarget.of(STUDY).search(400), f"{STUDY}/series?limit=200&offset=400")

    def test_found(self) -> None:
        """Each series has its URL."""
        answer = [_item("3.4"), _item("3.5")]
        found = [Found(f"{STUDY}/series/{uid}", uid) for uid in ("3.4", "3.5")]
        self.assertEqual(list(WarmTarget.of(STUDY).found(answer)), found)

    def test_no_answer(self) -> None:
        """What is no answer to a search is an error, and UIDs in it are checked: they go into URLs."""
        for answer in ({}, None, ["x"], [{}], [_item("../..")], [{"0020000E": {"vr": "UI", "Value": [3]}}]):
            self.assertRaises(ValueError, lambda answer=answer: list(WarmTarget.of(STUDY).found(answer)))


def _item(series: str) -> dict[str, object]:
    return {"0020000E": {"vr": "UI", "Value": [series]}}
