"""Where a store's answers send callers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.dicomweb.url_rewriting import UrlMap, located
from twistedproxy.origin.interface import OriginResponse
from twistedproxy.server.problems import Problem
from twistedproxy.streams import BytesStream

ORIGIN = "http://orthanc:8042/dicom-web"
PROXY = "https://proxy.example/pacs"


class Body(BytesStream):
    """Notes that it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True
        super().close()


class LocatedTests(SynchronousTestCase):
    """`located`, of answers to ``/studies/1/metadata`` of Orthanc, at ``/pacs`` of the proxy."""

    def located(self, location: str, status: int = 302, field: bytes = b"Location") -> Optional[str]:
        """What the field becomes."""
        self.body = Body(b"moved")
        headers = ((b"X-Other", b"1"), (field, location.encode("latin-1")))
        response = OriginResponse(status, headers, self.body)
        found = located(response, UrlMap(ORIGIN, PROXY, f"{ORIGIN}/studies/1/metadata")).headers
        self.assertEqual((b"X-Other", b"1"), found[0])
        return found[1][1].decode("latin-1") if len(found) > 1 else None

    def assert_refused(self, locations: Sequence[str]) -> None:
        """Redirects to *locations* are a 502 that does not name them, and of other answers the field is gone."""
        for location in locations:
            problem = self.assertRaises(Problem, self.located, location)
            self.assertEqual(502, problem.status, location)
            self.assertNotIn("orthanc", problem.detail)
            self.assertTrue(self.body.closed)
            self.assertIsNone(self.located(location, 201), location)
            self.assertIsNone(self.located(location, 304), location)
            self.assertIsNone(self.located(location, field=b"Content-Location"), location)

    def test_inside(self) -> None:
        """What lies below the root is named below the mount, however it was put."""
        for location, expected in (
            (f"{ORIGIN}/studies/2?a=b", f"{PROXY}/studies/2?a=b"),
            ("HTTP://Orthanc:8042/dicom-web/studies/2", f"{PROXY}/studies/2"),
            ("/dicom-web/studies/2", f"{PROXY}/studies/2"),
            ("https://pacs.example/dicom-web/studies/2", f"{PROXY}/studies/2"),
            ("bulkdata/1", f"{PROXY}/studies/1/bulkdata/1"),
            ("../2/metadata", f"{PROXY}/studies/2/metadata"),
            ("?page=2", f"{PROXY}/studies/1/metadata?page=2"),
        ):
            for status in (201, 302):
                self.assertEqual(expected, self.located(location, status), location)

    def test_elsewhere(self) -> None:
        """Other hosts stay as they were named: storage services sign URLs, people log in somewhere."""
        for location in (
            "https://bucket.example/dicom/1?X-Signature=a%2Fb%3D&x=..",
            "https://login.hospital.example:8443/realms/x?next=http%3A%2F%2Forthanc%3A8042%2F",
            "http://10.0.0.7:9000/bucket/1",
            "//bucket.example/1",
            "https://bucket.example/M\xfcller",
        ):
            self.assertEqual(location, self.located(location))

    def test_asked_host(self) -> None:
        """The host and port that the caller asked are no secret, also where the store calls itself by them."""
        self.assertEqual("https://proxy.example/login", self.located("https://proxy.example/login"))
        headers = ((b"Location", b"https://pacs.example/dicom-web/studies"),)
        root = "https://pacs.example/dicom-web"
        found = located(OriginResponse(302, headers, Body(b"")), UrlMap(root, root, f"{root}/studies"))
        self.assertEqual(headers, found.headers)

    def test_own(self) -> None:
        """The rest of the store's host is not shown, on no port and under no scheme."""
        self.assert_refused(
            (
                "http://orthanc:8042/app/explorer.html",
                "http://orthanc:8042/dicom-website/studies",
                "https://orthanc/ui",
                "http://ORTHANC.:9000/",
                "http://admin:orthanc@orthanc:8042/",
                "/app/explorer.html",
                "/",
                "../../../app",
                "//orthanc:8042/app",
            )
        )

    def test_this_machine(self) -> None:
        """Nor is what a store calls its own machine: it would be the caller's."""
        self.assert_refused(
            ("http://localhost:8042/ui", "http://127.0.0.1/", "http://[::1]:8042/", "http://0.0.0.0/", "//a.localhost/")
        )

    def test_nowhere(self) -> None:
        """Nor what is no URL of the web, or read differently by different readers."""
        self.assert_refused(
            (
                "javascript:alert(1)",
                "file:///etc/passwd",
                "http:///studies",
                "http://orthanc:99999/dicom-web/studies/1",
                "http://[broken/",
                "http:\\\\orthanc\\x",
                "/\\orthanc/",
                "ht\ttp://orthanc/",
                f"{ORIGIN}/../app",
                f"{ORIGIN}/%2e%2e/app",
                f"{ORIGIN}/studies/..%2f..%2fapp",
            )
        )

    def test_cookies(self) -> None:
        """A cookie is for the mount, as far below it as it was below the root, and for no other host."""

        def cookie(value: str, origin: str = ORIGIN, proxy: str = PROXY) -> str:
            response = OriginResponse(200, ((b"Set-Cookie", value.encode("latin-1")),), BytesStream())
            ((_, found),) = located(response, UrlMap(origin, proxy, f"{origin}/studies")).headers
            return found.decode("latin-1")

        for value, expected in (
            ("a=1; Path=/", "a=1; Path=/pacs"),
            ("a=1; Path=/dicom-web", "a=1; Path=/pacs"),
            ("a=1;path=/dicom-web/x; HttpOnly", "a=1; HttpOnly; Path=/pacs/x"),
            ("a=1; Path=/dicom-web2", "a=1; Path=/pacs"),
            ("a=1; Path=/elsewhere; Path=/dicom-web/", "a=1; Path=/pacs/"),
            ("a=1; Path=", "a=1; Path=/pacs"),
            ("a=1", "a=1; Path=/pacs"),
            ("a=1; Domain=orthanc; Secure; DOMAIN = .orthanc", "a=1; Secure; Path=/pacs"),
            (
                "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT; SameSite=None",
                "a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT; SameSite=None; Path=/pacs",
            ),
            ("a=Path=/; Max-Age=9", "a=Path=/; Max-Age=9; Path=/pacs"),
        ):
            self.assertEqual(expected, cookie(value))
        self.assertEqual("a=1; Path=/", cookie("a=1; Path=/dicom-web", proxy="https://proxy.example"))
        self.assertEqual("a=1; Path=/pacs/x", cookie("a=1; Path=/x", origin="http://orthanc:8042"))
