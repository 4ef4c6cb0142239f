"""Digests of large answers are those of small ones, made elsewhere."""

from __future__ import annotations

import threading
from typing import Any

from twisted.trial.unittest import TestCase

from twistedproxy.dicom.multipart_writer import content_digest
from twistedproxy.frames import entries

PARTS = [b"a" * 1000, b"", b"bc" * 700]
PICTURE = b"".join(PARTS)
DIGEST = content_digest(PARTS)


class DigestTests(TestCase):
    """An answer of 2,400 bytes."""

    def setUp(self) -> None:
        self.threads: list[int] = []

    def watched(self, digest: Any) -> Any:
        """*digest*, and who makes it."""

        def made(*arguments: Any) -> Any:
            self.threads.append(threading.get_ident())
            return digest(*arguments)

        return made

    async def test_in_a_thread(self) -> None:
        """What is large is digested in a thread, with the same result."""
        self.patch(entries, "AT_ONCE", 2399)
        self.patch(entries, "content_digest", self.watched(content_digest))
        self.assertEqual(await entries.digests_of([PICTURE]), [DIGEST])
        self.assertEqual(await entries.digests_of(PARTS), list(map(content_digest, zip(PARTS))))
        self.assertEqual(len(self.threads), 4)
        self.assertNotIn(threading.get_ident(), self.threads)

    async def test_at_once(self) -> None:
        """What is small is digested at once."""
        self.patch(entries, "AT_ONCE", 2400)
        self.patch(entries, "content_digest", self.watched(content_digest))
        self.assertEqual(await entries.digests_of([PICTURE]), [DIGEST])
        self.assertEqual(await entries.digests_of(PARTS), list(map(content_digest, zip(PARTS))))
        self.assertEqual(self.threads, [threading.get_ident()] * 4)
