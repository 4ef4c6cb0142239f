"""The kinds of value that options take: text in, value out, and back into the text that help shows.

Rules:
- a parser raises `Rejected`, with or without a reason, for what it does not accept;
- what is accepted is written in the kind alone, for help and errors alike.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, Union

import attrs
from twisted.python.usage import UsageError

from twistedproxy.options.sizes import read_size, show_size

T = TypeVar("T")
N = TypeVar("N", int, float)
Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

MAX_SECONDS = 366 * 24 * 3600.0
MAX_BYTES = 1 << 50
MAX_COUNT = 1_000_000_000

_WHOLE = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?", re.ASCII)  # no inf, nan, exponents or underscores
# RFC 9110 section 5.6.2: the token that a field name or a cookie name is.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_PARAMETER = re.compile(r"[0-9A-Za-z._-]+", re.ASCII)  # what means only itself in a query

# Names that a caller's identity cannot hang on: they belong to one hop or one request (RFC 9110 section 7.6.1).
_NO_CREDENTIALS = frozenset(
    "accept accept-encoding connection content-encoding content-length content-type cookie expect forwarded host "
    "if-match if-modified-since if-none-match if-range if-unmodified-since keep-alive proxy-authenticate "
    "proxy-authorization proxy-connection range set-cookie te trailer transfer-encoding upgrade via".split()
)


class Rejected(UsageError):
    """A value that is not accepted; `str()` is the reason, without the value itself, or empty."""


def reject_if(wrong: object, reason: str = "") -> None:
    """Raise `Rejected` with *reason* if *wrong* is true."""
    if wrong:
        raise Rejected(reason)


@attrs.frozen
class ValueKind:
    """One kind of value. *accepted*: for errors; *placeholder*, *unit*: for help; *show*: the text that `parse` reads back."""

    parse: Callable[[str], Any]
    accepted: str
    placeholder: str
    unit: str = ""
    show: Callable[[Any], str] = str


def setting(kind: ValueKind, default: T, help: str, shown: str = "", group: str = "") -> T:
    """A field of a settings class that is also an option: a repeatable one if *default* is a tuple.

    *help*: what it does; the unit of *kind* is added behind its first clause. *shown*: replaces a default that cannot be
    typed. *group*: the heading of the group that this option begins.
    """
    field: T = attrs.field(default=default, metadata={"kind": kind, "help": help, "shown": shown, "group": group})
    return field


def _matched(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    if (match := pattern.fullmatch(text)) is None:
        raise Rejected
    return match


def _between(read: Callable[[str], N], least: float, most: float) -> Callable[[str], N]:
    def parse(text: str) -> N:
        value = read(text)
        reject_if(value < least, "too small")
        reject_if(value > most, "too large")
        return value

    return parse


def _bytes(text: str) -> int:
    try:
        return read_size(text)
    except ValueError:
        raise Rejected from None


def _integer(text: str) -> int:
    return int(_matched(_WHOLE, text)[0])


def _decimal(text: str) -> float:
    return float(_matched(_NUMBER, text)[0])


_show_number = "{:.10g}".format


def size(least: int = 0) -> ValueKind:
    """Bytes: ``1048576``, ``64k``, ``256M``, ``1.5G``; k, M, G and T are powers of 1024."""
    return ValueKind(
        _between(_bytes, least, MAX_BYTES),
        f"a size from {show_size(least)}, such as 256M or 1.5G (k, M, G, T: powers of 1024)",
        "SIZE",
        "bytes",
        show_size,
    )


def seconds(least: float, most: float = MAX_SECONDS) -> ValueKind:
    """Seconds, decimals allowed."""
    accepted = f"seconds from {least:g}" + f" to {most:g}" * (most != MAX_SECONDS)
    return ValueKind(_between(_decimal, least, most), accepted, "S", "seconds", _show_number)


def seconds_or_forever(least: float) -> ValueKind:
    """Seconds; any number below 0 means no end, which is None."""
    return attrs.evolve(
        finite := seconds(least),
        parse=lambda text: None if _decimal(text) < 0 else finite.parse(text),
        accepted=f"{finite.accepted}, or below 0 for no expiry",
        show=lambda value: "-1" if value is None else _show_number(value),
    )


def whole(least: int, most: int = MAX_COUNT, unit: str = "") -> ValueKind:
    """A whole number."""
    accepted = f"a whole number from {least}" + f" to {most}" * (most != MAX_COUNT)
    return ValueKind(_between(_integer, least, most), accepted, "S" if unit == "seconds" else "N", unit)


def choice(values: Mapping[str, T]) -> ValueKind:
    """One of the names in *values*."""

    def parse(text: str) -> T:
        reject_if(text.lower() not in values)
        return values[text.lower()]

    names = {value: name for name, value in values.items()}
    return ValueKind(parse, " or ".join(values), "|".join(values), show=names.__getitem__)


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        hint = f"did you mean {ipaddress.ip_network(text, strict=False)}?" if "host bits" in str(error) else ""
        raise Rejected(hint) from None


def token(owner: str, pattern: re.Pattern[str] = _TOKEN, refused: Collection[str] = (), reason: str = "") -> ValueKind:
    """The name of an *owner*, of the characters of *pattern*, but for those *refused*, for *reason*."""

    def parse(text: str) -> str:
        reject_if(text.lower() in refused, reason)
        return _matched(pattern, text)[0]

    return ValueKind(parse, f"the name of a {owner}", "NAME")


TIMEOUT = seconds(0.001)
PERCENT = ValueKind(_between(_decimal, 0, 100), "a number from 0 to 100", "PERCENT", "percent", _show_number)
SHARE = ValueKind(_between(_decimal, 0, 1), "a number from 0 to 1", "SHARE", "0 to 1", _show_number)
SWITCH = choice({"on": True, "off": False})
NETWORK = ValueKind(_network, "an IP network such as 10.0.0.0/8 or fd00::/8, or one address", "NETWORK")
HEADER = token(
    "request header", _TOKEN, _NO_CREDENTIALS, "it does not identify a caller; for cookies use --credential-cookie"
)
PARAMETER = token(
    "query parameter", _PARAMETER, ("accept", "limit", "offset", "viewport"), "it selects what is requested"
)
