"""Claims in a local cache."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Optional

from twistedproxy.cache.keys import instance_keys
from twistedproxy.cache.local.facts import Facts
from twistedproxy.cache.local.operations import ERRORS, Operations
from twistedproxy.dicom.resource import Instance


class LocalClaims:
    """The methods of a `Cache` that concern claims."""

    operations: Operations
    facts: Facts

    async def claim(self, instance: Instance, names: Sequence[bytes], token: bytes, seconds: float) -> set[bytes]:
        """See `Cache`. None is won where the table can't be written."""
        began = self.operations.now()
        keys = _claims(instance, names)
        try:
            won = await self.operations.in_few(self.facts.claim, keys, token, seconds)
        except ERRORS as error:
            self.operations.failed("claim", error, began)
            return set()
        self.operations.ended("claim", "ok" if len(won) == len(keys) else "lost", began)
        return {name for name, key in zip(names, keys) if key in won}

    async def renew_claims(self, instance: Instance, names: Collection[bytes], token: bytes, seconds: float) -> bool:
        """See `Cache`."""
        try:
            renewed: int = await self.operations.in_few(self.facts.renew, _claims(instance, names), token, seconds)
        except ERRORS as error:
            self.operations.failed("renew_claims", error)
            return False
        return renewed == len(names)

    async def unclaim(self, instance: Instance, names: Collection[bytes], token: bytes) -> None:
        """See `Cache`."""
        try:
            await self.operations.in_few(self.facts.renew, _claims(instance, names), token, 0.0)
        except ERRORS as error:
            self.operations.failed("unclaim", error)

    async def claim_left(self, instance: Instance, name: bytes) -> Optional[float]:
        """See `Cache`."""
        try:
            return self.facts.left(_claims(instance, (name,))[0])
        except ERRORS as error:
            self.operations.failed("claim_left", error)
            return None


def _claims(instance: Instance, names: Collection[bytes]) -> list[bytes]:
    """The keys of claims."""
    tag = instance_keys(instance).claim[4:-1]
    return [b"c%b%b" % (tag, name) for name in names]
