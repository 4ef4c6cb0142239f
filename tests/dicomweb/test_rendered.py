"""Pictures over real sockets, made by real rendering children: forms, sizes, colors, limits, and how they fail."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy
import pydicom
from PIL import Image, ImageCms
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import LogEvent, globalLogPublisher

from tests.clients import Client
from tests.dicomweb.support import ALICE, ProxyCase, RunningProxy, token
from tests.imaging.test_decode import TEST_FILES
from tests.rendering.test_own_profiles import profile_folder
from tests.slides import Made, loop, slide
from tests.stores import faults
from tests.waiting import wait_until
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.multipart_writer import content_digest
from twistedproxy.imaging.icc import convert_colors, profile_of
from twistedproxy.rendering.runner import range_sample
from twistedproxy.server.conditional import entity_tag
from twistedproxy.settings import Mount

JPEG_UID = "1.2.840.10008.1.2.4.50"
NATIVE = 'multipart/related; type="application/octet-stream"'
HIT, MISS = "twistedproxy; hit", "twistedproxy; fwd=uri-miss; stored"
RENDERED = "twistedproxy; hit; detail=rendered"
"""Made just now, of frames that were cached."""


def opened(data: bytes) -> Image.Image:
    """The picture in *data*."""
    return Image.open(io.BytesIO(data))


def _threshold() -> Dataset:
    """A VOI LUT that makes 16 bits black or white; long enough to be bulk data."""
    table = Dataset()
    table.LUTDescriptor = [0, 0, 16]
    table.LUTData = numpy.repeat(numpy.array([0, 65535], "<u2"), 32768).tobytes()
    table["LUTData"].VR = "OW"
    return table


def pixels(data: bytes) -> Any:
    """Its pixels."""
    return numpy.asarray(opened(data)).astype(int)


def matrix(made: Made) -> Any:
    """The total pixel matrix of a JPEG slide, as Pillow decodes it."""
    dataset = pydicom.dcmread(made.path, stop_before_pixels=True)
    rows, columns = int(dataset.TotalPixelMatrixRows), int(dataset.TotalPixelMatrixColumns)
    across = -(-columns // made.columns)
    frames = [pixels(frame) for frame in made.stored_frames()]
    lines = [numpy.concatenate(frames[at : at + across], axis=1) for at in range(0, len(frames), across)]
    return numpy.concatenate(lines)[:rows, :columns].astype(numpy.uint8)


class RenderingCase(ProxyCase):
    """Slides behind a proxy that renders."""

    async def shown(self, made: Made, **settings: Any) -> Client:
        """A client of a proxy in front of a store that holds *made*."""
        self.proxied, self.behind = await self._start(made, settings)
        return self.proxied.client(ALICE)

    def _folder(self) -> Path:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        return folder

    async def _start(self, made: Made, settings: dict[str, Any]) -> tuple[RunningProxy, Any]:
        from tests.stores.dialects import STANDARD

        store = self.store(STANDARD, made)
        return await self.proxy(store, **{"render_workers": 1, **settings}), store


class FormTests(RenderingCase):
    """Forms of pictures."""

    async def test_media_types(self) -> None:
        """A frame comes as each of the types that there are, and shows the same."""
        made = slide(self.mktemp(), 1, 2, 64, "jpeg2000-lossless")
        client = await self.shown(made)
        expected = imagecodecs.jpeg2k_decode(made.stored_frames()[1]).astype(int)
        for media_type, kind, near in (
            ("image/png", "PNG", 0), ("image/jpeg", "JPEG", 60), ("image/webp", "WEBP", 90), ("image/jp2", "JPEG2000", 30),
        ):  # fmt: skip
            answer = await client.get(f"/{made.resource}/frames/2/rendered", {"Accept": media_type})
            self.assertEqual((answer.status, answer.headers["content-type"]), (200, media_type))
            self.assertEqual(opened(answer.body).format, kind)
            self.assertLessEqual(numpy.abs(pixels(answer.body) - expected).max(), near, kind)
        answer = await client.get(f"/{made.resource}/frames/2/rendered", {"Accept": "image/jxl"})
        self.assertLessEqual(numpy.abs(imagecodecs.jpegxl_decode(answer.body).astype(int) - expected).mean(), 5)
        answer = await client.get(f"/{made.resource}/frames/2/rendered", {"Accept": "image/gif"})
        self.assertEqual(opened(answer.body).size, (64, 64))

    async def test_etags(self) -> None:
        """A picture has the ETag that follows from its type and bytes, whether it was just made or comes from the cache."""
        many, one = slide(self.mktemp(), 2, 2, 64, "jpeg"), slide(self.mktemp(), 1, 1, 64, "jpeg")
        for made, resource, media_type in (
            (many, "frames/1/rendered", "image/png"),
            (many, "frames/1/rendered", "image/jxl"),  # transcoded
            (many, "frames/1/rendered", "image/jpeg"),  # as stored
            (many, "rendered", "image/jpeg"),
            (one, "rendered", "image/jpeg"),  # as stored, too
        ):
            client = await self.shown(made, hot_memory=0)
            path, seen = f"/{made.resource}/{resource}", set()
            for query in ("", "", "?disable_caching=true"):
                answer = await client.get(path + query, {"Accept": media_type})
                seen.add(answer.headers["etag"].encode())
            self.assertEqual(seen, {entity_tag(media_type.encode(), content_digest([answer.body]))}, path)

    async def test_negotiation(self) -> None:
        """Weights decide; JPEG where anything will do; what there is not is a 406 that lists what there is."""
        made = slide(self.mktemp(), 1, 1, 64, "raw")
        client = await self.shown(made)
        path = f"/{made.resource}/frames/1/rendered"
        for accept, media_type in (
            ("image/avif,image/webp,image/apng,image/*,*/*;q=0.8", "image/jpeg"),
            ("image/png;q=0.9, image/webp;q=0.5", "image/png"),
            ("*/*", "image/jpeg"),
        ):
            self.assertEqual((await client.get(path, {"Accept": accept})).headers["content-type"], media_type)
        self.assertEqual((await client.get(f"{path}?accept=image/png")).headers["content-type"], "image/png")
        answer = await client.get(path, {"Accept": "image/tiff"})
        self.assertEqual(answer.status, 406)
        self.assertIn("image/webp", answer.json()["available"])

    async def test_several(self) -> None:
        """Several frames are parts in the order asked for."""
        made = slide(self.mktemp(), 1, 3, 64, "raw")
        client = await self.shown(made)
        answer = await client.get(f"/{made.resource}/frames/3,1,3/rendered", {"Accept": "image/png"})
        self.assertTrue(answer.headers["content-type"].startswith('multipart/related; type="image/png"'))
        shown = [pixels(part.body) for part in answer.parts()]
        stored = [numpy.frombuffer(data, numpy.uint8).reshape(64, 64, 3) for data in made.stored_frames()]
        for got, number in zip(shown, (3, 1, 3)):
            self.assertTrue((got == stored[number - 1]).all())

    async def test_as_stored(self) -> None:
        """A stored JPEG asked for as JPEG without change is sent as it is stored, and needs no child."""
        made = slide(self.mktemp(), 1, 2, 64)
        client = await self.shown(made)
        assert self.proxied.components.imaging is not None
        self.proxied.components.imaging.pool.module = "tests.rendering.no_such_module"
        for query in ("", "?quality=20", "?iccprofile=no&downsample=1"):
            answer = await client.get(f"/{made.resource}/frames/2/rendered{query}")
            self.assertEqual((answer.status, answer.body), (200, made.stored_frames()[1]))

    async def test_gray_through_its_window(self) -> None:
        """A stored JPEG of gray is sent as it is only where its values are shown as they are; frames always are."""
        window = {"WindowCenter": "90", "WindowWidth": "60"}
        table = Dataset()
        table.LUTDescriptor, table.LUTData = [256, 0, 8], bytes(range(255, -1, -1))
        table["LUTData"].VR = "OW"
        for extra, look in (
            ({}, None),
            ({"WindowCenter": "128", "WindowWidth": "256"}, None),
            (window, lambda values: (values - 89.5) / 59 * 255 + 127.5),
            ({"VOILUTSequence": [table]}, lambda values: 255 - values),
            ({"RescaleSlope": "-1"}, lambda values: 255 - values),
            ({"PresentationLUTShape": "INVERSE"}, lambda values: 255 - values),
            ({"PhotometricInterpretation": "MONOCHROME1"}, lambda values: 255 - values),
        ):
            made = loop(self.mktemp(), 2, 64, 64, "jpeg-gray", extra=extra)
            client = await self.shown(made)
            stored = made.stored_frames()[0]
            values = pixels(stored)
            expected = values if look is None else numpy.clip(numpy.rint(look(values)), 0, 255)
            for path in ("frames/1/rendered", "rendered", "thumbnail"):
                for accept in ("*/*", "image/jxl"):
                    answer = await client.get(f"/{made.resource}/{path}?quality=100", {"Accept": accept})
                    shown = pixels(answer.body) if accept == "*/*" else imagecodecs.jpegxl_decode(answer.body)
                    off = numpy.abs(shown.astype(int).reshape(64, 64) - expected).max()
                    self.assertLessEqual(off, 6, (extra, path, accept))
                    if look is None and path != "thumbnail" and accept == "*/*":
                        self.assertEqual(answer.body, stored, (extra, path))
            jxl = 'multipart/related; type="image/jxl"'
            for accept in ("*/*", jxl):
                (frame,) = (await client.frames(made.resource, [1], accept)).frames()
                came = bytes(imagecodecs.jpegxl_decode_jpeg(frame, numthreads=1)) if accept == jxl else frame
                self.assertEqual(came.rstrip(b"\0"), stored.rstrip(b"\0"), (extra, accept))  # less a pad byte
            answer = await client.get(f"/{made.resource}/frames/1?downsample=2", {"Accept": NATIVE})
            virtual = numpy.frombuffer(answer.frames()[0], numpy.uint8).reshape(32, 32)
            halved = numpy.asarray(Image.fromarray(values.astype(numpy.uint8)).reduce(2)).astype(int)
            self.assertLess(numpy.abs(virtual - halved).mean(), 2, extra)

    async def test_jpeg_xl_without_loss(self) -> None:
        """A stored JPEG becomes JPEG XL from which the very JPEG comes back."""
        made = slide(self.mktemp(), 1, 1, 64)
        client = await self.shown(made)
        stored = made.stored_frames()[0]
        answer = await client.get(f"/{made.resource}/frames/1/rendered", {"Accept": "image/jxl"})
        self.assertEqual(bytes(imagecodecs.jpegxl_decode_jpeg(answer.body, numthreads=1)), stored)
        wanted = 'multipart/related; type="image/jxl"; transfer-syntax=1.2.840.10008.1.2.4.111'
        answer = await client.frames(made.resource, [1], wanted)
        self.assertEqual(bytes(imagecodecs.jpegxl_decode_jpeg(answer.frames()[0], numthreads=1)), stored)

    async def test_native(self) -> None:
        """Octet-stream without a transfer syntax means pixels, and gets them."""
        made = slide(self.mktemp(), 1, 2, 64, "jpegls")
        client = await self.shown(made)
        answer = await client.frames(made.resource, [1, 2], NATIVE)
        self.assertIn("transfer-syntax=1.2.840.10008.1.2.1", answer.headers["content-type"])
        expected = [bytes(imagecodecs.jpegls_decode(data).tobytes()) for data in made.stored_frames()]
        self.assertEqual(answer.frames(), expected)

    async def test_cached(self) -> None:
        """A picture is made once for all who ask, and is in the cache for those who come later."""
        made = slide(self.mktemp(), 1, 1, 64, "raw")
        client = await self.shown(made, hot_memory=0)
        path = f"/{made.resource}/frames/1/rendered"
        answers = await gatherResults([Deferred.fromCoroutine(client.get(path)) for _ in range(4)])
        self.assertEqual(len({answer.body for answer in answers}), 1)
        made_by = sorted(answer.headers["cache-status"] for answer in answers)
        self.assertEqual(sum("collapsed" in status for status in made_by), 3, made_by)
        self.assertEqual((await client.get(path + "?quality=95&interpolation=cubic")).headers["cache-status"], HIT)
        self.assertEqual((await client.get(path + "?quality=50")).headers["cache-status"], RENDERED)
        for _ in range(2):
            fresh = await client.get(path + "?quality=30&disable_caching=true")
            self.assertEqual(fresh.headers["cache-status"], RENDERED)

    async def test_disable_caching(self) -> None:
        """What is asked for so neither comes from the cache nor stays there, be it made or stored:
        the origin is asked each time, and the answer says that nobody is to keep it."""
        made = slide(self.mktemp(), 2, 4, 64)
        client = await self.shown(made)
        for path, frames in (
            ("frames/1/rendered", {1}),
            ("frames/1,2/rendered", {1, 2}),
            ("frames/1", {1}),
            ("frames/3,1,3", {3, 1}),
        ):
            kept = None
            for query in ("disable_caching=true", "disable_caching=true", "", "", "disable_caching=1"):
                before = len(self.behind.lines("/frames/"))
                answer = await client.get(f"/{made.resource}/{path}?{query}")
                lines = self.behind.lines("/frames/")[before:]
                asked = {int(number) for line in lines for number in line.split("/")[-1].split(",")}
                if query:
                    self.assertEqual(answer.headers["cache-control"], "no-store", (path, query))
                    self.assertEqual(answer.headers["cache-status"], "twistedproxy; fwd=request")
                    self.assertEqual(asked, frames)
                else:
                    self.assertEqual(answer.headers["cache-control"], "private, max-age=3600")
                    self.assertEqual(answer.headers["cache-status"], MISS if kept is None else HIT, path)
                    self.assertEqual(asked, frames if kept is None else set())
                kept = answer.body if not query else kept
            self.assertEqual(answer.body, kept)
            client = await self.shown(made)
        for path in (
            "thumbnail",
            "frames/1/thumbnail",
            "rendered",
            "frames/1?downsample=2",
        ):
            joined = "&" if "?" in path else "?"
            for _ in range(2):
                answer = await client.get(f"/{made.resource}/{path}{joined}disable_caching=true")
                self.assertEqual((answer.status, answer.headers["cache-control"]), (200, "no-store"), path)
                self.assertNotEqual(answer.headers["cache-status"], HIT)
            answer = await client.get(f"/{made.resource}/{path}")
            self.assertNotEqual(answer.headers["cache-status"], HIT, path)

    async def test_cache_status(self) -> None:
        """Whether the origin was asked for frames is told apart from whether the picture was made just now."""
        made = slide(self.mktemp(), 2, 4, 64, "raw")
        client = await self.shown(made)
        frames = f"/{made.resource}/frames"
        for path, status in (
            (f"{frames}/1/rendered", MISS),
            (f"{frames}/1/rendered", HIT),
            (f"{frames}/1/rendered?viewport=9,9", RENDERED),
            (f"{frames}/2/rendered?disable_caching=true", "twistedproxy; fwd=request"),
            (f"{frames}/2/rendered?disable_caching=true", RENDERED),
            (f"{frames}/1,3/rendered", "twistedproxy; fwd=partial; stored"),
            (f"{frames}/2,4/rendered", "twistedproxy; fwd=partial; stored"),
            (f"{frames}/5,6/rendered", MISS),
            (f"/{made.resource}/rendered?viewport=20,20", MISS),
            (f"/{made.resource}/rendered?viewport=30,30", RENDERED),
            (f"{frames}/1?downsample=2", RENDERED),
            (f"{frames}/1?downsample=2", HIT),
        ):
            answer = await client.get(path)
            self.assertEqual((answer.status, answer.headers["cache-status"]), (200, status), path)

    async def test_annotations(self) -> None:
        """Annotations are not drawn, and the answer says so."""
        made = slide(self.mktemp(), 1, 1, 64)
        client = await self.shown(made)
        answer = await client.get(f"/{made.resource}/frames/1/rendered?annotation=patient")
        self.assertIn("patient", answer.headers["warning"])


class DownsampleTests(RenderingCase):
    """Frames, metadata and searches of virtual instances."""

    async def test_frames(self) -> None:
        """Virtual frames put together are the whole matrix made smaller, and metadata say how they lie."""
        made = slide(self.mktemp(), 5, 6, 64, total_rows=300, total_columns=370)
        client = await self.shown(made)
        whole = matrix(made)
        for factor in (2.5, 3.7, 64):
            metadata = (await client.get(f"/{made.resource}/metadata?downsample={factor}")).json()[0]
            rows, columns = metadata["00480007"]["Value"][0], metadata["00480006"]["Value"][0]
            self.assertEqual((rows, columns), (max(1, int(300 / factor)), max(1, int(370 / factor))))
            count = metadata["00280008"]["Value"][0]
            across, down = -(-columns // 64), -(-rows // 64)
            self.assertEqual(count, across * down)
            answer = await client.get(
                f"/{made.resource}/frames/{','.join(map(str, range(1, count + 1)))}?downsample={factor}"
                "&interpolation=linear", {"Accept": NATIVE},
            )  # fmt: skip
            frames = [numpy.frombuffer(data, numpy.uint8).reshape(64, 64, 3) for data in answer.frames()]
            lines = [numpy.concatenate(frames[at : at + across], axis=1) for at in range(0, count, across)]
            together = numpy.concatenate(lines)[:rows, :columns].astype(int)
            expected = numpy.asarray(Image.fromarray(whole).resize((columns, rows), Image.Resampling.BILINEAR))
            self.assertLessEqual(numpy.abs(together - expected).max(), 3, factor)
            past = await client.get(f"/{made.resource}/frames/{count + 1}?downsample={factor}")
            self.assertEqual((past.status, f"1 to {count}" in past.json()["detail"]), (404, True))

    async def test_form(self) -> None:
        """Virtual frames are JPEG with its transfer syntax, in parts; rendered ones are plain pictures."""
        made = slide(self.mktemp(), 4, 4, 64)
        client = await self.shown(made)
        answer = await client.get(f"/{made.resource}/frames/1,2?downsample=2")
        self.assertIn(f"transfer-syntax={JPEG_UID}", answer.headers["content-type"])
        self.assertEqual([opened(data).size for data in answer.frames()], [(64, 64)] * 2)
        answer = await client.get(f"/{made.resource}/frames/4/rendered?downsample=2&quality=80")
        self.assertEqual((answer.headers["content-type"], opened(answer.body).size), ("image/jpeg", (64, 64)))
        shrunk = Image.fromarray(matrix(made)).reduce(2).crop((64, 64, 128, 128))
        self.assertLess(numpy.abs(pixels(answer.body) - numpy.asarray(shrunk).astype(int)).mean(), 6)

    async def test_search(self) -> None:
        """A search for instances tells sizes of virtual ones, also where it did not ask for what tells them."""
        folder = self._folder()
        made = slide(folder / "level.dcm", 4, 4, 64)
        proxy = await self.proxy(origin=(Mount("/dicomweb", f"file:{folder}"),), render_workers=1)
        path = f"/studies/{made.study}/series/{made.series}/instances"
        for query in ("downsample=2", "limit=1&downsample=2&includefield=PatientID"):
            (found,) = (await proxy.client().get(f"{path}?{query}")).json()
            self.assertEqual((found["00280008"]["Value"], found["00480006"]["Value"]), ([4], [128]))

    async def test_search_that_tells_little(self) -> None:
        """Where a store leaves a slide's matrix out of a search, no number of frames is made up."""
        made = slide(self.mktemp(), 4, 4, 64)
        client = await self.shown(made)
        path = f"/studies/{made.study}/series/{made.series}/instances"
        (found,) = (await client.get(f"{path}?downsample=2")).json()
        self.assertNotIn("00280008", found)
        self.assertNotIn("downsample", "".join(self.behind.lines()))

    async def test_limits(self) -> None:
        """What needs more stored frames than allowed is refused before one is fetched, and says the limit."""
        made = slide(self.mktemp(), 6, 6, 64)
        client = await self.shown(made, render_max_frames=8)
        answer = await client.get(f"/{made.resource}/frames/1?downsample=6")
        self.assertEqual((answer.status, "8" in answer.json()["detail"]), (413, True))
        self.assertEqual(self.behind.lines("/frames/"), [])
        self.assertEqual((await client.get(f"/{made.resource}/frames/1?downsample=2")).status, 200)

    async def test_bad_values(self) -> None:
        """A value that makes no sense is a 400 that names it, on every resource that takes it."""
        made = slide(self.mktemp(), 1, 1, 64)
        client = await self.shown(made)
        for path in (
            "frames/1?downsample=0.5",
            "frames/1/rendered?quality=0",
            "rendered?viewport=1",
            "metadata?downsample=x",
        ):
            answer = await client.get(f"/{made.resource}/{path}")
            self.assertEqual(answer.status, 400, path)
            self.assertIn(path.partition("?")[2].partition("=")[0], answer.json()["detail"])

    async def test_parameters_of_the_origin(self) -> None:
        """Frames asked for by parameters that are not ours are the origin's to answer."""
        made = slide(self.mktemp(), 1, 1, 64)
        client = await self.shown(made)
        answer = await client.get(f"/{made.resource}/frames/1?imageSetId=7")
        self.assertEqual(answer.headers["cache-status"], "twistedproxy; fwd=bypass")


class WholeTests(RenderingCase):
    """Whole instances."""

    async def test_overview(self) -> None:
        """A slide of many frames is one picture in a viewport, aspect kept."""
        made = slide(self.mktemp(), 10, 12, 64, total_rows=630, total_columns=740)
        client = await self.shown(made)
        answer = await client.get(
            f"/{made.resource}/rendered?viewport=100,100&interpolation=linear", {"Accept": "image/png"}
        )
        self.assertEqual((answer.status, opened(answer.body).size), (200, (100, 85)))
        expected = Image.fromarray(matrix(made)).resize((100, 85), Image.Resampling.BILINEAR)
        self.assertLessEqual(numpy.abs(pixels(answer.body) - numpy.asarray(expected).astype(int)).max(), 3)

    async def test_loaded_whole(self) -> None:
        """A picture of most frames asks the store for the instance, not for each frame; one of few for those alone."""
        made = slide(self.mktemp(), 10, 12, 64)
        client = await self.shown(made, prefetch=True, whole_instance_max_cpu=0)
        answer = await client.get(f"/{made.resource}/rendered?viewport=100,100")
        self.assertEqual((answer.status, answer.headers["cache-status"]), (200, MISS))
        asked = [line for line in self.behind.lines() if not line.endswith("/metadata")]
        self.assertEqual(asked, [f"GET /{made.resource}"])

    async def test_beyond_the_matrix(self) -> None:
        """What edge frames hold beyond the matrix is in no picture, though decoders average over it."""
        made = slide(self.mktemp(), 2, 2, 64, total_rows=107, total_columns=123)
        dataset = pydicom.dcmread(made.path)
        frame, frames = numpy.empty((64, 64, 3), numpy.uint8), []
        for row, column in ((64, 64), (64, 59), (43, 64), (43, 59)):
            frame[:], frame[row:], frame[:, column:] = 40, 240, 240
            filled = io.BytesIO()
            Image.fromarray(frame).save(filled, "JPEG", quality=100, subsampling=0)
            frames.append(filled.getvalue())
        dataset.PixelData = encapsulate(frames)
        dataset.save_as(made.path)
        client = await self.shown(made)
        for path in (
            "rendered?downsample=8",
            "rendered?viewport=15,13",
            "rendered?viewport=30,30",
            "frames/1?downsample=2",
        ):
            answer = await client.get(f"/{made.resource}/{path}", {"Accept": "image/png, */*"})
            shown = pixels(answer.body) if "rendered" in path else pixels(answer.frames()[0])
            self.assertLessEqual(shown.max(), 60, path)

    async def test_region(self) -> None:
        """A region of a slide, flipped, needs its own frames only."""
        made = slide(self.mktemp(), 6, 6, 64)
        client = await self.shown(made, hot_memory=0)
        answer = await client.get(f"/{made.resource}/rendered?viewport=64,64,130,70,-64,64", {"Accept": "image/png"})
        expected = matrix(made)[70:134, 130:194][:, ::-1]
        self.assertLessEqual(numpy.abs(pixels(answer.body) - expected).max(), 2)
        lists = [line.rpartition("/frames/")[2] for line in self.behind.lines("/frames/")]
        self.assertEqual(sorted(int(number) for text in lists for number in text.split(",")), [9, 10, 15, 16])

    async def test_limits(self) -> None:
        """A picture of more pixels, or of more frames, than allowed is refused with the limit."""
        made = slide(self.mktemp(), 3, 3, 64)
        client = await self.shown(made, render_max_pixels=10_000, render_max_whole_frames=8)
        answer = await client.get(f"/{made.resource}/rendered")
        self.assertEqual((answer.status, "10000" in answer.json()["detail"]), (413, True))
        answer = await client.get(f"/{made.resource}/rendered?viewport=20,20")
        self.assertEqual((answer.status, "limit is 8" in answer.json()["detail"]), (413, True))


class ThumbnailTests(RenderingCase):
    """Small pictures."""

    async def test_sizes(self) -> None:
        """A thumbnail is as large as fits 256 pixels, or what is asked for, and never larger than what it shows."""
        made = slide(self.mktemp(), 5, 8, 64)
        client = await self.shown(made)
        for path, size in (
            ("thumbnail", (256, 160)),
            ("thumbnail?viewport=80,80", (80, 50)),
            ("frames/7/thumbnail", (64, 64)),
            ("frames/7,1/thumbnail?viewport=32,99", (32, 32)),
        ):
            answer = await client.get(f"/{made.resource}/{path}")
            self.assertEqual((answer.status, answer.headers["content-type"]), (200, "image/jpeg"), path)
            self.assertEqual(opened(answer.body).size, size, path)
            self.assertEqual((await client.get(f"/{made.resource}/{path}")).headers["cache-status"], HIT)
        self.assertLessEqual(numpy.abs(pixels(answer.body).mean() - pixels(made.stored_frames()[6]).mean()), 2)
        self.assertEqual(self.behind.lines("thumbnail"), [])
        picture = await client.get(f"/{made.resource}/thumbnail", {"Accept": "image/png"})
        whole = numpy.asarray(Image.fromarray(matrix(made)).reduce(2)).astype(int)
        self.assertLess(numpy.abs(pixels(picture.body) - whole).mean(), 2)  # chroma is averaged by the decoder

    async def test_short_path(self) -> None:
        """The series may be left out where frames are named."""
        made = slide(self.mktemp(), 1, 2, 64)
        client = await self.shown(made)
        answer = await client.get(f"/studies/{made.study}/instances/{made.sop}/frames/2/thumbnail")
        self.assertEqual((answer.status, opened(answer.body).size), (200, (64, 64)))

    async def test_by_the_store(self) -> None:
        """Those of a study or series are the store's, and so are all where nothing is rendered here."""
        made = slide(self.mktemp(), 1, 2, 64)
        client = await self.shown(made)
        series = made.resource.rpartition("/instances/")[0]
        paths = [f"/{series}/thumbnail?viewport=9,9", f"/studies/{made.study}/thumbnail"]
        for path in paths:
            self.assertEqual((await client.get(path)).headers["cache-status"], "twistedproxy; fwd=bypass")
        self.assertEqual(self.behind.lines("thumbnail"), [f"GET {path}" for path in paths])
        client = await self.shown(made, render_workers=0)
        for path in (f"/{made.resource}/thumbnail", f"/{made.resource}/frames/1/thumbnail"):
            await client.get(path)
            self.assertEqual(self.behind.lines("thumbnail")[-1], f"GET {path}")

    async def test_refused(self) -> None:
        """What is no frame list, or past the end, is refused here; who has no grant gets none."""
        made = slide(self.mktemp(), 1, 2, 64)
        client = await self.shown(made)
        for path, status in (("frames/0/thumbnail", 400), ("frames/3/thumbnail", 404), ("thumbnail?viewport=0", 400)):
            self.assertEqual((await client.get(f"/{made.resource}/{path}")).status, status, path)
        self.behind.allow(token(ALICE))
        self.assertEqual((await self.proxied.client().get(f"/{made.resource}/thumbnail")).status, 401)


class SparseTests(RenderingCase):
    """Instances that are not TILED_FULL."""

    def painted(self, made: Made, positions: Sequence[tuple[int, int]], color: tuple[int, int, int]) -> Any:
        """The total pixel matrix of *made*, raw frames at *positions* of a grid of 4 x 5."""
        total = numpy.full((4 * 64, 5 * 64, 3), color, numpy.uint8)
        for data, (row, column) in zip(made.stored_frames(), positions):
            frame = numpy.frombuffer(data, numpy.uint8)[: 64 * 64 * 3].reshape(64, 64, 3)
            total[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64] = frame
        return total

    async def test_downsampled(self) -> None:
        """Virtual frames and the whole are put together of the frames that there are; between them is the color that the
        metadata recommend, else white. The metadata agree."""
        positions = ((3, 4), (0, 0), (1, 1), (2, 3), (0, 1))
        red: dict[str, Any] = {"RecommendedAbsentPixelCIELabValue": [35579, 53664, 50858]}
        for extra, color in (({}, (255, 255, 255)), (red, (255, 0, 0))):
            made = slide(self.mktemp(), 4, 5, 64, "raw", sparse=True, positions=positions, extra=extra)
            client = await self.shown(made)
            metadata = (await client.get(f"/{made.resource}/metadata?downsample=2")).json()[0]
            self.assertEqual(
                [metadata[tag]["Value"][0] for tag in ("00209311", "00280008", "00480007", "00480006")],
                ["TILED_FULL", 6, 128, 160],
            )
            total = Image.fromarray(self.painted(made, positions, color))
            expected = numpy.asarray(total.reduce(2)).astype(int)
            for number in range(1, 7):
                answer = await client.get(
                    f"/{made.resource}/frames/{number}/rendered?downsample=2", {"Accept": "image/png"}
                )
                row, column = divmod(number - 1, 3)
                part = expected[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64]
                got = pixels(answer.body)
                self.assertEqual(got.shape, (64, 64, 3))
                self.assertLessEqual(numpy.abs(got[:, : part.shape[1]] - part).max(), 1, number)
            answer = await client.get(f"/{made.resource}/rendered?viewport=160,128", {"Accept": "image/png"})
            self.assertLessEqual(numpy.abs(pixels(answer.body) - expected).max(), 1)
            self.assertEqual((await client.get(f"/{made.resource}/frames/7?downsample=2")).status, 404)
            answer = await client.get(f"/{made.resource}/frames/3/rendered", {"Accept": "image/png"})
            self.assertTrue((pixels(answer.body) == self.painted(made, positions, color)[64:128, 64:128]).all())

    async def test_unknown_places(self) -> None:
        """Where neither TILED_FULL nor positions say where frames lie, there is no picture of the whole, nor a smaller one, and
        the answer says why; each frame by itself is shown."""
        for organization in ("TILED_SPARSE", None):
            extra = {"PerFrameFunctionalGroupsSequence": None, "DimensionOrganizationType": organization}
            made = slide(self.mktemp(), 4, 5, 64, "raw", sparse=True, extra=extra)
            client = await self.shown(made)
            for path in ("frames/1?downsample=2", "rendered", "thumbnail", "rendered?viewport=9,9,1,1,20,20"):
                answer = await client.get(f"/{made.resource}/{path}")
                detail = answer.json()["detail"]
                self.assertEqual((answer.status, (organization or "no Dim") in detail), (400, True), (path, detail))
            self.assertEqual(opened((await client.get(f"/{made.resource}/frames/7/rendered")).body).size, (64, 64))

    async def test_without_organization(self) -> None:
        """Without DimensionOrganizationType positions say where frames lie, in whatever order they come; pixels of frames that
        lie in no grid are drawn in their places, too."""
        positions = [(row, column) for column in range(5) for row in range(4)]
        extra = {"DimensionOrganizationType": None}
        for crooked in (False, True):
            made = slide(self.mktemp(), 4, 5, 64, "raw", sparse=True, positions=positions, extra=extra)
            total = self.painted(made, positions, (255, 255, 255))
            if crooked:  # 7 pixels up and 5 to the left, so that one row and one column lie outside
                kept = [at for at in positions if 0 not in at]
                made = slide(self.mktemp(), 4, 5, 64, "raw", sparse=True, positions=kept, extra=extra)
                dataset = pydicom.dcmread(made.path)
                for groups in dataset.PerFrameFunctionalGroupsSequence:
                    groups.PlanePositionSlideSequence[0].RowPositionInTotalImagePixelMatrix -= 7
                    groups.PlanePositionSlideSequence[0].ColumnPositionInTotalImagePixelMatrix -= 5
                dataset.save_as(made.path)
                shifted = self.painted(made, kept, (255, 255, 255))
                total = numpy.full_like(shifted, 255)
                total[:-7, :-5] = shifted[7:, 5:]
            client = await self.shown(made)
            small = numpy.asarray(Image.fromarray(total).reduce(2)).astype(int)
            for path, expected in (
                ("rendered", total),
                ("rendered?downsample=2", small),
                ("rendered?viewport=160,128", small),
                ("thumbnail?viewport=160,128", small),
            ):
                answer = await client.get(f"/{made.resource}/{path}", {"Accept": "image/png"})
                self.assertEqual(answer.status, 200, answer.body[:300])
                self.assertLessEqual(numpy.abs(pixels(answer.body) - expected).max(), 1, (crooked, path))


class ColorTests(RenderingCase):
    """ICC profiles and gray."""

    async def test_profiles(self) -> None:
        """Profiles go along as asked; a conversion is LittleCMS's own."""
        made = slide(self.mktemp(), 1, 1, 64, "raw")
        client = await self.shown(made)
        path = f"/{made.resource}/frames/1/rendered"
        png = {"Accept": "image/png"}
        profile = pydicom.dcmread(made.path).OpticalPathSequence[0].ICCProfile.rstrip(b"\0")
        for query, embedded in (("", None), ("?iccprofile=no", None), ("?iccprofile=yes", profile)):
            got = opened((await client.get(path + query, png)).body).info.get("icc_profile")
            self.assertEqual(got.rstrip(b"\0") if got else None, embedded, query)
        stored = numpy.frombuffer(made.stored_frames()[0], numpy.uint8).reshape(64, 64, 3)
        for target in ("srgb", "displayp3", "adobergb", "rommrgb"):
            answer = await client.get(f"{path}?iccprofile={target}", png)
            expected, goal = convert_colors(stored, profile, target)
            self.assertLessEqual(numpy.abs(pixels(answer.body) - expected).max(), 1, target)
            name = ImageCms.getProfileDescription(io.BytesIO(opened(answer.body).info["icc_profile"]))
            self.assertEqual(name, ImageCms.getProfileDescription(io.BytesIO(goal)))
        answer = await client.get(f"{path}?iccprofile=srgb&embed_iccprofile=false", png)
        self.assertNotIn("icc_profile", opened(answer.body).info)

    async def test_a_value_that_cannot_be_had(self) -> None:
        """A picture that needs a value that the metadata only point to is an error without it. Nothing of a failed request,
        nor of one caller's rights, is kept for others, or for later; who does not need the value is not concerned."""
        made = slide(self.mktemp(), 1, 1, 64, "raw-16", extra={"VOILUTSequence": [_threshold()]})
        client = await self.shown(made)
        self.behind.allow(token(ALICE))
        bob = self.proxied.client({"Authorization": "Bearer bob-0a1b2c3d4e"})
        self.behind.allow("bob-0a1b2c3d4e")
        path, png = f"/{made.resource}/frames/1/rendered", {"Accept": "image/png"}
        for fault, status in (
            (faults.Answer(500), 502),
            (faults.Answer(404), 502),
            (faults.Answer(403), 403),
            (faults.Answer(206, (("Content-Type", "application/octet-stream"),), b"x"), 502),
            (faults.Answer(200, (("Content-Type", "text/html"),), b"<p>log in"), 502),
            (faults.Answer(200, (("Content-Type", "application/octet-stream"),), b"<p>log in"), 502),
            (faults.Answer(200, (("Content-Type", "application/octet-stream"),), b""), 502),
            (faults.Answer(200, (("Content-Type", "image/jpeg"),), bytes(131072)), 502),
            (faults.Answer(200, (), bytes(131072)), 502),
        ):
            self.behind.fail(fault, "/bulkdata/", None)
            self.assertEqual((await client.get(path, png)).status, status, fault)
            self.behind.heal()
        for caller, query in ((client, ""), (bob, "?viewport=64,64")):
            shown = pixels((await caller.get(path + query, png)).body)
            self.assertEqual(set(numpy.unique(shown)), {0, 255}, "shown through the table")

    async def test_own_profiles(self) -> None:
        """Profiles of one's own replace ours, and have names of their own; their pictures are cached apart from ours."""
        own = {"srgb": profile_of("rommrgb"), "scanner-7": TEST_FILES[0].with_name("crayons.icc").read_bytes()}
        made = slide(self.mktemp(), 1, 1, 64, "raw")
        client = await self.shown(made, icc_profiles=profile_folder(self.mktemp(), own))
        source = pydicom.dcmread(made.path).OpticalPathSequence[0].ICCProfile.rstrip(b"\0")
        stored = numpy.frombuffer(made.stored_frames()[0], numpy.uint8).reshape(64, 64, 3)
        for path in (f"/{made.resource}/frames/1/rendered", f"/{made.resource}/rendered"):
            for name, profile in own.items():
                picture = opened((await client.get(f"{path}?iccprofile={name}", {"Accept": "image/png"})).body)
                self.assertEqual(picture.info["icc_profile"], profile)
                self.assertTrue((numpy.asarray(picture) == convert_colors(stored, source, name, profile)[0]).all())
        answer = await client.get(f"/{made.resource}/frames/1?iccprofile=scanner-7")
        self.assertEqual(answer.status, 200)
        answer = await client.get(f"{path}?iccprofile=scanner-8")
        self.assertEqual((answer.status, "scanner-7" in answer.json()["detail"]), (400, True))
        assert self.proxied.components.imaging is not None
        self.proxied.components.imaging.planner.profiles = {}  # as on a host without them
        answer = await client.get(f"{path}?iccprofile=srgb", {"Accept": "image/png"})
        self.assertEqual(opened(answer.body).info["icc_profile"], profile_of("srgb"))

    async def test_palette(self) -> None:
        """Values that stand for colors are looked up before they are averaged, also where the decoder could do that."""
        colors = numpy.random.default_rng(1).integers(0, 256, (3, 256), numpy.uint8)
        extra: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
        for name, table in zip(("Red", "Green", "Blue"), colors):
            extra[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
            extra[f"{name}PaletteColorLookupTableData"] = table.tobytes()
        made = loop(self.mktemp(), 1, 64, 64, "jpeg-gray", extra=extra)
        client = await self.shown(made)
        shown = Image.fromarray(colors.T[pixels(made.stored_frames()[0])])
        for path, expected in (("rendered", shown), ("rendered?downsample=4", shown.reduce(4))):
            answer = await client.get(f"/{made.resource}/{path}", {"Accept": "image/png"})
            self.assertLessEqual(numpy.abs(pixels(answer.body) - numpy.asarray(expected).astype(int)).max(), 1, path)

    async def test_deep_gray(self) -> None:
        """Gray of 16 bits is shown through the window that is asked for."""
        made = slide(self.mktemp(), 1, 1, 64, "raw-16")
        client = await self.shown(made)
        path = f"/{made.resource}/frames/1/rendered"
        answer = await client.get(f"{path}?window=20000,10000,linear-exact", {"Accept": "image/png"})
        stored = numpy.frombuffer(made.stored_frames()[0], "<u2").reshape(64, 64).astype(float)
        expected = numpy.clip((stored - 20000) / 10000 + 0.5, 0, 1) * 255
        self.assertLessEqual(numpy.abs(pixels(answer.body) - expected).max(), 1)
        refused = await client.get(f"/{made.resource}/frames/1?downsample=2")
        self.assertEqual((refused.status, "rendered" in refused.json()["detail"]), (400, True))

    async def test_deep_gray_without_a_window(self) -> None:
        """Deep gray that says nothing of windows is never nearly black. Each frame of a loop has its own range; all tiles
        of a slide have one, as far as some of them tell, and every picture of a frame is the same."""
        made = loop(self.mktemp(), 3, 64, 64, "raw-16")
        client = await self.shown(made)
        stored = [numpy.frombuffer(data, "<u2").reshape(64, 64) >> 6 for data in made.stored_frames()]
        self.behind.instances[made.sop].frames[:] = [(values >> n).tobytes() for n, values in enumerate(stored)]
        for n, values in enumerate(stored):
            values = (values >> n).astype(float)
            expected = (values - values.min()) / (values.max() - values.min()) * 255
            answer = await client.get(f"/{made.resource}/frames/{n + 1}/rendered", {"Accept": "image/png"})
            self.assertLessEqual(numpy.abs(pixels(answer.body) - expected).max(), 1)
        made = slide(self.mktemp(), 3, 4, 64, "raw-16")
        client = await self.shown(made)
        tiles = [numpy.frombuffer(data, "<u2").reshape(64, 64) >> 6 for data in made.stored_frames()]
        self.behind.instances[made.sop].frames[:] = [values.tobytes() for values in tiles]
        sample = [tiles[number - 1] for number in range_sample(InstanceMetadata(12, 64, 64, 192, 256), 5)]
        low, high = min(map(numpy.min, sample)), max(map(numpy.max, sample))
        expected = [numpy.clip((values.astype(float) - low) / (high - low), 0, 1) * 255 for values in tiles]
        whole = numpy.concatenate([numpy.concatenate(expected[at : at + 4], axis=1) for at in (0, 4, 8)])
        answer = await client.get(f"/{made.resource}/rendered", {"Accept": "image/png"})
        self.assertLessEqual(numpy.abs(pixels(answer.body) - whole).max(), 1)
        for number in (1, 7):
            answer = await client.get(f"/{made.resource}/frames/{number}/rendered", {"Accept": "image/png"})
            self.assertLessEqual(numpy.abs(pixels(answer.body) - expected[number - 1]).max(), 1)

    async def test_range_of_what_is_shrunk(self) -> None:
        """A small picture of deep gray is as bright as the whole, also where the decoder leaves out what is brightest."""
        folder = self._folder()
        made = loop(folder / "image.dcm", 1, 256, 320, "raw-16")
        dataset = pydicom.dcmread(made.path)
        values = numpy.add.outer(numpy.arange(256), numpy.arange(320)).astype(numpy.uint16)
        values[101, 77] = 2000
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
        dataset.PixelData = encapsulate([bytes(imagecodecs.jpeg2k_encode(values, reversible=True, codecformat="j2k"))])
        dataset.save_as(made.path)
        client = (await self.proxy(origin=(Mount("/dicomweb", f"file:{folder}"),), render_workers=1)).client()
        whole = numpy.rint(values / 2000 * 255)
        answer = await client.get(f"/{made.resource}/rendered", {"Accept": "image/png"})
        self.assertLessEqual(numpy.abs(pixels(answer.body) - whole).max(), 1)
        answer = await client.get(f"/{made.resource}/thumbnail?viewport=40,40", {"Accept": "image/png"})
        small = numpy.asarray(Image.fromarray(whole.astype(numpy.uint8)).reduce(8)).astype(int)
        self.assertLessEqual(numpy.abs(pixels(answer.body) - small).max(), 3)


class FailureTests(RenderingCase):
    """What cannot be made."""

    async def test_damaged_frame(self) -> None:
        """A frame that is not what it says is a 502 that says so, and the next picture is made by the same child."""
        made = slide(self.mktemp(), 1, 2, 64, "jpeg2000")
        client = await self.shown(made)
        broken = self.behind.instances[made.sop]
        broken.frames[0] = broken.frames[0][:200] + b"\xff\xd9"
        answer = await client.get(f"/{made.resource}/frames/1/rendered")
        self.assertEqual((answer.status, answer.headers["content-type"]), (502, "application/problem+json"))
        assert self.proxied.components.imaging is not None
        pids = self.proxied.components.imaging.pool.pids
        self.assertEqual((await client.get(f"/{made.resource}/frames/2/rendered")).status, 200)
        self.assertEqual(self.proxied.components.imaging.pool.pids, pids)

    async def test_frames_that_cannot_be_drawn(self) -> None:
        """An empty or broken frame leaves its place in a larger picture white; alone it is a 502, also as it is stored."""
        for encoding, broken in (
            ("jpeg", b""),
            ("jpeg", b"\xff\xd8\xff\xdb no JPEG"),
            ("jpeg-gray", b""),
            ("rle", b""),
        ):
            folder = self._folder()
            made = slide(folder / "level.dcm", 1, 3, 64, encoding)
            dataset = pydicom.dcmread(made.path)
            items = (b"", *made.stored_frames()[:2], broken)
            dataset.PixelData = b"".join(b"\xfe\xff\0\xe0" + len(one).to_bytes(4, "little") + one for one in items)
            dataset.save_as(made.path)
            origin = (Mount("/dicomweb", f"file:{folder}"),)
            client = (await self.proxy(origin=origin, render_workers=1)).client()
            events: list[LogEvent] = []
            globalLogPublisher.addObserver(events.append)
            self.addCleanup(globalLogPublisher.removeObserver, events.append)
            for path, side in (("rendered", 64), ("rendered?downsample=2", 32), ("thumbnail", 64)):
                answer = await client.get(f"/{made.resource}/{path}", {"Accept": "image/png"})
                self.assertEqual(answer.status, 200, (encoding, path, answer.body[:200]))
                shown = pixels(answer.body)
                self.assertTrue((shown[:, 2 * side :] == 255).all(), path)
                self.assertLess(shown[:, : 2 * side].mean(), 250, path)
            logged = [event for event in events if event.get("event") == "frames_left_empty"]
            self.assertEqual([event["instance"] for event in logged], [made.resource] * 3)
            for path in ("frames/2/rendered?downsample=2", "rendered?viewport=9,9,128,0,64,64"):  # parts of the whole
                answer = await client.get(f"/{made.resource}/{path}", {"Accept": "image/png"})
                self.assertEqual(answer.status, 502 if broken else 200, path)
            for path in ("frames/3/rendered", "frames/3/rendered?viewport=30,30", "frames/3/thumbnail"):
                answer = await client.get(f"/{made.resource}/{path}", {"Accept": "image/png"})
                self.assertEqual(answer.status, 502, path)
                if not broken:
                    answer = await client.get(f"/{made.resource}/{path}")
                    self.assertEqual((answer.status, "empty" in answer.json()["detail"]), (502, True), path)
            self.assertEqual((await client.get(f"/{made.resource}/frames/2/rendered")).status, 200)

    async def test_killed_child(self) -> None:
        """A child that dies in the middle of a picture fails that one with a 502; the next picture is made by another."""
        made = slide(self.mktemp(), 10, 10, 64)
        client = await self.shown(made, render_workers=1)
        assert self.proxied.components.imaging is not None
        pool = self.proxied.components.imaging.pool
        self.assertEqual((await client.get(f"/{made.resource}/rendered?viewport=50,50")).status, 200)
        asked = Deferred.fromCoroutine(client.get(f"/{made.resource}/rendered?viewport=600,600&interpolation=lanczos4"))
        await wait_until(lambda: pool.status()["busy"])
        for pid in pool.pids:
            os.kill(pid, signal.SIGSEGV)
        answer = await asked
        self.assertEqual((answer.status, answer.headers["content-type"]), (502, "application/problem+json"))
        self.assertEqual((await client.get(f"/{made.resource}/rendered?viewport=60,60")).status, 200)

    async def test_full_queue(self) -> None:
        """More pictures than may wait are refused with the time to come back."""
        made = slide(self.mktemp(), 2, 4, 64, "raw")
        client = await self.shown(made, render_queue=1)
        asked = [
            Deferred.fromCoroutine(client.get(f"/{made.resource}/frames/{number}/rendered")) for number in range(1, 9)
        ]
        answers = await gatherResults(asked)
        self.assertEqual({answer.status for answer in answers}, {200, 503})
        busy = next(answer for answer in answers if answer.status == 503)
        self.assertGreater(int(busy.headers["retry-after"]), 0)

    async def test_by_the_origin(self) -> None:
        """Without rendering workers pictures are the origin's, and what only we can make is refused."""
        made = slide(self.mktemp(), 1, 1, 64)
        client = await self.shown(made, render_workers=0)
        answer = await client.get(f"/{made.resource}/frames/1/rendered")
        self.assertEqual(answer.body, made.stored_frames()[0])
        self.assertEqual((await client.get(f"/{made.resource}/frames/1?downsample=2")).status, 400)
        self.assertEqual((await client.get(f"/{made.resource}/metadata?downsample=2")).status, 400)

    async def test_what_only_the_origin_renders(self) -> None:
        """Documents without pixels, videos of a store that does not say so, and frames that it refuses are the origin's to
        render, in whatever form the caller takes."""
        made = slide(self.mktemp(), 1, 1, 64)
        nothing: dict[str, Any] = {"00280010": None, "00280011": None, "00280008": None, "00480006": None}
        video = {"00080016": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.77.1.1.1"]}, "00083002": None}
        partial = {"00280004": {"vr": "CS", "Value": ["YBR_PARTIAL_420"]}, "00083002": None}
        for told, refuses in ((nothing, False), (video, False), (partial, False), ({}, True)):
            client = await self.shown(made)
            self.behind.fail(faults.MetadataSays(told), "/metadata", None)
            if refuses:
                self.behind.fail(faults.server_error(), "/frames/", None)
                self.behind.fail(faults.Answer(404), lambda seen: seen.path.endswith(made.sop), None)
            document = faults.Answer(200, (("Content-Type", "application/pdf"),), b"%PDF")
            for tail, accept in (
                ("/rendered", "*/*"),
                ("/rendered", "image/png" if refuses else "application/pdf"),
                ("/rendered?accept=image/png" if refuses else "/rendered?accept=application/pdf", "*/*"),
                ("/thumbnail", "image/png"),
            ):
                self.behind.fail(document, lambda seen: seen.path.endswith(("/rendered", "/thumbnail")))
                answer = await client.get(f"/{made.resource}{tail}", {"Accept": accept})
                self.assertEqual((answer.status, answer.body), (200, b"%PDF"), (told, tail, accept))

    async def test_loop(self) -> None:
        """Frames of a loop shrink each by itself; past the last there is none."""
        made = loop(self.mktemp(), 3)
        client = await self.shown(made)
        answer = await client.get(f"/{made.resource}/frames/3/rendered?downsample=2", {"Accept": "image/png"})
        self.assertEqual(opened(answer.body).size, (made.columns // 2, made.rows // 2))
        self.assertEqual((await client.get(f"/{made.resource}/frames/4/rendered?downsample=2")).status, 404)
        self.assertEqual(opened((await client.get(f"/{made.resource}/rendered")).body).size, (made.columns, made.rows))
