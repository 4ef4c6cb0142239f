"""A JPEG decoder that computes exactly what ITU-T T.81 defines, slowly: what other decoders round in their own ways.

Sequential, Huffman coded, one scan, no subsampling, no restarts: what frames of wsidicom-data are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy

Plane = numpy.ndarray[Any, numpy.dtype[numpy.float64]]
Codes = dict[tuple[int, int], int]
"""Huffman codes: (length, code) to value."""

_STEPS = numpy.arange(8)
_COSINES = numpy.cos((2 * _STEPS[:, None] + 1) * _STEPS * numpy.pi / 16) * numpy.where(_STEPS == 0, 0.5**0.5, 1) / 2
_ZIGZAG = sorted(range(64), key=lambda at: (sum(divmod(at, 8)), at % 8 if sum(divmod(at, 8)) % 2 == 0 else at // 8))


def exact_planes(data: bytes) -> list[Plane]:
    """The values of each component before they are rounded: (rows, columns), from 0 to the largest that there is."""
    quantization: dict[int, Plane] = {}
    codes: dict[int, Codes] = {}
    place = 2
    while True:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        segment = data[place + 4 : place + 2 + length]
        place += 2 + length
        if marker == 0xDB:
            quantization.update(_quantization(segment))
        elif marker == 0xC4:
            codes.update(_codes(segment))
        elif marker in (0xC0, 0xC1):
            precision, rows, columns, count = struct.unpack_from(">BHHB", segment)
            tables = [segment[8 + 3 * at] for at in range(count)]
            assert all(segment[7 + 3 * at] == 0x11 for at in range(count)), "subsampled"
        elif marker == 0xDA:
            used = [segment[2 + 2 * at] for at in range(segment[0])]
            break
        assert marker != 0xDD, "restarts"
    bits = _Bits(data[place : data.rindex(b"\xff\xd9")].replace(b"\xff\0", b"\xff"))
    down, across = -(-rows // 8), -(-columns // 8)
    planes = [numpy.zeros((down * 8, across * 8)) for _ in tables]
    last = [0] * count
    for block in range(down * across):
        top, left = (8 * at for at in divmod(block, across))
        for at, table in enumerate(tables):
            direct, alternating = codes[used[at] >> 4], codes[0x10 | used[at] & 15]
            last[at] += bits.signed(bits.code(direct))
            coefficients = numpy.zeros(64)
            coefficients[_ZIGZAG] = [last[at], *_alternating(bits, alternating)] * quantization[table]
            values = _COSINES @ coefficients.reshape(8, 8) @ _COSINES.T
            planes[at][top : top + 8, left : left + 8] = values + (1 << (precision - 1))
    return [numpy.clip(plane[:rows, :columns], 0, (1 << precision) - 1) for plane in planes]


def _quantization(segment: bytes) -> Iterator[tuple[int, Plane]]:
    while segment:
        size = 128 if segment[0] >> 4 else 64
        yield segment[0] & 15, numpy.frombuffer(segment[1 : 1 + size], ">u2" if size == 128 else "u1").astype(float)
        segment = segment[1 + size :]


def _codes(segment: bytes) -> Iterator[tuple[int, Codes]]:
    while segment:
        values = iter(segment[17:])
        code, found = 0, {}
        for length, count in enumerate(segment[1:17], start=1):
            for _ in range(count):
                found[length, code] = next(values)
                code += 1
            code *= 2
        yield segment[0], found
        segment = segment[17 + len(found) :]


def _alternating(bits: _Bits, codes: Codes) -> list[int]:
    """The 63 coefficients after the first, in zigzag order (T.81 F.2.2.2)."""
    found: list[int] = []
    while len(found) < 63:
        zeros, size = divmod(bits.code(codes), 16)
        if not size and zeros < 15:
            break
        found += [0] * zeros + [bits.signed(size)]
    return found + [0] * (63 - len(found))


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._text = f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}"
        self._at = 0

    def code(self, codes: Codes) -> int:
        code = 0
        for length in range(1, 17):
            code = code * 2 + int(self._text[self._at])
            self._at += 1
            if (length, code) in codes:
                return codes[length, code]
        raise ValueError("no such code")

    def signed(self, size: int) -> int:
        """T.81 F.2.2.1, EXTEND."""
        if not size:
            return 0
        value = int(self._text[self._at : self._at + size], 2)
        self._at += size
        return value if value >> (size - 1) else value - (1 << size) + 1
