"""What the benchmarks rest on: the session that is replayed, and the command that runs them."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.benchmarks.__main__ import benchmarks, commands
from tests.benchmarks.viewing import KEPT_TILES, Level, session, visible

LEVELS = [Level("fine", 1, 100, 100), Level("middle", 4, 25, 25), Level("coarse", 16, 7, 7)]


class ViewingTests(SynchronousTestCase):
    """A session over a pyramid."""

    def test_window(self) -> None:
        """A window shows the tiles that it covers, the one in its middle first, and none beyond the slide."""
        fine = LEVELS[0]
        self.assertEqual(visible(fine, 1, 128.0, 128.0)[0], 1)
        self.assertEqual(len(visible(fine, 1, 12_800.0, 12_800.0)), 8 * 6)
        self.assertEqual(sorted(visible(fine, 1, 25_599.0, 25_599.0))[-1], 10_000)
        self.assertEqual(sorted(visible(LEVELS[2], 16, 12_800.0, 12_800.0)), list(range(8, 43)))

    def test_seeded(self) -> None:
        """The same seed makes the same session, another one another."""
        first, again, other = (list(session(seed, LEVELS, 30)) for seed in (7, 7, 8))
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)

    def test_dives_and_stays(self) -> None:
        """It begins with the coarsest level, visits every one, and asks for frames that there are."""
        screens = list(session(3, LEVELS, 60))
        self.assertEqual(screens[0].level.name, "coarse")
        self.assertEqual({screen.level.name for screen in screens}, {"fine", "middle", "coarse"})
        for screen in screens:
            self.assertTrue(all(1 <= number <= screen.level.rows * screen.level.columns for number in screen.frames))

    def test_keeps_tiles(self) -> None:
        """What was seen a short while ago is not asked for again."""
        asked: list[tuple[str, int]] = []
        for screen in session(5, LEVELS, 60):
            new = [(screen.level.name, number) for number in screen.frames]
            recent = asked[-(KEPT_TILES - len(new)) :] if len(new) < KEPT_TILES else []
            self.assertEqual(set(new) & set(recent[-20:]), set())
            asked += new


class CommandTests(SynchronousTestCase):
    """``python -m tests.benchmarks``."""

    def test_found(self) -> None:
        """Benchmarks are found with a line about each; what they share is none."""
        found = benchmarks()
        self.assertIn("viewer_replay", found)
        self.assertNotIn("measuring", found)
        self.assertTrue(all(found.values()))

    def test_options(self) -> None:
        """Options go to the benchmark named before them; what is none is an error."""
        self.assertEqual(commands(["a", "--x", "1", "b"], ["a", "b"]), [["a", "--x", "1"], ["b"]])
        self.assertEqual(commands(["all"], ["a", "b"]), [["a"], ["b"]])
        self.assertRaises(ValueError, commands, ["c"], ["a", "b"])
