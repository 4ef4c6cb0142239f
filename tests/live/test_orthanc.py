"""A real Orthanc behind real proxy processes: its frames, whole instances, and callers whom it refuses."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from signal import SIGTERM
from unittest import SkipTest

import numpy
import pydicom
from PIL import Image
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.threads import deferToThread

from tests.cache.support import RunningServer, any_server, ask
from tests.clients import Answer, Client, client
from tests.live.support import LiveCase
from tests.running import Proxy
from tests.slides import ENCODINGS, Made, OffsetTable, loop, multi_frame, slide
from tests.stores.orthanc import Orthanc, basic

HIT = "twistedproxy; hit"
ANN = {"Authorization": basic("ann", "a-secret-of-hers")}
BOB = {"Authorization": basic("bob", "not-in-the-list")}
# Orthanc 1.10 answers 500 to any request for such a frame, and gives the instance all the same.
NO_FRAMES = ("big-endian", "deflated", "jpegxl-lossless", "jpegxl", "htj2k")
PATHS = ("frames/1", "frames/1,2", "frames/12,11", "frames/1/rendered", "metadata", "prefetch", "", "frames/99")
STOLEN = {"Authorization": basic("ann", "a-wrong-guess")}


class OrthancCase(LiveCase):
    """Proxies in front of one Orthanc, at ``/dicomweb``."""

    def path(self) -> Path:
        """Where the next file goes."""
        return Path(self.mktemp())

    def asking(self, proxy: Proxy, headers: dict[str, str] | None = None) -> Client:
        """A client of the proxy."""
        return client(self, proxy.url + "/dicomweb", headers or {}, persistent=False)


class FrameTests(OrthancCase):
    """Frames are pydicom's, and the store is asked for them once."""

    async def test_every_encoding(self) -> None:
        """Every frame of every encoding, single and in lists, is the file's; the second time Orthanc hears nothing."""
        made = [self.slide(name) for name in ENCODINGS if name not in NO_FRAMES]
        made.append(loop(self.path(), 15))
        made.append(multi_frame(self.path(), 7, 33, 31, "raw-16"))
        made.append(slide(self.path(), 2, 3, 32, "jpeg", sparse=True))
        store = await self.orthanc(*(one.path for one in made))
        proxy = await self.proxy("--origin", store.url)
        for one in made:
            await self._compare(proxy, one)
        await self.jobs(proxy)
        heard = store.requests("/dicom-web/")
        self.assertGreater(len([path for _, path in heard if "/frames/" in path]), len(made))
        for one in made:
            answers = await self._compare(proxy, one)
            self.assertEqual({answer.headers["cache-status"] for answer in answers}, {HIT}, one.encoding.name)
        self.assertEqual(store.requests("/dicom-web/"), heard)

    async def _compare(self, proxy: Proxy, made: Made) -> list[Answer]:
        stored = made.stored_frames()
        asking = self.asking(proxy)
        lists = [[number] for number in range(1, made.frames + 1)]
        lists += [list(range(made.frames, 0, -1)), [made.frames, 1]]
        answers = []
        for numbers in lists:
            answer = await asking.frames(made.resource, numbers)
            expected = [stored[number - 1] for number in numbers]
            self.assertEqual((answer.status, answer.frames()), (200, expected), (made.encoding.name, numbers))
            answers.append(answer)
        return answers

    async def test_with_orthanc_gone(self) -> None:
        """One request for one frame brings a whole instance, in a child process; with Orthanc gone all its frames
        come from the cache, whatever their encoding and however they lie in the file."""
        made = [self.slide(name) for name in ENCODINGS if name not in NO_FRAMES]
        made.append(slide(self.path(), 3, 4, 32, "jpeg", OffsetTable.NONE))
        made.append(slide(self.path(), 3, 4, 32, "jpeg2000", OffsetTable.BASIC, 2, trailing_padding=20))
        made.append(loop(self.path(), 40))
        store, proxy = await self.with_children(made)
        for one in made:
            answer = await self.asking(proxy).frames(one.resource, [2])
            self.assertEqual(answer.frames(), [one.stored_frames()[1]], one.encoding.name)
        await self.assert_all_cached(store, proxy, made)

    async def test_frames_that_orthanc_cannot_give(self) -> None:
        """Frames that Orthanc cannot tell apart come out of the instance, which it gives all the same: the first request
        gets them, and all who ask later."""
        made = [self.slide(name) for name in NO_FRAMES]
        store, proxy = await self.with_children(made)
        *asked, warmed = made
        for one in asked:
            answer = await self.asking(proxy).frames(one.resource, [1])
            self.assertEqual((answer.status, answer.frames()), (200, one.stored_frames()[:1]), one.encoding.name)
        self.assertEqual((await self.asking(proxy).request("POST", f"/{warmed.resource}/prefetch")).status, 202)
        await self.assert_all_cached(store, proxy, made)

    async def test_an_instance_whose_frames_orthanc_cannot_give(self) -> None:
        """Such an instance comes as it is stored; without prefetch, too, its frames are all there after the first."""
        made = self.slide("htj2k")
        store = await self.orthanc(made.path)
        proxy = await self.proxy("--origin", store.url, "--prefetch", "off")
        for number in (1, 2):
            answer = await self.asking(proxy).frames(made.resource, [number])
            self.assertEqual((answer.status, answer.frames()), (200, [made.stored_frames()[number - 1]]))
        self.assertEqual(answer.headers["cache-status"], HIT)
        accept = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
        answer = await self.asking(proxy).get(f"/{made.resource}", accept)
        self.assertIn(made.path.read_bytes(), answer.body)

    def slide(self, name: str) -> Made:
        """Twelve frames in the encoding *name*."""
        return slide(self.path(), 3, 4, ENCODINGS[name].side or 32, name)

    async def with_children(self, made: list[Made]) -> tuple[Orthanc, Proxy]:
        """An Orthanc that holds *made*, and a proxy to which none of them is so small that no child need load it."""
        store = await self.orthanc(*(one.path for one in made))
        return store, await self.proxy("--origin", store.url, "--block-pixels", "32", "--max-jobs", "99")

    async def assert_all_cached(self, store: Orthanc, proxy: Proxy, made: list[Made]) -> None:
        """Once its jobs have ended, *proxy* gives all frames without *store*."""
        ended = [job for job in await self.jobs(proxy) if job[1] != "ahead"]
        self.assertEqual(sorted(ended), sorted((one.resource, "whole", "done") for one in made))
        store.stop()
        for one in made:
            answer = await self.asking(proxy).frames(one.resource, range(1, one.frames + 1))
            self.assertEqual((answer.status, answer.frames()), (200, one.stored_frames()), one.encoding.name)
            self.assertEqual(answer.headers["cache-status"], HIT)

    async def test_many_callers(self) -> None:
        """A hundred callers who ask for one frame at once get it; Orthanc is asked for it once."""
        made = slide(self.path(), 2, 2, 64)
        store = await self.orthanc(made.path)
        proxy = await self.proxy("--origin", store.url)
        asking = self.asking(proxy)
        answers = await gatherResults([ensureDeferred(asking.frames(made.resource, [3])) for _ in range(100)])
        self.assertEqual({answer.body for answer in answers}, {answers[0].body})
        self.assertEqual(answers[0].frames(), [made.stored_frames()[2]])
        frame_requests = [path for _, path in store.requests("/frames/") if path.endswith("/frames/3")]
        self.assertEqual(len(frame_requests), 1)


class SlideTests(OrthancCase):
    """Pictures of slides, as Orthanc's own tool for them makes slides: without DimensionOrganizationType, the tiles in any order,
    a level in several instances."""

    async def test_dicomizer(self) -> None:
        """The instances of a level, from Orthanc and from a folder, show what was made into a slide, each its own frames. Orthanc
        is asked for instances, not for frames one by one, however busy the machine is."""
        tool = shutil.which("OrthancWSIDicomizer")  # Debian's package "orthanc-wsi"
        if tool is None:
            raise SkipTest("OrthancWSIDicomizer is not installed (Debian: orthanc-wsi)")
        y, x = numpy.mgrid[0:700, 0:900]
        source = numpy.stack([x // 4, y // 3, x // 128 * 20 + y // 128 * 10], 2).astype("u1")
        folder = self.path().absolute()
        (folder / "made").mkdir(parents=True)
        Image.fromarray(source).save(folder / "source.png")
        options = [
            "--compression",
            "none",
            "--tile-width",
            "128",
            "--tile-height",
            "128",
            "--max-size",
            "1",
            "--threads",
            "2",
        ]
        asked = [tool, str(folder / "source.png"), "--folder", str(folder / "made"), *options]
        await deferToThread(subprocess.run, asked, check=True, capture_output=True)
        files = sorted((folder / "made").iterdir())
        headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
        level = [header for header in headers if header.TotalPixelMatrixRows == 700]
        self.assertGreater(len(level), 1)
        self.assertFalse(any("DimensionOrganizationType" in header for header in level))
        store = await self.orthanc(*files)
        for origin in (store.url, f"file:{folder / 'made'}"):
            proxy = await self.proxy("--whole-instance-max-cpu", "0", "--origin", origin)
            shown = numpy.full_like(source, 255)
            for header in level:
                instance = f"series/{header.SeriesInstanceUID}/instances/{header.SOPInstanceUID}"
                path = f"/studies/{header.StudyInstanceUID}/{instance}/rendered"
                answer = await self.asking(proxy).get(path, {"Accept": "image/png"})
                self.assertEqual(answer.status, 200, answer.body[:300])
                shown = numpy.minimum(shown, numpy.asarray(Image.open(io.BytesIO(answer.body))))
            self.assertTrue((shown == source).all(), origin)
        small = [header.SOPInstanceUID for header in level if header.NumberOfFrames < 10]
        whole = [path for uid in small for _, path in store.requests(uid) if path.endswith(uid)]
        self.assertEqual((len(small) > 0, whole), (True, []), "instances of few frames are not loaded whole")


class RefusedTests(OrthancCase):
    """Basic authentication at Orthanc: who is refused gets nothing that others brought into the cache."""

    async def setting(self) -> tuple[Orthanc, list[str]]:
        """An Orthanc that ann may read, and options of proxies that share a Redis server and a key."""
        self.redis = RunningServer(any_server())
        self.addCleanup(lambda: Deferred.fromCoroutine(self.redis.stop()))
        await self.redis.start()
        self.made = slide(self.path(), 3, 4, 64)
        self.stored = self.made.stored_frames()
        secret = self.path().absolute()
        secret.write_bytes(b"one key for all proxies " * 4)
        store = await self.orthanc(self.made.path, users={"ann": "a-secret-of-hers"})
        return store, ["--origin", store.url, "--cache", f"unix:{self.redis.socket}", "--secret-file", str(secret)]

    async def allowed(self, proxy: Proxy) -> Answer:
        """What ann gets, which is all."""
        answer = await self.asking(proxy, ANN).frames(self.made.resource, range(1, 13))
        self.assertEqual((answer.status, answer.frames()), (200, self.stored))
        return answer

    async def refused(self, proxy: Proxy, status: int = 401, paths: Sequence[str] = PATHS) -> None:
        """Nobody else gets a byte of it, whatever is asked for and however."""
        etag = (await self.allowed(proxy)).headers["etag"] if status == 401 else '"any"'
        conditional = {**BOB, "If-None-Match": etag, "Range": "bytes=0-99"}
        asked = [(who, path) for who in ({}, conditional, STOLEN) for path in paths]
        answers = await gatherResults([ensureDeferred(self._any(proxy, who, path)) for who, path in asked])
        for (_, path), answer in zip(asked, answers, strict=True):
            self.assertEqual(answer.status, status, (path, answer.body[:200]))
            self.assertFalse([frame for frame in self.stored if frame[:200] in answer.body], path)
            self.assertNotIn("etag", answer.headers)
            self.assertNotIn(HIT, answer.headers.get("cache-status", ""))

    async def _any(self, proxy: Proxy, who: dict[str, str], path: str) -> Answer:
        method = "POST" if path == "prefetch" else "GET"
        return await self.asking(proxy, who).request(method, f"/{self.made.resource}/{path}".rstrip("/"))

    async def test_one_proxy(self) -> None:
        """The refusal is Orthanc's own, before and after the frames are cached; ann's answers go on."""
        store, options = await self.setting()
        proxy = await self.proxy(*options)
        answer = await self.asking(proxy).frames(self.made.resource, [1])
        self.assertEqual((answer.status, answer.headers["www-authenticate"][:5]), (401, "Basic"))
        await self.allowed(proxy)
        await self.jobs(proxy)
        await self.refused(proxy)
        heard = len(store.requests("/dicom-web/"))
        self.assertEqual((await self.allowed(proxy)).headers["cache-status"], HIT)
        self.assertEqual(len(store.requests("/dicom-web/")), heard)

    async def test_second_proxy_and_restart(self) -> None:
        """A second proxy on the same Redis server and one started again refuse as the first did; for ann neither
        asks Orthanc anything."""
        store, options = await self.setting()
        first = await self.proxy(*options)
        await self.allowed(first)
        await self.jobs(first)
        second = await self.proxy(*options)
        heard = len(store.requests("/dicom-web/"))
        self.assertEqual((await self.allowed(second)).headers["cache-status"], HIT)
        self.assertEqual(await deferToThread(first.stop), -SIGTERM)
        third = await self.proxy(*options)
        self.assertEqual((await self.allowed(third)).headers["cache-status"], HIT)
        self.assertEqual(len(store.requests("/dicom-web/")), heard)
        for proxy in (second, third):
            await self.refused(proxy)

    async def test_orthanc_gone(self) -> None:
        """With Orthanc gone nobody new can be known: ann goes on, others hear that the store is away."""
        store, options = await self.setting()
        first, second = await self.proxy(*options), await self.proxy(*options)
        await self.allowed(first)
        await self.jobs(first)
        store.stop()
        for proxy in (first, second):
            self.assertEqual((await self.allowed(proxy)).headers["cache-status"], HIT)
            await self.refused(proxy, 502, ["frames/1"])

    async def test_no_secrets(self) -> None:
        """Neither the log nor any key, value or dump of the Redis server holds a password or a header with one."""
        _, options = await self.setting()
        proxy = await self.proxy(*options, "--log-format", "json")
        await self.allowed(proxy)
        await self.refused(proxy)
        await self.jobs(proxy)
        keys = await ask(self.redis.socket, b"KEYS", b"*")
        values = [await ask(self.redis.socket, b"GET", key) for key in keys]
        await ask(self.redis.socket, b"CONFIG", b"SET", b"rdbcompression", b"no")
        await ask(self.redis.socket, b"SAVE")
        kept = b"\n".join([*keys, *values, (self.redis.folder / "dump.rdb").read_bytes()])
        self.assertIn(self.stored[0], kept)
        self.assertIn("/frames/1", proxy.output())
        for header in (ANN, BOB, STOLEN):
            encoded = header["Authorization"].removeprefix("Basic ")
            for secret in (encoded, "a-secret-of-hers", "not-in-the-list", "a-wrong-guess"):
                self.assertNotIn(secret.encode(), kept)
                self.assertNotIn(secret, proxy.output())
