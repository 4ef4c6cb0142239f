"""The folder as an origin: the contract, and what changes under it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

import attrs
from twisted.internet.defer import Deferred, gatherResults

from tests.origin.folder.support import FolderTestCase, ask
from tests.origin.provider_suite import CALLER, Known, OriginSuite
from tests.slides import ENCODINGS, loop, slide
from tests.waiting import wait_until
from twistedproxy.origin.errors import OriginBadAnswer, OriginRefused, OriginUnreachable
from twistedproxy.origin.folder import folder_origin
from twistedproxy.origin.interface import Origin
from twistedproxy.streams import read_all


class FolderSuite(OriginSuite, FolderTestCase):
    """The shared suite, over files in every encoding."""

    async def start_origin(self) -> tuple[Origin, Sequence[Known]]:
        made = [slide(self.folder / "slide.dcm", 3, 4, tile=64), loop(self.folder / "loop.dcm", 5, 33, 35)]
        for name, encoding in ENCODINGS.items():
            side = encoding.side or 24
            made.append(slide(self.folder / f"{name}.dcm", 1, 2, tile=side, encoding=name))
        from twisted.internet import reactor

        origin = folder_origin(f"file:{self.folder}", reactor)
        await origin.start()
        known = [Known.of(one) for one in made]
        return origin, known


class ChangeTests(FolderTestCase):
    """Files that appear, change and go."""

    async def test_new_file_is_found_when_asked_for(self) -> None:
        """An instance that was just put into the folder is served without waiting for the next look."""
        origin = await self.serve(interval=600.0)
        made = slide(self.folder / "new.dcm", 1, 1, tile=32)
        # A walk was just made; the one that is asked for comes a moment after it.
        await wait_until(lambda: origin._reactor.seconds() - origin._index._ended > 1.0)
        metadata = await origin.metadata(Known.of(made).at(origin), CALLER)
        self.assertEqual(metadata.frames, 1)

    async def test_files_appear_and_go(self) -> None:
        """Searches follow what is in the folder."""
        first = slide(self.folder / "first.dcm", 1, 1, tile=32)
        origin = await self.serve()
        (self.folder / "first.dcm").unlink()
        second = slide(self.folder / "second.dcm", 1, 1, tile=32)
        await wait_until(
            lambda: origin._index.catalog.files(second.study) and not origin._index.catalog.files(first.study)
        )
        found = (await ask(origin, "/studies")).json
        self.assertEqual([one["0020000D"]["Value"] for one in found], [[second.study]])

    async def test_changed_file_is_no_mixture(self) -> None:
        """A file that was written over is served as it now is, and never by what was known of it before."""
        made = slide(self.folder / "one.dcm", 2, 2, tile=32)
        origin = await self.serve()
        instance = Known.of(made).at(origin)
        metadata = await origin.metadata(instance, CALLER)
        await origin.frames(instance, [1], CALLER, metadata)
        other = slide(
            self.folder / "one.dcm", 2, 2, tile=40, study=made.study, series=made.series, sop=made.sop
        ).stored_frames()
        with self.assertRaises(OriginBadAnswer) as caught:
            await origin.frames(instance, [1], CALLER, metadata)
        self.assertNotIn(str(self.folder), str(caught.exception))
        metadata = await origin.metadata(instance, CALLER)
        self.assertEqual((metadata.rows, metadata.frames), (40, 4))
        frames = await origin.frames(instance, [1, 4], CALLER, metadata)
        self.assertEqual([frames[1].data, frames[4].data], [other[0], other[3]])

    async def test_instance_changed_while_it_is_read(self) -> None:
        """A download during which the file is written over breaks instead of mixing both."""
        made = slide(self.folder / "one.dcm", 4, 4, tile=256, encoding="raw")
        origin = await self.serve()
        body = await origin.stored_instance(Known.of(made).at(origin), CALLER)
        await body.read()
        with (self.folder / "one.dcm").open("r+b") as file:
            file.seek(1_000_000)
            file.write(b"something else")
        os.utime(self.folder / "one.dcm", ns=(1, 1))
        with self.assertRaises(OriginBadAnswer):
            await read_all(body, 1 << 30)

    async def test_removed_file(self) -> None:
        """An instance whose file went is unknown at once."""
        made = slide(self.folder / "one.dcm", 1, 1, tile=32)
        origin = await self.serve()
        instance = Known.of(made).at(origin)
        metadata = await origin.metadata(instance, CALLER)
        (self.folder / "one.dcm").unlink()
        with self.assertRaises(OriginRefused) as caught:
            await origin.frames(instance, [1], CALLER, metadata)
        self.assertEqual(caught.exception.status, 404)

    async def test_folder_gone(self) -> None:
        """Without its folder an origin cannot be reached, and says so without the path."""
        origin = await self.serve()
        shutil.rmtree(self.folder)
        with self.assertRaises(OriginUnreachable) as caught:
            await origin.ping()
        self.assertNotIn(str(self.folder), str(caught.exception))
        self.folder.mkdir()
        await origin.ping()
        self.flushLoggedErrors()

    async def test_start_without_folder(self) -> None:
        """A folder that is not there ends the start with a reason."""
        self.folder.rmdir()
        with self.assertRaises(OriginUnreachable):
            await self.serve()

    async def test_other_root(self) -> None:
        """A folder has one root: nothing lies below another."""
        made = slide(self.folder / "one.dcm", 1, 1, tile=32)
        origin = await self.serve()
        with self.assertRaises(OriginRefused):
            await origin.metadata(attrs.evolve(Known.of(made).at(origin), root="/elsewhere"), CALLER)

    async def test_many_wait_for_one_table(self) -> None:
        """Twenty who ask at once for frames that have to be looked for first all get theirs; one hangs up."""
        made = slide(self.folder / "one.dcm", 5, 5, tile=32, offset_table="none")
        origin = await self.serve()
        known = Known.of(made)
        metadata = await origin.metadata(known.at(origin), CALLER)
        waits = [Deferred.fromCoroutine(origin.frames(known.at(origin), [n], CALLER, metadata)) for n in range(1, 21)]
        waits[3].addErrback(lambda _: None)
        waits[3].cancel()
        found = await gatherResults(waits[:3] + waits[4:])
        self.assertEqual([frames[n].data for frames in found for n in frames], known.frames[:3] + known.frames[4:20])

    async def test_broken_pixels(self) -> None:
        """A file cut off within its pixels, as one that is still being written, is not served, and counted."""
        made = slide(self.folder / "one.dcm", 2, 2, tile=64)
        known = Known.of(made)
        content = (self.folder / "one.dcm").read_bytes()
        (self.folder / "one.dcm").write_bytes(content[: -len(known.frames[3]) // 2])
        origin = await self.serve()
        with self.assertRaises(OriginRefused) as caught:
            await origin.metadata(known.at(origin), CALLER)
        self.assertEqual((caught.exception.status, origin.status()["unreadable_files"]), (404, 1))
