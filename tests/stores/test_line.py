"""The bandwidth that a simulated store's answers share."""

from __future__ import annotations

from typing import cast

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.stores.http_server import Exchange, Seen
from tests.stores.replies import Reply
from tests.stores.simulated import SHARED_PIECE, Line, SimulatedStore


class LineTests(SynchronousTestCase):
    """One bandwidth for all answers."""

    def test_shared(self) -> None:
        """Pieces that come together pass one after the other; what comes late makes up for a little only."""
        line = Line(1000.0, burst=0.0)
        self.assertEqual([line.pause(500, 10.0) for _ in range(3)], [0.5, 1.0, 1.5])
        self.assertEqual(line.pause(500, 11.0), 1.0)
        self.assertEqual(line.pause(500, 20.0), 0.5)
        self.assertEqual(Line(1000.0, burst=0.25).pause(500, 20.0), 0.25)

    def test_answers_share(self) -> None:
        """Two answers of one size at once take twice as long as one."""
        clock = Clock()
        store = SimulatedStore(clock, shared_bytes_per_second=SHARED_PIECE * 10)
        sent = [self._send(store, Reply(200, [], b"x" * SHARED_PIECE * 5)) for _ in range(2)]
        clock.pump([0.05] * 16)
        self.assertFalse(any(one.called for one in sent))
        clock.pump([0.05] * 5)
        self.assertTrue(all(one.called for one in sent))

    def _send(self, store: SimulatedStore, reply: Reply) -> Deferred[None]:
        class Silent:
            seen = Seen(1, "GET", "/", "", ())

            async def write(self, data: bytes) -> None:
                """Take anything."""

        return ensureDeferred(store._send(cast(Exchange, Silent()), reply, None))
