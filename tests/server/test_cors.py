"""What pages of other origins are told."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.server.cors import EXPOSED_HEADERS, MAX_REQUEST_HEADERS, Cors, is_preflight

VIEWER = b"https://viewer.example"


class CorsTests(SynchronousTestCase):
    def test_off(self) -> None:
        """Without configured origins nothing is said."""
        self.assertEqual(Cors().headers(VIEWER), ())
        self.assertEqual(Cors().preflight(VIEWER), ())

    def test_listed_origin(self) -> None:
        """A listed origin may read, with credentials, and sees the headers it needs."""
        headers = dict(Cors(["https://Viewer.example/"]).headers(VIEWER))
        self.assertEqual(headers[b"Access-Control-Allow-Origin"], VIEWER)
        self.assertEqual(headers[b"Access-Control-Allow-Credentials"], b"true")
        self.assertEqual(headers[b"Access-Control-Expose-Headers"], EXPOSED_HEADERS)
        self.assertEqual(headers[b"Vary"], b"Origin")

    def test_other_origin(self) -> None:
        """Another origin, or none, gets no permission, and caches are told that it depends on the origin."""
        cors = Cors(["https://viewer.example"])
        for origin in (None, b"https://evil.example", b"https://viewer.example.evil", b"null", b"", b"*"):
            self.assertEqual(cors.headers(origin), ((b"Vary", b"Origin"),), origin)

    def test_everybody(self) -> None:
        """A star allows everybody, without credentials and without depending on the origin."""
        headers = dict(Cors(["*"]).headers(b"https://any.example"))
        self.assertEqual(headers[b"Access-Control-Allow-Origin"], b"*")
        self.assertNotIn(b"Access-Control-Allow-Credentials", headers)
        self.assertNotIn(b"Vary", headers)

    def test_star_and_listed(self) -> None:
        """Beside a star a listed origin still may use credentials; the answer then depends on the origin."""
        cors = Cors(["*", "https://viewer.example"])
        self.assertEqual(dict(cors.headers(VIEWER))[b"Access-Control-Allow-Origin"], VIEWER)
        self.assertEqual(dict(cors.headers(b"https://a.example"))[b"Access-Control-Allow-Origin"], b"*")
        self.assertEqual(dict(cors.headers(b"https://a.example"))[b"Vary"], b"Origin")
        self.assertNotIn(b"Access-Control-Allow-Credentials", dict(cors.headers(b"*")))

    def test_preflight(self) -> None:
        """A preflight is told the methods, the headers it asked for, and how long that holds."""
        headers = dict(Cors(["*"]).preflight(VIEWER, b"authorization, range"))
        self.assertIn(b"DELETE", headers[b"Access-Control-Allow-Methods"])
        self.assertEqual(headers[b"Access-Control-Allow-Headers"], b"authorization, range")
        self.assertEqual(headers[b"Access-Control-Max-Age"], b"7200")
        self.assertIn(b"Access-Control-Request-Headers", headers[b"Vary"])
        self.assertNotIn(b"Access-Control-Allow-Private-Network", headers)

    def test_preflight_of_a_stranger(self) -> None:
        """A page that is not allowed is told nothing but what the answer depends on."""
        self.assertEqual(
            [name for name, _ in Cors(["https://viewer.example"]).preflight(b"https://a.example")], [b"Vary"]
        )

    def test_private_network(self) -> None:
        """Private network access is granted to those who may read anyway, when they ask."""
        headers = dict(Cors(["*"]).preflight(VIEWER, None, b"true"))
        self.assertEqual(headers[b"Access-Control-Allow-Private-Network"], b"true")

    def test_hostile_header_list(self) -> None:
        """Only a short list of header names is echoed."""
        for value in (b"a\r\nSet-Cookie: x", b"a" * (MAX_REQUEST_HEADERS + 1), b"<script>", b"\xff"):
            self.assertNotIn(b"Access-Control-Allow-Headers", dict(Cors(["*"]).preflight(VIEWER, value)), value)

    def test_is_preflight(self) -> None:
        """OPTIONS is a preflight only with an Origin and a requested method."""
        self.assertTrue(is_preflight(b"OPTIONS", VIEWER, b"GET"))
        self.assertFalse(is_preflight(b"OPTIONS", VIEWER, None))
        self.assertFalse(is_preflight(b"OPTIONS", None, b"GET"))
        self.assertFalse(is_preflight(b"GET", VIEWER, b"GET"))
