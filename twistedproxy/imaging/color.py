"""ICC profiles of the color spaces that pictures can be asked for in, written from their published numbers.

Rules that this file keeps:

- Nothing is copied from anybody's profile: primaries, white points and curves are those of the standards named below,
  and the profile around them is made here (ICC.1:2010, version 4.3: matrix and parametric curves).
- The same name gives the same bytes, always: they are part of cached pictures.

From one color space to another, by LittleCMS.

Rules that this file keeps:

- An instance without a profile is taken for sRGB, as browsers take what has none.
- The rendering intent is the source profile's own (ICC.1 section 7.2.15), as in pydicom.
- Transforms are kept: to make one costs as much as to convert many frames. LittleCMS lets several threads use one.
"""

from __future__ import annotations

import functools
import io
import struct
from typing import Any

import attrs
import numpy
from PIL import Image, ImageCms

from twistedproxy.imaging.errors import BadProfile

XY = tuple[float, float]

_D65: XY = (0.3127, 0.3290)
_D50: XY = (0.3457, 0.3585)
_PCS_WHITE = numpy.array([0.9642, 1.0, 0.8249])  # ICC.1 section 7.2.16
# Linearised Bradford: ICC.1 annex E
_BRADFORD = numpy.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


@attrs.frozen
class Curve:
    """ICC.1 section 10.16, functions 0 and 3: (*a* x + *b*) ** *gamma* from *start* on, *slope* x before it."""

    gamma: float
    a: float = 1.0
    b: float = 0.0
    slope: float = 0.0
    start: float = 0.0

    def tag(self) -> bytes:
        """The curve as a parametricCurveType."""
        if not self.slope:
            return b"para" + struct.pack(">IHHI", 0, 0, 0, _fixed(self.gamma))
        numbers = (self.gamma, self.a, self.b, self.slope, self.start)
        return b"para" + struct.pack(">IHH5I", 0, 3, 0, *map(_fixed, numbers))


@attrs.frozen
class Space:
    """Chromaticities (x, y) of the three primaries and of white, and the curve from stored to linear values."""

    description: str
    red: XY
    green: XY
    blue: XY
    white: XY
    curve: Curve


_SRGB_CURVE = Curve(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)

SPACES = {
    # IEC 61966-2-1
    "srgb": Space("sRGB", (0.64, 0.33), (0.30, 0.60), (0.15, 0.06), _D65, _SRGB_CURVE),
    # SMPTE EG 432-1's primaries with D65 and sRGB's curve
    "displayp3": Space("Display P3", (0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65, _SRGB_CURVE),
    # Adobe RGB (1998) Color Image Encoding, 2005-05: gamma 2 51/256
    "adobergb": Space(
        "Compatible with Adobe RGB (1998)", (0.64, 0.33), (0.21, 0.71), (0.15, 0.06), _D65, Curve(2 + 51 / 256)
    ),
    # ISO 22028-2 (ROMM RGB, "ProPhoto")
    "rommrgb": Space(
        "ROMM RGB",
        (0.7347, 0.2653),
        (0.1596, 0.8404),
        (0.0366, 0.0001),
        _D50,
        Curve(1.8, 1.0, 0.0, 1 / 16, 16 * 16 ** (1.8 / (1 - 1.8))),
    ),
}


@functools.lru_cache(len(SPACES))
def profile_of(name: str) -> bytes:
    """The profile of a color space by its name in `SPACES`. Raises BadProfile for another one."""
    space = SPACES.get(name)
    if space is None:
        raise BadProfile(f"no color space is called {name}")
    adaptation = _adaptation(_xyz(space.white))
    colorants = adaptation @ _to_xyz(space)
    curve = space.curve.tag()
    return _profile(
        [
            (b"desc", _text(space.description)),
            (b"cprt", _text("No copyright, use freely")),
            (b"wtpt", _xyz_tag(_PCS_WHITE)),
            (b"chad", b"sf32\0\0\0\0" + b"".join(map(_signed, adaptation.flat))),
            (b"rXYZ", _xyz_tag(colorants[:, 0])),
            (b"gXYZ", _xyz_tag(colorants[:, 1])),
            (b"bXYZ", _xyz_tag(colorants[:, 2])),
            (b"rTRC", curve),
            (b"gTRC", curve),
            (b"bTRC", curve),
        ]
    )


def _xyz(xy: XY) -> numpy.ndarray:
    x, y = xy
    return numpy.array([x / y, 1.0, (1 - x - y) / y])


def _to_xyz(space: Space) -> numpy.ndarray:
    """Linear RGB to XYZ under the space's own white (SMPTE RP 177)."""
    primaries = numpy.stack([_xyz(space.red), _xyz(space.green), _xyz(space.blue)], axis=1)
    return primaries * numpy.linalg.solve(primaries, _xyz(space.white))


def _adaptation(white: numpy.ndarray) -> numpy.ndarray:
    """XYZ under *white* to the profile connection space's D50."""
    gains = (_BRADFORD @ _PCS_WHITE) / (_BRADFORD @ white)
    return numpy.linalg.inv(_BRADFORD) @ (gains[:, None] * _BRADFORD)


def _profile(tags: list[tuple[bytes, bytes]]) -> bytes:
    """Header (ICC.1 section 7.2), tag table and tags; equal tags share their place."""
    table, body, places = b"", b"", dict[bytes, int]()
    start = 128 + 4 + 12 * len(tags)
    for signature, data in tags:
        if data not in places:
            places[data] = start + len(body)
            body += data + b"\0" * (-len(data) % 4)
        table += struct.pack(">4sII", signature, places[data], len(data))
    header = struct.pack(
        ">I4xI4s4s4s6H4s24xIIII48x",
        start + len(body),
        0x04300000,
        b"mntr",
        b"RGB ",
        b"XYZ ",
        *(2025, 1, 1, 0, 0, 0),  # the date says nothing, and must not change
        b"acsp",
        0,  # perceptual
        *(_fixed(value) for value in _PCS_WHITE),
    )
    return header + struct.pack(">I", len(tags)) + table + body


def _text(text: str) -> bytes:
    """A multiLocalizedUnicodeType of one record."""
    encoded = text.encode("utf-16-be")
    return b"mluc" + struct.pack(">III2s2sII", 0, 1, 12, b"en", b"US", len(encoded), 28) + encoded


def _xyz_tag(values: numpy.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_signed, values))


def _fixed(value: float) -> int:
    return round(value * 65536)


def _signed(value: float) -> bytes:
    return struct.pack(">i", _fixed(value))


Pixels = numpy.ndarray[Any, numpy.dtype[Any]]

TARGETS = tuple(SPACES)
MAX_TRANSFORMS = 16  # a scanner has one profile: source and target pairs in use at a time
MAX_PROFILE = 16 << 20  # bytes; scanners' have up to 1 MB


def convert_colors(array: Pixels, profile: bytes, target: str, own: bytes = b"") -> tuple[Pixels, bytes]:
    """(rows, columns, 3) of 8-bit RGB in another color space, and that space's profile.

    *profile* is the source's, b"" for none. *target* is one of `TARGETS`; *own*, if not b"", is a profile that goes
    before the one that is made here. Raises BadProfile.
    """
    goal = own or profile_of(target)
    source = profile or profile_of("srgb")
    if source == goal:
        return array, goal
    picture = Image.fromarray(numpy.ascontiguousarray(array))
    ImageCms.applyTransform(picture, _transform(source, goal), inPlace=True)
    return numpy.asarray(picture), goal


def check_target(profile: bytes) -> None:
    """Raise BadProfile for a profile that pictures cannot be converted to."""
    _transform(profile_of("srgb"), profile)


@functools.lru_cache(MAX_TRANSFORMS)
def _transform(source: bytes, goal: bytes) -> ImageCms.ImageCmsTransform:
    start, end = _read(source), _read(goal)
    try:
        intent = ImageCms.Intent(ImageCms.getDefaultIntent(start))
        return ImageCms.buildTransform(start, end, "RGB", "RGB", intent)
    except (ImageCms.PyCMSError, ValueError) as error:
        raise BadProfile(f"the ICC profile cannot be used: {error}") from error


def _read(data: bytes) -> ImageCms.ImageCmsProfile:
    if len(data) > MAX_PROFILE:
        raise BadProfile(f"an ICC profile of {len(data)} bytes")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    except (OSError, ImageCms.PyCMSError) as error:
        raise BadProfile("the ICC profile cannot be read") from error
    if profile.profile.xcolor_space.strip() != "RGB":
        raise BadProfile(f"an ICC profile of {profile.profile.xcolor_space.strip()} values, not of RGB")
    return profile
