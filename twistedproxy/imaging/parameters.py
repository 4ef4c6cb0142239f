"""What a query asks of pictures (DICOM PS3.18 section 8.3.5, and extensions), as one normalised value. Pure.

Rules:
- a value that is not accepted is `BadParameter`, which names what came and what is accepted;
- a parameter that is not known is ignored, as PS3.18 has it (section 8.3.5.1: not all need be supported; Supplement 174
  decided that unknown ones make no error), and a known one that comes twice is refused: one of them would be ignored;
- two requests for the same picture have equal values: defaults are filled in, and what makes no difference is dropped
  (``quality`` of a lossless type, ``interpolation`` where nothing is resized);
- ``charset``, ``accept`` and ``disable_caching`` do not concern the pixels and are no part of the value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Optional, TypeVar
from urllib.parse import unquote_plus

import attrs

from twistedproxy.dicom.resource import shown

T = TypeVar("T")

INTERPOLATIONS = ("area", "nearest", "linear", "cubic", "lanczos4")
NO_TARGETS = ("no", "yes")
"""Values of ``iccprofile`` that name no color space to convert to."""
TARGETS = ("srgb", "displayp3", "adobergb", "rommrgb")
PROFILES = (*NO_TARGETS, *TARGETS)
MAX_PROFILE = 16 << 20
"""Bytes of an ICC profile; scanners' have up to 1 MB, those of displays with tables some 3 MB."""
WINDOW_FUNCTIONS = ("linear", "linear-exact", "sigmoid")
ANNOTATIONS = frozenset(("patient", "technique"))
"""The keywords of PS3.18 section 8.3.5.1.1. None is drawn: the answer has a Warning, as that section asks."""

DEFAULT_QUALITY = 95
MAX_DOWNSAMPLE = 1e6
"""Larger than any total pixel matrix: one pixel is left of all of them."""
MAX_VIEWPORT = 1 << 16
"""Pixels along a side: what JPEG can hold (ITU-T T.81 B.2.2). The pixels in all have a limit of their own."""
MAX_QUERY = 1 << 14

FRAMES = frozenset(("downsample", "interpolation", "quality", "iccprofile", "embed_iccprofile", "disable_caching"))
"""What the frames resource takes (extensions: PS3.18 has no query parameters there but ``accept``)."""
RENDERED = FRAMES | {"viewport", "window", "annotation"}
"""What rendered resources take."""
DESCRIBING = frozenset(("downsample",))
"""What metadata and searches for instances take (an extension)."""

_LOSSY = frozenset(("image/jpeg", "image/webp", "image/jxl", "image/jp2"))
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_MAX_NUMBER_LENGTH = 40
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class BadParameter(ValueError):
    """A parameter's value is not accepted; `str()` names it, what came, and what is accepted."""

    def __init__(self, name: str, came: str, accepted: str) -> None:
        super().__init__(f"{name}={shown(came)} is invalid: {accepted}")


@attrs.frozen
class Viewport:
    """Where a region of the picture is shown (PS3.18 section 8.3.5.1.3).

    *width*, *height*: of the viewport, in pixels. *x*, *y*: the region's top left corner. *region_width*,
    *region_height*: its size, below 0 to flip it; None: up to the picture's right or bottom edge. *enlarge*: whether a region
    that is smaller than the viewport is made larger; it always is where a caller asks for a viewport.
    """

    width: int
    height: int
    x: float = 0.0
    y: float = 0.0
    region_width: Optional[float] = None
    region_height: Optional[float] = None
    enlarge: bool = True


@attrs.frozen
class Window:
    """A VOI window (PS3.3 section C.11.2.1.2). *function*: one of `WINDOW_FUNCTIONS`."""

    center: float
    width: float
    function: str = "linear"


@attrs.frozen
class Rendering:
    """How a picture is to be made.

    *profile*: the color space to convert to, "yes" for the source's own, "no" for no conversion. *embed*: whether the
    profile goes into the picture. *media_type*: set by `to`, once it is negotiated. *stored_values*: whether it is a frame,
    whose gray values are for the client to window, and no rendered picture.
    """

    downsample: float = 1.0
    interpolation: str = "area"
    viewport: Optional[Viewport] = None
    window: Optional[Window] = None
    quality: int = DEFAULT_QUALITY
    profile: str = "no"
    embed: bool = False
    media_type: str = ""
    stored_values: bool = False

    def to(self, media_type: str) -> Rendering:
        """The same picture as *media_type*, without what makes no difference there."""
        quality = self.quality if media_type in _LOSSY else DEFAULT_QUALITY
        resized = self.downsample > 1.0 or self.viewport is not None
        interpolation = self.interpolation if resized else "area"
        return attrs.evolve(self, media_type=media_type, quality=quality, interpolation=interpolation)

    @property
    def changes_nothing(self) -> bool:
        """Whether the stored picture is the one asked for. A quality alone asks for no new encoding of what is
        encoded already: each one loses something."""
        unasked = Rendering(media_type=self.media_type)
        return attrs.evolve(self, interpolation="area", quality=DEFAULT_QUALITY, stored_values=False) == unasked

    def key(self) -> bytes:
        """The same bytes for the same picture, other bytes for any other. Numbers in their shortest exact form."""
        return repr(attrs.astuple(self)).encode("ascii")


@attrs.frozen
class PictureQuery:
    """A query as it was read. *fresh*: it wants neither an older result nor its own to be kept.
    *annotations*: keywords that were asked for, and are not drawn. *given*: the known parameters that it held."""

    rendering: Rendering
    fresh: bool = False
    annotations: tuple[str, ...] = ()
    given: frozenset[str] = frozenset()


def parse_query(query: bytes, known: Collection[str] = RENDERED, profiles: Collection[str] = PROFILES) -> PictureQuery:
    """Read a raw query string; only *known* parameters count. *profiles*: what ``iccprofile`` may be.

    Raises `BadParameter`.
    """
    fields = _fields(query, known)

    def read(name: str, parse: Callable[[str], T], default: T, accepted: str) -> T:
        if name not in fields:
            return default
        try:
            return parse(fields[name])
        except (ValueError, LookupError):
            raise BadParameter(name, fields[name], f"expected {accepted}") from None

    def read_word(name: str, words: Collection[str], default: str) -> str:
        word = fields.get(name, default).lower()
        if word not in words:
            raise BadParameter(name, fields[name], f"expected one of {', '.join(words)}")
        return word

    def read_flag(name: str, default: bool) -> bool:
        return read(name, lambda text: _FLAGS[text.lower()], default, "true or false")

    profile = read_word("iccprofile", profiles, "no")
    embed = read_flag("embed_iccprofile", True)
    if profile == "no" or (profile == "yes" and not embed):
        profile, embed = "no", False
    rendering = Rendering(
        downsample=read("downsample", _downsample, 1.0, f"a number from 1.0 to {MAX_DOWNSAMPLE:.0f}"),
        interpolation=read_word("interpolation", INTERPOLATIONS, "area"),
        viewport=read(
            "viewport",
            _viewport,
            None,
            f"vw,vh[,sx,sy,sw,sh] with whole numbers from 1 to {MAX_VIEWPORT} for vw and vh, numbers for sx and sy, and numbers "
            "other than 0 for sw and sh",
        ),
        window=read(
            "window",
            _window,
            None,
            f"center,width[,function] with a function of {', '.join(WINDOW_FUNCTIONS)}; the width must be at least 1 for linear, "
            "and above 0 for others (PS3.3 section C.11.2.1.2)",
        ),
        quality=read("quality", lambda text: _whole(text, 100), DEFAULT_QUALITY, "a whole number from 1 to 100"),
        profile=profile,
        embed=embed,
    )
    fresh = read_flag("disable_caching", False)
    words = f"words of {', '.join(sorted(ANNOTATIONS))}, separated by commas"
    annotations = read("annotation", _annotations, tuple[str, ...](), words)
    return PictureQuery(rendering, fresh, annotations, frozenset(fields))


def without(query: bytes, names: Collection[str]) -> bytes:
    """A raw query string less the parameters *names*: what an origin is asked instead."""
    return b"&".join(part for part in query.split(b"&") if part and _split(part)[0] not in names)


def _fields(query: bytes, known: Collection[str]) -> Mapping[str, str]:
    fields: dict[str, str] = {}
    for part in query[:MAX_QUERY].split(b"&"):
        name, value = _split(part)
        if name in known:
            if name in fields:
                raise BadParameter(name, value, "expected it only once")
            fields[name] = value
    return fields


def _split(part: bytes) -> tuple[str, str]:
    name, _, value = part.decode("latin-1").partition("=")
    return unquote_plus(name).strip().lower(), unquote_plus(value).strip()


# What follows reads one value, and raises ValueError for what is not accepted.


def _number(text: str) -> float:
    number = float(text) if len(text) <= _MAX_NUMBER_LENGTH and _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(number):
        raise ValueError
    return number + 0.0  # -0.0 is 0.0


def _whole(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most)) and 1 <= int(text) <= most):
        raise ValueError
    return int(text)


def _downsample(text: str) -> float:
    number = _number(text)
    if not 1.0 <= number <= MAX_DOWNSAMPLE:
        raise ValueError
    return number


def _window(text: str) -> Window:
    """PS3.18 section 8.3.5.1.4: center, width, function; the function may be left out here, as clients do."""
    center, width, *named = (part.strip() for part in text.split(","))
    (function,) = named or ["linear"]
    window = Window(_number(center), _number(width), function.lower().replace("_", "-"))
    least = 1 if window.function == "linear" else math.ulp(0.0)
    if window.function not in WINDOW_FUNCTIONS or window.width < least:
        raise ValueError
    return window


def _viewport(text: str) -> Viewport:
    """Values between commas may be left out, but for the first two (PS3.18 section 8.3.5.1.3). Of x and y the
    absolute values count."""
    width, height, *region = (part.strip() for part in text.split(","))
    numbers = [_number(part) if part else None for part in region]
    numbers += [None] * (4 - len(numbers))
    x, y, region_width, region_height = numbers
    if 0 in (region_width, region_height):
        raise ValueError
    sizes = _whole(width, MAX_VIEWPORT), _whole(height, MAX_VIEWPORT)
    return Viewport(*sizes, abs(x or 0.0), abs(y or 0.0), region_width, region_height)


def _annotations(text: str) -> tuple[str, ...]:
    words = {word.strip().lower() for word in text.split(",")}
    if not words <= ANNOTATIONS:
        raise ValueError
    return tuple(sorted(words))
