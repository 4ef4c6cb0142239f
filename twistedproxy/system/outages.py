"""Servers that cannot be used: why, in an operator's words, and in the log once when it begins and once when it is over."""

from __future__ import annotations

from collections.abc import Callable

from OpenSSL import SSL
from twisted.internet import error
from twisted.logger import Logger

from twistedproxy.system.client_tls import CertificateRefused

INTERVAL = 60.0
"""Seconds between two lines of one outage, which are written where its reason changes."""

_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (error.ConnectionRefusedError, "connection refused"),
    (error.DNSLookupError, "unknown host name"),
    (error.TimeoutError, "timed out"),
    (error.TCPTimedOutError, "timed out"),
    (error.NoRouteError, "no route to the host"),
)


def reason_of(failure: BaseException | None) -> str:
    """Why there is no connection, in a few words."""
    for kind, reason in _REASONS:
        if isinstance(failure, kind):
            return reason
    if isinstance(failure, SSL.Error):
        return _tls_reason(failure)
    if isinstance(failure, error.ConnectError) and isinstance(failure.osError, OSError):
        return str(failure.osError.strerror)
    return str(failure) or type(failure).__name__


def _tls_reason(failure: SSL.Error) -> str:
    """OpenSSL's own words: the last of each entry of its error queue."""
    queue = failure.args[0] if failure.args else ()
    words = [str(entry[-1]) for entry in queue if isinstance(entry, tuple) and entry] if isinstance(queue, list) else []
    return ", ".join(words) or "TLS failed"


def tls_reason_in(failed: BaseException) -> str:
    """Why TLS ended the connection that a request of twisted.web *failed* on; "" where it didn't."""
    values = [reason.value for reason in getattr(failed, "reasons", ())]
    return next((reason_of(value) for value in values if isinstance(value, (SSL.Error, CertificateRefused))), "")


class Outage:
    """Whether *what*, a server, can be used. Several connections to it go by names of their own."""

    log = Logger()

    def __init__(self, what: str, seconds: Callable[[], float]) -> None:
        self._what = what
        self._seconds = seconds
        self._failing: set[str] = set()
        self._reason = ""
        self._began = self._logged = 0.0

    def failed(self, name: str, reason: str) -> None:
        """The connection *name* cannot be used for *reason* (no secrets)."""
        now = self._seconds()
        first = not self._failing
        self._failing.add(name)
        if first:
            self._began = now
        if first or (reason != self._reason and now - self._logged >= INTERVAL):
            self._reason, self._logged = reason, now
            self.log.warn("{what} is unavailable: {reason}", event="unavailable", what=self._what, reason=reason)

    def worked(self, name: str) -> None:
        """The connection *name* works."""
        if name not in self._failing:
            return
        self._failing.discard(name)
        if not self._failing:
            seconds = round(self._seconds() - self._began, 1)
            self.log.info(
                "{what} is available again after {seconds} s", event="available", what=self._what, seconds=seconds
            )
