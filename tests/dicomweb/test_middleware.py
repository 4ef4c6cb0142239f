"""Errors become answers."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.dicomweb.middleware import problem_of
from twistedproxy.origin.errors import OriginBadAnswer, OriginBusy, OriginTimeout, OriginUnreachable


class ProblemOfTests(SynchronousTestCase):
    """`problem_of`."""

    def test_origin_errors(self) -> None:
        """Each way an origin can fail has its status."""
        for error, status, headers in (
            (OriginUnreachable("no connection"), 502, []),
            (OriginBadAnswer("half a body"), 502, []),
            (OriginBusy("later"), 503, [b"Retry-After"]),
            (OriginTimeout("60 s"), 504, []),
        ):
            problem = problem_of(error)
            self.assertEqual((problem.status, problem.detail), (status, str(error)))
            self.assertEqual(headers, [name for name, _ in problem.headers])
