"""A worker's siblings, reached through the parent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred

from twistedproxy.dicom.address import Instance, Scope
from twistedproxy.metrics import Snapshot
from twistedproxy.workers.peer import Peer

PARENT_SECONDS = 15.0
"""How long the parent may take: it waits for a worker that hangs, and kills it."""


@attrs.frozen
class SiblingsByParent:
    """`Siblings` of several processes. *own*: what this one counted.

    Fails with `CallFailed`, `ConnectionLost` and `TimeoutError`: without a parent all is over.
    """

    parent: Peer
    reactor: Any
    own: Callable[[], Snapshot]

    async def forget(self, scope: Scope, told: bool) -> None:
        await self._call("forget", scope=list(attrs.astuple(scope)), told=told)

    async def revoke(self, credential: bytes, instance: Instance) -> None:
        address = [instance.origin, instance.root, instance.study, instance.series, instance.sop]
        await self._call("revoke", credential=credential.hex(), instance=address)

    async def snapshots(self) -> list[Snapshot]:
        others: list[Snapshot] = await self._call("snapshots")
        # Our own numbers are shown right after this: the parent must know them, should we end the next moment.
        self.parent.call("counted", snapshot=self.own()).addErrback(lambda _: None)
        return others

    async def statuses(self) -> list[dict[str, Any]]:
        statuses: list[dict[str, Any]] = await self._call("statuses")
        return statuses

    def _call(self, name: str, **arguments: Any) -> Deferred[Any]:
        return self.parent.call(name, **arguments).addTimeout(PARENT_SECONDS, self.reactor)
