"""A hundred requests that nobody means well with: each a clean 4xx, and none gets out of the origin's root."""

from __future__ import annotations

import json
import re

from tests.clients import RawConnection
from tests.dicomweb.support import ProxyCase
from tests.slides import Made

UID = "1.2.3"
LONG = "1" * 65


def nasty_paths(made: Made) -> list[str]:
    """Targets below the mount, and beside it, as they stand in the request line."""
    frames = f"/dicomweb/{made.resource}/frames"
    study = f"/dicomweb/studies/{made.study}"
    instance = f"/dicomweb/{made.resource}"
    return [
        # Out of the root.
        "/dicomweb/../secret/studies",
        "/dicomweb/studies/../../secret",
        "/dicomweb/%2e%2e/secret/studies",
        "/dicomweb/%2e%2e%2fsecret/studies",
        "/dicomweb/..%2fsecret/studies",
        "/dicomweb/%2E%2E/studies",
        "/dicomweb/.%2e/studies",
        "/dicomweb/%252e%252e/secret/studies",
        "/dicomweb/%252e%252e%252fsecret/studies",
        "/dicomweb/%c0%ae%c0%ae/studies",
        "/dicomweb/%c0%af../studies",
        "/dicomweb/..;/secret/studies",
        "/dicomweb/studies;/../secret",
        "/dicomweb/studies/..;x=y/secret",
        "/dicomweb/x\\..\\..\\secret/studies",
        "/dicomweb/..%5csecret/studies",
        "/dicomweb/./studies",
        "/dicomweb/%2e/studies",
        "/dicomweb//studies",
        "/dicomweb/%2f/studies",
        "//dicomweb/studies",
        "/dicomweb/studies//",
        "/dicomweb/studies/",
        f"{study}/../{UID}/series",
        f"{study}/%2e%2e/%2e%2e/secret",
        f"{instance}/bulkdata/../../../../../../secret",
        f"{instance}/bulkdata/%2e%2e/%2e%2e/secret",
        f"{instance}/bulkdata/..%2f..%2fsecret",
        f"{instance}/bulk/x/../../secret",
        f"{instance}/metadata/../../../../secret",
        f"{instance}/frames/1/../../../secret",
        f"{instance}/frames/1/rendered/../../secret",
        f"{instance}/frames/%2e%2e/metadata",
        f"{instance}/rendered%2f..%2f..",
        # No resource.
        "/dicomweb/",
        "/dicomwebstudies",
        "/dicomweb2/studies",
        "/DICOMWEB/studies",
        "/%64icomweb/studies",
        "/dicomweb/system",
        "/dicomweb/instances/1/file",
        "/dicomweb/patients",
        "/dicomweb/studies/1.2.3/secret",
        f"{instance}/frames",
        f"{instance}/frames/",
        f"{instance}/frames/1/",
        f"{instance}/frames/1/secret",
        f"{instance}/frames/1/rendered/x",
        "/metrics/../dicomweb/studies",
        "/studies",
        # No UID.
        "/dicomweb/studies/abc/series",
        f"/dicomweb/studies/{LONG}/series",
        "/dicomweb/studies/1..2/series",
        "/dicomweb/studies/.1.2/series",
        "/dicomweb/studies/1.2./series",
        "/dicomweb/studies/1,2/series",
        "/dicomweb/studies/1%202/series",
        "/dicomweb/studies/-1/series",
        "/dicomweb/studies/*/series",
        "/dicomweb/studies/1.2%00/series",
        "/dicomweb/studies/1.2%0d%0aHost:%20evil/series",
        "/dicomweb/studies/%EF%BC%91/series",
        "/dicomweb/studies/\xff\xfe/series",
        "/dicomweb/studies/%ff%fe/series",
        "/dicomweb/studies/%/series",
        "/dicomweb/studies/%zz/series",
        "/dicomweb/studies/%u0031/series",
        "/dicomweb/studies/1.2'--/series",
        "/dicomweb/studies/${jndi:ldap:x}/series",
        "/dicomweb/studies/<script>/series",
        # No frame list.
        f"{frames}/0",
        f"{frames}/-1",
        f"{frames}/+1",
        f"{frames}/1,",
        f"{frames}/,1",
        f"{frames}/1,,2",
        f"{frames}/1;2",
        f"{frames}/1-3",
        f"{frames}/1.0",
        f"{frames}/1e3",
        f"{frames}/0x1",
        f"{frames}/%31%00",
        f"{frames}/1%2F2",
        f"{frames}/1%252C2",
        f"{frames}/%D9%A1",
        f"{frames}/all",
        f"{frames}/99999999999999999999",
        f"{frames}/{','.join('1' for _ in range(501))}",
        f"{frames}/{','.join(map(str, range(1, 2500)))}",
        # Past the end: our own 404.
        f"{frames}/7",
        f"{frames}/2147483648",
        # Elsewhere.
        "http://evil.test/dicomweb/../secret/studies",
        "http://evil.test/dicomweb/%2e%2e%2fsecret/studies",
        "http://127.0.0.1:1/secret",
        "https://evil.test/x",
        "evil.test:443",
        "file:///etc/passwd",
        "dicomweb/studies",
        "?studies",
        f"/dicomweb/{'a/' * 100}studies",
        f"/dicomweb/{'%61' * 3000}/studies",
    ]


class NastyCase(ProxyCase):
    """A proxy whose store notes what gets through."""

    async def exchange(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the one answer to *request*."""
        connection = await RawConnection.open(self.running.port)
        connection.send(request)
        head, _, body = (await connection.end(10.0)).partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        self.assertRegex(lines[0], r"^HTTP/1\.[01] \d{3} ", request[:200])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        return int(lines[0].split()[1]), headers, body

    async def assert_clean(self, request: bytes, head: bool = False) -> None:
        """The answer to *request* is a 4xx of our own: problem+json, one answer, without a trace of our inside."""
        status, headers, body = await self.exchange(request)
        shown = request[:200]
        self.assertTrue(400 <= status < 500, (shown, status, body[:300]))
        self.assertEqual(headers.get("content-type"), "application/problem+json", (shown, headers, body))
        if not head:
            self.assertEqual(json.loads(body)["status"], status, shown)
            self.assertLess(len(body), 2000, shown)
        self.assertNotRegex(body.decode("latin-1"), r"Traceback|/work|site-packages|\.py\b")

    async def started(self) -> None:
        """A proxy."""
        self.origin = self.store()
        self.running = await self.proxy(self.origin, client_timeout=5.0)

    def assert_inside(self) -> None:
        """What the store saw lies below its root and is what DICOMweb knows."""
        for seen in self.origin.requests:
            self.assertTrue(re.fullmatch(r"/dicomweb/studies(/[A-Za-z0-9.,/]+)?", seen.path), seen.path)
            self.assertNotIn("..", seen.path)
            self.assertNotIn("secret", seen.path)


class PathTests(NastyCase):
    """Request targets."""

    def assert_asked_for_frames_only(self) -> None:
        """The store was asked once for the metadata, and for the first of two frames past the end, side by side."""
        resource = f"GET /{self.slide.resource}"
        self.assertEqual(
            sorted(self.origin.lines()), [f"{resource}/frames/{self.slide.frames + 1}", f"{resource}/metadata"]
        )

    async def test_targets(self) -> None:
        """Targets that are malformed, lead out, or name nothing are 4xx; the origin sees none of them."""
        await self.started()
        paths = nasty_paths(self.slide)
        self.assertGreaterEqual(len(paths), 100)
        for path in paths:
            request = f"GET {path} HTTP/1.1\r\nHost: proxy.test\r\nConnection: close\r\n\r\n".encode("latin-1")
            await self.assert_clean(request)
        self.assert_asked_for_frames_only()

    async def test_absolute_form(self) -> None:
        """A whole URL as the target (RFC 9112 section 3.2.2) leads to the store behind the mount, wherever it points;
        an asterisk is for OPTIONS alone."""
        await self.started()
        request = b"GET http://127.0.0.1:1/dicomweb/studies HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n"
        self.assertEqual((await self.exchange(request))[0], 200)
        self.assertEqual(self.origin.lines(), ["GET /studies"])
        status, headers, _ = await self.exchange(b"GET * HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n")
        self.assertEqual((status, headers["allow"]), (405, "OPTIONS"))

    async def test_other_methods_on_them(self) -> None:
        """Nor do other methods lead there."""
        await self.started()
        for path in nasty_paths(self.slide):
            for method in ("HEAD", "DELETE"):
                request = f"{method} {path} HTTP/1.1\r\nHost: proxy.test\r\nConnection: close\r\n\r\n"
                await self.assert_clean(request.encode("latin-1"), head=method == "HEAD")
        self.assert_asked_for_frames_only()

    async def test_queries(self) -> None:
        """A query may hold anything; it stays a query."""
        await self.started()
        for query in ("../../secret", "x=%00", "x=%0d%0aHost:evil", "\\..\\", "a=b;c", "?????", "x=%", "limit=-1&&&=&"):
            request = f"GET /dicomweb/studies?{query} HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n".encode()
            status, _, _ = await self.exchange(request)
            self.assertIn(status // 100, (2, 4, 5), query)
        self.assert_inside()


class HeadTests(NastyCase):
    """Methods, headers and what is no HTTP."""

    async def test_methods(self) -> None:
        """Unknown methods are a 405 or another 4xx of ours, on every kind of path."""
        await self.started()
        frames = f"/dicomweb/{self.slide.resource}/frames/1"
        for method in (
            "TRACE",
            "CONNECT",
            "PATCH",
            "PROPFIND",
            "get",
            "G\x00T",
            "GE T",
            "\xc3\x89T",
            "X" * 300,
            "POST",
        ):
            for path in (frames, f"{frames}/rendered", "/healthz", "/metrics", "/nowhere"):
                request = f"{method} {path} HTTP/1.1\r\nHost: p\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                await self.assert_clean(request.encode("latin-1"))
        self.assertEqual(self.origin.lines(), [])

    async def test_accept(self) -> None:
        """Accept nonsense is a 4xx or is taken for nothing; it is never an error of ours."""
        await self.started()
        frames = f"/dicomweb/{self.slide.resource}/frames/1"
        for accept, statuses in (
            ("nonsense", {406}),
            ("multipart/related; type=", {200, 406}),
            ('multipart/related; type="', {200, 406}),
            (";;;,,,", {200, 406}),
            ("*/*; q=0", {406}),
            ("image/jpeg; q=nan", {200, 406}),
            ('multipart/related; type="image/jpeg"; transfer-syntax=' + "1" * 5000, {406}),
            (", ".join(["text/html"] * 900), {406}),
            ("a/b;" * 3000, {400, 406}),
            ('"' * 5000, {200, 406}),
            ("\xff\xfe", {200, 406}),
            ("application/dicom; ../../secret", {406}),
        ):
            for tail in ("", "/rendered"):
                request = f"GET {frames}{tail} HTTP/1.1\r\nHost: p\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
                status, _, _ = await self.exchange(request.encode("latin-1"))
                self.assertIn(status, statuses | {200} if tail else statuses, (accept[:80], tail))
        self.assert_inside()

    async def test_heads(self) -> None:
        """Huge, broken and contradictory heads are refused."""
        await self.started()
        line = b"GET /dicomweb/studies HTTP/1.1\r\n"
        numbers = ",".join(map(str, range(1, 10_001))).encode()
        for request in (
            b"GET /dicomweb/%s/frames/%s HTTP/1.1\r\nHost: p\r\n\r\n" % (self.slide.resource.encode(), numbers),
            line + b"Host: p\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
            line + b"Host: p\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 1000) for n in range(40)) + b"\r\n",
            line + b"Host: p\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(2000)) + b"\r\n",
            line + b"Host: p\r\nno colon\r\n\r\n",
            line + b"Host: p\r\nBad Name: x\r\n\r\n",
            line + b"Host: p\r\nX: \x00\r\n\r\n",
            line + b"Host: p\r\nContent-Length: -1\r\n\r\n",
            line + b"Host: p\r\nContent-Length: 1, 2\r\n\r\n",
            line + b"Host: p\r\nContent-Length: " + b"1" * 5000 + b"\r\n\r\n",
            line + b"Host: p\r\nTransfer-Encoding: identity\r\n\r\n" + line + b"Host: p\r\n\r\n",
            line + b"Host: p\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
            line + b"Host: p\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            line + b"Host: p\r\nTransfer-Encoding: gzip\r\n\r\n",
            line + b"Host: a/b\r\nConnection: close\r\n\r\n",
            line + b"Host: a b\r\nConnection: close\r\n\r\n",
            line + b"Host: [::1\r\nConnection: close\r\n\r\n",
            line + b"Host: \xff\r\nConnection: close\r\n\r\n",
            line + b"Host: " + b"a" * 70 + b"." + b"\xc3\xa9" * 70 + b"\r\nConnection: close\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET /\r\n\r\n",
            b"GET / HTTP/9.9\r\nHost: p\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            b"\x00\x00\x00\x00\r\n\r\n",
        ):
            await self.assert_clean(request)
        self.assertEqual(self.origin.lines(), [])

    async def test_smuggling(self) -> None:
        """What hides in one request's body is no second request."""
        await self.started()
        hidden = b"GET /dicomweb/studies?hidden HTTP/1.1\r\nHost: p\r\n\r\n"
        head = b"POST /dicomweb/%s/frames/1 HTTP/1.1\r\nHost: p\r\nContent-Length: %d\r\n\r\n"
        status, headers, _ = await self.exchange(head % (self.slide.resource.encode(), len(hidden)) + hidden)
        self.assertEqual(status, 405)
        self.assertEqual(self.origin.lines(), [])
