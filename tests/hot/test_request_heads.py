"""Which requests are understood without being parsed, and what is remembered of them."""

from __future__ import annotations

import ipaddress
from typing import Optional

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.frames.grants import Credentials
from twistedproxy.hot.request_heads import HEAD_BYTES, MAX_HEAD, MAX_VALUE, RequestHead, RequestHeads

TOKEN = b"Bearer 5f0c2a-secret"
LINE = b"GET /frames/1 HTTP/1.1\r\n"
FIELDS = b"Host: a.test\r\nAccept: image/jpeg\r\nAuthorization: " + TOKEN + b"\r\n"
PEER = "192.0.2.1"


class HeadsCase(SynchronousTestCase):
    """RequestHeads of a proxy that trusts nobody in front of it."""

    def setUp(self) -> None:
        self.credentials = Credentials(b"k" * 32)
        self.heads = RequestHeads(self.credentials, 100 * HEAD_BYTES)

    def head(self, fields: bytes = FIELDS, line: bytes = LINE, end: bytes = b"\r\n") -> Optional[RequestHead]:
        """What is understood of a request."""
        read = self.heads.read(line + fields + end, PEER)
        return None if read is None else read[2]


class UnderstoodTests(HeadsCase):
    """What is understood, and what goes the ordinary way."""

    def test_read(self) -> None:
        """Method, target and what the answer depends on."""
        read = self.heads.read(LINE + FIELDS + b"Origin: \t https://a.test \r\n\r\n", PEER)
        assert read is not None
        method, target, head = read
        self.assertEqual((b"GET", b"/frames/1"), (method, target))
        self.assertEqual((b"image/jpeg", b"https://a.test", None), (head.accept, head.origin, head.if_none_match))
        caller = self.credentials.caller({b"Authorization": [TOKEN]}.get)
        self.assertEqual(caller.credential, head.caller.credential)

    def test_head_request(self) -> None:
        """HEAD is known too."""
        read = self.heads.read(b"HEAD /x HTTP/1.1\r\n" + FIELDS + b"\r\n", PEER)
        assert read is not None
        self.assertEqual((b"HEAD", b"/x"), read[:2])

    def test_order_case_and_spaces(self) -> None:
        """The same fields in another order, case or spacing say the same."""
        other = b"AUTHORIZATION:\t" + TOKEN + b"  \r\naccept:image/jpeg\r\nhOsT:   b.test\r\n"
        self.assertEqual(self.head(), self.head(other))

    def test_harmless_fields(self) -> None:
        """What changes nothing changes nothing."""
        for more in [
            b"User-Agent: x\r\n",
            b"Connection: Keep-Alive\r\n",
            b"Referer:\r\n",
            b"X-Forwarded-For: 10.0.0.1\r\n",
        ]:
            self.assertEqual(self.head(), self.head(FIELDS + more), more)

    def test_callers_differ(self) -> None:
        """Another token or a cookie is another caller."""
        callers = {
            head.caller.credential
            for more in [b"", b"Cookie: a=b\r\n", b"Cookie: a=c\r\n"]
            if (head := self.head(FIELDS + more)) is not None
        }
        other = self.head(FIELDS.replace(b"5f0c", b"6f0c"))
        assert other is not None
        self.assertEqual(4, len(callers | {other.caller.credential}))

    def test_fields_for_the_ordinary_way(self) -> None:
        """A field that is not known, could change the answer, comes twice or is not one plain line."""
        for more in [
            b"X-Unknown: 1\r\n",
            b"Range: bytes=0-1\r\n",
            b"If-Match: *\r\n",
            b"Content-Length: 0\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Expect: 100-continue\r\n",
            b"Upgrade: h2c\r\n",
            b"Connection: close\r\n",
            b"Connection: keep-alive, close\r\n",
            b"Connection:\r\n",
            b"Accept: image/png\r\n",
            b"User-Agent: a\r\nuser-agent: a\r\n",
            b"Authorization: Bearer other\r\n",
            b"User-Agent: a\r\n b\r\n",
            b" User-Agent: a\r\n",
            b"User-Agent : a\r\n",
            b"User-Agent\r\n",
            b": a\r\n",
            b"User-Agent: a\nAccept-Language: de\r\n",
            b"User-Agent: a\n",
            b"User-Agent: a\rb\r\n",
            b"User-Agent: a\r\r\n",
            b"User-Agent: a\0\r\n",
            b"Origin:\r\n",
        ]:
            self.assertIsNone(self.head(FIELDS + more), more)

    def test_needed_fields(self) -> None:
        """A request without a Host is a bad one; an empty Accept may mean something else than none."""
        self.assertIsNone(self.head(b"Accept: */*\r\n"))
        self.assertIsNone(self.head(b"Host: a\r\nAccept: \r\n"))
        self.assertIsNone(self.head(b"Host: a\r\nHost: a\r\n"))
        self.assertIsNone(self.head(b""))
        head = self.head(b"Host: a\r\n")
        assert head is not None
        self.assertEqual(b"", head.accept)

    def test_request_lines_for_the_ordinary_way(self) -> None:
        """Another method or version, or anything else in the first place."""
        for line in [
            b"POST /x HTTP/1.1\r\n",
            b"get /x HTTP/1.1\r\n",
            b"GET /x HTTP/1.0\r\n",
            b"GET /x HTTP/1.1 \r\n",
            b"GET /x http/1.1\r\n",
            b"GET /x\r\n",
            b"\r\nGET /x HTTP/1.1\r\n",
            b"\r\n",
            b"GET \r\n",
        ]:
            self.assertIsNone(self.head(line=line), line)

    def test_not_one_whole_request(self) -> None:
        """More than one request, less than one, and one that is too long."""
        whole = LINE + FIELDS + b"\r\n"
        for data in [whole * 2, whole + b"G", whole[:-1], whole[:-2], b"", b"\r\n\r\n"]:
            self.assertIsNone(self.heads.read(data, PEER), data)
        self.assertIsNone(self.head(FIELDS + b"User-Agent: " + b"x" * MAX_HEAD + b"\r\n"))

    def test_long_values(self) -> None:
        """Only so much of a request is remembered."""
        self.assertIsNone(self.head(b"Host: a\r\nAccept: " + b"x" * (MAX_VALUE + 1) + b"\r\n"))


class RememberedTests(HeadsCase):
    """What is remembered of heads."""

    def test_no_secrets(self) -> None:
        """Neither a token nor a cookie is kept, only what nobody could turn back into them."""
        self.head(FIELDS + b"Cookie: session=very-secret\r\n")
        self.assertEqual(1, len(self.heads))
        for digest, head in self.heads._heads.items():
            self.assertEqual(16, len(digest))
            assert head is not None
            self.assertEqual((16, ()), (len(head.caller.credential), head.caller.headers))
            self.assertNotIn("secret", repr(head))

    def test_bound(self) -> None:
        """However many clients come, no more heads are remembered than there is room for."""
        for number in range(1000):
            self.head(FIELDS.replace(b"5f0c2a", b"%d" % number))
        self.assertEqual(100, len(self.heads))
        self.assertIsNotNone(self.head())

    def test_fleeting(self) -> None:
        """RequestHeads that never come again push out none that do."""
        for number in range(1000):
            self.assertIsNotNone(self.head(FIELDS + b'If-None-Match: "%d"\r\n' % number))
        self.assertEqual(0, len(self.heads))

    def test_what_is_not_understood(self) -> None:
        """That a head is not understood is remembered too."""
        for _again in range(2):
            self.assertIsNone(self.head(FIELDS + b"X-Unknown: 1\r\n"))
        self.assertEqual(1, len(self.heads))


class TrustedProxyTests(SynchronousTestCase):
    """Behind a proxy that is trusted to say who the client is."""

    def setUp(self) -> None:
        self.heads = RequestHeads(Credentials(b"k" * 32), 100 * HEAD_BYTES, [ipaddress.ip_network("192.0.2.0/24")])

    def client(self, more: bytes, peer: str = PEER) -> Optional[str]:
        """Whom the log would name."""
        read = self.heads.read(LINE + FIELDS + more + b"\r\n", peer)
        assert read is not None
        return read[2].client

    def test_named(self) -> None:
        """The trusted proxy's word counts, and nobody else's, though he says the same."""
        self.assertEqual("198.51.100.7", self.client(b"X-Forwarded-For: 198.51.100.7\r\n"))
        self.assertEqual("203.0.113.1", self.client(b"X-Forwarded-For: 198.51.100.7\r\n", "203.0.113.1"))
        self.assertIsNone(self.client(b"X-Forwarded-For: 198.51.100.7\r\n", "-") or None)

    def test_bad_host(self) -> None:
        """A host that could not stand in a URL is the ordinary way's to refuse."""
        self.assertIsNone(self.heads.read(LINE + b"Host: a b\r\n\r\n", PEER))
