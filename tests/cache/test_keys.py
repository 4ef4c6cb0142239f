"""Names of things in the cache."""

from __future__ import annotations

import re

import attrs
from twisted.trial.unittest import SynchronousTestCase

from tests.cache.support import A
from twistedproxy.cache.keys import fence_of, instance_keys, scope_keys, unstamp
from twistedproxy.dicom.resource import Instance, Scope


class KeyTests(SynchronousTestCase):
    """Keys of instances and scopes."""

    def test_keys_are_short_and_tagged(self) -> None:
        """All keys of one instance have one hash tag, whose braces are the first ones, whatever the name."""
        keys = instance_keys(A)
        tags = set()
        for key in (keys.entries([b"}{"])[0], keys.claims([b"}x"])[0]):
            match = re.match(rb"[a-z]{3}\{([A-Za-z0-9_-]{20})\}", key)
            assert match is not None
            tags.add(match[1])
            self.assertTrue(len(key) <= 27)
        self.assertEqual(len(tags), 1)

    def test_kinds_of_keys_never_meet(self) -> None:
        """Entries, claims, locks and generations of the same name are different keys."""
        keys = instance_keys(A)
        self.assertEqual(len({keys.entry, keys.claim, *keys.generations}), 6)

    def test_every_part_of_an_instance_counts(self) -> None:
        """A change in any part, or of where one part ends and the next begins, makes another key."""
        others = [
            attrs.evolve(A, origin=A.origin + "x"),
            attrs.evolve(A, root="/x"),
            attrs.evolve(A, study="1"),
            attrs.evolve(A, series="1"),
            attrs.evolve(A, sop="1"),
            Instance("a", "/b", "12", "3", "4"),
            Instance("a", "/b", "1", "23", "4"),
        ]
        self.assertEqual(len({instance_keys(one).entry for one in (A, *others)}), 8)

    def test_a_scope_is_the_generation_of_what_lies_below(self) -> None:
        """The key that forgetting deletes is among those that readers read."""
        scopes = [
            Scope(A.origin, A.root),
            Scope(A.origin, A.root, A.study),
            Scope(A.origin, A.root, A.study, A.series),
            A.scope,
        ]
        self.assertEqual(tuple(scope_keys(scope)[0] for scope in scopes), instance_keys(A).generations)

    def test_one_place(self) -> None:
        """What is one instance at the store has one key, wherever the origin's URL ends."""
        short = Instance("http://pacs.test", "/dicom-web", A.study, A.series, A.sop)
        long = Instance("http://pacs.test/dicom-web", "", A.study, A.series, A.sop)
        self.assertEqual(instance_keys(short), instance_keys(long))
        self.assertEqual(scope_keys(Scope(short.origin, short.root)), scope_keys(Scope(long.origin, long.root)))

    def test_one_store(self) -> None:
        """Other paths of a host have entries of their own, and the same generations: what is stored by one is invalidated
        below all. Another host, and another folder, have others."""
        read, write = (Instance("http://pacs.test/dw", root, *A.uids) for root in ("/wadors", "/stowrs"))
        mounted = Instance("http://pacs.test/dw/wadors", "", *A.uids)
        self.assertNotEqual(instance_keys(read).entry, instance_keys(write).entry)
        for one in (write, mounted):
            self.assertEqual(instance_keys(read).generations, instance_keys(one).generations)
        folders = [Instance(f"file:/{name}", "", *A.uids) for name in "ab"]
        others = [*folders, Instance("http://pacs.test:8080/dw", "/wadors", *A.uids)]
        self.assertEqual(len({instance_keys(one).generations for one in (read, *others)}), 4)

    def test_a_fence_needs_all_generations(self) -> None:
        """One missing: none. Each counts, and so does where one ends."""
        self.assertIsNone(fence_of([b"a", None, b"c", b"d"]))
        fences = {fence_of(list(generations)) for generations in ((b"ab", b"c"), (b"a", b"bc"), (b"c", b"ab"))}
        self.assertEqual(len(fences), 3)

    def test_a_stamp_is_taken_off_only_under_its_fence(self) -> None:
        """A value with another stamp, or too short for one, is no entry."""
        self.assertEqual(unstamp(b"12345678", b"12345678abc"), b"abc")
        self.assertEqual(unstamp(b"12345678", b"12345678"), b"")
        self.assertIsNone(unstamp(b"12345678", b"12345679abc"))
        self.assertIsNone(unstamp(b"12345678", b"1234567"))
