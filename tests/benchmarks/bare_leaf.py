"""The least that twisted.web can do: one leaf resource, a constant body. A yardstick.

``python -m tests.benchmarks.bare_leaf PORT BYTES``
"""

from __future__ import annotations

import sys

from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import Request, Site


class Leaf(Resource):
    """*body* is the answer to every request."""

    isLeaf = True

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self._body = body
        self._length = b"%d" % len(body)

    def render_GET(self, request: Request) -> bytes:
        request.setHeader(b"Content-Type", b"application/octet-stream")
        request.setHeader(b"Content-Length", self._length)
        return self._body


def main(port: int, size: int) -> None:
    """Serve *size* bytes on *port* of the loopback interface until killed."""
    site = Site(Leaf(b"x" * size))
    reactor.listenTCP(port, site, interface="127.0.0.1", backlog=1024)  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
