"""Helpers for tests of the folder: real files in real folders, requests as values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from twistedproxy.origin.folder.provider import Changed, FolderOrigin, nothing
from twistedproxy.origin.interface import OriginRequest
from twistedproxy.streams import BytesStream, read_all

MUCH = 256 * 1024 * 1024  # bytes


class Answer:
    """An answer, read to its end."""

    def __init__(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        self.status = status
        self.headers = {name.lower().decode(): value.decode() for name, value in headers}
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class FolderTestCase(TestCase):
    """Tests with a folder of their own, *folder*."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()

    async def serve(
        self,
        interval: float = 0.1,
        changed: Changed = nothing,
        environment: Optional[Mapping[str, str]] = None,
    ) -> FolderOrigin:
        """Serve the folder as it is now, until the test ends; walk through it every *interval* seconds."""
        from twisted.internet import reactor

        origin = FolderOrigin(
            f"file:{self.folder}", reactor, interval=interval, changed=changed, environment=environment
        )
        await origin.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(origin.stop()))
        return origin


async def ask(
    origin: FolderOrigin, path: str, query: str = "", accept: str = "", method: str = "GET", **more: Any
) -> Answer:
    """Send one request; *more*: content_type and chunks of an upload."""
    headers = [(b"Accept", accept.encode())] if accept else []
    if "content_type" in more:
        headers.append((b"Content-Type", more["content_type"].encode()))
    body = BytesStream(*more["chunks"]) if "chunks" in more else None
    response = await origin.forward(OriginRequest(method.encode(), path.encode(), query.encode(), tuple(headers), body))
    content = await read_all(response.body, MUCH)
    if method != "HEAD" and response.length not in (None, len(content)):
        raise AssertionError(f"{response.length} bytes were announced, {len(content)} came")
    return Answer(response.status, response.headers, content)
