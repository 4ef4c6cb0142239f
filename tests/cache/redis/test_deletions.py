"""What is deleted once more after each reconnect."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.cache.support import A
from twistedproxy.cache.interface import frame_names
from twistedproxy.cache.keys import LOADING
from twistedproxy.cache.redis.deletions import MAX_REPEATED, REPEAT_SECONDS, Deletions
from twistedproxy.cache.redis.keys import ended_keys, redis_keys


class DeletionsTests(SynchronousTestCase):
    """`Deletions`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.deleted = Deletions(self.clock)

    def test_for_a_while(self) -> None:
        """Each is remembered for some minutes after it was deleted last."""
        first, second = redis_keys(A).entries([b"F1", b"g1"])
        self.deleted.add([first, second])
        self.clock.advance(REPEAT_SECONDS - 1)
        self.deleted.add([first])
        self.assertCountEqual(self.deleted.recent(), [first, second])
        self.clock.advance(1)
        self.assertEqual(self.deleted.recent(), [first])
        self.clock.advance(REPEAT_SECONDS)
        self.assertEqual(self.deleted.recent(), [])

    def test_frames_of_a_large_load(self) -> None:
        """However many are taken back, nothing is forgotten for them that was invalidated, or of grants that were taken back."""
        others = [*ended_keys(A.scope), *redis_keys(A).entries([b"g1"])]
        frames = redis_keys(A).entries(frame_names(1, MAX_REPEATED + 100))
        self.deleted.add(others)
        self.deleted.add(frames)
        self.assertEqual(self.deleted.recent(), [*others, *frames[100:]])
        self.deleted.add(redis_keys(A).entries([b"g%d" % number for number in range(MAX_REPEATED)]))
        self.assertEqual(len(self.deleted.recent()), 2 * MAX_REPEATED)

    def test_what_says_that_an_instance_is_loaded(self) -> None:
        """It is not remembered: the next one may be another load's, by which others know that it was not checked yet."""
        self.deleted.add(redis_keys(A).entries([LOADING]))
        self.assertEqual(self.deleted.recent(), [])
