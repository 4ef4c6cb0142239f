"""How a request looked from outside."""

from __future__ import annotations

import ipaddress

from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from twistedproxy.server.forwarded import MAX_LENGTH, Outside, outside, validated_host
from twistedproxy.server.problems import Problem

TRUSTED = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("fd00::/8")]


def seen(peer: str | None = "10.0.0.1", secure: bool = False, **lines: str) -> Outside:
    headers = Headers({b"Host": [b"inside:8080"]})
    for name, value in lines.items():
        headers.setRawHeaders(name.replace("_", "-"), [value])
    return outside(peer, secure, headers.getRawHeaders, TRUSTED)


class OutsideTests(SynchronousTestCase):
    def test_plain(self) -> None:
        """Without forwarding headers the request is as it looks."""
        self.assertEqual(seen(), Outside("http", "inside:8080", "", "10.0.0.1"))
        self.assertEqual(seen(secure=True).base, "https://inside:8080")

    def test_stranger(self) -> None:
        """Forwarding headers of a peer that is not trusted count for nothing."""
        found = seen(
            peer="192.0.2.1", X_Forwarded_Host="evil", X_Forwarded_For="1.1.1.1", Forwarded="host=evil;for=2.2.2.2"
        )
        self.assertEqual(found, Outside("http", "inside:8080", "", "192.0.2.1"))

    def test_nobody_trusted(self) -> None:
        """With no trusted network even a unix socket's peer is not believed."""
        headers = Headers({b"Host": [b"a"], b"X-Forwarded-Host": [b"b"]})
        self.assertEqual(outside(None, False, headers.getRawHeaders).host, "a")

    def test_x_forwarded(self) -> None:
        """A trusted peer says scheme, host, prefix and client."""
        found = seen(
            X_Forwarded_For="192.0.2.9",
            X_Forwarded_Proto="https",
            X_Forwarded_Host="pacs.example",
            X_Forwarded_Prefix="/x/",
        )
        self.assertEqual(found, Outside("https", "pacs.example", "/x", "192.0.2.9"))
        self.assertEqual(found.base, "https://pacs.example/x")

    def test_unix_socket(self) -> None:
        """A peer on a unix socket is trusted where loopback is."""
        self.assertEqual(seen(peer=None, X_Forwarded_For="192.0.2.9").client, "192.0.2.9")

    def test_spoofed_chain(self) -> None:
        """What stands left of the first address that is not trusted was written by a stranger."""
        found = seen(X_Forwarded_For="1.1.1.1, 192.0.2.9, 10.0.0.7", X_Forwarded_Proto="http, https, http")
        self.assertEqual((found.client, found.scheme), ("192.0.2.9", "https"))

    def test_forwarded(self) -> None:
        """The standard header is read, with quotes, ports and IPv6."""
        found = seen(Forwarded='for=1.1.1.1;host=evil, For="[2001:db8::1]:4711";Proto=https;host="pacs.example:444"')
        self.assertEqual(found, Outside("https", "pacs.example:444", "", "2001:db8::1"))

    def test_x_forwarded_wins(self) -> None:
        """A Forwarded that a client sent through a proxy of the other kind is not believed."""
        self.assertEqual(seen(X_Forwarded_Host="pacs.example", Forwarded="host=evil").host, "pacs.example")

    def test_unknown_client(self) -> None:
        """Where no address is said the peer stays the client."""
        self.assertEqual(seen(Forwarded="for=unknown;proto=https"), Outside("https", "inside:8080", "", "10.0.0.1"))

    def test_mapped_addresses(self) -> None:
        """An IPv4 address inside an IPv6 one is trusted as what it is."""
        self.assertEqual(seen(peer="::ffff:10.0.0.1", X_Forwarded_For="192.0.2.9:55").client, "192.0.2.9")

    def test_hostile_hosts(self) -> None:
        """A host that could not stand in a URL is a 400, from a client and from a trusted proxy."""
        for host in (
            "a b",
            "a/b",
            "a@b",
            "a\\b",
            'a"b',
            "a<b",
            "[::1",
            "[zz::]",
            "a:99999",
            "a:x",
            "-a",
            "",
            "a" * 300,
            "ä",
        ):
            self.assertEqual(self.assertRaises(Problem, validated_host, host).status, 400, host)
        for host in ("a", "A.example", "127.0.0.1:80", "[::1]:8080", "under_score", "x" * 63 + ".example"):
            self.assertEqual(validated_host(host), host)
        self.assertRaises(Problem, seen, X_Forwarded_Host='pacs"onload=x')
        self.assertRaises(Problem, seen, Host="a/b")

    def test_hostile_prefix_and_scheme(self) -> None:
        """A prefix with dot segments or markup is a 400; an unknown scheme is not believed."""
        for prefix in ("/../x", "//evil.example", "x", "/a b", '/"', "/" + "a" * 300):
            self.assertRaises(Problem, seen, X_Forwarded_Prefix=prefix)
        self.assertEqual(seen(X_Forwarded_Proto="javascript").scheme, "http")

    def test_too_long(self) -> None:
        """A forwarding header beyond its limit counts as absent, and costs nothing to refuse."""
        self.assertEqual(seen(Forwarded='"' + '\\"' * MAX_LENGTH + ";host=evil").host, "inside:8080")

    def test_port_left_out(self) -> None:
        """A Host that is the very address the request came to gets the port that its client left out."""
        for host, came_to, expected in [
            ("127.0.0.1", "127.0.0.1:8080", "127.0.0.1:8080"),
            ("localhost", "127.0.0.1:8080", "localhost:8080"),
            ("LocalHost", "::1:8080", "LocalHost:8080"),
            ("192.0.2.1", "::ffff:192.0.2.1:8080", "192.0.2.1:8080"),
            ("[::1]", "::1:8080", "[::1]:8080"),
            ("127.0.0.1:99", "127.0.0.1:8080", "127.0.0.1:99"),
            ("[::1]:99", "::1:8080", "[::1]:99"),
            ("127.0.0.1", "127.0.0.1:80", "127.0.0.1"),
            ("127.0.0.1", "172.17.0.2:8080", "127.0.0.1"),
            ("localhost", "172.17.0.2:8080", "localhost"),
            ("slides.example", "127.0.0.1:8080", "slides.example"),
            ("127.0.0.1", "localhost:80", "127.0.0.1"),
        ]:
            headers = Headers({b"Host": [host.encode()]})
            self.assertEqual(outside("127.0.0.1", False, headers.getRawHeaders, (), came_to).host, expected)

    def test_port_left_out_by_a_trusted_proxy(self) -> None:
        """What a trusted proxy passes on as Host is the client's own, without a port that is not said."""
        headers = Headers({b"Host": [b"localhost"], b"X-Forwarded-For": [b"192.0.2.9"]})
        found = outside("127.0.0.1", False, headers.getRawHeaders, TRUSTED, "127.0.0.1:8080")
        self.assertEqual(found.host, "localhost")

    def test_missing_host(self) -> None:
        """An HTTP/1.0 request without Host gets the default."""
        self.assertEqual(outside("192.0.2.1", False, Headers().getRawHeaders, (), "here:80").base, "http://here:80")
