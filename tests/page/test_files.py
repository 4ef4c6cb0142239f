"""The page's files over real sockets."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.clients import Client, RawConnection, client
from tests.dicomweb.support import ProxyCase
from twistedproxy import __version__
from twistedproxy.page.files import PageFile, page_files
from twistedproxy.settings import Mount

PROTECTION = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class PageFilesTests(SynchronousTestCase):
    """`page_files`."""

    def files(self, **contents: bytes) -> dict[bytes, PageFile]:
        """Those of a folder with these contents."""
        folder = Path(self.mktemp())
        folder.mkdir()
        for name, content in {"index_html": b"<@ASSETS@/a.js>", **contents}.items():
            (folder / name.replace("_", ".")).write_bytes(content)
        return dict(page_files(folder))

    def test_digest(self) -> None:
        """A change of any asset is another path for all of them, which the document names."""
        before, same = self.files(a_js=b"1", b_css=b"2"), self.files(a_js=b"1", b_css=b"2")
        self.assertEqual(before.keys(), same.keys())
        self.assertEqual(len(before), 3)
        for changed in (self.files(a_js=b"2", b_css=b"2"), self.files(a_js=b"1", c_css=b"2"), self.files(a_js=b"1")):
            self.assertEqual(before.keys() & changed.keys(), {b"/"})
        (script,) = [path for path in before if path.endswith(b".js")]
        self.assertEqual(before[b"/"].plain, b"<%b>" % script[1:])

    def test_unknown_kind(self) -> None:
        """A file whose type is not known does not become a page's asset by chance."""
        self.assertRaises(KeyError, self.files, notes_txt=b"")

    def test_compressed(self) -> None:
        """What gets smaller is sent compressed to who takes it, with another tag; what does not, never."""
        file = PageFile(b"text/css", b"", b"a" * 1000)
        tags = set()
        for accepted, coded in ((None, False), (b"gzip, br", True), (b"*", True), (b"gzip;q=0", False), (b"br", False)):
            tag, headers, body = file.answer(accepted)
            self.assertEqual((b"Content-Encoding", b"gzip") in headers, coded, accepted)
            self.assertEqual(gzip.decompress(body) if coded else body, file.plain)
            self.assertIn((b"Vary", b"Accept-Encoding"), headers)
            tags.add((coded, tag))
        self.assertEqual(len(tags), 2)
        self.assertEqual(PageFile(b"text/css", b"", b"a").answer(b"gzip")[2], b"a")


class PageTests(ProxyCase):
    """Listeners."""

    async def root(self, **settings: Any) -> Client:
        """A client of the first listener of a proxy."""
        self.running = await self.proxy(self.store(), **settings)
        return self.running.client(prefix="")

    def folder(self) -> str:
        """One that is empty."""
        folder = os.path.abspath(self.mktemp())
        os.mkdir(folder)
        return folder

    async def test_document(self) -> None:
        """It is asked for each time; what it loads is kept for ever, and is there."""
        root = await self.root()
        for path in ("/", "/?a=b"):
            page = await root.get(path)
            self.assertEqual((page.status, page.headers["cache-control"]), (200, "no-cache"))
            self.assertEqual(page.headers["content-type"], "text/html; charset=utf-8")
            self.assertLessEqual(PROTECTION.items(), page.headers.items())
        found = set(re.findall(r'(?:src|href)="(page/[^"]+)"', page.body.decode()))
        self.assertTrue(found)
        for path in found:
            asset = await root.get(f"/{path}")
            self.assertEqual((asset.status, asset.headers["cache-control"]),
                             (200, "public, max-age=31536000, immutable"), path)  # fmt: skip
            self.assertLessEqual(PROTECTION.items(), asset.headers.items())
        self.assertIn(b'route="page"', (await root.get("/metrics")).body)

    async def test_conditions(self) -> None:
        """If-None-Match gets 304 without a body, HEAD the same headers as GET."""
        root = await self.root()
        for path in map(bytes.decode, page_files()):
            for encoding in ({}, {"Accept-Encoding": "gzip"}):
                whole = await root.get(path, encoding)
                same = await root.get(path, {**encoding, "If-None-Match": whole.headers["etag"]})
                self.assertEqual((same.status, same.body, same.headers["etag"]), (304, b"", whole.headers["etag"]))
                self.assertEqual((await root.get(path, {"If-None-Match": '"other"'})).status, 200)
                head = await root.request("HEAD", path, encoding)
                self.assertEqual((head.status, head.body, head.headers["etag"]), (200, b"", whole.headers["etag"]))
        connection = await RawConnection.open(self.running.port)
        connection.send(b"HEAD / HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n")
        length = len((await root.get("/")).body)
        self.assertIn(b"Content-Length: %d\r\n" % length, await connection.end())

    async def test_nothing_else(self) -> None:
        """No other path, of another digest or of a file beside them, and no other method."""
        root = await self.root()
        asset = next(path.decode() for path in page_files() if path != b"/")
        old = re.sub(r"page/[0-9a-f]+", "page/00112233445566778899", asset)
        name = asset.rpartition("/")[2]
        for path in (old, f"{asset}/", f"{asset}/../../files.py", "/page", "/page/", f"/page/{name}", "/index.html", "//",
                     "/" + asset[1:].replace("/", "%2f"), f"{asset[: -len(name)]}index.html", f"{asset[: -len(name)]}../about.json",
                     ):  # fmt: skip
            self.assertIn((await root.get(path)).status, (400, 404), path)
        for method, path, status in (("POST", asset, 405), ("DELETE", "/page/about.json", 405), ("POST", "/", 404)):
            self.assertEqual((await root.request(method, path)).status, status, (method, path))

    async def test_about(self) -> None:
        """What the page is told: the mounts in the order of the settings, and whether this listener tells of the proxy."""
        store, folder = self.store(), self.folder()
        mounts = (
            Mount("/a", store.url),
            Mount("/much/longer", f"file:{folder}"),
            Mount("/c", store.url),
        )
        for admin in (None, "tcp:0:interface=127.0.0.1"):
            proxy = await self.proxy(store, origin=mounts, admin_listen=admin)
            about = await proxy.client(prefix="").get("/page/about.json")
            self.assertEqual((about.status, about.headers["cache-control"]), (200, "no-store"))
            told = [{"prefix": "/a", "kind": "http"}, {"prefix": "/much/longer", "kind": "file"},
                    {"prefix": "/c", "kind": "http"}]  # fmt: skip
            self.assertEqual(about.json(), {"version": __version__, "mounts": told, "status": admin is None})
        administrators = client(self, f"http://127.0.0.1:{proxy.port_of(1)}")
        told_there = (await administrators.get("/page/about.json")).json()
        self.assertEqual(told_there, {"version": __version__, "mounts": [], "status": True})
        self.assertEqual((await administrators.get("/")).status, 200)
        self.assertEqual((await administrators.get("/nothing")).status, 404)

    async def test_off(self) -> None:
        """Without the page nothing of it is there, at any listener."""
        root = await self.root(page=False, admin_listen="tcp:0:interface=127.0.0.1")
        admin = client(self, f"http://127.0.0.1:{self.running.port_of(1)}")
        for path in ("/", "/page/about.json", *map(bytes.decode, page_files())):
            for one in (root, admin):
                self.assertEqual((await one.get(path)).status, 404, path)

    async def test_mount_at_the_root(self) -> None:
        """A mount whose prefix is ``/`` loses nothing: neither what lies below ``/page``, nor OPTIONS of ``/``."""
        store = self.store()
        root = await self.root(origin=(Mount("/", store.url),))
        self.assertEqual((await root.get("/")).headers["content-type"], "text/html; charset=utf-8")
        self.assertEqual((await root.get("/studies")).status, 200)
        before = len(store.requests)
        for method, path in (("GET", "/page/studies"), ("GET", "/page/about.json/studies"), ("OPTIONS", "/")):
            await root.request(method, path)
        self.assertEqual([line.partition("?")[0] for line in store.lines()[before:]],
                         ["GET /page/studies", "GET /page/about.json/studies", "OPTIONS /"])  # fmt: skip
        await store.stop()
