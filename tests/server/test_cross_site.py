"""What pages of other sites may have a browser do."""

from __future__ import annotations

from collections.abc import Collection

from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from twistedproxy.server.cors import confine, refuse_cross_site
from twistedproxy.server.problems import Problem

OWN = "https://proxy.test:8443"
VIEWER = b"https://viewer.test"
COOKIE, BASIC, BEARER = {b"Cookie": b"s=1"}, {b"Authorization": b"Basic eA=="}, {b"Authorization": b"Bearer x"}


class CrossSiteTests(SynchronousTestCase):
    """Who is refused."""

    def allowed(self, headers: dict[bytes, bytes], listed: Collection[bytes] = ()) -> bool:
        lookup = Headers({name: [value] for name, value in headers.items()}).getRawHeaders
        try:
            refuse_cross_site(lookup, OWN, frozenset(listed))
        except Problem as problem:
            self.assertEqual(problem.status, 403)
            return False
        return True

    def test_programs(self) -> None:
        """Who says nothing of pages is no browser, and may."""
        for login in ({}, COOKIE, BASIC, BEARER):
            self.assertTrue(self.allowed(login))

    def test_own_pages(self) -> None:
        """The proxy's own pages may, by what the browser says or by their origin; so may who types the address in."""
        for headers in (
            {b"Sec-Fetch-Site": b"same-origin", b"Origin": b"http://name.before.another.proxy"},
            {b"Sec-Fetch-Site": b"none"},
            {b"Origin": b"https://Proxy.test:8443"},
        ):
            self.assertTrue(self.allowed({**headers, **COOKIE}), headers)

    def test_pages_of_others(self) -> None:
        """Pages of other sites may not, with or without a login: another port, scheme or sibling is another site."""
        for headers in (
            {b"Origin": VIEWER},
            {b"Origin": b"https://proxy.test"},
            {b"Origin": b"http://proxy.test:8443"},
            {b"Origin": b"null"},
            {b"Origin": VIEWER, b"Sec-Fetch-Site": b"cross-site"},
            {b"Origin": b"https://other.proxy.test", b"Sec-Fetch-Site": b"same-site"},
            {b"Sec-Fetch-Site": b"cross-site"},
        ):
            for login in ({}, COOKIE):
                self.assertFalse(self.allowed({**headers, **login}), headers)
                self.assertFalse(self.allowed({**headers, **login}, [b"https://listed.test"]), headers)

    def test_listed(self) -> None:
        """Pages of an origin that is listed by name may, also with cookies."""
        for site in ({}, {b"Sec-Fetch-Site": b"cross-site"}):
            self.assertTrue(self.allowed({b"Origin": VIEWER, **site, **COOKIE}, [VIEWER, b"https://other.test"]))

    def test_everybody(self) -> None:
        """Where everybody may read, pages may with a token that they hold, not with what the browser adds by itself."""
        origin = {b"Origin": VIEWER}
        self.assertEqual([self.allowed({**origin, **login}, [b"*"]) for login in ({}, BEARER)], [True, True])
        self.assertEqual([self.allowed({**origin, **login}, [b"*"]) for login in (COOKIE, BASIC)], [False, False])
        self.assertTrue(self.allowed({**origin, **COOKIE}, [b"*", VIEWER]))


class ConfineTests(SynchronousTestCase):
    """What comes in a sandbox."""

    def test_types(self) -> None:
        """All that a browser may run as a document of the proxy's, and what does not say what it is."""

        def confined(*types: bytes) -> bool:
            headers = Headers({b"Content-Type": list(types)})
            confine(headers)
            return headers.getRawHeaders(b"Content-Security-Policy") == [b"sandbox"]

        for kind in (
            b"text/html; charset=utf-8",
            b"TEXT/HTML",
            b"image/svg+xml",
            b"application/xhtml+xml",
            b"application/dicom+xml",
            b"text/xml",
            b"text/javascript",
            b"multipart/x-mixed-replace; boundary=a",
            b"nonsense",
            b"image/png, text/html",
            b"image/png; a=b, text/html",
        ):
            self.assertTrue(confined(kind), kind)
        self.assertTrue(confined())
        self.assertTrue(confined(b"image/jpeg", b"text/html"))
        for kind in (
            b"application/dicom+json",
            b"application/dicom; transfer-syntax=*",
            b"application/octet-stream",
            b'multipart/related; type="image/jpeg"; boundary=a',
            b"image/png",
            b"video/mp4",
            b"application/pdf",
            b"text/plain",
        ):
            self.assertFalse(confined(kind), kind)
