"""Hot responses, frames from a cache at hand, and the ordinary way side by side: whatever a client sends, it cannot tell which one
answered.

Three whole proxies get the same bytes at the same times; one of them has only the ordinary way. `EXAMPLES` connections are
made up; TWISTEDPROXY_HOT_EXAMPLES says another number.
"""

from __future__ import annotations

import itertools
import os
import re
from typing import Any

import attrs
from twisted.trial.unittest import SynchronousTestCase

from tests.hot.support import ACCEPT, ALICE, FRAMES, MALLORY, OF_ONE_ANSWER, HotProxy, request
from tests.properties import HealthCheck, given, settings, st
from tests.server.wire import Wire
from twistedproxy.settings import MIB

EXAMPLES = int(os.environ.get("TWISTEDPROXY_HOT_EXAMPLES", "400"))
VIEWER = "https://viewer.example"
MOST_STEPS = 400  # pieces that one connection's bytes are sent in


@attrs.frozen
class Field:
    """One header line, as it is sent."""

    name: str
    value: str
    before: str = " "
    after: str = ""
    end: str = "\r\n"

    def __str__(self) -> str:
        return f"{self.name}:{self.before}{self.value}{self.after}{self.end}"


def cased(name: str) -> st.SearchStrategy[str]:
    return st.sampled_from([name, name, name.lower(), name.upper(), name.swapcase()])


def field(name: str, *values: str) -> st.SearchStrategy[Field]:
    spaces = st.sampled_from(["", " ", " ", " ", "\t", "  \t "])
    return st.builds(Field, cased(name), st.sampled_from(values), spaces, st.sampled_from(["", "", " ", "\t "]))


HOST = field("Host", "viewer.test", "viewer.test:80", "", "a b")
PROOF = field("Authorization", ALICE, ALICE, ALICE, MALLORY, "Basic YWJjOmRlZg==", "")
FORM = field("Accept", ACCEPT, ACCEPT, ACCEPT, "*/*", "image/jpeg", "text/html", "", f"{ACCEPT}, */*;q=0.1", "\x0bx")
HARMLESS = st.one_of(
    field("User-Agent", "Mozilla/5.0", ""),
    field("Accept-Encoding", "gzip, br", "identity;q=0"),
    field("Accept-Language", "de"),
    field("Origin", VIEWER, "https://other.example", "", "null"),
    field("Cookie", "a=b", "a=b; c=d", ""),
    field("Connection", "keep-alive", "Keep-Alive", ""),
    field("Referer", "https://viewer.example/x"),
    field("If-None-Match", "*", '"x"', "etag", 'W/etag, "y"', ""),
    field("Cache-Control", "no-cache", "max-age=0", "only-if-cached"),
    field("X-Forwarded-For", "192.0.2.7"),
    field("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    field("X-Request-Id", "gateway-7f", "", "not valid", "x" * 128, "x" * 129),
)
ODD: st.SearchStrategy[object] = st.one_of(
    field("Connection", "close", "Close", "keep-alive, close", "upgrade", "te"),
    field("Range", "bytes=0-3", "bytes=5-", "bytes=-2", "bytes=9999-", "x=1"),
    field("If-Range", "etag", '"x"'),
    field("X-Unknown", "1"),
    field("Upgrade", "h2c"),
    field("Expect", "100-continue"),
    field("Content-Length", "0", "3", "-1", "x"),
    field("Transfer-Encoding", "chunked", "identity", "gzip"),
    field("Te", "trailers"),
    field("Accept ", ACCEPT),
    field(" Accept", ACCEPT),
    field("", "no name"),
    st.sampled_from(["User-Agent\r\n", "Accept\r\n"]),
    st.builds(Field, st.just("X-Folded"), st.just("a"), end=st.just("\r\n  b\r\n")),
    st.builds(Field, st.just("Accept"), st.just('multipart/related; type="application/octet-stream";'),
              end=st.just("\r\n transfer-syntax=*\r\n")),
    st.builds(Field, st.just("User-Agent"), st.just("x"), end=st.sampled_from(["\n", "\r", "\0\r\n", "\r\r\n"])),
    st.builds(Field, st.just("User-Agent"), st.sampled_from(["a\nAccept: x", "a\0b", "\xff\xfe", "x" * 9000])),
    HOST, PROOF, FORM, HARMLESS,  # once more
)  # fmt: skip

TARGETS = st.sampled_from(
    [
        *[f"{FRAMES}{number}" for number in (1, 1, 1, 2, 3)],
        f"{FRAMES}1,2",
        f"{FRAMES}1,1",
        f"{FRAMES}101",
        f"{FRAMES}1?a=b",
        f"{FRAMES}1?accept=image/jpeg",
        f"{FRAMES}1?accept=image/jpeg;x=/frames/2",
        f"{FRAMES}1,2?accept=image/jpeg",
        f"{FRAMES}2,1",
        f"{FRAMES}{'1' * 5000}",
        f"{FRAMES}0{'1' * 9}",
        f"{FRAMES}1?",
        f"{FRAMES}%31",
        f"{FRAMES}1#x",
        f"http://viewer.test{FRAMES}1",
        f"HTTP://u@viewer.test:8080{FRAMES}1",
        f"/{FRAMES}1",
        f"{FRAMES}1 ",
        f" {FRAMES}1",
        f"{FRAMES}\0",
        f"{FRAMES}1\n",
        f"{FRAMES}1/rendered",
        "/healthz",
        "*",
        "",
    ]
)
BODIES = st.sampled_from(["", "", "", "", "abc", "3\r\nabc\r\n0\r\n\r\n", "0\r\n\r\n", "\r\n", "\r\n\r\n", "GET"])


@st.composite
def requests(draw: st.DrawFn) -> str:
    """One request as text: half of them as hot responses know them."""
    fields: list[object] = [
        draw(field("Host", "viewer.test")),
        draw(field("Authorization", ALICE)),
        draw(field("Accept", ACCEPT)),
    ]
    if draw(st.booleans()):
        fields += draw(st.lists(HARMLESS, max_size=2))
        target = draw(st.sampled_from([f"{FRAMES}1", f"{FRAMES}2", f"{FRAMES}1,2"]))
        method = draw(st.sampled_from(["GET", "GET", "HEAD"]))
        return f"{method} {target} HTTP/1.1\r\n{''.join(map(str, draw(st.permutations(fields))))}\r\n"
    method = draw(st.sampled_from(["GET"] * 6 + ["HEAD", "HEAD", "POST", "OPTIONS", "get", "G"]))
    version = draw(st.sampled_from(["HTTP/1.1"] * 9 + ["HTTP/1.0", "HTTP/1.2", "http/1.1", "HTTP/1.1 "]))
    target = draw(st.one_of(st.just(f"{FRAMES}1"), TARGETS))
    if draw(st.booleans()):
        fields = [draw(one) for one in (HOST, PROOF, FORM)]
    fields += draw(st.lists(ODD, max_size=2))
    if draw(st.integers(0, 5)) == 0:
        del fields[draw(st.integers(0, len(fields) - 1))]
    head = "".join(map(str, draw(st.permutations(fields))))
    end = draw(st.sampled_from(["\r\n"] * 9 + ["\n", "", "\r\n\r\n"]))
    return f"{method} {target} {version}\r\n{head}{end}{draw(BODIES)}"


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """The pieces that a client sends on one connection: whole requests, several at once, or cut anywhere."""
    texts = draw(st.lists(requests(), min_size=1, max_size=3))
    sent = [text.encode("latin-1") for text in texts]
    how = draw(st.sampled_from(["whole", "whole", "whole", "joined", "cut", "bytes"]))
    if how == "whole":
        return sent
    whole = b"".join(sent)
    if how == "joined":
        return [whole]
    if how == "bytes" and len(whole) < MOST_STEPS:
        return [whole[at : at + 1] for at in range(len(whole))]
    cuts = sorted(draw(st.sets(st.integers(1, len(whole)), max_size=3)) | {0, len(whole)})
    return [whole[start:stop] for start, stop in itertools.pairwise(cuts)]


class EqualityTests(SynchronousTestCase):
    """The same bytes to all."""

    def setUp(self) -> None:
        self.hot = HotProxy(self, 64 * MIB, cors_origin=(VIEWER,))
        self.ordinary = HotProxy(self, 0, clock=self.hot.clock, fast=False, cors_origin=(VIEWER,))
        self.cached = HotProxy(self, 0, clock=self.hot.clock, reads_now=True, cors_origin=(VIEWER,))
        self.proxies = (self.hot, self.ordinary, self.cached)
        for proxy in self.proxies:
            for number in (1, 2, "1,2"):
                reply = proxy.get(number)
                reply = proxy.get(number, more=f"Origin: {VIEWER}\r\n")
            proxy.access_lines()
        (self.etag,) = re.findall(rb'ETag: ("[^"]+")', self.hot.get(1).head)
        for proxy in self.proxies[1:]:
            proxy.get(1)
        self.assertEqual(200, reply.status)

    def same(self, *answers: object) -> None:
        """Fail unless all are equal."""
        for other in answers[1:]:
            self.assertEqual(answers[0], other)

    def compare(self, pieces: list[bytes]) -> None:
        """Send *pieces* to all, and look at all after each."""
        proxies = self.proxies
        wires = [proxy.connect() for proxy in proxies]
        for piece in pieces:
            for wire in wires:
                wire.send(piece.replace(b"etag", self.etag))
            self.same(*[state(wire) for wire in wires])
            self.same(*[OF_ONE_ANSWER.sub(b"", wire.value()) for wire in wires])
            self.hot.clock.advance(0.01)
        self.same(*[proxy.access_lines() for proxy in proxies])
        for wire in wires:
            if not wire.disconnected:
                wire.leave()
        self.same(*[proxy.counted() for proxy in proxies])
        self.same(*[len(proxy.components.connections) for proxy in proxies])

    def test_made_up(self) -> None:
        """No made-up conversation is answered otherwise, and many of them are answered hot."""

        @settings(max_examples=EXAMPLES, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(conversations())
        def compare(pieces: list[bytes]) -> None:
            self.compare(pieces)

        compare()
        self.assertGreater(self.hot_answers(), EXAMPLES // 5)
        self.assertGreater(self.cached.found, EXAMPLES // 5)

    def hot_answers(self) -> int:
        """How many answers were hot ones."""
        rows: Any = self.hot.components.metrics.snapshot()["request_seconds"]
        return int(sum(sum(numbers[:-1]) for (_route, cache), numbers in rows if cache == "hot"))

    def test_known_forms_are_hot(self) -> None:
        """What viewers send is answered hot, and as the ordinary way would."""
        before, found = self.hot_answers(), self.cached.found
        forms = [
            request(1),
            request(1, method="HEAD"),
            request(2, more="If-None-Match: etag\r\n"),
            request("1,2", more=f"Origin: {VIEWER}\r\nSec-Fetch-Mode: cors\r\n"),
        ]
        self.compare([*forms, *forms])
        self.assertEqual(before + 8, self.hot_answers())
        self.assertEqual(found + 8, self.cached.found)

    def test_forms_that_look_like_lists(self) -> None:
        """A single frame in a form that its query asks for, or whose number is written otherwise, teaches nothing about lists."""
        plain = request("1,2", accept="image/jpeg")
        for odd in ("1?accept=image/jpeg", "%31", "1?", "1?accept=image/jpeg;x=/frames/2", "1" * 5000):
            self.compare([request(odd, accept="image/jpeg"), plain, plain, request(2), request("2,1"), request("1,1")])

    def test_split_anywhere(self) -> None:
        """A request cut in two at any byte is answered once, the same way."""
        whole = request(1)
        for at in range(1, len(whole)):
            self.compare([whole[:at], whole[at:], request(2)])

    def test_pipelined(self) -> None:
        """Requests that come together are answered in their order, as is what comes after them."""
        self.compare([request(1) * 3, request(2), request(1) + request(2)[:30], request(2)[30:], request(1)])

    def test_empty_line_before_a_request(self) -> None:
        """One empty line before a request is no bad request, before or behind hot responses."""
        self.compare(
            [
                request(1),
                b"\r\n",
                request(1),
                b"\r\n" + request(2),
                request(1) + b"\r\n",
                request(2),
                b"\r\n",
                request(1),
            ]
        )

    def test_client_reads_slowly(self) -> None:
        """While a client has not taken its answer, no deadline for its next request runs, and none is answered."""
        wires = [proxy.connect() for proxy in self.proxies]
        for wire in wires:
            fill(wire)
            wire.send(request(1))
        self.same(*[wire.protocol._channel.read_deadline for wire in wires])
        self.same(*[wire.protocol._channel.write_deadline for wire in wires])
        self.hot.clock.advance(10)
        for wire in wires:
            wire.read_all()
        self.same(*[state(wire) for wire in wires])


def fill(wire: Wire) -> None:
    """Let the next write fill all buffers."""
    write, write_all = wire.write, wire.writeSequence

    def full(data: bytes) -> None:
        write(data)
        wire.write = write  # type: ignore[method-assign]
        wire.read_nothing()

    wire.write = full  # type: ignore[method-assign]
    wire.writeSequence = write_all  # type: ignore[method-assign]


def state(wire: Wire) -> dict[str, object]:
    """All that a connection would remember of what happened on it."""
    channel = wire.protocol._channel
    names = (
        *("read_deadline", "write_deadline", "lingering", "_head_begun", "persistent", "_buffer", "_dataBuffer"),
        *("_busyReceiving", "_waitingForTransport", "_HTTPChannel__first_line", "_HTTPChannel__header", "length"),
        *("_handlingRequest", "_receivedHeaderSize", "_receivedHeaderCount", "_when_taken", "line_mode", "paused"),
    )
    known = {name: getattr(channel, name) for name in names}
    return {**known, "requests": len(channel.requests), "gone": wire.gone, "cut": wire.cut, "half": wire.half_closed}
