"""The files of the page: its document, and the assets that it loads.

Rules:
- Only files that are in `STATIC` at the start are served, from memory: no path of a request reaches the file system.
- Assets are found below a digest of all of them, and kept for ever; the document is asked for each time, and names the digest.
- Everything has an entity tag of the bytes that are sent, and the headers that keep it from running or loading anything else.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Optional

import attrs

from twistedproxy.server.compression import GZIP, choose
from twistedproxy.server.conditional import entity_tag

STATIC = Path(__file__).parent / "static"
DOCUMENT = "index.html"
PLACE = "page"
"""Where the page's own paths begin, beside its document."""

_ASSETS = b"@ASSETS@"
"""What stands in the document for the path of the assets, relative to the document: a reverse proxy may add a prefix."""

_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".png": b"image/png",
    ".json": b"application/json",
}

_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_OF_ALL = (
    (b"Content-Security-Policy", _POLICY),
    (b"Referrer-Policy", b"no-referrer"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
    (b"Vary", b"Accept-Encoding"),
)
_FOR_EVER = b"public, max-age=31536000, immutable"
_ASK_AGAIN = b"no-cache"

Headers = tuple[tuple[bytes, bytes], ...]


@attrs.frozen
class PageFile:
    """One file, as it is and compressed (None: that is no smaller)."""

    content_type: bytes
    cache_control: bytes
    plain: bytes = attrs.field(repr=False)
    gzipped: Optional[bytes] = attrs.field(init=False, repr=False)

    @gzipped.default
    def _gzipped(self) -> Optional[bytes]:
        coded = gzip.compress(self.plain, mtime=0)
        return coded if len(coded) < len(self.plain) else None

    def answer(self, accept_encoding: Optional[bytes]) -> tuple[bytes, Headers, bytes]:
        """The entity tag, the headers beside Content-Length, and the body."""
        coded = self.gzipped if choose(accept_encoding, (GZIP,)).coding == GZIP else None
        body, coding = (self.plain, b"") if coded is None else (coded, b"gzip")
        etag = entity_tag(self.content_type + coding, hashlib.blake2b(body, digest_size=16).digest())
        headers = (*_OF_ALL, (b"ETag", etag), (b"Cache-Control", self.cache_control))
        return etag, headers if not coding else (*headers, (b"Content-Encoding", coding)), body


@functools.cache
def page_files(folder: Path = STATIC) -> Mapping[bytes, PageFile]:
    """The files of *folder*, by their paths at a listener. Raises OSError where one can't be read, KeyError for an unknown kind."""
    contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    document = contents.pop(DOCUMENT)
    digest = hashlib.blake2b(digest_size=10)
    for name, content in contents.items():
        digest.update(b"%d:%s%d:%s" % (len(name), name.encode(), len(content), content))
    place = f"{PLACE}/{digest.hexdigest()}"
    files = {
        f"/{place}/{name}".encode(): PageFile(_TYPES[Path(name).suffix], _FOR_EVER, content)
        for name, content in contents.items()
    }
    files[b"/"] = PageFile(_TYPES[".html"], _ASK_AGAIN, document.replace(_ASSETS, place.encode()))
    return files
