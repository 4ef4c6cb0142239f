"""The other workers of this proxy, as one worker sees them."""

from __future__ import annotations

from typing import Any, Protocol

from twistedproxy.dicom.resource import Instance, Scope
from twistedproxy.system.metrics import Snapshot


class Siblings(Protocol):
    """What a worker tells and asks all others. Each returns once they have answered, or have gone."""

    async def forget(self, scope: Scope, told: bool) -> None:
        """Let them drop what they remember of *scope*. *told*: whether the cache knows already."""

    async def revoke(self, credential: bytes, instance: Instance) -> None:
        """Let them drop a grant."""

    async def snapshots(self) -> list[Snapshot]:
        """Their metrics."""

    async def statuses(self) -> list[dict[str, Any]]:
        """Their parts of ``/status.json``: ``{"worker": {...}, "jobs": {...}}``."""


class NoSiblings:
    """A worker that is alone."""

    async def forget(self, scope: Scope, told: bool) -> None:
        """Nobody to tell."""

    async def revoke(self, credential: bytes, instance: Instance) -> None:
        """Nobody to tell."""

    async def snapshots(self) -> list[Snapshot]:
        """Nobody to ask."""
        return []

    async def statuses(self) -> list[dict[str, Any]]:
        """Nobody to ask."""
        return []
