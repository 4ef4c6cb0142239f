"""RGB from one color space to another, by LittleCMS (Pillow's ImageCms), and the operator's ICC profiles: files of a folder,
each requested by its name without the ending.

Rules:

- An instance without a profile is taken for sRGB, as browsers take what has none.
- The rendering intent is the source profile's own (ICC.1 section 7.2.15), as in pydicom.
- Transforms are kept: to make one costs as much as to convert many frames. LittleCMS lets several threads use one.
- The profiles in ``profiles/`` are written for this package: matrix and parametric curves (ICC.1:2010, version 4.3) with the published
  numbers of IEC 61966-2-1 (sRGB), SMPTE EG 432-1 (Display P3), Adobe RGB (1998) and ISO 22028-2 (ROMM RGB). They are part
  of cached pictures: a change of their bytes needs a new `VERSION` of pictures.
- A folder is read once, at the start; an error is one line that names the file.
- A file named like a built-in profile (``srgb``) replaces it.
- Pictures are kept under what is in a profile, not under its name: hosts of one cache may have other folders.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Collection, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import attrs
import numpy
from PIL import Image, ImageCms

from twistedproxy.dicom.multipart_writer import content_digest
from twistedproxy.imaging.errors import BadProfile
from twistedproxy.imaging.parameters import PROFILES

Pixels = numpy.ndarray[Any, numpy.dtype[Any]]

TARGETS = ("srgb", "displayp3", "adobergb", "rommrgb")
MAX_TRANSFORMS = 16  # a scanner has one profile: source and target pairs in use at a time
MAX_PROFILE = 16 << 20  # bytes; scanners' have up to 1 MB, those of displays with tables some 3 MB


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


PROFILE_ENDINGS = (".icc", ".icm")
MAX_PROFILES = 64

_PROFILE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}", re.ASCII)
_NOT_PROFILES = frozenset(("no", "yes"))
"""Values of ``iccprofile`` that mean something else."""


class BadProfiles(ValueError):
    """A folder that cannot be used; `str()` names the file, and the reason."""


@attrs.frozen
class OwnProfiles:
    """Profiles by name."""

    by_name: Mapping[str, bytes] = attrs.field(factory=dict, repr=False)
    _digests: Mapping[str, bytes] = attrs.field(init=False, repr=False, eq=False)

    @_digests.default
    def _make_digests(self) -> Mapping[str, bytes]:  # once: each frame's name in the cache has one
        return {name: content_digest([data]) for name, data in self.by_name.items()}

    @property
    def names(self) -> Collection[str]:
        """All that ``iccprofile`` may be, built-in ones first."""
        return tuple(dict.fromkeys((*PROFILES, *sorted(self.by_name))))

    def get(self, name: str) -> bytes:
        """The profile *name*; b"" where the folder has none."""
        return self.by_name.get(name, b"")

    def digest(self, name: str) -> bytes:
        """A digest of the profile *name*; b"" where the folder has none."""
        return self._digests.get(name, b"")


def read_profiles(folder: str) -> OwnProfiles:
    """The profiles in *folder*; other files are left alone. It blocks. Raises `BadProfiles`."""
    try:
        paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in PROFILE_ENDINGS)
    except OSError as error:
        raise BadProfiles(f"{folder}: {error.strerror or 'unreadable'}") from None
    if not paths:
        raise BadProfiles(f"{folder}: no file ends in {' or '.join(PROFILE_ENDINGS)}")
    if len(paths) > MAX_PROFILES:
        raise BadProfiles(f"{folder}: {len(paths)} profiles are more than the {MAX_PROFILES} that are accepted")
    found: dict[str, bytes] = {}
    for path in paths:
        name = path.stem.lower()
        if not _PROFILE_NAME.fullmatch(name) or name in _NOT_PROFILES:
            raise BadProfiles(f"{path}: names of up to 32 letters, digits, - and _ are accepted, but not no and yes")
        if name in found:
            raise BadProfiles(f"{path}: another file also has the name {name}")
        found[name] = _read_file(path)
    return OwnProfiles(found)


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PROFILE + 1)
    except OSError as error:
        raise BadProfiles(f"{path}: {error.strerror or 'unreadable'}") from None
    if not 0 < len(data) <= MAX_PROFILE:
        raise BadProfiles(f"{path}: expected a file of 1 to {MAX_PROFILE} bytes")
    return data
