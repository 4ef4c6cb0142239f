"""The kinds of value that options take: text in, value out, and back into the text that help shows.

A parser raises `Rejected` (or any other ValueError, whose text is then not shown) for what it does not
accept. What is accepted is said once, in the kind, for help and for errors alike.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from typing import Generic, TypeVar

import attrs

from twistedproxy.settings import GIB, KIB, MIB, Network

T = TypeVar("T")

MAX_SECONDS = 366 * 24 * 3600.0
MAX_BYTES = 1 << 50
MAX_COUNT = 1_000_000_000

_UNITS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": 1024 * GIB}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?", re.ASCII)
# RFC 9110 section 5.6.2: the token that a field name or a cookie name is.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)


class Rejected(ValueError):
    """A value that is not accepted; `str()` says why, without the value itself."""


class Explained(ValueError):
    """A value that is not accepted; `str()` says what came, without secrets, and what is accepted."""


@attrs.frozen
class Kind(Generic[T]):
    """One kind of value. *unit* stands in help beside the default, *accepted* in errors."""

    parse: Callable[[str], T]
    accepted: str
    unit: str = ""
    show: Callable[[T], str] = str


def size(least: int = 0) -> Kind[int]:
    """Bytes: ``1048576``, ``64k``, ``256M``, ``1.5G``; k, M, G and T are powers of 1024."""

    def parse(text: str) -> int:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise Rejected
        return _within(int(float(match[1]) * _UNITS[match[2].lower()]), least, MAX_BYTES)

    return Kind(
        parse, f"bytes from {show_size(least)}, such as 256M or 1.5G (k, M, G: powers of 1024)", "bytes", show_size
    )


def show_size(value: int) -> str:
    """The shortest text of *value* bytes that `size` reads back."""
    for letter in "tgmk":
        if value and value % _UNITS[letter] == 0:
            return f"{value // _UNITS[letter]}{letter.upper() if letter != 'k' else letter}"
    return str(value)


def seconds(least: float = 0.0, most: float = MAX_SECONDS, unit: str = "seconds") -> Kind[float]:
    """Seconds, decimals allowed."""

    def parse(text: str) -> float:
        return _within(_number(text), least, most)

    upper = f" to {most:g}" if most != MAX_SECONDS else ""
    return Kind(parse, f"seconds from {least:g}{upper}", unit, _show_number)


def seconds_or_forever(least: float) -> Kind[float | None]:
    """Seconds; any number below 0 means without end, which is None."""

    def parse(text: str) -> float | None:
        value = _number(text)
        return None if value < 0 else _within(value, least, MAX_SECONDS)

    return Kind(
        parse,
        f"seconds from {least:g}, or below 0 for no expiry",
        "seconds",
        lambda value: "-1" if value is None else _show_number(value),
    )


def whole(least: int, most: int = MAX_COUNT, unit: str = "") -> Kind[int]:
    """A whole number."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII):
            raise Rejected
        return _within(int(text), least, most)

    upper = f" to {most}" if most != MAX_COUNT else ""
    return Kind(parse, f"a whole number from {least}{upper}", unit)


def number(least: float, most: float, unit: str) -> Kind[float]:
    """A number, decimals allowed."""
    return Kind(
        lambda text: _within(_number(text), least, most), f"a number from {least:g} to {most:g}", unit, _show_number
    )


def switch() -> Kind[bool]:
    """``on`` or ``off``."""
    return Kind(
        lambda text: _of(text.lower(), {"on": True, "off": False}), "on or off", "", lambda v: "on" if v else "off"
    )


def choice(*names: str) -> Kind[str]:
    """One of *names*."""
    return Kind(lambda text: _of(text, {name: name for name in names}), " or ".join(names))


def network() -> Kind[Network]:
    """An IP network, or one address."""

    def parse(text: str) -> Network:
        try:
            return ipaddress.ip_network(text)
        except ValueError as error:
            if "host bits" in str(error):
                raise Rejected(f"perhaps {ipaddress.ip_network(text, strict=False)}") from None
            raise

    return Kind(parse, "an IP network such as 10.0.0.0/8 or fd00::/8, or one address")


def token(what: str, refused: Callable[[str], str] = lambda name: "") -> Kind[str]:
    """A name of RFC 9110's token characters; *refused* gives the reason against one, if there is any."""

    def parse(text: str) -> str:
        if not _TOKEN.fullmatch(text):
            raise Rejected
        if reason := refused(text):
            raise Rejected(reason)
        return text

    return Kind(parse, what)


def _number(text: str) -> float:
    """A plain decimal number: no inf, nan, exponents or underscores."""
    if not _NUMBER.fullmatch(text):
        raise Rejected
    value = float(text)
    if not math.isfinite(value):
        raise Rejected
    return value


N = TypeVar("N", int, float)


def _within(value: N, least: N, most: N) -> N:
    if value < least:
        raise Rejected("too small")
    if value > most:
        raise Rejected("too large")
    return value


def _of(text: str, values: dict[str, T]) -> T:
    if text not in values:
        raise Rejected
    return values[text]


def _show_number(value: float) -> str:
    return f"{value:.10g}"
