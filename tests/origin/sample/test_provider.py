"""The sample slide as an origin: the contract, and where it is made."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from tests.origin.folder.support import ask
from tests.origin.provider_suite import CALLER, Known, OriginSuite
from tests.running import TREE
from tests.slides import stored_frames
from tests.waiting import wait_until
from twistedproxy.dicom.multipart_writer import content_digest, part_content_type
from twistedproxy.dicom.transfer_syntaxes import JPEG_BASELINE
from twistedproxy.origin.errors import OriginUnreachable
from twistedproxy.origin.interface import Origin
from twistedproxy.origin.sample.provider import SampleOrigin, is_complete, slide_folder
from twistedproxy.origin.sample.slide import LEVELS, SERIES, STUDY, TILE
from twistedproxy.server.conditional import entity_tag

# Filled by the first test that needs it, for all of one run of tests.
CACHE = tempfile.mkdtemp(prefix="sample-slide-cache-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
SLIDE = slide_folder({"XDG_CACHE_HOME": CACHE})
COPY = (sys.executable, "-c", f"import shutil, sys; shutil.copytree({str(SLIDE)!r}, sys.argv[1])")
MAKE_ANEW = f"""
import shutil, sys
from pathlib import Path
from twistedproxy.origin.sample.provider import LIST, make
make(Path(sys.argv[1]), lambda to: shutil.copytree({str(SLIDE)!r}, to, False, shutil.ignore_patterns(LIST), dirs_exist_ok=True))
"""
REMAKE = (sys.executable, "-c", MAKE_ANEW)
"""As the proxy does it, but for painting the slide once more, which takes seconds."""
FAIL = (sys.executable, "-c", "import sys; sys.exit('no room')")


class SampleTestCase(TestCase):
    """Tests that start the sample origin."""

    def path(self) -> str:
        """A new name in the folder for this test's files."""
        return os.path.abspath(self.mktemp())

    def blocked(self) -> str:
        """A path that no folder can be made at."""
        Path(path := self.path()).write_bytes(b"a file where a folder should be")
        return path

    def temporary_folder(self) -> str:
        """What counts as the machine's folder for temporary files during this test; empty."""
        folder = self.path()
        os.mkdir(folder)
        self.patch(tempfile, "tempdir", folder)
        return folder

    async def sample(self, cache: str = CACHE, command: Sequence[str] = ()) -> SampleOrigin:
        from twisted.internet import reactor

        origin = SampleOrigin(reactor, {"XDG_CACHE_HOME": cache}, command)
        await origin.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(origin.stop()))
        return origin


class SampleSuite(OriginSuite, SampleTestCase):
    """The shared suite, over the slide itself."""

    async def start_origin(self) -> tuple[Origin, Sequence[Known]]:
        origin = await self.sample()
        known = [
            Known(STUDY, SERIES, level.sop, TILE, TILE, JPEG_BASELINE, stored_frames(SLIDE / level.file_name))
            for level in LEVELS
        ]
        return origin, known


class SampleTests(SampleTestCase):
    """Where the slide is kept, and what happens where it can't be."""

    async def test_kept(self) -> None:
        """Once made it is not made again."""
        await self.sample()
        origin = await self.sample(command=FAIL)
        self.assertEqual(origin.url, "sample:")
        self.assertEqual([level.frames for level in LEVELS], [1536, 96, 6])

    async def test_levels_lead_to_frames(self) -> None:
        """The paths of the levels are those of instances that are there."""
        origin = await self.sample()
        for level in LEVELS:
            answer = await ask(origin, f"/{level.path}/frames/{level.frames}", accept="image/jpeg")
            self.assertEqual((answer.status, answer.body[:2]), (200, b"\xff\xd8"))

    async def test_pages(self) -> None:
        """README.md and docs/http.md show the tag and the length of a frame as they are."""
        await self.sample()
        frame = stored_frames(SLIDE / LEVELS[0].file_name)[791]
        content_type = part_content_type("image/jpeg", JPEG_BASELINE).encode("ascii")
        tag = entity_tag(content_type, content_digest([frame])).decode("ascii")
        for page in ("README.md", "docs/http.md"):
            shown = (TREE / page).read_text()
            self.assertIn(f"\nETag: {tag}\n", shown, page)
            self.assertIn(str(len(frame)), shown, page)

    async def test_damaged(self) -> None:
        """A slide that lost a file is made anew."""
        await self.sample()
        cache = self.path()
        folder = slide_folder({"XDG_CACHE_HOME": cache})
        shutil.copytree(SLIDE, folder)
        (folder / LEVELS[1].file_name).unlink()
        self.assertFalse(is_complete(folder))
        await self.sample(cache, REMAKE)
        self.assertTrue(is_complete(folder))

    async def test_no_place_to_keep_it(self) -> None:
        """Where the cache folder cannot be written to, the slide lies in a temporary one, and goes at the end."""
        await self.sample()
        temporary = self.temporary_folder()
        blocked = self.blocked()
        from twisted.internet import reactor

        origin = SampleOrigin(reactor, {"XDG_CACHE_HOME": blocked}, COPY)
        await origin.start()
        known = Known(STUDY, SERIES, LEVELS[2].sop, TILE, TILE, JPEG_BASELINE, [])
        self.assertEqual((await origin.metadata(known.at(origin), CALLER)).frames, 6)
        self.assertEqual(len(os.listdir(temporary)), 1)
        await origin.stop()
        self.assertEqual(os.listdir(temporary), [])

    async def test_cannot_be_made(self) -> None:
        """Where it can be made nowhere the start fails with the reason, and leaves nothing."""
        temporary = self.temporary_folder()
        with self.assertRaises(OriginUnreachable) as caught:
            await self.sample(self.path(), FAIL)
        self.assertIn("no room", str(caught.exception))
        self.assertEqual(os.listdir(temporary), [])

    async def test_nothing_is_stored(self) -> None:
        """The sample takes no uploads."""
        origin = await self.sample()
        content_type = 'multipart/related; type="application/dicom"; boundary=x'
        answer = await ask(origin, "/studies", method="POST", content_type=content_type, chunks=[b"--x--"])
        self.assertEqual((answer.status, answer.headers["allow"]), (405, "GET, HEAD, OPTIONS"))

    async def test_stopped_while_made(self) -> None:
        """Ending while the slide is made ends the child that makes it."""
        from twisted.internet import reactor

        mark = self.path()
        wait = (sys.executable, "-c", f"import os, time; open({mark!r}, 'w').write(str(os.getpid())); time.sleep(600)")
        origin = SampleOrigin(reactor, {"XDG_CACHE_HOME": self.path()}, wait)
        starting = Deferred.fromCoroutine(origin.start())
        await wait_until(lambda: content(mark), "the child runs")
        starting.cancel()
        starting.addErrback(lambda _: None)
        await starting
        pid = int(content(mark))
        await wait_until(lambda: not _runs(pid), "the child is gone")
        await origin.stop()


def content(path: str) -> str:
    """What the file holds; nothing where there is none."""
    return Path(path).read_text() if os.path.exists(path) else ""


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
