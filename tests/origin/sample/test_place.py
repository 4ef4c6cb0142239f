"""The folder that the sample slide is kept in."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.origin.folder.index_cache import user_cache
from twistedproxy.origin.sample.provider import is_complete, make


class PlaceTests(SynchronousTestCase):
    """Made whole or not at all."""

    def setUp(self) -> None:
        self.base = Path(self.mktemp()).absolute()
        self.folder = self.base / "twistedproxy" / "sample-1"

    def write(self, folder: Path) -> None:
        (folder / "one").write_bytes(b"one")
        (folder / "two").write_bytes(b"two")

    def beside(self) -> list[str]:
        return sorted(os.listdir(self.folder.parent))

    def test_where(self) -> None:
        """It is in the user's cache folder, the configured one if that is a whole path."""
        self.assertEqual(user_cache({"XDG_CACHE_HOME": str(self.base)}), self.folder.parent)
        home = Path.home() / ".cache" / "twistedproxy"
        self.assertEqual(user_cache({}), home)
        self.assertEqual(user_cache({"XDG_CACHE_HOME": "relative"}), home)

    def test_made(self) -> None:
        """What was made is complete, and nothing else lies beside it."""
        self.assertFalse(is_complete(self.folder))
        make(self.folder, self.write)
        self.assertTrue(is_complete(self.folder))
        self.assertEqual(self.beside(), ["sample-1"])

    def test_damaged(self) -> None:
        """A file that is missing, cut or changed makes it incomplete, and it is made anew."""
        for damage in (
            lambda: (self.folder / "one").unlink(),
            lambda: (self.folder / "one").write_bytes(b"on"),
            lambda: (self.folder / "one").write_bytes(b"eno"),
            lambda: (self.folder / ".files.json").write_text("{"),
            lambda: (self.folder / ".files.json").write_text("{}"),
            lambda: (self.folder / ".files.json").write_text("[1]"),
        ):
            make(self.folder, self.write)
            damage()
            self.assertFalse(is_complete(self.folder))
        make(self.folder, self.write)
        self.assertTrue(is_complete(self.folder))
        self.assertEqual(self.beside(), ["sample-1"])

    def test_two_at_once(self) -> None:
        """Who finds that somebody else was quicker takes what is there."""

        def slowly(folder: Path) -> None:
            make(self.folder, self.write)
            (folder / "one").write_bytes(b"another")

        make(self.folder, slowly)
        self.assertTrue(is_complete(self.folder))
        self.assertEqual((self.folder / "one").read_bytes(), b"one")
        self.assertEqual(self.beside(), ["sample-1"])

    def test_failed(self) -> None:
        """Where making fails nothing is left."""

        def fail(folder: Path) -> None:
            self.write(folder)
            raise OSError("no room")

        self.assertRaises(OSError, make, self.folder, fail)
        self.assertEqual(self.beside(), [])

    def test_left_behind(self) -> None:
        """What someone began who is gone is removed; what was begun just now is not."""
        old, new = self.folder.parent / ".sample-old", self.folder.parent / ".sample-new"
        for path in (old, new):
            path.mkdir(parents=True)
            (path / "half").write_bytes(b"h")
        os.utime(old, (1, 1))
        make(self.folder, self.write)
        self.assertEqual(self.beside(), [".sample-new", "sample-1"])

    def test_unwritable(self) -> None:
        """A place below something that is no folder cannot be written to."""
        self.base.write_bytes(b"a file")
        self.assertRaises(OSError, make, self.folder, self.write)
