"""TLS to servers: the certificate and the name in it are verified, and where they are refused it is said why.

Twisted's own verification says only "certificate verify failed". Where a certificate has no subjectAltName (RFC 9525
section 2 demands it; self-signed ones often lack it) it logs a traceback with each attempt, and takes it for any name.
"""

from __future__ import annotations

import weakref

from OpenSSL.crypto import X509
from OpenSSL.SSL import VERIFY_FAIL_IF_NO_PEER_CERT, VERIFY_PEER, Connection, X509VerificationCodes
from service_identity import VerificationError
from service_identity.hazmat import DNS_ID, IPAddress_ID, ServiceID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

_WORDS = {
    code: name.removeprefix("ERR_").replace("_", " ").lower()
    for name, code in vars(X509VerificationCodes).items()
    if name.startswith("ERR_")
}


class CertificateRefused(Exception):
    """A server's certificate is not trusted here, or is another's."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"certificate verify failed: {reason}")


@implementer(IOpenSSLClientConnectionCreator)
class Verified:
    """Connections as *creator* makes them for *host*, a name or an address, with our verification."""

    def __init__(self, creator: IOpenSSLClientConnectionCreator, host: str) -> None:
        self._creator = creator
        is_address = isIPAddress(host) or isIPv6Address(host)
        self._expected: ServiceID = IPAddress_ID(host) if is_address else DNS_ID(host)
        self._host = host

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> Connection:
        """A connection for *tlsProtocol*, which hears why a certificate is refused."""
        connection: Connection = self._creator.clientConnectionForTLS(tlsProtocol)
        # Held weakly: the protocol holds the connection, and the collector does not see through it.
        protocol = weakref.ref(tlsProtocol)

        def verify(_: Connection, certificate: X509, code: int, depth: int, trusted: int) -> bool:
            """Whether one certificate of the chain is good; that of the server, at depth 0, must be for the host."""
            reason = "" if trusted else _WORDS.get(code, f"error {code} of OpenSSL")
            if trusted and depth == 0:
                reason = self._mismatch(certificate)
            hearing = protocol()
            if reason and hearing is not None:
                hearing.failVerification(Failure(CertificateRefused(reason)))
            return not reason

        connection.set_verify(VERIFY_PEER | VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        return connection

    def _mismatch(self, certificate: X509) -> str:
        """Why *certificate* is not the host's, empty if it is. Never raises: OpenSSL, which calls, would not know."""
        try:
            patterns = extract_patterns(certificate)
            if not patterns:
                return "it holds no subjectAltName"
            verify_service_identity(patterns, [self._expected], [])
        except VerificationError:
            return f"it is not for {self._host}"
        except Exception as error:
            return f"its names cannot be read ({error})"
        return ""
