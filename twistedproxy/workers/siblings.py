"""A worker's siblings, reached through the parent."""

from __future__ import annotations

from typing import Any

import attrs

from twistedproxy.dicom.address import Instance, Scope
from twistedproxy.metrics import Snapshot
from twistedproxy.workers.peer import Peer


@attrs.frozen
class SiblingsByParent:
    """`Siblings` of several processes. Fails with `CallFailed` and `ConnectionLost`: without a parent all is over."""

    parent: Peer

    async def forget(self, scope: Scope, told: bool) -> None:
        await self.parent.call("forget", scope=list(attrs.astuple(scope)), told=told)

    async def revoke(self, credential: bytes, instance: Instance) -> None:
        address = [instance.origin, instance.root, instance.study, instance.series, instance.sop]
        await self.parent.call("revoke", credential=credential.hex(), instance=address)

    async def snapshots(self) -> list[Snapshot]:
        return await self.parent.call("snapshots")  # type: ignore[no-any-return]

    async def statuses(self) -> list[dict[str, Any]]:
        return await self.parent.call("statuses")  # type: ignore[no-any-return]
