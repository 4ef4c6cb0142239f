"""Sizes in bytes as text: ``1048576``, ``64k``, ``256M``, ``1.5G``. k, M, G and T are powers of 1024."""

from __future__ import annotations

import re

_UNITS = {"t": 1 << 40, "g": 1 << 30, "m": 1 << 20, "k": 1 << 10, "": 1}
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]+)?) ?([kmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)


def read_size(text: str) -> int:
    """The bytes that *text* means. Raises ValueError where it is no size."""
    if (match := _SIZE.fullmatch(text)) is None:
        raise ValueError("not a size")
    count, unit = match.groups()
    return int(float(count) * _UNITS[unit.lower()])


def show_size(value: int) -> str:
    """The shortest text of *value* bytes that `read_size` reads back."""
    unit = next(unit for unit, factor in _UNITS.items() if (value and value % factor == 0) or not unit)
    return f"{value // _UNITS[unit]}{unit if unit == 'k' else unit.upper()}"
