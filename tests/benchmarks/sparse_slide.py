"""What callers wait for the first frames of a slide whose metadata are large: TILED_SPARSE, 105 MB.

A store of its own process that takes 80 ms for each answer, asked directly and through the proxy in the same run: the first frame,
more frames while the metadata are under way, a cached frame for the next caller, and five callers at once. Also how long turns of the
proxy's reactor take meanwhile. Run: ``python -m tests.benchmarks.sparse_slide``. Ends with 1 if a figure is over its limit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.benchmarks.measuring import Fetcher, end_in_order, percentile, stopped_at_the_end, table
from tests.running import Child, Proxy, Store, pinned

LATENCY = 0.08  # seconds
FRAMES = 92_000
FRAME = b"\xff\xd8\xff\xe0" + bytes(15_000) + b"\xff\xd9"
ACCEPT = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
MOST_FIRST, MOST_OTHERS, MOST_TURN = 2.5, 2.0, 0.050  # times direct, times direct, seconds at p99.9
PIECE = 1 << 18


def _element(vr: str, *values: object) -> object:
    return {"vr": vr, "Value": list(values)}


def _code(value: str, meaning: str) -> object:
    code = {"00080100": _element("SH", value), "00080102": _element("SH", "DCM"), "00080104": _element("LO", meaning)}
    return _element("SQ", code)


_UID = "1.2.826.0.1.3680043.8.498.45787841905473114233124723359129632652"
_SOURCE = {
    "00081150": _element("UI", "1.2.840.10008.5.1.4.1.1.77.1.6"),
    "00081155": _element("UI", _UID),
    "0040A170": _code("121322", "Source image for image processing operation"),
}
_PLACE = {
    "0040072A": _element("DS", 12.3456789),
    "0040073A": _element("DS", 34.5678901),
    "0040074A": _element("DS", 0.0),
    "0048021E": _element("SL", 12345),
    "0048021F": _element("SL", 54321),
}
_DERIVED = {
    "00082112": _element("SQ", _SOURCE),
    "00089215": _code("113040", "Lossy Compression of the pixel data of an image"),
}
_GROUPS = {
    "00089124": _element("SQ", _DERIVED),
    "00209111": _element("SQ", {"00209157": _element("UL", 1, 240, 1060), "00209164": _element("UI", _UID)}),
    "0048021A": _element("SQ", _PLACE),
}
ITEM = json.dumps(_GROUPS).encode()
"""The functional groups of one frame: where it lies, what it was made of."""


def resource(number: int) -> str:
    """A slide of a study of its own: the store has as many as are asked for."""
    return f"studies/1.2.{number}/series/1.2.{number}.1/instances/1.2.{number}.1.1"


def metadata(study: str, series: str, sop: str) -> Iterator[bytes]:
    """The DICOM JSON of a slide, in pieces."""

    def element(tag: str, vr: str, value: object) -> str:
        return f'"{tag}": {{"vr": "{vr}", "Value": [{json.dumps(value)}]}}'

    elements = [
        element("00080016", "UI", "1.2.840.10008.5.1.4.1.1.77.1.6"),
        element("00080018", "UI", sop),
        element("00083002", "UI", "1.2.840.10008.1.2.4.50"),
        element("0020000D", "UI", study),
        element("0020000E", "UI", series),
        element("00209311", "CS", "TILED_SPARSE"),
        element("00280002", "US", 3),
        element("00280004", "CS", "YBR_FULL_422"),
        element("00280008", "IS", FRAMES),
        element("00280010", "US", 256),
        element("00280011", "US", 256),
        element("00280100", "US", 8),
        element("00480006", "UL", 256_000),
        element("00480007", "UL", 256_000),
    ]
    yield f'[{{{", ".join(elements)}, "52009230": {{"vr": "SQ", "Value": ['.encode()
    together = PIECE // len(ITEM)
    for start in range(0, FRAMES, together):
        items = b", ".join([ITEM] * min(together, FRAMES - start))
        yield (b", " if start else b"") + items
    yield b"]}}]"


class SlideStore(Store):
    """The store, as a process of its own."""

    def __init__(self) -> None:
        Child.__init__(self, pinned([sys.executable, "-m", "tests.benchmarks.sparse_slide", "--store"], None))


def serve() -> None:
    """Be the store."""
    from twisted.internet import reactor
    from twisted.internet.task import cooperate
    from twisted.web.resource import Resource
    from twisted.web.server import NOT_DONE_YET, Request, Site

    class Slides(Resource):
        isLeaf = True

        def render_GET(self, request: Request) -> int:
            call = reactor.callLater(LATENCY, self.answer, request)  # type: ignore[attr-defined]
            request.notifyFinish().addErrback(lambda _: call.active() and call.cancel())
            return NOT_DONE_YET

        def answer(self, request: Request) -> None:
            words = request.path.decode().strip("/").split("/")
            if len(words) == 7 and words[6] == "metadata":
                request.setHeader("Content-Type", "application/dicom+json")
                self.stream(request, metadata(words[1], words[3], words[5]))
            elif len(words) == 8 and words[6] == "frames":
                request.setHeader("Content-Type", 'multipart/related; type="image/jpeg"; boundary=b')
                body = (
                    b"--b\r\nContent-Type: image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50\r\n\r\n"
                    + FRAME
                    + b"\r\n--b--\r\n"
                )
                request.setHeader("Content-Length", str(len(body)))
                request.write(body)
                request.finish()
            else:
                request.setResponseCode(404)
                request.finish()

        def stream(self, request: Request, pieces: Iterator[bytes]) -> None:
            task = cooperate(request.write(piece) for piece in pieces)
            request.registerProducer(Paced(task), True)
            task.whenDone().addCallbacks(lambda _: (request.unregisterProducer(), request.finish()), lambda _: None)

    class Paced:
        def __init__(self, task: object) -> None:
            self.pauseProducing, self.resumeProducing = task.pause, task.resume  # type: ignore[attr-defined]
            self.stopProducing = task.stop  # type: ignore[attr-defined]

    port = reactor.listenTCP(0, Site(Slides()), interface="127.0.0.1")  # type: ignore[attr-defined]
    print(f"http://127.0.0.1:{port.getHost().port}", flush=True)
    reactor.run()  # type: ignore[attr-defined]


class TurnsProxy(Proxy):
    """A proxy that notes how long each turn of its reactor takes: from what `epoll` gave to when it is asked again; by the clock, and in
    time of the processor, in which a busy machine makes no difference."""

    program = """
import time
from array import array
from twisted.internet import reactor
turns = array("d")
class Poller:
    def __init__(self, poller):
        self.poller, self.began = poller, (time.perf_counter(), time.thread_time())
    def __getattr__(self, name):
        return getattr(self.poller, name)
    def poll(self, *arguments):
        turns.extend((time.perf_counter() - self.began[0], time.thread_time() - self.began[1]))
        found = self.poller.poll(*arguments)
        self.began = time.perf_counter(), time.thread_time()
        return found
reactor._poller = Poller(reactor._poller)
reactor.addSystemEventTrigger("after", "shutdown", lambda: turns.tofile(open("turns", "wb")))
from twisted.scripts.twistd import run; run()
"""
    command = (sys.executable, "-c", program, "-n", "--pidfile=", "twistedproxy")

    def turns(self) -> tuple[float, float]:
        """The 99.9th percentile of all turns, once it has stopped: seconds, and seconds of the processor."""
        found = array("d")
        found.frombytes((Path(self.folder) / "turns").read_bytes())
        found = found[20:]  # without those of its start
        return percentile(found[::2], 0.999), percentile(found[1::2], 0.999)


class Asking:
    """Asks for frames at *url*, each caller on a warm connection."""

    def __init__(self, url: str) -> None:
        self._url = url

    def one(self, number: int, caller: str, frames: Sequence[int] = (1,)) -> tuple[list[float], list[str]]:
        """Seconds for each of *frames*, one after the other, and what the cache did."""
        fetcher = Fetcher(self._url)
        fetcher.get("warm")
        headers = {"Accept": ACCEPT, "Authorization": f"Bearer {caller}"}
        answers = [fetcher.get(f"{resource(number)}/frames/{frame}", headers) for frame in frames]
        fetcher.close()
        assert all(answer.frames() == [FRAME] for answer in answers)
        return [one.seconds for one in answers], [one.headers.get("cache-status", "") for one in answers]

    def many(self, number: int, callers: Sequence[str]) -> list[float]:
        """Seconds of the first frame of each of *callers* at once."""
        seconds: list[float] = []
        begin = threading.Barrier(len(callers))

        def ask(caller: str) -> None:
            begin.wait()
            seconds.extend(self.one(number, caller)[0])

        threads = [threading.Thread(target=ask, args=(caller,)) for caller in callers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return seconds

    def until_hit(self, number: int, caller: str) -> float:
        """Wait until the caller's frames come from the cache; seconds."""
        began = time.perf_counter()
        while "hit" not in self.one(number, caller)[1][0]:
            time.sleep(0.2)
        return time.perf_counter() - began


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.sparse_slide", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.store:
        serve()
        return 0
    end_in_order()
    with stopped_at_the_end() as children:
        store = SlideStore()
        children.append(store)
        url = store.wait_until_ready()
        proxy = TurnsProxy("--origin", url, "--prefetch", "off")
        children.append(proxy)
        proxy.wait_until_ready()
        size = sum(map(len, metadata("1", "1", "1")))
        print(f"{size / 1e6:.0f} MB of metadata, {options.rounds} rounds")
        rows = measure(Asking(url), Asking(f"{proxy.url}/dicomweb"), options.rounds)
        proxy.stop()
        turn, busy = proxy.turns()
    print(table(["", "direct ms", "through the proxy ms", "times", "at most"], rows))
    most = f"at most {MOST_TURN * 1e3:.0f}"
    print(f"turns of the reactor, p99.9: {turn * 1e3:.1f} ms, {busy * 1e3:.1f} ms of the processor ({most})")
    return int(busy > MOST_TURN or any(float(str(row[3])) > float(str(row[4])) for row in rows if row[4]))


def measure(direct: Asking, proxied: Asking, rounds: int) -> list[list[object]]:
    """The rows of the table: medians of the rounds."""
    found: dict[str, tuple[list[float], list[float], float]] = {}
    slides = itertools.count(1)

    def note(what: str, plain: Sequence[float], through: Sequence[float], most: float) -> None:
        row = found.setdefault(what, ([], [], most))
        row[0].extend(plain)
        row[1].extend(through)

    known = []
    for turn in range(rounds):
        number = next(slides)
        alone, _ = direct.one(number, "alice", range(1, 6))
        through, _ = proxied.one(number, "alice", range(1, 6))
        note("first frame", alone[:1], through[:1], MOST_FIRST)
        note("four more, metadata under way", alone[1:], through[1:], MOST_FIRST)
        known.append(proxied.until_hit(number, "alice"))
        note("a cached frame, next caller", direct.one(number, "bob")[0], proxied.one(number, "bob")[0], MOST_OTHERS)
        number, callers = next(slides), [f"caller-{turn}-{one}" for one in range(5)]
        note(
            "five callers at once, the slowest",
            [max(direct.many(number, callers))],
            [max(proxied.many(number, callers))],
            MOST_OTHERS,
        )
        proxied.until_hit(number, callers[0])
        note("the same, cached, next caller", direct.one(number, "eve")[0], proxied.one(number, "eve")[0], MOST_OTHERS)
    print(f"frames come from the cache {statistics.median(known):.1f} s after the first")
    rows: list[list[object]] = []
    for what, (plain, through, most) in found.items():
        before, after = statistics.median(plain), statistics.median(through)
        rows.append([what, f"{before * 1e3:.0f}", f"{after * 1e3:.0f}", f"{after / before:.2f}", f"{most:.1f}"])
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
