"""The operator's own ICC profiles, read and tried before any picture is asked for.

A rendering child tries them: the proxy itself loads no codec.
"""

from __future__ import annotations

from twisted.internet.threads import deferToThread

from twistedproxy.imaging.errors import CallFailed
from twistedproxy.imaging.pool import RenderPool
from twistedproxy.imaging.profiles import BadProfiles, OwnProfiles, read_profiles


async def checked_profiles(pool: RenderPool, folder: str) -> OwnProfiles:
    """The profiles in *folder*, all fit to convert to. Raises `BadProfiles` and `PoolError`."""
    profiles = await deferToThread(read_profiles, folder)
    for name, profile in profiles.by_name.items():
        try:
            await pool.call({"op": "profile"}, [profile])
        except CallFailed as failed:
            raise BadProfiles(f"{folder}: {name} is no profile to convert to: {failed}") from None
    return profiles
