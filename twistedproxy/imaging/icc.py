"""RGB from one color space to another, by LittleCMS (Pillow's ImageCms).

Rules:

- An instance without a profile is taken for sRGB, as browsers take what has none.
- The rendering intent is the source profile's own (ICC.1 section 7.2.15), as in pydicom.
- Transforms are kept: to make one costs as much as to convert many frames. LittleCMS lets several threads use one.
- The profiles in ``profiles/`` are written for this package: matrix and parametric curves (ICC.1:2010, version 4.3) with the published
  numbers of IEC 61966-2-1 (sRGB), SMPTE EG 432-1 (Display P3), Adobe RGB (1998) and ISO 22028-2 (ROMM RGB). They are part
  of cached pictures: a change of their bytes needs a new `VERSION` of pictures.
"""

from __future__ import annotations

import functools
import io
from importlib.resources import files
from typing import Any

import numpy
from PIL import Image, ImageCms

from twistedproxy.imaging.errors import BadProfile
from twistedproxy.imaging.parameters import MAX_PROFILE, TARGETS

Pixels = numpy.ndarray[Any, numpy.dtype[Any]]

MAX_TRANSFORMS = 16  # a scanner has one profile: source and target pairs in use at a time


@functools.lru_cache(len(TARGETS))
def profile_of(name: str) -> bytes:
    """The profile of a color space, one of `TARGETS`. Raises BadProfile for another name."""
    if name not in TARGETS:
        raise BadProfile(f"no color space is called {name}")
    return files("twistedproxy.imaging").joinpath("profiles", f"{name}.icc").read_bytes()


def convert_colors(array: Pixels, profile: bytes, target: str, own: bytes = b"") -> tuple[Pixels, bytes]:
    """(rows, columns, 3) of 8-bit RGB in another color space, and that space's profile.

    *profile* is the source's, b"" for none. *target* is one of `TARGETS`; *own*, if not b"", is a profile that goes
    before the one of that name. Raises BadProfile.
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
