"""Readers before real servers: what is made for them, what they send, and how answers are judged."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.benchmarks.model.series import Series, pyramid, stack
from tests.benchmarks.reader_replay import Totals, make
from tests.benchmarks.readers import Reader
from tests.benchmarks.replaying import Held, Network
from tests.benchmarks.viewing import Level, Screen

PART = b"--x\r\nContent-Type: image/jpeg\r\n\r\nabc\r\n--x--\r\n"
CHECKSUM = 0x352441C2  # of abc
TYPE = b"Content-Type: multipart/related; boundary=x\r\n"
PLAIN = b"HTTP/1.1 200 OK\r\n%sCache-Status: p; hit\r\nContent-Length: %d\r\n\r\n%s" % (TYPE, len(PART), PART)
CHUNKED = b"HTTP/1.1 200 OK\r\n%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (TYPE, len(PART), PART)
REFUSED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"
ROW = Series((Level("row", 1, 3, 1),), 3)


class Answers:
    """A server that answers each request with the next of *answers*; after an empty one it closes the connection."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = iter(answers)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/root"
        self.requests: list[str] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        while request := connection.recv(1 << 16):
            answer = next(self._answers)
            if not answer:
                return
            self.requests.append(request.decode().split("\r\n")[0])
            connection.sendall(answer)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


class NetworkTests(SynchronousTestCase):
    """Requests over sockets."""

    def _read(self, *answers: bytes) -> tuple[Reader, Answers]:
        """One reader, one frame after the other."""
        server = Answers(*answers)
        self.addCleanup(server.close)
        frames = range(1, 1 + sum(bool(answer) for answer in answers))
        network = Network(server.url, {("row", frame): Held(f"i/frames/{frame}", CHECKSUM) for frame in frames})
        path = [Screen(ROW.levels[0], (frame,), 0.0) for frame in frames]
        reader = Reader("r", path, network, network.ask).begin()
        network.run(until=lambda: reader.finished)
        network.close()
        return reader, server

    def test_answers(self) -> None:
        """Answers with a length and in chunks are read on one connection; what is no frame is wrong."""
        reader, server = self._read(PLAIN, CHUNKED, REFUSED)
        self.assertEqual([tile.hit for tile in reader.tiles], [True, False, False])
        self.assertEqual((reader.wrong, server.requests[0]), (1, "GET /root/i/frames/1 HTTP/1.1"))

    def test_other_bytes(self) -> None:
        """A frame that is not the stored one is wrong."""
        self.assertEqual(self._read(PLAIN.replace(b"abc", b"abd"))[0].wrong, 1)

    def test_closed(self) -> None:
        """A connection that the server has closed between two requests is opened again."""
        reader, server = self._read(PLAIN, b"", PLAIN)
        self.assertEqual((len(reader.tiles), len(server.requests), reader.wrong), (2, 2, 0))


class MadeTests(SynchronousTestCase):
    """Files for what the model only counts."""

    def test_files(self) -> None:
        """A pyramid has a file for each level, a stack one for each slice; each frame is known by its checksum."""
        folder = Path(self.mktemp())
        folder.mkdir()
        paths, held = make(folder, [pyramid("p", 9, 3), stack("s", 2)])
        self.assertEqual((len(paths), len(held)), (2 + 2, 81 + 9 + 2))
        self.assertEqual(len({one.path for one in held.values()}), len(held))
        self.assertTrue(held["s:1", 1].path.endswith("/frames/1"))

    def test_totals(self) -> None:
        """What came since is told by kind."""
        new = Totals({"frames": 5, "metadata": 2}, 70.0).since(Totals({"frames": 3, "metadata": 2}, 50.0))
        self.assertEqual((str(new), new.sent), ("2 frames", 20.0))
