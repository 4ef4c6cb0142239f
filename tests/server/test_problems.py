"""Errors of our own as application/problem+json."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.server import problems


class ProblemTests(SynchronousTestCase):
    def test_json_members(self) -> None:
        """The body has title, status and detail, and what was added."""
        problem = problems.Problem(400, "what came", members={"limit": 3})
        self.assertEqual(
            json.loads(problem.to_json()), {"title": "Bad Request", "status": 400, "detail": "what came", "limit": 3}
        )

    def test_members_cannot_hide_the_status(self) -> None:
        """An extension member never replaces a standard one."""
        self.assertEqual(json.loads(problems.Problem(400, "x", members={"status": 200}).to_json())["status"], 400)

    def test_not_acceptable_lists_what_there_is(self) -> None:
        """A 406 names every available media type, in the detail and as a member."""
        body = json.loads(problems.not_acceptable(["image/jpeg", "image/png"]).to_json())
        self.assertEqual(body["available"], ["image/jpeg", "image/png"])
        self.assertIn("image/jpeg, image/png", body["detail"])

    def test_headers_that_a_status_demands(self) -> None:
        """405 says Allow, 503 Retry-After, 416 the size that there is."""
        self.assertEqual(problems.method_not_allowed(["GET", "HEAD"]).headers, ((b"Allow", b"GET, HEAD"),))
        self.assertEqual(problems.unavailable("busy", 7).headers, ((b"Retry-After", b"7"),))
        self.assertEqual(problems.range_not_satisfiable(10).headers, ((b"Content-Range", b"bytes */10"),))

    def test_shown_is_short_and_escaped(self) -> None:
        """What came is cut and has no controls."""
        self.assertLessEqual(len(problems.shown(b"x" * 10_000)), problems.MAX_SHOWN + 2)
        self.assertEqual(problems.shown(b"a\r\n\x00\xff"), r"'a\r\n\x00ÿ'")
