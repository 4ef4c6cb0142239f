"""Servers that cannot be used, and what is said of them."""

from __future__ import annotations

from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.system.outages import INTERVAL, CertificateRefused, Outage, reason_of, with_hint


class HintTests(SynchronousTestCase):
    """What to look at."""

    def test_hints(self) -> None:
        """The reason stays as it is in front; what is not known has no hint."""
        for reason in ("connection refused", "unknown host name", "timed out", "certificate verify failed: expired"):
            hinted = with_hint(f"no connection: {reason}", "http://store")
            self.assertTrue(hinted.startswith(f"no connection: {reason} (http://store: is "), hinted)
        self.assertEqual(with_hint("the origin answered 500", "http://store"), "the origin answered 500")


class OutageTests(SynchronousTestCase):
    """What the log says."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.outage = Outage("the store", self.clock.seconds)

    def said(self, *steps: tuple[str, str]) -> list[str]:
        """What is logged where connections (by name) fail for a reason, or work ("")."""
        with capturedLogs() as events:
            for name, reason in steps:
                self.outage.failed(name, reason) if reason else self.outage.worked(name)
        return [formatEvent(event) for event in events]

    def test_once(self) -> None:
        """An outage is said once with its reason, however often it is met, and its end once, when all works again."""
        self.assertEqual(self.said(("a", "")), [])
        self.assertEqual(
            self.said(("a", "refused"), ("b", "refused"), ("a", "refused")), ["the store is unavailable: refused"]
        )
        self.clock.advance(10 * INTERVAL)
        self.assertEqual(self.said(("b", "refused"), ("a", "")), [])
        self.assertEqual(self.said(("b", ""), ("a", "")), ["the store is available again after 600.0 s"])
        self.assertEqual(self.said(("a", "gone")), ["the store is unavailable: gone"])

    def test_another_reason(self) -> None:
        """A reason that changes is said, but not each time that it does."""
        self.assertEqual(len(self.said(("a", "x"), ("a", "y"), ("a", "x"), ("a", "y"))), 1)
        self.clock.advance(INTERVAL)
        self.assertEqual(self.said(("a", "y"), ("a", "x")), ["the store is unavailable: y"])

    def test_reasons(self) -> None:
        """Reasons are an operator's words, not those of a library."""
        for failure, reason in (
            (error.ConnectionRefusedError(), "connection refused"),
            (error.DNSLookupError("x"), "unknown host name"),
            (error.TimeoutError(), "timed out"),
            (error.TCPTimedOutError(), "timed out"),
            (
                error.ConnectError(osError=FileNotFoundError(2, "No such file or directory")),
                "No such file or directory",
            ),
            (
                CertificateRefused("certificate verify failed: cert has expired"),
                "certificate verify failed: cert has expired",
            ),
            (SSL.Error([("SSL routines", "", "wrong version number")]), "wrong version number"),
            (SSL.Error(-1, "Unexpected EOF"), "TLS failed"),
            (RuntimeError(), "RuntimeError"),
        ):
            self.assertEqual(reason_of(failure), reason)
