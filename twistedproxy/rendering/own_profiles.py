"""The operator's own ICC profiles: files of a folder, each requested by its name without the ending.

Rules:

- A folder is read once, at the start; an error is one line that names the file.
- A rendering child tries each profile before any picture is asked for: the proxy itself loads no codec.
- A file named like a built-in profile (``srgb``) replaces it.
- Pictures are kept under what is in a profile, not under its name: hosts of one cache may have other folders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from twisted.internet.threads import deferToThread

from twistedproxy.imaging.errors import CallFailed
from twistedproxy.imaging.parameters import MAX_PROFILE, NO_TARGETS
from twistedproxy.rendering.pool import RenderPool

PROFILE_ENDINGS = (".icc", ".icm")
MAX_PROFILES = 64

_PROFILE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}", re.ASCII)


class BadProfiles(ValueError):
    """A folder that cannot be used; `str()` names the file, and the reason."""


async def checked_profiles(pool: RenderPool, folder: str) -> Mapping[str, bytes]:
    """The profiles in *folder* by their names, all fit to convert to. Raises `BadProfiles` and `PoolError`."""
    profiles = await deferToThread(read_profiles, folder)
    for name, profile in profiles.items():
        try:
            await pool.call({"op": "profile"}, [profile])
        except CallFailed as failed:
            raise BadProfiles(f"{folder}: {name} is not a profile to convert to: {failed}") from None
    return profiles


def read_profiles(folder: str) -> Mapping[str, bytes]:
    """The profiles in *folder* by their names; other files are left alone. It blocks. Raises `BadProfiles`."""
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
        if not _PROFILE_NAME.fullmatch(name) or name in NO_TARGETS:
            raise BadProfiles(f"{path}: names of up to 32 letters, digits, - and _ are accepted, but not no and yes")
        if name in found:
            raise BadProfiles(f"{path}: another file also has the name {name}")
        found[name] = _read_file(path)
    return found


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PROFILE + 1)
    except OSError as error:
        raise BadProfiles(f"{path}: {error.strerror or 'unreadable'}") from None
    if not 0 < len(data) <= MAX_PROFILE:
        raise BadProfiles(f"{path}: expected a file of 1 to {MAX_PROFILE} bytes")
    return data
