"""What the table of `side_by_side` rests on."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.benchmarks import wrk
from tests.benchmarks.contenders import HOT, KLEIN, LEAF, NGINX, Contender, Field
from tests.benchmarks.side_by_side import BUSY, HEADERS, Measured, aims, middle
from tests.running import Child


class WrkTests(SynchronousTestCase):
    """A real wrk at a real server."""

    def setUp(self) -> None:
        if not wrk.installed():
            raise SkipTest("wrk is not installed")
        keep: Callable[[Child], None] = lambda child: self.addCleanup(child.remove)  # noqa: E731
        self.server: Contender = Field("", 0, 0, (), keep)._bare(LEAF, "bare_leaf", 2_000)

    def ran(self, length: int) -> wrk.Ran:
        return wrk.run(self.server.address, ["/a", "/b"], HEADERS, 2, 1, None, length)

    def test_right(self) -> None:
        """Answers of the right length are counted, with their times."""
        length = self.server.length("x", HEADERS)
        self.assertGreater(length, 2_000)
        ran = self.ran(length)
        self.assertGreater(ran.per_second, 50)
        self.assertLess(0, ran.p50)
        self.assertLessEqual(ran.p50, ran.p99)
        self.assertGreater(self.server.cpu(), 0)
        self.assertGreater(self.server.memory(), 1 << 20)

    def test_wrong_length(self) -> None:
        """Answers of another length are no result."""
        for length in (1_000, 5_000):
            self.assertRaises(wrk.WrongAnswers, self.ran, length)

    def test_wrong_status(self) -> None:
        """Nor are refusals."""
        keep: Callable[[Child], None] = lambda child: self.addCleanup(child.remove)  # noqa: E731
        self.server = Field("", 0, 0, (), keep)._bare(KLEIN, "bare_klein", 2_000)
        self.assertRaises(wrk.WrongAnswers, self.ran, self.server.length("x", HEADERS))


class TableTests(SynchronousTestCase):
    """Medians and aims."""

    @staticmethod
    def measured(requests: int, p99: float = 1.0) -> Measured:
        return Measured(wrk.Ran(requests, 1.0, requests * 10, 0.5, p99), 1e6 / requests, requests)

    def test_middle(self) -> None:
        """Each figure has its own median."""
        found = middle([self.measured(100, 3.0), self.measured(300, 1.0), self.measured(200, 9.0)])
        self.assertEqual((found.ran.per_second, found.ran.p99, found.memory), (200, 3.0, 200))

    def test_aims(self) -> None:
        """An aim is missed by too few requests or too long a wait, and not by what was not measured."""
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            self.judge()
        self.assertIn("0.39 times the requests a second of nginx", told.getvalue())

    def judge(self) -> None:
        beside = {(NGINX, BUSY): self.measured(100)}
        self.assertTrue(aims(beside))
        self.assertTrue(aims({**beside, (HOT, BUSY): self.measured(40, 3.0)}))
        self.assertFalse(aims({**beside, (HOT, BUSY): self.measured(39, 1.0)}))
        self.assertFalse(aims({**beside, (HOT, BUSY): self.measured(90, 3.1)}))
