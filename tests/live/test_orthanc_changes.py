"""A real Orthanc in which instances are replaced and deleted past the proxy, which learns of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twisted.internet.threads import deferToThread

from tests.cache.support import until
from tests.clients import Answer, client
from tests.live.support import LiveCase
from tests.running import Proxy, free_port
from tests.slides import Made, slide
from tests.stores.orthanc import Orthanc, basic

SCRIPT = Path(__file__).parent.parent.parent / "deploy" / "orthanc-purge.lua"
HIT = "twistedproxy; hit"
NAME, PASSWORD = "ann", "a:secret-of-hers"
PATIENCE = 30.0
"""Seconds to wait for what takes 2 to 3: a busy machine fails no test."""


class ChangesCase(LiveCase):
    """A slide in Orthanc, and a proxy of two workers that has all of its frames cached."""

    async def begin(self, *options: str, follow: bool = False, **more: Any) -> None:
        self.made = self.slide(32)
        self.store: Orthanc = await self.orthanc(
            self.made.path, users={NAME: PASSWORD}, more={"OverwriteInstances": True, **more}
        )
        options = (*options, "--follow-changes", self.store.server) if follow else options
        self.running: Proxy = await self.proxy(
            *("--origin", self.store.url, "--workers", "2", "--log-format", "json", *options)
        )

    def slide(self, tile: int, made: Made | None = None) -> Made:
        """A slide; with the UIDs of *made*, if given."""
        named = {"study": made.study, "series": made.series, "sop": made.sop} if made is not None else {}
        return slide(Path(self.mktemp()), 2, 3, tile, **named)

    def file(self, text: str) -> str:
        """The path of a file with *text*."""
        path = Path(self.mktemp()).absolute()
        path.write_text(text)
        return str(path)

    async def frame(self) -> Answer:
        """Frame 2, from whichever worker."""
        headers = {"Authorization": basic(NAME, PASSWORD)}
        asking = client(self, self.running.url + "/dicomweb", headers, persistent=False)
        return await asking.frames(self.made.resource, [2])

    async def cached(self) -> None:
        """Return once the frame comes from the cache, whichever worker is asked."""

        async def hits() -> bool:
            answers = [await self.frame() for _ in range(8)]
            return {answer.headers.get("cache-status") for answer in answers} == {HIT}

        await until(hits, "a cached frame")

    async def replace(self) -> None:
        """Replace the instance in Orthanc, past the proxy; return once all workers give the new frame."""
        twin = self.slide(48, self.made)
        await deferToThread(self.store.store, twin.path)

        async def replaced() -> bool:
            answers = [(await self.frame()).frames() for _ in range(8)]
            return answers == [twin.stored_frames()[1:2]] * 8

        await until(replaced, "the new frame", PATIENCE)

    async def delete(self) -> None:
        """Delete the instance in Orthanc, past the proxy."""
        (found,) = json.loads(await deferToThread(self.store.ask, "GET", "/instances"))
        await deferToThread(self.store.ask, "DELETE", f"/instances/{found}")

    async def gone(self) -> bool:
        """Whether no worker has the frame any more."""
        return {(await self.frame()).status for _ in range(8)} == {404}


class FollowTests(ChangesCase):
    """``--follow-changes``."""

    async def test_replaced(self) -> None:
        """A frame that is replaced in Orthanc is gone within seconds, and what Orthanc has now is given, by all workers; the login is
        nowhere in the log. Of a deletion Orthanc's list says nothing."""
        await self.begin("--follow-changes-login", self.file(f"{NAME}:{PASSWORD}\n"), follow=True)
        await until(lambda: self.running.logged("changes_begin"), "the beginning")
        await self.cached()
        await self.replace()
        await until(lambda: self.running.logged("changes_followed"), "the log")
        self.assertEqual([one["count"] for one in self.running.logged("changes_followed")], [1])
        await self.cached()
        await self.delete()
        changes = json.loads(await deferToThread(self.store.ask, "GET", "/changes"))
        self.assertEqual(changes["Changes"], [])
        self.assertEqual((await self.frame()).headers["cache-status"], HIT)
        self.assertNotIn(PASSWORD, self.running.output())

    async def test_refused(self) -> None:
        """Without the login Orthanc refuses, which is said once and hurts nothing else."""
        await self.begin(follow=True)
        await self.cached()
        await until(lambda: self.running.logged("unavailable"), "a complaint")
        (said,) = self.running.logged("unavailable")
        self.assertEqual(said["what"], f"the list of changes of {self.store.server}")
        self.assertEqual(said["reason"], "/changes answered 401")
        self.assertEqual((await self.frame()).headers["cache-status"], HIT)


class ScriptTests(ChangesCase):
    """``deploy/orthanc-purge.lua``."""

    async def begin_with_script(self, *options: str) -> None:
        admin = free_port()
        script = self.file(SCRIPT.read_text().replace("127.0.0.1:9100", f"127.0.0.1:{admin}"))
        folder = f"{script}-store"
        await self.begin(
            *("--admin-listen", f"tcp:{admin}:interface=127.0.0.1", *options),
            LuaScripts=[script],
            StorageDirectory=folder,
            IndexDirectory=folder,
        )

    async def assert_deletion_noticed(self) -> None:
        """An instance that is deleted now is gone within seconds."""
        await self.delete()
        await until(self.gone, "the end of the frame", PATIENCE)
        self.assertNotIn("Error while processing Lua", self.store.log())

    async def test_deleted(self) -> None:
        """An instance that is deleted in Orthanc is gone within seconds."""
        await self.begin_with_script()
        await self.cached()
        await self.assert_deletion_noticed()

    async def test_stored_before(self) -> None:
        """Also one that was stored before Orthanc was started."""
        await self.begin_with_script()
        await self.cached()
        await deferToThread(self.store.restart)
        await self.assert_deletion_noticed()

    async def test_no_uid(self) -> None:
        """What is deleted that has no UIDs, which Orthanc takes and nobody can ask the proxy for, holds up nothing."""
        await self.begin_with_script()
        known = json.loads(await deferToThread(self.store.ask, "GET", "/instances"))
        await deferToThread(self.store.store, slide(Path(self.mktemp()), 1, 1, 32, series="1.2.x").path)
        await self.cached()
        for found in json.loads(await deferToThread(self.store.ask, "GET", "/instances")):
            if found not in known:
                await deferToThread(self.store.ask, "DELETE", f"/instances/{found}")
        await self.assert_deletion_noticed()

    async def test_replaced(self) -> None:
        """The script purges what is replaced, too; and what is deleted after that."""
        await self.begin_with_script()
        await self.cached()
        await self.replace()
        await self.cached()
        await self.assert_deletion_noticed()
