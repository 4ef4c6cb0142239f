"""The other workers of this proxy, as one worker sees them."""

from __future__ import annotations

from typing import Any

from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.system.metrics import Snapshot


class Siblings:
    """The other workers; here there are none. Each method returns once all of them have answered, or have gone."""

    async def invalidate(self, scope: Scope, cache_invalidated: bool) -> None:
        """Have them drop what they keep of *scope*. *cache_invalidated*: whether the cache has done so already."""

    async def revoke(self, credential: bytes, instance: Instance) -> None:
        """Have them drop a grant."""

    async def snapshots(self) -> list[Snapshot]:
        """Their metrics."""
        return []

    async def statuses(self) -> list[dict[str, Any]]:
        """Their parts of ``/status.json``: ``{"worker": {...}, "jobs": {...}}``."""
        return []
