"""Frames of every codec, and ways to damage them: each a pure function of a seed."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable

import imagecodecs
import numpy

from twistedproxy.dicom import transfer_syntaxes as syntaxes
from twistedproxy.imaging.pixel_description import PixelFacts

SIDE = 64  # pixels: small, so that thousands are tried

Codec = tuple[bytes, str, PixelFacts]


def _picture() -> numpy.ndarray:
    ramp = numpy.add.outer(numpy.arange(SIDE), numpy.arange(SIDE))
    noise = numpy.random.default_rng(3).integers(0, 60, (SIDE, SIDE, 3))
    return ((ramp[:, :, None] + noise) % 256).astype(numpy.uint8)


def _rle(picture: numpy.ndarray) -> bytes:
    segments = [imagecodecs.packbits_encode(picture[:, :, band].tobytes()) for band in range(3)]
    segments = [bytes(segment) + b"\0" * (len(segment) % 2) for segment in segments]
    offsets = [64 + sum(map(len, segments[:band])) for band in range(3)]
    return struct.pack("<16I", 3, *offsets, *[0] * 12) + b"".join(segments)


def _deflated(picture: numpy.ndarray) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(picture.tobytes()) + packer.flush()


def codecs() -> dict[str, Codec]:
    """By name: a whole frame, its transfer syntax and its instance's facts."""
    picture = _picture()
    deep = picture[:, :, 0].astype(numpy.uint16) * 16
    rgb = PixelFacts(SIDE, SIDE, 3, photometric_interpretation="RGB")
    ybr = PixelFacts(SIDE, SIDE, 3, photometric_interpretation="YBR_FULL_422")
    gray = PixelFacts(SIDE, SIDE, bits_allocated=16, bits_stored=12, high_bit=11)
    encode = imagecodecs
    return {
        "jpeg": (encode.jpeg8_encode(picture, 80, subsampling="420"), syntaxes.JPEG_BASELINE, ybr),
        "jpeg-12": (encode.jpeg8_encode(deep, 80, bitspersample=12), syntaxes.JPEG_EXTENDED, gray),
        "jpeg-lossless": (encode.jpeg8_encode(picture, lossless=True, predictor=1), syntaxes.JPEG_LOSSLESS_SV1, rgb),
        "jpeg-ls": (encode.jpegls_encode(picture), syntaxes.JPEG_LS_LOSSLESS, rgb),
        "jpeg-ls-16": (encode.jpegls_encode(deep), syntaxes.JPEG_LS_LOSSLESS, gray),
        "jpeg2000": (encode.jpeg2k_encode(picture, reversible=True, codecformat="j2k"), syntaxes.JPEG_2000, rgb),
        "jpeg2000-16": (encode.jpeg2k_encode(deep, reversible=True), syntaxes.JPEG_2000_LOSSLESS, gray),
        "htj2k": (encode.htj2k_encode(picture), syntaxes.HTJ2K_LOSSLESS, rgb),
        "jpegxl": (encode.jpegxl_encode(picture, distance=1.0), syntaxes.JPEG_XL, rgb),
        "jpegxl-lossless": (encode.jpegxl_encode(picture, lossless=True), syntaxes.JPEG_XL_LOSSLESS, rgb),
        "jpegxl-jpeg": (
            encode.jpegxl_encode_jpeg(encode.jpeg8_encode(picture, 80)),
            syntaxes.JPEG_XL_RECOMPRESSION,
            rgb,
        ),
        "rle": (_rle(picture), syntaxes.RLE_LOSSLESS, rgb),
        "deflated": (_deflated(picture), syntaxes.DEFLATED_IMAGE_FRAME, rgb),
        "native": (picture.tobytes(), syntaxes.EXPLICIT_VR_LITTLE_ENDIAN, rgb),
    }


def damaged(data: bytes, seed: int) -> bytes:
    """*data* with one to three damages that the seed chooses. The first bytes, where sizes stand, get every third."""
    chance = random.Random(seed)
    result = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        if len(result) > 8:
            chance.choice(_DAMAGES)(result, chance)
    return bytes(result)


def _place(data: bytearray, chance: random.Random) -> int:
    end = min(len(data), 160) if chance.random() < 0.34 else len(data)
    return chance.randrange(end)


def _flip(data: bytearray, chance: random.Random) -> None:
    data[_place(data, chance)] ^= 1 << chance.randrange(8)


def _overwrite(data: bytearray, chance: random.Random) -> None:
    place = _place(data, chance)
    data[place : place + 4] = chance.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", chance.randbytes(4)))


def _truncate(data: bytearray, chance: random.Random) -> None:
    tail = bytes(data[-2:]) if chance.random() < 0.7 else b""  # with the end marker the codec gets to see it
    del data[max(4, _place(data, chance)) :]
    data += tail


def _cut_out(data: bytearray, chance: random.Random) -> None:
    place = _place(data, chance)
    del data[place : place + chance.randint(1, 200)]


def _repeat(data: bytearray, chance: random.Random) -> None:
    place = _place(data, chance)
    data[place:place] = data[place : place + chance.randint(1, 400)]


def _noise(data: bytearray, chance: random.Random) -> None:
    place = _place(data, chance)
    data[place : place + 32] = chance.randbytes(min(32, len(data) - place))


_DAMAGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip,
    _flip,
    _overwrite,
    _truncate,
    _cut_out,
    _repeat,
    _noise,
)
