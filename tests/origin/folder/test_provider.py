"""The folder as an origin: the contract, and what changes under it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import attrs
from PIL import Image
from twisted.internet.defer import Deferred, gatherResults

from tests.clients import Client
from tests.dicomweb.support import ProxyCase
from tests.origin.folder.support import FolderTestCase, ask
from tests.origin.provider_suite import CALLER, Known, OriginSuite
from tests.slides import ENCODINGS, loop, slide
from tests.waiting import wait_until
from twistedproxy.dicom.resource import Scope
from twistedproxy.origin.errors import OriginBadAnswer, OriginRefused, OriginUnreachable
from twistedproxy.origin.folder.provider import FolderOrigin
from twistedproxy.origin.interface import Origin
from twistedproxy.settings import Mount
from twistedproxy.streams import read_all


class FolderSuite(OriginSuite, FolderTestCase):
    """The shared suite, over files in every encoding."""

    async def start_origin(self) -> tuple[Origin, Sequence[Known]]:
        made = [slide(self.folder / "slide.dcm", 3, 4, tile=64), loop(self.folder / "loop.dcm", 5, 33, 35)]
        for name, encoding in ENCODINGS.items():
            side = encoding.side or 24
            made.append(slide(self.folder / f"{name}.dcm", 1, 2, tile=side, encoding=name))
        from twisted.internet import reactor

        origin = FolderOrigin(f"file:{self.folder}", reactor)
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


class NoticeTests(FolderTestCase):
    """What inotify tells of, with no walk for ten minutes."""

    def names(self, origin: FolderOrigin) -> list[str]:
        studies = origin._index.catalog.studies.values()
        return sorted(os.path.relpath(file.path, self.folder) for study in studies for file in study.files)

    async def test_files_and_folders(self) -> None:
        """Files that are closed, linked, moved or removed are noticed, and so are folders with what is in them."""
        aside = self.folder.with_name("aside")
        (aside / "deep" / "deeper").mkdir(parents=True)
        slide(aside / "deep" / "deeper" / "moved.dcm", 1, 1, tile=16)
        source = slide(aside / "source.dcm", 1, 1, tile=16).path.read_bytes()
        origin = await self.serve(interval=600.0)
        await origin._index.first_scan()
        with (self.folder / "written.dcm").open("wb") as file:
            file.write(source[:2000])
            file.flush()
            os.rename(aside / "deep", self.folder / "deep")
            await wait_until(lambda: self.names(origin) == ["deep/deeper/moved.dcm"])
            file.write(source[2000:])
        await wait_until(lambda: self.names(origin) == ["deep/deeper/moved.dcm", "written.dcm"])
        os.rename(self.folder / "deep", self.folder / "shallow")
        await wait_until(lambda: self.names(origin) == ["shallow/deeper/moved.dcm", "written.dcm"])
        slide(aside / "other.dcm", 1, 1, tile=16)
        os.link(aside / "other.dcm", self.folder / "shallow" / "linked.dcm")
        await wait_until(lambda: "shallow/linked.dcm" in self.names(origin))
        shutil.rmtree(self.folder / "shallow")
        await wait_until(lambda: self.names(origin) == ["written.dcm"])
        (self.folder / ".hidden").mkdir()
        slide(self.folder / ".hidden" / "hidden.dcm", 1, 1, tile=16)
        (self.folder / "new").mkdir()
        slide(self.folder / "new" / "late.dcm", 1, 1, tile=16)
        await wait_until(lambda: self.names(origin) == ["new/late.dcm", "written.dcm"])
        shutil.rmtree(self.folder / "new")
        (self.folder / "new").mkdir()  # another folder by the same name
        slide(self.folder / "new" / "again.dcm", 1, 1, tile=16)
        await wait_until(lambda: self.names(origin) == ["new/again.dcm", "written.dcm"])
        slide(self.folder / "new" / "later.dcm", 1, 1, tile=16)
        await wait_until(lambda: self.names(origin) == ["new/again.dcm", "new/later.dcm", "written.dcm"])
        self.assertEqual(origin.status()["unreadable_files"], 0)

    async def test_replaced(self) -> None:
        """What was cached of an instance is invalidated when its file changes, and when it goes."""
        changed: list[Scope] = []

        async def invalidate(scope: Scope) -> None:
            changed.append(scope)

        made = slide(self.folder / "one.dcm", 1, 1, tile=16)
        origin = await self.serve(interval=600.0, changed=invalidate)
        await origin._index.first_scan()
        scope = Known.of(made).at(origin).scope
        slide(self.folder / "one.dcm", 1, 1, tile=20, study=made.study, series=made.series, sop=made.sop)
        await wait_until(lambda: changed == [Scope(origin.url, ""), scope])
        (self.folder / "one.dcm").unlink()
        await wait_until(lambda: changed == [Scope(origin.url, ""), scope, scope])

    async def test_many_replaced(self) -> None:
        """Of many instances their series are invalidated, or their studies, or all."""
        changed: list[Scope] = []

        async def invalidate(scope: Scope) -> None:
            changed.append(scope)

        origin = await self.serve(changed=invalidate)
        for studies, series, expected in ((1, 1, 1), (1, 101, 1), (101, 1, 1), (3, 1, 3)):
            changed.clear()
            keys = {(f"1.{a}", f"2.{b}", f"3.{c}") for a in range(studies) for b in range(series) for c in range(101)}
            await origin._invalidate(keys)
            self.assertEqual(len(changed), expected)
            named = sum(uid is not None for uid in (changed[0].study, changed[0].series))
            self.assertEqual(named, 0 if studies > 100 else 1 if series > 100 else 2)


class ProxiedTests(ProxyCase):
    """A folder behind the whole proxy."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir(parents=True)

    async def served(self) -> tuple[Path, Client]:
        folder = self.folder
        proxy = await self.proxy(
            origin=(Mount("/dicomweb", f"file:{folder}"),), render_workers=1, hot_memory=1 << 20, prefetch=True
        )
        return folder, proxy.client()

    async def test_replaced(self) -> None:
        """Once the metadata of a file that was written over are new, its frames and pictures are."""
        folder, client = await self.served()
        made = slide(folder / "one.dcm", 2, 2, tile=32)
        for side in (40, 32, 48):
            now = slide(folder / "one.dcm", 2, 2, tile=side, study=made.study, series=made.series, sop=made.sop)
            for _ in range(3):
                found = await client.get(f"/{made.resource}/metadata")
                self.assertEqual(found.json()[0]["00280010"]["Value"], [side])
                frames = await client.get(f"/{made.resource}/frames/1,4")
                self.assertEqual(frames.frames(), [now.stored_frames()[0], now.stored_frames()[3]])
                picture = await client.get(f"/{made.resource}/frames/1/rendered", {"Accept": "image/png"})
                self.assertEqual(Image.open(BytesIO(picture.body)).size, (side, side))
        now.path.unlink()
        self.assertEqual((await client.get(f"/{made.resource}/metadata")).status, 404)
        self.assertEqual((await client.get(f"/{made.resource}/frames/1")).status, 404)

    async def test_thumbnails(self) -> None:
        """Studies and series have thumbnails; those without pictures, and those that are not there, have none."""
        folder, client = await self.served()
        made = slide(folder / "one.dcm", 1, 1, tile=32)
        study = f"/studies/{made.study}"
        for path in (study, f"{study}/series/{made.series}"):
            found = await client.get(f"{path}/thumbnail", {"Accept": "image/png"})
            self.assertEqual((found.status, Image.open(BytesIO(found.body)).size), (200, (32, 32)))
        self.assertEqual((await client.get(f"{study}/series/1.2.3/thumbnail")).status, 404)

    async def test_read_only(self) -> None:
        """Nothing can be stored or deleted."""
        folder, client = await self.served()
        made = slide(folder / "one.dcm", 1, 1, tile=32)
        for method, path in (("POST", "/studies"), ("POST", f"/studies/{made.study}"), ("DELETE", f"/{made.resource}")):
            refused = await client.request(method, path)
            self.assertEqual(refused.status, 405, path)
        self.assertEqual([path.name for path in folder.iterdir()], ["one.dcm"])
