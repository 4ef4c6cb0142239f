"""How a request looked from outside: scheme, host, prefix and address of the client.

Rules kept here:
- forwarding headers count only if the peer that sent them is trusted; lists are read from the right, as far
  as the addresses in them are trusted too;
- X-Forwarded-* wins over Forwarded (RFC 7239): most reverse proxies set the former and pass a client's own
  Forwarded on as it came;
- a host that is not valid in a URL is a 400.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Union

import attrs

from twistedproxy.server.problems import Problem, shown

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
HeaderLookup = Callable[[bytes], Union[Sequence[bytes], None]]

MAX_HOPS = 32  # forwarding elements that are looked at
MAX_LENGTH = 2048  # bytes of one forwarding header; a longer one counts as absent
MAX_PREFIX = 256  # bytes

_HOST = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?", re.ASCII)
_PREFIX = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*/?", re.ASCII)
_PAIR = re.compile(r'[ \t]*([A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^",; \t]*)[ \t]*(?:;|$)')
_ELEMENT = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^",])+')
_LOOPBACK = ipaddress.ip_address("127.0.0.1")


@attrs.frozen
class Outside:
    """A request as its client made it. *client*: an address as text, "" where there is none (a unix socket)."""

    scheme: str
    host: str
    prefix: str
    client: str

    @property
    def base(self) -> str:
        """The URL of the proxy's root, no slash at the end."""
        return f"{self.scheme}://{self.host}{self.prefix}"


def outside(
    peer: str | None,
    secure: bool,
    headers: HeaderLookup,
    trusted: Sequence[Network] = (),
    default_host: str = "localhost",
) -> Outside:
    """How the request of *peer* (an address; None for a unix socket) looked from outside.

    *headers* gives all lines of one header, as Twisted's ``getRawHeaders`` does; *default_host*, address and port
    that the request came to, replaces a missing Host (HTTP/1.0). Raises `Problem` 400 for hosts and prefixes
    that are not valid in a URL.
    """
    host = validated_host(_text(lines[-1])) if (lines := headers(b"Host")) else default_host
    seen = Outside("https" if secure else "http", _with_port(host, default_host), "", peer or "")
    if not trusted or not is_trusted(peer, trusted):
        return seen
    hops = _x_forwarded(headers) or _forwarded(headers)
    first = _first_trusted(hops, trusted)
    if first is None:
        return seen
    proto = first.get("proto", "").lower()
    return Outside(
        scheme=proto if proto in ("http", "https") else seen.scheme,
        host=validated_host(first["host"]) if first.get("host") else host,
        prefix=_validated_prefix(first.get("prefix", "")),
        client=_address_text(first.get("for", "")) or seen.client,
    )


def validated_host(text: str) -> str:
    """*text* if it is a host, perhaps with a port (RFC 3986 section 3.2.2), else `Problem` 400 (RFC 9112 section 3.2)."""
    match = _HOST.fullmatch(text)
    if match is None or int(match[2] or 0) > 65535 or (text.startswith("[") and _address(match[1]) is None):
        raise Problem(400, f"{shown(text)} is not a valid host")
    return text


def _with_port(host: str, came_to: str) -> str:
    """*host*, with the port of *came_to* where it is that very address and no port goes with it.

    dicomweb-client (Python) never sends the port that RFC 9110 section 7.2 wants, and finds nothing at the URLs
    that it gets then. With a name this is left alone: port 80 may well be mapped to another one.
    """
    own, _, port = came_to.rpartition(":")
    address, match = _address(own), _HOST.fullmatch(host)
    if address is None or match is None or match[2] or port in ("80", "443"):
        return host
    same = address.is_loopback if host.lower() == "localhost" else address == _address(host)
    return f"{host}:{port}" if same else host


def _validated_prefix(text: str) -> str:
    if len(text) > MAX_PREFIX or not _PREFIX.fullmatch(text):
        raise Problem(400, f"{shown(text)} is not a valid path prefix")
    return text.rstrip("/")


Hop = dict[str, str]


def _first_trusted(hops: Sequence[Hop], trusted: Sequence[Network]) -> Hop | None:
    """The hop that the outermost trusted proxy wrote: leftwards while the address in "for" is trusted itself."""
    chosen = None
    for hop in reversed(hops):
        chosen = hop
        if not is_trusted(_address_text(hop.get("for", "")), trusted):
            break
    return chosen


def _x_forwarded(headers: HeaderLookup) -> list[Hop]:
    """The hops of X-Forwarded-For, -Proto, -Host, -Prefix. Lists of another length than that of -For, which
    have one value as a rule, count by their last value for every hop."""
    fields = {name: _listed(headers(b"X-Forwarded-" + name.encode())) for name in ("for", "proto", "host", "prefix")}
    count = len(fields["for"]) or int(any(fields.values()))
    return [
        {name: values[index if len(values) == count else -1] for name, values in fields.items() if values}
        for index in range(count)
    ]


def _listed(lines: Sequence[bytes] | None) -> list[str]:
    return [value.strip() for value in _joined(lines).split(",") if value.strip()][-MAX_HOPS:]


def _forwarded(headers: HeaderLookup) -> list[Hop]:
    """The hops of Forwarded (RFC 7239 section 4)."""
    elements = _ELEMENT.findall(_joined(headers(b"Forwarded")))[-MAX_HOPS:]
    return [{name.lower(): _unquoted(value) for name, value in _PAIR.findall(element)} for element in elements]


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def _address_text(node: str) -> str:
    """The address of a node identifier (RFC 7239 section 6) without brackets and port; "" if it is none."""
    address = _address(node)
    return "" if address is None else str(address)


def _address(node: str) -> Address | None:
    """Read ``192.0.2.1``, ``192.0.2.1:80``, ``2001:db8::1``, ``[2001:db8::1]:80``; None for "unknown" and names."""
    if node.startswith("["):
        node = node[1:].partition("]")[0]
    elif node.count(":") == 1:
        node = node.partition(":")[0]
    try:
        address = ipaddress.ip_address(node)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def is_trusted(peer: str | None, trusted: Iterable[Network]) -> bool:
    """A peer on a unix socket is on this host: trusted where loopback is."""
    address = _LOOPBACK if peer is None else _address(peer)
    return address is not None and any(address in network for network in trusted)


def _joined(lines: Sequence[bytes] | None) -> str:
    text = b",".join(lines or ())
    return _text(text) if len(text) <= MAX_LENGTH else ""


def _text(value: bytes) -> str:
    return value.decode("latin-1").strip()
