"""Request ids and Trace Context, as they are taken from header fields."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from twistedproxy.system.tracing import MAX_ID, REQUEST_ID, Trace, new_request_id

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def trace(**fields: list[bytes]) -> Trace:
    """The trace of a request with these fields, their dashes written as underscores."""
    headers = Headers({name.replace("_", "-").encode(): values for name, values in fields.items()})
    return Trace.of(headers.getRawHeaders)


class TracingTests(SynchronousTestCase):
    """What is taken over, what replaced, what left behind."""

    def test_taken_over(self) -> None:
        """An id of safe characters stays as it is."""
        for given in (b"7", b"a" * MAX_ID, b"Root=1-67891233-abcdef012345678912345678", b"x/y+z.w_:="):
            self.assertEqual(given.decode(), trace(x_request_id=[given]).request_id)

    def test_replaced(self) -> None:
        """One that could forge lines, fill logs or mean two things is replaced by the proxy's own; so is none at all."""
        wrong = [
            [b""],
            [b"a" * (MAX_ID + 1)],
            [b"a b"],
            [b"a\tb"],
            [b"a]"],
            ["é".encode()],
            [b'"x"'],
            [b"a,b"],
            [b"a", b"a"],
            [],
        ]
        for given in wrong:
            self.assertRegex(trace(x_request_id=given).request_id, r"^[0-9a-f]{16}-[0-9a-f]{8,}$")

    def test_own_ids_differ(self) -> None:
        """Two requests never have one id."""
        self.assertEqual(1000, len({new_request_id() for _ in range(1000)}))

    def test_trace_context(self) -> None:
        """traceparent goes on with its tracestate, whose lines are one list."""
        context = trace(traceparent=[PARENT], tracestate=[b"a=1", b"b=2"]).context
        self.assertEqual(((b"traceparent", PARENT), (b"tracestate", b"a=1,b=2")), context)

    def test_no_trace_context(self) -> None:
        """What is not valid as traceparent does not go on, nor does a tracestate alone, or one that is too long."""
        zero = PARENT.replace(b"b7ad6b7169203331", b"0" * 16)
        for wrong in (b"", b"00-1-2-01", PARENT.upper(), b"ff" + PARENT[2:], PARENT + b"x", zero):
            self.assertEqual((), trace(traceparent=[wrong], tracestate=[b"a=1"]).context)
        self.assertEqual((), trace(traceparent=[PARENT, PARENT]).context)
        self.assertEqual((), trace(tracestate=[b"a=1"]).context)
        self.assertEqual(1, len(trace(traceparent=[PARENT], tracestate=[b"a=" + b"1" * 600]).context))

    def test_named(self) -> None:
        """In a request to the store the trace takes the place of what the client sent."""
        fields = Headers(
            {REQUEST_ID: [b"a b", b"c"], b"traceparent": [b"x"], b"tracestate": [b"y"], b"Accept": [b"*/*"]}
        )
        trace(x_request_id=[b"ab-1"]).name(fields)
        self.assertEqual(
            {b"X-Request-Id": [b"ab-1"], b"Accept": [b"*/*"]},
            dict(fields.getAllRawHeaders()),
        )
