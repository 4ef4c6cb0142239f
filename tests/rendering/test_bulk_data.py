"""Values that metadata point to."""

from __future__ import annotations

from typing import Optional

import attrs
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.frames.support import MemoryOrigin
from twistedproxy.dicom.resource import Instance
from twistedproxy.origin.errors import OriginBadAnswer
from twistedproxy.origin.interface import Caller, Headers, OriginRequest, OriginResponse
from twistedproxy.rendering.bulk_values import bulk_place, read_bulk_value
from twistedproxy.streams import BytesStream

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


@attrs.define(eq=False)
class BulkOrigin(MemoryOrigin):
    """Answers with *body*, under a Content-Type of each of *types* and *more* headers."""

    types: tuple[str, ...] = ("application/octet-stream",)
    more: Headers = ()
    body: bytes = b"\x01\x02"
    framed: bool = True

    async def forward(self, request: OriginRequest) -> OriginResponse:
        headers = (*((b"Content-Type", kind.encode()) for kind in self.types), *self.more)
        return OriginResponse(200, headers, BytesStream(self.body), None, lambda: self.framed)


def multipart(headers: str, data: str = "\x01\x02", end: str = "--") -> bytes:
    """One part."""
    return f"--b\r\n{headers}\r\n{data}\r\n--b{end}\r\n".encode()


class ReadBulkValueTests(SynchronousTestCase):
    """`read_bulk_value`."""

    def read(self, origin: BulkOrigin) -> Deferred[bytes]:
        """What becomes of reading a value."""
        instance = Instance("http://store/dicom-web", "", "1", "2", "3")
        return Deferred.fromCoroutine(read_bulk_value(origin, instance, Caller(b"", ()), "bulkdata/1"))  # type: ignore[arg-type]

    def test_values(self) -> None:
        """A value comes as bytes, alone or as the one part of an answer, whose type may be left out."""
        related, octets = 'multipart/related; boundary=b; type="application/octet-stream"', "application/octet-stream"
        for origin in (
            BulkOrigin(),
            BulkOrigin(types=(f"{octets}; x=y",) * 2),
            BulkOrigin(types=(related,), body=multipart("")),
            BulkOrigin(types=("multipart/related; boundary=b",), body=multipart(f"Content-Type: {octets}\r\n")),
            BulkOrigin(types=(related,), body=multipart(f"Content-Type: {octets}\r\n"), framed=False),
        ):
            self.assertEqual(self.successResultOf(self.read(origin)), b"\x01\x02", origin.types)

    def test_what_is_no_value(self) -> None:
        """Anything else is an error: a page, a picture, a piece, an object, nothing, and what may not be all of it."""
        related, octets = 'multipart/related; boundary=b; type="application/octet-stream"', "application/octet-stream"
        kinds = (
            "image/jpeg",
            "application/dicom",
            "text/html",
            "application/dicom+json",
            "application/xml",
            "application/x",
        )
        for origin in (
            *(BulkOrigin(types=(kind,)) for kind in kinds),
            *(
                BulkOrigin(types=(related,), body=multipart(f"Content-Type: {kind}\r\n"))
                for kind in (*kinds, "nonsense")
            ),
            *(
                BulkOrigin(types=(f'multipart/related; boundary=b; type="{kind}"',), body=multipart(""))
                for kind in kinds
            ),
            BulkOrigin(types=()),
            BulkOrigin(types=("nonsense",)),
            BulkOrigin(types=(octets, "text/html")),
            BulkOrigin(types=("text/html", octets)),
            BulkOrigin(more=((b"content-range", b"bytes 0-1/9"),)),
            BulkOrigin(types=(related,), more=((b"content-range", b"bytes 0-1/9"),), body=multipart("")),
            BulkOrigin(body=b""),
            BulkOrigin(types=(related,), body=multipart("", "")),
            BulkOrigin(types=(related,), body=multipart("", end="") + multipart("")),
            BulkOrigin(types=(related,), body=multipart("", end=""), framed=False),
            BulkOrigin(framed=False),
        ):
            self.failureResultOf(self.read(origin), OriginBadAnswer)

    def test_elsewhere(self) -> None:
        """What is no URL, or one of another place, is not asked for: there is no picture that needs it."""
        instance = Instance("http://store/dicom-web", "", "1", "2", "3")
        for uri in ("http://[x/studies/1", "http://other/elsewhere", "http://store/studies/../x", "é"):
            reading = read_bulk_value(MemoryOrigin(), instance, Caller(b"", ()), uri)
            self.failureResultOf(Deferred.fromCoroutine(reading), OriginBadAnswer)
