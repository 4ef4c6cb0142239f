"""What is known of instances for pictures: asked for once, remembered within bounds."""

from __future__ import annotations

from typing import Optional

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from tests.frames.support import ALICE, INSTANCE, ReadingParts
from twistedproxy.cache.interface import Fence
from twistedproxy.dicom.resource import Instance
from twistedproxy.rendering.descriptions import REMEMBERED, MetadataLookup


def read(packed: bytes) -> int:
    """The length of an entry; ValueError for one of another version."""
    if packed.startswith(b"old"):
        raise ValueError
    return len(packed)


class LookupTests(SynchronousTestCase):
    """`MetadataLookup` over a cache in memory."""

    def setUp(self) -> None:
        self.parts = ReadingParts()
        self.asked = 0
        self.fence = self.successResultOf(Deferred.fromCoroutine(self.parts.cache.get_many(INSTANCE, []))).fence

    def found(
        self, lookup: MetadataLookup[int], instance: Instance = INSTANCE, size: int = 7, fence: Optional[Fence] = None
    ) -> int:
        """What the lookup finds, or the origin gives."""

        async def ask() -> bytes:
            self.asked += 1
            return bytes(size)

        return self.successResultOf(Deferred.fromCoroutine(lookup.find(instance, ALICE, fence or self.fence, ask)))

    def lookup(self) -> MetadataLookup[int]:
        """As a worker has one."""
        return MetadataLookup(self.parts.cache, b"x1", read, 2)

    def test_once(self) -> None:
        """The origin is asked once for all workers of a cache; one that remembers does not ask the cache either."""
        lookup = self.lookup()
        self.assertEqual([self.found(lookup), self.found(lookup), self.found(self.lookup())], [7, 7, 7])
        self.assertEqual(self.asked, 1)
        self.successResultOf(Deferred.fromCoroutine(self.parts.cache.remove(INSTANCE, [b"x1"])))
        self.found(lookup)
        self.assertEqual(self.asked, 1)

    def test_another_version(self) -> None:
        """An entry that cannot be read counts as missing."""
        put = self.parts.cache.put_many(INSTANCE, self.fence, {b"x1": b"old entry"}, 60.0)
        self.successResultOf(Deferred.fromCoroutine(put))
        self.assertEqual((self.found(self.lookup()), self.asked), (7, 1))

    def test_fence(self) -> None:
        """What was found under another fence is not taken, neither from memory nor from the cache."""
        lookup = self.lookup()
        self.found(lookup)
        self.found(lookup, fence=b"another")
        self.assertEqual(self.asked, 2)

    def test_bounds(self) -> None:
        """As many bytes are remembered as may be; what alone is more is not."""
        lookup = self.lookup()
        self.parts.cache.put_many = self.kept  # type: ignore[method-assign]
        instances = [Instance(INSTANCE.place, "", "1", "2", str(number)) for number in range(4)]
        sizes = (REMEMBERED // 2, REMEMBERED // 2, REMEMBERED // 2, REMEMBERED + 1)
        for instance, size in zip(instances, sizes):
            self.found(lookup, instance, size)
        asked = self.asked
        for instance, again in ((instances[1], 0), (instances[2], 0), (instances[3], 1), (instances[0], 1)):
            self.found(lookup, instance)
            asked += again
            self.assertEqual(self.asked, asked, instance)

    async def kept(self, *_arguments: object) -> bool:
        """A cache that keeps nothing."""
        return False
