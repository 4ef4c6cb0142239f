"""What does not work for now. Servers that cannot be used: why, in an operator's words, and in the log once when it begins and
once when it is over (`Outage`); anything else that failed a short while ago, and need not be tried again yet (`Recent`).

Why TLS refuses a server is known because the certificate and the name in it are verified here (`Verified`).
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from OpenSSL import SSL
from OpenSSL.crypto import X509
from OpenSSL.SSL import VERIFY_FAIL_IF_NO_PEER_CERT, VERIFY_PEER, Connection, X509VerificationCodes
from service_identity import VerificationError
from service_identity.hazmat import DNS_ID, IPAddress_ID, ServiceID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet import error
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

K = TypeVar("K", bound=Hashable)

_WORDS = {
    code: name.removeprefix("ERR_").replace("_", " ").lower()
    for name, code in vars(X509VerificationCodes).items()
    if name.startswith("ERR_")
}


class CertificateRefused(Exception):
    """A server's certificate is not trusted here, or is another's."""


@implementer(IOpenSSLClientConnectionCreator)
class Verified:
    """Connections as *creator* makes them for *host*, a name or an address, with our verification, which reports its reason.

    Twisted's own says only "certificate verify failed". Where a certificate has no subjectAltName (RFC 9525 section 2
    demands it; self-signed ones often lack it) it logs a traceback with each attempt, and takes it for any name.
    """

    def __init__(self, creator: IOpenSSLClientConnectionCreator, host: str) -> None:
        self._creator = creator
        is_address = isIPAddress(host) or isIPv6Address(host)
        self._expected: ServiceID = IPAddress_ID(host) if is_address else DNS_ID(host)
        self._host = host

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> Connection:
        """A connection for *tlsProtocol*, which gets the reason if the certificate is refused."""
        connection: Connection = self._creator.clientConnectionForTLS(tlsProtocol)
        # Held weakly: the protocol holds the connection, and the collector does not see through it.
        protocol = weakref.ref(tlsProtocol)

        def verify(_: Connection, certificate: X509, code: int, depth: int, trusted: int) -> bool:
            """Whether one certificate of the chain is good; that of the server, at depth 0, must be for the host."""
            reason = "" if trusted else _WORDS.get(code, f"OpenSSL error {code}")
            if trusted and depth == 0:
                reason = self._mismatch(certificate)
            hearing = protocol()
            if reason and hearing is not None:
                hearing.failVerification(Failure(CertificateRefused(f"certificate verify failed: {reason}")))
            return not reason

        connection.set_verify(VERIFY_PEER | VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        return connection

    def _mismatch(self, certificate: X509) -> str:
        """Why *certificate* is not the host's, empty if it is. Never raises: OpenSSL, which calls, would not know."""
        try:
            patterns = extract_patterns(certificate)
            if not patterns:
                return "it has no subjectAltName"
            verify_service_identity(patterns, [self._expected], [])
        except VerificationError:
            return f"it is not for {self._host}"
        except Exception as error:
            return f"its names cannot be read ({error})"
        return ""


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


_TO_LOOK_AT = (
    ("connection refused", "is it running, and is that its port?"),
    ("unknown host name", "is the name right, and known here?"),
    ("no route", "is there a network between the two?"),
    ("certificate", "is its authority among those that this machine trusts?"),
    ("timed out", "is it running, and does a firewall let this machine through?"),
    ("within", "is it running, does a firewall let this machine through, or is it too busy?"),
)


def with_hint(reason: str, server: str) -> str:
    """*reason* why *server* cannot be used, and what to look at, where that is known."""
    hint = next((hint for words, hint in _TO_LOOK_AT if words in reason), None)
    return reason if hint is None else f"{reason} ({server}: {hint})"


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


class Recent(Generic[K]):
    """Keys that are remembered for *seconds* of a clock; of more than *most*, the oldest go first."""

    def __init__(self, seconds: float, most: int = 10_000) -> None:
        self._seconds = seconds
        self._most = most
        self._until: OrderedDict[K, float] = OrderedDict()

    def add(self, key: K, now: float) -> None:
        """Remember *key* from *now* on."""
        self._until.pop(key, None)
        self._until[key] = now + self._seconds
        if len(self._until) > self._most:
            self._until.popitem(last=False)

    def has(self, key: K, now: float) -> bool:
        """Whether *key* was added, and its time is not over."""
        return self._until.get(key, now) > now

    def discard(self, key: K) -> None:
        """Forget *key*, if it was there."""
        self._until.pop(key, None)
