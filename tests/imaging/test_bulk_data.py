"""Values that metadata point to."""

from __future__ import annotations

from typing import Optional

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.frames.support import MemoryOrigin
from twistedproxy.dicom.address import Instance
from twistedproxy.imaging.bulk_data import bulk_place, read_bulk_value
from twistedproxy.origin.errors import OriginBadAnswer
from twistedproxy.origin.interface import Caller

STORE = "http://store:80/dicom-web"
HERE = "/studies/1/series/2/instances/3"


class PlaceTests(SynchronousTestCase):
    """`bulk_place`."""

    def places(self, root: str, *cases: tuple[str, Optional[str]]) -> None:
        """Each URI leads to that path and query below the store."""
        for uri, expected in cases:
            place = bulk_place(STORE, Instance(STORE, root, "1", "2", "3"), uri)
            shown = None if place is None else "?".join(part.decode() for part in place if part)
            self.assertEqual(shown, expected, uri)

    def test_references(self) -> None:
        """A reference is relative to the metadata; absolute paths and URLs are below the store, by whatever name that goes.
        The query stays, the fragment does not."""
        self.places(
            "",
            ("bulkdata/282000", f"{HERE}/bulkdata/282000"),
            ("./bulkdata/1?a=b&c", f"{HERE}/bulkdata/1?a=b&c"),
            ("../../bulkdata/1", "/studies/1/series/2/bulkdata/1"),
            ("../../../../../../bulkdata/1", "/bulkdata/1"),
            ("?bulk=1", f"{HERE}/metadata?bulk=1"),
            ("/dicom-web/studies/9/bulkdata/1#x", "/studies/9/bulkdata/1"),
            ("http://store/dicom-web/elsewhere/1", "/elsewhere/1"),
            ("//store:80/dicom-web/studies/1/b", "/studies/1/b"),
            ("https://outside.example/pacs/studies/1/b?x=1", "/studies/1/b?x=1"),
            ("http://inner:8042/bulkdata/1", "/bulkdata/1"),
        )

    def test_root(self) -> None:
        """What lies below a root stays there."""
        self.places(
            "/aets/A",
            ("bulkdata/1", f"/aets/A{HERE}/bulkdata/1"),
            ("/dicom-web/aets/A/studies/1/b", "/aets/A/studies/1/b"),
            ("/dicom-web/aets/B/studies/1/b", "/aets/A/studies/1/b"),
        )

    def test_folders(self) -> None:
        """A folder and the sample name their values by their own URLs."""
        for url in ("file:/data/slides of 2024", "sample:"):
            instance = Instance(url, "", "1", "2", "3")
            for uri in (f"{url}{HERE}/bulkdata/282000", "bulkdata/282000"):
                self.assertEqual(bulk_place(url, instance, uri), (f"{HERE}/bulkdata/282000".encode(), b""), uri)
            for uri in (f"{url}/../x", "file:/etc/passwd", f"{url}x/1"):
                self.assertIsNone(bulk_place(url, instance, uri), uri)

    def test_nowhere(self) -> None:
        """What leaves the store, is no http(s) URL, or is read in several ways, is no place."""
        for uri in (
            *("http://[x/studies/1", "file:///studies/1", "ftp://store/dicom-web/studies/1", "http://other/elsewhere"),
            *(
                "http://store/dicom-web/studies/../x",
                "http://store/dicom-web/studies/%2e%2e/x",
                "../../../../../../../x",
            ),
            *("/elsewhere", "studies/\u00e9", "a b", "a\\b", "\nhttp://store/dicom-web/studies/1", "urn:oid:1.2.3"),
        ):
            self.places("", (uri, None))


class ReadBulkValueTests(SynchronousTestCase):
    """`read_bulk_value`."""

    def test_elsewhere(self) -> None:
        """What is no URL, or one of another place, is not asked for: there is no picture that needs it."""
        instance = Instance("http://store/dicom-web", "", "1", "2", "3")
        for uri in ("http://[x/studies/1", "http://other/elsewhere", "http://store/studies/../x", "é"):
            reading = read_bulk_value(MemoryOrigin(), instance, Caller(b"", ()), uri)
            self.failureResultOf(Deferred.fromCoroutine(reading), OriginBadAnswer)
