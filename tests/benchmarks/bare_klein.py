"""The least that Klein can do for a frame's URL: four path variables, a constant body. A yardstick.

``python -m tests.benchmarks.bare_klein PORT BYTES``
"""

from __future__ import annotations

import sys

from klein import Klein
from twisted.internet import reactor
from twisted.web.server import Request, Site


class Bare:
    """One route; *body* is the answer to every request."""

    app = Klein()

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._length = b"%d" % len(body)

    @app.route("/dicomweb/studies/<study>/series/<series>/instances/<sop>/frames/<frames>", methods=["GET"])
    def frames(self, request: Request, study: str, series: str, sop: str, frames: str) -> bytes:
        request.setHeader(b"Content-Type", b"application/octet-stream")
        request.setHeader(b"Content-Length", self._length)
        return self._body


def main(port: int, size: int) -> None:
    """Serve *size* bytes on *port* of the loopback interface until killed."""
    site = Site(Bare(b"x" * size).app.resource())
    reactor.listenTCP(port, site, interface="127.0.0.1", backlog=1024)  # type: ignore[attr-defined, arg-type]
    reactor.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
