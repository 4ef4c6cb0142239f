"""Names of things on servers of the Redis protocol."""

from __future__ import annotations

import re
from collections import Counter

import attrs
from twisted.trial.unittest import SynchronousTestCase

from tests.cache.support import A
from twistedproxy.cache.redis.keys import SLOTS, by_tag, ended_keys, redis_keys, slot_of
from twistedproxy.cache.redis.topology import own_keys
from twistedproxy.dicom.resource import Scope
from twistedproxy.frames.entries import frame_name


class RedisKeyTests(SynchronousTestCase):
    """Keys, their tags and slots."""

    def test_slots_are_those_of_the_specification(self) -> None:
        """CRC-16 of the tag between the first brace and the next closing one, or of all where there is nothing between."""
        self.assertEqual(slot_of(b"123456789"), 0x31C3 % SLOTS)  # the specification's own example
        self.assertEqual(slot_of(b"foo"), 12182)
        self.assertEqual(slot_of(b"{foo}.bar}"), slot_of(b"foo"))
        self.assertEqual(slot_of(b"x{foo}{bar}"), slot_of(b"foo"))
        for key in (b"foo{}{bar}", b"{bar", b"bar}", b"foo{"):
            self.assertEqual(slot_of(key), slot_of(b"{" + key + b"}") if b"}" not in key else slot_of(key))
        self.assertEqual(slot_of(b"foo{{bar}}zap"), slot_of(b"{bar"))

    def test_frames_go_by_blocks_of_sixteen(self) -> None:
        """Those of a block have one tag, with its claims; the first block has all else that is kept of the instance."""
        names = [frame_name(number) for number in range(1, 100)]
        blocks = [[int(key.rpartition(b"F")[2], 16) for key in keys] for keys in by_tag(redis_keys(A).entries(names))]
        self.assertEqual(blocks[:2], [list(range(1, 16)), list(range(16, 32))])
        self.assertEqual(len(blocks), 7)
        self.assertEqual(len(by_tag(redis_keys(A).entries([b"m", b"g123", b"}{", b"F1"]))), 1)
        self.assertEqual(
            *(list(map(slot_of, keys)) for keys in (redis_keys(A).entries(names), redis_keys(A).claims(names)))
        )

    def test_a_slide_lies_evenly(self) -> None:
        """The fullest of three nodes has at most half more of 10,000 frames than the emptiest, whatever the slide."""
        names = [frame_name(number) for number in range(1, 10_001)]
        for number in range(20):
            keys = redis_keys(attrs.evolve(A, sop=f"1.{number}")).entries(names)
            nodes = Counter(slot_of(key) * 3 // SLOTS for key in keys)
            self.assertLess(max(nodes.values()), 1.5 * min(nodes.values()), nodes)

    def test_generations_of_a_study_are_together(self) -> None:
        """What a reader asks for, and what an invalidation ends, has one tag; the root has its own."""
        root, *others = redis_keys(A).generations
        self.assertEqual(len(by_tag(others)), 1)
        self.assertEqual(len(by_tag([root, *others])), 2)
        self.assertEqual(len({root, *others}), 4)
        self.assertEqual(by_tag([*ended_keys(A.scope), *others]), [[*ended_keys(A.scope), *others]])

    def test_a_scope_is_the_generation_of_what_lies_below(self) -> None:
        """The first key that an invalidation ends is among those that readers read, and so are those of the whole around it."""
        scopes = [Scope(A.origin, A.root), Scope(A.origin, A.root, A.study), A.of_series.scope, A.scope]
        scopes[2] = Scope(A.origin, A.root, A.study, A.series)
        self.assertEqual(tuple(ended_keys(scope)[0] for scope in scopes), redis_keys(A).generations)
        for whole in (A.of_series, A.of_study):
            self.assertTrue({*ended_keys(A.scope)} & {*redis_keys(whole).generations})

    def test_kinds_of_keys_never_meet(self) -> None:
        """Entries, claims and generations of the same name are different keys, and short."""
        keys = redis_keys(A)
        all_keys = [*keys.entries([b"x"]), *keys.claims([b"x"]), *keys.generations]
        self.assertEqual(len(set(all_keys)), 6)
        for key in keys.entries([b"F2710", b"}{"]):
            self.assertTrue(re.match(rb"tp2f\{[A-Za-z0-9_-]{20}[0-9a-f]{0,6}\}", key))
            self.assertLess(len(key), 40)

    def test_keys_of_a_nodes_own(self) -> None:
        """They are in its slots, the same each time; a node without slots has none, one with a single slot has one soon."""
        ranges = ((0, 99), (16000, 16383))
        keys = own_keys(b"r", ranges, 4)
        self.assertEqual(keys, own_keys(b"r", ranges, 4))
        self.assertEqual(len(set(keys)), 4)
        self.assertTrue(all(slot_of(key) < 100 or slot_of(key) >= 16000 for key in keys))
        self.assertEqual(own_keys(b"r", (), 4), [])
        self.assertEqual([slot_of(key) for key in own_keys(b"p", ((77, 77),), 1)], [77])
